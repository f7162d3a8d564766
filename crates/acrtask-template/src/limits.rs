//! The bounds of a rendering, and the meter that enforces them.
//!
//! Everything is counted, nothing is timed: the same template over the same data stops at the same place on every
//! machine. The defaults let every real file through and stop a bomb within 50 ms and 64 MiB in a release build.

use crate::error::Fault;

/// What one rendering may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes that the rendering may have, and that any one text made on the way may have.
    pub output_bytes: usize,
    /// Units of work. Evaluating one part of an action costs one; functions cost in proportion to what they read.
    pub steps: u64,
    /// Bytes that all values made on the way may have together, whether or not they are still in use.
    pub memory_bytes: usize,
    /// How deep actions, parentheses and templates may nest while rendering.
    pub depth: usize,
    /// What `now` is, and what the date functions take for a missing date. With `None` these functions are refused:
    /// the clock is never read here.
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

/// Bytes that a function reads for one step.
const BYTES_PER_STEP: u64 = 16;

/// What is left of the limits.
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

    /// Takes `count` steps.
    pub(crate) fn step(&mut self, count: u64) -> Result<(), Fault> {
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

    /// Takes the steps for reading `bytes` bytes.
    pub(crate) fn read(&mut self, bytes: usize) -> Result<(), Fault> {
        self.step(u64::try_from(bytes).unwrap_or(u64::MAX) / BYTES_PER_STEP)
    }

    /// Takes `bytes` bytes of memory. To be called before they are allocated.
    pub(crate) fn allocate(&mut self, bytes: usize) -> Result<(), Fault> {
        match self.memory_bytes.checked_sub(bytes) {
            Some(left) => {
                self.memory_bytes = left;
                self.read(bytes)
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

    /// Checks that a text of `bytes` bytes may exist, and takes its memory. To be called before it is made.
    pub(crate) fn text(&mut self, bytes: usize) -> Result<(), Fault> {
        if bytes > self.text_bytes {
            return Err(Fault::limit(format!(
                "a text would be longer than {} bytes",
                self.text_bytes
            )));
        }
        self.allocate(bytes)
    }

    /// Checks that a text of `length` bytes may grow by `more`, and takes the memory for these.
    pub(crate) fn grow(&mut self, length: usize, more: usize) -> Result<(), Fault> {
        if more > self.text_bytes.saturating_sub(length) {
            return Err(Fault::limit(format!(
                "a text would be longer than {} bytes",
                self.text_bytes
            )));
        }
        self.allocate(more)
    }
}
