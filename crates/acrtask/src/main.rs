//! `acrtask`: ACR Tasks for any registry, on your own machines.
//!
//! The program is thin: [`args`] parses what was typed, [`commands`] puts the libraries together, [`render`]
//! shows what they tell. Diagnostics and errors are data until they reach this crate.

mod args;
mod commands;
mod error;
mod exit;
mod render;

use std::{
    io::{IsTerminal, Write},
    process::ExitCode,
};

use clap::Parser;

use crate::{
    args::{Cli, Command},
    render::style::Style,
};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let style = Style::new(cli.global.color, std::io::stderr().is_terminal());
    log_to_stderr(&cli.global.log_level);
    let color = cli.global.color;
    let done = match cli.command {
        Command::Run(args) => commands::run::run(&args, color, style),
        Command::Build(args) => commands::build::build(&args, color, style),
        Command::Plan(args) => {
            let stdout = Style::new(color, std::io::stdout().is_terminal());
            commands::plan::plan(&args, style, stdout)
        }
        Command::Completions { shell } => commands::completions::completions(shell),
    };
    let exit = done.unwrap_or_else(|error| {
        // Where standard error is closed, the exit code still tells.
        let _ = std::io::stderr().write_all(error.render(style).as_bytes());
        error.exit()
    });
    ExitCode::from(exit.code())
}

/// What the libraries say about their own working. Not what a run tells: that is events.
fn log_to_stderr(filter: &str) {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}
