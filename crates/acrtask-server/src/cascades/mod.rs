//! Cascades: each change of a base rebuilds its dependents once and in order.
//!
//! The pure state machine in `acrtask-cascade` makes the decisions. This module provides its facts
//! ([`facts`]), stores its state ([`state`]) and carries out its actions ([`reconcile`]). Runs are
//! started and stopped in the transaction that stores the state. [`driver`] does this forever.
//! [`promote`] moves the tags of staged images independently.
//!
//! Invariants:
//!
//! - All servers do the same. If two change one version of the state, one wins and the other starts
//!   again.
//! - The cache contains nothing that is not in the database, so a server may stop between any two
//!   statements.
//! - A run of (cascade, task, attempt) exists once.
//!
//! Left out: the digests of bases (`bases`).

mod commands;
mod driver;
mod facts;
mod plan;
pub mod promote;
mod reconcile;
mod settings;
mod show;
mod starts;
mod state;
mod why;

pub(crate) use self::driver::run;
pub use self::{
    commands::{CommandError, apply_command, put_settings},
    driver::{Driver, run_pass},
    plan::{PlanError, plan},
    settings::read_settings,
    show::{ListFilter, list, show},
};
