//! Timers and their firings.
//!
//! The table of timers is repeatedly synchronized with the definitions of tasks. It adds the last
//! handled firing of each timer.
//!
//! Invariants:
//! - Each scheduled time of a timer is stored once, in one transaction with its trigger and its run
//!   or reason.
//! - Of any number of servers that handle the same firing, one wins.
//! - The caller computes scheduled times.
//!
//! Left out: time zones, and the policy for missed firings.

use std::collections::BTreeMap;

use acrtask_api::task::{Task, TaskDefinition, Timer};
use acrtask_model::{RunId, RunState};
use sqlx::FromRow;

use crate::{
    Ms, NewRun, Result, Store, StoreError, UnaccountedTrigger,
    db::{Sql, Tx, args},
    enqueue, from_json,
    quotas::Admission,
    run_state, runs,
    tasks::RawTask,
    to_json,
};

/// A timer, and its last handled firing.
#[derive(Debug, Clone, PartialEq)]
pub struct TimerRow {
    /// Current state of its task.
    pub task: Task,
    /// Name of the timer.
    pub name: String,
    /// Definition at the last synchronization.
    pub timer: Timer,
    /// Scheduled time of the newest handled firing. Before the first one, the time at which the
    /// timer was created or changed.
    pub handled_at: Ms,
    /// Time of the next work. `None`: never.
    pub next_at: Option<Ms>,
}

/// Position in the list of due timers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimerCursor(Ms, String, String);

/// A firing to be stored, with the missed firings that it covers.
#[derive(Debug, Clone)]
pub struct NewFiring {
    /// Scheduled time.
    pub scheduled_at: Ms,
    /// Scheduled time of the oldest covered firing. Equal to `scheduled_at` if it covers no other.
    pub first_at: Ms,
    /// Number of covered firings, including itself.
    pub stands_for: u64,
    /// Effect of the firing.
    pub action: FiringAction,
}

/// Effect of a firing.
#[derive(Debug, Clone)]
pub enum FiringAction {
    /// Starts a run.
    Run(Box<NewRun>),
    /// Has no effect.
    Ignore {
        /// Reason: one sentence without a full stop.
        reason: String,
    },
}

/// Firings to be handled now.
#[derive(Debug, Clone)]
pub struct NewFirings {
    /// Scheduled time of the newest firing that is handled by this call.
    pub handled_at: Ms,
    /// Time of the next work.
    pub next_at: Option<Ms>,
    /// Firings to store.
    pub firings: Vec<NewFiring>,
}

/// A handled firing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FiringRow {
    /// Name of the timer.
    pub timer: String,
    /// Scheduled time.
    pub scheduled_at: Ms,
    /// Scheduled time of the oldest covered firing.
    pub first_at: Ms,
    /// Number of covered firings, including itself.
    pub stands_for: u64,
    /// Time of handling.
    pub handled_at: Ms,
    /// Run that the firing started, and the state of that run if it still exists.
    pub run: Option<(RunId, Option<RunState>)>,
    /// Reason why the firing started no run.
    pub ignored: Option<String>,
}

#[derive(Debug, FromRow)]
struct StoredTimer {
    task_id: String,
    name: String,
    definition: String,
    handled_at: i64,
    next_at: Option<i64>,
}

#[derive(Debug, FromRow)]
struct RawTimer {
    #[sqlx(flatten)]
    task: RawTask,
    timer: String,
    timer_definition: String,
    handled_at: i64,
    next_at: Option<i64>,
}

impl TryFrom<RawTimer> for TimerRow {
    type Error = StoreError;

    fn try_from(raw: RawTimer) -> Result<Self> {
        Ok(Self {
            task: raw.task.try_into()?,
            name: raw.timer,
            timer: from_json(&raw.timer_definition)?,
            handled_at: raw.handled_at,
            next_at: raw.next_at,
        })
    }
}

#[derive(Debug, FromRow)]
struct RawFiring {
    timer: String,
    scheduled_at: i64,
    first_at: i64,
    stands_for: i64,
    handled_at: i64,
    run_id: Option<String>,
    state: Option<String>,
    ignored_reason: Option<String>,
}

impl TryFrom<RawFiring> for FiringRow {
    type Error = StoreError;

    fn try_from(raw: RawFiring) -> Result<Self> {
        let state = raw
            .state
            .as_deref()
            .map(run_state::parse_state)
            .transpose()?;
        Ok(Self {
            timer: raw.timer,
            scheduled_at: raw.scheduled_at,
            first_at: raw.first_at,
            stands_for: run_state::to_u64(raw.stands_for)?,
            handled_at: raw.handled_at,
            run: raw
                .run_id
                .map(|id| runs::parse_run_id(id).map(|id| (id, state)))
                .transpose()?,
            ignored: raw.ignored_reason,
        })
    }
}

const UPSERT_TIMER: Sql = Sql::new(
    "INSERT INTO timers (task_id, name, definition, handled_at, next_at) VALUES ($1, $2, $3, $4, $5) \
     ON CONFLICT (task_id, name) DO UPDATE SET definition = excluded.definition, handled_at = excluded.handled_at, \
     next_at = excluded.next_at",
    "INSERT INTO timers (task_id, name, definition, handled_at, next_at) \
     SELECT * FROM UNNEST($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[]) \
     ON CONFLICT (task_id, name) DO UPDATE SET definition = excluded.definition, handled_at = excluded.handled_at, \
     next_at = excluded.next_at",
);

const DELETE_TIMER: Sql = Sql::new(
    "DELETE FROM timers WHERE task_id = $1 AND name = $2",
    "DELETE FROM timers USING UNNEST($1::text[], $2::text[]) AS gone (task_id, name) \
     WHERE timers.task_id = gone.task_id AND timers.name = gone.name",
);

/// Returns `true` if the change affects scheduled times.
fn changes_schedule(before: &Timer, after: &Timer) -> bool {
    before.schedule != after.schedule
        || before.timezone != after.timezone
        || before.enabled != after.enabled
}

/// Current version of the tasks, and version at the last synchronization of timers.
type Versions = (i64, i64);

const VERSIONS: &str = "SELECT t.version, m.version FROM task_version t CROSS JOIN timer_sync m";

fn require_versions(versions: Option<Versions>) -> Result<Versions> {
    versions.ok_or_else(|| StoreError::corrupt("the version of the tasks is missing"))
}

impl Store {
    /// Synchronizes the table of timers with the definitions of tasks. Returns `false` if it was up
    /// to date.
    ///
    /// A timer that is new, enabled again, or has another schedule starts at the change of its
    /// task. `next` returns the time of the next work, from the task id, the timer's name, the
    /// timer, and its last handled firing.
    pub async fn sync_timers(
        &self,
        now: Ms,
        next: impl Fn(&str, &str, &Timer, Ms) -> Option<Ms>,
    ) -> Result<bool> {
        let (tasks, made) = require_versions(self.db.fetch_optional(VERSIONS, args![]).await?)?;
        if tasks == made {
            return Ok(false);
        }
        let mut tx = self.db.begin().await?;
        if tx.is_postgres() {
            // Allows one server at a time, so that the last write contains the last read.
            tx.exec("SELECT pg_advisory_xact_lock(20026, 3)", args![])
                .await?;
        }
        let (version, made) = require_versions(tx.fetch_optional(VERSIONS, args![]).await?)?;
        if version == made {
            return Ok(false);
        }
        let mut stored = load_stored_timers(&mut tx).await?;
        let tasks: Vec<(String, String, i64)> = tx
            .fetch_all(
                "SELECT id, definition, updated_at FROM tasks WHERE definition LIKE '%\"timers\":%'",
                args![],
            )
            .await?;
        let mut puts = Vec::new();
        for (task_id, definition, updated_at) in tasks {
            let definition: TaskDefinition = match from_json(&definition) {
                Ok(definition) => definition,
                Err(error) => {
                    // A newer program wrote the definition. Its timers stay as they are.
                    tracing::error!(task = task_id, %error, "cannot read the definition of a task");
                    stored.retain(|(task, _), _| *task != task_id);
                    continue;
                }
            };
            let start = updated_at.min(now);
            for (name, timer) in definition.triggers.timers {
                let before = stored.remove(&(task_id.clone(), name.clone()));
                let handled_at = match &before {
                    Some((before, handled_at, _)) if !changes_schedule(before, &timer) => {
                        *handled_at
                    }
                    // Ignores the previous firing. A clock far ahead must not stop the timer
                    // forever, and the table of firings prevents a second run for the same time.
                    _ => start,
                };
                let next_at = next(&task_id, &name, &timer, handled_at);
                if before.as_ref() != Some(&(timer.clone(), handled_at, next_at)) {
                    let text = to_json(&timer)?;
                    puts.push(args![task_id.as_str(), name, text, handled_at, next_at]);
                }
            }
        }
        if !puts.is_empty() {
            tx.exec_each(UPSERT_TIMER, puts).await?;
        }
        let gone: Vec<_> = stored
            .into_keys()
            .map(|(task_id, name)| args![task_id, name])
            .collect();
        if !gone.is_empty() {
            tx.exec_each(DELETE_TIMER, gone).await?;
        }
        tx.exec("UPDATE timer_sync SET version = $1", args![version])
            .await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Returns a page of timers that are due at `now`, most overdue first, and the cursor of the
    /// next page.
    pub async fn due_timers(
        &self,
        now: Ms,
        after: Option<TimerCursor>,
        limit: u32,
    ) -> Result<(Vec<TimerRow>, Option<TimerCursor>)> {
        let (next_at, task_id, name) = match after {
            Some(TimerCursor(next_at, task_id, name)) => (next_at, task_id, name),
            None => (Ms::MIN, String::new(), String::new()),
        };
        let rows: Vec<RawTimer> = self
            .db
            .fetch_all(
                "SELECT t.id, t.definition, t.generation, t.source, t.base_tags, t.created_at, t.updated_at, m.name AS timer, \
                 m.definition AS timer_definition, m.handled_at, m.next_at FROM timers m JOIN tasks t ON t.id = m.task_id \
                 WHERE m.next_at IS NOT NULL AND m.next_at <= $1 AND (m.next_at, m.task_id, m.name) > ($2, $3, $4) \
                 ORDER BY m.next_at, m.task_id, m.name LIMIT $5",
                args![now, next_at, task_id, name, limit],
            )
            .await?;
        let next = rows.last().filter(|_| rows.len() == limit as usize);
        let next = next.map(|raw| {
            TimerCursor(
                raw.next_at.unwrap_or(Ms::MAX),
                raw.task.id.clone(),
                raw.timer.clone(),
            )
        });
        let rows = rows.into_iter().filter_map(|raw| {
            // An unreadable timer does not block the others. The audit reports it as overdue.
            TimerRow::try_from(raw)
                .inspect_err(|error| tracing::error!(%error, "cannot read a timer"))
                .ok()
        });
        Ok((rows.collect(), next))
    }

    /// Returns the time of the next work of any timer. `None`: never.
    pub async fn next_timer(&self) -> Result<Option<Ms>> {
        let first: Option<(Option<i64>,)> = self
            .db
            .fetch_optional(
                "SELECT MIN(next_at) FROM timers WHERE next_at IS NOT NULL",
                args![],
            )
            .await?;
        Ok(first.and_then(|(at,)| at))
    }

    /// Returns the last handled firing of each timer of a task, by name.
    pub async fn handled_firings(&self, task_id: &str) -> Result<BTreeMap<String, Ms>> {
        let rows: Vec<(String, i64)> = self
            .db
            .fetch_all(
                "SELECT name, handled_at FROM timers WHERE task_id = $1",
                args![task_id],
            )
            .await?;
        Ok(rows.into_iter().collect())
    }

    /// Stores handled firings of `row` with their triggers and runs. Returns the new runs, or
    /// `None` if the timer or its task has changed, or another server has handled the firings.
    pub async fn record_firings(
        &self,
        row: &TimerRow,
        new: NewFirings,
        now: Ms,
    ) -> Result<Option<Vec<RunId>>> {
        let mut tx = self.db.begin().await?;
        let won = tx
            .exec(
                "UPDATE timers SET handled_at = $5, next_at = $6 \
                 WHERE task_id = $1 AND name = $2 AND definition = $3 AND handled_at = $4 \
                 AND EXISTS (SELECT 1 FROM tasks WHERE id = $1 AND generation = $7)",
                args![
                    row.task.id.as_str(),
                    row.name.as_str(),
                    to_json(&row.timer)?,
                    row.handled_at,
                    new.handled_at,
                    new.next_at,
                    row.task.generation,
                ],
            )
            .await?;
        if won == 0 {
            return Ok(None);
        }
        let mut started = Vec::new();
        for firing in new.firings {
            started.extend(write_firing(&mut tx, row, firing, now).await?);
        }
        tx.commit().await?;
        Ok(Some(started))
    }

    /// Returns the newest firing of each timer of a task.
    pub async fn last_firings(&self, task_id: &str) -> Result<Vec<FiringRow>> {
        let rows: Vec<RawFiring> = self
            .db
            .fetch_all(
                "SELECT k.timer, k.scheduled_at, k.first_at, k.stands_for, k.handled_at, t.run_id, r.state, \
                 t.ignored_reason FROM timers m JOIN timer_firings k ON k.task_id = m.task_id AND k.timer = m.name \
                 LEFT JOIN triggers t ON t.id = k.trigger_id LEFT JOIN runs r ON r.id = t.run_id \
                 WHERE m.task_id = $1 AND k.scheduled_at = \
                 (SELECT MAX(o.scheduled_at) FROM timer_firings o WHERE o.task_id = m.task_id AND o.timer = m.name) \
                 ORDER BY k.timer",
                args![task_id],
            )
            .await?;
        rows.into_iter().map(FiringRow::try_from).collect()
    }

    /// Returns the firing that started a run.
    pub async fn firing_of_run(&self, run: &RunId) -> Result<Option<FiringRow>> {
        let raw: Option<RawFiring> = self
            .db
            .fetch_optional(
                "SELECT k.timer, k.scheduled_at, k.first_at, k.stands_for, k.handled_at, r.id AS run_id, r.state, \
                 CAST(NULL AS TEXT) AS ignored_reason FROM timer_firings k LEFT JOIN runs r ON r.id = k.trigger_id \
                 WHERE k.trigger_id = $1",
                args![run],
            )
            .await?;
        raw.map(FiringRow::try_from).transpose()
    }

    /// Returns firings without a trigger, and timers that have been due since before `before`.
    pub(crate) async fn unaccounted_firings(&self, before: Ms) -> Result<Vec<UnaccountedTrigger>> {
        let lost: Vec<(String, String)> = self
            .db
            .fetch_all(
                "SELECT k.trigger_id, k.timer FROM timer_firings k LEFT JOIN triggers t ON t.id = k.trigger_id \
                 WHERE t.id IS NULL AND k.handled_at < $1 ORDER BY k.handled_at, k.trigger_id",
                args![before],
            )
            .await?;
        let late: Vec<(String, String, i64)> = self
            .db
            .fetch_all(
                "SELECT t.name, m.name, m.next_at FROM timers m JOIN tasks t ON t.id = m.task_id \
                 WHERE m.next_at IS NOT NULL AND m.next_at < $1 ORDER BY m.next_at, m.task_id, m.name",
                args![before],
            )
            .await?;
        let lost = lost.into_iter().map(|(trigger, timer)| UnaccountedTrigger {
            why: format!("a firing of the timer {timer} has no trigger"),
            trigger,
            run: None,
        });
        let late = late
            .into_iter()
            .map(|(task, timer, at)| UnaccountedTrigger {
                trigger: format!("timer {timer} of {task}"),
                run: None,
                why: format!(
                    "no server has handled its firing of {}",
                    crate::timestamp(at)
                ),
            });
        Ok(lost.chain(late).collect())
    }
}

/// Stored timers by task id and name: definition, last handled firing, and time of the next work.
type StoredTimers = BTreeMap<(String, String), (Timer, Ms, Option<Ms>)>;

async fn load_stored_timers(tx: &mut Tx) -> Result<StoredTimers> {
    let rows: Vec<StoredTimer> = tx
        .fetch_all(
            "SELECT task_id, name, definition, handled_at, next_at FROM timers",
            args![],
        )
        .await?;
    rows.into_iter()
        .map(|row| {
            let timer = from_json(&row.definition)?;
            Ok((
                (row.task_id, row.name),
                (timer, row.handled_at, row.next_at),
            ))
        })
        .collect()
}

/// Stores one firing with its trigger and its run. Returns the run, or `None` if the firing was
/// stored before or started no run.
async fn write_firing(
    tx: &mut Tx,
    row: &TimerRow,
    mut firing: NewFiring,
    now: Ms,
) -> Result<Option<RunId>> {
    if let FiringAction::Run(run) = &firing.action {
        let mut admission = Admission::load(tx, std::iter::once(&**run), now).await?;
        match admission.admit(run) {
            Ok(()) => admission.store(tx, now).await?,
            Err(exceeded) => {
                let reason = format!("{exceeded}; {}", exceeded.help());
                firing.action = FiringAction::Ignore { reason };
            }
        }
    }
    let trigger = match &firing.action {
        FiringAction::Run(run) => run.id.to_string(),
        FiringAction::Ignore { .. } => {
            format!("tick/{}/{}/{}", row.task.id, row.name, firing.scheduled_at)
        }
    };
    let new = tx
        .exec(
            "INSERT INTO timer_firings (task_id, timer, scheduled_at, first_at, stands_for, handled_at, trigger_id) \
             VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (task_id, timer, scheduled_at) DO NOTHING",
            args![
                row.task.id.as_str(),
                row.name.as_str(),
                firing.scheduled_at,
                firing.first_at,
                firing.stands_for,
                now,
                trigger.as_str(),
            ],
        )
        .await?;
    if new == 0 {
        return Ok(None);
    }
    match firing.action {
        FiringAction::Run(run) => {
            let id = run.id.clone();
            enqueue::insert_locked_run(tx, *run, now).await?;
            Ok(Some(id))
        }
        FiringAction::Ignore { reason } => {
            let task = row.task.definition.name.as_str();
            crate::triggers::insert_ignored_trigger(tx, &trigger, "timer", task, &reason, now)
                .await?;
            Ok(None)
        }
    }
}
