//! Base images and what stands on them: which tasks a new digest makes stale, in which order they are built
//! again, on exactly which digests, and how that goes on while builds end, fail and bases move again.
//!
//! Three parts, each understood alone:
//!
//! 1. [`graph`]: facts (which digests each task's images were built from, which digest each tag has now) become a
//!    [`Graph`] of compact ids.
//! 2. [`plan()`]: (graph, digest changes) -> a [`Plan`]: everything stale below, each task once, parents before
//!    children, each build pinned. [`show`] renders one as JSON, as text and for graphviz.
//! 3. [`cascade`]: [`Cascades`] carries plans out: a state machine that is told what happened and answers what to
//!    do, and a reconciliation that rereads all facts and says what has to begin or change.
//!
//! Invariants: nothing here does I/O, reads a clock or draws a random number, so the same input gives the same
//! output; no result depends on the order in which facts were given.
//!
//! Left out: watching registries, storing, starting runs, and holding pushes back until tests have passed. Those
//! belong to the control plane.

pub mod cascade;
pub mod graph;
mod intern;
pub mod plan;
pub mod show;
pub mod tags;

pub use cascade::Cascades;
pub use graph::{Facts, Graph, GraphBuilder};
pub use plan::{Plan, PlanOptions, plan};
