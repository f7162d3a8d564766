//! Runners, and the tokens that register them.

use std::{sync::Arc, time::Duration};

use acrtask_api::{
    admin::{CreateRunnerToken, Problem, Runner, RunnerState, RunnerToken},
    run::SecretText,
};
use acrtask_store::{RunnerRow, StoreError};
use axum::{extract::State, http::StatusCode};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api, ApiError,
    extract::{Json, OptionalJson, Path},
};
use crate::{
    App,
    auth::{self, By, Caller},
    runners::{MOST_SLOTS, RunnerGrant},
    scheduler::place::Profile,
    submit::Problems,
};

/// Seconds that a registration token holds for where nothing is said.
const DEFAULT_TTL: u64 = 3600;
/// The longest, in seconds: a month.
const MAX_TTL: u64 = 30 * 24 * 3600;
/// Slots of a runner whose token names no limit.
const DEFAULT_MAX_SLOTS: u32 = 16;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(show, remove))
        .routes(routes!(drain))
        .routes(routes!(resume))
        .routes(routes!(create_token))
}

/// A runner, and what decides which runs it may take.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) runner: Runner,
    pub(crate) profile: Arc<Profile>,
}

/// All runners. Whether one is online is known of those that are connected here; of others, by when they were heard of.
pub(super) async fn seen(app: &App) -> Result<Vec<Seen>, StoreError> {
    let rows = app.store.runners().await?;
    Ok(rows
        .into_iter()
        .map(|row| Seen::new(to_api(app, row)))
        .collect())
}

fn to_api(app: &App, row: RunnerRow) -> Runner {
    let here = app.hub.runner(&row.id);
    let silence = row
        .last_seen_at
        .map(|seen| Duration::from_millis(u64::try_from(app.clock.now_ms() - seen).unwrap_or(0)));
    // A runner of this server that is not connected to it is offline, whatever was heard of it.
    let elsewhere = row
        .server_id
        .as_ref()
        .is_some_and(|server| *server != app.config.server_id);
    let online =
        here.is_some() || (elsewhere && silence.is_some_and(|silence| silence < app.config.lease));
    let draining = row.draining || here.as_ref().is_some_and(|here| here.draining);
    Runner {
        state: match (online, draining) {
            (false, _) => RunnerState::Offline,
            (true, true) => RunnerState::Draining,
            (true, false) => RunnerState::Online,
        },
        busy: here
            .as_ref()
            .map_or(row.busy, |here| here.busy.max(row.busy)),
        free_disk: here.as_ref().map_or(row.free_disk, |here| here.free_disk),
        id: row.id,
        name: row.name,
        pool: row.pool,
        labels: row.labels,
        platforms: row.platforms,
        slots: row.slots,
        tasks: row.tasks,
        features: row.features,
        version: row.version,
        last_seen_at: row.last_seen_at.map(acrtask_store::timestamp),
    }
}

async fn find(api: &Api, name: &str) -> Result<RunnerRow, ApiError> {
    api.app
        .store
        .runner_by_name(name)
        .await?
        .ok_or_else(|| missing(name))
}

fn missing(name: &str) -> ApiError {
    ApiError::not_found(format!("there is no runner `{name}`"))
}

/// Returns `true` if the caller's tasks may run there: the pool and the registration of the runner allow it.
fn sees(caller: &Caller, seen: &Seen) -> bool {
    caller.may_use_pool(&seen.runner.pool) && seen.profile.tasks.overlaps(&caller.limit)
}

/// Lists the registered runners. A token with a limit sees those that its tasks may use.
#[utoipa::path(get, path = "/runners", tag = "runners", security(("token" = ["read"])), responses(
    (status = OK, body = Vec<Runner>),
))]
async fn list(by: By<auth::Read>, State(api): State<Api>) -> Result<Json<Vec<Runner>>, ApiError> {
    let mut seen = seen(&api.app).await?;
    seen.retain(|seen| sees(&by.caller, seen));
    Ok(Json(seen.into_iter().map(|seen| seen.runner).collect()))
}

/// Shows a runner. For a token with a limit, runners that its tasks may not use do not exist.
#[utoipa::path(get, path = "/runners/{name}", tag = "runners", params(("name" = String, Path, description = "Its name.")),
    security(("token" = ["read"])), responses((status = OK, body = Runner), (status = NOT_FOUND, body = Problem)))]
async fn show(
    by: By<auth::Read>,
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Json<Runner>, ApiError> {
    let row = find(&api, &name).await?;
    let seen = Seen::new(to_api(&api.app, row));
    if !sees(&by.caller, &seen) {
        return Err(missing(&name));
    }
    Ok(Json(seen.runner))
}

/// Removes a runner: its key is worth nothing from now on, and its name is free. What it holds goes to others.
#[utoipa::path(delete, path = "/runners/{name}", tag = "runners", params(("name" = String, Path, description = "Its name.")),
    security(("token" = ["admin"])), responses((status = NO_CONTENT), (status = NOT_FOUND, body = Problem)))]
async fn remove(
    by: By<auth::Admin>,
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    let app = &api.app;
    let row = find(&api, &name).await?;
    app.store.remove_runner(&row.id, app.clock.now_ms()).await?;
    app.hub.end(&row.id, "the runner was removed");
    tracing::info!(runner = name, by = by.caller.name, "a runner was removed");
    Ok(StatusCode::NO_CONTENT)
}

/// Lets a runner finish what it holds and gives it nothing new.
#[utoipa::path(post, path = "/runners/{name}/drain", tag = "runners", params(("name" = String, Path, description = "Its name.")),
    security(("token" = ["admin"])), responses((status = OK, body = Runner), (status = NOT_FOUND, body = Problem)))]
async fn drain(
    _by: By<auth::Admin>,
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Json<Runner>, ApiError> {
    set_draining(&api, &name, true).await
}

/// Gives a runner runs again.
#[utoipa::path(post, path = "/runners/{name}/resume", tag = "runners", params(("name" = String, Path, description = "Its name.")),
    security(("token" = ["admin"])), responses((status = OK, body = Runner), (status = NOT_FOUND, body = Problem)))]
async fn resume(
    _by: By<auth::Admin>,
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Json<Runner>, ApiError> {
    set_draining(&api, &name, false).await
}

async fn set_draining(api: &Api, name: &str, draining: bool) -> Result<Json<Runner>, ApiError> {
    let app = &api.app;
    let row = find(api, name).await?;
    app.store.set_draining(&row.id, draining).await?;
    app.hub.set_draining(&row.id, draining);
    app.wake.notify_one();
    let row = find(api, name).await?;
    Ok(Json(to_api(app, row)))
}

/// Makes a token that registers one runner, once. It fixes the pool, the labels, the slots and the tasks of the runner:
/// what the runner itself says beyond that is refused.
#[utoipa::path(post, path = "/runner-tokens", tag = "runners", request_body = Option<CreateRunnerToken>,
    security(("token" = ["admin"])), responses(
    (status = CREATED, body = RunnerToken),
    (status = BAD_REQUEST, body = Problem),
))]
async fn create_token(
    by: By<auth::Admin>,
    State(api): State<Api>,
    OptionalJson(asked): OptionalJson<CreateRunnerToken>,
) -> Result<(StatusCode, Json<RunnerToken>), ApiError> {
    let mut problems = Problems::default();
    if let Some(pool) = &asked.pool
        && let Err(reason) = crate::submit::word(pool)
    {
        problems.add(format!("`pool`: {reason}"));
    }
    crate::submit::check_labels("labels", &asked.labels, &mut problems);
    let max_slots = asked.max_slots.unwrap_or(DEFAULT_MAX_SLOTS);
    if !(1..=MOST_SLOTS).contains(&max_slots) {
        problems.add(format!("`maxSlots` must be 1 to {MOST_SLOTS}"));
    }
    if let Some(tasks) = &asked.tasks {
        super::tokens::check_pattern(tasks, &mut problems);
    }
    let ttl = asked.ttl_secs.unwrap_or(DEFAULT_TTL);
    if !(1..=MAX_TTL).contains(&ttl) {
        problems.add("`ttlSecs` must be a second to 30 days");
    }
    problems.into_result()?;
    let app = &api.app;
    let now = app.clock.now_ms();
    let ttl = Duration::from_secs(ttl);
    let expires_at = now + i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
    let grant = RunnerGrant {
        pool: asked.pool,
        labels: asked.labels,
        max_slots: Some(max_slots),
        tasks: asked.tasks,
    };
    let secret = crate::runners::new_runner_token(app, grant, ttl).await?;
    tracing::info!(by = by.caller.name, "a token for a runner was made");
    Ok((
        StatusCode::CREATED,
        Json(RunnerToken {
            secret: SecretText(secret.expose().to_owned()),
            expires_at: acrtask_store::timestamp(expires_at),
        }),
    ))
}

#[cfg(test)]
#[path = "runners_tests.rs"]
mod tests;
