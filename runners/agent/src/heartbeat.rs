//! Heartbeats of one stream and their responses. Pure: the caller passes the time.
//!
//! A lease is lost if a response omits it, never because of silence. A control plane without its
//! database does not respond, and builds continue meanwhile (pushes ask first). After silence for
//! the time of a lease the stream counts as dead, whatever the connection reports, and is reopened.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use crate::id::AttemptId;

/// Maximum number of unanswered heartbeats that are remembered.
const MAX_UNANSWERED: usize = 16;

/// Unanswered heartbeats of one stream.
#[derive(Debug)]
pub(crate) struct HeartbeatTracker {
    lease: Duration,
    /// Sent and unanswered heartbeats, the oldest first.
    sent: VecDeque<(Duration, BTreeSet<AttemptId>)>,
    /// Time of the last sign of life of the stream.
    alive: Duration,
    /// Time of the last call of `is_overdue`.
    checked: Duration,
}

impl HeartbeatTracker {
    /// Creates the tracker of a stream that was welcomed at `now`.
    pub(crate) fn new(lease: Duration, now: Duration) -> Self {
        Self {
            lease,
            sent: VecDeque::new(),
            alive: now,
            checked: now,
        }
    }

    /// Records that a heartbeat with these attempts was sent.
    pub(crate) fn record_sent(&mut self, named: BTreeSet<AttemptId>, now: Duration) {
        if self.sent.is_empty() {
            self.alive = now;
        }
        if self.sent.len() == MAX_UNANSWERED {
            self.sent.pop_front();
        }
        self.sent.push_back((now, named));
    }

    /// Records the response to the oldest heartbeat. Returns the attempts that the response omits.
    pub(crate) fn record_response(
        &mut self,
        renewed: &BTreeSet<AttemptId>,
        now: Duration,
    ) -> Vec<AttemptId> {
        self.alive = now;
        let Some((_, named)) = self.sent.pop_front() else {
            return Vec::new();
        };
        named.difference(renewed).cloned().collect()
    }

    /// Returns `true` if the stream has been silent for too long. Called at least every second.
    ///
    /// If much more time has passed since the last call, this process was stopped. Responses may
    /// then wait unread, so the silence counts from now.
    pub(crate) fn is_overdue(&mut self, now: Duration) -> bool {
        let gap = now.saturating_sub(self.checked);
        self.checked = now;
        if gap > self.lease / 3 {
            self.alive = now;
        }
        !self.sent.is_empty() && now.saturating_sub(self.alive) > self.lease
    }
}

#[cfg(test)]
mod tests {
    use acrtask_model::RunId;

    use super::*;

    const LEASE: Duration = Duration::from_secs(30);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn set(runs: &[&str]) -> BTreeSet<AttemptId> {
        runs.iter()
            .map(|run| AttemptId {
                run: RunId::new(*run).unwrap(),
                attempt: 1,
            })
            .collect()
    }

    #[test]
    fn response_applies_to_its_own_heartbeat() {
        let mut tracker = HeartbeatTracker::new(LEASE, at(0));
        tracker.record_sent(set(&["a", "b"]), at(10));
        tracker.record_sent(set(&["a", "b", "c"]), at(20));
        // `c` started after the first heartbeat, so the first response cannot contain it.
        assert_eq!(tracker.record_response(&set(&["a", "b"]), at(21)), []);
        let lost = tracker.record_response(&set(&["a", "c"]), at(22));
        assert_eq!(BTreeSet::from_iter(lost), set(&["b"]));
        assert_eq!(
            tracker.record_response(&set(&[]), at(23)),
            [],
            "no heartbeat was sent"
        );
    }

    #[test]
    fn stream_is_overdue_after_silence_for_a_lease() {
        let mut tracker = HeartbeatTracker::new(LEASE, at(0));
        tracker.record_sent(set(&["a"]), at(10));
        for second in 10..=40 {
            assert!(!tracker.is_overdue(at(second)), "{second}");
        }
        assert!(tracker.is_overdue(at(41)));
    }

    #[test]
    fn stream_without_heartbeats_is_never_overdue() {
        let mut tracker = HeartbeatTracker::new(LEASE, at(0));
        for second in 0..100 {
            assert!(!tracker.is_overdue(at(second)));
        }
        tracker.record_sent(set(&[]), at(100));
        assert!(!tracker.is_overdue(at(101)));
    }

    #[test]
    fn stopped_process_reads_responses_before_a_timeout() {
        let mut tracker = HeartbeatTracker::new(LEASE, at(0));
        tracker.record_sent(set(&["a"]), at(1));
        assert!(!tracker.is_overdue(at(1)));
        assert!(!tracker.is_overdue(at(500)), "stopped from 1 to 500");
        assert_eq!(
            tracker.record_response(&set(&[]), at(500)).len(),
            1,
            "the answer that waited says that the lease is lost"
        );
    }
}
