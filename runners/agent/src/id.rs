//! Identity of an attempt, which every message about a run contains.

use std::fmt;

use acrtask_model::RunId;
use acrtask_proto::runner::Attempt;

/// A run and the number of its attempt.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct AttemptId {
    pub(crate) run: RunId,
    pub(crate) attempt: u32,
}

impl AttemptId {
    /// Parses the form of a message. `None` if it does not denote an attempt of a run.
    pub(crate) fn parse(attempt: Option<Attempt>) -> Option<Self> {
        let attempt = attempt?;
        let run = RunId::new(attempt.run).ok()?;
        Some(Self {
            run,
            attempt: attempt.attempt,
        })
    }

    /// Returns the form of a message.
    pub(crate) fn to_proto(&self) -> Attempt {
        Attempt {
            run: self.run.to_string(),
            attempt: self.attempt,
        }
    }

    /// Returns the name of the attempt's files.
    pub(crate) fn file_name(&self) -> String {
        format!("{}.{}", self.run, self.attempt)
    }
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (attempt {})", self.run, self.attempt)
    }
}
