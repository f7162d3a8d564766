//! The states of a run and of a step. A final state contains a reason for the user.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::StepId;

/// The state of a step. Each final state contains its own data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum StepState {
    /// Waiting for the steps before it.
    Pending,
    /// Running.
    Running,
    /// Ended successfully.
    Succeeded,
    /// Ended with a failure.
    Failed {
        /// The reason, in one line.
        reason: String,
        /// The exit code of the process, if it had one.
        exit_code: Option<i64>,
        /// Set if the run continued because of `ignoreErrors`.
        ignored: bool,
    },
    /// Never started.
    Skipped {
        /// The reason for skipping the step.
        cause: SkipReason,
    },
    /// Stopped while it was running.
    Canceled {
        /// The reason for stopping the step.
        cause: SkipReason,
    },
    /// Exceeded its `timeout`.
    TimedOut {
        /// The timeout, in seconds.
        after_secs: u64,
    },
}

impl StepState {
    /// Returns `true` for a state that never changes again.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Pending | Self::Running)
    }

    /// Returns `true` if the successors of the step may start.
    pub fn lets_others_start(&self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed { ignored: true, .. })
    }
}

impl fmt::Display for StepState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pending => f.write_str("pending"),
            Self::Running => f.write_str("running"),
            Self::Succeeded => f.write_str("succeeded"),
            Self::Failed { ignored: true, .. } => f.write_str("failed (ignored)"),
            Self::Failed { .. } => f.write_str("failed"),
            Self::Skipped { .. } => f.write_str("skipped"),
            Self::Canceled { .. } => f.write_str("canceled"),
            Self::TimedOut { .. } => f.write_str("timed out"),
        }
    }
}

/// Reason for skipping or stopping a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum SkipReason {
    /// Another step failed, which ends the run.
    StepFailed {
        /// The step that failed first.
        step: StepId,
    },
    /// A user or the control plane stopped the run.
    Interrupted,
    /// The run exceeded its own timeout.
    RunTimedOut,
    /// All other steps have finished, which stops a detached step.
    RunEnded,
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StepFailed { step } => write!(f, "step {step} failed"),
            Self::Interrupted => f.write_str("the run was interrupted"),
            Self::RunTimedOut => f.write_str("the run timed out"),
            Self::RunEnded => f.write_str("the run ended"),
        }
    }
}

/// The state of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Waiting for a runner.
    Queued,
    /// Leased to a runner that has not begun yet.
    Leased,
    /// Steps are running.
    Running,
    /// Every step succeeded or its failure was ignored.
    Succeeded,
    /// A step failed.
    Failed,
    /// Stopped by a user or the control plane.
    Canceled,
    /// Exceeded its timeout.
    TimedOut,
    /// The engine or a registry was unreachable or failed for its own reasons.
    Error,
}

impl RunState {
    /// All states, in the order in which a run passes through them.
    pub const ALL: [Self; 8] = [
        Self::Queued,
        Self::Leased,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::Canceled,
        Self::TimedOut,
        Self::Error,
    ];

    /// Returns `true` for a state that never changes again.
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Queued | Self::Leased | Self::Running)
    }

    /// Returns the name in JSON, the database and the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Leased => "leased",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
            Self::TimedOut => "timed_out",
            Self::Error => "error",
        }
    }

    /// Parses the output of [`Self::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

impl fmt::Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Queued => "queued",
            Self::Leased => "leased",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
            Self::TimedOut => "timed out",
            Self::Error => "error",
        })
    }
}

/// The final state of a run, with its reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The final state.
    pub state: RunState,
    /// The reason, in one line. `None` for a successful run.
    pub reason: Option<String>,
}
