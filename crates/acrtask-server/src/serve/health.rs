//! `/healthz`: the process is alive. `/readyz`: it can serve. `/metrics`: for Prometheus.

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

/// How long an answer is given again: they need no token, and cost queries.
const REUSED: Duration = Duration::from_millis(250);
/// How long the database may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, Clone)]
struct Seen {
    app: Arc<App>,
    /// The last answers, made by one request at a time.
    ready: Arc<Mutex<Option<Answer>>>,
    metrics: Arc<Mutex<Option<Answer>>>,
}

/// An answer, and when it was made.
#[derive(Debug, Clone)]
struct Answer {
    made: Instant,
    status: StatusCode,
    content_type: &'static str,
    text: Bytes,
}

impl Answer {
    fn new(status: StatusCode, content_type: &'static str, text: impl Into<Bytes>) -> Self {
        Self {
            made: Instant::now(),
            status,
            content_type,
            text: text.into(),
        }
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let kind = [(header::CONTENT_TYPE, self.content_type)];
        (self.status, kind, self.text).into_response()
    }
}

/// Returns the last answer, or makes one.
async fn reused(last: &Mutex<Option<Answer>>, make: impl Future<Output = Answer>) -> Response {
    let mut last = last.lock().await;
    if let Some(answer) = &*last
        && answer.made.elapsed() < REUSED
    {
        return answer.clone().into_response();
    }
    last.insert(make.await).clone().into_response()
}

pub(super) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/healthz", get(async || "alive\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(Seen {
            app,
            ready: Arc::default(),
            metrics: Arc::default(),
        })
}

async fn ready(State(seen): State<Seen>) -> Response {
    reused(&seen.ready, check_ready(&seen)).await
}

async fn check_ready(seen: &Seen) -> Answer {
    let kind = "text/plain; charset=utf-8";
    let refuse = |why: &'static str| Answer::new(StatusCode::SERVICE_UNAVAILABLE, kind, why);
    if seen.app.closing.is_cancelled() {
        return refuse("shutting down\n");
    }
    match tokio::time::timeout(PATIENCE, seen.app.store.ping()).await {
        Ok(Ok(())) => Answer::new(StatusCode::OK, kind, "ready\n"),
        Ok(Err(error)) => {
            tracing::warn!(error = acrtask_model::chain(&error), "not ready");
            refuse("the database cannot be reached\n")
        }
        Err(_) => refuse("the database does not answer\n"),
    }
}

async fn metrics(State(seen): State<Seen>) -> Response {
    reused(&seen.metrics, read_metrics(&seen)).await
}

async fn read_metrics(seen: &Seen) -> Answer {
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
            Answer::new(StatusCode::OK, kind, text)
        }
        Err(error) => {
            tracing::error!(%error, "metrics cannot be written as text");
            let kind = "text/plain; charset=utf-8";
            Answer::new(StatusCode::INTERNAL_SERVER_ERROR, kind, "")
        }
    }
}
