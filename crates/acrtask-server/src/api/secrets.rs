//! Secrets: set, list and delete. No operation returns a value.

use acrtask_api::forms::SecretName;
use std::collections::HashMap;

use acrtask_api::{
    admin::{Problem, PutSecret, Secret},
    run::SecretText,
};
use acrtask_store::{Ms, StoreError, TaskFilter};
use axum::{extract::State, http::StatusCode};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api, ApiError,
    extract::{Json, Path, Query},
    tasks,
};
use crate::{
    App,
    auth::{self, Authenticated, Caller},
    run_factory,
    validate::{self, Problems},
};

/// Tasks that one query reads to find their names.
const TASKS_PER_QUERY: u32 = 1000;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(put, delete))
}

/// Restriction to resources of one task.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct OfTask {
    /// Lists or changes only the resource of this task. By default those of all tasks.
    pub(super) task: Option<String>,
}

/// Returns the scope in the store for a task, or for all tasks. Refuses a caller that may not
/// change it.
pub(super) async fn require_scope_of(
    api: &Api,
    caller: &Caller,
    task: Option<&str>,
) -> Result<String, ApiError> {
    caller.require_task(task)?;
    match task {
        None => Ok(String::new()),
        Some(name) => match tasks::find(api, caller, name).await {
            Ok(task) => Ok(task.id),
            Err(error) if error.status() == StatusCode::NOT_FOUND => Err(error.help(
                "create the task first: it may name secrets that do not exist yet. Without `task`, this applies to all tasks",
            )),
            Err(error) => Err(error),
        },
    }
}

/// Returns the names of all tasks that the caller may see, by id.
pub(super) async fn task_names(
    api: &Api,
    caller: &Caller,
) -> Result<HashMap<String, String>, ApiError> {
    let mut names = HashMap::new();
    let mut after = None;
    loop {
        let page = api
            .app
            .store
            .tasks(TaskFilter {
                pattern: caller.tasks.clone(),
                after: after.take(),
                limit: TASKS_PER_QUERY,
                ..TaskFilter::default()
            })
            .await?;
        let full = page.len() >= TASKS_PER_QUERY as usize;
        for task in page {
            after = Some(task.definition.name.clone());
            names.insert(task.id, task.definition.name);
        }
        if !full {
            return Ok(names);
        }
    }
}

/// Lists the names of secrets.
#[utoipa::path(get, path = "/secrets", tag = "secrets", params(OfTask), security(("token" = ["read"])), responses(
    (status = OK, body = Vec<Secret>),
    (status = NOT_FOUND, body = Problem, description = "The task does not exist."),
))]
async fn list(
    by: Authenticated<auth::Read>,
    State(api): State<Api>,
    Query(of): Query<OfTask>,
) -> Result<Json<Vec<Secret>>, ApiError> {
    let caller = &by.caller;
    let scope = match &of.task {
        Some(name) => Some(tasks::find(&api, caller, name).await?.id),
        None => None,
    };
    let rows = api.app.store.secrets(scope.as_deref()).await?;
    let names = if rows.iter().any(|row| !row.scope.is_empty()) {
        task_names(&api, caller).await?
    } else {
        HashMap::new()
    };
    let seen = rows.into_iter().filter_map(|row| {
        let task = match row.scope.as_str() {
            "" => None,
            id => Some(names.get(id)?.clone()),
        };
        caller.may_see(task.as_deref()).then(|| Secret {
            name: row.name,
            task,
            updated_at: acrtask_store::timestamp(row.updated_at),
        })
    });
    Ok(Json(seen.collect()))
}

/// Sets a secret. No operation returns its value.
#[utoipa::path(put, path = "/secrets/{name}", tag = "secrets", request_body = PutSecret,
    params(("name" = SecretName, Path, description = "Name of the secret.")),
    security(("token" = ["write"])), responses(
    (status = OK, body = Secret),
    (status = BAD_REQUEST, body = Problem),
    (status = NOT_FOUND, body = Problem, description = "The task does not exist."),
))]
async fn put(
    by: Authenticated<auth::Write>,
    State(api): State<Api>,
    Path(name): Path<String>,
    Json(input): Json<PutSecret>,
) -> Result<Json<Secret>, ApiError> {
    let scope = require_scope_of(&api, &by.caller, input.task.as_deref()).await?;
    validate::check_secret_name(&name).map_err(ApiError::invalid)?;
    let mut problems = Problems::default();
    validate::check_value("value", &input.value.0, &mut problems);
    problems.into_result()?;
    let now = store_secret(&api.app, &scope, &name, &input.value).await?;
    tracing::info!(
        secret = name,
        task = input.task,
        by = by.caller.name,
        "set a secret"
    );
    Ok(Json(Secret {
        name,
        task: input.task,
        updated_at: acrtask_store::timestamp(now),
    }))
}

/// Encrypts and stores a checked secret of a scope. Returns the time of the change.
pub(crate) async fn store_secret(
    app: &App,
    scope: &str,
    name: &str,
    value: &SecretText,
) -> Result<Ms, StoreError> {
    let now = app.clock.now_ms();
    let aad = run_factory::secret_aad(scope, name);
    let sealed = app.vault.seal(&aad, value.0.as_bytes());
    app.store.put_secret(scope, name, &sealed, now).await?;
    Ok(now)
}

/// Deletes a secret. A queued run that needs it will end with an error.
#[utoipa::path(delete, path = "/secrets/{name}", tag = "secrets",
    params(("name" = String, Path, description = "Name of the secret."), OfTask),
    security(("token" = ["write"])), responses((status = NO_CONTENT), (status = NOT_FOUND, body = Problem)))]
async fn delete(
    by: Authenticated<auth::Write>,
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(of): Query<OfTask>,
) -> Result<StatusCode, ApiError> {
    let scope = require_scope_of(&api, &by.caller, of.task.as_deref()).await?;
    api.app.store.delete_secret(&scope, &name).await?;
    tracing::info!(
        secret = name,
        task = of.task,
        by = by.caller.name,
        "deleted a secret"
    );
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
#[path = "secrets_tests.rs"]
mod tests;
