//! The clock that leases and waits are measured by.
//!
//! It goes on while the process is stopped and while the machine sleeps, so that a runner that wakes up knows how late
//! it is. It is never set, and it is not the time of day.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Time since the machine started.
pub(crate) fn now() -> Duration {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME)
        .or_else(|_| clock_gettime(ClockId::CLOCK_MONOTONIC))
        .map(Duration::from);
    // Linux has had both for longer than it has had containers.
    time.unwrap_or_default()
}
