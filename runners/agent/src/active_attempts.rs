//! Attempts that are leased to this runner, or that are still being stopped.
//!
//! An attempt is *leased* until the control plane has stored all of it, or until its lease is
//! returned or lost. Afterwards it stays here until nothing of it runs on this machine.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    id::AttemptId,
    run::{CancelHandle, StopReason},
    spool::RunLog,
};

/// Progress of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// The attempt is leased, and the runner checks whether it can run.
    Offered,
    /// The runner has accepted the lease.
    Accepted,
    /// The plan is complete and the run executes.
    Started,
    /// The log is complete and waits for the control plane.
    Finished,
}

/// State of an attempt.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) phase: Phase,
    /// `true` while this runner has the lease.
    is_leased: bool,
    pub(crate) log: Arc<RunLog>,
    pub(crate) cancel_handle: Arc<CancelHandle>,
    /// `true` once no part of the attempt runs.
    has_stopped: bool,
}

/// All attempts of this runner.
#[derive(Debug, Default)]
pub(crate) struct ActiveAttempts {
    entries: BTreeMap<AttemptId, Entry>,
}

impl ActiveAttempts {
    /// Adds a new lease.
    pub(crate) fn offer(
        &mut self,
        id: AttemptId,
        log: Arc<RunLog>,
        cancel_handle: Arc<CancelHandle>,
    ) {
        let entry = Entry {
            phase: Phase::Offered,
            is_leased: true,
            log,
            cancel_handle,
            has_stopped: false,
        };
        self.entries.insert(id, entry);
    }

    /// Returns `true` if the attempt is present, with or without a lease.
    pub(crate) fn contains(&self, id: &AttemptId) -> bool {
        self.entries.contains_key(id)
    }

    /// Returns the attempt if it is leased.
    pub(crate) fn leased_mut(&mut self, id: &AttemptId) -> Option<&mut Entry> {
        self.entries.get_mut(id).filter(|entry| entry.is_leased)
    }

    /// Returns the leased attempts that have reached at least `from`.
    pub(crate) fn ids_from(&self, from: Phase) -> BTreeSet<AttemptId> {
        self.entries
            .iter()
            .filter(|(_, entry)| entry.is_leased && entry.phase >= from)
            .map(|(id, _)| id.clone())
            .collect()
    }

    /// Returns other leased attempts of the same run. A lease of a new attempt means that they are
    /// lost.
    pub(crate) fn other_attempts(&self, id: &AttemptId) -> Vec<AttemptId> {
        self.ids_from(Phase::Offered)
            .into_iter()
            .filter(|other| other.run == id.run && other != id)
            .collect()
    }

    /// Returns the leased attempts that the control plane did not confirm.
    pub(crate) fn find_lost(&self, kept: &BTreeMap<AttemptId, u64>) -> Vec<AttemptId> {
        self.ids_from(Phase::Offered)
            .into_iter()
            .filter(|id| !kept.contains_key(id))
            .collect()
    }

    /// Stops an attempt whose lease is lost. Returns `false` if it was not leased.
    pub(crate) fn abandon(&mut self, id: &AttemptId) -> bool {
        let Some(entry) = self.leased_mut(id) else {
            return false;
        };
        entry.cancel_handle.stop(StopReason::Abandoned);
        self.release(id);
        true
    }

    /// Ends the lease of an attempt whose end the control plane has stored or decided.
    pub(crate) fn release(&mut self, id: &AttemptId) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.is_leased = false;
            entry.log.disconnect();
            if entry.has_stopped {
                self.entries.remove(id);
            }
        }
    }

    /// Records that nothing of the attempt runs any more. Releases it unless it has finished.
    pub(crate) fn mark_stopped(&mut self, id: &AttemptId, over: bool) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.has_stopped = true;
            if entry.is_leased && over {
                entry.phase = Phase::Finished;
            } else {
                self.release(id);
            }
        }
    }

    /// Disconnects the logs of all attempts from the stream.
    pub(crate) fn disconnect(&self) {
        for entry in self.entries.values() {
            entry.log.disconnect();
        }
    }

    /// Returns `true` if no attempt is left, leased or not.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use acrtask_model::RunId;

    use super::*;

    fn id(run: &str, attempt: u32) -> AttemptId {
        AttemptId {
            run: RunId::new(run).unwrap(),
            attempt,
        }
    }

    struct TestAttempts {
        attempts: ActiveAttempts,
        folder: tempfile::TempDir,
    }

    impl TestAttempts {
        fn new() -> Self {
            Self {
                attempts: ActiveAttempts::default(),
                folder: tempfile::tempdir().unwrap(),
            }
        }

        fn offer(&mut self, id: &AttemptId) {
            let log = RunLog::create(self.folder.path(), id.clone()).unwrap();
            self.attempts.offer(id.clone(), log, Arc::default());
        }

        fn logs(&self) -> usize {
            std::fs::read_dir(self.folder.path()).unwrap().count()
        }
    }

    #[test]
    fn lost_attempt_stays_until_it_has_stopped() {
        let mut fixture = TestAttempts::new();
        let (kept, lost) = (id("kept", 1), id("lost", 1));
        fixture.offer(&kept);
        fixture.offer(&lost);
        let cancel_handle = Arc::clone(&fixture.attempts.leased_mut(&lost).unwrap().cancel_handle);
        let by_them = BTreeMap::from([(kept.clone(), 7), (id("other", 1), 0)]);
        assert_eq!(
            fixture.attempts.find_lost(&by_them),
            std::slice::from_ref(&lost)
        );
        assert!(fixture.attempts.abandon(&lost));
        assert!(!fixture.attempts.abandon(&lost), "only once");
        assert_eq!(cancel_handle.reason(), Some(StopReason::Abandoned));
        assert_eq!(
            fixture.attempts.ids_from(Phase::Offered),
            BTreeSet::from([kept.clone()])
        );
        assert!(
            fixture.attempts.contains(&lost),
            "it is still being stopped"
        );
        fixture.attempts.mark_stopped(&lost, true);
        assert!(!fixture.attempts.contains(&lost));
        assert_eq!(fixture.logs(), 1);
        fixture.attempts.mark_stopped(&kept, true);
        assert_eq!(
            fixture.attempts.leased_mut(&kept).unwrap().phase,
            Phase::Finished
        );
        fixture.attempts.release(&kept);
        assert!(fixture.attempts.is_empty());
        assert_eq!(fixture.logs(), 0);
    }

    #[test]
    fn new_attempt_replaces_the_earlier_one() {
        let mut fixture = TestAttempts::new();
        let (first, second) = (id("r", 1), id("r", 2));
        fixture.offer(&first);
        assert_eq!(
            fixture.attempts.other_attempts(&second),
            std::slice::from_ref(&first)
        );
        fixture.attempts.abandon(&first);
        assert_eq!(fixture.attempts.other_attempts(&second), []);
        fixture.offer(&second);
        fixture.attempts.mark_stopped(&first, false);
        assert_eq!(
            fixture.attempts.ids_from(Phase::Offered),
            BTreeSet::from([second])
        );
    }

    #[test]
    fn heartbeats_contain_accepted_attempts_only() {
        let mut fixture = TestAttempts::new();
        let (offered, taken) = (id("a", 1), id("b", 1));
        fixture.offer(&offered);
        fixture.offer(&taken);
        fixture.attempts.leased_mut(&taken).unwrap().phase = Phase::Accepted;
        assert_eq!(
            fixture.attempts.ids_from(Phase::Accepted),
            BTreeSet::from([taken])
        );
        assert_eq!(fixture.attempts.ids_from(Phase::Offered).len(), 2);
    }
}
