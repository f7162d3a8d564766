//! Commands of the program, in a module each. They call the libraries and contain no logic that
//! belongs there.

pub(crate) mod apply;
mod approve;
pub(crate) mod backup;
pub(crate) mod build;
pub(crate) mod cascade;
pub(crate) mod catalog;
pub(crate) mod completions;
mod context;
mod dockerfile;
pub(crate) mod doctor;
mod engine;
pub(crate) mod explain;
mod follow;
pub(crate) mod image;
mod interrupt;
mod local_domain;
mod log;
mod log_lines;
pub(crate) mod login;
pub(crate) mod migrate_store;
pub(crate) mod plan;
mod proposals;
pub(crate) mod quota;
pub(crate) mod registry;
pub(crate) mod remote;
pub(crate) mod remote_run;
pub(crate) mod run;
pub(crate) mod runner;
mod runner_admin;
pub(crate) mod runs;
pub(crate) mod schema;
pub(crate) mod secret;
pub(crate) mod serve;
mod signals;
mod spec;
pub(crate) mod task;
mod task_file;
mod task_flags;
mod tasks_folder;
mod timer;
pub(crate) mod token;
mod upload;
mod vaults;
mod watch;
pub(crate) mod webhook;
pub(crate) mod webhook_setup;

use std::io::{self, Write};

use crate::{error::CliError, exit::Exit, render};

/// Writes `text` to standard output without terminal control sequences.
fn print(text: &[u8]) -> Result<Exit, CliError> {
    write_out(render::text::sanitize(&String::from_utf8_lossy(text)).as_bytes())
}

/// Writes `data` to standard output unchanged. A closed pipe is not an error.
fn write_out(data: &[u8]) -> Result<Exit, CliError> {
    let mut out = io::stdout().lock();
    match out.write_all(data).and_then(|()| out.flush()) {
        Ok(()) => Ok(Exit::Succeeded),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Exit::Succeeded),
        Err(error) => {
            Err(CliError::unreachable("standard output cannot be written to").because(&error))
        }
    }
}
