//! A fuzzer that sends mutated inputs to all parsers of untrusted data.
//!
//! A [`Target`] is a function from bytes to an outcome. It must not panic, exceed [`Limits::time`]
//! or allocate more than [`Limits::memory`]. Most targets also assert a property, such as that
//! printing and parsing again gives the same value. Inputs with a new outcome join the pool.
//!
//! The fuzzer works on the stable toolchain, without instrumentation. A failing input is minimized
//! and stored in `corpus/TARGET/`, and every later run tries it first.

mod archives;
mod dictionary;
mod driver;
mod mutate;
mod targets;

pub use driver::{Failure, Limits, Report, fuzz, replay};
pub use targets::{Target, all};

/// Counts the allocations of an input.
#[global_allocator]
static ALLOCATED: peak_alloc::PeakAlloc = peak_alloc::PeakAlloc;
