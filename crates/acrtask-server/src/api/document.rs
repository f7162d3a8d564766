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

use serde_json::{Map, Value};

use super::Api;
use acrtask_api::{BASE, forms, task::TaskDefinition};

/// What the document says beside its routes.
#[derive(Debug, OpenApi)]
#[openapi(
    info(
        title = "acrtask",
        description = "The control plane of acrtask: runs, tasks, secrets, runners. Every refusal is a `Problem`.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    modifiers(&Token),
    // Forms of parameters: only those of bodies are found automatically.
    components(schemas(
        forms::EventId,
        forms::Generation,
        forms::Host,
        forms::IdempotencyKey,
        forms::RunStates,
        forms::SecretName,
        forms::TimeOrDate,
        forms::WebhookName,
        forms::Word,
    )),
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
const REFUSALS: [(&str, &str); 8] = [
    (
        "400",
        "A parameter or the body does not have the form of this document.",
    ),
    ("408", "The body came too slowly."),
    ("413", "The body is too large."),
    (
        "422",
        "Each value has the form of this document, and a rule that no schema can express is broken. The message names it.",
    ),
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

/// The document as JSON, with what the derive macros cannot express.
fn refined(document: &utoipa::openapi::OpenApi) -> Result<String, serde_json::Error> {
    let mut document = serde_json::to_value(document)?;
    let schemas = document["components"]["schemas"].take();
    let Value::Object(mut schemas) = schemas else {
        return serde_json::to_string(&document);
    };
    let objects = schemas.clone();
    for schema in schemas.values_mut() {
        refine(schema, &objects);
    }
    document["components"]["schemas"] = schemas.into();
    let content = "/paths/~1api~1v1~1contexts~1{id}/patch/requestBody/content/application~1offset+octet-stream";
    if let Some(schema) = document.pointer_mut(&format!("{content}/schema")) {
        // Bytes may be absent, and have no `null`.
        let variants = schema["oneOf"].as_array().cloned().unwrap_or_default();
        if let Some(bytes) = variants.into_iter().find(|it| it["type"] != "null") {
            *schema = bytes;
        }
    }
    widen_unsigned(&mut document);
    serde_json::to_string(&document)
}

/// Merges what is combined and closes variants, at every depth.
fn refine(schema: &mut Value, objects: &Map<String, Value>) {
    if let Some(mut whole) = merged(schema, objects) {
        // An answer may get more keys.
        whole.remove("additionalProperties");
        *schema = whole.into();
    }
    let variants = schema.get_mut("oneOf").and_then(Value::as_array_mut);
    for variant in variants.into_iter().flatten() {
        if let Some(whole) = merged(variant, objects) {
            *variant = whole.into();
        }
        close_variant(variant);
    }
    match schema {
        Value::Array(all) => all.iter_mut().for_each(|part| refine(part, objects)),
        Value::Object(object) => object.values_mut().for_each(|part| refine(part, objects)),
        _ => {}
    }
}

/// Merges the objects of an `allOf` into one. `None` if `schema` is something else. An object that allows no other
/// keys cannot be combined: no value could have the keys of both.
fn merged(schema: &Value, objects: &Map<String, Value>) -> Option<Map<String, Value>> {
    let mut whole = Map::new();
    for part in schema.get("allOf")?.as_array()? {
        let part = match part.get("$ref").and_then(Value::as_str) {
            Some(reference) => objects.get(reference.rsplit('/').next()?)?,
            None => part,
        };
        for (key, value) in part.as_object()? {
            match (whole.get_mut(key), value) {
                (Some(Value::Object(there)), Value::Object(more)) => there.extend(more.clone()),
                (Some(Value::Array(there)), Value::Array(more)) => there.extend(more.clone()),
                _ => drop(whole.insert(key.clone(), value.clone())),
            }
        }
    }
    if let Some(description) = schema.get("description") {
        whole.insert("description".into(), description.clone());
    }
    Some(whole)
}

/// Closes a variant of an enum: the server refuses keys of other variants. One that consists of its tag alone stays
/// open, because the server ignores other keys there.
fn close_variant(variant: &mut Value) {
    let Some(object) = variant.as_object_mut() else {
        return;
    };
    let properties = object.get("properties").and_then(Value::as_object);
    let is_closed = properties.is_some_and(|properties| {
        properties.len() > 1 || properties.values().any(|value| value.get("enum").is_none())
    });
    if !is_closed {
        return;
    }
    object.insert("additionalProperties".into(), false.into());
    // The content of a variant that is one key with an object.
    let properties = object.get_mut("properties").and_then(Value::as_object_mut);
    for content in properties.into_iter().flat_map(Map::values_mut) {
        if content.get("properties").is_some()
            && let Some(content) = content.as_object_mut()
        {
            content.insert("additionalProperties".into(), false.into());
        }
    }
}

/// Gives unsigned integers their range. The macros describe them as `int32` and `int64`, which are smaller.
fn widen_unsigned(schema: &mut Value) {
    match schema {
        Value::Array(all) => all.iter_mut().for_each(widen_unsigned),
        Value::Object(object) => {
            let unsigned = object.get("minimum").is_some_and(Value::is_u64);
            let format = match object.get("format").and_then(Value::as_str) {
                Some("int32") if unsigned => Some(("uint32", u64::from(u32::MAX))),
                Some("int64") if unsigned => Some(("uint64", u64::MAX)),
                _ => None,
            };
            if let Some((format, maximum)) = format {
                object.insert("format".into(), format.into());
                object.entry("maximum").or_insert_with(|| maximum.into());
            }
            object.values_mut().for_each(widen_unsigned);
        }
        _ => {}
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
    written("application/json", &ONCE, || refined(&super::openapi()))
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
