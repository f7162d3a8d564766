//! The runner: registers with a control plane, takes leases, executes runs, streams their logs, drains.
//!
//! [`run`] is all of it. A runner connects out and is never connected to. `agent` is the one task that knows what
//! this runner holds; it decides and never waits. Around it: `link` keeps a stream to the control plane, `run` carries
//! one run out, `spool` keeps a run's log on disk, `pump` sends it.
//!
//! Invariants:
//! - A build never waits for the control plane: while it is away, logs grow on disk and results wait.
//! - A push always waits for it: without a fresh answer that the run is still this runner's, nothing is pushed.
//! - What a run printed is in its log byte for byte until the control plane has it, or the log says where it ends and
//!   the run has failed. Memory does not grow with it.
//! - An attempt that is not this runner's any more is stopped, and nothing more is said about it.
//! - The runner's key and the secrets of runs are in no message, no log, and no file but the key's own.
//!
//! Left out: taking runs up again after the runner itself was restarted. They are run again elsewhere, or here, once
//! their leases have ended; what they left on the engine is removed at the next start.

mod agent;
mod backoff;
mod beats;
mod clock;
mod config;
mod context;
mod disk;
mod engine;
mod error;
mod fence;
mod held;
mod housekeeping;
mod id;
mod key;
mod link;
mod pump;
mod register;
mod results;
mod run;
mod spool;
mod start;
#[cfg(test)]
mod tests;
mod trace;
mod window;
mod work;

pub use config::AgentConfig;
pub use error::AgentError;
pub use start::run;
