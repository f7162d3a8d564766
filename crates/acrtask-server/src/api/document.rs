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
    openapi::{
        ContentBuilder, Ref, RefOr, ResponseBuilder,
        path::Operation,
        security::{Http, HttpAuthScheme, SecurityScheme},
    },
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
    for operation in operations(document) {
        let tag = operation.tags.as_ref().and_then(|tags| tags.first());
        let name = operation.operation_id.as_deref();
        operation.operation_id = tag.zip(name).map(|(tag, name)| format!("{tag}_{name}"));
    }
}

/// Refusals of every operation. An operation's own description of one stays.
const REFUSALS: [(&str, &str); 7] = [
    ("400", "A parameter or the body is not valid."),
    ("408", "The body came too slowly."),
    ("413", "The body is too large."),
    (
        "429",
        "Too many requests of this caller, or a quota is used up. `Retry-After` says when to try again.",
    ),
    ("500", "An error of the server. Its log says more."),
    ("503", "The server is overloaded or not ready."),
    ("507", "The disk of the server is almost full."),
];
/// Refusals of operations that need a token.
const REFUSALS_WITH_TOKEN: [(&str, &str); 2] = [
    ("401", "The token is missing, not known or expired."),
    (
        "403",
        "The token does not have the scope, or is limited to other tasks.",
    ),
];

/// Describes the refusals that requests to every operation can get.
pub(super) fn describe_refusals(document: &mut utoipa::openapi::OpenApi) {
    for operation in operations(document) {
        let with_token = operation
            .security
            .as_ref()
            .is_some_and(|all| !all.is_empty());
        let with_token = REFUSALS_WITH_TOKEN.iter().filter(|_| with_token);
        for (status, description) in REFUSALS.iter().chain(with_token) {
            let responses = &mut operation.responses.responses;
            responses.entry((*status).to_owned()).or_insert_with(|| {
                let problem = Ref::from_schema_name("Problem");
                let content = ContentBuilder::new().schema(Some(problem)).build();
                let response = ResponseBuilder::new().description(*description);
                RefOr::T(response.content("application/json", content).build())
            });
        }
    }
}

fn operations(document: &mut utoipa::openapi::OpenApi) -> impl Iterator<Item = &mut Operation> {
    document.paths.paths.values_mut().flat_map(|item| {
        let operations = [
            &mut item.get,
            &mut item.put,
            &mut item.post,
            &mut item.patch,
            &mut item.delete,
        ];
        operations.into_iter().flatten()
    })
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
#[utoipa::path(get, path = "/schemas/task.json", tag = "schemas",
    responses((status = OK, body = Object, content_type = "application/schema+json")))]
async fn task_schema() -> Response {
    static ONCE: Written = OnceLock::new();
    written("application/schema+json", &ONCE, || {
        let mut schema = schemars::schema_for!(TaskDefinition);
        schema.insert("$id".into(), format!("{BASE}/schemas/task.json").into());
        serde_json::to_string_pretty(&schema)
    })
}

/// The JSON Schema of `acr-task.yaml`, for editors.
#[utoipa::path(get, path = "/schemas/acr-task.json", tag = "schemas",
    responses((status = OK, body = Object, content_type = "application/schema+json")))]
async fn file_schema() -> Response {
    json("application/schema+json", acrtask_spec::FILE_SCHEMA)
}

#[cfg(test)]
#[path = "document_tests.rs"]
mod tests;
