//! Health endpoints: `/healthz` (process is alive), `/readyz` (server can serve) and `/metrics`
//! (Prometheus).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::sync::Mutex;

use crate::{
    App,
    metrics::{OutcomeLabels, PhaseLabels, PoolLabels, QueueLabels},
};

/// Reuse time of a response. These endpoints need no token, and each response costs queries.
const REUSE_TIME: Duration = Duration::from_millis(250);
/// Timeout of one database query.
const QUERY_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug, Clone)]
struct HealthState {
    app: Arc<App>,
    /// Last responses, created by one request at a time.
    ready: Arc<Mutex<Option<CachedResponse>>>,
    metrics: Arc<Mutex<Option<CachedResponse>>>,
}

/// A response and the time of its creation.
#[derive(Debug, Clone)]
struct CachedResponse {
    created: Instant,
    status: StatusCode,
    content_type: &'static str,
    text: Bytes,
}

impl CachedResponse {
    fn new(status: StatusCode, content_type: &'static str, text: impl Into<Bytes>) -> Self {
        Self {
            created: Instant::now(),
            status,
            content_type,
            text: text.into(),
        }
    }
}

impl IntoResponse for CachedResponse {
    fn into_response(self) -> Response {
        let kind = [(header::CONTENT_TYPE, self.content_type)];
        (self.status, kind, self.text).into_response()
    }
}

/// Returns the last response, or creates one if it is older than [`REUSE_TIME`].
async fn reuse_response(
    last: &Mutex<Option<CachedResponse>>,
    create: impl Future<Output = CachedResponse>,
) -> Response {
    let mut last = last.lock().await;
    if let Some(response) = &*last
        && response.created.elapsed() < REUSE_TIME
    {
        return response.clone().into_response();
    }
    last.insert(create.await).clone().into_response()
}

pub(super) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/healthz", get(async || "alive\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(HealthState {
            app,
            ready: Arc::default(),
            metrics: Arc::default(),
        })
}

async fn ready(State(state): State<HealthState>) -> Response {
    reuse_response(&state.ready, check_ready(&state)).await
}

async fn check_ready(state: &HealthState) -> CachedResponse {
    let kind = "text/plain; charset=utf-8";
    let refuse =
        |reason: &'static str| CachedResponse::new(StatusCode::SERVICE_UNAVAILABLE, kind, reason);
    if state.app.closing.is_cancelled() {
        return refuse("shutting down\n");
    }
    match tokio::time::timeout(QUERY_TIMEOUT, state.app.store.ping()).await {
        Ok(Ok(())) => CachedResponse::new(StatusCode::OK, kind, "ready\n"),
        Ok(Err(error)) => {
            tracing::warn!(error = acrtask_model::error_chain(&error), "not ready");
            refuse("the database cannot be reached\n")
        }
        Err(_) => refuse("the database does not respond\n"),
    }
}

async fn metrics(State(state): State<HealthState>) -> Response {
    reuse_response(&state.metrics, read_metrics(&state)).await
}

async fn read_metrics(state: &HealthState) -> CachedResponse {
    let metrics = &state.app.metrics;
    for gauge in [&metrics.runners, &metrics.slots, &metrics.busy] {
        gauge.clear();
    }
    for runner in state.app.hub.runners() {
        let labels = PoolLabels {
            pool: runner.profile.pool.clone(),
        };
        metrics.runners.get_or_create(&labels).inc();
        let slots = metrics.slots.get_or_create(&labels);
        slots.inc_by(i64::from(runner.slots));
        drop(slots);
        let busy = metrics.busy.get_or_create(&labels);
        busy.inc_by(i64::from(runner.busy));
    }
    // Without the database its gauges are absent, which an alarm can detect. All other metrics are
    // still served.
    metrics.queue.clear();
    if let Ok(Ok(depths)) = tokio::time::timeout(QUERY_TIMEOUT, state.app.store.queue_depth()).await
    {
        for depth in depths {
            let labels = QueueLabels {
                pool: depth.pool,
                state: depth.state.as_str().into(),
            };
            let count = i64::try_from(depth.count).unwrap_or(i64::MAX);
            metrics.queue.get_or_create(&labels).set(count);
        }
    }
    metrics.cascades.clear();
    metrics.cascade_tasks.clear();
    let counts = tokio::time::timeout(QUERY_TIMEOUT, state.app.store.cascade_counts()).await;
    if let Ok(Ok((phases, tasks))) = counts {
        for (phase, count) in phases {
            let labels = PhaseLabels { phase };
            metrics.cascades.get_or_create(&labels).set(count);
        }
        for (state, count) in tasks {
            let labels = OutcomeLabels { state };
            metrics.cascade_tasks.get_or_create(&labels).set(count);
        }
    }
    match metrics.encode_text() {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            CachedResponse::new(StatusCode::OK, kind, text)
        }
        Err(error) => {
            tracing::error!(%error, "cannot format the metrics");
            let kind = "text/plain; charset=utf-8";
            CachedResponse::new(StatusCode::INTERNAL_SERVER_ERROR, kind, "")
        }
    }
}
