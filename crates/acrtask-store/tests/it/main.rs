//! Tests of the store with a real SQLite and a real PostgreSQL. Every test runs on both.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]
#![allow(
    clippy::print_stdout,
    reason = "the output of a failed test contains its seed"
)]

mod arm;
mod bases;
mod cascades;
mod deliveries;
mod entities;
mod forks;
mod groups;
mod hints;
mod images;
mod lists;
mod logs;
mod opening;
mod outbox;
mod promotions;
mod queue;
mod quotas;
mod reports;
mod restart;
mod retention;
mod sessions;
mod storm;
mod support;
mod tags;
mod timers;
mod webhooks;
