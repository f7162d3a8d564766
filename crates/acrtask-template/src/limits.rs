//! The bounds of a rendering, and the meter that enforces them.
//!
//! Work is counted and never timed. The same template over the same data stops at the same place on
//! every machine. The defaults accept every known file, and stop a bomb within 50 ms and 64 MiB in
//! a release build.

use crate::error::Fault;

/// The bounds of one rendering.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Maximum size of the rendering, and of each text made on the way, in bytes.
    pub output_bytes: usize,
    /// Maximum units of work. Evaluating a part of an action costs one. Functions cost in
    /// proportion to the bytes they read.
    pub steps: u64,
    /// Maximum size of all values made on the way, in bytes. Includes values that are unused by
    /// then.
    pub memory_bytes: usize,
    /// Maximum nesting of actions, parentheses and templates while rendering.
    pub depth: usize,
    /// Result of `now`, and the date that date functions use for a missing one. `None`: these
    /// functions are refused, because this crate never reads the clock.
    pub now: Option<jiff::Timestamp>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            output_bytes: 2 << 20,
            steps: 300_000,
            memory_bytes: 16 << 20,
            depth: 200,
            now: None,
        }
    }
}

/// Bytes that a function may read for one unit of work.
const BYTES_PER_STEP: u64 = 16;

/// The remaining budget of a rendering.
#[derive(Debug)]
pub(crate) struct Meter {
    steps: u64,
    memory_bytes: usize,
    text_bytes: usize,
}

impl Meter {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            steps: limits.steps,
            memory_bytes: limits.memory_bytes,
            text_bytes: limits.output_bytes,
        }
    }

    /// Charges `count` units of work.
    pub(crate) fn charge_steps(&mut self, count: u64) -> Result<(), Fault> {
        match self.steps.checked_sub(count) {
            Some(left) => {
                self.steps = left;
                Ok(())
            }
            None => {
                self.steps = 0;
                Err(Fault::limit("the template takes too many steps to render")
                    .with_help("a loop or a recursive template does not end, or works on far too much data"))
            }
        }
    }

    /// Charges the work of reading `bytes` bytes.
    pub(crate) fn charge_read(&mut self, bytes: usize) -> Result<(), Fault> {
        self.charge_steps(u64::try_from(bytes).unwrap_or(u64::MAX) / BYTES_PER_STEP)
    }

    /// Charges `bytes` bytes of memory. Call it before the allocation.
    pub(crate) fn charge_memory(&mut self, bytes: usize) -> Result<(), Fault> {
        match self.memory_bytes.checked_sub(bytes) {
            Some(left) => {
                self.memory_bytes = left;
                self.charge_read(bytes)
            }
            None => {
                self.memory_bytes = 0;
                Err(
                    Fault::limit("the template makes more data than can be allowed")
                        .with_help("a text or a list grows without bound"),
                )
            }
        }
    }

    /// Checks that a text of `bytes` bytes is allowed, and charges its memory. Call it before the
    /// allocation.
    pub(crate) fn charge_text(&mut self, bytes: usize) -> Result<(), Fault> {
        if bytes > self.text_bytes {
            return Err(Fault::limit(format!(
                "a text would be longer than {} bytes",
                self.text_bytes
            )));
        }
        self.charge_memory(bytes)
    }

    /// Checks that a text of `length` bytes may grow by `more` bytes, and charges their memory.
    pub(crate) fn charge_growth(&mut self, length: usize, more: usize) -> Result<(), Fault> {
        if more > self.text_bytes.saturating_sub(length) {
            return Err(Fault::limit(format!(
                "a text would be longer than {} bytes",
                self.text_bytes
            )));
        }
        self.charge_memory(more)
    }
}
