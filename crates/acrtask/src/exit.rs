//! The exit codes. They are part of the interface: scripts read them.

use acrtask_model::RunState;

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// 0: the run succeeded.
    Succeeded,
    /// 1: a step failed.
    Failed,
    /// 2: the task file or the usage is wrong; nothing was started.
    Usage,
    /// 3: the engine, a registry or a context could not be reached.
    Unreachable,
    /// 124: past its timeout, as timeout(1) says it.
    TimedOut,
    /// 130: interrupted, as a shell says it of SIGINT.
    Interrupted,
}

impl Exit {
    /// The number.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Succeeded => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Unreachable => 3,
            Self::TimedOut => 124,
            Self::Interrupted => 130,
        }
    }
}

impl From<RunState> for Exit {
    fn from(state: RunState) -> Self {
        match state {
            RunState::Succeeded => Self::Succeeded,
            RunState::Failed => Self::Failed,
            RunState::Canceled => Self::Interrupted,
            RunState::TimedOut => Self::TimedOut,
            // A run that never told its end was cut off from its engine.
            RunState::Error | RunState::Running | RunState::Queued | RunState::Leased => {
                Self::Unreachable
            }
        }
    }
}
