//! The API of Azure Resource Manager for the registries of `--arm`, for Azure's own clients.
//!
//! Every operation uses the functions of [`crate::api`], with the rights of the caller's token.
//! This module only converts: addresses, documents and errors are those of `acrtask-arm`.
//!
//! Invariants:
//! * Runs and tasks are created by the operations of the API alone.
//! * Blobs need no token. A signed link that expires authorizes them.
//! * Contexts and logs are streamed.

mod error;
mod links;
mod log_blob;
mod login;
mod runs;
mod task_runs;
mod tasks;
#[cfg(test)]
mod tests;
mod text_log;
mod uploads;

use std::sync::Arc;

use acrtask_arm::{ArmRegistry, Host, Operation, RegistryOperation};
use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, OriginalUri, Request, State},
    http::{HeaderMap, Uri},
    response::{IntoResponse as _, Response},
    routing::{any, get, post},
};
use serde::de::DeserializeOwned;
use serde_json::Value;

pub(crate) use self::error::ArmError;
use self::text_log::TextLogs;
use crate::{
    App,
    api::{Api, ApiError, extract},
    auth::{self, Caller},
    page,
};

/// Largest JSON body, in bytes.
const BODY_LIMIT: usize = 4 << 20;

/// Shared state of the handlers.
#[derive(Debug, Clone)]
pub(crate) struct Arm {
    api: Api,
    texts: Arc<TextLogs>,
}

impl Arm {
    fn app(&self) -> &Arc<App> {
        &self.api.app
    }

    /// Returns the registry with this name.
    fn registry(&self, name: &str) -> Result<&ArmRegistry, ArmError> {
        let mut registries = self.app().config.arm.iter();
        registries
            .find(|registry| registry.name.eq_ignore_ascii_case(name))
            .ok_or_else(|| {
                ApiError::not_found(format!("the registry `{name}` could not be found"))
                    .help("start the server with `--arm NAME=HOST`")
                    .into()
            })
    }
}

/// Returns the routes of the ARM API. They exist only if the server has `--arm` registries.
pub(crate) fn router(app: Arc<App>) -> Router {
    if app.config.arm.is_empty() {
        return Router::new();
    }
    let arm = Arm {
        api: Api::new(app),
        texts: Arc::default(),
    };
    Router::new()
        .route("/metadata/endpoints", get(login::metadata))
        // Some clients double the slash.
        .route("//metadata/endpoints", get(login::metadata))
        .route("/adfs/oauth2/token", post(login::token))
        .route("/adfs/{tenant}/oauth2/token", post(login::token))
        .route("/adfs/{tenant}/oauth2/v2.0/token", post(login::token))
        .route("/adfs/.well-known/openid-configuration", get(login::openid))
        .route(
            "/adfs/{tenant}/.well-known/openid-configuration",
            get(login::openid),
        )
        .route(
            "/adfs/{tenant}/v2.0/.well-known/openid-configuration",
            get(login::openid),
        )
        .route("/tenants", any(dispatch))
        .route("/subscriptions", any(dispatch))
        .route("/subscriptions/{*path}", any(dispatch))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .route("/blobs/contexts/{id}", any(uploads::put))
        .route("/blobs/logs/{id}", any(log_blob::get))
        .with_state(arm)
}

/// Returns the address under which the client reached the server. `--public-url` overrides it.
fn host_of(app: &App, uri: &Uri, headers: &HeaderMap) -> Result<Host, ArmError> {
    let public = app.config.public_url.as_ref().map(|url| {
        let host = url.host_str().unwrap_or_default();
        match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        }
    });
    let requested =
        || page::requested_host(uri.authority(), headers).map(|host| host.as_str().to_owned());
    public
        .or_else(requested)
        .and_then(|host| Host::new(&host))
        .ok_or_else(|| ApiError::invalid("the request names no host").into())
}

/// A request to a registry, after all checks of the caller.
struct RegistryRequest<'r> {
    arm: &'r Arm,
    caller: &'r Caller,
    registry: &'r ArmRegistry,
    host: Host,
    headers: HeaderMap,
    query: Vec<(String, String)>,
    body: Bytes,
}

impl RegistryRequest<'_> {
    fn api(&self) -> &Api {
        &self.arm.api
    }

    /// Returns a parameter of the query. Names compare without regard to case.
    fn parameter(&self, name: &str) -> Option<&str> {
        find_parameter(&self.query, name)
    }

    /// Parses the body as JSON.
    fn json<T: DeserializeOwned>(&self) -> Result<T, ArmError> {
        Ok(extract::parse_json(&self.body)?)
    }
}

fn find_parameter<'q>(query: &'q [(String, String)], name: &str) -> Option<&'q str> {
    query
        .iter()
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.as_str())
}

fn parse_query(uri: &Uri) -> Vec<(String, String)> {
    let query = uri.query().unwrap_or_default();
    url::form_urlencoded::parse(query.as_bytes())
        .into_owned()
        .collect()
}

/// Answers every operation of the ARM API that needs a token.
async fn dispatch(
    State(arm): State<Arm>,
    OriginalUri(uri): OriginalUri,
    request: Request,
) -> Result<Response, ArmError> {
    let (parts, body) = request.into_parts();
    let caller = auth::authenticate_caller(&arm.api, &parts).await?;
    let operation = Operation::parse(parts.method.as_str(), uri.path())?;
    if let Some(scope) = operation.required_scope() {
        caller.require_scope(scope)?;
    }
    let query = parse_query(&uri);
    let (name, operation) = match operation {
        Operation::OfRegistry(name, operation) => (name, operation),
        other => return Ok(Json(show_directory(arm.app(), &other, &query)).into_response()),
    };
    let registry = arm.registry(&name)?;
    if operation.stores_data() && arm.app().floor.check().is_err() {
        return Err(ApiError::disk_full(
            "the server has less free disk than --min-free-disk keeps",
        )
        .into());
    }
    let host = host_of(arm.app(), &uri, &parts.headers)?;
    let headers = parts.headers.clone();
    let body = extract::read_body(Request::from_parts(parts, body), &(), || {
        ApiError::too_large(format!(
            "the body is larger than {} MiB, the limit of a JSON body",
            BODY_LIMIT >> 20
        ))
    })
    .await?;
    let request = RegistryRequest {
        arm: &arm,
        caller: &caller,
        registry,
        host,
        headers,
        query,
        body,
    };
    let document = call(request, operation).await?;
    Ok(match document {
        Some(document) => Json(document).into_response(),
        None => ().into_response(),
    })
}

/// Returns the document of an operation on the subscription.
fn show_directory(app: &App, operation: &Operation, query: &[(String, String)]) -> Value {
    use acrtask_arm as arm;
    let registries = |document: fn(&ArmRegistry) -> Value| {
        arm::list_document(app.config.arm.iter().map(document).collect())
    };
    match operation {
        Operation::ListSubscriptions => arm::list_document(vec![arm::subscription_document()]),
        Operation::ShowSubscription => arm::subscription_document(),
        Operation::ListTenants => arm::list_document(vec![arm::tenant_document()]),
        Operation::ListGroups => arm::list_document(vec![arm::group_document()]),
        Operation::ShowGroup => arm::group_document(),
        Operation::ListResources => {
            let wanted = find_parameter(query, "$filter").and_then(arm::parse_resource_type);
            let is_registry = wanted.is_none_or(|kind| {
                kind.eq_ignore_ascii_case("Microsoft.ContainerRegistry/registries")
            });
            if is_registry {
                registries(arm::resource_document)
            } else {
                arm::list_document(Vec::new())
            }
        }
        Operation::ListRegistries | Operation::OfRegistry(..) => registries(arm::registry_document),
    }
}

/// Carries out an operation on a registry. `None`: the response has no body.
async fn call(
    request: RegistryRequest<'_>,
    operation: RegistryOperation,
) -> Result<Option<Value>, ArmError> {
    use RegistryOperation as Of;
    let document = match operation {
        Of::Show => acrtask_arm::registry_document(request.registry),
        Of::ListUsages | Of::ListNothing => acrtask_arm::list_document(Vec::new()),
        Of::CreateUpload => uploads::create(&request).await?,
        Of::ScheduleRun => runs::schedule(&request).await?,
        Of::ListRuns => runs::list(&request).await?,
        Of::ShowRun(id) => runs::show(&request, &id).await?,
        Of::UpdateRun(id) => runs::update(&request, &id).await?,
        Of::CancelRun(id) => {
            runs::cancel(&request, &id).await?;
            return Ok(None);
        }
        Of::LinkLog(id) => runs::link_log(&request, &id).await?,
        Of::ListTasks => tasks::list(&request).await?,
        Of::ShowTask(name) => tasks::show(&request, &name, false).await?,
        Of::ShowTaskDetails(name) => tasks::show(&request, &name, true).await?,
        Of::PutTask(name) => tasks::put(&request, &name).await?,
        Of::UpdateTask(name) => tasks::update(&request, &name).await?,
        Of::DeleteTask(name) => {
            tasks::delete(&request, &name).await?;
            return Ok(None);
        }
        Of::ListTaskRuns => task_runs::list(&request).await?,
        Of::ShowTaskRun(name) => task_runs::show(&request, &name).await?,
        Of::PutTaskRun(name) => task_runs::put(&request, &name).await?,
        Of::DeleteTaskRun(name) => {
            task_runs::delete(&request, &name).await?;
            return Ok(None);
        }
    };
    Ok(Some(document))
}
