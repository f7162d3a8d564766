//! Upkeep of registries: `acr purge` on any registry, the smaller `acr` commands, and copies.
//!
//! The work has three parts. [`inventory`] reads a repository. [`rules`] and [`plan`] decide which
//! tags and manifests go, and give each line its reason. [`carry_out`] deletes exactly the lines of
//! the plan. A dry run prints the same plan. `acr purge` and [`retention`] differ in their rules
//! only.
//!
//! Invariants:
//! - [`plan`] and [`rules`] are pure.
//! - A manifest stays if a kept tag, a kept index or a kept subject needs it.
//! - A tag of unknown age stays.
//! - The engine checks that the registry deletes manifests before it overwrites a tag.
//!
//! Left out: a trash, and mirrors.

pub mod carry_out;
pub mod command_line;
pub mod commands;
pub mod copy;
mod creation;
pub mod inventory;
pub mod layout;
pub mod listing;
pub mod location;
mod matching;
pub mod plan;
pub mod purge;
pub mod record;
pub mod referrers;
pub mod retention;
pub mod rules;
pub mod why;

use std::{future::Future, pin::Pin};

use acrtask_registry::RegistryError;

pub use acrtask_purge::{Ago, Budget, Filter, FilterParser, ago, filter};
pub use command_line::{AcrCommand, AcrLine};
pub use commands::run_command;
pub use copy::{Copy, CopyReport};
pub use location::Location;
pub use purge::{Context, Purge, PurgeReport};
pub use record::{NoRecords, Records};

/// Line of output of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// Line of standard output.
    Out(String),
    /// Line of standard error.
    Err(String),
}

/// Receiver of the lines of a command, as they arise.
pub type Lines = tokio::sync::mpsc::UnboundedSender<Line>;

/// Permission to delete, checked before every deletion.
pub trait Permission: Send + Sync {
    /// Checks the permission now. The error is the reason of a refusal.
    fn check(&self) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>>;

    /// Returns `true` if the command was stopped. Work without deletions then ends at once.
    fn is_stopped(&self) -> bool {
        false
    }
}

/// Permission that is always given: a user deletes with an own login.
#[derive(Debug, Clone, Copy)]
pub struct Always;

impl Permission for Always {
    fn check(&self) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// Returns an error of the registry with its causes and its advice.
fn describe_error(error: &RegistryError) -> String {
    let text = acrtask_model::error_chain(error);
    match error.help() {
        Some(help) => format!("{text}; {help}"),
        None => text,
    }
}
