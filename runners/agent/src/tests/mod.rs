//! Tests of the runner against a faulty control plane, with scripted runs.
//!
//! Both are test doubles: [`fake_server`] for faults that a real server shows rarely, [`script`]
//! for steps at moments that the test chooses. The stream between them is real: tonic over a
//! socket.

mod fake_server;
mod faults;
mod leases;
mod pushes;
mod script;
mod test_runner;
