//! Logins for registries and git hosts: set, list and delete. No operation returns a password.

use acrtask_api::admin::{Credential, Problem, PutCredential};
use acrtask_api::forms::Host;
use acrtask_registry::credentials::canonical_host;
use acrtask_store::{Ms, StoreError};
use axum::{extract::State, http::StatusCode};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api, ApiError,
    extract::{Json, Path, Query},
    secrets::{OfTasks, VisibleScopes, listed_scope, require_scope_of},
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
#[utoipa::path(get, path = "/credentials", tag = "credentials", params(OfTasks), security(("token" = ["read"])), responses(
    (status = OK, body = Vec<Credential>),
    (status = BAD_REQUEST, body = Problem, description = "`tasks` is not a prefix."),
    (status = NOT_FOUND, body = Problem, description = "The task does not exist."),
))]
async fn list(
    by: Authenticated<auth::Read>,
    State(api): State<Api>,
    Query(of): Query<OfTasks>,
) -> Result<Json<Vec<Credential>>, ApiError> {
    let caller = &by.caller;
    let store = &api.app.store;
    let scope = listed_scope(&api, caller, &of).await?;
    let rows = store.credentials(scope.as_deref()).await?;
    let keys = rows.iter().map(|row| row.scope.as_str());
    let visible = VisibleScopes::load(&api, caller, keys).await?;
    let seen = rows.into_iter().filter_map(|row| {
        let (task, tasks) = visible.describe(&row.scope)?;
        Some(Credential {
            host: row.host,
            username: row.username,
            task,
            tasks,
            updated_at: acrtask_store::timestamp(row.updated_at),
        })
    });
    Ok(Json(seen.collect()))
}

/// Sets the login for a host. A run gets one login for each host: that of its task, of the longest
/// matching prefix, or of all tasks.
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
    let (task, tasks) = (input.task.as_deref(), input.tasks.as_deref());
    let scope = require_scope_of(&api, &by.caller, task, tasks).await?.key();
    validate::check_host_name(&host).map_err(ApiError::invalid)?;
    let password = input.stored_password().map_err(ApiError::unprocessable)?;
    let mut problems = Problems::default();
    validate::check_username("username", &input.username, &mut problems);
    validate::check_value("password", &password, &mut problems);
    problems.into_result()?;
    let host = canonical_host(&host);
    let limit = by.caller.tasks.as_deref();
    let login = (input.username.as_str(), password.as_str());
    let now = store_login(&api.app, &scope, &host, login, limit).await?;
    tracing::info!(host, task, tasks, by = by.caller.name, "set a login");
    Ok(Json(Credential {
        host,
        username: input.username,
        task: input.task,
        tasks: input.tasks,
        updated_at: acrtask_store::timestamp(now),
    }))
}

/// Encrypts and stores a checked login, user name and password, of a scope for a canonical host.
/// `limit` is the task limit of the caller. Returns the time of the change.
pub(crate) async fn store_login(
    app: &App,
    scope: &str,
    host: &str,
    (username, password): (&str, &str),
    limit: Option<&str>,
) -> Result<Ms, StoreError> {
    let now = app.clock.now_ms();
    let aad = run_factory::credential_aad(scope, host);
    let sealed = app.vault.seal(&aad, password.as_bytes());
    app.store
        .put_credential(scope, host, (username, sealed.as_slice()), limit, now)
        .await?;
    Ok(now)
}

/// Removes the login for a host.
#[utoipa::path(delete, path = "/credentials/{host}", tag = "credentials",
    params(("host" = String, Path, description = "Host and port."), OfTasks),
    security(("token" = ["write"])), responses((status = NO_CONTENT), (status = BAD_REQUEST, body = Problem), (status = NOT_FOUND, body = Problem)))]
async fn delete(
    by: Authenticated<auth::Write>,
    State(api): State<Api>,
    Path(host): Path<String>,
    Query(of): Query<OfTasks>,
) -> Result<StatusCode, ApiError> {
    let (task, tasks) = (of.task.as_deref(), of.tasks.as_deref());
    let scope = require_scope_of(&api, &by.caller, task, tasks).await?.key();
    let host = canonical_host(&host);
    api.app.store.delete_credential(&scope, &host).await?;
    tracing::info!(host, task, tasks, by = by.caller.name, "removed a login");
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
#[path = "credentials_tests.rs"]
mod tests;
