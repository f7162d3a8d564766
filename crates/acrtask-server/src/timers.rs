//! Timers: each tick starts one run, whatever number of servers look at it.
//!
//! When a timer ticks is decided by [`Schedule`], a pure function of its definition; what was handled is in the database.
//! This looks at what is due, and writes down each tick with its run, or with the reason why there is none. Invariants:
//! every server does the same, and of several one wins in the database; a tick that cannot become a run, for what its
//! task says, holds up no other one; time is the server's clock, and a clock that is behind waits.

use std::time::Duration;

use acrtask_api::task::{MissedTicks, Timer, Triggers};
use acrtask_store::{
    Hint, Ms, NewRun, NewTick, NewTicks, StoreError, TickLeadsTo, TimerRow, timestamp,
};
use acrtask_trigger::timer::{Due, MOST_COUNTED, Missed, Schedule};

use crate::{
    App,
    submit::{
        self, Problems, Request,
        event::{Happening, from_event},
    },
};

/// How long it sleeps at most. A change of a task wakes it, and that may be lost.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);
/// Timers that are read at once.
const PAGE: u32 = 100;
/// Most timers of a task.
const MAX_TIMERS: usize = 50;

/// Handles ticks, for ever.
pub(crate) async fn run(app: &App) -> Result<(), StoreError> {
    loop {
        let next = pass(app).await?;
        let now = app.clock.now_ms();
        let wait = match next {
            // Something failed or was changed meanwhile.
            Some(at) if at <= now => app.config.poll,
            Some(at) => Duration::from_millis(u64::try_from(at - now).unwrap_or(u64::MAX)),
            None => LONGEST_SLEEP,
        };
        tokio::select! {
            () = app.timers.notified() => {}
            () = tokio::time::sleep(wait.min(LONGEST_SLEEP)) => {}
        }
    }
}

/// Handles all ticks that are due now. Says when there is something to do again.
///
/// # Errors
/// When the database cannot be reached.
pub async fn pass(app: &App) -> Result<Option<Ms>, StoreError> {
    let now = app.clock.now_ms();
    app.store.make_timers(now, next_at).await?;
    let mut place = None;
    loop {
        let (page, next) = app.store.due_timers(now, place, PAGE).await?;
        for row in &page {
            match handle(app, row, now).await {
                Ok(()) => {}
                Err(error) if error.is_unavailable() => return Err(error),
                Err(error) => tracing::error!(
                    task = row.task.definition.name,
                    timer = row.name,
                    error = acrtask_model::chain(&error),
                    "a tick could not be handled; it is tried again"
                ),
            }
        }
        place = next;
        if place.is_none() {
            break;
        }
    }
    app.store.next_timer().await
}

/// When a timer has something to do after the tick `handled`.
fn next_at(task_id: &str, name: &str, timer: &Timer, handled: Ms) -> Option<Ms> {
    let schedule = Schedule::new(task_id, name, timer).ok()?;
    wakes_at(&schedule, handled)
}

fn wakes_at(schedule: &Schedule, handled: Ms) -> Option<Ms> {
    let tick = schedule.next(timestamp(handled))?;
    Some(schedule.starts_at(tick).as_millisecond())
}

/// Handles the ticks of one timer.
async fn handle(app: &App, row: &TimerRow, now: Ms) -> Result<(), StoreError> {
    let definition = &row.task.definition;
    if definition.triggers.timers.get(&row.name) != Some(&row.timer) {
        // Its task was changed a moment ago, and its timers will be made anew.
        return Ok(());
    }
    let Ok(schedule) = Schedule::new(&row.task.id, &row.name, &row.timer) else {
        return Ok(());
    };
    let new = match schedule.due(timestamp(row.handled_at), timestamp(now)) {
        // Another program, with other time zones, had said that there was something to do.
        Due::Wait { until } => NewTicks {
            handled_at: row.handled_at,
            next_at: until.map(|at| at.as_millisecond()),
            ticks: Vec::new(),
        },
        Due::Ticks {
            run,
            missed,
            handled,
        } => {
            let handled_at = handled.as_millisecond();
            let run = run.map(|at| at.as_millisecond());
            NewTicks {
                handled_at,
                next_at: wakes_at(&schedule, handled_at),
                ticks: ticks(app, row, run, missed).await?,
            }
        }
    };
    if let Some(started) = app.store.tick(row, new, now).await? {
        for run in &started {
            tracing::info!(%run, task = definition.name, timer = row.name, "a timer started a run");
        }
        if !started.is_empty() {
            app.wake.notify_one();
            app.cancels.notify_one();
            if let Err(error) = app.store.hint(&[Hint::Enqueued]).await {
                tracing::debug!(%error, "a hint could not be sent");
            }
        }
    }
    Ok(())
}

/// What is to be written down of ticks that have come.
async fn ticks(
    app: &App,
    row: &TimerRow,
    run: Option<Ms>,
    missed: Option<Missed>,
) -> Result<Vec<NewTick>, StoreError> {
    let mut ticks = Vec::new();
    // The runs that are missed are stood for by the run, or by a tick of their own that starts nothing.
    let (stands_for, skipped) = match (run, missed) {
        (Some(_), Some(missed)) if row.timer.missed == MissedTicks::RunOnce => (Some(missed), None),
        (_, missed) => (None, missed),
    };
    if let Some(missed) = skipped {
        let reason = if row.task.definition.enabled {
            format!(
                "{}, and the timer skips what is missed",
                was_missed(&missed)
            )
        } else {
            disabled(missed.count)
        };
        ticks.push(tick(
            missed.last.as_millisecond(),
            Some(&missed),
            0,
            TickLeadsTo::Nothing { reason },
        ));
    }
    if let Some(at) = run {
        let count = stands_for.as_ref().map_or(0, |missed| missed.count);
        let leads_to = if row.task.definition.enabled {
            leads_to(app, row, at, stands_for.as_ref()).await?
        } else {
            TickLeadsTo::Nothing {
                reason: disabled(count + 1),
            }
        };
        ticks.push(tick(at, stands_for.as_ref(), 1, leads_to));
    }
    Ok(ticks)
}

fn tick(at: Ms, missed: Option<&Missed>, itself: u64, leads_to: TickLeadsTo) -> NewTick {
    NewTick {
        scheduled_at: at,
        first_at: missed.map_or(at, |missed| missed.first.as_millisecond()),
        stands_for: itself + missed.map_or(0, |missed| missed.count as u64),
        leads_to,
    }
}

fn disabled(count: usize) -> String {
    match count {
        1 => "the task is disabled".into(),
        count => format!("the task is disabled ({} ticks)", counted(count)),
    }
}

fn was_missed(missed: &Missed) -> String {
    match missed.count {
        1 => format!("no server handled the tick of {} in time", missed.last),
        count => format!(
            "no server handled {} ticks in time, from {} to {}",
            counted(count),
            missed.first,
            missed.last
        ),
    }
}

fn counted(count: usize) -> String {
    if count >= MOST_COUNTED {
        format!("{MOST_COUNTED} or more")
    } else {
        count.to_string()
    }
}

/// The run of a tick, or why there can be none.
async fn leads_to(
    app: &App,
    row: &TimerRow,
    at: Ms,
    stands_for: Option<&Missed>,
) -> Result<TickLeadsTo, StoreError> {
    let mut reason = format!("the timer {} ticked at {}", row.name, timestamp(at));
    if let Some(missed) = stands_for {
        reason = format!("{reason}; it stands for more: {}", was_missed(missed));
    }
    Ok(match draft(app, row, reason).await? {
        Ok(run) => TickLeadsTo::Run(Box::new(run)),
        Err(reason) => TickLeadsTo::Nothing { reason },
    })
}

async fn draft(
    app: &App,
    row: &TimerRow,
    reason: String,
) -> Result<Result<NewRun, String>, StoreError> {
    let happening = Happening {
        trigger: "timer",
        triggered_by: "Timer",
        ..Happening::default()
    };
    let draft = match from_event(app, &row.task, happening, Request::default()) {
        Ok(draft) => draft,
        Err(problems) => return Ok(Err(format!("the task cannot run: {problems}"))),
    };
    let missing = submit::missing_secrets(app, &draft).await?;
    if !missing.is_empty() {
        let task = &row.task.definition.name;
        return Ok(Err(submit::no_secret(&missing, Some(task))));
    }
    Ok(match draft.seal(app) {
        Ok(mut run) => {
            run.origin.reason = Some(reason);
            Ok(run)
        }
        Err(error) => Err(format!("its secrets cannot be kept: {error}")),
    })
}

/// Checks the timers of a task.
pub(crate) fn check(triggers: &Triggers, problems: &mut Problems) {
    if triggers.timers.len() > MAX_TIMERS {
        problems.add_rule(format!(
            "`triggers.timers` has {}, and a task may have {MAX_TIMERS}",
            triggers.timers.len()
        ));
    }
    for (name, timer) in &triggers.timers {
        if let Err(reason) = submit::word(name) {
            problems.add(format!("`triggers.timers`: the name of a timer: {reason}"));
        }
        for error in Schedule::new("", name, timer).err().into_iter().flatten() {
            problems.add_rule(format!(
                "`triggers.timers.{name}.{}`: {}: {}",
                error.field, error.reason, error.help
            ));
        }
    }
}
