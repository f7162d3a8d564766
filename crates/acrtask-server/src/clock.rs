//! The time, so that tests can set it.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use jiff::Timestamp;

/// Tells the time.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    /// Milliseconds since 1970 that stand still until they are set; nothing: the machine's clock.
    fixed: Option<Arc<AtomicI64>>,
}

impl Clock {
    /// The machine's.
    pub fn real() -> Self {
        Self::default()
    }

    /// One that stands at `ms` until [`Self::set`].
    pub fn fixed(ms: i64) -> Self {
        Self {
            fixed: Some(Arc::new(AtomicI64::new(ms))),
        }
    }

    /// Sets a fixed clock, in milliseconds since 1970. The machine's is left alone.
    pub fn set(&self, ms: i64) {
        if let Some(fixed) = &self.fixed {
            fixed.store(ms, Ordering::SeqCst);
        }
    }

    /// Milliseconds since 1970 in UTC.
    pub fn now_ms(&self) -> i64 {
        match &self.fixed {
            Some(fixed) => fixed.load(Ordering::SeqCst),
            None => Timestamp::now().as_millisecond(),
        }
    }

    /// The same as a time stamp.
    pub fn now(&self) -> Timestamp {
        Timestamp::from_millisecond(self.now_ms()).unwrap_or_default()
    }
}
