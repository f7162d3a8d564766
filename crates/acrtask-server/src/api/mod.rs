//! Answers people and programs over HTTP: JSON under `/api/v1`.
//!
//! One file for each kind of thing: its handlers, their part of the OpenAPI document and their tests. Invariants: every
//! refusal is a [`Problem`](acrtask_api::admin::Problem); nothing of a request is looked at before its token; a 2xx
//! means that it is committed; bodies have limits, and contexts never sit in memory.

use std::sync::Arc;

use axum::{Router, extract::DefaultBodyLimit};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::{App, floor, oidc::Issuers};

#[cfg(test)]
mod authorization_tests;
mod bases;
#[cfg(test)]
mod bombs_tests;
mod cascades;
mod contexts;
mod credentials;
mod document;
mod events;
mod extract;
mod federations;
mod images;
mod log;
mod log_text;
mod probes;
mod problem;
mod query;
mod quotas;
mod runners;
mod runs;
mod secrets;
mod tasks;
#[cfg(test)]
pub(crate) mod testing;
mod timers;
mod tokens;
mod trigger_url;
mod webhooks;
mod why;

pub use problem::ApiError;

/// Largest JSON body, in bytes.
const BODY_LIMIT: usize = 4 << 20;

/// What handlers share.
#[derive(Debug, Clone)]
pub struct Api {
    pub(crate) app: Arc<App>,
    pub(crate) issuers: Arc<Issuers>,
}

/// All of the API under `/api/v1`.
pub fn router(app: Arc<App>) -> Router {
    let (router, document) = parts();
    let api = Api {
        app: app.clone(),
        issuers: Arc::default(),
    };
    let router = router
        .fallback(problem::no_route)
        .method_not_allowed_fallback(problem::no_method)
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(api);
    floor::guard(query::guard(router, &document), app)
}

/// The OpenAPI document.
pub fn openapi() -> utoipa::openapi::OpenApi {
    parts().1
}

fn parts() -> (Router<Api>, utoipa::openapi::OpenApi) {
    let (router, mut document) = OpenApiRouter::with_openapi(document::Document::openapi())
        .merge(trigger_url::calls())
        .nest(
            acrtask_api::BASE,
            OpenApiRouter::new()
                .merge(document::routes())
                .merge(runs::routes())
                .merge(events::routes())
                .merge(log::routes())
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
    document::name_operations(&mut document);
    document::describe_refusals(&mut document);
    (router, document)
}
