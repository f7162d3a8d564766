//! The store on a real SQLite and a real PostgreSQL: every test runs on both.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(
    clippy::print_stdout,
    reason = "a test that fails says from which seed"
)]

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
mod promotions;
mod queue;
mod quotas;
mod reports;
mod restart;
mod retention;
mod storm;
mod support;
mod tags;
mod timers;
mod told;
mod webhooks;
