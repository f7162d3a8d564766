//! What /metrics shows.

/// Counters, gauges and histograms.
#[derive(Debug, Default)]
pub struct Metrics {}
