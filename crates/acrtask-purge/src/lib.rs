//! Language of purges: the filters and ages of `acr purge`, and advice about lines that select
//! something else than their author probably means.
//!
//! Invariant: this crate does no I/O and reads no clock.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

pub mod advice;
pub mod ago;
mod expression;
pub mod filter;

pub use advice::{Advice, AdviceKind, advise_on_filter, advise_on_purge};
pub use ago::Ago;
pub use expression::Budget;
pub use filter::{Filter, FilterParser};
