//! Resolves the text of a task file to a [`plan::Plan`], or to diagnostics.
//!
//! [`resolve`] processes a file in these steps:
//!
//! 1. Find its version.
//! 2. Replace aliases.
//! 3. Render the text as a template.
//! 4. Parse YAML.
//! 5. Check the task and order its steps.
//! 6. Parse each build and cmd line into types.
//!
//! [`render_diagnostics`] and [`plan_text`] format results for people, [`plan_json`] and
//! [`Diagnostic::to_json`] for programs.
//!
//! Invariants:
//! - This crate uses no I/O, no clock and no environment. [`Lookup`] provides external texts,
//!   [`RunVariables`] the time.
//! - Values in [`UntrustedVariables`] never become structure of the plan.
//! - Every span in a diagnostic is a range of the author's text.
//! - Work and memory are bounded for any text.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

pub mod build_line;
pub mod cmd_line;
pub mod plan;

mod alias;
mod check;
mod code;
mod date;
mod diagnostic;
mod env;
mod flags;
mod graph;
mod json;
mod lexer;
mod origin;
mod plan_text;
mod read;
mod render;
mod resolve;
mod run_variables;
mod task;
mod untrusted;
mod values;
mod version;
mod yaml;

pub use check::{DEFAULT_NETWORK, find_mount, normalize_path};
pub use code::Code;
pub use date::format_date;
pub use diagnostic::{Diagnostic, Label, Position, Severity};
pub use json::plan_json;
pub use plan_text::plan_text;
pub use render::render_diagnostics;
pub use resolve::{MAX_FILE, Resolution, render_image, resolve};
pub use run_variables::{
    BUILTIN_IMAGES, Lookup, RunVariables, SecretDeclaration, SecretSource, UntrustedVariables,
};
pub use values::{ValuesFile, values_from_yaml};

/// The JSON Schema of `acr-task.yaml` for editors.
pub const FILE_SCHEMA: &str = include_str!("acr-task.schema.json");

/// A task file and its displayed path.
#[derive(Debug, Clone, Default)]
pub struct TaskSource {
    /// Path to show in messages.
    pub name: String,
    /// Content of the file.
    pub text: String,
}
