//! Rows of cascades for callers, and their parsing.

use acrtask_api::{cascade::DigestChange, run::RunResult};
use acrtask_model::{Digest, RunId, RunState};
use sqlx::FromRow;

use crate::{
    ImageBaseRow, Ms, NewRun, Result, StoreError, from_json, images::digest, run_state, runs,
};

/// A cascade without its nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CascadeRow {
    /// Number of the cascade.
    pub id: u64,
    /// Time of its start.
    pub created_at: Ms,
    /// `settling`, `active`, `canceling` or `finished`.
    pub phase: String,
    /// Cascade that this one follows up.
    pub follows: Option<u64>,
    /// JSON of the cascade without its nodes.
    pub head: String,
    /// The cascade waits for an approval.
    pub awaiting_approval: bool,
    /// The runs of the cascade push by digest only. `None`: no run was started yet.
    pub stages_images: Option<bool>,
    /// Time of its end.
    pub finished_at: Option<Ms>,
    /// The cascade is loaded and may change again. Other cascades are kept for display.
    pub active: bool,
    /// Decision about its images: `none`, `staged`, `promoted`, `rolledBack` or `discarded`.
    pub promotion: String,
    /// Principal that made the decision.
    pub promotion_by: Option<String>,
    /// Time of the decision.
    pub promotion_at: Option<Ms>,
    /// Reason why the promotion is incomplete or undecided.
    pub promotion_error: Option<String>,
    /// Time at which the work continues. `None`: it is complete, or nothing is decided.
    pub promotion_next_at: Option<Ms>,
}

/// A node of a cascade.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CascadeNodeRow {
    /// Number of the cascade.
    pub cascade: u64,
    /// Name of the task.
    pub task: String,
    /// State of the node.
    pub state: String,
    /// JSON of the node.
    pub node: String,
}

/// A run of a cascade.
#[derive(Debug, Clone, PartialEq)]
pub struct CascadeRunRow {
    /// Number of the cascade.
    pub cascade: u64,
    /// Name of the task.
    pub task: String,
    /// Attempt of the node in the cascade, from 1.
    pub attempt: u32,
    /// Id of the run.
    pub run: RunId,
    /// The run pushes by digest only.
    pub push_by_digest: bool,
    /// The cascade has handled the end of the run.
    pub seen: bool,
    /// State of the run. `None`: the run does not exist anymore.
    pub state: Option<RunState>,
    /// Reason of its final state.
    pub reason: Option<String>,
    /// Newer run that superseded it.
    pub superseded_by: Option<RunId>,
    /// Time of its creation.
    pub created_at: Option<Ms>,
    /// Time at which its first step could start.
    pub started_at: Option<Ms>,
    /// Time of its end.
    pub finished_at: Option<Ms>,
    /// Result of the run. Set only by queries that select results.
    pub result: Option<RunResult>,
}

/// An image that a cascade's run pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CascadeImageRow {
    /// Number of the cascade.
    pub cascade: u64,
    /// Registry, repository and tag.
    pub name: String,
    /// Name of the task.
    pub task: String,
    /// Run that pushed it.
    pub run: RunId,
    /// Previous digest of the tag, if known.
    pub before: Option<Digest>,
    /// Pushed digest.
    pub after: Digest,
    /// `staged`, `promoted`, `rolledBack` or `discarded`.
    pub state: String,
    /// Time of the last change of the state.
    pub changed_at: Ms,
    /// Reason why the image does not have the decided state.
    pub error: Option<String>,
}

/// A staged image with its bases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StagedImage {
    /// Number of the cascade.
    pub cascade: u64,
    /// Registry, repository and tag.
    pub name: String,
    /// Name of the task.
    pub task: String,
    /// Pushed digest.
    pub digest: Digest,
    /// Time of the push.
    pub pushed_at: Ms,
    /// Bases of the image.
    pub bases: Vec<ImageBaseRow>,
}

/// A watched tag with its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseTag {
    /// Registry, repository and tag.
    pub name: String,
    /// Digest at the last poll.
    pub digest: Digest,
    /// Time of the last poll. 0: the poll is older than this column.
    pub checked_at: Ms,
    /// Time of the last digest change.
    pub changed_at: Option<Ms>,
}

/// Filter of a list of cascades.
#[derive(Debug, Clone, Default)]
pub struct CascadeFilter {
    /// Only numbers below this one.
    pub before: Option<u64>,
    /// Only unfinished cascades.
    pub open: bool,
    /// Only cascades with a node for the task of this name.
    pub task: Option<String>,
    /// Only cascades with a node for a task whose name has this prefix.
    pub task_prefix: Option<String>,
    /// At most this number of cascades.
    pub limit: u32,
}

/// Everything that may still change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoredCascades {
    /// Version of the state.
    pub version: i64,
    /// Number of the newest cascade.
    pub next: u64,
    /// JSON of the settings, if any are stored.
    pub settings: Option<String>,
    /// Active cascades by number.
    pub cascades: Vec<CascadeRow>,
    /// Nodes of the active cascades.
    pub nodes: Vec<CascadeNodeRow>,
    /// Last rebuild of each task: task name and JSON.
    pub attempts: Vec<(String, String)>,
}

/// A run to start for a cascade.
#[derive(Debug, Clone)]
pub struct NewCascadeRun {
    /// Number of the cascade.
    pub cascade: u64,
    /// Name of the task.
    pub task: String,
    /// Attempt of the node in the cascade.
    pub attempt: u32,
    /// The run pushes by digest only.
    pub push_by_digest: bool,
    /// Digest changes of bases that require the run.
    pub moved: Vec<DigestChange>,
    /// The run.
    pub run: NewRun,
}

/// Key of a cascade's run: cascade, task and attempt.
pub type CascadeRunKey = (u64, String, u32);

/// A change of cascades. Anything that it does not contain stays unchanged.
#[derive(Debug, Clone, Default)]
pub struct CascadeChange {
    /// Number of the newest cascade.
    pub next: u64,
    /// JSON of new settings. `None`: unchanged.
    pub settings: Option<String>,
    /// New or changed cascades. The promotion columns are not written.
    pub cascades: Vec<CascadeRow>,
    /// New or changed nodes.
    pub nodes: Vec<CascadeNodeRow>,
    /// Last rebuilds of tasks. `None` removes the entry.
    pub attempts: Vec<(String, Option<String>)>,
    /// Runs to start.
    pub runs: Vec<NewCascadeRun>,
    /// Runs to cancel, with the reason.
    pub cancels: Vec<(CascadeRunKey, String)>,
    /// Runs whose ends the cascade has handled.
    pub seen: Vec<CascadeRunKey>,
}

macro_rules! cascade_columns {
    () => {
        "id, created_at, phase, follows, head, awaiting_approval, stages_images, finished_at, active, promotion, promotion_by, promotion_at, \
         promotion_error, promotion_next_at"
    };
}

#[derive(Debug, FromRow)]
pub(super) struct RawCascade {
    id: i64,
    created_at: i64,
    phase: String,
    follows: Option<i64>,
    head: String,
    awaiting_approval: i64,
    stages_images: Option<i64>,
    finished_at: Option<i64>,
    active: i64,
    promotion: String,
    promotion_by: Option<String>,
    promotion_at: Option<i64>,
    promotion_error: Option<String>,
    promotion_next_at: Option<i64>,
}

impl TryFrom<RawCascade> for CascadeRow {
    type Error = StoreError;

    fn try_from(raw: RawCascade) -> Result<Self> {
        Ok(Self {
            id: run_state::to_u64(raw.id)?,
            created_at: raw.created_at,
            phase: raw.phase,
            follows: raw.follows.map(run_state::to_u64).transpose()?,
            head: raw.head,
            awaiting_approval: raw.awaiting_approval != 0,
            stages_images: raw.stages_images.map(|staged| staged != 0),
            finished_at: raw.finished_at,
            active: raw.active != 0,
            promotion: raw.promotion,
            promotion_by: raw.promotion_by,
            promotion_at: raw.promotion_at,
            promotion_error: raw.promotion_error,
            promotion_next_at: raw.promotion_next_at,
        })
    }
}

pub(super) fn parse_node(
    (cascade, task, state, node): (i64, String, String, String),
) -> Result<CascadeNodeRow> {
    Ok(CascadeNodeRow {
        cascade: run_state::to_u64(cascade)?,
        task,
        state,
        node,
    })
}

pub(super) use cascade_columns;

macro_rules! select_runs {
    ($result:literal) => {
        concat!(
            "SELECT c.cascade_id, c.task, c.attempt, c.run_id, c.push_by_digest, c.seen, r.state, r.reason, r.superseded_by, r.created_at, \
             r.started_at, r.finished_at, ",
            $result,
            " AS result FROM cascade_runs c LEFT JOIN runs r ON r.id = c.run_id "
        )
    };
}

pub(super) use select_runs;

#[derive(Debug, FromRow)]
pub(super) struct RawRun {
    cascade_id: i64,
    task: String,
    attempt: i64,
    run_id: String,
    push_by_digest: i64,
    seen: i64,
    state: Option<String>,
    reason: Option<String>,
    superseded_by: Option<String>,
    created_at: Option<i64>,
    started_at: Option<i64>,
    finished_at: Option<i64>,
    result: Option<String>,
}

impl TryFrom<RawRun> for CascadeRunRow {
    type Error = StoreError;

    fn try_from(raw: RawRun) -> Result<Self> {
        Ok(Self {
            cascade: run_state::to_u64(raw.cascade_id)?,
            task: raw.task,
            attempt: run_state::to_u32(raw.attempt)?,
            run: runs::parse_run_id(raw.run_id)?,
            push_by_digest: raw.push_by_digest != 0,
            seen: raw.seen != 0,
            state: raw
                .state
                .as_deref()
                .map(run_state::parse_state)
                .transpose()?,
            reason: raw.reason,
            superseded_by: raw.superseded_by.map(runs::parse_run_id).transpose()?,
            created_at: raw.created_at,
            started_at: raw.started_at,
            finished_at: raw.finished_at,
            result: raw.result.as_deref().map(from_json).transpose()?,
        })
    }
}

#[derive(Debug, FromRow)]
pub(super) struct RawImage {
    cascade_id: i64,
    name: String,
    task: String,
    run_id: String,
    before_digest: Option<String>,
    after_digest: String,
    state: String,
    changed_at: i64,
    error: Option<String>,
}

impl TryFrom<RawImage> for CascadeImageRow {
    type Error = StoreError;

    fn try_from(raw: RawImage) -> Result<Self> {
        Ok(Self {
            cascade: run_state::to_u64(raw.cascade_id)?,
            name: raw.name,
            task: raw.task,
            run: runs::parse_run_id(raw.run_id)?,
            before: raw.before_digest.as_deref().map(digest).transpose()?,
            after: digest(&raw.after_digest)?,
            state: raw.state,
            changed_at: raw.changed_at,
            error: raw.error,
        })
    }
}
