//! Timers and their ticks.
//!
//! The table of timers is made from the definitions of tasks, again and again, and holds what they do not say: which tick
//! is handled. Invariants: a scheduled time of a timer is written down once, with its trigger and its run or the reason
//! why there is none, in one transaction; of any number of servers that handle the same tick, one wins. When a timer
//! ticks is for the caller to say. Left out: time zones, and what a missed tick leads to.

use std::collections::BTreeMap;

use acrtask_api::task::{Task, TaskDefinition, Timer};
use acrtask_model::{RunId, RunState};
use sqlx::FromRow;

use crate::{
    Ms, NewRun, Result, Store, StoreError, Unaccounted,
    db::{Sql, Tx, args},
    enqueue, from_json, lives,
    quotas::Admission,
    runs,
    tasks::RawTask,
    to_json,
};

/// A timer, and which of its ticks are handled.
#[derive(Debug, Clone, PartialEq)]
pub struct TimerRow {
    /// Its task, as it is now.
    pub task: Task,
    /// Its name.
    pub name: String,
    /// What it was when the table of timers was made last.
    pub timer: Timer,
    /// The newest tick that is handled, or when the timer was made or changed.
    pub handled_at: Ms,
    /// When there is something to do; nothing: never.
    pub next_at: Option<Ms>,
}

/// A place in the list of timers that have something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimerPlace(Ms, String, String);

/// A tick that is to be written down, and those before it that it stands for.
#[derive(Debug, Clone)]
pub struct NewTick {
    /// Its scheduled time.
    pub scheduled_at: Ms,
    /// The oldest tick that it stands for; itself where it stands for none.
    pub first_at: Ms,
    /// How many ticks it stands for, with itself.
    pub stands_for: u64,
    /// What it leads to.
    pub leads_to: TickLeadsTo,
}

/// What a tick leads to.
#[derive(Debug, Clone)]
pub enum TickLeadsTo {
    /// A run.
    Run(Box<NewRun>),
    /// Nothing.
    Nothing {
        /// Why, in one sentence without a full stop.
        reason: String,
    },
}

/// Ticks that are handled now.
#[derive(Debug, Clone)]
pub struct NewTicks {
    /// The newest tick that is handled after this.
    pub handled_at: Ms,
    /// When there is something to do again.
    pub next_at: Option<Ms>,
    /// The ticks.
    pub ticks: Vec<NewTick>,
}

/// A tick that was handled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TickRow {
    /// The timer's name.
    pub timer: String,
    /// Its scheduled time.
    pub scheduled_at: Ms,
    /// The oldest tick that it stands for.
    pub first_at: Ms,
    /// How many ticks it stands for, with itself.
    pub stands_for: u64,
    /// When it was handled.
    pub handled_at: Ms,
    /// The run that it led to, and where that stands.
    pub run: Option<(RunId, Option<RunState>)>,
    /// Why it led to none.
    pub suppressed: Option<String>,
}

#[derive(Debug, FromRow)]
struct Known {
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
struct RawTick {
    timer: String,
    scheduled_at: i64,
    first_at: i64,
    stands_for: i64,
    handled_at: i64,
    run_id: Option<String>,
    state: Option<String>,
    suppressed_reason: Option<String>,
}

impl TryFrom<RawTick> for TickRow {
    type Error = StoreError;

    fn try_from(raw: RawTick) -> Result<Self> {
        let state = raw.state.as_deref().map(lives::state).transpose()?;
        Ok(Self {
            timer: raw.timer,
            scheduled_at: raw.scheduled_at,
            first_at: raw.first_at,
            stands_for: lives::size(raw.stands_for)?,
            handled_at: raw.handled_at,
            run: raw
                .run_id
                .map(|id| runs::id(id).map(|id| (id, state)))
                .transpose()?,
            suppressed: raw.suppressed_reason,
        })
    }
}

const PUT: Sql = Sql::of(
    "INSERT INTO timers (task_id, name, definition, handled_at, next_at) VALUES ($1, $2, $3, $4, $5) \
     ON CONFLICT (task_id, name) DO UPDATE SET definition = excluded.definition, handled_at = excluded.handled_at, \
     next_at = excluded.next_at",
    "INSERT INTO timers (task_id, name, definition, handled_at, next_at) \
     SELECT * FROM UNNEST($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[]) \
     ON CONFLICT (task_id, name) DO UPDATE SET definition = excluded.definition, handled_at = excluded.handled_at, \
     next_at = excluded.next_at",
);

const DROP: Sql = Sql::of(
    "DELETE FROM timers WHERE task_id = $1 AND name = $2",
    "DELETE FROM timers USING UNNEST($1::text[], $2::text[]) AS gone (task_id, name) \
     WHERE timers.task_id = gone.task_id AND timers.name = gone.name",
);

/// Whether its ticks are other ones than before.
fn ticks_otherwise(before: &Timer, after: &Timer) -> bool {
    before.schedule != after.schedule
        || before.timezone != after.timezone
        || before.enabled != after.enabled
}

/// The version of the tasks, and the one that the timers were made from.
type Versions = (i64, i64);

const VERSIONS: &str = "SELECT t.version, m.version FROM task_version t CROSS JOIN timers_made m";

fn current(versions: Option<Versions>) -> Result<Versions> {
    versions.ok_or_else(|| StoreError::corrupt("the version of the tasks is missing"))
}

impl Store {
    /// Makes the table of timers what the definitions of the tasks say. A timer that is new, that was turned on, or whose
    /// schedule is another one, begins when its task was changed. `next` says when a timer has something to do: of the
    /// task's id, the timer's name, the timer, and the newest tick that is handled. Says whether there was anything to do.
    pub async fn make_timers(
        &self,
        now: Ms,
        next: impl Fn(&str, &str, &Timer, Ms) -> Option<Ms>,
    ) -> Result<bool> {
        let (tasks, made) = current(self.db.row(VERSIONS, args![]).await?)?;
        if tasks == made {
            return Ok(false);
        }
        let mut tx = self.db.write().await?;
        if tx.is_postgres() {
            // One server at a time, so that what is written last is what was read last.
            tx.exec("SELECT pg_advisory_xact_lock(20026, 3)", args![])
                .await?;
        }
        let (version, made) = current(tx.row(VERSIONS, args![]).await?)?;
        if version == made {
            return Ok(false);
        }
        let mut known = known(&mut tx).await?;
        let tasks: Vec<(String, String, i64)> = tx
            .rows(
                "SELECT id, definition, updated_at FROM tasks WHERE definition LIKE '%\"timers\":%'",
                args![],
            )
            .await?;
        let mut puts = Vec::new();
        for (task_id, definition, updated_at) in tasks {
            let definition: TaskDefinition = match from_json(&definition) {
                Ok(definition) => definition,
                Err(error) => {
                    // A newer program wrote it, and knows its timers; they stay as they are.
                    tracing::error!(task = task_id, %error, "the definition of a task cannot be read");
                    known.retain(|(task, _), _| *task != task_id);
                    continue;
                }
            };
            let begins = updated_at.min(now);
            for (name, timer) in definition.triggers.timers {
                let before = known.remove(&(task_id.clone(), name.clone()));
                let handled_at = match &before {
                    Some((before, handled_at, _)) if !ticks_otherwise(before, &timer) => {
                        *handled_at
                    }
                    // Not what was handled before: a clock that was far ahead must not stop it for ever, and a tick that
                    // was handled is not handled again.
                    _ => begins,
                };
                let next_at = next(&task_id, &name, &timer, handled_at);
                if before.as_ref() != Some(&(timer.clone(), handled_at, next_at)) {
                    let text = to_json(&timer)?;
                    puts.push(args![task_id.as_str(), name, text, handled_at, next_at]);
                }
            }
        }
        if !puts.is_empty() {
            tx.each(PUT, puts).await?;
        }
        let gone: Vec<_> = known
            .into_keys()
            .map(|(task_id, name)| args![task_id, name])
            .collect();
        if !gone.is_empty() {
            tx.each(DROP, gone).await?;
        }
        tx.exec("UPDATE timers_made SET version = $1", args![version])
            .await?;
        tx.commit().await?;
        Ok(true)
    }

    /// A page of the timers that have something to do at `now`, the most overdue first, and where the next page begins.
    pub async fn due_timers(
        &self,
        now: Ms,
        after: Option<TimerPlace>,
        limit: u32,
    ) -> Result<(Vec<TimerRow>, Option<TimerPlace>)> {
        let (next_at, task_id, name) = match after {
            Some(TimerPlace(next_at, task_id, name)) => (next_at, task_id, name),
            None => (Ms::MIN, String::new(), String::new()),
        };
        let rows: Vec<RawTimer> = self
            .db
            .rows(
                "SELECT t.id, t.definition, t.generation, t.source, t.base_tags, t.created_at, t.updated_at, m.name AS timer, \
                 m.definition AS timer_definition, m.handled_at, m.next_at FROM timers m JOIN tasks t ON t.id = m.task_id \
                 WHERE m.next_at IS NOT NULL AND m.next_at <= $1 AND (m.next_at, m.task_id, m.name) > ($2, $3, $4) \
                 ORDER BY m.next_at, m.task_id, m.name LIMIT $5",
                args![now, next_at, task_id, name, limit],
            )
            .await?;
        let next = rows.last().filter(|_| rows.len() == limit as usize);
        let next = next.map(|raw| {
            TimerPlace(
                raw.next_at.unwrap_or(Ms::MAX),
                raw.task.id.clone(),
                raw.timer.clone(),
            )
        });
        let rows = rows.into_iter().filter_map(|raw| {
            // One that cannot be read holds up no other one, and is late in the books.
            TimerRow::try_from(raw)
                .inspect_err(|error| tracing::error!(%error, "a timer cannot be read"))
                .ok()
        });
        Ok((rows.collect(), next))
    }

    /// When a timer has something to do; nothing: never.
    pub async fn next_timer(&self) -> Result<Option<Ms>> {
        let first: Option<(Option<i64>,)> = self
            .db
            .row(
                "SELECT MIN(next_at) FROM timers WHERE next_at IS NOT NULL",
                args![],
            )
            .await?;
        Ok(first.and_then(|(at,)| at))
    }

    /// Which tick of each timer of a task is handled, by name.
    pub async fn handled_ticks(&self, task_id: &str) -> Result<BTreeMap<String, Ms>> {
        let rows: Vec<(String, i64)> = self
            .db
            .rows(
                "SELECT name, handled_at FROM timers WHERE task_id = $1",
                args![task_id],
            )
            .await?;
        Ok(rows.into_iter().collect())
    }

    /// Writes down that ticks of `row` were handled, with their triggers and runs. Gives the new runs; nothing where the
    /// timer or its task was changed meanwhile, or another server was quicker.
    pub async fn tick(&self, row: &TimerRow, new: NewTicks, now: Ms) -> Result<Option<Vec<RunId>>> {
        let mut tx = self.db.write().await?;
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
        for tick in new.ticks {
            started.extend(write_tick(&mut tx, row, tick, now).await?);
        }
        tx.commit().await?;
        Ok(Some(started))
    }

    /// The newest tick of each timer that a task has.
    pub async fn last_ticks(&self, task_id: &str) -> Result<Vec<TickRow>> {
        let rows: Vec<RawTick> = self
            .db
            .rows(
                "SELECT k.timer, k.scheduled_at, k.first_at, k.stands_for, k.handled_at, t.run_id, r.state, \
                 t.suppressed_reason FROM timers m JOIN ticks k ON k.task_id = m.task_id AND k.timer = m.name \
                 LEFT JOIN triggers t ON t.id = k.trigger_id LEFT JOIN runs r ON r.id = t.run_id \
                 WHERE m.task_id = $1 AND k.scheduled_at = \
                 (SELECT MAX(o.scheduled_at) FROM ticks o WHERE o.task_id = m.task_id AND o.timer = m.name) \
                 ORDER BY k.timer",
                args![task_id],
            )
            .await?;
        rows.into_iter().map(TickRow::try_from).collect()
    }

    /// The tick that led to a run.
    pub async fn tick_of(&self, run: &RunId) -> Result<Option<TickRow>> {
        let raw: Option<RawTick> = self
            .db
            .row(
                "SELECT k.timer, k.scheduled_at, k.first_at, k.stands_for, k.handled_at, r.id AS run_id, r.state, \
                 CAST(NULL AS TEXT) AS suppressed_reason FROM ticks k LEFT JOIN runs r ON r.id = k.trigger_id \
                 WHERE k.trigger_id = $1",
                args![run],
            )
            .await?;
        raw.map(TickRow::try_from).transpose()
    }

    /// Ticks without a trigger, and timers that nobody has looked at since `before`.
    pub(crate) async fn unaccounted_ticks(&self, before: Ms) -> Result<Vec<Unaccounted>> {
        let lost: Vec<(String, String)> = self
            .db
            .rows(
                "SELECT k.trigger_id, k.timer FROM ticks k LEFT JOIN triggers t ON t.id = k.trigger_id \
                 WHERE t.id IS NULL AND k.handled_at < $1 ORDER BY k.handled_at, k.trigger_id",
                args![before],
            )
            .await?;
        let late: Vec<(String, String, i64)> = self
            .db
            .rows(
                "SELECT t.name, m.name, m.next_at FROM timers m JOIN tasks t ON t.id = m.task_id \
                 WHERE m.next_at IS NOT NULL AND m.next_at < $1 ORDER BY m.next_at, m.task_id, m.name",
                args![before],
            )
            .await?;
        let lost = lost.into_iter().map(|(trigger, timer)| Unaccounted {
            why: format!("a tick of the timer {timer} has no trigger"),
            trigger,
            run: None,
        });
        let late = late.into_iter().map(|(task, timer, at)| Unaccounted {
            trigger: format!("timer {timer} of {task}"),
            run: None,
            why: format!("nobody has handled its tick of {}", crate::timestamp(at)),
        });
        Ok(lost.chain(late).collect())
    }
}

/// What is known of each timer by its task's id and its name: what it was, the tick that is handled, when the next one is.
type KnownTimers = BTreeMap<(String, String), (Timer, Ms, Option<Ms>)>;

async fn known(tx: &mut Tx) -> Result<KnownTimers> {
    let rows: Vec<Known> = tx
        .rows(
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

/// Writes down one tick with its trigger and its run. Gives the run; none where the tick is there already.
async fn write_tick(
    tx: &mut Tx,
    row: &TimerRow,
    mut tick: NewTick,
    now: Ms,
) -> Result<Option<RunId>> {
    if let TickLeadsTo::Run(run) = &tick.leads_to {
        let mut admission = Admission::load(tx, std::iter::once(&**run), now).await?;
        match admission.admit(run) {
            Ok(()) => admission.store(tx, now).await?,
            Err(exceeded) => {
                let reason = format!("{exceeded}; {}", exceeded.help());
                tick.leads_to = TickLeadsTo::Nothing { reason };
            }
        }
    }
    let trigger = match &tick.leads_to {
        TickLeadsTo::Run(run) => run.id.to_string(),
        TickLeadsTo::Nothing { .. } => {
            format!("tick/{}/{}/{}", row.task.id, row.name, tick.scheduled_at)
        }
    };
    let new = tx
        .exec(
            "INSERT INTO ticks (task_id, timer, scheduled_at, first_at, stands_for, handled_at, trigger_id) \
             VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (task_id, timer, scheduled_at) DO NOTHING",
            args![
                row.task.id.as_str(),
                row.name.as_str(),
                tick.scheduled_at,
                tick.first_at,
                tick.stands_for,
                now,
                trigger.as_str(),
            ],
        )
        .await?;
    if new == 0 {
        return Ok(None);
    }
    match tick.leads_to {
        TickLeadsTo::Run(run) => {
            let id = run.id.clone();
            enqueue::start(tx, *run, now).await?;
            Ok(Some(id))
        }
        TickLeadsTo::Nothing { reason } => {
            let task = row.task.definition.name.as_str();
            crate::triggers::suppress(tx, &trigger, "timer", task, &reason, now).await?;
            Ok(None)
        }
    }
}
