//! Answers people and programs over HTTP.

use std::sync::Arc;

use axum::Router;

use crate::App;

/// All of the API under `/api/v1`.
pub fn router(app: Arc<App>) -> Router {
    Router::new().with_state(app)
}
