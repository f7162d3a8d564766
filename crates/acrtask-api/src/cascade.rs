//! Cascades: rebuilds after digest changes, and the settings of all cascades.

use std::collections::{BTreeMap, BTreeSet};

use acrtask_model::{Digest, RunId};
use jiff::{Timestamp, civil::Time};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

use crate::forms::{ContentDigest, TimeOfDay};

/// Cascade.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CascadeSummary {
    /// Number of the cascade.
    pub id: u64,
    /// Phase of the cascade.
    pub phase: CascadePhase,
    /// `true` if a user paused the cascade. A paused cascade starts nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// `true` if a user approved the cascade.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub approved: bool,
    /// `true` if the cascade cannot continue without approval.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub awaiting_approval: bool,
    /// Time of the first change.
    #[schema(value_type = String)]
    pub created_at: Timestamp,
    /// Time at which the cascade stops collecting changes. Present only while it is settling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub settles_at: Option<Timestamp>,
    /// Time at which the cascade finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub finished_at: Option<Timestamp>,
    /// Number of the previous cascade, if this one is its follow-up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follows: Option<u64>,
    /// Changed bases and the digests that the cascade builds on.
    #[schema(value_type = Object)]
    pub changes: BTreeMap<String, Digest>,
    /// Number of nodes in each state.
    pub counts: CascadeCounts,
    /// `true` if the cascade stages its images: it pushes them by digest and sets the tags at
    /// promotion.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stages_images: bool,
    /// State of the promotion.
    pub promotion: CascadePromotion,
    /// Reason why the promotion is incomplete, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promotion_note: Option<String>,
}

/// Phase of a cascade.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum CascadePhase {
    /// The cascade collects changes.
    Settling,
    /// The cascade starts runs.
    Active,
    /// A user canceled the cascade, and its runs are still ending.
    Canceling,
    /// All nodes have a final state.
    Finished,
}

impl CascadePhase {
    /// Returns the name in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Settling => "settling",
            Self::Active => "active",
            Self::Canceling => "canceling",
            Self::Finished => "finished",
        }
    }

    /// Parses the output of [`Self::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        [
            Self::Settling,
            Self::Active,
            Self::Canceling,
            Self::Finished,
        ]
        .into_iter()
        .find(|phase| phase.as_str() == text)
    }
}

/// Number of nodes in each state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct CascadeCounts {
    /// Nodes that wait for other nodes.
    pub pending: u32,
    /// Nodes that wait for a free slot, for the end of quiet hours, or for approval.
    pub ready: u32,
    /// Nodes with an active run.
    pub running: u32,
    /// Nodes with a successful run.
    pub succeeded: u32,
    /// Nodes whose runs failed.
    pub failed: u32,
    /// Nodes that still depend on old digests.
    pub stale: u32,
    /// Nodes that needed no build.
    pub skipped: u32,
    /// Nodes that were canceled.
    pub canceled: u32,
}

impl CascadeCounts {
    /// Increments the count of `state`.
    pub fn add(&mut self, state: CascadeNodeState) {
        let count = match state {
            CascadeNodeState::Pending => &mut self.pending,
            CascadeNodeState::Ready => &mut self.ready,
            CascadeNodeState::Running => &mut self.running,
            CascadeNodeState::Succeeded => &mut self.succeeded,
            CascadeNodeState::Failed => &mut self.failed,
            CascadeNodeState::Stale => &mut self.stale,
            CascadeNodeState::Skipped => &mut self.skipped,
            CascadeNodeState::Canceled => &mut self.canceled,
        };
        *count += 1;
    }

    /// Returns the number of nodes in `state`.
    pub fn of(&self, state: CascadeNodeState) -> u32 {
        match state {
            CascadeNodeState::Pending => self.pending,
            CascadeNodeState::Ready => self.ready,
            CascadeNodeState::Running => self.running,
            CascadeNodeState::Succeeded => self.succeeded,
            CascadeNodeState::Failed => self.failed,
            CascadeNodeState::Stale => self.stale,
            CascadeNodeState::Skipped => self.skipped,
            CascadeNodeState::Canceled => self.canceled,
        }
    }

    /// Returns the number of all nodes.
    pub fn total(&self) -> u32 {
        CascadeNodeState::ALL
            .into_iter()
            .map(|state| self.of(state))
            .sum()
    }
}

/// State of the promotion of a cascade.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum CascadePromotion {
    /// The cascade stages no images: each push sets its tag immediately.
    #[default]
    None,
    /// The images are staged, and the tags are unchanged.
    Staged,
    /// All tags are set to the new images.
    Promoted,
    /// The previous tags are restored.
    RolledBack,
    /// The staged images are discarded, and the tags are unchanged.
    Discarded,
}

/// Cascade with its nodes and images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CascadeDetail {
    /// Summary, as in lists.
    #[serde(flatten)]
    pub summary: CascadeSummary,
    /// Nodes, by task name.
    pub nodes: Vec<CascadeNode>,
    /// Images that the cascade pushed, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<CascadeImage>,
}

/// Node: a task in a cascade.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CascadeNode {
    /// Name of the task.
    pub task: String,
    /// State of the node.
    pub state: CascadeNodeState,
    /// Reason for the state, in one sentence. Always present for a node that waits, is stale,
    /// failed or needed no build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Names of the tasks that this node waits for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<String>,
    /// Id of the last run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub run: Option<RunId>,
    /// Number of starts.
    pub attempts: u32,
    /// Images that the node pushed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<PushedImage>,
    /// Digests that the build must use for its bases, as far as they are decided.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = Object)]
    pub pins: BTreeMap<String, Digest>,
    /// Start of the last run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub started_at: Option<Timestamp>,
    /// End of the last run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub ended_at: Option<Timestamp>,
    /// Estimated duration of a run in milliseconds, from past runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimate_ms: Option<u64>,
}

/// State of a node.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "camelCase")]
pub enum CascadeNodeState {
    /// The node waits for other nodes.
    Pending,
    /// The node waits for a free slot, for the end of quiet hours, or for approval.
    Ready,
    /// The run of the node is active.
    Running,
    /// The run succeeded.
    Succeeded,
    /// The run failed.
    Failed,
    /// The task still depends on old digests.
    Stale,
    /// The task needed no build.
    Skipped,
    /// A user canceled the node.
    Canceled,
}

impl CascadeNodeState {
    /// All states, in the order of a node's life cycle.
    pub const ALL: [Self; 8] = [
        Self::Pending,
        Self::Ready,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::Stale,
        Self::Skipped,
        Self::Canceled,
    ];

    /// Returns the name in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Ready => "ready",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Stale => "stale",
            Self::Skipped => "skipped",
            Self::Canceled => "canceled",
        }
    }

    /// Parses the output of [`Self::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }

    /// Returns `true` if the state can still change.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Pending | Self::Ready | Self::Running)
    }
}

/// Pushed image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PushedImage {
    /// Registry, repository and tag.
    pub name: String,
    /// Digest of the image.
    #[schema(value_type = String)]
    pub digest: Digest,
}

/// Image that a cascade pushed, with the previous digest of its tag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CascadeImage {
    /// Registry, repository and tag.
    pub name: String,
    /// Digest of the tag before the push. Absent if the tag did not exist or its digest is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub before: Option<Digest>,
    /// Digest that the cascade pushed.
    #[schema(value_type = String)]
    pub after: Digest,
    /// State of the tag.
    pub state: CascadeImageState,
    /// Reason why the tag was not set or not restored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// State of the tag of a cascade's image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum CascadeImageState {
    /// The image is staged, and the tag is unchanged.
    Staged,
    /// The tag points to the new image.
    Promoted,
    /// The tag points to the previous image again.
    RolledBack,
    /// The image is discarded, and the tag is unchanged.
    Discarded,
}

impl CascadeImageState {
    /// Returns the name in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Staged => "staged",
            Self::Promoted => "promoted",
            Self::RolledBack => "rolledBack",
            Self::Discarded => "discarded",
        }
    }

    /// Parses the output of [`Self::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        [
            Self::Staged,
            Self::Promoted,
            Self::RolledBack,
            Self::Discarded,
        ]
        .into_iter()
        .find(|state| state.as_str() == text)
    }
}

/// Place of a run in a cascade, and the digest changes that made the run necessary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CascadeOfRun {
    /// Number of the cascade.
    pub id: u64,
    /// Number of the start of this task in the cascade, from 1.
    pub attempt: u32,
    /// Changes of bases that the task observes. Empty for runs of an older server.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<DigestChange>,
}

/// Digest change: a base tag that now resolves to another digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DigestChange {
    /// Registry, repository and tag.
    pub reference: String,
    /// Digest of the previous build.
    #[schema(value_type = String)]
    pub from: Digest,
    /// Digest that the run is pinned to.
    #[schema(value_type = String)]
    pub to: Digest,
}

/// Rebuild of a stale image by cascades.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Rebuild {
    /// Number of the last cascade with the task of the image. Absent if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cascade: Option<u64>,
    /// State of the node in that cascade.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<CascadeNodeState>,
    /// Id of the last run in that cascade.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub run: Option<RunId>,
    /// Reason why the image is not rebuilt, or not yet, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Request to plan a cascade without starting it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PlanRequest {
    /// Changed base: registry, repository and tag. If absent, the plan contains everything that is
    /// stale now.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1)]
    pub reference: Option<String>,
    /// New digest of the base. If absent, the current digest of the tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<ContentDigest>)]
    pub digest: Option<Digest>,
    /// Include everything that is stale, not only dependents of this base.
    pub all: bool,
}

/// Settings of cascades. Absent keys have their default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CascadeSettings {
    /// Seconds to collect changes after the first one. They form one cascade.
    #[schema(maximum = 86_400)]
    pub settle_secs: u32,
    /// Maximum number of concurrent runs of one cascade.
    #[schema(minimum = 1)]
    pub parallel: u32,
    /// Maximum number of concurrent runs of all cascades. If absent, unlimited.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub parallel_total: Option<u32>,
    /// Number of retries of a failed run.
    #[schema(maximum = 20)]
    pub retries: u32,
    /// Seconds to wait before each retry.
    #[schema(maximum = 86_400)]
    pub retry_delay_secs: u32,
    /// Seconds until a failed task is rebuilt automatically. Each further failure doubles the time,
    /// up to one day. 0 disables automatic rebuilds.
    #[schema(maximum = 86_400)]
    pub retry_failed_after_secs: u32,
    /// Priority of the runs. Manual runs have priority 0.
    #[schema(minimum = -10, maximum = 10)]
    pub priority: i32,
    /// Number of times that a follow-up may defer a task. After that, the task is built with the
    /// current digests.
    pub max_deferrals: u32,
    /// IANA time zone of the quiet hours.
    pub timezone: String,
    /// Hours in which cascades start nothing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub quiet_hours: Vec<QuietHours>,
    /// Rules for consent before a task is built. The rule with the longest matching prefix applies.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<CascadeRule>,
    /// Selection of cascades that stage their images. If absent, none does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub promotion: Option<PromotionSettings>,
}

impl Default for CascadeSettings {
    fn default() -> Self {
        Self {
            settle_secs: 30,
            parallel: 4,
            parallel_total: None,
            retries: 1,
            retry_delay_secs: 60,
            retry_failed_after_secs: 3600,
            priority: -5,
            max_deferrals: 3,
            timezone: "UTC".into(),
            quiet_hours: Vec::new(),
            rules: Vec::new(),
            promotion: None,
        }
    }
}

/// Daily interval in which cascades start nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct QuietHours {
    /// Start of the interval: `22:00`.
    #[serde(serialize_with = "short_time", deserialize_with = "time_of_day")]
    #[schema(value_type = TimeOfDay)]
    pub from: Time,
    /// End of the interval. If it is earlier than `from`, the interval includes midnight.
    #[serde(serialize_with = "short_time", deserialize_with = "time_of_day")]
    #[schema(value_type = TimeOfDay)]
    pub to: Time,
}

/// Parses `22:00` or `22:00:30`.
fn time_of_day<'de, D: Deserializer<'de>>(input: D) -> Result<Time, D::Error> {
    let text = String::deserialize(input)?;
    let has_form = |(at, byte): (usize, u8)| match at {
        2 | 5 => byte == b':',
        _ => byte.is_ascii_digit(),
    };
    let is_time = matches!(text.len(), 5 | 8)
        && text.bytes().enumerate().all(has_form)
        && !text.ends_with(":60");
    let time = text.parse().ok().filter(|_| is_time);
    time.ok_or_else(|| {
        serde::de::Error::custom(format!(
            "`{text}` is not a time of day: write 22:00 or 22:00:30"
        ))
    })
}

/// Writes the time as `HH:MM`, or with seconds if it has any.
fn short_time<S: Serializer>(time: &Time, out: S) -> Result<S::Ok, S::Error> {
    let text = time.to_string();
    let whole_minutes = time.second() == 0 && time.subsec_nanosecond() == 0;
    let short = if whole_minutes {
        text.get(..5).unwrap_or(&text)
    } else {
        &text
    };
    out.serialize_str(short)
}

/// Rule for consent before a task is built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CascadeRule {
    /// Name or prefix of task names. Empty for all tasks.
    pub tasks: String,
    /// Required consent.
    pub mode: CascadeMode,
}

/// Consent before a task is built, see [`CascadeRule`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum CascadeMode {
    /// No consent is required.
    #[default]
    Automatic,
    /// A user must approve each cascade once.
    Approval,
    /// Other tasks must succeed first. If none of them is in the cascade, no consent is required.
    Canary {
        /// Names of these tasks.
        #[schema(value_type = Vec<String>, min_items = 1)]
        first: BTreeSet<String>,
    },
}

/// Selection of cascades that stage their images, and the condition for promotion.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PromotionSettings {
    /// Prefix of task names. A cascade that contains such a task stages all its images. Empty for
    /// all cascades.
    pub tasks: String,
    /// Tasks, or steps as `TASK/STEP`, that must succeed before all tags are set together. If
    /// empty, all tasks of the cascade.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tests: Vec<String>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn settings_omit_defaults_and_accept_short_times() {
        let text = json!({
            "settleSecs": 10, "timezone": "Europe/Berlin",
            "quietHours": [{"from": "22:00", "to": "06:30"}],
            "rules": [
                {"tasks": "app/", "mode": "approval"},
                {"tasks": "", "mode": {"canary": {"first": ["app/a"]}}},
            ],
            "promotion": {"tasks": "app/", "tests": ["app/a/test"]},
        });
        let settings: CascadeSettings =
            serde_json::from_value(text.clone()).expect("valid settings");
        assert_eq!(settings.parallel, 4);
        let shown = serde_json::to_value(&settings).expect("serializable settings");
        for (key, value) in text.as_object().expect("an object") {
            assert_eq!(shown[key], *value, "{key}");
        }
        assert_eq!(shown.get("parallelTotal"), None);
        let defaults: CascadeSettings =
            serde_json::from_value(json!({})).expect("all keys are optional");
        assert_eq!(defaults, CascadeSettings::default());
        let unknown = json!({"settle": 3});
        assert!(serde_json::from_value::<CascadeSettings>(unknown).is_err());
    }

    #[test]
    fn states_parse_their_json_names() {
        for state in CascadeNodeState::ALL {
            assert_eq!(CascadeNodeState::parse(state.as_str()), Some(state));
            assert_eq!(json!(state), json!(state.as_str()));
        }
        let mut counts = CascadeCounts::default();
        for state in CascadeNodeState::ALL {
            counts.add(state);
            assert_eq!(counts.of(state), 1);
        }
        assert_eq!(counts.total(), 8);
    }
}
