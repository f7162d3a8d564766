//! Clock of a server. Tests set its time.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use jiff::Timestamp;

/// Source of the current time.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    /// Fixed time in milliseconds since 1970. `None`: the machine's clock.
    fixed: Option<Arc<AtomicI64>>,
}

impl Clock {
    /// Returns the machine's clock.
    pub fn system() -> Self {
        Self::default()
    }

    /// Returns a clock that is fixed at `ms` milliseconds since 1970 until [`Self::set`].
    pub fn fixed(ms: i64) -> Self {
        Self {
            fixed: Some(Arc::new(AtomicI64::new(ms))),
        }
    }

    /// Sets a fixed clock, in milliseconds since 1970. Does nothing for the machine's clock.
    pub fn set(&self, ms: i64) {
        if let Some(fixed) = &self.fixed {
            fixed.store(ms, Ordering::SeqCst);
        }
    }

    /// Returns the milliseconds since 1970 in UTC.
    #[allow(clippy::disallowed_methods, reason = "the clock of the server")]
    pub fn now_ms(&self) -> i64 {
        match &self.fixed {
            Some(fixed) => fixed.load(Ordering::SeqCst),
            None => Timestamp::now().as_millisecond(),
        }
    }

    /// Returns the current time as a timestamp.
    pub fn now(&self) -> Timestamp {
        Timestamp::from_millisecond(self.now_ms()).unwrap_or_default()
    }
}
