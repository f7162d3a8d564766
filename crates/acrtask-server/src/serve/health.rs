//! `/healthz`: the process is alive. `/readyz`: it can serve. `/metrics`: for Prometheus.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::sync::Mutex;

use crate::{
    App,
    metrics::{OutcomeLabels, PhaseLabels, PoolLabels, QueueLabels},
    recorder::describe,
};

/// How long the database may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, Clone)]
struct Seen {
    app: Arc<App>,
    /// Gauges are set by one at a time.
    gauges: Arc<Mutex<()>>,
}

pub(super) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/healthz", get(async || "alive\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(Seen {
            app,
            gauges: Arc::default(),
        })
}

async fn ready(State(seen): State<Seen>) -> Response {
    let refuse = |why: &'static str| (StatusCode::SERVICE_UNAVAILABLE, why).into_response();
    if seen.app.closing.is_cancelled() {
        return refuse("shutting down\n");
    }
    match tokio::time::timeout(PATIENCE, seen.app.store.ping()).await {
        Ok(Ok(())) => "ready\n".into_response(),
        Ok(Err(error)) => {
            tracing::warn!(error = describe(&error), "not ready");
            refuse("the database cannot be reached\n")
        }
        Err(_) => refuse("the database does not answer\n"),
    }
}

async fn metrics(State(seen): State<Seen>) -> Response {
    let _one = seen.gauges.lock().await;
    let metrics = &seen.app.metrics;
    for gauge in [&metrics.runners, &metrics.slots, &metrics.busy] {
        gauge.clear();
    }
    for runner in seen.app.hub.runners() {
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
    // While the database is away its gauges are absent, which an alarm can see; the others are shown all the same.
    metrics.queue.clear();
    if let Ok(Ok(depths)) = tokio::time::timeout(PATIENCE, seen.app.store.queue_depth()).await {
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
    let counts = tokio::time::timeout(PATIENCE, seen.app.store.cascade_counts()).await;
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
    match metrics.text() {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "metrics cannot be written as text");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
