//! What surrounds an attempt of a step: each behaviour in its own file, composed by [`crate::steps`].

pub(crate) mod reach;
pub(crate) mod retry;
pub(crate) mod timeout;

/// How one attempt of a step ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// Well.
    Succeeded,
    /// Badly.
    Failed {
        /// In one line, without secrets.
        reason: String,
        /// Where a process gave one.
        exit_code: Option<i64>,
    },
    /// Past the limit of an attempt.
    TimedOut {
        /// The limit, in seconds.
        after_secs: u64,
    },
    /// Because it was asked to.
    Stopped,
}

impl Attempt {
    pub(crate) fn failed(reason: impl Into<String>) -> Self {
        Self::Failed {
            reason: reason.into(),
            exit_code: None,
        }
    }

    /// Why it is worth telling; nothing for success.
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
