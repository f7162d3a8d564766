//! Arguments of `acrtask catalog`: ready-made tasks.

use clap::{Args, Subcommand};

use super::{
    server::{OutputArgs, ServerArgs},
    values::Pair,
};

/// Subcommands of `acrtask catalog`.
#[derive(Debug, Subcommand)]
pub(crate) enum CatalogCommand {
    /// List the ready-made tasks
    List(OutputArgs),
    /// Print the file of a ready-made task, for `acrtask task apply`
    Show(ShowCatalogArgs),
    /// Store a ready-made task on a server
    #[command(after_long_help = "\
Examples:
  acrtask catalog add purge-nightly -r reg.example.com
  acrtask catalog add purge-pr -r reg.example.com -n team/purge-pr --set 'repositories=team/.*' --set age=14d

`acrtask task update` and `acrtask task delete` change and remove the task later.")]
    Add(AddCatalogArgs),
}

/// Arguments of `acrtask catalog show`.
#[derive(Debug, Args)]
pub(crate) struct ShowCatalogArgs {
    /// The ready-made task
    #[arg(value_name = "ENTRY")]
    pub(crate) entry: String,
}

/// Arguments of `acrtask catalog add`.
#[derive(Debug, Args)]
pub(crate) struct AddCatalogArgs {
    /// The ready-made task
    #[arg(value_name = "ENTRY")]
    pub(crate) entry: String,

    /// Use this registry: HOST[:PORT]
    #[arg(short, long, env = "ACRTASK_REGISTRY", value_name = "HOST")]
    pub(crate) registry: String,

    /// Give the task this name [default: ENTRY]
    #[arg(short, long, value_name = "NAME")]
    pub(crate) name: Option<String>,

    /// Set a value that the file lists; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<Pair>,

    #[command(flatten)]
    pub(crate) server: ServerArgs,
}
