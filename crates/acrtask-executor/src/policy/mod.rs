//! Policies around an attempt of a step: each one in its own file, composed by [`crate::steps`].

pub(crate) mod reach;
pub(crate) mod retry;
pub(crate) mod timeout;

/// The end of one attempt of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Attempt {
    Succeeded,
    Failed {
        /// The reason, in one line and without secrets.
        reason: String,
        /// The exit code of the process, if it had one.
        exit_code: Option<i64>,
    },
    /// The attempt exceeded its timeout.
    TimedOut {
        /// The timeout, in seconds.
        after_secs: u64,
    },
    /// The attempt was stopped on request.
    Stopped,
}

impl Attempt {
    pub(crate) fn failed(reason: impl Into<String>) -> Self {
        Self::Failed {
            reason: reason.into(),
            exit_code: None,
        }
    }

    /// Returns the reason of a failure. `None` for other ends.
    pub(crate) fn reason(&self) -> Option<String> {
        match self {
            Self::Succeeded | Self::Stopped => None,
            Self::Failed { reason, .. } => Some(reason.clone()),
            Self::TimedOut { after_secs } => {
                Some(format!("ran longer than its timeout of {after_secs} s"))
            }
        }
    }
}
