//! Timers, their firings, and trigger URLs.

use std::collections::BTreeMap;

use acrtask_model::RunId;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{run::SecretText, task::Timer, webhook::DecisionAction};

/// Timer of a task with its last and next firing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskTimer {
    /// Name of the timer.
    pub name: String,
    /// Definition of the timer.
    #[serde(flatten)]
    pub timer: Timer,
    /// Next scheduled firing. Absent if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub next: Option<Timestamp>,
    /// Start of the run of the next firing, if jitter delays it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub next_start: Option<Timestamp>,
    /// Last firing that a server handled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<LastFiring>,
    /// Reason why an enabled timer never fires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Note on the interpretation of the schedule. Absent if all cron dialects agree on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remark: Option<String>,
}

/// Firing that a server handled, and the decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastFiring {
    /// Scheduled time.
    #[schema(value_type = String)]
    pub scheduled_at: Timestamp,
    /// Time at which a server handled the firing.
    #[schema(value_type = String)]
    pub handled_at: Timestamp,
    /// Number of firings that this one covers: itself and the missed ones before it. 1000 means
    /// 1000 or more.
    pub firing_count: u64,
    /// Action that the firing led to.
    pub action: DecisionAction,
    /// Id of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub run: Option<RunId>,
    /// State of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Reason if no run started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Timer firing that started a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Firing {
    /// Name of the timer.
    pub timer: String,
    /// Scheduled time.
    #[schema(value_type = String)]
    pub scheduled_at: Timestamp,
    /// Number of firings that this one covers: itself and the missed ones before it. 1000 means
    /// 1000 or more.
    pub firing_count: u64,
}

/// URL that starts runs of a task, without its secret part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TriggerUrl {
    /// Id, the first part of the URL.
    pub id: String,
    /// Time of creation.
    #[schema(value_type = String)]
    pub created_at: Timestamp,
    /// Name of the token that created the URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// Time of the last use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub last_used_at: Option<Timestamp>,
    /// Number of calls that the rate limit rejected with status 429. They started no runs.
    #[serde(default)]
    pub rejected_calls: u64,
    /// Time of the last rejected call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub last_rejected_at: Option<Timestamp>,
    /// Values that a call may set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_set: Vec<String>,
}

/// New trigger URL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewTriggerUrl {
    /// Path of the URL, relative to the URL of the server. Only this response contains it. Everyone
    /// who has the URL can start runs of the task with a `POST` request.
    pub path: SecretText,
    /// Trigger URL.
    #[serde(flatten)]
    pub url: TriggerUrl,
}

/// Request to a trigger URL.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TriggerUrlCall {
    /// Values that override those of the task. The task must allow calls to set them.
    pub set: BTreeMap<String, String>,
}

/// Response to a call of a trigger URL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TriggeredRun {
    /// Id of the run that the call started.
    #[schema(value_type = String)]
    pub run: RunId,
}
