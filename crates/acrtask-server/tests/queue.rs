//! Tests of the queue with a real listener, a real database and simulated runners.
//!
//! Each test runs on SQLite, and on PostgreSQL if `ACRTASK_TEST_POSTGRES` names a server.

#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "queue/assignment.rs"]
mod assignment;
#[path = "queue/faults.rs"]
mod faults;
#[path = "queue/limits.rs"]
mod limits;
#[path = "queue/listener.rs"]
mod listener;
#[path = "queue/logs.rs"]
mod logs;
#[path = "queue/rate.rs"]
mod rate;
#[path = "queue/registration.rs"]
mod registration;
#[path = "queue/servers.rs"]
mod servers;
#[path = "queue/support.rs"]
mod support;
#[path = "queue/test_db.rs"]
mod test_db;
