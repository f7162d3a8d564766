//! Blobs of the content store of a BuildKit. The store of an engine contains all its images.

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use crate::client::Client;
use crate::content_proto as proto;
use crate::transport::MAX_MESSAGE;

const READ_PATH: &str = "/containerd.services.content.v1.Content/Read";
const INFO_PATH: &str = "/containerd.services.content.v1.Content/Info";

/// Error of reading a blob from the content store.
#[derive(Debug, thiserror::Error)]
#[error("the builder's content store cannot be read")]
pub struct ContentError(#[from] Status);

impl ContentError {
    /// Returns `true` if the builder has no content store.
    pub fn is_unsupported(&self) -> bool {
        self.0.code() == Code::Unimplemented
    }
}

impl Client {
    /// Reads a blob of the content store, in pieces. `None` if the store does not contain it.
    ///
    /// # Errors
    /// [`ContentError`]. An error after the first piece is an item of the stream.
    pub async fn blob(
        &self,
        digest: &str,
    ) -> Result<Option<impl Stream<Item = Result<Bytes, ContentError>> + Send + use<>>, ContentError>
    {
        // The store reports a missing blob immediately or with the first piece.
        let mut pieces = match open_blob(&self.inner.channel, digest, 0, 0).await {
            Ok(pieces) => pieces,
            Err(status) if status.code() == Code::NotFound => return Ok(None),
            Err(status) => return Err(status.into()),
        };
        let first = match pieces.message().await {
            Ok(first) => first,
            Err(status) if status.code() == Code::NotFound => return Ok(None),
            Err(status) => return Err(status.into()),
        };
        let first = futures::stream::iter(first.map(Ok));
        let pieces = first.chain(pieces).map(|piece| Ok(piece?.data.into()));
        Ok(Some(pieces))
    }

    /// Returns the size of a blob of the content store, in bytes. `None` if the store does not
    /// contain it.
    ///
    /// # Errors
    /// [`ContentError`].
    pub async fn blob_size(&self, digest: &str) -> Result<Option<u64>, ContentError> {
        let mut grpc = ready_client(&self.inner.channel).await?;
        let request = Request::new(proto::InfoRequest {
            digest: digest.to_owned(),
        });
        let codec = ProstCodec::<proto::InfoRequest, proto::InfoResponse>::default();
        let path = PathAndQuery::from_static(INFO_PATH);
        match grpc.unary(request, path, codec).await {
            Ok(response) => {
                let size = response.into_inner().info.map_or(0, |info| info.size);
                Ok(Some(u64::try_from(size).unwrap_or_default()))
            }
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status.into()),
        }
    }

    /// Reads `length` bytes of a blob of the content store from the offset `first`. Returns fewer
    /// at the end of the blob.
    ///
    /// # Errors
    /// [`ContentError`].
    pub async fn blob_part(
        &self,
        digest: &str,
        first: u64,
        length: u64,
    ) -> Result<Vec<u8>, ContentError> {
        let first = i64::try_from(first).unwrap_or(i64::MAX);
        let size = i64::try_from(length).unwrap_or(i64::MAX);
        let mut pieces = open_blob(&self.inner.channel, digest, first, size).await?;
        let mut part = Vec::new();
        while let Some(piece) = pieces.message().await? {
            part.extend_from_slice(&piece.data);
        }
        Ok(part)
    }
}

async fn ready_client(channel: &Channel) -> Result<tonic::client::Grpc<Channel>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE);
    grpc.ready()
        .await
        .map_err(|e| Status::unavailable(e.to_string()))?;
    Ok(grpc)
}

/// Opens a blob at `offset`, for `size` bytes. A size of 0 reads to the end. The caller reads to
/// the end, or drops the stream.
pub(crate) async fn open_blob(
    channel: &Channel,
    digest: &str,
    offset: i64,
    size: i64,
) -> Result<tonic::Streaming<proto::ReadResponse>, Status> {
    let mut grpc = ready_client(channel).await?;
    let request = Request::new(proto::ReadRequest {
        digest: digest.to_owned(),
        offset,
        size,
    });
    let codec = ProstCodec::<proto::ReadRequest, proto::ReadResponse>::default();
    let response = grpc
        .server_streaming(request, PathAndQuery::from_static(READ_PATH), codec)
        .await?;
    Ok(response.into_inner())
}
