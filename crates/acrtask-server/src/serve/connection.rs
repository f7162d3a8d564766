//! State of one connection: its credential status and its progress.
//!
//! The driver of a connection calls [`ConnectionState::verdict`] every few seconds. Anonymous
//! connections are closed after seconds without progress, established ones after minutes.
//!
//! Left out: the pace of request bodies, which `request_guard` enforces.

use std::{
    collections::HashMap,
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use super::admission::Slot;

/// Longest times without progress on a connection.
#[derive(Debug, Clone, Copy)]
struct StallLimits {
    /// Time without an open request.
    idle: Duration,
    /// Time in which the peer reads none of the sent data.
    unread: Duration,
    /// Time of one request, from its head to the end of the response.
    request: Option<Duration>,
}

/// Limits of connections without a valid credential so far.
const ANONYMOUS: StallLimits = StallLimits {
    idle: Duration::from_secs(15),
    unread: Duration::from_secs(10),
    request: Some(Duration::from_secs(60)),
};
/// Limits of connections with a valid credential.
const ESTABLISHED: StallLimits = StallLimits {
    idle: Duration::from_secs(600),
    unread: Duration::from_secs(300),
    request: None,
};

/// Next action of the driver of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Keeps the connection open.
    Keep,
    /// Accepts no new request, and closes the connection when it is idle.
    End,
    /// Closes the connection at once.
    Close,
}

/// State of one connection, shared by its driver and its requests.
#[derive(Debug)]
pub(crate) struct ConnectionState {
    began: Instant,
    is_established: AtomicBool,
    permission: Mutex<Permission>,
    /// Permits for established connections.
    established: Arc<Semaphore>,
    /// Milliseconds since `began` at which a write was first blocked. 0 while no write is blocked.
    write_blocked: AtomicU64,
    open: Mutex<Open>,
}

/// Permission for an open connection, released on drop.
#[derive(Debug)]
enum Permission {
    Anonymous { _slot: Option<Slot> },
    Established { _permit: OwnedSemaphorePermit },
}

/// Requests with an unfinished response.
#[derive(Debug, Default)]
struct Open {
    next: u64,
    requests: HashMap<u64, Arc<Progress>>,
    idle_since: u64,
}

#[derive(Debug)]
struct Progress {
    began: u64,
    /// Milliseconds since `began` of the connection at which the unsent response part was produced.
    /// 0 while the server produces the next part.
    unread_since: AtomicU64,
}

impl ConnectionState {
    /// Creates the state of a new connection. `slot` is `None` for a trusted proxy.
    pub(super) fn new(slot: Option<Slot>, established: Arc<Semaphore>) -> Arc<Self> {
        Arc::new(Self {
            began: Instant::now(),
            is_established: AtomicBool::new(slot.is_none()),
            permission: Mutex::new(Permission::Anonymous { _slot: slot }),
            established,
            write_blocked: AtomicU64::new(0),
            open: Mutex::default(),
        })
    }

    /// Marks the connection as established. It stays anonymous if no permit for an established
    /// connection is left.
    pub(super) fn establish(&self) {
        if self.is_established.load(Ordering::Relaxed) {
            return;
        }
        let mut permission = self.permission.lock().expect("never poisoned");
        if let Permission::Anonymous { .. } = &*permission
            && let Ok(permit) = self.established.clone().try_acquire_owned()
        {
            *permission = Permission::Established { _permit: permit };
            self.is_established.store(true, Ordering::Relaxed);
        }
    }

    /// Returns the milliseconds since the connection began, at least 1.
    fn elapsed_ms(&self) -> u64 {
        let passed = self.began.elapsed().as_millis();
        u64::try_from(passed).unwrap_or(u64::MAX).max(1)
    }

    pub(super) fn verdict(&self) -> Verdict {
        let now = self.elapsed_ms();
        let established = self.is_established.load(Ordering::Relaxed);
        let limits = if established { ESTABLISHED } else { ANONYMOUS };
        let exceeds = |since: u64, limit: Duration| {
            since > 0 && u128::from(now.saturating_sub(since)) > limit.as_millis()
        };
        if exceeds(self.write_blocked.load(Ordering::Relaxed), limits.unread) {
            return Verdict::Close;
        }
        let open = self.open.lock().expect("never poisoned");
        let stalled = open.requests.values().any(|request| {
            let unread = request.unread_since.load(Ordering::Relaxed);
            exceeds(unread, limits.unread)
                || limits
                    .request
                    .is_some_and(|limit| exceeds(request.began, limit))
        });
        if stalled {
            Verdict::Close
        } else if open.requests.is_empty() && exceeds(open.idle_since.max(1), limits.idle) {
            Verdict::End
        } else {
            Verdict::Keep
        }
    }

    /// Records the start of a request.
    pub(super) fn start_request(self: &Arc<Self>) -> OpenRequest {
        let began = self.elapsed_ms();
        let progress = Arc::new(Progress {
            began,
            unread_since: AtomicU64::new(0),
        });
        let mut open = self.open.lock().expect("never poisoned");
        let number = open.next;
        open.next += 1;
        open.requests.insert(number, progress.clone());
        drop(open);
        OpenRequest {
            connection: self.clone(),
            number,
            progress,
        }
    }
}

/// A request with an unfinished response. Dropping it ends the request.
#[derive(Debug)]
pub(super) struct OpenRequest {
    connection: Arc<ConnectionState>,
    number: u64,
    progress: Arc<Progress>,
}

impl OpenRequest {
    /// Wraps the body of the response to record its progress.
    pub(super) fn watch(self, body: Body) -> Body {
        Body::new(WatchedBody {
            inner: body,
            request: self,
        })
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        let now = self.connection.elapsed_ms();
        let mut open = self.connection.open.lock().expect("never poisoned");
        open.requests.remove(&self.number);
        open.idle_since = now;
    }
}

struct WatchedBody {
    inner: Body,
    request: OpenRequest,
}

impl HttpBody for WatchedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(context);
        // hyper polls the next part only after it has sent this one.
        let since = match &polled {
            Poll::Ready(Some(Ok(_))) => self.request.connection.elapsed_ms(),
            _ => 0,
        };
        let progress = &self.request.progress;
        progress.unread_since.store(since, Ordering::Relaxed);
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A stream that records when its peer stops reading.
#[derive(Debug)]
pub(super) struct WatchedStream<S> {
    inner: S,
    connection: Arc<ConnectionState>,
}

impl<S> WatchedStream<S> {
    pub(super) fn new(inner: S, connection: Arc<ConnectionState>) -> Self {
        Self { inner, connection }
    }

    fn record_progress<T>(&self, polled: Poll<T>) -> Poll<T> {
        let blocked = &self.connection.write_blocked;
        match &polled {
            Poll::Ready(_) => blocked.store(0, Ordering::Relaxed),
            Poll::Pending => {
                let now = self.connection.elapsed_ms();
                let _ = blocked.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
            }
        }
        polled
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WatchedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WatchedStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.record_progress(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write_vectored(context, parts);
        self.record_progress(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_flush(context);
        self.record_progress(polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_shutdown(context);
        self.record_progress(polled)
    }
}
