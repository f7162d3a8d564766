//! One file a command. Each puts libraries together and decides nothing that they could decide.

pub(crate) mod apply;
mod approve;
pub(crate) mod backup;
pub(crate) mod build;
pub(crate) mod cascades;
pub(crate) mod completions;
mod context;
mod define;
mod dockerfile;
pub(crate) mod doctor;
mod engine;
mod follow;
pub(crate) mod images;
mod interrupt;
mod local_domain;
mod log;
pub(crate) mod login;
pub(crate) mod migrate_store;
pub(crate) mod plan;
mod proposals;
pub(crate) mod quotas;
pub(crate) mod remote;
pub(crate) mod remote_run;
pub(crate) mod run;
pub(crate) mod runner;
mod runners;
pub(crate) mod runs;
pub(crate) mod schema;
pub(crate) mod secrets;
pub(crate) mod serve;
mod signals;
mod spec;
pub(crate) mod stored;
mod task;
mod tasks_folder;
mod timers;
pub(crate) mod tokens;
mod upload;
mod vaults;
mod watch;
pub(crate) mod webhook_setup;
pub(crate) mod webhooks;

use std::io::{self, Write};

use crate::{error::CliError, exit::Exit, render};

/// Writes `text` to standard output, without what could do more to a terminal than show it.
fn print(text: &[u8]) -> Result<Exit, CliError> {
    write_out(render::text::terminal(&String::from_utf8_lossy(text)).as_bytes())
}

/// Writes `data` to standard output as it is. A reader that has gone away has seen enough.
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
