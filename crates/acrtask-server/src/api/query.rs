//! Check of query parameters. Unknown ones are refused, so that a caller does not rely on them.
//!
//! The OpenAPI document is the only list of the parameters of each operation.

use std::{collections::HashMap, sync::Arc};

use acrtask_store::Ms;
use axum::{
    Router,
    extract::{MatchedPath, Request, State},
    http::Method,
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
};
use utoipa::openapi::{OpenApi, RefOr, path::ParameterIn};

use super::ApiError;

/// Parses a time of a query: RFC 3339, or a date, which means midnight in UTC.
pub(super) fn parse_time(name: &str, text: Option<&str>) -> Result<Option<Ms>, ApiError> {
    let Some(text) = text else { return Ok(None) };
    let date = || {
        let date: jiff::civil::Date = text.parse().ok()?;
        let midnight = date.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
        Some(midnight.timestamp())
    };
    let parsed = text.parse::<jiff::Timestamp>().ok().or_else(date);
    let refuse = |error: fn(String) -> ApiError| {
        error(format!("`{name}` is `{text}`, which is not a time"))
            .help("write 2026-01-02T03:04:05Z or 2026-01-02")
    };
    if !is_time_or_date(text) {
        return Err(refuse(ApiError::invalid));
    }
    parsed
        .map(|time| Some(time.as_millisecond()))
        .ok_or_else(|| refuse(ApiError::unprocessable))
}

/// Returns `true` if `text` has the form of [`acrtask_api::forms::TimeOrDate`].
fn is_time_or_date(text: &str) -> bool {
    const TEMPLATE: &str = "0000-00-00T00:00:00";
    let fits = |text: &str, template: &str| {
        text.len() == template.len()
            && text.bytes().zip(template.bytes()).all(|(byte, form)| {
                if form == b'0' {
                    byte.is_ascii_digit()
                } else {
                    byte == form
                }
            })
    };
    if !text.is_ascii() || text.len() < TEMPLATE.len() {
        return fits(text, &TEMPLATE[..10]);
    }
    let (time, rest) = text.split_at(TEMPLATE.len());
    let zone = match rest.strip_prefix('.') {
        None => rest,
        Some(fraction) => {
            let zone = fraction.trim_start_matches(|c: char| c.is_ascii_digit());
            if !(1..=9).contains(&(fraction.len() - zone.len())) {
                return false;
            }
            zone
        }
    };
    fits(time, TEMPLATE) && (zone == "Z" || fits(zone, "+00:00") || fits(zone, "-00:00"))
}

/// Names of query parameters by method and path.
type Parameters = HashMap<(Method, String), Vec<String>>;

/// Adds the check in front of the routes of `router`.
pub(super) fn guard(router: Router, document: &OpenApi) -> Router {
    let parameters = Arc::new(list_parameters(document));
    router.route_layer(middleware::from_fn_with_state(parameters, refuse_unknown))
}

fn list_parameters(document: &OpenApi) -> Parameters {
    let mut found = Parameters::new();
    for (path, item) in &document.paths.paths {
        let operations = [
            (Method::GET, &item.get),
            (Method::PUT, &item.put),
            (Method::POST, &item.post),
            (Method::PATCH, &item.patch),
            (Method::DELETE, &item.delete),
        ];
        for (method, operation) in operations {
            let Some(operation) = operation else { continue };
            let all = operation.parameters.iter().flatten();
            // Operations have no references to shared parameters.
            let names = all.filter_map(|parameter| match parameter {
                RefOr::T(parameter) if parameter.parameter_in == ParameterIn::Query => {
                    Some(parameter.name.clone())
                }
                _ => None,
            });
            found.insert((method, path.clone()), names.collect());
        }
    }
    found
}

async fn refuse_unknown(
    State(parameters): State<Arc<Parameters>>,
    path: MatchedPath,
    request: Request,
    next: Next,
) -> Response {
    let method = match request.method() {
        &Method::HEAD => Method::GET,
        method => method.clone(),
    };
    let query = request.uri().query().unwrap_or_default();
    if query.is_empty() {
        return next.run(request).await;
    }
    let Some(names) = parameters.get(&(method.clone(), path.as_str().to_owned())) else {
        return next.run(request).await;
    };
    let unknown = url::form_urlencoded::parse(query.as_bytes())
        .map(|(key, _)| key)
        .find(|key| !names.iter().any(|name| name == key));
    let Some(unknown) = unknown else {
        return next.run(request).await;
    };
    let message = format!(
        "`{}` is not a query parameter of {method} {}",
        unknown.escape_debug(),
        path.as_str()
    );
    let help = if names.is_empty() {
        "leave out the query; settings are keys of the body".to_owned()
    } else {
        format!("use `{}`", names.join("`, `"))
    };
    ApiError::invalid(message).help(help).into_response()
}

#[cfg(test)]
mod tests {
    use acrtask_api::admin::Secret;
    use axum::http::StatusCode;
    use serde_json::json;

    use super::*;
    use crate::api::testing::TestServer;

    #[tokio::test]
    async fn unknown_query_parameters_are_refused_by_every_operation() {
        let server = TestServer::start().await;
        let document = crate::api::openapi();
        for (method, path) in list_parameters(&document).into_keys() {
            let concrete = path.replace(['{', '}'], "");
            let request = Request::builder()
                .method(&method)
                .uri(format!("{concrete}?nothing=1"))
                .header("authorization", format!("Bearer {}", server.admin))
                .body(axum::body::Body::empty())
                .unwrap();
            let problem = server.send(request).await.problem(StatusCode::BAD_REQUEST);
            assert!(
                problem
                    .message
                    .contains("`nothing` is not a query parameter of"),
                "{method} {path}: {problem:?}"
            );
        }
    }

    #[tokio::test]
    async fn task_in_the_query_does_not_set_a_secret_for_all_tasks() {
        let server = TestServer::start().await;
        let path = "/secrets/token?task=app";
        let problem = server
            .put(path, json!({"value": "hunter2"}))
            .await
            .problem(StatusCode::BAD_REQUEST);
        assert_eq!(
            problem.message,
            "`task` is not a query parameter of PUT /api/v1/secrets/{name}"
        );
        let listed: Vec<Secret> = server.get("/secrets").await.json(StatusCode::OK);
        assert_eq!(listed, []);
    }
}
