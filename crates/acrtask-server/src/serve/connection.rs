//! State of one connection: whether it has shown a valid credential, and since when it makes no progress.
//!
//! The driver of a connection asks [`ConnectionState::verdict`] every few seconds. Anonymous connections are
//! closed after seconds without progress, established ones after minutes. Left out: the pace of request
//! bodies, which `request_guard` enforces.

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

/// How long a connection may make no progress.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// Without a request under way.
    idle: Duration,
    /// While its peer reads nothing of what is sent.
    unread: Duration,
    /// For one request, from its head to the end of the response.
    request: Option<Duration>,
}

/// Limits of connections that have shown no valid credential.
const ANONYMOUS: Patience = Patience {
    idle: Duration::from_secs(15),
    unread: Duration::from_secs(10),
    request: Some(Duration::from_secs(60)),
};
/// Limits of connections that have.
const ESTABLISHED: Patience = Patience {
    idle: Duration::from_secs(600),
    unread: Duration::from_secs(300),
    request: None,
};

/// What the driver of a connection does with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Serves it on.
    Keep,
    /// Takes no new request, and closes it when it is idle.
    End,
    /// Closes it at once.
    Close,
}

/// One connection, shared by its driver and its requests.
#[derive(Debug)]
pub(crate) struct ConnectionState {
    began: Instant,
    is_established: AtomicBool,
    claim: Mutex<Claim>,
    /// Permits for established connections.
    established: Arc<Semaphore>,
    /// Milliseconds since `began` at which a write began to wait; 0 while none does.
    write_blocked: AtomicU64,
    open: Mutex<Open>,
}

/// What entitles a connection to be open. Held for its `Drop`.
#[derive(Debug)]
enum Claim {
    Anonymous { _slot: Option<Slot> },
    Established { _permit: OwnedSemaphorePermit },
}

/// Requests whose responses have not ended.
#[derive(Debug, Default)]
struct Open {
    next: u64,
    requests: HashMap<u64, Arc<Progress>>,
    idle_since: u64,
}

#[derive(Debug)]
struct Progress {
    began: u64,
    /// When a part of the response was given out that has not been sent; 0 while the response waits for us.
    unread_since: AtomicU64,
}

impl ConnectionState {
    /// Makes the state of a new connection. `slot`: `None` for a trusted proxy.
    pub(super) fn new(slot: Option<Slot>, established: Arc<Semaphore>) -> Arc<Self> {
        Arc::new(Self {
            began: Instant::now(),
            is_established: AtomicBool::new(slot.is_none()),
            claim: Mutex::new(Claim::Anonymous { _slot: slot }),
            established,
            write_blocked: AtomicU64::new(0),
            open: Mutex::default(),
        })
    }

    /// Makes the connection an established one. It stays anonymous if there are too many of these.
    pub(super) fn establish(&self) {
        if self.is_established.load(Ordering::Relaxed) {
            return;
        }
        let mut claim = self.claim.lock().expect("never poisoned");
        if let Claim::Anonymous { .. } = &*claim
            && let Ok(permit) = self.established.clone().try_acquire_owned()
        {
            *claim = Claim::Established { _permit: permit };
            self.is_established.store(true, Ordering::Relaxed);
        }
    }

    /// Milliseconds since the connection began, at least 1.
    fn now(&self) -> u64 {
        let passed = self.began.elapsed().as_millis();
        u64::try_from(passed).unwrap_or(u64::MAX).max(1)
    }

    pub(super) fn verdict(&self) -> Verdict {
        let now = self.now();
        let established = self.is_established.load(Ordering::Relaxed);
        let patience = if established { ESTABLISHED } else { ANONYMOUS };
        let exceeds = |since: u64, limit: Duration| {
            since > 0 && u128::from(now.saturating_sub(since)) > limit.as_millis()
        };
        if exceeds(self.write_blocked.load(Ordering::Relaxed), patience.unread) {
            return Verdict::Close;
        }
        let open = self.open.lock().expect("never poisoned");
        let stalled = open.requests.values().any(|request| {
            let unread = request.unread_since.load(Ordering::Relaxed);
            exceeds(unread, patience.unread)
                || patience
                    .request
                    .is_some_and(|limit| exceeds(request.began, limit))
        });
        if stalled {
            Verdict::Close
        } else if open.requests.is_empty() && exceeds(open.idle_since.max(1), patience.idle) {
            Verdict::End
        } else {
            Verdict::Keep
        }
    }

    /// Begins a request.
    pub(super) fn request(self: &Arc<Self>) -> OpenRequest {
        let began = self.now();
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

/// A request whose response has not ended; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct OpenRequest {
    connection: Arc<ConnectionState>,
    number: u64,
    progress: Arc<Progress>,
}

impl OpenRequest {
    /// Wraps the response's body, whose progress is watched from then on.
    pub(super) fn watch(self, body: Body) -> Body {
        Body::new(WatchedBody {
            inner: body,
            request: self,
        })
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        let now = self.connection.now();
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
        // The next part is only asked for when this one has been sent.
        let since = match &polled {
            Poll::Ready(Some(Ok(_))) => self.request.connection.now(),
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

/// A stream that notes since when its peer reads nothing.
#[derive(Debug)]
pub(super) struct WatchedStream<S> {
    inner: S,
    connection: Arc<ConnectionState>,
}

impl<S> WatchedStream<S> {
    pub(super) fn new(inner: S, connection: Arc<ConnectionState>) -> Self {
        Self { inner, connection }
    }

    fn note<T>(&self, polled: Poll<T>) -> Poll<T> {
        let blocked = &self.connection.write_blocked;
        match &polled {
            Poll::Ready(_) => blocked.store(0, Ordering::Relaxed),
            Poll::Pending => {
                let now = self.connection.now();
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
        self.note(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write_vectored(context, parts);
        self.note(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_flush(context);
        self.note(polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_shutdown(context);
        self.note(polled)
    }
}
