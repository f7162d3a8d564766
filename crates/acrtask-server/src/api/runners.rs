//! Runners, and their registration tokens.

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
    auth::{self, Authenticated, Caller},
    runners::{MAX_SLOTS, RunnerGrant},
    scheduler::assignment::Profile,
    validate::Problems,
};

/// Default lifetime of a registration token, in seconds.
const DEFAULT_TTL: u64 = 3600;
/// Longest lifetime of a registration token, in seconds: 30 days.
const MAX_TTL: u64 = 30 * 24 * 3600;
/// Default slot limit of a registration token.
const DEFAULT_MAX_SLOTS: u32 = 16;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(show, remove))
        .routes(routes!(drain))
        .routes(routes!(resume))
        .routes(routes!(create_token))
}

/// A runner, and the profile that decides which runs it may execute.
#[derive(Debug, Clone)]
pub(crate) struct RunnerView {
    pub(crate) runner: Runner,
    pub(crate) profile: Arc<Profile>,
}

/// Returns all runners. A runner of this server is online while it is connected. A runner of
/// another server is online until a lease time after its last contact.
pub(super) async fn load_runners(app: &App) -> Result<Vec<RunnerView>, StoreError> {
    let rows = app.store.runners().await?;
    Ok(rows
        .into_iter()
        .map(|row| RunnerView::new(to_api(app, row)))
        .collect())
}

fn to_api(app: &App, row: RunnerRow) -> Runner {
    let here = app.hub.runner(&row.id);
    let silence = row
        .last_seen_at
        .map(|seen| Duration::from_millis(u64::try_from(app.clock.now_ms() - seen).unwrap_or(0)));
    // A runner of this server without a connection is offline, regardless of its last contact.
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
        .ok_or_else(|| runner_not_found(name))
}

fn runner_not_found(name: &str) -> ApiError {
    ApiError::not_found(format!("the runner `{name}` does not exist"))
}

/// Returns `true` if the caller's tasks may use the runner: its pool and its registration allow it.
fn may_see(caller: &Caller, view: &RunnerView) -> bool {
    caller.may_use_pool(&view.runner.pool) && view.profile.tasks.overlaps(&caller.limit)
}

/// Lists the registered runners. A token with a task limit sees only runners that its tasks may
/// use.
#[utoipa::path(get, path = "/runners", tag = "runners", security(("token" = ["read"])), responses(
    (status = OK, body = Vec<Runner>),
))]
async fn list(
    by: Authenticated<auth::Read>,
    State(api): State<Api>,
) -> Result<Json<Vec<Runner>>, ApiError> {
    load_visible(&api.app, &by.caller).await.map(Json)
}

/// Returns the runners that the caller may see.
pub(crate) async fn load_visible(app: &App, caller: &Caller) -> Result<Vec<Runner>, ApiError> {
    let mut views = load_runners(app).await?;
    views.retain(|view| may_see(caller, view));
    Ok(views.into_iter().map(|view| view.runner).collect())
}

/// Returns a runner. For a token with a task limit, runners that its tasks may not use do not
/// exist.
#[utoipa::path(get, path = "/runners/{name}", tag = "runners", params(("name" = String, Path, description = "Name of the runner.")),
    security(("token" = ["read"])), responses((status = OK, body = Runner), (status = NOT_FOUND, body = Problem)))]
async fn show(
    by: Authenticated<auth::Read>,
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Json<Runner>, ApiError> {
    let row = find(&api, &name).await?;
    let view = RunnerView::new(to_api(&api.app, row));
    if !may_see(&by.caller, &view) {
        return Err(runner_not_found(&name));
    }
    Ok(Json(view.runner))
}

/// Removes a runner: its key is revoked and its name is free. Its runs return to the queue.
#[utoipa::path(delete, path = "/runners/{name}", tag = "runners", params(("name" = String, Path, description = "Name of the runner.")),
    security(("token" = ["admin"])), responses((status = NO_CONTENT), (status = NOT_FOUND, body = Problem)))]
async fn remove(
    by: Authenticated<auth::Admin>,
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    let app = &api.app;
    let row = find(&api, &name).await?;
    app.store.remove_runner(&row.id, app.clock.now_ms()).await?;
    app.hub.end_connection(&row.id, "the runner was removed");
    tracing::info!(runner = name, by = by.caller.name, "removed a runner");
    Ok(StatusCode::NO_CONTENT)
}

/// Drains a runner: it completes its runs and gets no new ones.
#[utoipa::path(post, path = "/runners/{name}/drain", tag = "runners", params(("name" = String, Path, description = "Name of the runner.")),
    security(("token" = ["admin"])), responses((status = OK, body = Runner), (status = NOT_FOUND, body = Problem)))]
async fn drain(
    by: Authenticated<auth::Admin>,
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Json<Runner>, ApiError> {
    set_draining(&api, &by.caller, &name, true).await
}

/// Resumes a drained runner.
#[utoipa::path(post, path = "/runners/{name}/resume", tag = "runners", params(("name" = String, Path, description = "Name of the runner.")),
    security(("token" = ["admin"])), responses((status = OK, body = Runner), (status = NOT_FOUND, body = Problem)))]
async fn resume(
    by: Authenticated<auth::Admin>,
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Json<Runner>, ApiError> {
    set_draining(&api, &by.caller, &name, false).await
}

async fn set_draining(
    api: &Api,
    caller: &Caller,
    name: &str,
    draining: bool,
) -> Result<Json<Runner>, ApiError> {
    let app = &api.app;
    let row = find(api, name).await?;
    app.store.set_draining(&row.id, draining).await?;
    tracing::info!(
        runner = name,
        draining,
        by = caller.name,
        "drained or resumed a runner"
    );
    app.hub.set_draining(&row.id, draining);
    app.wake.notify_one();
    let row = find(api, name).await?;
    Ok(Json(to_api(app, row)))
}

/// Creates a token that registers one runner, once. The token fixes the pool, labels, slots and
/// tasks of the runner. Other settings of the runner are refused.
#[utoipa::path(post, path = "/runner-tokens", tag = "runners", request_body = Option<CreateRunnerToken>,
    security(("token" = ["admin"])), responses(
    (status = CREATED, body = RunnerToken),
    (status = BAD_REQUEST, body = Problem),
))]
async fn create_token(
    by: Authenticated<auth::Admin>,
    State(api): State<Api>,
    OptionalJson(input): OptionalJson<CreateRunnerToken>,
) -> Result<(StatusCode, Json<RunnerToken>), ApiError> {
    let mut problems = Problems::default();
    if let Some(pool) = &input.pool
        && let Err(reason) = crate::validate::check_word(pool)
    {
        problems.add(format!("`pool`: {reason}"));
    }
    crate::validate::check_labels("labels", &input.labels, &mut problems);
    let max_slots = input.max_slots.unwrap_or(DEFAULT_MAX_SLOTS);
    if !(1..=MAX_SLOTS).contains(&max_slots) {
        problems.add(format!("`maxSlots` must be 1 to {MAX_SLOTS}"));
    }
    if let Some(tasks) = &input.tasks {
        super::tokens::check_pattern(tasks, &mut problems);
    }
    let ttl = input.ttl_secs.unwrap_or(DEFAULT_TTL);
    if !(1..=MAX_TTL).contains(&ttl) {
        problems.add("`ttlSecs` must be 1 second to 30 days");
    }
    problems.into_result()?;
    let app = &api.app;
    let now = app.clock.now_ms();
    let ttl = Duration::from_secs(ttl);
    let expires_at = now + i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
    let grant = RunnerGrant {
        pool: input.pool,
        labels: input.labels,
        max_slots: Some(max_slots),
        tasks: input.tasks,
    };
    let secret = crate::runners::new_runner_token(app, grant, ttl).await?;
    tracing::info!(
        by = by.caller.name,
        "created a registration token for a runner"
    );
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
