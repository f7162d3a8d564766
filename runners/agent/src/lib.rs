//! Runner: registers with a control plane, leases runs, executes them, streams their logs, drains.
//!
//! [`run`] is the entry point. A runner opens connections and accepts none. `agent` is the single
//! task that owns the state of this runner; it decides and never waits. The tasks around it: `link`
//! keeps a stream to the control plane, `run` executes one attempt, `spool` stores the log of an
//! attempt on disk, `pump` sends the log.
//!
//! Invariants:
//! - A build never waits for the control plane: during an outage, logs and results wait on disk.
//! - A push always waits for it: nothing is pushed without a fresh confirmation of the lease.
//! - The log contains the output of a run byte for byte until the control plane has stored it.
//!   Otherwise the log ends with a warning and the run fails. Memory use does not grow with the
//!   log.
//! - An attempt whose lease is lost is stopped, and the runner reports nothing more about it.
//! - The runner's key and the secrets of runs are in no message, in no log, and in no file except
//!   the key file.
//!
//! Left out: a restarted runner does not resume its runs. They run again elsewhere, or here, after
//! their leases have expired. The next start removes what they left on the engine.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod active_attempts;
mod agent;
mod backoff;
mod clock;
mod config;
mod context;
mod disk;
mod engine;
mod error;
mod fence;
mod heartbeat;
mod housekeeping;
mod id;
mod key;
mod link;
mod log_window;
mod pump;
mod records;
mod register;
mod results;
mod run;
mod spool;
mod start;
#[cfg(test)]
mod tests;
mod trace;
mod work;

pub use config::AgentConfig;
pub use error::AgentError;
pub use start::run;
