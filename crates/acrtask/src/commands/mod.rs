//! One file a command. Each puts libraries together and decides nothing that they could decide.

pub(crate) mod build;
pub(crate) mod completions;
mod context;
mod engine;
mod interrupt;
pub(crate) mod plan;
pub(crate) mod run;
mod spec;
mod task;
mod watch;

use std::io::{self, Write};

use crate::{error::CliError, exit::Exit};

/// Puts `data` on standard output. A reader that has gone away has seen enough.
fn print(data: &[u8]) -> Result<Exit, CliError> {
    let mut out = io::stdout().lock();
    match out.write_all(data).and_then(|()| out.flush()) {
        Ok(()) => Ok(Exit::Succeeded),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Exit::Succeeded),
        Err(error) => {
            Err(CliError::unreachable("standard output cannot be written to").because(&error))
        }
    }
}
