//! Feeds mutated inputs to everything that reads what a stranger can write.
//!
//! A [`Target`] is a function from bytes to an outcome. It must not panic, take more than
//! [`Limits::time`] or allocate more than [`Limits::memory`]; most targets also assert a property, as
//! that printing and parsing again gives the same. Inputs with a new outcome join the pool.
//!
//! Works on the stable toolchain, without instrumentation. What fails is made smaller and stored in
//! `corpus/TARGET/`, where every later run tries it first.

mod archives;
mod driver;
mod mutate;
mod targets;
mod words;

pub use driver::{Failure, Limits, Report, fuzz, replay};
pub use targets::{Target, all};

/// Counts what an input allocates.
#[global_allocator]
static ALLOCATED: peak_alloc::PeakAlloc = peak_alloc::PeakAlloc;
