//! `acrtask`: ACR Tasks for any registry, on your own machines.
//!
//! The program is a thin layer over the libraries. [`args`] parses the command line, [`commands`]
//! calls the libraries, and [`client`] sends requests to a server. [`task_files`] reads tasks from
//! files, [`forge`] configures webhooks, and [`render`] formats the output. Diagnostics and errors
//! are data until they reach this crate.

mod args;
mod client;
mod commands;
mod error;
mod exit;
mod forge;
mod render;
mod task_files;
mod telemetry;

use std::{io::IsTerminal, process::ExitCode};

use clap::Parser;

use crate::{
    args::{Cli, Command},
    render::style::Style,
};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let style = Style::new(cli.global.color, std::io::stderr().is_terminal());
    let log = cli.global.log_level.as_deref();
    let color = cli.global.color;
    let stdout = Style::new(color, std::io::stdout().is_terminal());
    // Long-running commands initialize their log inside their runtimes.
    if !cli.command.is_long_lived() {
        telemetry::init_stderr_log(log);
    }
    let result = match cli.command {
        Command::Run(args) => match commands::remote::client_for_run(&args.remote) {
            Ok(Some(server)) => commands::remote_run::run(&args, &server, color, style),
            Ok(None) => commands::run::run(&args, color, style),
            Err(error) => Err(error),
        },
        Command::Build(args) => match commands::remote::client_for_run(&args.remote) {
            Ok(Some(server)) => commands::remote_run::build(&args, &server, color, style),
            Ok(None) => commands::build::build(&args, color, style),
            Err(error) => Err(error),
        },
        Command::Plan(args) => commands::plan::plan(&args, style, stdout),
        Command::Login(args) => commands::login::login(&args),
        Command::Logout(args) => commands::login::logout(&args),
        Command::Whoami(args) => commands::login::whoami(&args, stdout),
        Command::Task(command) => commands::task::task(&command, color, style, stdout),
        Command::Runs(command) => commands::runs::runs(&command, color, style, stdout),
        Command::Runner(args) => commands::runner::runner(&args, log, stdout),
        Command::Serve(args) => commands::serve::serve(&args, log, style),
        Command::Backup(args) => commands::backup::backup(&args),
        Command::Restore(args) => commands::backup::restore(&args),
        Command::MigrateStore(args) => commands::migrate_store::migrate_store(&args),
        Command::Webhook(command) => commands::webhook::webhook(&command, stdout),
        Command::Doctor(args) => commands::doctor::doctor(&args, stdout),
        Command::Secret(command) => commands::secret::secret(&command, stdout),
        Command::Credential(command) => commands::secret::credential(&command, stdout),
        Command::Image(command) => commands::image::image(&command, stdout),
        Command::Registry(command) => commands::registry::registry(&command, stdout),
        Command::Catalog(command) => commands::catalog::catalog(&command, stdout),
        Command::Base(command) => commands::image::base(&command, stdout),
        Command::Cascade(command) => commands::cascade::cascade(&command, stdout),
        Command::Quota(command) => commands::quota::quota(&command, stdout),
        Command::Token(command) => commands::token::token(&command, stdout),
        Command::Explain { code } => commands::explain::explain(code),
        Command::Schema { of } => commands::schema::schema(of),
        Command::Completions { shell } => commands::completions::completions(shell),
    };
    let exit = result.unwrap_or_else(|error| {
        commands::remote::write_error(&error.render(style));
        error.exit()
    });
    ExitCode::from(exit.code())
}
