//! Readers with a limit.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, ReadBuf};

/// Maximum number of header bytes between two entries (long names and PAX records), and after the
/// last entry.
pub(super) const MAX_HEADERS: u64 = 1 << 20;

/// Counter that a reader updates and its owner reads.
pub(super) type Counter = Arc<AtomicU64>;

/// Exceeded limit of a reader, wrapped in an [`io::Error`].
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("more than {limit} {unit}")]
pub(super) struct LimitReached {
    pub(super) limit: u64,
    pub(super) unit: &'static str,
}

impl LimitReached {
    /// Finds the exceeded limit in the causes of `error`.
    pub(super) fn find(error: &io::Error) -> Option<Self> {
        let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(error) = next {
            if let Some(limit) = error.downcast_ref::<Self>() {
                return Some(*limit);
            }
            // `source` of an I/O error skips the error that it wraps.
            let inner = error
                .downcast_ref::<io::Error>()
                .and_then(io::Error::get_ref);
            next = match inner {
                Some(inner) => Some(inner),
                None => error.source(),
            };
        }
        None
    }
}

fn limit_reached(limit: u64, unit: &'static str) -> Poll<io::Result<()>> {
    Poll::Ready(Err(io::Error::other(LimitReached { limit, unit })))
}

/// Reads more bytes, and returns their number.
fn poll_counted(
    inner: &mut (impl AsyncRead + Unpin),
    cx: &mut Context<'_>,
    buf: &mut ReadBuf<'_>,
) -> Poll<io::Result<u64>> {
    let before = buf.filled().len();
    std::task::ready!(Pin::new(inner).poll_read(cx, buf))?;
    Poll::Ready(Ok((buf.filled().len() - before) as u64))
}

/// Reader that counts its bytes up to a limit.
pub(super) struct Metered<R> {
    pub(super) inner: R,
    pub(super) seen: Counter,
    pub(super) limit: u64,
}

impl<R: AsyncRead + Unpin> AsyncRead for Metered<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = std::task::ready!(poll_counted(&mut self.inner, cx, buf))?;
        let seen = self.seen.fetch_add(read, Ordering::Relaxed) + read;
        if seen > self.limit {
            return limit_reached(self.limit, "bytes to download");
        }
        Poll::Ready(Ok(()))
    }
}

/// Reader with a budget, and with a limit on the ratio of unpacked to packed bytes.
pub(super) struct Budgeted<R> {
    pub(super) inner: R,
    /// Remaining number of bytes. The owner refills it.
    pub(super) budget: Counter,
    pub(super) unpacked: u64,
    pub(super) packed: Counter,
    pub(super) ratio: u64,
}

impl<R: AsyncRead + Unpin> AsyncRead for Budgeted<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = std::task::ready!(poll_counted(&mut self.inner, cx, buf))?;
        let left = self.budget.load(Ordering::Relaxed);
        if read > left {
            return limit_reached(MAX_HEADERS, "bytes of headers between two entries");
        }
        self.budget.store(left - read, Ordering::Relaxed);
        self.unpacked += read;
        let packed = self.packed.load(Ordering::Relaxed).max(1);
        if self.unpacked > super::RATIO_FROM && self.unpacked / packed > self.ratio {
            return limit_reached(self.ratio, "unpacked bytes for each packed one");
        }
        Poll::Ready(Ok(()))
    }
}
