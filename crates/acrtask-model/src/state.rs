//! The states of a run and of a step. A final state holds the reason that a person reads.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::StepId;

/// Where a step stands. Each final state holds its own facts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum StepState {
    /// Waits for the steps before it.
    Pending,
    /// Runs now.
    Running,
    /// Finished well.
    Succeeded,
    /// Finished badly.
    Failed {
        /// What went wrong, in one line.
        reason: String,
        /// The exit code, where a process gave one.
        exit_code: Option<i64>,
        /// True where `ignoreErrors` let the run go on.
        ignored: bool,
    },
    /// Never started.
    Skipped {
        /// Why not.
        because: SkipReason,
    },
    /// Was running and was stopped.
    Canceled {
        /// Who or what stopped it.
        because: SkipReason,
    },
    /// Ran past its `timeout`.
    TimedOut {
        /// The limit, in seconds.
        after_secs: u64,
    },
}

impl StepState {
    /// True for a state that never changes again.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Pending | Self::Running)
    }

    /// True where the steps behind this one may start.
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

/// Why a step was not started, or was stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum SkipReason {
    /// Another step failed, which ends the run.
    StepFailed {
        /// The step that failed first.
        step: StepId,
    },
    /// A person or the control plane stopped the run.
    Interrupted,
    /// The run went past its own timeout.
    RunTimedOut,
    /// A detached step is stopped when all others have finished.
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

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Waits for a runner.
    Queued,
    /// Handed to a runner that has not begun yet.
    Leased,
    /// Steps are running.
    Running,
    /// Every step finished well, or its failure was ignored.
    Succeeded,
    /// A step failed.
    Failed,
    /// Stopped by a person or the control plane.
    Canceled,
    /// Went past its timeout.
    TimedOut,
    /// The engine or a registry could not be reached, or failed for reasons of its own.
    Error,
}

impl RunState {
    /// Every state, in the order of a run's life.
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

    /// True for a state that never changes again.
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Queued | Self::Leased | Self::Running)
    }

    /// As JSON, the database and the API have it.
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

    /// The other way of [`Self::as_str`].
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

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Its final state.
    pub state: RunState,
    /// Why, in one line; nothing for a run that succeeded.
    pub reason: Option<String>,
}
