//! What the API says of itself: the OpenAPI document, and the schemas of task definitions and task files.
//!
//! They hold nothing that is secret, and editors ask for them without a token.

use std::sync::OnceLock;

use axum::{
    body::Bytes,
    http::header,
    response::{IntoResponse, Response},
};
use utoipa::{
    Modify, OpenApi,
    openapi::security::{Http, HttpAuthScheme, SecurityScheme},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::Api;
use acrtask_api::{BASE, task::TaskDefinition};

/// What the document says beside its routes.
#[derive(Debug, OpenApi)]
#[openapi(
    info(
        title = "acrtask",
        description = "The control plane of acrtask: runs, tasks, secrets, runners. Every refusal is a `Problem`.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    modifiers(&Token),
)]
pub(super) struct Document;

/// How a caller says who it is.
struct Token;

impl Modify for Token {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let mut scheme = Http::new(HttpAuthScheme::Bearer);
        scheme.description = Some("`acrt_...`, with the scope that the operation names".into());
        document
            .components
            .get_or_insert_default()
            .add_security_scheme("token", SecurityScheme::Http(scheme));
    }
}

/// Gives each operation a name of its own: that of its tag and of its handler, `runs_list`.
pub(super) fn name_operations(document: &mut utoipa::openapi::OpenApi) {
    for item in document.paths.paths.values_mut() {
        let operations = [
            &mut item.get,
            &mut item.put,
            &mut item.post,
            &mut item.patch,
            &mut item.delete,
        ];
        for operation in operations.into_iter().flatten() {
            let tag = operation.tags.as_ref().and_then(|tags| tags.first());
            let name = operation.operation_id.as_deref();
            operation.operation_id = tag.zip(name).map(|(tag, name)| format!("{tag}_{name}"));
        }
    }
}

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(openapi))
        .routes(routes!(task_schema))
        .routes(routes!(file_schema))
}

fn json(content_type: &'static str, body: impl Into<axum::body::Body>) -> Response {
    (
        [
            (header::CONTENT_TYPE, content_type),
            (header::CACHE_CONTROL, "public, max-age=300"),
            // Editors in a browser.
            (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
        ],
        body.into(),
    )
        .into_response()
}

/// A document that is written once: as many requests as there may be share its bytes.
type Written = OnceLock<Result<Bytes, serde_json::Error>>;

fn written(
    content_type: &'static str,
    once: &'static Written,
    write: impl FnOnce() -> Result<String, serde_json::Error>,
) -> Response {
    match once.get_or_init(|| write().map(Bytes::from)) {
        Ok(bytes) => json(content_type, bytes.clone()),
        Err(error) => super::ApiError::internal(error).into_response(),
    }
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "schemas", responses((status = OK, body = Object)))]
async fn openapi() -> Response {
    static ONCE: Written = OnceLock::new();
    written("application/json", &ONCE, || super::openapi().to_json())
}

/// The JSON Schema of a task's definition, as the API and files of `acrtask task apply` have it.
#[utoipa::path(get, path = "/schemas/task.json", tag = "schemas", responses((status = OK, body = Object)))]
async fn task_schema() -> Response {
    static ONCE: Written = OnceLock::new();
    written("application/schema+json", &ONCE, || {
        let mut schema = schemars::schema_for!(TaskDefinition);
        schema.insert("$id".into(), format!("{BASE}/schemas/task.json").into());
        serde_json::to_string_pretty(&schema)
    })
}

/// The JSON Schema of `acr-task.yaml`, for editors.
#[utoipa::path(get, path = "/schemas/acr-task.json", tag = "schemas", responses((status = OK, body = Object)))]
async fn file_schema() -> Response {
    json("application/schema+json", acrtask_spec::FILE_SCHEMA)
}

#[cfg(test)]
#[path = "document_tests.rs"]
mod tests;
