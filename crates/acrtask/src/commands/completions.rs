//! `acrtask completions SHELL`: prints a completion script.

use clap::CommandFactory;

use crate::{args::Cli, error::CliError, exit::Exit};

/// Prints the completion script for `shell` on standard output.
pub(crate) fn completions(shell: clap_complete::Shell) -> Result<Exit, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "acrtask", &mut script);
    super::print(&script)
}
