//! Exit codes. They are part of the interface: scripts depend on them.

use acrtask_model::RunState;

/// Outcome of the program.
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
    /// 124: the run exceeded its timeout; timeout(1) uses the same code.
    TimedOut,
    /// 130: interrupted; a shell uses the same code for SIGINT.
    Interrupted,
}

impl Exit {
    /// Returns the exit code.
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
            // Without a final event, the program lost its connection to the engine.
            RunState::Error | RunState::Running | RunState::Queued | RunState::Leased => {
                Self::Unreachable
            }
        }
    }
}
