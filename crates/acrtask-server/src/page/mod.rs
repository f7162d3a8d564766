//! The web page: handlers that fetch data, build a view of `acrtask-page` and render it.
//!
//! Handlers fetch through the functions of the API, with the rights of the session's token. So a
//! page shows nothing that the API would refuse the same caller.
//!
//! Invariants:
//! * Every page but `/sign-in` and `/assets` needs a session.
//! * Every response has the headers of [`guard`], and every request passes its checks first.
//! * A hidden resource is reported as missing.

mod bases;
mod cascades;
mod deliveries;
mod error;
mod guard;
mod images;
mod live;
mod log;
mod overview;
mod run;
mod run_parts;
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
    routing::{get, post},
};

use self::error::PageError;
pub(crate) use self::guard::requested_host;
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
    /// Time that relative times refer to. `None`: the current time.
    now: Option<jiff::Timestamp>,
}

impl Site {
    /// Returns a site whose relative times do not change, so that unchanged parts of a page stay
    /// equal. The script of the page counts them on.
    fn frozen(&self) -> Self {
        Self {
            now: Some(self.clock_now()),
            ..self.clone()
        }
    }

    fn app(&self) -> &Arc<App> {
        &self.api.app
    }

    /// Returns the view of a time, relative to the clock of the server.
    fn moment(&self, at: jiff::Timestamp) -> Moment {
        Moment::new(at, self.now())
    }

    fn now(&self) -> jiff::Timestamp {
        self.now.unwrap_or_else(|| self.clock_now())
    }

    fn clock_now(&self) -> jiff::Timestamp {
        acrtask_store::timestamp(self.app().clock.now_ms())
    }
}

/// Paths of all pages with the methods that they support.
#[cfg(test)]
pub(crate) const ROUTES: &[(&str, &str)] = &[
    ("GET", "/"),
    ("GET", "/live"),
    ("GET", "/runs"),
    ("GET", "/runs/{id}"),
    ("GET", "/runs/{id}/live"),
    ("GET", "/runs/{id}/log"),
    ("GET", "/runs/{id}/log/live"),
    ("GET", "/runs/{id}/log.txt"),
    ("POST", "/runs/{id}/cancel"),
    ("POST", "/runs/{id}/rerun"),
    ("POST", "/runs/{id}/approve"),
    ("GET", "/tasks"),
    ("GET", "/tasks/{*name}"),
    ("POST", "/tasks/{*name}"),
    ("GET", "/images"),
    ("GET", "/images/{*name}"),
    ("GET", "/bases"),
    ("GET", "/bases/{*name}"),
    ("GET", "/cascades"),
    ("GET", "/cascades/{id}"),
    ("GET", "/cascades/{id}/live"),
    ("POST", "/cascades/{id}/{action}"),
    ("GET", "/deliveries"),
    ("GET", "/deliveries/{id}"),
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
        now: None,
    };
    Router::new()
        .route("/", get(overview::show))
        .route("/live", get(overview::follow))
        .route("/runs", get(runs::list))
        .route("/runs/{id}", get(run::show))
        .route("/runs/{id}/live", get(run::follow))
        .route("/runs/{id}/log", get(log::show))
        .route("/runs/{id}/log/live", get(log::follow))
        .route("/runs/{id}/log.txt", get(log::raw))
        .route("/runs/{id}/cancel", post(run::cancel))
        .route("/runs/{id}/rerun", post(run::rerun))
        .route("/runs/{id}/approve", post(run::approve))
        .route("/tasks", get(tasks::list))
        .route("/tasks/{*name}", get(tasks::show).post(tasks::start))
        .route("/images", get(images::list))
        .route("/images/{*name}", get(images::show))
        .route("/bases", get(bases::list))
        .route("/bases/{*name}", get(bases::show))
        .route("/cascades", get(cascades::list))
        .route("/cascades/{id}", get(cascades::show))
        .route("/cascades/{id}/live", get(cascades::follow))
        .route("/cascades/{id}/{action}", post(cascades::change))
        .route("/deliveries", get(deliveries::list))
        .route("/deliveries/{id}", get(deliveries::show))
        .route("/runners", get(runners::list))
        .route("/me", get(session::show))
        .route("/sign-in", get(session::form).post(session::sign_in))
        .route("/sign-out", post(session::sign_out))
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
