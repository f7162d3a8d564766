//! Timers of tasks: list, set and delete them, and the triggers of a task with their decisions.
//!
//! A timer is a part of its task's definition: setting a timer changes the task.

use acrtask_api::forms::ShortName;
use acrtask_api::{
    admin::Problem,
    run::Page,
    task::{Task, TaskDefinition, Timer},
    timer::{Firing, LastFiring, TaskTimer},
    webhook::{Decision, DecisionAction, Trigger},
};
use acrtask_model::{RunId, RunState};
use acrtask_store::{FiringRow, Ms, StoreError, TriggerRow, timestamp};
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
    auth::{self, Authenticated, Caller},
    validate,
};

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(put, delete))
        .routes(routes!(triggers))
}

/// Lists the timers of a task by name, with their next and their newest firing.
#[utoipa::path(get, path = "/tasks/{name}/timers", tag = "timers",
    params(("name" = String, Path, description = "Name of the task.")), security(("token" = ["read"])), responses(
    (status = OK, body = Vec<TaskTimer>),
    (status = NOT_FOUND, body = Problem),
))]
async fn list(
    by: Authenticated<auth::Read>,
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Json<Vec<TaskTimer>>, ApiError> {
    let task = tasks::find(&api, &by.caller, &name).await?;
    Ok(Json(list_timers(&api, &task).await?))
}

async fn list_timers(api: &Api, task: &Task) -> Result<Vec<TaskTimer>, ApiError> {
    let app = &api.app;
    let handled = app.store.handled_firings(&task.id).await?;
    let last = app.store.last_firings(&task.id).await?;
    let now = app.clock.now_ms();
    let timers = &task.definition.triggers.timers;
    Ok(timers
        .iter()
        .map(|(name, timer)| {
            let last = last.iter().find(|tick| tick.timer == *name);
            let handled = handled.get(name).copied();
            timer_to_api(task, name, timer, handled, now, last)
        })
        .collect())
}

fn timer_to_api(
    task: &Task,
    name: &str,
    timer: &Timer,
    handled: Option<Ms>,
    now: Ms,
    last: Option<&FiringRow>,
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
            // The jitter delays a start: a firing before now can still be pending.
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
        last: last.map(last_firing),
        problem,
        remark: remark.map(str::to_owned),
    }
}

/// Run of a trigger, and its state. The state is `None` if the run was deleted.
type RunAndState = Option<(RunId, Option<RunState>)>;

fn state_name(run: &RunAndState) -> Option<String> {
    let (_, state) = run.as_ref()?;
    state.map(|state| state.as_str().to_owned())
}

fn last_firing(tick: &FiringRow) -> LastFiring {
    LastFiring {
        scheduled_at: timestamp(tick.scheduled_at),
        handled_at: timestamp(tick.handled_at),
        firing_count: tick.stands_for,
        action: match tick.run {
            Some(_) => DecisionAction::RunStarted,
            None => DecisionAction::Ignored,
        },
        run: tick.run.as_ref().map(|(run, _)| run.clone()),
        state: state_name(&tick.run),
        reason: tick.ignored.clone(),
    }
}

/// Returns the firing that started a run.
pub(super) async fn firing_of(api: &Api, run: &RunId) -> Result<Option<Firing>, ApiError> {
    let tick = api.app.store.firing_of_run(run).await?;
    Ok(tick.map(|tick| Firing {
        timer: tick.timer,
        scheduled_at: timestamp(tick.scheduled_at),
        firing_count: tick.stands_for,
    }))
}

/// Sets a timer of a task. A timer with another schedule or time zone starts from now.
#[utoipa::path(put, path = "/tasks/{name}/timers/{timer}", tag = "timers", request_body = Timer,
    params(
        ("name" = String, Path, description = "Name of the task."),
        ("timer" = ShortName, Path, description = "Name of the timer."),
    ),
    security(("token" = ["write"])), responses(
    (status = OK, body = TaskTimer),
    (status = CREATED, body = TaskTimer),
    (status = BAD_REQUEST, body = Problem, description = "The message has all problems of the timer."),
    (status = NOT_FOUND, body = Problem),
    (status = CONFLICT, body = Problem, description = "A file defines the task."),
))]
async fn put(
    by: Authenticated<auth::Write>,
    State(api): State<Api>,
    Path((name, timer)): Path<(String, String)>,
    Json(input): Json<Timer>,
) -> Result<(StatusCode, Json<TaskTimer>), ApiError> {
    let (task, before) = change(&api, &by.caller, &name, |definition| {
        let timers = &mut definition.triggers.timers;
        Ok(timers.insert(timer.clone(), input.clone()))
    })
    .await?;
    let status = match before {
        Some(_) => StatusCode::OK,
        None => StatusCode::CREATED,
    };
    let all = list_timers(&api, &task).await?;
    let set = all.into_iter().find(|shown| shown.name == timer);
    let set = set.ok_or_else(|| timer_not_found(&name, &timer))?;
    Ok((status, Json(set)))
}

/// Deletes a timer of a task.
#[utoipa::path(delete, path = "/tasks/{name}/timers/{timer}", tag = "timers",
    params(
        ("name" = String, Path, description = "Name of the task."),
        ("timer" = String, Path, description = "Name of the timer."),
    ),
    security(("token" = ["write"])), responses(
    (status = NO_CONTENT),
    (status = NOT_FOUND, body = Problem),
    (status = CONFLICT, body = Problem, description = "A file defines the task."),
))]
async fn delete(
    by: Authenticated<auth::Write>,
    State(api): State<Api>,
    Path((name, timer)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    change(&api, &by.caller, &name, |definition| {
        let timers = &mut definition.triggers.timers;
        timers
            .remove(&timer)
            .ok_or_else(|| timer_not_found(&name, &timer))
            .map(drop)
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

fn timer_not_found(task: &str, timer: &str) -> ApiError {
    ApiError::not_found(format!("the task `{task}` has no timer `{timer}`")).help(format!(
        "list its timers with `acrtask task timer list {task}`"
    ))
}

/// Changes the definition of a task that is not defined by a file.
async fn change<T>(
    api: &Api,
    caller: &Caller,
    name: &str,
    update: impl Fn(&mut TaskDefinition) -> Result<T, ApiError>,
) -> Result<(Task, T), ApiError> {
    // Retry after concurrent changes, so that they are not lost.
    for _ in 0..8 {
        let task = tasks::find(api, caller, name).await?;
        tasks::require_no_file(&task)?;
        let mut definition = task.definition;
        let outcome = update(&mut definition)?;
        let definition = validate::validate_task(definition).await?;
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
                tracing::info!(
                    task = name,
                    by = caller.name,
                    "changed the timers of a task"
                );
                tasks::notify_changed(api).await;
                return Ok((task, outcome));
            }
        }
    }
    Err(
        ApiError::conflict(format!("the task `{name}` is changed by other requests"))
            .help("send the request again"),
    )
}

/// Page of a list of triggers.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListTriggers {
    /// Length of the page: 1 to 200, 50 by default.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u32>,
    /// `next` of the previous page.
    cursor: Option<String>,
}

/// Lists the triggers of a task with their decisions, the newest first.
#[utoipa::path(get, path = "/tasks/{name}/triggers", tag = "timers",
    params(("name" = String, Path, description = "Name of the task."), ListTriggers),
    security(("token" = ["read"])), responses(
    (status = OK, body = Page<Trigger>),
    (status = BAD_REQUEST, body = Problem),
    (status = NOT_FOUND, body = Problem),
))]
async fn triggers(
    by: Authenticated<auth::Read>,
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(input): Query<ListTriggers>,
) -> Result<Json<Page<Trigger>>, ApiError> {
    tasks::find(&api, &by.caller, &name).await?;
    let limit = runs::page_limit(input.limit)?;
    load_triggers(&api, &name, input.cursor.as_deref(), limit)
        .await
        .map(Json)
}

/// Returns a page of the triggers of a task.
pub(crate) async fn load_triggers(
    api: &Api,
    task: &str,
    cursor: Option<&str>,
    limit: u32,
) -> Result<Page<Trigger>, ApiError> {
    let store = &api.app.store;
    let (rows, next) = store.triggers_of_task(task, cursor, limit).await?;
    let items = rows.into_iter().map(|row| trigger_to_api(task, row));
    Ok(Page {
        items: items.collect(),
        next,
    })
}

fn trigger_to_api(task: &str, row: TriggerRow) -> Trigger {
    let action = match (&row.run, row.joined) {
        (Some(_), false) => DecisionAction::RunStarted,
        (Some(_), true) => DecisionAction::ExistingRun,
        (None, _) => DecisionAction::Ignored,
    };
    let firing = row.timer.zip(row.scheduled_at).map(|(timer, at)| Firing {
        timer,
        scheduled_at: timestamp(at),
        firing_count: row.stands_for.unwrap_or(1),
    });
    Trigger {
        id: row.id,
        kind: row.kind,
        received_at: timestamp(row.received_at),
        delivery: row.delivery,
        state: state_name(&row.run),
        decision: Decision {
            task: task.to_owned(),
            action,
            run: row.run.map(|(run, _)| run),
            reason: row.ignored.or(row.detail).unwrap_or_default(),
        },
        firing,
    }
}

#[cfg(test)]
#[path = "timers_tests.rs"]
mod tests;
