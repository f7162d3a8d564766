//! The OpenAPI document, and the JSON Schemas of task definitions and task files.
//!
//! They contain no secrets. Editors fetch them without a token.

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

/// Parts of the OpenAPI document that do not belong to a route.
#[derive(Debug, OpenApi)]
#[openapi(
    info(
        title = "acrtask",
        description = "The API of the acrtask server: runs, tasks, secrets, runners. Every refusal is a `Problem`.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    modifiers(&Token),
    // Forms of parameters. The macros only find the forms of bodies.
    components(schemas(
        forms::EventId,
        forms::LineAddress,
        forms::LineCursor,
        forms::SearchText,
        forms::Generation,
        forms::Host,
        forms::IdempotencyKey,
        forms::RunStates,
        forms::SecretName,
        forms::TimeOrDate,
        forms::WebhookName,
        forms::ShortName,
    )),
)]
pub(super) struct Document;

/// Security scheme of all operations: a bearer token.
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

/// Sets unique operation ids from the tag and the handler, for example `runs_list`.
pub(super) fn set_operation_ids(document: &mut utoipa::openapi::OpenApi) {
    for operation in operations(document) {
        let tag = operation.tags.as_ref().and_then(|tags| tags.first());
        let name = operation.operation_id.as_deref();
        operation.operation_id = tag.zip(name).map(|(tag, name)| format!("{tag}_{name}"));
    }
}

/// Refusals of every operation. A description in the operation itself has priority.
const REFUSALS: [(&str, &str); 8] = [
    (
        "400",
        "A parameter or the body does not have the form of this document.",
    ),
    ("408", "The body arrived too slowly."),
    ("413", "The body is too large."),
    (
        "422",
        "Each value has the form of this document, but violates a rule that no schema can express. The message names the rule.",
    ),
    (
        "429",
        "The caller sent too many requests, or a quota is exhausted. `Retry-After` is the time to wait.",
    ),
    ("500", "The server failed. Its log has details."),
    ("503", "The server is overloaded or not ready."),
    ("507", "The disk of the server is almost full."),
];
/// Additional refusals of operations that need a token.
const REFUSALS_WITH_TOKEN: [(&str, &str); 2] = [
    ("401", "The token is missing, unknown or expired."),
    (
        "403",
        "The token does not have the scope, or is limited to other tasks.",
    ),
];

/// Adds the refusals to all operations.
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

/// Returns the document as JSON, with additions that the derive macros cannot express.
fn refine_document(document: &utoipa::openapi::OpenApi) -> Result<String, serde_json::Error> {
    let mut document = serde_json::to_value(document)?;
    let schemas = document["components"]["schemas"].take();
    let Value::Object(mut schemas) = schemas else {
        return serde_json::to_string(&document);
    };
    let objects = schemas.clone();
    for schema in schemas.values_mut() {
        refine_schema(schema, &objects);
    }
    document["components"]["schemas"] = schemas.into();
    let content = "/paths/~1api~1v1~1contexts~1{id}/patch/requestBody/content/application~1offset+octet-stream";
    if let Some(schema) = document.pointer_mut(&format!("{content}/schema")) {
        // The bytes may be absent, but not `null`.
        let variants = schema["oneOf"].as_array().cloned().unwrap_or_default();
        if let Some(bytes) = variants.into_iter().find(|it| it["type"] != "null") {
            *schema = bytes;
        }
    }
    widen_unsigned(&mut document);
    serde_json::to_string(&document)
}

/// Merges `allOf` schemas and closes variants, recursively.
fn refine_schema(schema: &mut Value, objects: &Map<String, Value>) {
    if let Some(mut whole) = merge_all_of(schema, objects) {
        // Responses may get additional keys in later versions.
        whole.remove("additionalProperties");
        *schema = whole.into();
    }
    let variants = schema.get_mut("oneOf").and_then(Value::as_array_mut);
    for variant in variants.into_iter().flatten() {
        if let Some(whole) = merge_all_of(variant, objects) {
            *variant = whole.into();
        }
        close_variant(variant);
    }
    match schema {
        Value::Array(all) => all.iter_mut().for_each(|part| refine_schema(part, objects)),
        Value::Object(object) => object
            .values_mut()
            .for_each(|part| refine_schema(part, objects)),
        _ => {}
    }
}

/// Merges the objects of an `allOf` into one. Returns `None` for another schema. Closed objects
/// cannot be combined with `allOf`, because no value satisfies both.
fn merge_all_of(schema: &Value, objects: &Map<String, Value>) -> Option<Map<String, Value>> {
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

/// Closes a variant of an enum, because the server refuses keys of other variants. A variant of
/// only its tag stays open, because the server ignores other keys there.
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
    // Also close the content of a variant that is one key with an object.
    let properties = object.get_mut("properties").and_then(Value::as_object_mut);
    for content in properties.into_iter().flat_map(Map::values_mut) {
        if content.get("properties").is_some()
            && let Some(content) = content.as_object_mut()
        {
            content.insert("additionalProperties".into(), false.into());
        }
    }
}

/// Sets the range of unsigned integers. The macros describe them as `int32` and `int64`.
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

fn json_response(content_type: &'static str, body: impl Into<axum::body::Body>) -> Response {
    (
        [
            (header::CONTENT_TYPE, content_type),
            (header::CACHE_CONTROL, "public, max-age=300"),
            // Allow editors that run in a browser.
            (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
        ],
        body.into(),
    )
        .into_response()
}

/// A document that is formatted once. All responses share its bytes.
type CachedDocument = OnceLock<Result<Bytes, serde_json::Error>>;

fn cached_response(
    content_type: &'static str,
    once: &'static CachedDocument,
    format: impl FnOnce() -> Result<String, serde_json::Error>,
) -> Response {
    match once.get_or_init(|| format().map(Bytes::from)) {
        Ok(bytes) => json_response(content_type, bytes.clone()),
        Err(error) => super::ApiError::internal(error).into_response(),
    }
}

/// Returns this document.
#[utoipa::path(get, path = "/openapi.json", tag = "schemas", responses((status = OK, body = Object)))]
async fn openapi() -> Response {
    static ONCE: CachedDocument = OnceLock::new();
    cached_response("application/json", &ONCE, || {
        refine_document(&super::openapi())
    })
}

/// Returns the JSON Schema of task definitions, for the API and for `acrtask task apply`.
#[utoipa::path(get, path = "/schemas/task.json", tag = "schemas",
    responses((status = OK, body = Object, content_type = "application/schema+json")))]
async fn task_schema() -> Response {
    static ONCE: CachedDocument = OnceLock::new();
    cached_response("application/schema+json", &ONCE, || {
        let mut schema = schemars::schema_for!(TaskDefinition);
        schema.insert("$id".into(), format!("{BASE}/schemas/task.json").into());
        serde_json::to_string_pretty(&schema)
    })
}

/// Returns the JSON Schema of `acr-task.yaml` for editors.
#[utoipa::path(get, path = "/schemas/acr-task.json", tag = "schemas",
    responses((status = OK, body = Object, content_type = "application/schema+json")))]
async fn file_schema() -> Response {
    json_response("application/schema+json", acrtask_spec::FILE_SCHEMA)
}

#[cfg(test)]
#[path = "document_tests.rs"]
mod tests;
