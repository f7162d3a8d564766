//! Timers: each firing starts one run, however many servers process it.
//!
//! [`Schedule`] decides when a timer fires; it is a pure function of the definition. The database
//! stores the handled firings. This module processes due timers and records each firing with its
//! run, or with the reason why it has none.
//!
//! Invariants:
//!
//! - All servers do the same, and the database lets one of them win.
//! - A firing that cannot start a run because of its task does not delay other firings.
//! - The time is the server's clock. A clock that is behind delays firings.

use std::time::Duration;

use acrtask_api::task::{MissedFirings, Timer, Triggers};
use acrtask_store::{
    FiringAction, Hint, Ms, NewFiring, NewFirings, NewRun, StoreError, TimerRow, timestamp,
};
use acrtask_trigger::timer::{Due, MAX_COUNTED, Missed, Schedule};

use crate::{
    App,
    run_factory::{
        self, RequestContext,
        trigger::{TriggerContext, create_from_trigger},
    },
    validate::{self, Problems},
};

/// Maximum sleep. A change of a task wakes the loop, but that wake-up may be lost.
const MAX_SLEEP: Duration = Duration::from_secs(30);
/// Number of timers per page.
const PAGE: u32 = 100;
/// Maximum number of timers per task.
const MAX_TIMERS: usize = 50;

/// Handles firings, forever.
pub(crate) async fn run(app: &App) -> Result<(), StoreError> {
    loop {
        let next = handle_due(app).await?;
        let now = app.clock.now_ms();
        let wait = match next {
            // A timer failed or changed in the meantime.
            Some(at) if at <= now => app.config.poll,
            Some(at) => Duration::from_millis(u64::try_from(at - now).unwrap_or(u64::MAX)),
            None => MAX_SLEEP,
        };
        tokio::select! {
            () = app.timers.notified() => {}
            () = tokio::time::sleep(wait.min(MAX_SLEEP)) => {}
        }
    }
}

/// Handles all firings that are due now. Returns the time of the next one.
///
/// # Errors
/// The database cannot be reached.
pub async fn handle_due(app: &App) -> Result<Option<Ms>, StoreError> {
    let now = app.clock.now_ms();
    app.store.sync_timers(now, next_action_at).await?;
    let mut cursor = None;
    loop {
        let (page, next) = app.store.due_timers(now, cursor, PAGE).await?;
        for row in &page {
            match handle_timer(app, row, now).await {
                Ok(()) => {}
                Err(error) if error.is_unavailable() => return Err(error),
                Err(error) => tracing::error!(
                    task = row.task.definition.name,
                    timer = row.name,
                    error = acrtask_model::error_chain(&error),
                    "handling a firing failed; it will be retried"
                ),
            }
        }
        cursor = next;
        if cursor.is_none() {
            break;
        }
    }
    app.store.next_timer().await
}

/// Returns the time of the first action after the firing `handled`.
fn next_action_at(task_id: &str, name: &str, timer: &Timer, handled: Ms) -> Option<Ms> {
    let schedule = Schedule::new(task_id, name, timer).ok()?;
    action_time(&schedule, handled)
}

fn action_time(schedule: &Schedule, handled: Ms) -> Option<Ms> {
    let tick = schedule.next(timestamp(handled))?;
    Some(schedule.starts_at(tick).as_millisecond())
}

/// Handles the due firings of one timer.
async fn handle_timer(app: &App, row: &TimerRow, now: Ms) -> Result<(), StoreError> {
    let definition = &row.task.definition;
    if definition.triggers.timers.get(&row.name) != Some(&row.timer) {
        // The task has just changed, and its timers will be created again.
        return Ok(());
    }
    let Ok(schedule) = Schedule::new(&row.task.id, &row.name, &row.timer) else {
        return Ok(());
    };
    let new = match schedule.due(timestamp(row.handled_at), timestamp(now)) {
        // A server with other time zone data stored a due time that does not apply here.
        Due::Wait { until } => NewFirings {
            handled_at: row.handled_at,
            next_at: until.map(|at| at.as_millisecond()),
            firings: Vec::new(),
        },
        Due::Firings {
            run,
            missed,
            handled,
        } => {
            let handled_at = handled.as_millisecond();
            let run = run.map(|at| at.as_millisecond());
            NewFirings {
                handled_at,
                next_at: action_time(&schedule, handled_at),
                firings: prepare_firings(app, row, run, missed).await?,
            }
        }
    };
    if let Some(started) = app.store.record_firings(row, new, now).await? {
        for run in &started {
            tracing::info!(%run, task = definition.name, timer = row.name, "started a run for a timer");
        }
        if !started.is_empty() {
            app.wake.notify_one();
            app.cancels.notify_one();
            if let Err(error) = app.store.send_hints(&[Hint::Enqueued]).await {
                tracing::debug!(%error, "failed to send a hint");
            }
        }
    }
    Ok(())
}

/// Returns the firings to record.
async fn prepare_firings(
    app: &App,
    row: &TimerRow,
    run: Option<Ms>,
    missed: Option<Missed>,
) -> Result<Vec<NewFiring>, StoreError> {
    let mut ticks = Vec::new();
    // The run covers the missed firings, or a separate firing without a run records them.
    let (stands_for, skipped) = match (run, missed) {
        (Some(_), Some(missed)) if row.timer.missed == MissedFirings::RunOnce => {
            (Some(missed), None)
        }
        (_, missed) => (None, missed),
    };
    if let Some(missed) = skipped {
        let reason = if row.task.definition.enabled {
            format!(
                "{}, and the timer skips missed firings",
                missed_text(&missed)
            )
        } else {
            disabled_reason(missed.count)
        };
        ticks.push(new_firing(
            missed.last.as_millisecond(),
            Some(&missed),
            0,
            FiringAction::Ignore { reason },
        ));
    }
    if let Some(at) = run {
        let count = stands_for.as_ref().map_or(0, |missed| missed.count);
        let leads_to = if row.task.definition.enabled {
            firing_outcome(app, row, at, stands_for.as_ref()).await?
        } else {
            FiringAction::Ignore {
                reason: disabled_reason(count + 1),
            }
        };
        ticks.push(new_firing(at, stands_for.as_ref(), 1, leads_to));
    }
    Ok(ticks)
}

fn new_firing(at: Ms, missed: Option<&Missed>, itself: u64, leads_to: FiringAction) -> NewFiring {
    NewFiring {
        scheduled_at: at,
        first_at: missed.map_or(at, |missed| missed.first.as_millisecond()),
        stands_for: itself + missed.map_or(0, |missed| missed.count as u64),
        action: leads_to,
    }
}

fn disabled_reason(count: usize) -> String {
    match count {
        1 => "the task is disabled".into(),
        count => format!("the task is disabled ({} firings)", count_text(count)),
    }
}

fn missed_text(missed: &Missed) -> String {
    match missed.count {
        1 => format!("no server handled the firing of {} in time", missed.last),
        count => format!(
            "no server handled {} firings in time, from {} to {}",
            count_text(count),
            missed.first,
            missed.last
        ),
    }
}

fn count_text(count: usize) -> String {
    if count >= MAX_COUNTED {
        format!("{MAX_COUNTED} or more")
    } else {
        count.to_string()
    }
}

/// Returns the run of a firing, or the reason why it has none.
async fn firing_outcome(
    app: &App,
    row: &TimerRow,
    at: Ms,
    stands_for: Option<&Missed>,
) -> Result<FiringAction, StoreError> {
    let mut reason = format!("the timer {} fired at {}", row.name, timestamp(at));
    if let Some(missed) = stands_for {
        reason = format!("{reason}, also for missed firings: {}", missed_text(missed));
    }
    Ok(match create_run(app, row, reason).await? {
        Ok(run) => FiringAction::Run(Box::new(run)),
        Err(reason) => FiringAction::Ignore { reason },
    })
}

async fn create_run(
    app: &App,
    row: &TimerRow,
    reason: String,
) -> Result<Result<NewRun, String>, StoreError> {
    let context = TriggerContext {
        trigger: "timer",
        triggered_by: "Timer",
        ..TriggerContext::default()
    };
    let draft = match create_from_trigger(app, &row.task, context, RequestContext::default()) {
        Ok(draft) => draft,
        Err(problems) => return Ok(Err(format!("the task cannot run: {problems}"))),
    };
    let missing = run_factory::find_missing_secrets(app, &draft).await?;
    if !missing.is_empty() {
        let task = &row.task.definition.name;
        return Ok(Err(run_factory::missing_secrets_message(
            &missing,
            Some(task),
        )));
    }
    Ok(match draft.seal(app) {
        Ok(mut run) => {
            run.origin.reason = Some(reason);
            Ok(run)
        }
        Err(error) => Err(format!("its secrets cannot be stored: {error}")),
    })
}

/// Validates the timers of a task.
pub(crate) fn validate_timers(triggers: &Triggers, problems: &mut Problems) {
    if triggers.timers.len() > MAX_TIMERS {
        problems.add_rule(format!(
            "`triggers.timers` has {} timers; a task may have at most {MAX_TIMERS}",
            triggers.timers.len()
        ));
        return;
    }
    for (name, timer) in &triggers.timers {
        if let Err(reason) = validate::check_word(name) {
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
