//! The heartbeats of one stream, and what their answers say. Pure: the time is handed in.
//!
//! A lease is lost by an answer that leaves it out, never by silence: a control plane whose database is away does not
//! answer, and builds go on meanwhile (pushes ask first). Silence for as long as a lease lasts means that the
//! stream is dead, whatever the connection below it says, and a new one is opened.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use crate::id::AttemptId;

/// Heartbeats without an answer that are remembered.
const REMEMBERED: usize = 16;

/// The heartbeats of one stream.
#[derive(Debug)]
pub(crate) struct Beats {
    lease: Duration,
    /// Sent and not answered, the oldest first.
    sent: VecDeque<(Duration, BTreeSet<AttemptId>)>,
    /// When the stream was last known to be alive.
    alive: Duration,
    /// When somebody last asked whether it still is.
    looked: Duration,
}

impl Beats {
    /// A stream that was welcomed just now.
    pub(crate) fn new(lease: Duration, now: Duration) -> Self {
        Self {
            lease,
            sent: VecDeque::new(),
            alive: now,
            looked: now,
        }
    }

    /// A heartbeat with these was sent.
    pub(crate) fn sent(&mut self, held: BTreeSet<AttemptId>, now: Duration) {
        if self.sent.is_empty() {
            self.alive = now;
        }
        if self.sent.len() == REMEMBERED {
            self.sent.pop_front();
        }
        self.sent.push_back((now, held));
    }

    /// The oldest heartbeat was answered with these: returns those of it that were left out.
    pub(crate) fn answered(
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

    /// Whether the stream has been silent for too long. Asked at least every second; where much more time has passed
    /// since it was last asked, this process was stopped, and answers may be there that it has not read yet.
    pub(crate) fn overdue(&mut self, now: Duration) -> bool {
        let gap = now.saturating_sub(self.looked);
        self.looked = now;
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
    fn an_answer_judges_only_what_its_own_heartbeat_named() {
        let mut beats = Beats::new(LEASE, at(0));
        beats.sent(set(&["a", "b"]), at(10));
        beats.sent(set(&["a", "b", "c"]), at(20));
        // c came after the first heartbeat: that its answer leaves it out says nothing.
        assert_eq!(beats.answered(&set(&["a", "b"]), at(21)), []);
        let lost = beats.answered(&set(&["a", "c"]), at(22));
        assert_eq!(BTreeSet::from_iter(lost), set(&["b"]));
        assert_eq!(beats.answered(&set(&[]), at(23)), [], "nobody asked");
    }

    #[test]
    fn silence_for_a_lease_is_a_dead_stream() {
        let mut beats = Beats::new(LEASE, at(0));
        beats.sent(set(&["a"]), at(10));
        for second in 10..=40 {
            assert!(!beats.overdue(at(second)), "{second}");
        }
        assert!(beats.overdue(at(41)));
    }

    #[test]
    fn nothing_is_overdue_that_was_not_asked_for() {
        let mut beats = Beats::new(LEASE, at(0));
        for second in 0..100 {
            assert!(!beats.overdue(at(second)));
        }
        beats.sent(set(&[]), at(100));
        assert!(!beats.overdue(at(101)));
    }

    #[test]
    fn a_process_that_was_stopped_reads_before_it_judges() {
        let mut beats = Beats::new(LEASE, at(0));
        beats.sent(set(&["a"]), at(1));
        assert!(!beats.overdue(at(1)));
        assert!(!beats.overdue(at(500)), "stopped from 1 to 500");
        assert_eq!(
            beats.answered(&set(&[]), at(500)).len(),
            1,
            "the answer that waited says that the lease is lost"
        );
    }
}
