//! Cascades: what stands on a base that has moved is built again, once and in order.
//!
//! What is to be done is decided by `acrtask-cascade`, a pure state machine. Here it is given the facts ([`facts`]), its
//! state is kept ([`state`]), and what it asks for is done ([`work`]): runs are started and stopped in the same
//! transaction as the state that says so. [`driver`] does that for ever. Invariants: every server does the same, and of two
//! that change one version of the state one wins and the other begins anew; nothing is in memory that the database does
//! not have, so that a server may end between any two statements; a run of (cascade, task, attempt) exists once. Tags
//! of what was held back are moved by [`promote`], beside all that. Left out: which digests bases have (`bases`).

mod commands;
mod driver;
mod facts;
mod plan;
pub mod promote;
mod settings;
mod show;
mod starts;
mod state;
mod why;
mod work;

pub(crate) use self::driver::run;
pub use self::{
    commands::{CommandError, command, put_settings},
    driver::{Driver, pass},
    plan::{PlanError, plan},
    settings::settings,
    show::{ListFilter, list, show},
};
