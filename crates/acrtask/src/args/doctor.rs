//! Arguments of `acrtask doctor`.

use clap::Args;

use super::server::{OutputArgs, ServerArgs};

/// Arguments of `acrtask doctor`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  acrtask doctor             check the server, its runners and its webhooks
  acrtask doctor app         check also everything that the task `app` needs
  acrtask doctor app -o json | jq '.checks[] | select(.verdict == \"wrong\")'

`doctor` changes nothing. It contacts registries and git hosts from this machine, without a login, and
from the server, with the logins of the task's runs (this needs a token with the scope `run`). A runner
may reach other hosts.

Exit codes:
    0  everything is fine
    1  at least one check failed
    2  the usage is wrong, or no server is configured")]
pub(crate) struct DoctorArgs {
    /// Check also what this task needs
    #[arg(value_name = "TASK")]
    pub(crate) task: Option<String>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}
