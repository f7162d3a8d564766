//! Probes of a task: whether the server reaches the hosts that the task needs, with the logins of
//! its runs.

use acrtask_api::{admin::Problem, probe::TaskProbe};
use axum::extract::State;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api, ApiError,
    extract::{Json, Path},
    tasks,
};
use crate::{
    auth::{self, Authenticated},
    probe::probe_task,
};

/// `Retry-After` in seconds if too many probes run at once.
const RETRY_AFTER_SECS: u32 = 5;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(probe))
}

/// Checks that the server can read the task's repository and that the logins of its runs are valid.
/// Compares the clocks of these hosts with its own.
///
/// The server connects to these hosts with the stored logins, like a run. No response contains a
/// login, and nothing is changed.
#[utoipa::path(post, path = "/tasks/{name}/probe", tag = "tasks", params(("name" = String, Path, description = "Name of the task.")),
    security(("token" = ["run"])), responses(
    (status = OK, body = TaskProbe),
    (status = NOT_FOUND, body = Problem),
    (status = TOO_MANY_REQUESTS, body = Problem, description = "The server runs too many probes."),
))]
async fn probe(
    by: Authenticated<auth::Run>,
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Json<TaskProbe>, ApiError> {
    let caller = &by.caller;
    let task = tasks::find(&api, caller, &name).await?;
    if caller.tasks.is_some() {
        let taken = api.app.probe_turns.take_turn(&caller.token_id);
        taken.map_err(|seconds| {
            ApiError::too_many("this token has just started a probe", seconds)
        })?;
    }
    let Ok(_turn) = api.app.probes.try_acquire() else {
        return Err(ApiError::too_many(
            "the server runs probes of other tasks",
            RETRY_AFTER_SECS,
        ));
    };
    Ok(Json(
        probe_task(&api.app, &task, caller.may_see(None)).await?,
    ))
}

#[cfg(test)]
#[path = "probes_tests.rs"]
mod tests;
