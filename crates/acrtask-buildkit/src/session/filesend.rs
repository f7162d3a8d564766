//! `moby.filesync.v1.FileSend`: the builder sends results. A `tar`, `oci` or `docker` exporter
//! sends one stream of bytes. A `local` exporter sends a folder in the packets of file sync.
//!
//! Both use the same method. A header names the exporter, which decides the message type. The
//! service is therefore written by hand, for undecoded messages.

use std::collections::HashMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bollard_buildkit_proto::moby::filesync::v1::BytesMessage;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use prost::Message;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::http;
use tonic::{Request, Response, Status, Streaming};

use super::raw::RawCodec;
use super::receive;

const EXPORTER_HEADER: &str = "buildkit-attachable-exporter-id";
pub(crate) const METHOD: &str = "/moby.filesync.v1.FileSend/DiffCopy";

/// Destination of one exporter's result.
pub(crate) enum Target {
    /// Stream of bytes, consumed by the first call.
    Bytes(Mutex<Option<ByteSink>>),
    Folder(PathBuf),
}

/// Receiver of the bytes of an archive.
pub(crate) type ByteSink = Pin<Box<dyn AsyncWrite + Send>>;

#[derive(Clone)]
pub(crate) struct FileSendService {
    targets: Arc<HashMap<usize, Target>>,
}

impl FileSendService {
    /// Creates the service. The keys of `targets` are the indexes of the exporters in the request.
    pub(crate) fn new(targets: HashMap<usize, Target>) -> Self {
        Self {
            targets: Arc::new(targets),
        }
    }

    async fn diff_copy(
        self,
        request: Request<Streaming<Bytes>>,
    ) -> Result<Response<ReplyStream>, Status> {
        let id = request
            .metadata()
            .get(EXPORTER_HEADER)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.parse().ok())
            .unwrap_or(0);
        let target = self
            .targets
            .get(&id)
            .ok_or_else(|| Status::not_found(format!("exporter {id} not found")))?;
        let incoming = request.into_inner();
        let (replies, receiver) = mpsc::channel(64);
        match target {
            Target::Bytes(sink) => {
                let sink = sink
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .take()
                    .ok_or_else(|| Status::already_exists("the result was sent twice"))?;
                copy_bytes(incoming, sink).await?;
            }
            Target::Folder(folder) => {
                let folder = folder.clone();
                tokio::spawn(async move {
                    if let Err(status) = receive::receive_folder(incoming, &replies, folder).await {
                        let _ = replies.send(Err(status)).await;
                    }
                });
            }
        }
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

type ReplyStream = ReceiverStream<Result<Bytes, Status>>;

async fn copy_bytes(mut incoming: Streaming<Bytes>, mut sink: ByteSink) -> Result<(), Status> {
    let failed =
        |e: std::io::Error| Status::aborted(format!("cannot write the build's result: {e}"));
    while let Some(message) = incoming.message().await? {
        let message =
            BytesMessage::decode(message).map_err(|e| Status::invalid_argument(e.to_string()))?;
        sink.write_all(&message.data).await.map_err(failed)?;
    }
    sink.shutdown().await.map_err(failed)
}

impl tonic::server::NamedService for FileSendService {
    const NAME: &'static str = "moby.filesync.v1.FileSend";
}

impl tonic::server::StreamingService<Bytes> for FileSendService {
    type Response = Bytes;
    type ResponseStream = ReplyStream;
    type Future = BoxFuture<'static, Result<Response<ReplyStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        self.clone().diff_copy(request).boxed()
    }
}

impl tower::Service<http::Request<tonic::body::Body>> for FileSendService {
    type Response = http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let service = self.clone();
        async move {
            if request.uri().path() != METHOD {
                return Ok(Status::unimplemented(request.uri().path()).into_http());
            }
            let mut grpc = tonic::server::Grpc::new(RawCodec)
                .max_decoding_message_size(crate::transport::MAX_MESSAGE);
            Ok(grpc.streaming(service, request).await)
        }
        .boxed()
    }
}
