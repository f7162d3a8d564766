//! Arguments of `acrtask credential`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{
    secret::SecretNameArgs,
    server::{ListArgs, ServerArgs, ValueSource},
    values::TaskPrefix,
};

/// Subcommands of `acrtask credential`.
#[derive(Debug, Subcommand)]
pub(crate) enum CredentialCommand {
    /// Set the login for a registry or a git host
    #[command(after_long_help = "\
Examples:
  acrtask credential set reg.example.com --username ci < password
  acrtask credential set github.com --username x-access-token --from-env GIT_PAT --task app
  acrtask credential set reg.example.com --username team --prefix team/ < password
  acrtask credential set git.example.com --username git --known-hosts git.known_hosts < id_ed25519")]
    Set(SetCredentialArgs),
    /// List the hosts with a stored login
    List(ListArgs),
    /// Delete a login
    Delete(SecretNameArgs),
}

/// Arguments of `acrtask credential set`.
#[derive(Debug, Args)]
pub(crate) struct SetCredentialArgs {
    /// The host, with its port if it is not the default: HOST[:PORT]
    pub(crate) host: String,
    /// Set the user name
    #[arg(short, long, value_name = "USER")]
    pub(crate) username: String,
    /// Restrict the login to this task [default: every task]
    #[arg(long, value_name = "NAME")]
    pub(crate) task: Option<String>,
    /// Restrict the login to the tasks whose names begin with this text, like `team/`
    #[arg(long, value_name = "PREFIX", conflicts_with = "task")]
    pub(crate) prefix: Option<TaskPrefix>,
    /// Verify the host with these public keys, as `ssh-keyscan HOST` prints them; needed if the
    /// password is a private key for git over ssh. Compare them with the keys that the host
    /// publishes. The keys of the large forges are built in
    #[arg(long, value_name = "FILE")]
    pub(crate) known_hosts: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) from: ValueSource,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}
