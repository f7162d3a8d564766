//! What /metrics shows, in the text form of Prometheus.
//!
//! Counters and histograms are written where things happen. Gauges of the queue and of the runners are set when somebody
//! asks, so that they cannot drift from what they tell about.

use std::sync::atomic::AtomicU64;

use acrtask_model::RunState;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// Upper bounds of waits and runs, in seconds.
const SECONDS: [f64; 16] = [
    0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0, 1800.0, 3600.0,
    14400.0,
];

/// A pool and the state of runs in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct QueueLabels {
    /// The pool.
    pub pool: String,
    /// The state.
    pub state: String,
}

/// A pool.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PoolLabels {
    /// The pool.
    pub pool: String,
}

/// How something ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabels {
    /// The state.
    pub state: String,
}

/// A request to the listener.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// `http` or `grpc`.
    pub protocol: &'static str,
    /// The class of the answer's status: `2xx` ...
    pub status: &'static str,
}

/// Deliveries by what became of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DeliveryLabels {
    /// `taken`, `unproved`, `refused`, `failed`.
    pub outcome: &'static str,
}

/// Looks at base tags by what came of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LookLabels {
    /// `same`, `digest`, `failed`.
    pub outcome: &'static str,
}

/// Where a cascade stands.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PhaseLabels {
    /// `settling`, `active`, `canceling`, `over`.
    pub phase: String,
}

/// Counters, gauges and histograms of a control plane.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Runs by pool and state that are not over.
    pub queue: Family<QueueLabels, Gauge>,
    /// Runners that are connected here, by pool.
    pub runners: Family<PoolLabels, Gauge>,
    /// Their slots.
    pub slots: Family<PoolLabels, Gauge>,
    /// Their slots that are taken.
    pub busy: Family<PoolLabels, Gauge>,
    /// Triggers that are accounted for by nothing: always 0.
    pub unaccounted: Gauge,
    /// Seconds from the request for a run to its start.
    pub wait_seconds: Histogram,
    /// Seconds from a run's start to its end.
    pub run_seconds: Histogram,
    /// Runs that are over, by their final state.
    pub finished: Family<OutcomeLabels, Counter>,
    /// Deliveries to webhooks.
    pub deliveries: Family<DeliveryLabels, Counter>,
    /// Looks at base tags that are written down, by what came of them.
    pub looks: Family<LookLabels, Counter>,
    /// Leases that were handed to runners.
    pub leases: Counter,
    /// Leases that could not be handed over and were given back.
    pub leases_returned: Counter,
    /// Leases that were taken from runners that did not renew them, by what became of the run.
    pub leases_lost: Family<OutcomeLabels, Counter>,
    /// Reports and requests about runs that were not the runner's any more.
    pub refused: Counter,
    /// Vertices of builds.
    pub vertices: Counter,
    /// Vertices of builds that came from a cache.
    pub cached_vertices: Counter,
    /// Bytes of logs that were stored.
    pub log_bytes: Counter,
    /// Requests that were answered.
    pub requests: Family<RequestLabels, Counter>,
    /// Connections that are open.
    pub connections: Gauge,
    /// Cascades that are loaded, by phase.
    pub cascades: Family<PhaseLabels, Gauge>,
    /// Tasks of cascades that are not over, by state.
    pub cascade_tasks: Family<OutcomeLabels, Gauge>,
    /// Seconds that comparing all facts with all cascades took, without reading them.
    pub reconcile_seconds: Histogram,
    /// Changes of cascades for which another server was quicker, and which were made anew.
    pub cascade_conflicts: Counter,
    /// Background tasks that failed and were started again.
    pub restarts: Counter<u64, AtomicU64>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("acrtask");
        macro_rules! add {
            ($name:literal, $help:literal, $metric:expr) => {{
                let metric = $metric;
                registry.register($name, $help, metric.clone());
                metric
            }};
        }
        Self {
            queue: add!(
                "queue_runs",
                "Runs by pool and state that are not over",
                Family::default()
            ),
            runners: add!(
                "runners",
                "Runners that are connected here",
                Family::default()
            ),
            slots: add!(
                "runner_slots",
                "Slots of connected runners",
                Family::default()
            ),
            busy: add!(
                "runner_slots_busy",
                "Slots of connected runners that are taken",
                Family::default()
            ),
            unaccounted: add!(
                "unaccounted_triggers",
                "Triggers that no run, lease or reason accounts for; anything but 0 is an alarm",
                Gauge::default()
            ),
            wait_seconds: add!(
                "run_wait_seconds",
                "From the request for a run to its start",
                Histogram::new(SECONDS)
            ),
            run_seconds: add!(
                "run_seconds",
                "From a run's start to its end",
                Histogram::new(SECONDS)
            ),
            finished: add!(
                "runs_finished",
                "Runs that are over, by final state",
                Family::default()
            ),
            leases: add!(
                "leases",
                "Leases that were handed to runners",
                Counter::default()
            ),
            leases_returned: add!(
                "leases_returned",
                "Leases that could not be handed over",
                Counter::default()
            ),
            leases_lost: add!(
                "leases_lost",
                "Leases that ran out, by what became of the run",
                Family::default()
            ),
            refused: add!(
                "refused_reports",
                "Reports about runs that were not the runner's any more",
                Counter::default()
            ),
            vertices: add!("build_vertices", "Vertices of builds", Counter::default()),
            cached_vertices: add!(
                "build_vertices_cached",
                "Vertices of builds that came from a cache",
                Counter::default()
            ),
            looks: add!(
                "base_looks",
                "Looks at base tags by what came of them",
                Family::default()
            ),
            deliveries: add!(
                "webhook_deliveries",
                "Deliveries to webhooks, by what became of them",
                Family::default()
            ),
            log_bytes: add!(
                "log_bytes",
                "Bytes of logs that were stored",
                Counter::default()
            ),
            requests: add!("requests", "Requests that were answered", Family::default()),
            connections: add!("connections", "Connections that are open", Gauge::default()),
            cascades: add!(
                "cascades",
                "Cascades that may still change, by phase",
                Family::default()
            ),
            cascade_tasks: add!(
                "cascade_tasks",
                "Tasks of cascades that are not over, by state",
                Family::default()
            ),
            reconcile_seconds: add!(
                "cascade_reconcile_seconds",
                "How long comparing all facts with all cascades took",
                Histogram::new(SECONDS)
            ),
            cascade_conflicts: add!(
                "cascade_conflicts",
                "Changes of cascades for which another server was quicker",
                Counter::default()
            ),
            restarts: add!(
                "background_restarts",
                "Background tasks that failed and were started again",
                Counter::default()
            ),
            registry,
        }
    }
}

impl Metrics {
    /// All of it, in the text form of Prometheus.
    ///
    /// # Errors
    /// When a label cannot be written as text.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// A run is over.
    pub fn run_finished(&self, state: RunState) {
        let state = state.as_str().to_owned();
        self.finished.get_or_create(&OutcomeLabels { state }).inc();
    }

    /// A lease ran out, and the run went to `state`.
    pub fn lease_lost(&self, state: RunState) {
        let state = state.as_str().to_owned();
        self.leases_lost
            .get_or_create(&OutcomeLabels { state })
            .inc();
    }

    /// A delivery came to a webhook.
    pub fn delivery(&self, outcome: &'static str) {
        self.deliveries
            .get_or_create(&DeliveryLabels { outcome })
            .inc();
    }

    /// A request was answered with `status`.
    pub fn answered(&self, protocol: &'static str, status: http::StatusCode) {
        let status = match status.as_u16() {
            200..=299 => "2xx",
            300..=399 => "3xx",
            400..=499 => "4xx",
            500..=599 => "5xx",
            _ => "1xx",
        };
        self.requests
            .get_or_create(&RequestLabels { protocol, status })
            .inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_shown() {
        let metrics = Metrics::default();
        metrics.run_finished(RunState::TimedOut);
        metrics.log_bytes.inc_by(7);
        metrics.wait_seconds.observe(0.2);
        metrics.answered("http", http::StatusCode::NOT_FOUND);
        let text = metrics.text().unwrap();
        for line in [
            "acrtask_runs_finished_total{state=\"timed_out\"} 1",
            "acrtask_log_bytes_total 7",
            "acrtask_run_wait_seconds_count 1",
            "acrtask_requests_total{protocol=\"http\",status=\"4xx\"} 1",
            "acrtask_unaccounted_triggers 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
    }
}
