//! Whether the server reaches what a task needs elsewhere, with the logins that its runs are given.

use acrtask_api::{admin::Problem, probe::TaskProbe};
use axum::extract::State;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api, ApiError,
    extract::{Json, Path},
    tasks,
};
use crate::{
    auth::{self, By},
    probe::look,
};

/// Seconds after which to ask again, where too many ask at once.
const AGAIN: u32 = 5;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(probe))
}

/// Looks whether the server may read the task's repository, whether the logins that runs of the task are given hold, and
/// how the clocks there differ from its own.
///
/// It connects to these hosts with the stored logins, as a run does; no answer holds one. Nothing is changed.
#[utoipa::path(post, path = "/tasks/{name}/probe", tag = "tasks", params(("name" = String, Path, description = "The task's name.")),
    security(("token" = ["run"])), responses(
    (status = OK, body = TaskProbe),
    (status = NOT_FOUND, body = Problem),
    (status = TOO_MANY_REQUESTS, body = Problem, description = "The server is looking for others."),
))]
async fn probe(
    by: By<auth::Run>,
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Json<TaskProbe>, ApiError> {
    let caller = &by.caller;
    let task = tasks::find(&api, caller, &name).await?;
    if caller.tasks.is_some() {
        let taken = api.app.probe_turns.take(&caller.token_id);
        taken.map_err(|seconds| {
            ApiError::too_many("this token has just let the server look at hosts", seconds)
        })?;
    }
    let Ok(_turn) = api.app.probes.try_acquire() else {
        return Err(ApiError::too_many(
            "the server is looking at the hosts of other tasks",
            AGAIN,
        ));
    };
    Ok(Json(look(&api.app, &task, caller.sees(None)).await?))
}

#[cfg(test)]
#[path = "probes_tests.rs"]
mod tests;
