//! Which run, and which attempt at it: what every message about a run carries.

use std::fmt;

use acrtask_model::RunId;
use acrtask_proto::runner::Attempt;

/// A run and which attempt at it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct AttemptId {
    pub(crate) run: RunId,
    pub(crate) attempt: u32,
}

impl AttemptId {
    /// As a message has it; nothing where that is no attempt of a run.
    pub(crate) fn read(attempt: Option<Attempt>) -> Option<Self> {
        let attempt = attempt?;
        let run = RunId::new(attempt.run).ok()?;
        Some(Self {
            run,
            attempt: attempt.attempt,
        })
    }

    /// For a message.
    pub(crate) fn proto(&self) -> Attempt {
        Attempt {
            run: self.run.to_string(),
            attempt: self.attempt,
        }
    }

    /// For names of files.
    pub(crate) fn file_name(&self) -> String {
        format!("{}.{}", self.run, self.attempt)
    }
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (attempt {})", self.run, self.attempt)
    }
}
