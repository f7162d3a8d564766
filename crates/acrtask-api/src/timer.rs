//! What timers and URLs that start runs of a task show of themselves.

use std::collections::BTreeMap;

use acrtask_model::RunId;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{run::SecretText, task::Timer, webhook::OutcomeKind};

/// A timer of a task, and what it did and will do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskTimer {
    /// Its name.
    pub name: String,
    /// What it is.
    #[serde(flatten)]
    pub timer: Timer,
    /// The next tick, by its schedule; nothing: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub next: Option<Timestamp>,
    /// When the run of the next tick starts, where that is later by its part of the jitter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub next_start: Option<Timestamp>,
    /// The newest tick that was handled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<LastTick>,
    /// Why it never ticks, though it is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// A remark on how the schedule is read. `None` if it reads the same in every dialect of cron.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remark: Option<String>,
}

/// A tick that was handled, and what it led to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastTick {
    /// Its time by the schedule.
    #[schema(value_type = String)]
    pub scheduled_at: Timestamp,
    /// When it was handled.
    #[schema(value_type = String)]
    pub handled_at: Timestamp,
    /// How many ticks it stands for: itself, and those before it that were missed. 1000 stands for that many or more.
    pub stands_for: u64,
    /// What it led to.
    pub what: OutcomeKind,
    /// The run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub run: Option<RunId>,
    /// Where that run stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Why it led to none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The tick of a timer that started a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Tick {
    /// The timer's name.
    pub timer: String,
    /// Its time by the schedule.
    #[schema(value_type = String)]
    pub scheduled_at: Timestamp,
    /// How many ticks it stands for: itself, and those before it that were missed. 1000 stands for that many or more.
    pub stands_for: u64,
}

/// The URL that starts runs of a task, without what opens it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TriggerUrl {
    /// Its id, which the URL begins with.
    pub id: String,
    /// When it was made.
    #[schema(value_type = String)]
    pub created_at: Timestamp,
    /// Who made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// When it was last used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub last_used_at: Option<Timestamp>,
    /// Calls that were answered with `429` because too many came; none of them started anything.
    #[serde(default)]
    pub turned_away: u64,
    /// When that happened last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub turned_away_at: Option<Timestamp>,
    /// Values that a call may set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_set: Vec<String>,
}

/// A URL that was made just now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewTriggerUrl {
    /// The path of the URL, below the server's address; never shown again. Whoever has it can start runs of the task: a
    /// `POST` does.
    pub path: SecretText,
    /// What it is.
    #[serde(flatten)]
    pub url: TriggerUrl,
}

/// What a call of such a URL may say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CallTask {
    /// Values that win over those of the task; only those that the task lets calls set.
    pub set: BTreeMap<String, String>,
}

/// What a call is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Called {
    /// The run.
    #[schema(value_type = String)]
    pub run: RunId,
}
