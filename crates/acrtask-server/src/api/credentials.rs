//! Logins for registries and git hosts: set, list and delete. No operation returns a password.

use acrtask_api::forms::Host;
use std::collections::HashMap;

use acrtask_api::admin::{Credential, Problem, PutCredential};
use acrtask_registry::credentials::canonical_host;
use acrtask_store::{Ms, StoreError};
use axum::{extract::State, http::StatusCode};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api, ApiError,
    extract::{Json, Path, Query},
    secrets::{OfTask, require_scope_of, task_names},
    tasks,
};
use crate::{
    App,
    auth::{self, Authenticated},
    run_factory,
    validate::{self, Problems},
};

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(put, delete))
}

/// Lists logins without their passwords.
#[utoipa::path(get, path = "/credentials", tag = "credentials", params(OfTask), security(("token" = ["read"])), responses(
    (status = OK, body = Vec<Credential>),
    (status = NOT_FOUND, body = Problem, description = "The task does not exist."),
))]
async fn list(
    by: Authenticated<auth::Read>,
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
        caller.may_see(task.as_deref()).then(|| Credential {
            host: row.host,
            username: row.username,
            task,
            updated_at: acrtask_store::timestamp(row.updated_at),
        })
    });
    Ok(Json(seen.collect()))
}

/// Sets the login for a host. A run gets the logins of its task, and those of all tasks for other
/// hosts.
#[utoipa::path(put, path = "/credentials/{host}", tag = "credentials", request_body = PutCredential,
    params(("host" = Host, Path, description = "Host and port, as in image names.")),
    security(("token" = ["write"])), responses(
    (status = OK, body = Credential),
    (status = BAD_REQUEST, body = Problem),
    (status = NOT_FOUND, body = Problem, description = "The task does not exist."),
))]
async fn put(
    by: Authenticated<auth::Write>,
    State(api): State<Api>,
    Path(host): Path<String>,
    Json(input): Json<PutCredential>,
) -> Result<Json<Credential>, ApiError> {
    let scope = require_scope_of(&api, &by.caller, input.task.as_deref()).await?;
    validate::check_host_name(&host).map_err(ApiError::invalid)?;
    let password = input.stored_password().map_err(ApiError::unprocessable)?;
    let mut problems = Problems::default();
    validate::check_username("username", &input.username, &mut problems);
    validate::check_value("password", &password, &mut problems);
    problems.into_result()?;
    let host = canonical_host(&host);
    let now = store_login(&api.app, &scope, &host, &input.username, &password).await?;
    tracing::info!(host, task = input.task, by = by.caller.name, "set a login");
    Ok(Json(Credential {
        host,
        username: input.username,
        task: input.task,
        updated_at: acrtask_store::timestamp(now),
    }))
}

/// Encrypts and stores a checked login of a scope for a canonical host. Returns the time of the
/// change.
pub(crate) async fn store_login(
    app: &App,
    scope: &str,
    host: &str,
    username: &str,
    password: &str,
) -> Result<Ms, StoreError> {
    let now = app.clock.now_ms();
    let aad = run_factory::credential_aad(scope, host);
    let sealed = app.vault.seal(&aad, password.as_bytes());
    app.store
        .put_credential(scope, host, username, &sealed, now)
        .await?;
    Ok(now)
}

/// Removes the login for a host.
#[utoipa::path(delete, path = "/credentials/{host}", tag = "credentials",
    params(("host" = String, Path, description = "Host and port."), OfTask),
    security(("token" = ["write"])), responses((status = NO_CONTENT), (status = NOT_FOUND, body = Problem)))]
async fn delete(
    by: Authenticated<auth::Write>,
    State(api): State<Api>,
    Path(host): Path<String>,
    Query(of): Query<OfTask>,
) -> Result<StatusCode, ApiError> {
    let scope = require_scope_of(&api, &by.caller, of.task.as_deref()).await?;
    let host = canonical_host(&host);
    api.app.store.delete_credential(&scope, &host).await?;
    tracing::info!(host, task = of.task, by = by.caller.name, "removed a login");
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
#[path = "credentials_tests.rs"]
mod tests;
