//! HTTP API for people and programs: JSON under `/api/v1`.
//!
//! Each file has the handlers of one kind of resource, their part of the OpenAPI document and their
//! tests.
//!
//! Invariants:
//! * Every refusal is a [`Problem`](acrtask_api::admin::Problem).
//! * The token of a request is checked before any other part of it is parsed.
//! * A 2xx response means that the change is committed.
//! * Bodies have limits, and contexts are streamed without buffering.

use std::sync::Arc;

use axum::{Router, extract::DefaultBodyLimit};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::{App, floor, oidc::Issuers};

#[cfg(test)]
mod authorization_tests;
pub(crate) mod bases;
#[cfg(test)]
mod bombs_tests;
pub(crate) mod cascades;
pub(crate) mod contexts;
pub(crate) mod credentials;
mod document;
mod events;
pub(crate) mod extract;
pub(crate) mod federations;
pub(crate) mod images;
pub(crate) mod log;
pub(crate) mod log_lines;
#[cfg(test)]
mod prefix_tests;
mod probes;
mod problem;
mod query;
mod quotas;
pub(crate) mod runners;
pub(crate) mod runs;
pub(crate) mod secrets;
pub(crate) mod tasks;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod timers;
mod tokens;
mod trigger_url;
pub(crate) mod webhooks;
pub(crate) mod why;

pub use problem::ApiError;

/// Largest JSON body, in bytes.
const BODY_LIMIT: usize = 4 << 20;

/// Shared state of the handlers.
#[derive(Debug, Clone)]
pub struct Api {
    pub(crate) app: Arc<App>,
    pub(crate) issuers: Arc<Issuers>,
}

impl Api {
    pub(crate) fn new(app: Arc<App>) -> Self {
        Self {
            app,
            issuers: Arc::default(),
        }
    }
}

/// Returns the routes of the API, with the limits and checks of all requests.
pub fn router(app: Arc<App>) -> Router {
    let (router, document) = build_routes();
    let api = Api::new(app.clone());
    let router = router
        .fallback(problem::path_not_found)
        .method_not_allowed_fallback(problem::method_not_allowed)
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(api);
    floor::guard(query::guard(router, &document), app)
}

/// Returns the OpenAPI document of the API.
pub fn openapi() -> utoipa::openapi::OpenApi {
    build_routes().1
}

fn build_routes() -> (Router<Api>, utoipa::openapi::OpenApi) {
    let (router, mut document) = OpenApiRouter::with_openapi(document::Document::openapi())
        .merge(trigger_url::calls())
        .nest(
            acrtask_api::BASE,
            OpenApiRouter::new()
                .merge(document::routes())
                .merge(runs::routes())
                .merge(events::routes())
                .merge(log::routes())
                .merge(log_lines::routes())
                .merge(why::routes())
                .merge(contexts::routes())
                .merge(tasks::routes())
                .merge(timers::routes())
                .merge(trigger_url::routes())
                .merge(probes::routes())
                .merge(secrets::routes())
                .merge(credentials::routes())
                .merge(tokens::routes())
                .merge(federations::routes())
                .merge(webhooks::routes())
                .merge(runners::routes())
                .merge(quotas::routes())
                .merge(images::routes())
                .merge(bases::routes())
                .merge(cascades::routes()),
        )
        .split_for_parts();
    document::set_operation_ids(&mut document);
    document::describe_refusals(&mut document);
    (router, document)
}
