//! From the text of a task file to a [`plan::Plan`], or to diagnostics.
//!
//! The way of a file: its version is found, aliases are replaced, the text is rendered as a template, read
//! as YAML, checked, and put in order; each build and cmd line is taken apart into types. [`resolve`] goes
//! all of it; [`render_diagnostics`] and [`plan_text`] make pictures for people, [`plan_json`] and
//! [`Diagnostic::to_json`] data for programs.
//!
//! Invariants: no I/O, no clock, no environment: what a file may ask for comes through [`Lookup`], and time
//! through [`RunFacts`]. What [`UntrustedFacts`] names never becomes structure of the plan. Every place in a diagnostic is one of the author's text. Work and memory are
//! bounded, whatever the text.

pub mod build_line;
pub mod cmd_line;
pub mod plan;

mod alias;
mod check;
mod date;
mod diagnostic;
mod env;
mod facts;
mod flags;
mod graph;
mod json;
mod origin;
mod picture;
mod read;
mod render;
mod resolve;
mod task;
mod untrusted;
mod values;
mod version;
mod words;
mod yaml;

pub use check::{DEFAULT_NETWORK, mounted, normalize_path};
pub use date::format_date;
pub use diagnostic::{Diagnostic, Label, Position, Severity};
pub use facts::{
    BUILTIN_IMAGES, Lookup, RunFacts, SecretDeclaration, SecretSource, UntrustedFacts,
};
pub use json::plan_json;
pub use picture::plan_text;
pub use render::render_diagnostics;
pub use resolve::{MAX_FILE, Resolution, render_image, resolve};
pub use values::{ValuesFile, values_from_yaml};

/// The JSON Schema of `acr-task.yaml`, for editors: its keys, and what they hold.
pub const FILE_SCHEMA: &str = include_str!("acr-task.schema.json");

/// A task file.
#[derive(Debug, Clone, Default)]
pub struct TaskSource {
    /// Its path as it is shown.
    pub name: String,
    /// What it holds.
    pub text: String,
}
