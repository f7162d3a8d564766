//! Cascades: what a new base image makes be built again, as requests ask for it and answers show it; and the settings of
//! all of them.

use std::collections::{BTreeMap, BTreeSet};

use acrtask_model::{Digest, RunId};
use jiff::{Timestamp, civil::Time};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

use crate::forms::{ContentDigest, TimeOfDay};

/// A cascade.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CascadeSummary {
    /// Its number.
    pub id: u64,
    /// Where it stands.
    pub phase: CascadePhase,
    /// Somebody has paused it: nothing more of it is started.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// Somebody has approved it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub approved: bool,
    /// Nothing of it goes on before somebody approves it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub waits_for_approval: bool,
    /// When its first change was seen.
    #[schema(value_type = String)]
    pub created: Timestamp,
    /// While it settles: until when further changes are waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub settles_at: Option<Timestamp>,
    /// When all of it had come to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub over_at: Option<Timestamp>,
    /// The one before it, whose tasks it builds again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follows: Option<u64>,
    /// The bases that moved, with the digests that it builds on.
    #[schema(value_type = Object)]
    pub changes: BTreeMap<String, Digest>,
    /// How many of its tasks stand where.
    pub counts: CascadeCounts,
    /// Its pushes are held back as digests without tags.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub holds: bool,
    /// What became of what was held back.
    pub promotion: CascadePromotion,
    /// Why that is not more by now: what its tags wait for, or what keeps them from being moved, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promotion_note: Option<String>,
}

/// Where a cascade stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum CascadePhase {
    /// It waits for further changes.
    Settling,
    /// It builds.
    Active,
    /// Somebody canceled it; it waits for the ends of its runs.
    Canceling,
    /// All of it has come to its end.
    Over,
}

impl CascadePhase {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Settling => "settling",
            Self::Active => "active",
            Self::Canceling => "canceling",
            Self::Over => "over",
        }
    }

    /// From what [`Self::as_str`] gave.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Settling, Self::Active, Self::Canceling, Self::Over]
            .into_iter()
            .find(|phase| phase.as_str() == text)
    }
}

/// How many tasks of a cascade stand where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct CascadeCounts {
    /// Wait for the tasks that they stand on.
    pub pending: u32,
    /// Wait for a free place, for their hour, or for somebody's consent.
    pub ready: u32,
    /// Have been started.
    pub running: u32,
    /// Were built.
    pub succeeded: u32,
    /// Could not be built.
    pub failed: u32,
    /// Were left behind: they still stand on old digests.
    pub stale: u32,
    /// Needed no build.
    pub skipped: u32,
    /// Were canceled.
    pub canceled: u32,
}

impl CascadeCounts {
    /// Counts one more.
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

    /// How many stand in `state`.
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

    /// All of them.
    pub fn total(&self) -> u32 {
        CascadeNodeState::ALL
            .into_iter()
            .map(|state| self.of(state))
            .sum()
    }
}

/// What became of the pushes that a cascade held back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum CascadePromotion {
    /// It holds nothing back: each push moved its tag at once.
    #[default]
    None,
    /// They are held back; no tag has moved.
    Held,
    /// All tags were moved.
    Promoted,
    /// The tags hold again what they held before it.
    RolledBack,
    /// They were given up; no tag has moved.
    Dropped,
}

/// A cascade with all that is known of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CascadeDetail {
    /// What lists show of it.
    #[serde(flatten)]
    pub summary: CascadeSummary,
    /// Its tasks, by name.
    pub nodes: Vec<CascadeNode>,
    /// What it pushed, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<CascadeImage>,
}

/// A task in a cascade.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CascadeNode {
    /// Its name.
    pub task: String,
    /// Where it stands.
    pub state: CascadeNodeState,
    /// Why, in one sentence: always there where it waits, is stale, has failed or needed no build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The tasks that it waits for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<String>,
    /// Its newest run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub run: Option<RunId>,
    /// How often it was started.
    pub attempts: u32,
    /// What it pushed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<PushedImage>,
    /// What its bases are fixed to, as far as that is known.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = Object)]
    pub pins: BTreeMap<String, Digest>,
    /// When its newest run was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub started_at: Option<Timestamp>,
    /// When that run ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub ended_at: Option<Timestamp>,
    /// How long its runs take, in milliseconds, as past ones show.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimate_ms: Option<u64>,
}

/// Where a task of a cascade stands.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "camelCase")]
pub enum CascadeNodeState {
    /// It waits for the tasks that it stands on.
    Pending,
    /// It waits for a free place, for its hour, or for somebody's consent.
    Ready,
    /// It has been started.
    Running,
    /// It was built.
    Succeeded,
    /// It could not be built.
    Failed,
    /// It was left behind: it still stands on old digests.
    Stale,
    /// It needed no build.
    Skipped,
    /// Somebody canceled it.
    Canceled,
}

impl CascadeNodeState {
    /// All of them, in the order of a task's life.
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

    /// As it is written.
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

    /// From what [`Self::as_str`] gave.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }

    /// True for a state that may still change.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Pending | Self::Ready | Self::Running)
    }
}

/// An image that was pushed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PushedImage {
    /// Registry, repository and tag.
    pub name: String,
    /// Its digest.
    #[schema(value_type = String)]
    pub digest: Digest,
}

/// An image that a cascade pushed, and what its tag held before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CascadeImage {
    /// Registry, repository and tag.
    pub name: String,
    /// What the tag held before; nothing: there was no such tag, or it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub before: Option<Digest>,
    /// What was pushed.
    #[schema(value_type = String)]
    pub after: Digest,
    /// What became of the tag.
    pub state: CascadeImageState,
    /// Why it is not what it was to become, or was left as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// What became of a tag that a cascade pushes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum CascadeImageState {
    /// It has not moved: what was pushed is held back.
    Held,
    /// It has what was pushed.
    Moved,
    /// It has again what it held before.
    RolledBack,
    /// It has not moved, and what was held back was given up.
    Dropped,
}

impl CascadeImageState {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Moved => "moved",
            Self::RolledBack => "rolledBack",
            Self::Dropped => "dropped",
        }
    }

    /// From what [`Self::as_str`] gave.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Held, Self::Moved, Self::RolledBack, Self::Dropped]
            .into_iter()
            .find(|state| state.as_str() == text)
    }
}

/// The start of a task in a cascade that a run is, and what made it necessary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CascadeOfRun {
    /// The cascade's number.
    pub id: u64,
    /// Which start of the task in the cascade it is, from 1.
    pub attempt: u32,
    /// The bases that count and had another digest than the task was built from before. Empty for a run of an older server.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub moved: Vec<MovedBase>,
}

/// A base that has moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MovedBase {
    /// Registry, repository and tag.
    pub name: String,
    /// What was used before.
    #[schema(value_type = String)]
    pub from: Digest,
    /// What the run is pinned to.
    #[schema(value_type = String)]
    pub to: Digest,
}

/// What cascades do about an image that is stale.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Rebuild {
    /// The newest cascade of its task; nothing: none builds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cascade: Option<u64>,
    /// Where its task stands there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<CascadeNodeState>,
    /// The newest run there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub run: Option<RunId>,
    /// Why it is not built again, or not yet, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// Asks what would be built again, without building it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PlanRequest {
    /// The base that moves: registry, repository and tag. Nothing: all that is stale now.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1)]
    pub reference: Option<String>,
    /// What it is to hold; nothing: what its tag holds now.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<ContentDigest>)]
    pub digest: Option<Digest>,
    /// All that is stale, not only what stands on this base.
    pub all: bool,
}

/// How cascades are carried out. What is left out is as it is by default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CascadeSettings {
    /// Changes within so many seconds of the first make one cascade.
    #[schema(maximum = 86_400)]
    pub settle_secs: u32,
    /// Runs of one cascade side by side.
    #[schema(minimum = 1)]
    pub parallel: u32,
    /// Runs of all cascades side by side; nothing: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub parallel_total: Option<u32>,
    /// How often a failed run is tried again.
    #[schema(maximum = 20)]
    pub retries: u32,
    /// The wait before each of these, in seconds.
    #[schema(maximum = 86_400)]
    pub retry_delay_secs: u32,
    /// A task that has failed for good is tried again by itself after so many seconds, then after twice as many, and so on;
    /// at most a day. 0: never.
    #[schema(maximum = 86_400)]
    pub heal_secs: u32,
    /// Of the runs, beside those that people start (0).
    #[schema(minimum = -10, maximum = 10)]
    pub priority: i32,
    /// How often a task may be moved to a cascade that follows, before it is built on what there is.
    pub patience: u32,
    /// The IANA time zone of the quiet hours.
    pub time_zone: String,
    /// Hours in which nothing is started.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub quiet: Vec<QuietHours>,
    /// Who has to agree before a task is built. The longest that fits a task holds.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<CascadeRule>,
    /// Which cascades hold their pushes back, and until when; nothing: none.
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
            heal_secs: 3600,
            priority: -5,
            patience: 3,
            time_zone: "UTC".into(),
            quiet: Vec::new(),
            rules: Vec::new(),
            promotion: None,
        }
    }
}

/// Hours in which nothing is started, each day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct QuietHours {
    /// Their begin, like `22:00`.
    #[serde(serialize_with = "short_time", deserialize_with = "time_of_day")]
    #[schema(value_type = TimeOfDay)]
    pub from: Time,
    /// Their end; before `from` where midnight is between.
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

/// As people write it: without seconds where there are none.
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

/// Who has to agree before a task is built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CascadeRule {
    /// A task's name, or what names begin with. Empty: all.
    pub tasks: String,
    /// Who.
    pub mode: CascadeMode,
}

/// See [`CascadeRule`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum CascadeMode {
    /// Nobody.
    #[default]
    Automatic,
    /// A person, once for each cascade.
    Approval,
    /// These tasks, by succeeding first. Where none of them is in a cascade, nobody.
    Canary {
        /// Their names.
        #[schema(value_type = Vec<String>, min_items = 1)]
        first: BTreeSet<String>,
    },
}

/// Which cascades hold their pushes back, and until when.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PromotionSettings {
    /// A cascade with a task whose name begins so holds back all that it pushes. Empty: each does.
    pub tasks: String,
    /// What has to succeed before all tags move together: tasks, or steps of tasks as `TASK/STEP`. None: every task of
    /// the cascade.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tests: Vec<String>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn settings_say_only_what_is_set_and_read_short_times() {
        let text = json!({
            "settleSecs": 10, "timeZone": "Europe/Berlin",
            "quiet": [{"from": "22:00", "to": "06:30"}],
            "rules": [
                {"tasks": "app/", "mode": "approval"},
                {"tasks": "", "mode": {"canary": {"first": ["app/a"]}}},
            ],
            "promotion": {"tasks": "app/", "tests": ["app/a/test"]},
        });
        let settings: CascadeSettings = serde_json::from_value(text.clone()).expect("it is right");
        assert_eq!(settings.parallel, 4);
        let shown = serde_json::to_value(&settings).expect("it can be written");
        for (key, value) in text.as_object().expect("it is one") {
            assert_eq!(shown[key], *value, "{key}");
        }
        assert_eq!(shown.get("parallelTotal"), None);
        let nothing: CascadeSettings =
            serde_json::from_value(json!({})).expect("all may be left out");
        assert_eq!(nothing, CascadeSettings::default());
        let strange = json!({"settle": 3});
        assert!(serde_json::from_value::<CascadeSettings>(strange).is_err());
    }

    #[test]
    fn words_read_as_they_are_written() {
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
