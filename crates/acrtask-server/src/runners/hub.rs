//! The runners that are connected to this control plane: what they are, what they hold, and the way to them.
//!
//! All of it is a copy of what the database knows, or of what a runner says of itself; it may be lost at any time. Invariants:
//! a runner has at most one connection; nobody waits for a runner: a message that finds its queue full ends that
//! runner's connection; a runner is never given more leases than it has slots.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use acrtask_model::RunId;
use acrtask_proto::runner::{Drain, ToRunner, to_runner::Message};
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::scheduler::place::{FreeRunner, Profile, rendezvous_seed};

/// Messages that wait for a runner to read them.
pub(crate) const QUEUE: usize = 512;
/// How long a runner that declined a lease is left alone; doubled each time.
const REST: Duration = Duration::from_secs(2);
/// The longest rest.
const LONGEST_REST: Duration = Duration::from_secs(64);

/// The runners that are connected, by id.
#[derive(Debug, Default)]
pub struct Hub {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    runners: HashMap<String, Entry>,
    connections: u64,
}

#[derive(Debug)]
struct Entry {
    facts: Facts,
    draining: bool,
    free_disk: u64,
    heard: Instant,
    /// Whether `runners_seen` has to be told.
    seen: bool,
    held: HashMap<RunId, Hold>,
    /// Leases it declined or did not accept in a row, and until when it is left alone.
    declined: u32,
    rests_until: Option<Instant>,
    connection: Connection,
}

/// What a runner says of itself when it connects.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) profile: Arc<Profile>,
    pub(crate) slots: u32,
    pub(crate) features: BTreeMap<String, String>,
    pub(crate) version: String,
}

/// The way to a runner, until it ends.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    /// Which one of all connections that there ever were.
    number: u64,
    out: mpsc::Sender<ToRunner>,
    end: End,
}

/// Ends a connection, with a reason for the runner.
#[derive(Debug, Clone, Default)]
pub(crate) struct End {
    token: CancellationToken,
    status: Arc<OnceLock<tonic::Status>>,
}

impl End {
    pub(crate) fn now(&self, reason: impl Into<String>) {
        self.with(tonic::Status::unavailable(reason));
    }

    /// Ends it because the runner is not what its registration allows. The runner does not connect again.
    pub(crate) fn refuse(&self, reason: impl Into<String>) {
        self.with(tonic::Status::permission_denied(reason));
    }

    fn with(&self, status: tonic::Status) {
        let _ = self.status.set(status);
        self.token.cancel();
    }

    pub(crate) async fn reached(&self) {
        self.token.cancelled().await;
    }

    /// The reason, as the last thing that the runner hears; nothing while the connection goes on.
    pub(crate) fn status(&self) -> Option<tonic::Status> {
        self.status.get().cloned()
    }
}

/// What is known of a lease that a runner holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Hold {
    pub(crate) attempt: u32,
    /// When the run was asked for; nothing where the lease is from before this connection.
    pub(crate) created_at: Option<i64>,
    /// When the run started, as far as this connection knows.
    pub(crate) started_at: Option<i64>,
    /// The runner has said that it has it.
    pub(crate) accepted: bool,
    /// The runner was told to stop it.
    pub(crate) cancel_sent: bool,
    /// The first heartbeat that did not name it, of those in a row.
    pub(crate) missed_since: Option<Instant>,
}

/// Why a lease did not reach a runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Undelivered {
    /// It is not connected here.
    #[error("the runner is not connected any more")]
    Gone,
    /// It takes nothing new.
    #[error("the runner takes nothing new")]
    Draining,
    /// It has no free slot.
    #[error("the runner has no free slot")]
    Full,
}

/// A connected runner, for those who look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connected {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What it can take.
    pub profile: Arc<Profile>,
    /// Runs that it carries out at once.
    pub slots: u32,
    /// Runs that it holds.
    pub busy: u32,
    /// It takes nothing new.
    pub draining: bool,
    /// It declined a lease just now and is left alone for a moment.
    pub resting: bool,
    /// What its engine and builder are, and can do.
    pub features: BTreeMap<String, String>,
    /// The version of its program.
    pub version: String,
    /// Bytes that are free where it keeps its files.
    pub free_disk: u64,
}

impl Entry {
    fn free(&self, now: Instant) -> u32 {
        let ended = self.connection.end.token.is_cancelled();
        if ended || self.draining || self.rests_until.is_some_and(|until| now < until) {
            return 0;
        }
        let held = u32::try_from(self.held.len()).unwrap_or(u32::MAX);
        self.facts.slots.saturating_sub(held)
    }

    fn connected(&self, now: Instant) -> Connected {
        let facts = &self.facts;
        Connected {
            id: facts.id.clone(),
            name: facts.name.clone(),
            profile: facts.profile.clone(),
            slots: facts.slots,
            busy: u32::try_from(self.held.len()).unwrap_or(u32::MAX),
            draining: self.draining,
            resting: self.rests_until.is_some_and(|until| now < until),
            features: facts.features.clone(),
            version: facts.version.clone(),
            free_disk: self.free_disk,
        }
    }

    /// Puts a message into the runner's queue; a full queue ends the connection.
    fn send(&self, message: Message) -> bool {
        let message = ToRunner {
            message: Some(message),
        };
        match self.connection.out.try_send(message) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                self.connection
                    .end
                    .now("the runner does not read what it is sent");
                false
            }
            Err(TrySendError::Closed(_)) => false,
        }
    }

    fn hold(&mut self, run: &RunId, attempt: u32) -> Option<&mut Hold> {
        self.held
            .get_mut(run)
            .filter(|hold| hold.attempt == attempt)
    }
}

impl Hub {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, id: &str, f: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        self.lock().runners.get_mut(id).map(f)
    }

    /// A runner is connected from now on; an earlier connection of it ends. Gives back what was on its way to the earlier
    /// one, was never accepted, and is not in `held`.
    pub(crate) fn connect(
        &self,
        facts: Facts,
        draining: bool,
        free_disk: u64,
        held: HashMap<RunId, Hold>,
        out: mpsc::Sender<ToRunner>,
        end: End,
    ) -> (Connection, Vec<(RunId, u32)>) {
        let mut state = self.lock();
        state.connections += 1;
        let connection = Connection {
            number: state.connections,
            out,
            end,
        };
        let id = facts.id.clone();
        let entry = Entry {
            facts,
            draining,
            free_disk,
            heard: Instant::now(),
            seen: true,
            held,
            declined: 0,
            rests_until: None,
            connection: connection.clone(),
        };
        let mut lost = Vec::new();
        if let Some(earlier) = state.runners.insert(id.clone(), entry) {
            earlier
                .connection
                .end
                .now("the runner has connected a second time");
            let held = &mut state.runners.get_mut(&id).expect("it was inserted").held;
            for (run, hold) in earlier.held {
                match held.get_mut(&run) {
                    // What was known of it stays known.
                    Some(now) if now.attempt == hold.attempt => {
                        now.created_at = hold.created_at;
                        now.started_at = hold.started_at;
                    }
                    _ if !hold.accepted => lost.push((run, hold.attempt)),
                    _ => {}
                }
            }
        }
        (connection, lost)
    }

    /// The runner's present connection, where `end` is its end.
    pub(crate) fn connection(&self, id: &str, end: &End) -> Option<Connection> {
        self.with(id, |entry| {
            let connection = &entry.connection;
            Arc::ptr_eq(&connection.end.status, &end.status).then(|| connection.clone())
        })
        .flatten()
    }

    /// A connection is over. An earlier one than the runner's present one changes nothing.
    pub(crate) fn disconnect(&self, id: &str, connection: &Connection) {
        let mut state = self.lock();
        if state
            .runners
            .get(id)
            .is_some_and(|entry| entry.connection.number == connection.number)
        {
            state.runners.remove(id);
        }
    }

    /// Ends a runner's connection, where there is one.
    pub fn end(&self, id: &str, reason: &str) {
        self.with(id, |entry| entry.connection.end.now(reason));
    }

    /// Ends all connections.
    pub(crate) fn end_all(&self, reason: &str) {
        for entry in self.lock().runners.values() {
            entry.connection.end.now(reason);
        }
    }

    /// The runner has said something.
    pub(crate) fn heard(&self, id: &str) {
        self.with(id, |entry| {
            entry.heard = Instant::now();
            entry.seen = true;
        });
    }

    /// A heartbeat: how much disk is free, and what it holds. What it has not named for longer than `patience`, it does not
    /// hold: another server has taken that lease back, or it never arrived. Gives how many slots that frees.
    pub(crate) fn beat(
        &self,
        id: &str,
        free_disk: u64,
        named: &HashMap<RunId, u32>,
        patience: Duration,
    ) -> usize {
        let now = Instant::now();
        self.with(id, |entry| {
            entry.free_disk = free_disk;
            let before = entry.held.len();
            entry.held.retain(|run, hold| {
                if named.get(run) == Some(&hold.attempt) {
                    hold.missed_since = None;
                    return true;
                }
                let since = *hold.missed_since.get_or_insert(now);
                now.duration_since(since) <= patience
            });
            before - entry.held.len()
        })
        .unwrap_or(0)
    }

    /// The runners that were heard of since the last call, with their free disks.
    pub(crate) fn take_seen(&self) -> Vec<(String, u64)> {
        let mut state = self.lock();
        let seen = state.runners.values_mut().filter(|entry| entry.seen);
        seen.map(|entry| {
            entry.seen = false;
            (entry.facts.id.clone(), entry.free_disk)
        })
        .collect()
    }

    /// Ends the connections of runners that were not heard of for `limit`. Gives their names.
    pub(crate) fn end_silent(&self, limit: Duration) -> Vec<String> {
        let state = self.lock();
        let silent = state
            .runners
            .values()
            .filter(|entry| entry.heard.elapsed() > limit);
        silent
            .map(|entry| {
                entry.connection.end.now("the runner was silent");
                entry.facts.name.clone()
            })
            .collect()
    }

    /// Sends a lease, and takes one of the runner's slots for it.
    pub(crate) fn deliver(
        &self,
        id: &str,
        run: &RunId,
        hold: Hold,
        message: Message,
    ) -> Result<(), Undelivered> {
        self.with(id, |entry| {
            if entry.draining {
                return Err(Undelivered::Draining);
            }
            let held = u32::try_from(entry.held.len()).unwrap_or(u32::MAX);
            if held >= entry.facts.slots {
                return Err(Undelivered::Full);
            }
            if entry.connection.end.token.is_cancelled() || !entry.send(message) {
                return Err(Undelivered::Gone);
            }
            entry.held.insert(run.clone(), hold);
            Ok(())
        })
        .unwrap_or(Err(Undelivered::Gone))
    }

    /// Sends a message; false where the runner is not connected here.
    pub(crate) fn tell(&self, id: &str, message: Message) -> bool {
        self.with(id, |entry| entry.send(message)).unwrap_or(false)
    }

    /// Tells a runner to stop a run, once a connection. True where it was told now.
    pub(crate) fn cancel(&self, id: &str, run: &RunId, attempt: u32, message: Message) -> bool {
        self.with(id, |entry| {
            let Some(hold) = entry.hold(run, attempt) else {
                return false;
            };
            if hold.cancel_sent {
                return false;
            }
            hold.cancel_sent = true;
            entry.send(message)
        })
        .unwrap_or(false)
    }

    /// Whether the runner holds this attempt, as far as is known here.
    pub(crate) fn holds(&self, id: &str, run: &RunId, attempt: u32) -> bool {
        self.with(id, |entry| entry.hold(run, attempt).is_some())
            .unwrap_or(false)
    }

    /// The database says that the runner holds this attempt.
    pub(crate) fn learn(&self, id: &str, run: &RunId, attempt: u32) {
        self.with(id, |entry| {
            let known = entry.held.entry(run.clone()).or_default();
            if known.attempt != attempt {
                *known = Hold {
                    attempt,
                    accepted: true,
                    ..Hold::default()
                };
            }
        });
    }

    /// The runner has accepted an attempt.
    pub(crate) fn accepted(&self, id: &str, run: &RunId, attempt: u32) {
        self.with(id, |entry| {
            entry.declined = 0;
            entry.rests_until = None;
            if let Some(hold) = entry.hold(run, attempt) {
                hold.accepted = true;
            }
        });
    }

    /// The runner has started an attempt at `now`. Gives what was known of it before, the first time.
    pub(crate) fn started(&self, id: &str, run: &RunId, attempt: u32, now: i64) -> Option<Hold> {
        self.with(id, |entry| {
            let hold = entry.hold(run, attempt)?;
            if hold.started_at.is_some() {
                return None;
            }
            let before = hold.clone();
            hold.accepted = true;
            hold.started_at = Some(now);
            Some(before)
        })
        .flatten()
    }

    /// An attempt is over, or not the runner's any more: its slot is free. Gives what was known of it.
    pub(crate) fn release(&self, id: &str, run: &RunId, attempt: u32) -> Option<Hold> {
        self.with(id, |entry| {
            entry.hold(run, attempt)?;
            entry.held.remove(run)
        })
        .flatten()
    }

    /// The runner has declined a lease, or did not accept it: it is left alone for a moment, longer each time.
    pub(crate) fn declined(&self, id: &str) {
        self.with(id, |entry| {
            let rest = REST * 2u32.saturating_pow(entry.declined.min(5));
            entry.declined += 1;
            entry.rests_until = Some(Instant::now() + rest.min(LONGEST_REST));
        });
    }

    /// Somebody has decided whether the runner takes anything new: it is told to drain, once. True where that is news.
    pub(crate) fn set_draining(&self, id: &str, draining: bool) -> bool {
        self.with(id, |entry| {
            let news = std::mem::replace(&mut entry.draining, draining) != draining;
            if news && draining {
                entry.send(Message::Drain(Drain {}));
            }
            news
        })
        .unwrap_or(false)
    }

    /// The runner has said that it takes nothing more.
    pub(crate) fn leaves(&self, id: &str) {
        self.with(id, |entry| entry.draining = true);
    }

    /// Every runner that has a free slot now and was heard of within `quiet`: one that may be lost gets nothing new.
    pub(crate) fn free(&self, quiet: Duration) -> Vec<FreeRunner> {
        let now = Instant::now();
        let state = self.lock();
        let heard = |entry: &&Entry| now.duration_since(entry.heard) <= quiet;
        let free = state.runners.values().filter(heard).filter_map(|entry| {
            let free = entry.free(now);
            (free > 0).then(|| FreeRunner {
                id: entry.facts.id.clone(),
                seed: rendezvous_seed(&entry.facts.id),
                profile: entry.facts.profile.clone(),
                free,
            })
        });
        free.collect()
    }

    /// Every connected runner.
    pub fn runners(&self) -> Vec<Connected> {
        let now = Instant::now();
        let state = self.lock();
        state.runners.values().map(|e| e.connected(now)).collect()
    }

    /// One runner, where it is connected here.
    pub fn runner(&self, id: &str) -> Option<Connected> {
        self.with(id, |entry| entry.connected(Instant::now()))
    }

    /// How many runners are connected here.
    pub fn len(&self) -> usize {
        self.lock().runners.len()
    }

    /// Nobody is connected here.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests;
