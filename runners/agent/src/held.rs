//! What this runner holds: the attempts that were leased to it and have not come to their end.
//!
//! An attempt is *ours* from its lease until the control plane has all of it, or until it was given back or lost. One
//! that is not ours any more stays here until nothing of it is left on this machine.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    id::AttemptId,
    run::{Stop, Stopper},
    spool::RunLog,
};

/// How far an attempt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Leased; whether it can be taken is being found out.
    Offered,
    /// Taken.
    Accepted,
    /// Its plan is made and it runs.
    Started,
    /// Its log is at its end, and waits for the control plane.
    Over,
}

/// An attempt.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) phase: Phase,
    /// Whether it is this runner's still.
    ours: bool,
    pub(crate) log: Arc<RunLog>,
    pub(crate) stopper: Arc<Stopper>,
    /// Nothing of it runs any more.
    ended: bool,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Held {
    entries: BTreeMap<AttemptId, Entry>,
}

impl Held {
    /// Takes a lease in.
    pub(crate) fn offer(&mut self, id: AttemptId, log: Arc<RunLog>, stopper: Arc<Stopper>) {
        let entry = Entry {
            phase: Phase::Offered,
            ours: true,
            log,
            stopper,
            ended: false,
        };
        self.entries.insert(id, entry);
    }

    /// Whether it is known, ours or not.
    pub(crate) fn knows(&self, id: &AttemptId) -> bool {
        self.entries.contains_key(id)
    }

    /// The attempt, where it is ours.
    pub(crate) fn ours(&mut self, id: &AttemptId) -> Option<&mut Entry> {
        self.entries.get_mut(id).filter(|entry| entry.ours)
    }

    /// All that are ours and are at least in this phase.
    pub(crate) fn all(&self, from: Phase) -> BTreeSet<AttemptId> {
        self.entries
            .iter()
            .filter(|(_, entry)| entry.ours && entry.phase >= from)
            .map(|(id, _)| id.clone())
            .collect()
    }

    /// Other attempts at the run of `id` that are ours: a lease of a new one means that they are lost.
    pub(crate) fn rivals(&self, id: &AttemptId) -> Vec<AttemptId> {
        self.all(Phase::Offered)
            .into_iter()
            .filter(|other| other.run == id.run && other != id)
            .collect()
    }

    /// Those of ours that the control plane does not keep.
    pub(crate) fn lost(&self, kept: &BTreeMap<AttemptId, u64>) -> Vec<AttemptId> {
        self.all(Phase::Offered)
            .into_iter()
            .filter(|id| !kept.contains_key(id))
            .collect()
    }

    /// It is not ours any more: it is stopped, and nothing is said about it. False where it was not ours.
    pub(crate) fn abandon(&mut self, id: &AttemptId) -> bool {
        let Some(entry) = self.ours(id) else {
            return false;
        };
        entry.stopper.stop(Stop::Abandoned);
        self.let_go(id);
        true
    }

    /// It is not ours any more, and that has been said or is known.
    pub(crate) fn let_go(&mut self, id: &AttemptId) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.ours = false;
            entry.log.disconnect();
            if entry.ended {
                self.entries.remove(id);
            }
        }
    }

    /// Nothing of it runs any more. What has not said how it ended is let go.
    pub(crate) fn ended(&mut self, id: &AttemptId, over: bool) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.ended = true;
            if entry.ours && over {
                entry.phase = Phase::Over;
            } else {
                self.let_go(id);
            }
        }
    }

    /// The stream is gone.
    pub(crate) fn disconnect(&self) {
        for entry in self.entries.values() {
            entry.log.disconnect();
        }
    }

    /// Nothing is left, of ours or others.
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

    struct Room {
        held: Held,
        folder: tempfile::TempDir,
    }

    impl Room {
        fn new() -> Self {
            Self {
                held: Held::default(),
                folder: tempfile::tempdir().unwrap(),
            }
        }

        fn offer(&mut self, id: &AttemptId) {
            let log = RunLog::create(self.folder.path(), id.clone()).unwrap();
            self.held.offer(id.clone(), log, Arc::default());
        }

        fn logs(&self) -> usize {
            std::fs::read_dir(self.folder.path()).unwrap().count()
        }
    }

    #[test]
    fn what_is_not_kept_is_stopped_and_stays_until_it_has_ended() {
        let mut room = Room::new();
        let (kept, lost) = (id("kept", 1), id("lost", 1));
        room.offer(&kept);
        room.offer(&lost);
        let stopper = Arc::clone(&room.held.ours(&lost).unwrap().stopper);
        let by_them = BTreeMap::from([(kept.clone(), 7), (id("other", 1), 0)]);
        assert_eq!(room.held.lost(&by_them), std::slice::from_ref(&lost));
        assert!(room.held.abandon(&lost));
        assert!(!room.held.abandon(&lost), "only once");
        assert_eq!(stopper.why(), Some(Stop::Abandoned));
        assert_eq!(
            room.held.all(Phase::Offered),
            BTreeSet::from([kept.clone()])
        );
        assert!(room.held.knows(&lost), "it is still being stopped");
        room.held.ended(&lost, true);
        assert!(!room.held.knows(&lost));
        assert_eq!(room.logs(), 1);
        room.held.ended(&kept, true);
        assert_eq!(room.held.ours(&kept).unwrap().phase, Phase::Over);
        room.held.let_go(&kept);
        assert!(room.held.is_empty());
        assert_eq!(room.logs(), 0);
    }

    #[test]
    fn a_new_attempt_takes_the_place_of_the_earlier_one() {
        let mut room = Room::new();
        let (first, second) = (id("r", 1), id("r", 2));
        room.offer(&first);
        assert_eq!(room.held.rivals(&second), std::slice::from_ref(&first));
        room.held.abandon(&first);
        assert_eq!(room.held.rivals(&second), []);
        room.offer(&second);
        room.held.ended(&first, false);
        assert_eq!(room.held.all(Phase::Offered), BTreeSet::from([second]));
    }

    #[test]
    fn heartbeats_name_what_was_taken() {
        let mut room = Room::new();
        let (offered, taken) = (id("a", 1), id("b", 1));
        room.offer(&offered);
        room.offer(&taken);
        room.held.ours(&taken).unwrap().phase = Phase::Accepted;
        assert_eq!(room.held.all(Phase::Accepted), BTreeSet::from([taken]));
        assert_eq!(room.held.all(Phase::Offered).len(), 2);
    }
}
