//! Base images and the tasks that depend on them.
//!
//! A new digest of a base makes tasks stale. This crate decides which tasks, in which order they
//! are rebuilt and with which digests. It also follows the rebuild while runs finish or fail and
//! bases move again.
//!
//! The crate has three independent parts:
//!
//! 1. [`graph`] turns facts into a [`Graph`] of compact ids. The facts are the digests each task
//!    was built from and the current digest of each tag.
//! 2. [`plan()`] turns a graph and digest changes into a [`Plan`]. A plan contains every stale task
//!    once, parents before children, with a pinned digest for each base. [`show`] renders a plan as
//!    JSON, as text and for graphviz.
//! 3. [`cascade`] carries plans out. [`Cascades`] is a state machine: an event yields the actions
//!    to perform, and a reconciliation rereads all facts and yields what to start or change.
//!
//! Invariants: the code does no I/O, reads no clock and draws no random number, so the same input
//! gives the same output. No result depends on the order of the facts.
//!
//! Left out: watching registries, storing state, starting runs, and deferring tags until tests have
//! passed. The control plane does these.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

pub mod cascade;
pub mod graph;
mod intern;
pub mod plan;
pub mod show;
pub mod tags;

pub use cascade::Cascades;
pub use graph::{Facts, Graph, GraphBuilder};
pub use plan::{Plan, PlanOptions, plan};
