//! The store on a real SQLite and a real PostgreSQL: every test runs on both.

mod entities;
mod groups;
mod hints;
mod lists;
mod opening;
mod queue;
mod reports;
mod retention;
mod support;
