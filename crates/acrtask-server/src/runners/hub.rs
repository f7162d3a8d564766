//! Registry of the runners that are connected to this server: properties, leases and connections.
//!
//! The state is a copy of the database and of the runners' own reports. It may be lost at any time.
//!
//! Invariants:
//! - A runner has at most one connection.
//! - The server never waits for a runner: a message to a full queue ends the connection.
//! - A runner never gets more leases than it has slots.

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

use crate::scheduler::assignment::{FreeRunner, Profile, rendezvous_seed};

/// Maximum number of messages that wait for a runner to read them.
pub(crate) const QUEUE: usize = 512;
/// Pause of a runner after it declined a lease. Each further decline doubles the pause.
const PAUSE: Duration = Duration::from_secs(2);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(64);

/// Connected runners by id.
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
    facts: RunnerFacts,
    draining: bool,
    free_disk: u64,
    last_seen: Instant,
    /// `true` if the database has yet to record that the runner was seen.
    unrecorded: bool,
    leases: HashMap<RunId, SlotLease>,
    /// Leases that the runner declined or did not accept in a row.
    declined: u32,
    paused_until: Option<Instant>,
    connection: Connection,
}

/// Properties that a runner reports when it connects.
#[derive(Debug, Clone)]
pub(crate) struct RunnerFacts {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) profile: Arc<Profile>,
    pub(crate) slots: u32,
    pub(crate) features: BTreeMap<String, String>,
    pub(crate) version: String,
}

/// Connection to a runner.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    /// Serial number among all connections of this process.
    number: u64,
    out: mpsc::Sender<ToRunner>,
    end: EndSignal,
}

/// Signal that ends a connection, with a reason for the runner.
#[derive(Debug, Clone, Default)]
pub(crate) struct EndSignal {
    token: CancellationToken,
    status: Arc<OnceLock<tonic::Status>>,
}

impl EndSignal {
    pub(crate) fn signal(&self, reason: impl Into<String>) {
        self.set(tonic::Status::unavailable(reason));
    }

    /// Ends the connection of a runner that its registration does not allow. The runner gives up.
    pub(crate) fn refuse(&self, reason: impl Into<String>) {
        self.set(tonic::Status::permission_denied(reason));
    }

    fn set(&self, status: tonic::Status) {
        let _ = self.status.set(status);
        self.token.cancel();
    }

    pub(crate) async fn wait(&self) {
        self.token.cancelled().await;
    }

    /// Returns the reason, the last message to the runner. `None` while the connection is open.
    pub(crate) fn status(&self) -> Option<tonic::Status> {
        self.status.get().cloned()
    }
}

/// A lease that occupies a slot of a runner.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SlotLease {
    pub(crate) attempt: u32,
    /// Creation time of the run. `None` if the lease is older than this connection.
    pub(crate) created_at: Option<i64>,
    /// Start time of the run, if this connection has seen the start.
    pub(crate) started_at: Option<i64>,
    /// The runner has accepted the lease.
    pub(crate) accepted: bool,
    /// The runner has received a cancel message.
    pub(crate) cancel_sent: bool,
    /// Time of the first of the consecutive heartbeats that omitted the lease.
    pub(crate) missed_since: Option<Instant>,
}

/// Reason why a lease did not reach a runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Undelivered {
    /// The runner is not connected to this server.
    #[error("the runner is not connected any more")]
    Gone,
    /// The runner accepts no new leases.
    #[error("the runner accepts no new leases")]
    Draining,
    /// All slots are occupied.
    #[error("the runner has no free slot")]
    Full,
}

/// Status of a connected runner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectedRunner {
    /// Id that the registration assigned.
    pub id: String,
    /// Unique name that the registration fixed.
    pub name: String,
    /// Pool, platforms, labels and tasks, for matching with runs.
    pub profile: Arc<Profile>,
    /// Number of runs that the runner executes at once.
    pub slots: u32,
    /// Number of leases of the runner.
    pub busy: u32,
    /// The runner accepts no new leases.
    pub draining: bool,
    /// The runner has recently declined a lease and is paused.
    pub paused: bool,
    /// Properties of the engine and the builder.
    pub features: BTreeMap<String, String>,
    /// Version of the runner's program.
    pub version: String,
    /// Free bytes on the disk of the runner's state folder.
    pub free_disk: u64,
}

impl Entry {
    fn free_slots(&self, now: Instant) -> u32 {
        let ended = self.connection.end.token.is_cancelled();
        if ended || self.draining || self.paused_until.is_some_and(|until| now < until) {
            return 0;
        }
        let leases = u32::try_from(self.leases.len()).unwrap_or(u32::MAX);
        self.facts.slots.saturating_sub(leases)
    }

    fn to_connected(&self, now: Instant) -> ConnectedRunner {
        let facts = &self.facts;
        ConnectedRunner {
            id: facts.id.clone(),
            name: facts.name.clone(),
            profile: facts.profile.clone(),
            slots: facts.slots,
            busy: u32::try_from(self.leases.len()).unwrap_or(u32::MAX),
            draining: self.draining,
            paused: self.paused_until.is_some_and(|until| now < until),
            features: facts.features.clone(),
            version: facts.version.clone(),
            free_disk: self.free_disk,
        }
    }

    /// Puts a message into the runner's queue. A full queue ends the connection.
    fn send(&self, message: Message) -> bool {
        let message = ToRunner {
            message: Some(message),
        };
        match self.connection.out.try_send(message) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                self.connection
                    .end
                    .signal("the runner does not read its messages");
                false
            }
            Err(TrySendError::Closed(_)) => false,
        }
    }

    fn lease_mut(&mut self, run: &RunId, attempt: u32) -> Option<&mut SlotLease> {
        self.leases
            .get_mut(run)
            .filter(|lease| lease.attempt == attempt)
    }
}

impl Hub {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with_entry<T>(&self, id: &str, f: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        self.lock().runners.get_mut(id).map(f)
    }

    /// Registers a connection and ends an earlier one of the same runner.
    ///
    /// Returns leases that were on their way to the earlier connection, were never accepted, and
    /// are not in `leases`.
    pub(crate) fn connect(
        &self,
        facts: RunnerFacts,
        draining: bool,
        free_disk: u64,
        leases: HashMap<RunId, SlotLease>,
        out: mpsc::Sender<ToRunner>,
        end: EndSignal,
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
            last_seen: Instant::now(),
            unrecorded: true,
            leases,
            declined: 0,
            paused_until: None,
            connection: connection.clone(),
        };
        let mut lost = Vec::new();
        if let Some(earlier) = state.runners.insert(id.clone(), entry) {
            earlier
                .connection
                .end
                .signal("the runner opened a second connection");
            let leases = &mut state.runners.get_mut(&id).expect("it was inserted").leases;
            for (run, lease) in earlier.leases {
                match leases.get_mut(&run) {
                    // The new connection keeps the times that the earlier one has seen.
                    Some(now) if now.attempt == lease.attempt => {
                        now.created_at = lease.created_at;
                        now.started_at = lease.started_at;
                    }
                    _ if !lease.accepted => lost.push((run, lease.attempt)),
                    _ => {}
                }
            }
        }
        (connection, lost)
    }

    /// Returns the runner's current connection if `end` belongs to it.
    pub(crate) fn connection(&self, id: &str, end: &EndSignal) -> Option<Connection> {
        self.with_entry(id, |entry| {
            let connection = &entry.connection;
            Arc::ptr_eq(&connection.end.status, &end.status).then(|| connection.clone())
        })
        .flatten()
    }

    /// Removes a connection. An outdated connection changes nothing.
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

    /// Ends a runner's connection, if it has one.
    pub fn end_connection(&self, id: &str, reason: &str) {
        self.with_entry(id, |entry| entry.connection.end.signal(reason));
    }

    /// Ends all connections.
    pub(crate) fn end_all(&self, reason: &str) {
        for entry in self.lock().runners.values() {
            entry.connection.end.signal(reason);
        }
    }

    /// Records that the runner has sent a message.
    pub(crate) fn touch(&self, id: &str) {
        self.with_entry(id, |entry| {
            entry.last_seen = Instant::now();
            entry.unrecorded = true;
        });
    }

    /// Records the free disk and the leases of a heartbeat. Returns the number of freed slots.
    ///
    /// A lease that heartbeats omit for longer than `patience` is removed: another server has
    /// revoked it, or it never arrived.
    pub(crate) fn record_heartbeat(
        &self,
        id: &str,
        free_disk: u64,
        named: &HashMap<RunId, u32>,
        patience: Duration,
    ) -> usize {
        let now = Instant::now();
        self.with_entry(id, |entry| {
            entry.free_disk = free_disk;
            let before = entry.leases.len();
            entry.leases.retain(|run, lease| {
                if named.get(run) == Some(&lease.attempt) {
                    lease.missed_since = None;
                    return true;
                }
                let since = *lease.missed_since.get_or_insert(now);
                now.duration_since(since) <= patience
            });
            before - entry.leases.len()
        })
        .unwrap_or(0)
    }

    /// Returns the runners that were seen since the last call, with their free disk in bytes.
    pub(crate) fn take_unrecorded(&self) -> Vec<(String, u64)> {
        let mut state = self.lock();
        let unrecorded = state.runners.values_mut().filter(|entry| entry.unrecorded);
        unrecorded
            .map(|entry| {
                entry.unrecorded = false;
                (entry.facts.id.clone(), entry.free_disk)
            })
            .collect()
    }

    /// Ends the connections of runners that were silent for `limit`. Returns their names.
    pub(crate) fn end_silent(&self, limit: Duration) -> Vec<String> {
        let state = self.lock();
        let silent = state
            .runners
            .values()
            .filter(|entry| entry.last_seen.elapsed() > limit);
        silent
            .map(|entry| {
                entry.connection.end.signal("the runner was silent");
                entry.facts.name.clone()
            })
            .collect()
    }

    /// Sends a lease and occupies one of the runner's slots.
    pub(crate) fn deliver(
        &self,
        id: &str,
        run: &RunId,
        lease: SlotLease,
        message: Message,
    ) -> Result<(), Undelivered> {
        self.with_entry(id, |entry| {
            if entry.draining {
                return Err(Undelivered::Draining);
            }
            let leases = u32::try_from(entry.leases.len()).unwrap_or(u32::MAX);
            if leases >= entry.facts.slots {
                return Err(Undelivered::Full);
            }
            if entry.connection.end.token.is_cancelled() || !entry.send(message) {
                return Err(Undelivered::Gone);
            }
            entry.leases.insert(run.clone(), lease);
            Ok(())
        })
        .unwrap_or(Err(Undelivered::Gone))
    }

    /// Sends a message. Returns `false` if the runner is not connected to this server.
    pub(crate) fn send(&self, id: &str, message: Message) -> bool {
        self.with_entry(id, |entry| entry.send(message))
            .unwrap_or(false)
    }

    /// Sends a cancel message once per connection. Returns `true` if this call sent it.
    pub(crate) fn cancel(&self, id: &str, run: &RunId, attempt: u32, message: Message) -> bool {
        self.with_entry(id, |entry| {
            let Some(lease) = entry.lease_mut(run, attempt) else {
                return false;
            };
            if lease.cancel_sent {
                return false;
            }
            lease.cancel_sent = true;
            entry.send(message)
        })
        .unwrap_or(false)
    }

    /// Returns `true` if this server knows a lease of the runner for this attempt.
    pub(crate) fn has_lease(&self, id: &str, run: &RunId, attempt: u32) -> bool {
        self.with_entry(id, |entry| entry.lease_mut(run, attempt).is_some())
            .unwrap_or(false)
    }

    /// Adds a lease that the database reports for the runner.
    pub(crate) fn add_lease(&self, id: &str, run: &RunId, attempt: u32) {
        self.with_entry(id, |entry| {
            let lease = entry.leases.entry(run.clone()).or_default();
            if lease.attempt != attempt {
                *lease = SlotLease {
                    attempt,
                    accepted: true,
                    ..SlotLease::default()
                };
            }
        });
    }

    /// Records that the runner has accepted an attempt.
    pub(crate) fn mark_accepted(&self, id: &str, run: &RunId, attempt: u32) {
        self.with_entry(id, |entry| {
            entry.declined = 0;
            entry.paused_until = None;
            if let Some(lease) = entry.lease_mut(run, attempt) {
                lease.accepted = true;
            }
        });
    }

    /// Records the start of an attempt at `now`. Returns the previous state of the lease, once.
    pub(crate) fn mark_started(
        &self,
        id: &str,
        run: &RunId,
        attempt: u32,
        now: i64,
    ) -> Option<SlotLease> {
        self.with_entry(id, |entry| {
            let lease = entry.lease_mut(run, attempt)?;
            if lease.started_at.is_some() {
                return None;
            }
            let before = lease.clone();
            lease.accepted = true;
            lease.started_at = Some(now);
            Some(before)
        })
        .flatten()
    }

    /// Frees the slot of an attempt that has finished or moved. Returns its lease.
    pub(crate) fn release(&self, id: &str, run: &RunId, attempt: u32) -> Option<SlotLease> {
        self.with_entry(id, |entry| {
            entry.lease_mut(run, attempt)?;
            entry.leases.remove(run)
        })
        .flatten()
    }

    /// Pauses a runner that declined or did not accept a lease, longer each time.
    pub(crate) fn mark_declined(&self, id: &str) {
        self.with_entry(id, |entry| {
            let rest = PAUSE * 2u32.saturating_pow(entry.declined.min(5));
            entry.declined += 1;
            entry.paused_until = Some(Instant::now() + rest.min(LONGEST_PAUSE));
        });
    }

    /// Sets whether the runner drains, and sends it a drain message once. Returns `true` on a
    /// change.
    pub(crate) fn set_draining(&self, id: &str, draining: bool) -> bool {
        self.with_entry(id, |entry| {
            let news = std::mem::replace(&mut entry.draining, draining) != draining;
            if news && draining {
                entry.send(Message::Drain(Drain {}));
            }
            news
        })
        .unwrap_or(false)
    }

    /// Records that the runner announced to accept no new leases.
    pub(crate) fn mark_draining(&self, id: &str) {
        self.with_entry(id, |entry| entry.draining = true);
    }

    /// Returns the runners with a free slot that were seen within `quiet`.
    ///
    /// A runner that may be lost gets no new leases.
    pub(crate) fn free_runners(&self, quiet: Duration) -> Vec<FreeRunner> {
        let now = Instant::now();
        let state = self.lock();
        let last_seen = |entry: &&Entry| now.duration_since(entry.last_seen) <= quiet;
        let free = state
            .runners
            .values()
            .filter(last_seen)
            .filter_map(|entry| {
                let free = entry.free_slots(now);
                (free > 0).then(|| FreeRunner {
                    id: entry.facts.id.clone(),
                    seed: rendezvous_seed(&entry.facts.id),
                    profile: entry.facts.profile.clone(),
                    free,
                })
            });
        free.collect()
    }

    /// Returns all connected runners.
    pub fn runners(&self) -> Vec<ConnectedRunner> {
        let now = Instant::now();
        let state = self.lock();
        state
            .runners
            .values()
            .map(|e| e.to_connected(now))
            .collect()
    }

    /// Returns a runner if it is connected to this server.
    pub fn runner(&self, id: &str) -> Option<ConnectedRunner> {
        self.with_entry(id, |entry| entry.to_connected(Instant::now()))
    }

    /// Returns the number of runners that are connected to this server.
    pub fn len(&self) -> usize {
        self.lock().runners.len()
    }

    /// Returns `true` if no runner is connected to this server.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests;
