//! Arguments of `acrtask secret`.

use clap::{Args, Subcommand};

use super::server::{ListArgs, ServerArgs, ValueSource};

/// Subcommands of `acrtask secret`.
#[derive(Debug, Subcommand)]
pub(crate) enum SecretCommand {
    /// Set a secret
    #[command(after_long_help = "\
Examples:
  acrtask secret set NPM_TOKEN < token
  acrtask secret set NPM_TOKEN --task app --from-env NPM_TOKEN

The command line never contains a value: every process of the machine could read it.")]
    Set(SetSecretArgs),
    /// List the names of secrets
    List(ListArgs),
    /// Delete a secret
    Delete(SecretNameArgs),
}

/// Arguments of `acrtask secret set`.
#[derive(Debug, Args)]
pub(crate) struct SetSecretArgs {
    /// The secret's name
    pub(crate) name: String,
    /// Restrict the secret to this task [default: every task that refers to it]
    #[arg(long, value_name = "NAME")]
    pub(crate) task: Option<String>,
    #[command(flatten)]
    pub(crate) from: ValueSource,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Arguments of `acrtask secret delete` and `acrtask credential delete`.
#[derive(Debug, Args)]
pub(crate) struct SecretNameArgs {
    /// The secret's name, or the credential's host
    pub(crate) name: String,
    /// Delete the one that is restricted to this task
    #[arg(long, value_name = "NAME")]
    pub(crate) task: Option<String>,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}
