//! Content stores for the builder, in containerd's protocol: folders with OCI layout, and blobs of
//! this program. They serve caches of type `local`, and images as named contexts.
//!
//! Invariant: a blob appears under its digest only if its bytes have that digest.
//!
//! Left out: listing, deletion and resumption, which no builder uses here.

mod layout;

use std::collections::HashMap;
use std::fs::File;
use std::future::Future;
use std::io::{Seek as _, SeekFrom};
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use futures::{FutureExt, Stream, StreamExt};
use prost::Message;
use prost_types::Timestamp;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::http;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::blob_source::BlobSource;
use crate::content_proto as proto;
use crate::content_proto::{PREFIX, WriteAction};
use crate::transport::MAX_MESSAGE;

use layout::Ingest;
pub(crate) use layout::{Layout, LayoutError};

const STORE_HEADER: &str = "buildkit-attachable-store-id";
const CHUNK: usize = 256 * 1024;

/// Methods to announce in the session.
pub(super) const METHODS: [&str; 9] = [
    "/containerd.services.content.v1.Content/Info",
    "/containerd.services.content.v1.Content/Update",
    "/containerd.services.content.v1.Content/List",
    "/containerd.services.content.v1.Content/Delete",
    "/containerd.services.content.v1.Content/Read",
    "/containerd.services.content.v1.Content/Status",
    "/containerd.services.content.v1.Content/ListStatuses",
    "/containerd.services.content.v1.Content/Write",
    "/containerd.services.content.v1.Content/Abort",
];

/// Content of one store id.
#[derive(Debug, Clone)]
pub(crate) enum Store {
    Folder(Layout),
    /// Blobs of this program. The builder can only read them.
    Provided(Arc<dyn BlobSource>),
}

impl Store {
    async fn size(&self, digest: &str) -> Result<u64, Status> {
        match self {
            Self::Folder(layout) => Ok(layout.size(digest)?),
            Self::Provided(blobs) => Ok(open_provided(blobs, digest).await?.1),
        }
    }

    /// Opens a blob at `offset`. Returns it with the number of bytes to read: `size`, or all
    /// remaining bytes if `size` is 0.
    async fn open(&self, digest: &str, offset: i64, size: i64) -> Result<(File, u64), Status> {
        let blobs = match self {
            Self::Folder(layout) => return Ok(layout.open_blob(digest, offset, size)?),
            Self::Provided(blobs) => blobs,
        };
        let (mut file, length) = open_provided(blobs, digest).await?;
        let offset = u64::try_from(offset).unwrap_or(0).min(length);
        file.seek(SeekFrom::Start(offset))?;
        let left = length - offset;
        let size = u64::try_from(size).ok().filter(|size| *size > 0);
        Ok((file, size.map_or(left, |size| size.min(left))))
    }

    /// Returns the layout to write to.
    fn writable_layout(&self) -> Result<&Layout, Status> {
        match self {
            Self::Folder(layout) => Ok(layout),
            Self::Provided(_) => Err(Status::permission_denied("the store is read-only")),
        }
    }
}

/// Opens a blob of this program. Returns it with its length in bytes.
async fn open_provided(blobs: &Arc<dyn BlobSource>, digest: &str) -> Result<(File, u64), Status> {
    let file = blobs
        .open(digest)
        .await
        .map_err(Status::failed_precondition)?;
    let file = file.ok_or_else(|| Status::not_found(format!("content {digest}: not found")))?;
    let length = file.metadata()?.len();
    Ok((file, length))
}

/// Stores by the ids that the builder uses.
#[derive(Clone)]
pub(crate) struct ContentService {
    stores: Arc<HashMap<String, Store>>,
}

impl ContentService {
    pub(crate) fn new(stores: HashMap<String, Store>) -> Self {
        Self {
            stores: Arc::new(stores),
        }
    }

    fn find_store(&self, metadata: &MetadataMap) -> Result<Store, Status> {
        let id = metadata.get(STORE_HEADER).and_then(|v| v.to_str().ok());
        let id = id.ok_or_else(|| {
            Status::invalid_argument(format!("request lacks metadata {STORE_HEADER:?}"))
        })?;
        self.stores
            .get(id)
            .cloned()
            .ok_or_else(|| Status::not_found(format!("unknown store {id}")))
    }

    async fn info(
        self,
        request: Request<proto::InfoRequest>,
    ) -> Result<Response<proto::InfoResponse>, Status> {
        let store = self.find_store(request.metadata())?;
        let info = blob_info(&store, &request.get_ref().digest).await?;
        Ok(Response::new(proto::InfoResponse { info: Some(info) }))
    }

    /// Returns the labels without storing them. They serve the builder's own garbage collection,
    /// and a folder cannot store them.
    async fn update(
        self,
        request: Request<proto::UpdateRequest>,
    ) -> Result<Response<proto::InfoResponse>, Status> {
        let store = self.find_store(request.metadata())?;
        let requested = request.into_inner().info.unwrap_or_default();
        let info = proto::Info {
            labels: requested.labels,
            ..blob_info(&store, &requested.digest).await?
        };
        Ok(Response::new(proto::InfoResponse { info: Some(info) }))
    }

    async fn read(
        self,
        request: Request<proto::ReadRequest>,
    ) -> Result<Response<ReplyStream<proto::ReadResponse>>, Status> {
        let store = self.find_store(request.metadata())?;
        let read_request = request.into_inner();
        let (mut reader, size) = store
            .open(&read_request.digest, read_request.offset, read_request.size)
            .await?;
        let (sender, receiver) = mpsc::channel(4);
        tokio::task::spawn_blocking(move || {
            use std::io::Read;
            let (mut offset, mut left) = (read_request.offset, size);
            while left > 0 {
                let mut data = vec![0; CHUNK.min(usize::try_from(left).unwrap_or(CHUNK))];
                let read = reader.read(&mut data);
                let reply = match read {
                    Ok(0) => Err(Status::data_loss("the blob became shorter")),
                    Ok(n) => {
                        data.truncate(n);
                        let reply = proto::ReadResponse { offset, data };
                        offset += n as i64;
                        left = left.saturating_sub(n as u64);
                        Ok(reply)
                    }
                    Err(e) => Err(Status::unavailable(e.to_string())),
                };
                let failed = reply.is_err();
                if sender.blocking_send(reply).is_err() || failed {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn status(
        self,
        request: Request<proto::StatusRequest>,
    ) -> Result<Response<proto::StatusResponse>, Status> {
        Err(Status::not_found(format!(
            "no write of {:?} is under way",
            request.get_ref().r#ref
        )))
    }

    async fn write(
        self,
        request: Request<Streaming<proto::WriteRequest>>,
    ) -> Result<Response<ReplyStream<proto::WriteResponse>>, Status> {
        let store = self
            .find_store(request.metadata())?
            .writable_layout()?
            .clone();
        let mut incoming = request.into_inner();
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(async move {
            let mut ingest: Option<Ingest> = None;
            loop {
                let message = match incoming.message().await {
                    Ok(Some(message)) => message,
                    Ok(None) | Err(_) => return,
                };
                let reply = handle_write(&store, &mut ingest, message);
                let failed = reply.is_err();
                if sender.send(reply).await.is_err() || failed {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

type ReplyStream<T> = ReceiverStream<Result<T, Status>>;

async fn blob_info(store: &Store, digest: &str) -> Result<proto::Info, Status> {
    let size = store.size(digest).await?;
    Ok(proto::Info {
        digest: digest.to_owned(),
        size: i64::try_from(size).unwrap_or(i64::MAX),
        created_at: Some(Timestamp::default()),
        updated_at: Some(Timestamp::default()),
        labels: HashMap::new(),
    })
}

/// Handles one message of a write. Pieces have at most a few MiB, so they are written immediately.
fn handle_write(
    store: &Layout,
    ingest: &mut Option<Ingest>,
    message: proto::WriteRequest,
) -> Result<proto::WriteResponse, Status> {
    let action = WriteAction::try_from(message.action)
        .map_err(|_| Status::invalid_argument("unknown write action"))?;
    if !message.expected.is_empty() && store.size(&message.expected).is_ok() {
        return Err(Status::already_exists(format!(
            "content {}: already exists",
            message.expected
        )));
    }
    let open = match ingest {
        Some(open) => open,
        None => ingest.insert(store.start_ingest()?),
    };
    if message.offset > 0
        && !message.data.is_empty()
        && u64::try_from(message.offset).ok() != Some(open.written())
    {
        return Err(Status::out_of_range(format!(
            "write at {} where {} is next",
            message.offset,
            open.written()
        )));
    }
    open.write(&message.data)?;
    let written = i64::try_from(open.written()).unwrap_or(i64::MAX);
    let mut reply = proto::WriteResponse {
        action: message.action,
        started_at: Some(Timestamp::default()),
        updated_at: Some(Timestamp::default()),
        offset: written,
        total: message.total,
        digest: String::new(),
    };
    if action == WriteAction::Commit {
        if message.total > 0 && message.total != written {
            return Err(Status::failed_precondition(format!(
                "{written} bytes written, {} expected",
                message.total
            )));
        }
        let finished = ingest
            .take()
            .ok_or_else(|| Status::internal("a commit without a write"))?;
        reply.digest = finished.commit(&message.expected)?;
    }
    Ok(reply)
}

impl From<LayoutError> for Status {
    fn from(error: LayoutError) -> Self {
        let message = crate::filesync::error_chain(&error);
        match error {
            LayoutError::NotFound { .. } => Self::not_found(message),
            LayoutError::Digest { .. } => Self::invalid_argument(message),
            LayoutError::Mismatch { .. } => Self::failed_precondition(message),
            LayoutError::Io { .. } | LayoutError::Index { .. } => Self::unavailable(message),
        }
    }
}

impl tonic::server::NamedService for ContentService {
    const NAME: &'static str = "containerd.services.content.v1.Content";
}

type HttpRequest = http::Request<tonic::body::Body>;
type HttpResponse = http::Response<tonic::body::Body>;

impl tower::Service<HttpRequest> for ContentService {
    type Response = HttpResponse;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<'static, Result<HttpResponse, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: HttpRequest) -> Self::Future {
        let this = self.clone();
        async move {
            let path = request.uri().path().to_owned();
            Ok(match path.strip_prefix(PREFIX).unwrap_or_default() {
                "Info" => unary(request, move |r| this.info(r)).await,
                "Update" => unary(request, move |r| this.update(r)).await,
                "Status" => unary(request, move |r| this.status(r)).await,
                "Abort" => {
                    unary(request, |_: Request<proto::StatusRequest>| async {
                        Ok(Response::new(proto::Empty {}))
                    })
                    .await
                }
                "Read" => server_streaming(request, move |r| this.read(r)).await,
                "Write" => {
                    let mut grpc = tonic::server::Grpc::new(ProstCodec::default())
                        .max_decoding_message_size(MAX_MESSAGE);
                    let write = tower::service_fn(move |r| this.clone().write(r));
                    grpc.streaming(write, request).await
                }
                _ => Status::unimplemented(path).into_http(),
            })
        }
        .boxed()
    }
}

async fn unary<A, B, F>(
    request: HttpRequest,
    handler: impl FnOnce(Request<A>) -> F + Clone + Send + 'static,
) -> HttpResponse
where
    A: Message + Default + Send + 'static,
    B: Message + Default + Send + 'static,
    F: Future<Output = Result<Response<B>, Status>> + Send + 'static,
{
    let mut grpc = tonic::server::Grpc::new(ProstCodec::<B, A>::default());
    grpc.unary(
        tower::service_fn(move |request| handler.clone()(request)),
        request,
    )
    .await
}

async fn server_streaming<A, B, F, S>(
    request: HttpRequest,
    handler: impl FnOnce(Request<A>) -> F + Clone + Send + 'static,
) -> HttpResponse
where
    A: Message + Default + Send + 'static,
    B: Message + Default + Send + 'static,
    S: Stream<Item = Result<B, Status>> + Send + 'static,
    F: Future<Output = Result<Response<S>, Status>> + Send + 'static,
{
    let boxed = move |request| {
        let handled = handler.clone()(request);
        async move { handled.await.map(|response| response.map(StreamExt::boxed)) }
    };
    let mut grpc = tonic::server::Grpc::new(ProstCodec::<B, A>::default());
    grpc.server_streaming(tower::service_fn(boxed), request)
        .await
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn message(action: WriteAction, data: &[u8], expected: &str) -> proto::WriteRequest {
        proto::WriteRequest {
            action: action.into(),
            data: data.to_vec(),
            expected: expected.into(),
            ..Default::default()
        }
    }

    const HELLO: &str = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

    #[test]
    fn blob_is_written_once_and_verified() {
        let folder = TempDir::new().unwrap();
        let store = Layout::create(folder.path()).unwrap();
        let mut ingest = None;
        handle_write(&store, &mut ingest, message(WriteAction::Stat, b"", HELLO)).unwrap();
        handle_write(
            &store,
            &mut ingest,
            message(WriteAction::Write, b"hel", HELLO),
        )
        .unwrap();
        let reply = handle_write(
            &store,
            &mut ingest,
            message(WriteAction::Commit, b"lo", HELLO),
        )
        .unwrap();
        assert_eq!((reply.digest.as_str(), reply.offset), (HELLO, 5));
        assert_eq!(store.size(HELLO).unwrap(), 5);
        let again =
            handle_write(&store, &mut None, message(WriteAction::Stat, b"", HELLO)).unwrap_err();
        assert_eq!(again.code(), tonic::Code::AlreadyExists);
    }

    #[test]
    fn blob_with_a_wrong_digest_is_not_stored() {
        let folder = TempDir::new().unwrap();
        let store = Layout::create(folder.path()).unwrap();
        let wrong = handle_write(
            &store,
            &mut None,
            message(WriteAction::Commit, b"other", HELLO),
        )
        .unwrap_err();
        assert_eq!(wrong.code(), tonic::Code::FailedPrecondition);
        assert!(matches!(
            store.size(HELLO),
            Err(LayoutError::NotFound { .. })
        ));
        for digest in ["sha256:../../x", "md5:aa", "", "sha256:ABC"] {
            let refused = store.size(digest);
            assert!(
                matches!(refused, Err(LayoutError::Digest { .. })),
                "{digest}"
            );
        }
    }
}
