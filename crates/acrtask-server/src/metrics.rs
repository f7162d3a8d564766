//! Metrics of a server, served by `/metrics` in the Prometheus text format.
//!
//! Counters and histograms are updated where the event occurs. Gauges of the queue and of the
//! runners are set on each scrape, so that they cannot drift.

use std::sync::atomic::AtomicU64;

use acrtask_model::RunState;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// Upper bounds of wait and run times, in seconds.
const SECONDS: [f64; 16] = [
    0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0, 1800.0, 3600.0,
    14400.0,
];

/// Labels of a metric by pool and run state.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct QueueLabels {
    /// Name of the pool.
    pub pool: String,
    /// State of the runs (`RunState::as_str`).
    pub state: String,
}

/// Labels of a metric by pool.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PoolLabels {
    /// Name of the pool.
    pub pool: String,
}

/// Labels of a metric by state.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabels {
    /// State of the runs or tasks.
    pub state: String,
}

/// Labels of a metric by request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// `http` or `grpc`.
    pub protocol: &'static str,
    /// Class of the response status, for example `2xx`.
    pub status: &'static str,
}

/// Labels of deliveries to webhooks.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DeliveryLabels {
    /// Outcome: `taken`, `unproved`, `refused` or `failed`.
    pub outcome: &'static str,
}

/// Labels of polls of base tags.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PollLabels {
    /// Outcome: `same`, `digest` or `failed`.
    pub outcome: &'static str,
}

/// Labels of cascades.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PhaseLabels {
    /// Phase: `settling`, `active`, `canceling` or `over`.
    pub phase: String,
}

/// Counters, gauges and histograms of a server.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Unfinished runs, by pool and state.
    pub queue: Family<QueueLabels, Gauge>,
    /// Runners connected to this server, by pool.
    pub runners: Family<PoolLabels, Gauge>,
    /// Slots of these runners.
    pub slots: Family<PoolLabels, Gauge>,
    /// Busy slots of these runners.
    pub busy: Family<PoolLabels, Gauge>,
    /// Triggers that no run, lease or reason accounts for. Always 0.
    pub unaccounted: Gauge,
    /// Seconds from the request for a run to its start.
    pub wait_seconds: Histogram,
    /// Seconds from a run's start to its end.
    pub run_seconds: Histogram,
    /// Finished runs, by final state.
    pub finished: Family<OutcomeLabels, Counter>,
    /// Deliveries to webhooks, by outcome.
    pub deliveries: Family<DeliveryLabels, Counter>,
    /// Recorded polls of base tags, by outcome.
    pub base_polls: Family<PollLabels, Counter>,
    /// Leases sent to runners.
    pub leases: Counter,
    /// Leases returned to the queue because the runner could not receive them.
    pub leases_returned: Counter,
    /// Leases that expired without a renewal, by the state of the run afterwards.
    pub leases_lost: Family<OutcomeLabels, Counter>,
    /// Rejected reports and requests about runs that the runner no longer leases.
    pub refused: Counter,
    /// Vertices of builds.
    pub vertices: Counter,
    /// Vertices of builds that a cache provided.
    pub cached_vertices: Counter,
    /// Stored bytes of logs.
    pub log_bytes: Counter,
    /// Completed requests, by protocol and status.
    pub requests: Family<RequestLabels, Counter>,
    /// Open connections.
    pub connections: Gauge,
    /// Loaded cascades, by phase.
    pub cascades: Family<PhaseLabels, Gauge>,
    /// Unfinished tasks of cascades, by state.
    pub cascade_tasks: Family<OutcomeLabels, Gauge>,
    /// Seconds per comparison of all cascades with all state. Excludes reading the state.
    pub reconcile_seconds: Histogram,
    /// Cascade changes that were retried because another server changed the cascade first.
    pub cascade_conflicts: Counter,
    /// Restarts of failed background tasks.
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
                "Unfinished runs, by pool and state",
                Family::default()
            ),
            runners: add!(
                "runners",
                "Runners connected to this server",
                Family::default()
            ),
            slots: add!(
                "runner_slots",
                "Slots of connected runners",
                Family::default()
            ),
            busy: add!(
                "runner_slots_busy",
                "Busy slots of connected runners",
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
                "Finished runs, by final state",
                Family::default()
            ),
            leases: add!("leases", "Leases sent to runners", Counter::default()),
            leases_returned: add!(
                "leases_returned",
                "Leases returned because the runner could not receive them",
                Counter::default()
            ),
            leases_lost: add!(
                "leases_lost",
                "Leases that expired, by the state of the run afterwards",
                Family::default()
            ),
            refused: add!(
                "refused_reports",
                "Rejected reports about runs that the runner no longer leases",
                Counter::default()
            ),
            vertices: add!("build_vertices", "Vertices of builds", Counter::default()),
            cached_vertices: add!(
                "build_vertices_cached",
                "Vertices of builds that a cache provided",
                Counter::default()
            ),
            base_polls: add!(
                "base_polls",
                "Polls of base tags, by outcome",
                Family::default()
            ),
            deliveries: add!(
                "webhook_deliveries",
                "Deliveries to webhooks, by outcome",
                Family::default()
            ),
            log_bytes: add!("log_bytes", "Stored bytes of logs", Counter::default()),
            requests: add!("requests", "Completed requests", Family::default()),
            connections: add!("connections", "Open connections", Gauge::default()),
            cascades: add!(
                "cascades",
                "Cascades that may still change, by phase",
                Family::default()
            ),
            cascade_tasks: add!(
                "cascade_tasks",
                "Unfinished tasks of cascades, by state",
                Family::default()
            ),
            reconcile_seconds: add!(
                "cascade_reconcile_seconds",
                "Duration of one comparison of all cascades with all state",
                Histogram::new(SECONDS)
            ),
            cascade_conflicts: add!(
                "cascade_conflicts",
                "Changes of cascades that another server made first",
                Counter::default()
            ),
            restarts: add!(
                "background_restarts",
                "Restarts of failed background tasks",
                Counter::default()
            ),
            registry,
        }
    }
}

impl Metrics {
    /// Returns all metrics in the Prometheus text format.
    ///
    /// # Errors
    /// Returns an error if a label cannot be formatted.
    pub fn encode_text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// Counts a finished run.
    pub fn count_finished_run(&self, state: RunState) {
        let state = state.as_str().to_owned();
        self.finished.get_or_create(&OutcomeLabels { state }).inc();
    }

    /// Counts an expired lease whose run changed to `state`.
    pub fn count_lost_lease(&self, state: RunState) {
        let state = state.as_str().to_owned();
        self.leases_lost
            .get_or_create(&OutcomeLabels { state })
            .inc();
    }

    /// Counts a delivery to a webhook.
    pub fn count_delivery(&self, outcome: &'static str) {
        self.deliveries
            .get_or_create(&DeliveryLabels { outcome })
            .inc();
    }

    /// Counts a request with the response status `status`.
    pub fn count_request(&self, protocol: &'static str, status: http::StatusCode) {
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
    fn counted_events_appear_in_the_text() {
        let metrics = Metrics::default();
        metrics.count_finished_run(RunState::TimedOut);
        metrics.log_bytes.inc_by(7);
        metrics.wait_seconds.observe(0.2);
        metrics.count_request("http", http::StatusCode::NOT_FOUND);
        let text = metrics.encode_text().unwrap();
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
