//! Logs of runs, as they are stored, for those who read them while they grow.

use acrtask_model::RunId;

/// Wakes readers.
#[derive(Debug, Default)]
pub struct LogHub {}

impl LogHub {
    /// The log of `run` has grown, or its state has changed.
    pub fn wake(&self, run: &RunId) {
        let _ = run;
    }
}
