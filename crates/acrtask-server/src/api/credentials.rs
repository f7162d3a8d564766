//! Logins for registries and git hosts: set, listed without passwords, removed.

use acrtask_api::forms::Host;
use std::collections::HashMap;

use acrtask_api::admin::{Credential, Problem, PutCredential};
use acrtask_registry::credentials::canonical_host;
use axum::{extract::State, http::StatusCode};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api, ApiError,
    extract::{Json, Path, Query},
    secrets::{OfTask, scope_of, task_names},
    tasks,
};
use crate::{
    auth::{self, By},
    submit::{self, Problems},
};

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(put, delete))
}

/// Logins, without their passwords.
#[utoipa::path(get, path = "/credentials", tag = "credentials", params(OfTask), security(("token" = ["read"])), responses(
    (status = OK, body = Vec<Credential>),
    (status = NOT_FOUND, body = Problem, description = "There is no such task."),
))]
async fn list(
    by: By<auth::Read>,
    State(api): State<Api>,
    Query(of): Query<OfTask>,
) -> Result<Json<Vec<Credential>>, ApiError> {
    let caller = &by.caller;
    let store = &api.app.store;
    let rows = match &of.task {
        Some(name) => {
            let task = tasks::find(&api, caller, name).await?;
            store.credentials_for(&[task.id.as_str()]).await?
        }
        None => store.credentials().await?,
    };
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
        caller.sees(task.as_deref()).then(|| Credential {
            host: row.host,
            username: row.username,
            task,
            updated_at: acrtask_store::timestamp(row.updated_at),
        })
    });
    Ok(Json(seen.collect()))
}

/// Sets the login for a host. Runs are given those of their task, and those of all tasks for hosts that it has none for.
#[utoipa::path(put, path = "/credentials/{host}", tag = "credentials", request_body = PutCredential,
    params(("host" = Host, Path, description = "Host and port, as image names have them.")),
    security(("token" = ["write"])), responses(
    (status = OK, body = Credential),
    (status = BAD_REQUEST, body = Problem),
    (status = NOT_FOUND, body = Problem, description = "There is no such task."),
))]
async fn put(
    by: By<auth::Write>,
    State(api): State<Api>,
    Path(host): Path<String>,
    Json(asked): Json<PutCredential>,
) -> Result<Json<Credential>, ApiError> {
    let scope = scope_of(&api, &by.caller, asked.task.as_deref()).await?;
    submit::host_name(&host).map_err(ApiError::invalid)?;
    let password = asked.kept().map_err(ApiError::unprocessable)?;
    let mut problems = Problems::default();
    submit::check_username("username", &asked.username, &mut problems);
    submit::check_value("password", &password, &mut problems);
    problems.into_result()?;
    let host = canonical_host(&host);
    let app = &api.app;
    let now = app.clock.now_ms();
    let sealed = app
        .vault
        .seal(&submit::credential_aad(&scope, &host), password.as_bytes());
    app.store
        .put_credential(&scope, &host, &asked.username, &sealed, now)
        .await?;
    tracing::info!(
        host,
        task = asked.task,
        by = by.caller.name,
        "a login was set"
    );
    Ok(Json(Credential {
        host,
        username: asked.username,
        task: asked.task,
        updated_at: acrtask_store::timestamp(now),
    }))
}

/// Removes the login for a host.
#[utoipa::path(delete, path = "/credentials/{host}", tag = "credentials",
    params(("host" = String, Path, description = "Host and port."), OfTask),
    security(("token" = ["write"])), responses((status = NO_CONTENT), (status = NOT_FOUND, body = Problem)))]
async fn delete(
    by: By<auth::Write>,
    State(api): State<Api>,
    Path(host): Path<String>,
    Query(of): Query<OfTask>,
) -> Result<StatusCode, ApiError> {
    let scope = scope_of(&api, &by.caller, of.task.as_deref()).await?;
    let host = canonical_host(&host);
    api.app.store.delete_credential(&scope, &host).await?;
    tracing::info!(
        host,
        task = of.task,
        by = by.caller.name,
        "a login was removed"
    );
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
#[path = "credentials_tests.rs"]
mod tests;
