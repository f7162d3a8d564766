//! Cascades as rows: what callers see of them, and how it is read.

use acrtask_api::{cascade::MovedBase, run::RunResult};
use acrtask_model::{Digest, RunId, RunState};
use sqlx::FromRow;

use crate::{ImageBaseRow, Ms, NewRun, Result, StoreError, from_json, images::digest, lives, runs};

/// A cascade, without its tasks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CascadeRow {
    /// Its number.
    pub id: u64,
    /// When it began.
    pub created_at: Ms,
    /// `settling`, `active`, `canceling` or `over`.
    pub phase: String,
    /// The one before it.
    pub follows: Option<u64>,
    /// All of it but its nodes, as JSON.
    pub head: String,
    /// It waits for somebody's approval.
    pub waits: bool,
    /// Its runs push without tags; nothing: none has been started.
    pub holds: Option<bool>,
    /// When it was over.
    pub over_at: Option<Ms>,
    /// It is loaded and may change again; others are kept for those who ask.
    pub active: bool,
    /// What became of what it holds back, or moved: `none`, `held`, `promoted`, `rolledBack` or `dropped`.
    pub promotion: String,
    /// Who decided that.
    pub promotion_by: Option<String>,
    /// When.
    pub promotion_at: Option<Ms>,
    /// Why it is not done yet, or is not decided.
    pub promotion_error: Option<String>,
    /// When somebody goes on with it; nothing: it is done, or nothing is decided.
    pub promotion_next_at: Option<Ms>,
}

/// A task in a cascade.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CascadeNodeRow {
    /// The cascade.
    pub cascade: u64,
    /// The task's name.
    pub task: String,
    /// Where it stands, in one word.
    pub state: String,
    /// All of it, as JSON.
    pub node: String,
}

/// A run of a cascade.
#[derive(Debug, Clone, PartialEq)]
pub struct CascadeRunRow {
    /// The cascade.
    pub cascade: u64,
    /// The task's name.
    pub task: String,
    /// Which start of the task in the cascade, from 1.
    pub attempt: u32,
    /// The run.
    pub run: RunId,
    /// It pushes without tags.
    pub held: bool,
    /// The cascade knows of its end.
    pub seen: bool,
    /// Where it stands; nothing: it is gone.
    pub state: Option<RunState>,
    /// Why it ended as it did.
    pub reason: Option<String>,
    /// The run that canceled it because it is newer.
    pub superseded_by: Option<RunId>,
    /// When it was asked for.
    pub created_at: Option<Ms>,
    /// When its first step could start.
    pub started_at: Option<Ms>,
    /// When it ended.
    pub finished_at: Option<Ms>,
    /// What came of it; only where ends are asked for.
    pub result: Option<RunResult>,
}

/// An image that a cascade's run pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CascadeImageRow {
    /// The cascade.
    pub cascade: u64,
    /// Registry, repository and tag.
    pub name: String,
    /// The task's name.
    pub task: String,
    /// The run that pushed it.
    pub run: RunId,
    /// What the tag held before, as far as that is known.
    pub before: Option<Digest>,
    /// What was pushed.
    pub after: Digest,
    /// `held`, `moved`, `rolledBack` or `dropped`.
    pub state: String,
    /// Since when.
    pub at: Ms,
    /// Why it is not what it is to be.
    pub error: Option<String>,
}

/// An image that is held back, with what it was built from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldImage {
    /// The cascade.
    pub cascade: u64,
    /// Registry, repository and tag.
    pub name: String,
    /// The task's name.
    pub task: String,
    /// What was pushed.
    pub digest: Digest,
    /// When.
    pub at: Ms,
    /// What it was built from.
    pub bases: Vec<ImageBaseRow>,
}

/// What a watched tag holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseTag {
    /// Registry, repository and tag.
    pub name: String,
    /// What it was found to hold.
    pub digest: Digest,
    /// When it was last looked at; 0: before that was written down.
    pub checked_at: Ms,
    /// When it was last seen to move.
    pub moved_at: Option<Ms>,
}

/// Which cascades a list shows.
#[derive(Debug, Clone, Default)]
pub struct CascadeFilter {
    /// Only numbers below this one.
    pub before: Option<u64>,
    /// Only those that are not over.
    pub open: bool,
    /// Only those that have, or had, something to do with the task of this name.
    pub task: Option<String>,
    /// The same of a task whose name begins so.
    pub task_prefix: Option<String>,
    /// At most so many.
    pub limit: u32,
}

/// All that may still change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoredCascades {
    /// Of the state.
    pub version: i64,
    /// The number of the newest cascade.
    pub next: u64,
    /// As JSON, if any were stored.
    pub settings: Option<String>,
    /// The cascades that are active, by number.
    pub cascades: Vec<CascadeRow>,
    /// Their tasks.
    pub nodes: Vec<CascadeNodeRow>,
    /// What each task was last run for: its name, and JSON.
    pub attempts: Vec<(String, String)>,
}

/// A run that a cascade starts.
#[derive(Debug, Clone)]
pub struct NewCascadeRun {
    /// The cascade.
    pub cascade: u64,
    /// The task's name.
    pub task: String,
    /// Which start of the task in the cascade.
    pub attempt: u32,
    /// It pushes without tags.
    pub held: bool,
    /// The bases that made it necessary.
    pub moved: Vec<MovedBase>,
    /// The run.
    pub run: NewRun,
}

/// A run of a cascade by (cascade, task, attempt).
pub type CascadeRunKey = (u64, String, u32);

/// What a change of cascades writes. What is not in it stays as it is.
#[derive(Debug, Clone, Default)]
pub struct CascadeChange {
    /// The number of the newest cascade.
    pub next: u64,
    /// Other settings, as JSON.
    pub settings: Option<String>,
    /// Cascades that are new or changed. What became of their images is not written.
    pub cascades: Vec<CascadeRow>,
    /// Tasks of them that are new or changed.
    pub nodes: Vec<CascadeNodeRow>,
    /// What tasks were last run for; nothing: that is forgotten.
    pub attempts: Vec<(String, Option<String>)>,
    /// Runs that start.
    pub runs: Vec<NewCascadeRun>,
    /// Runs that are to stop, with the reason.
    pub cancels: Vec<(CascadeRunKey, String)>,
    /// Runs whose ends are taken.
    pub seen: Vec<CascadeRunKey>,
}

macro_rules! cascade_columns {
    () => {
        "id, created_at, phase, follows, head, waits, holds, over_at, active, promotion, promotion_by, promotion_at, \
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
    waits: i64,
    holds: Option<i64>,
    over_at: Option<i64>,
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
            id: lives::size(raw.id)?,
            created_at: raw.created_at,
            phase: raw.phase,
            follows: raw.follows.map(lives::size).transpose()?,
            head: raw.head,
            waits: raw.waits != 0,
            holds: raw.holds.map(|holds| holds != 0),
            over_at: raw.over_at,
            active: raw.active != 0,
            promotion: raw.promotion,
            promotion_by: raw.promotion_by,
            promotion_at: raw.promotion_at,
            promotion_error: raw.promotion_error,
            promotion_next_at: raw.promotion_next_at,
        })
    }
}

pub(super) fn node(
    (cascade, task, state, node): (i64, String, String, String),
) -> Result<CascadeNodeRow> {
    Ok(CascadeNodeRow {
        cascade: lives::size(cascade)?,
        task,
        state,
        node,
    })
}

pub(super) use cascade_columns;

macro_rules! select_runs {
    ($result:literal) => {
        concat!(
            "SELECT c.cascade_id, c.task, c.attempt, c.run_id, c.held, c.seen, r.state, r.reason, r.superseded_by, r.created_at, \
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
    held: i64,
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
            cascade: lives::size(raw.cascade_id)?,
            task: raw.task,
            attempt: lives::small(raw.attempt)?,
            run: runs::id(raw.run_id)?,
            held: raw.held != 0,
            seen: raw.seen != 0,
            state: raw.state.as_deref().map(lives::state).transpose()?,
            reason: raw.reason,
            superseded_by: raw.superseded_by.map(runs::id).transpose()?,
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
    at: i64,
    error: Option<String>,
}

impl TryFrom<RawImage> for CascadeImageRow {
    type Error = StoreError;

    fn try_from(raw: RawImage) -> Result<Self> {
        Ok(Self {
            cascade: lives::size(raw.cascade_id)?,
            name: raw.name,
            task: raw.task,
            run: runs::id(raw.run_id)?,
            before: raw.before_digest.as_deref().map(digest).transpose()?,
            after: digest(&raw.after_digest)?,
            state: raw.state,
            at: raw.at,
            error: raw.error,
        })
    }
}
