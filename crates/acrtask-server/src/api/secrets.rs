//! Secrets: set, list and delete. No operation returns a value.

use acrtask_api::forms::{SecretName, TaskPrefix};
use std::collections::HashMap;

use acrtask_api::{
    admin::{Problem, PutSecret, Secret},
    run::SecretText,
};
use acrtask_model::{TaskPattern, TaskScope, trust::TaskPatternError};
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
/// Longest `tasks`, in characters.
const MAX_PREFIX: usize = 200;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(put, delete))
}

/// Restriction to resources of one task, or of one prefix of tasks.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct OfTasks {
    /// Lists or changes only the resource of this task. By default, lists those of all scopes, and
    /// changes that of all tasks.
    pub(super) task: Option<String>,
    /// Lists or changes only the resource of this prefix, followed by `*`. Excludes `task`.
    #[param(value_type = Option<TaskPrefix>)]
    pub(super) tasks: Option<String>,
}

/// Parses `tasks`: a prefix followed by `*`.
pub(super) fn parse_prefix(text: &str) -> Result<TaskPattern, ApiError> {
    let problem = |reason: String| ApiError::invalid(format!("`tasks`: {reason}"));
    if text.len() > MAX_PREFIX {
        return Err(problem(format!("at most {MAX_PREFIX} characters")));
    }
    if text == "*" {
        let reason = "leave it out instead of `*`: by default this applies to all tasks";
        return Err(problem(reason.to_owned()));
    }
    text.parse()
        .map_err(|error: TaskPatternError| problem(error.to_string()))
}

/// Finds the scope that a request names. Refuses a caller that may not change it.
pub(super) async fn require_scope_of(
    api: &Api,
    caller: &Caller,
    task: Option<&str>,
    tasks: Option<&str>,
) -> Result<TaskScope, ApiError> {
    let pattern = tasks.map(parse_prefix).transpose()?;
    match (task, pattern) {
        (Some(_), Some(_)) => Err(ApiError::unprocessable(
            "`task` and `tasks` exclude each other: leave out one of them",
        )),
        (None, Some(pattern)) => {
            caller.require_pattern(&pattern)?;
            Ok(TaskScope::Prefix(pattern))
        }
        (None, None) => {
            caller.require_task(None)?;
            Ok(TaskScope::All)
        }
        (Some(name), None) => {
            caller.require_task(Some(name))?;
            match tasks::find(api, caller, name).await {
                Ok(task) => Ok(TaskScope::Task(task.id)),
                Err(error) if error.status() == StatusCode::NOT_FOUND => Err(error.help(
                    "create the task first: it may name secrets that do not exist yet. Without `task`, this applies to all tasks",
                )),
                Err(error) => Err(error),
            }
        }
    }
}

/// Returns the key of the scope whose resources a list contains. `None` if it contains those of all
/// scopes.
pub(super) async fn listed_scope(
    api: &Api,
    caller: &Caller,
    of: &OfTasks,
) -> Result<Option<String>, ApiError> {
    match (&of.task, &of.tasks) {
        (Some(_), Some(_)) => Err(ApiError::unprocessable(
            "`task` and `tasks` exclude each other: leave out one of them",
        )),
        (Some(name), None) => Ok(Some(tasks::find(api, caller, name).await?.id)),
        (None, Some(tasks)) => Ok(Some(parse_prefix(tasks)?.to_string())),
        (None, None) => Ok(None),
    }
}

/// Scopes of stored secrets and logins, as a caller sees them.
pub(super) struct VisibleScopes<'c> {
    caller: &'c Caller,
    /// Names of tasks by id.
    names: HashMap<String, String>,
}

impl<'c> VisibleScopes<'c> {
    /// Reads the names of tasks, if one of the scopes is that of a task.
    pub(super) async fn load<'k>(
        api: &Api,
        caller: &'c Caller,
        keys: impl Iterator<Item = &'k str>,
    ) -> Result<Self, ApiError> {
        let mut scopes = keys.map(TaskScope::parse);
        let names = if scopes.any(|scope| matches!(scope, TaskScope::Task(_))) {
            task_names(api, caller).await?
        } else {
            HashMap::new()
        };
        Ok(Self { caller, names })
    }

    /// Returns `task` and `tasks` of a scope. `None` if the caller does not see it.
    pub(super) fn describe(&self, key: &str) -> Option<(Option<String>, Option<String>)> {
        match TaskScope::parse(key) {
            TaskScope::All => self.caller.may_see(None).then_some((None, None)),
            TaskScope::Prefix(pattern) => {
                let visible = self.caller.limit.includes(&pattern);
                visible.then(|| (None, Some(pattern.to_string())))
            }
            TaskScope::Task(id) => Some((Some(self.names.get(&id)?.clone()), None)),
        }
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
#[utoipa::path(get, path = "/secrets", tag = "secrets", params(OfTasks), security(("token" = ["read"])), responses(
    (status = OK, body = Vec<Secret>),
    (status = BAD_REQUEST, body = Problem, description = "`tasks` is not a prefix."),
    (status = NOT_FOUND, body = Problem, description = "The task does not exist."),
))]
async fn list(
    by: Authenticated<auth::Read>,
    State(api): State<Api>,
    Query(of): Query<OfTasks>,
) -> Result<Json<Vec<Secret>>, ApiError> {
    let caller = &by.caller;
    let scope = listed_scope(&api, caller, &of).await?;
    let rows = api.app.store.secrets(scope.as_deref()).await?;
    let keys = rows.iter().map(|row| row.scope.as_str());
    let visible = VisibleScopes::load(&api, caller, keys).await?;
    let seen = rows.into_iter().filter_map(|row| {
        let (task, tasks) = visible.describe(&row.scope)?;
        Some(Secret {
            name: row.name,
            task,
            tasks,
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
    let (task, tasks) = (input.task.as_deref(), input.tasks.as_deref());
    let scope = require_scope_of(&api, &by.caller, task, tasks).await?.key();
    validate::check_secret_name(&name).map_err(ApiError::invalid)?;
    let mut problems = Problems::default();
    validate::check_value("value", &input.value.0, &mut problems);
    problems.into_result()?;
    let limit = by.caller.tasks.as_deref();
    let now = store_secret(&api.app, &scope, &name, &input.value, limit).await?;
    tracing::info!(
        secret = name,
        task,
        tasks,
        by = by.caller.name,
        "set a secret"
    );
    Ok(Json(Secret {
        name,
        task: input.task,
        tasks: input.tasks,
        updated_at: acrtask_store::timestamp(now),
    }))
}

/// Encrypts and stores a checked secret of a scope. `limit` is the task limit of the caller.
/// Returns the time of the change.
pub(crate) async fn store_secret(
    app: &App,
    scope: &str,
    name: &str,
    value: &SecretText,
    limit: Option<&str>,
) -> Result<Ms, StoreError> {
    let now = app.clock.now_ms();
    let aad = run_factory::secret_aad(scope, name);
    let sealed = app.vault.seal(&aad, value.0.as_bytes());
    app.store
        .put_secret(scope, name, &sealed, limit, now)
        .await?;
    Ok(now)
}

/// Deletes a secret. A queued run that needs it will end with an error.
#[utoipa::path(delete, path = "/secrets/{name}", tag = "secrets",
    params(("name" = String, Path, description = "Name of the secret."), OfTasks),
    security(("token" = ["write"])), responses((status = NO_CONTENT), (status = BAD_REQUEST, body = Problem), (status = NOT_FOUND, body = Problem)))]
async fn delete(
    by: Authenticated<auth::Write>,
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(of): Query<OfTasks>,
) -> Result<StatusCode, ApiError> {
    let (task, tasks) = (of.task.as_deref(), of.tasks.as_deref());
    let scope = require_scope_of(&api, &by.caller, task, tasks).await?.key();
    api.app.store.delete_secret(&scope, &name).await?;
    tracing::info!(
        secret = name,
        task,
        tasks,
        by = by.caller.name,
        "deleted a secret"
    );
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
#[path = "secrets_tests.rs"]
mod tests;
