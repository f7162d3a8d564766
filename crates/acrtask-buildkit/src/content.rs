//! Blobs of the content store that a BuildKit serves beside its builds. An engine's own is that of all its images.

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

/// A blob cannot be read from the content store.
#[derive(Debug, thiserror::Error)]
#[error("the builder's content store cannot be read")]
pub struct ContentError(#[from] Status);

impl Client {
    /// Reads a blob of the content store, in pieces. `None` if the store does not have it.
    ///
    /// # Errors
    /// [`ContentError`]; what goes wrong after the first piece is an item of the stream.
    pub async fn blob(
        &self,
        digest: &str,
    ) -> Result<Option<impl Stream<Item = Result<Bytes, ContentError>> + Send + use<>>, ContentError>
    {
        // A blob that is missing is reported at once or with the first piece.
        let mut pieces = match open(&self.inner.channel, digest).await {
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
}

/// Opens a blob. The caller reads to the end, or drops the stream.
pub(crate) async fn open(
    channel: &Channel,
    digest: &str,
) -> Result<tonic::Streaming<proto::ReadResponse>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE);
    grpc.ready()
        .await
        .map_err(|e| Status::unavailable(e.to_string()))?;
    let request = Request::new(proto::ReadRequest {
        digest: digest.to_owned(),
        offset: 0,
        size: 0,
    });
    let codec = ProstCodec::<proto::ReadRequest, proto::ReadResponse>::default();
    let answer = grpc
        .server_streaming(request, PathAndQuery::from_static(READ_PATH), codec)
        .await?;
    Ok(answer.into_inner())
}
