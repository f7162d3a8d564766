//! Clock for leases and timeouts.
//!
//! The clock continues while the process is stopped and while the machine sleeps, so that a runner
//! that wakes up knows how late it is. It is never adjusted, and it is not the time of day.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Returns the time since the machine started.
pub(crate) fn now() -> Duration {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME)
        .or_else(|_| clock_gettime(ClockId::CLOCK_MONOTONIC))
        .map(Duration::from);
    // Linux has had both clocks for longer than containers.
    time.unwrap_or_default()
}
