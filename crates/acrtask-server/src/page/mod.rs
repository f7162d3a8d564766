//! The web page: handlers that fetch data, build a view of `acrtask-page` and render it.
//!
//! Handlers fetch through the functions of the API, with the rights of the session's token. So a
//! page shows nothing that the API would refuse the same caller.
//!
//! Invariants:
//! * Every page but `/sign-in` and `/assets` needs a session.
//! * Every response has the headers of [`guard`], and every request passes its checks first.
//! * A hidden resource is reported as missing.

mod error;
mod guard;
mod log;
mod overview;
mod runners;
mod runs;
mod session;
mod tasks;

use std::{net::SocketAddr, sync::Arc};

use acrtask_page::{Moment, Template};
use axum::{
    Router,
    extract::{DefaultBodyLimit, Path},
    http::header,
    middleware,
    response::{Html, IntoResponse, Response},
    routing::get,
};

use self::error::PageError;
use crate::{
    App,
    api::{Api, ApiError},
};

/// Largest body of a form, in bytes.
const FORM_LIMIT: usize = 16 << 10;

/// Address of the listener that serves the page.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Listener {
    pub(crate) address: SocketAddr,
    /// Set if the listener terminates TLS.
    pub(crate) tls: bool,
}

/// Shared state of the handlers.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    api: Api,
    listener: Listener,
}

impl Site {
    fn app(&self) -> &Arc<App> {
        &self.api.app
    }

    /// Returns the view of a time, relative to the clock of the server.
    fn moment(&self, at: jiff::Timestamp) -> Moment {
        Moment::new(at, self.now())
    }

    fn now(&self) -> jiff::Timestamp {
        acrtask_store::timestamp(self.app().clock.now_ms())
    }
}

/// Paths of all pages with the methods that they support.
#[cfg(test)]
pub(crate) const ROUTES: &[(&str, &str)] = &[
    ("GET", "/"),
    ("GET", "/runs"),
    ("GET", "/runs/{id}"),
    ("GET", "/runs/{id}/log"),
    ("GET", "/runs/{id}/log.txt"),
    ("GET", "/tasks"),
    ("GET", "/tasks/{*name}"),
    ("GET", "/runners"),
    ("GET", "/me"),
    ("GET", "/sign-in"),
    ("POST", "/sign-in"),
    ("POST", "/sign-out"),
    ("GET", "/assets/{hash}/{name}"),
];

/// Returns the routes of the page.
pub(crate) fn router(app: Arc<App>, listener: Listener) -> Router {
    let site = Site {
        api: Api::new(app),
        listener,
    };
    Router::new()
        .route("/", get(overview::show))
        .route("/runs", get(runs::list))
        .route("/runs/{id}", get(runs::show))
        .route("/runs/{id}/log", get(log::show))
        .route("/runs/{id}/log.txt", get(log::raw))
        .route("/tasks", get(tasks::list))
        .route("/tasks/{*name}", get(tasks::show))
        .route("/runners", get(runners::list))
        .route("/me", get(session::show))
        .route("/sign-in", get(session::form).post(session::sign_in))
        .route("/sign-out", axum::routing::post(session::sign_out))
        .route("/assets/{hash}/{name}", get(asset))
        .route_layer(DefaultBodyLimit::max(FORM_LIMIT))
        .route_layer(middleware::from_fn_with_state(site.clone(), guard::check))
        .with_state(site)
}

/// Renders a page.
fn render(page: &impl Template) -> Result<Response, PageError> {
    let text = page.render().map_err(|error| ApiError::internal(&error))?;
    Ok(Html(text).into_response())
}

/// Returns a query parameter. `None` if it is absent or empty, as in a form.
fn filled(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.trim().is_empty())
}

async fn asset(Path((hash, name)): Path<(String, String)>) -> Result<Response, PageError> {
    let found = acrtask_page::asset(&hash, &name)
        .ok_or_else(|| ApiError::not_found("this file does not exist"))?;
    let headers = [
        (header::CONTENT_TYPE, found.content_type),
        (header::CACHE_CONTROL, "public, max-age=31536000, immutable"),
    ];
    Ok((headers, found.bytes).into_response())
}

#[cfg(test)]
#[path = "tests/mod.rs"]
mod tests;
