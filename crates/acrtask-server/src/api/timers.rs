//! Timers of tasks: what they did and will do, set and removed; and what each trigger of a task led to.
//!
//! A timer is a part of its task's definition: to set one is to change the task.

use acrtask_api::forms::Word;
use acrtask_api::{
    admin::Problem,
    run::Page,
    task::{Task, TaskDefinition, Timer},
    timer::{LastTick, TaskTimer, Tick},
    webhook::{Outcome, OutcomeKind, Trigger},
};
use acrtask_model::{RunId, RunState};
use acrtask_store::{Ms, StoreError, TickRow, TriggerRow, timestamp};
use acrtask_trigger::timer::Schedule;
use axum::{extract::State, http::StatusCode};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api, ApiError,
    extract::{Json, Path, Query},
    runs, tasks,
};
use crate::{
    auth::{self, By, Caller},
    submit,
};

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(put, delete))
        .routes(routes!(triggers))
}

/// The timers of a task, by name, with their next and their newest tick.
#[utoipa::path(get, path = "/tasks/{name}/timers", tag = "timers",
    params(("name" = String, Path, description = "The task's name.")), security(("token" = ["read"])), responses(
    (status = OK, body = Vec<TaskTimer>),
    (status = NOT_FOUND, body = Problem),
))]
async fn list(
    by: By<auth::Read>,
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Json<Vec<TaskTimer>>, ApiError> {
    let task = tasks::find(&api, &by.caller, &name).await?;
    Ok(Json(shown(&api, &task).await?))
}

async fn shown(api: &Api, task: &Task) -> Result<Vec<TaskTimer>, ApiError> {
    let app = &api.app;
    let handled = app.store.handled_ticks(&task.id).await?;
    let last = app.store.last_ticks(&task.id).await?;
    let now = app.clock.now_ms();
    let timers = &task.definition.triggers.timers;
    Ok(timers
        .iter()
        .map(|(name, timer)| {
            let last = last.iter().find(|tick| tick.timer == *name);
            let handled = handled.get(name).copied();
            show(task, name, timer, handled, now, last)
        })
        .collect())
}

fn show(
    task: &Task,
    name: &str,
    timer: &Timer,
    handled: Option<Ms>,
    now: Ms,
    last: Option<&TickRow>,
) -> TaskTimer {
    let (mut next, mut next_start, mut problem) = (None, None, None);
    let schedule = Schedule::new(&task.id, name, timer);
    let remark = schedule.as_ref().ok().and_then(Schedule::remark);
    match schedule {
        Err(errors) => {
            let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
            problem = Some(errors.join("; "));
        }
        Ok(_) if !task.definition.enabled => problem = Some("the task is disabled".into()),
        Ok(schedule) => {
            // A tick that has come and starts later by its part of the jitter is still to come.
            let now = timestamp(now);
            let later = schedule.starts_at(now).duration_since(now);
            let begun = now.checked_sub(later).unwrap_or(now);
            let handled = handled.map_or(task.updated_at, timestamp);
            next = schedule.next(begun.max(handled));
            next_start = next
                .map(|tick| schedule.starts_at(tick))
                .filter(|start| Some(*start) != next);
        }
    }
    TaskTimer {
        name: name.to_owned(),
        timer: timer.clone(),
        next,
        next_start,
        last: last.map(last_tick),
        problem,
        remark: remark.map(str::to_owned),
    }
}

/// The run that something led to, and where it stands.
type Led = Option<(RunId, Option<RunState>)>;

fn state(run: &Led) -> Option<String> {
    let (_, state) = run.as_ref()?;
    state.map(|state| state.as_str().to_owned())
}

fn last_tick(tick: &TickRow) -> LastTick {
    LastTick {
        scheduled_at: timestamp(tick.scheduled_at),
        handled_at: timestamp(tick.handled_at),
        stands_for: tick.stands_for,
        what: match tick.run {
            Some(_) => OutcomeKind::Run,
            None => OutcomeKind::Suppressed,
        },
        run: tick.run.as_ref().map(|(run, _)| run.clone()),
        state: state(&tick.run),
        reason: tick.suppressed.clone(),
    }
}

/// The tick that started a run, for whoever asks for that run.
pub(super) async fn tick_of(api: &Api, run: &RunId) -> Result<Option<Tick>, ApiError> {
    let tick = api.app.store.tick_of(run).await?;
    Ok(tick.map(|tick| Tick {
        timer: tick.timer,
        scheduled_at: timestamp(tick.scheduled_at),
        stands_for: tick.stands_for,
    }))
}

/// Sets a timer of a task. One with another schedule, or time zone, begins now.
#[utoipa::path(put, path = "/tasks/{name}/timers/{timer}", tag = "timers", request_body = Timer,
    params(
        ("name" = String, Path, description = "The task's name."),
        ("timer" = Word, Path, description = "The timer's name."),
    ),
    security(("token" = ["write"])), responses(
    (status = OK, body = TaskTimer),
    (status = CREATED, body = TaskTimer),
    (status = BAD_REQUEST, body = Problem, description = "All that is wrong with the timer."),
    (status = NOT_FOUND, body = Problem),
    (status = CONFLICT, body = Problem, description = "A file decides the task."),
))]
async fn put(
    by: By<auth::Write>,
    State(api): State<Api>,
    Path((name, timer)): Path<(String, String)>,
    Json(asked): Json<Timer>,
) -> Result<(StatusCode, Json<TaskTimer>), ApiError> {
    let (task, before) = change(&api, &by.caller, &name, |definition| {
        let timers = &mut definition.triggers.timers;
        Ok(timers.insert(timer.clone(), asked.clone()))
    })
    .await?;
    let status = match before {
        Some(_) => StatusCode::OK,
        None => StatusCode::CREATED,
    };
    let all = shown(&api, &task).await?;
    let set = all.into_iter().find(|shown| shown.name == timer);
    let set = set.ok_or_else(|| no_timer(&name, &timer))?;
    Ok((status, Json(set)))
}

/// Removes a timer of a task.
#[utoipa::path(delete, path = "/tasks/{name}/timers/{timer}", tag = "timers",
    params(
        ("name" = String, Path, description = "The task's name."),
        ("timer" = String, Path, description = "The timer's name."),
    ),
    security(("token" = ["write"])), responses(
    (status = NO_CONTENT),
    (status = NOT_FOUND, body = Problem),
    (status = CONFLICT, body = Problem, description = "A file decides the task."),
))]
async fn delete(
    by: By<auth::Write>,
    State(api): State<Api>,
    Path((name, timer)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    change(&api, &by.caller, &name, |definition| {
        let timers = &mut definition.triggers.timers;
        timers
            .remove(&timer)
            .ok_or_else(|| no_timer(&name, &timer))
            .map(drop)
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

fn no_timer(task: &str, timer: &str) -> ApiError {
    ApiError::not_found(format!("the task `{task}` has no timer `{timer}`")).help(format!(
        "`acrtask task timer list {task}` shows those that it has"
    ))
}

/// Changes the definition of a task that no file decides.
async fn change<T>(
    api: &Api,
    caller: &Caller,
    name: &str,
    how: impl Fn(&mut TaskDefinition) -> Result<T, ApiError>,
) -> Result<(Task, T), ApiError> {
    // Somebody may change the task meanwhile: their change must not be undone.
    for _ in 0..8 {
        let task = tasks::find(api, caller, name).await?;
        tasks::need_own(&task)?;
        let mut definition = task.definition;
        let outcome = how(&mut definition)?;
        submit::check_task(&definition).into_result()?;
        let now = api.app.clock.now_ms();
        let generation = Some(task.generation);
        let store = &api.app.store;
        match store
            .update_task(name, &definition, None, generation, now)
            .await
        {
            Err(StoreError::Conflict { .. }) => {}
            updated => {
                let task = updated?;
                tasks::changed(api).await;
                return Ok((task, outcome));
            }
        }
    }
    Err(
        ApiError::conflict(format!("the task `{name}` is being changed all the time"))
            .help("try again"),
    )
}

/// Which triggers a list shows.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListTriggers {
    /// Length of the page: 1 to 200, 50 by default.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u32>,
    /// What the page before gave as `next`.
    cursor: Option<String>,
}

/// All that was to start runs of a task, the newest first, and what each led to.
#[utoipa::path(get, path = "/tasks/{name}/triggers", tag = "timers",
    params(("name" = String, Path, description = "The task's name."), ListTriggers),
    security(("token" = ["read"])), responses(
    (status = OK, body = Page<Trigger>),
    (status = BAD_REQUEST, body = Problem),
    (status = NOT_FOUND, body = Problem),
))]
async fn triggers(
    by: By<auth::Read>,
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(asked): Query<ListTriggers>,
) -> Result<Json<Page<Trigger>>, ApiError> {
    tasks::find(&api, &by.caller, &name).await?;
    let limit = runs::page_limit(asked.limit)?;
    let (rows, next) = api
        .app
        .store
        .triggers_of_task(&name, asked.cursor.as_deref(), limit)
        .await?;
    let items = rows.into_iter().map(|row| trigger(&name, row)).collect();
    Ok(Json(Page { items, next }))
}

fn trigger(task: &str, row: TriggerRow) -> Trigger {
    let what = match (&row.run, row.joined) {
        (Some(_), false) => OutcomeKind::Run,
        (Some(_), true) => OutcomeKind::Joined,
        (None, _) => OutcomeKind::Suppressed,
    };
    let tick = row.timer.zip(row.scheduled_at).map(|(timer, at)| Tick {
        timer,
        scheduled_at: timestamp(at),
        stands_for: row.stands_for.unwrap_or(1),
    });
    Trigger {
        id: row.id,
        kind: row.kind,
        received_at: timestamp(row.received_at),
        delivery: row.delivery,
        state: state(&row.run),
        outcome: Outcome {
            task: task.to_owned(),
            what,
            run: row.run.map(|(run, _)| run),
            reason: row.suppressed.or(row.detail).unwrap_or_default(),
        },
        tick,
    }
}

#[cfg(test)]
#[path = "timers_tests.rs"]
mod tests;
