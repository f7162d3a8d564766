//! Secrets: set, listed by name, removed. A value goes in and never comes out.

use acrtask_api::forms::SecretName;
use std::collections::HashMap;

use acrtask_api::admin::{Problem, PutSecret, Secret};
use acrtask_store::TaskFilter;
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
    auth::{self, By, Caller},
    submit::{self, Problems},
};

/// Tasks that are read at once to find their names.
const TASKS: u32 = 1000;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(put, delete))
}

/// What belongs to a task alone.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct OfTask {
    /// That of the task with this name alone.
    pub(super) task: Option<String>,
}

/// The scope in the store of what belongs to a task, or to all, for somebody who wants to change it.
pub(super) async fn scope_of(
    api: &Api,
    caller: &Caller,
    task: Option<&str>,
) -> Result<String, ApiError> {
    caller.need_task(task)?;
    match task {
        None => Ok(String::new()),
        Some(name) => match tasks::find(api, caller, name).await {
            Ok(task) => Ok(task.id),
            Err(error) if error.status() == StatusCode::NOT_FOUND => Err(error.help(
                "make the task first; it may name secrets that are not stored yet. Without a task, it is for all tasks",
            )),
            Err(error) => Err(error),
        },
    }
}

/// The names of tasks by their ids, of those that the caller may see.
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
                limit: TASKS,
                ..TaskFilter::default()
            })
            .await?;
        let full = page.len() >= TASKS as usize;
        for task in page {
            after = Some(task.definition.name.clone());
            names.insert(task.id, task.definition.name);
        }
        if !full {
            return Ok(names);
        }
    }
}

/// The names of secrets.
#[utoipa::path(get, path = "/secrets", tag = "secrets", params(OfTask), security(("token" = ["read"])), responses(
    (status = OK, body = Vec<Secret>),
    (status = NOT_FOUND, body = Problem, description = "There is no such task."),
))]
async fn list(
    by: By<auth::Read>,
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
        caller.sees(task.as_deref()).then(|| Secret {
            name: row.name,
            task,
            updated_at: acrtask_store::timestamp(row.updated_at),
        })
    });
    Ok(Json(seen.collect()))
}

/// Sets a secret. The value is never shown again.
#[utoipa::path(put, path = "/secrets/{name}", tag = "secrets", request_body = PutSecret,
    params(("name" = SecretName, Path, description = "The secret's name.")),
    security(("token" = ["write"])), responses(
    (status = OK, body = Secret),
    (status = BAD_REQUEST, body = Problem),
    (status = NOT_FOUND, body = Problem, description = "There is no such task."),
))]
async fn put(
    by: By<auth::Write>,
    State(api): State<Api>,
    Path(name): Path<String>,
    Json(asked): Json<PutSecret>,
) -> Result<Json<Secret>, ApiError> {
    let scope = scope_of(&api, &by.caller, asked.task.as_deref()).await?;
    submit::secret_name(&name).map_err(ApiError::invalid)?;
    let mut problems = Problems::default();
    submit::check_value("value", &asked.value.0, &mut problems);
    problems.into_result()?;
    let app = &api.app;
    let now = app.clock.now_ms();
    let sealed = app
        .vault
        .seal(&submit::secret_aad(&scope, &name), asked.value.0.as_bytes());
    app.store.put_secret(&scope, &name, &sealed, now).await?;
    tracing::info!(
        secret = name,
        task = asked.task,
        by = by.caller.name,
        "a secret was set"
    );
    Ok(Json(Secret {
        name,
        task: asked.task,
        updated_at: acrtask_store::timestamp(now),
    }))
}

/// Removes a secret. A run that needs it and has not been handed out yet will end with an error.
#[utoipa::path(delete, path = "/secrets/{name}", tag = "secrets",
    params(("name" = String, Path, description = "The secret's name."), OfTask),
    security(("token" = ["write"])), responses((status = NO_CONTENT), (status = NOT_FOUND, body = Problem)))]
async fn delete(
    by: By<auth::Write>,
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(of): Query<OfTask>,
) -> Result<StatusCode, ApiError> {
    let scope = scope_of(&api, &by.caller, of.task.as_deref()).await?;
    api.app.store.delete_secret(&scope, &name).await?;
    tracing::info!(
        secret = name,
        task = of.task,
        by = by.caller.name,
        "a secret was removed"
    );
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
#[path = "secrets_tests.rs"]
mod tests;
