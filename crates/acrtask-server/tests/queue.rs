//! The queue, from a request to its end: a real listener, a real database, runners that say what a test tells them to.
//! Each test runs on SQLite, and on PostgreSQL where `ACRTASK_TEST_POSTGRES` names one.

#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "queue/faults.rs"]
mod faults;
#[path = "queue/limits.rs"]
mod limits;
#[path = "queue/listener.rs"]
mod listener;
#[path = "queue/logs.rs"]
mod logs;
#[path = "queue/order.rs"]
mod order;
#[path = "queue/place.rs"]
mod place;
#[path = "queue/rate.rs"]
mod rate;
#[path = "queue/registration.rs"]
mod registration;
#[path = "queue/servers.rs"]
mod servers;
#[path = "queue/support.rs"]
mod support;
