//! Arguments of `acrtask secret`.

use clap::{Args, Subcommand};

use super::{
    server::{ListArgs, ServerArgs, ValueSource},
    values::TaskPrefix,
};

/// Subcommands of `acrtask secret`.
#[derive(Debug, Subcommand)]
pub(crate) enum SecretCommand {
    /// Set a secret
    #[command(after_long_help = "\
Examples:
  acrtask secret set NPM_TOKEN < token
  acrtask secret set NPM_TOKEN --task app --from-env NPM_TOKEN
  acrtask secret set NPM_TOKEN --prefix team/ < token    for all tasks of a team

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
    /// Restrict the secret to the tasks whose names begin with this text, like `team/`
    #[arg(long, value_name = "PREFIX", conflicts_with = "task")]
    pub(crate) prefix: Option<TaskPrefix>,
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
    /// Delete the one that is restricted to this prefix of tasks
    #[arg(long, value_name = "PREFIX", conflicts_with = "task")]
    pub(crate) prefix: Option<TaskPrefix>,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}
