//! Arguments of `acrtask webhook`.

use std::path::PathBuf;

use acrtask_trigger::{Provider, RegistrySource};
use clap::{Args, Subcommand};
use url::Url;

use super::{
    PathOrStdin,
    server::{ListArgs, OutputArgs, PeriodArgs, ServerArgs},
    values::TaskPrefix,
};

/// Subcommands of `acrtask webhook`.
#[derive(Debug, Subcommand)]
pub(crate) enum WebhookCommand {
    /// Show the webhook settings for the forge of a task's repository, or configure the forge
    #[command(after_long_help = SETUP_EXAMPLES)]
    Setup(Box<SetupArgs>),
    /// Create a webhook: an address that one forge or registry sends deliveries to
    #[command(after_long_help = CREATE_EXAMPLES)]
    Create(Box<CreateWebhookArgs>),
    /// Change the given settings of a webhook
    #[command(after_long_help = UPDATE_EXAMPLES)]
    Update(Box<UpdateWebhookArgs>),
    /// List the webhooks
    List(ListArgs),
    /// Show a webhook
    Show(ShowWebhookArgs),
    /// Delete a webhook; the server rejects later deliveries to it
    Delete(WebhookNameArgs),
    /// List deliveries, the newest first, with their decisions
    #[command(after_long_help = DELIVERIES_EXAMPLES)]
    Deliveries(DeliveriesArgs),
    /// Evaluate a delivery again with the current tasks
    #[command(after_long_help = "\
Examples:
  acrtask webhook redeliver d1     store the result as a new delivery

A commit that already has a run of the task does not get a second one.")]
    Redeliver(RedeliverArgs),
}

const SETUP_EXAMPLES: &str = "\
Examples:
  acrtask webhook setup app                              print the settings to enter at the forge
  acrtask webhook setup app --token-file github.token    configure the forge, and wait for its ping
  acrtask webhook setup app --provider gitea --statuses  your own forge; report commit statuses to it

If the repository has no webhook on the server yet, `setup` creates one. A webhook serves all tasks of
its repository. The token must be allowed to manage webhooks: at GitHub `admin:repo_hook` or
\"Webhooks: read and write\", at GitLab `api` as a maintainer, at Gitea and Forgejo
`write:repository`, at Bitbucket Cloud `webhook` (of an API token, stored in the file as
EMAIL:TOKEN, `read:webhook:bitbucket` and `write:webhook:bitbucket`), at Azure DevOps
\"Code: Read\" of an administrator of the project. `setup` does not store the token.";

const CREATE_EXAMPLES: &str = "\
Examples:
  acrtask webhook create app --provider github --secret-file secret \\
    --repository https://github.com/org/app.git
  acrtask webhook create harbor --provider harbor --secret-env HARBOR_TOKEN
  acrtask webhook create app --provider gitea --secret-file secret \\
    --status-api https://git.example.com/api/v1 --status-token GITEA_TOKEN

Without a secret, the server generates one. It is printed once, on standard output.";

const UPDATE_EXAMPLES: &str = "\
Examples:
  acrtask webhook update app --secret-file old --secret-file new    accept both while the sender switches
  acrtask webhook update app --secret-file new                      accept only the new one
  acrtask webhook update app --no-statuses";

const DELIVERIES_EXAMPLES: &str = "\
Examples:
  acrtask webhook deliveries
  acrtask webhook deliveries --webhook app --limit 5
  acrtask webhook deliveries --since 24h                            show those of the last day
  acrtask webhook deliveries --refused                              show why deliveries were rejected
  acrtask webhook deliveries d1                                     show one in detail
  acrtask webhook deliveries -o json | jq '.items[] | select(.decisions == [])'";

/// Sender of deliveries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sender {
    /// A forge: sends commits, tags and pull requests.
    Forge(Provider),
    /// A registry: sends pushes of images.
    Registry(RegistrySource),
}

impl Sender {
    /// Returns the sender's name in the API.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Forge(provider) => provider.name(),
            Self::Registry(source) => source.name(),
        }
    }
}

impl std::str::FromStr for Sender {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let canonical = if text == "bitbucket" {
            "bitbucket-cloud"
        } else {
            text
        };
        if let Ok(provider) = canonical.parse() {
            return Ok(Self::Forge(provider));
        }
        if let Ok(source) = canonical.parse() {
            return Ok(Self::Registry(source));
        }
        let forges: Vec<_> = Provider::ALL
            .iter()
            .map(|provider| provider.name())
            .collect();
        let registries: Vec<_> = RegistrySource::ALL
            .iter()
            .map(|source| source.name())
            .collect();
        Err(format!(
            "unknown sender; write one of the forges {}, or of the registries {}",
            forges.join(", "),
            registries.join(", ")
        ))
    }
}

/// Sources of a webhook's secrets. The command line never contains the values.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct SecretSources {
    /// Read a secret that authenticates the sender from this file, `-` for standard input; may be
    /// repeated: the server accepts each of them
    #[arg(long, value_name = "FILE")]
    pub(crate) secret_file: Vec<PathOrStdin>,

    /// Read such a secret from this environment variable; may be repeated
    #[arg(long, value_name = "NAME")]
    pub(crate) secret_env: Vec<String>,
}

/// Commit statuses that the server reports to the forge.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Statuses")]
pub(crate) struct StatusArgs {
    /// Report commit statuses to the forge, with the stored login for its API's host
    #[arg(long)]
    pub(crate) statuses: bool,

    /// Use the token in this stored secret for the statuses
    #[arg(long, value_name = "SECRET")]
    pub(crate) status_token: Option<String>,

    /// Use this API of the forge, like https://github.example.com/api/v3 [default: the default API
    /// of the repository's host]
    #[arg(long, value_name = "URL")]
    pub(crate) status_api: Option<Url>,
}

impl StatusArgs {
    /// Returns `true` if at least one flag was given.
    pub(crate) fn any_given(&self) -> bool {
        self.statuses || self.status_token.is_some() || self.status_api.is_some()
    }
}

/// Arguments of `acrtask webhook create`.
#[derive(Debug, Args)]
pub(crate) struct CreateWebhookArgs {
    /// The webhook's name, which is part of its address: letters, digits, `-`, `_` and `.`
    pub(crate) name: String,

    /// Choose the sender: github, gitlab, gitea, forgejo, bitbucket-cloud, bitbucket-server,
    /// azure-devops, generic; of registries: distribution, harbor, docker-hub, azure,
    /// github-packages, quay, ecr
    #[arg(long, value_name = "SENDER")]
    pub(crate) provider: Sender,

    /// Accept events of this repository, as a URL for `git clone`; may be repeated [default: all
    /// repositories]
    #[arg(long, value_name = "URL")]
    pub(crate) repository: Vec<String>,

    /// Start only tasks whose names begin with this text, like `team/` [default: all tasks; this
    /// requires the scope `admin`]
    #[arg(long, value_name = "PREFIX")]
    pub(crate) prefix: Option<TaskPrefix>,

    #[command(flatten)]
    pub(crate) secrets: SecretSources,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) statuses: StatusArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Arguments of `acrtask webhook update`.
#[derive(Debug, Args)]
pub(crate) struct UpdateWebhookArgs {
    /// The webhook's name
    pub(crate) name: String,

    /// Accept events of this repository, instead of the previous ones; may be repeated; '' for all
    #[arg(long, value_name = "URL")]
    pub(crate) repository: Vec<String>,

    /// Stop reporting commit statuses to the forge
    #[arg(long, conflicts_with_all = ["statuses", "status_token", "status_api"])]
    pub(crate) no_statuses: bool,

    #[command(flatten)]
    pub(crate) secrets: SecretSources,
    #[command(flatten)]
    pub(crate) statuses: StatusArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Arguments of `acrtask webhook show`.
#[derive(Debug, Args)]
pub(crate) struct ShowWebhookArgs {
    /// The webhook's name
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Arguments of a command that needs only a webhook's name.
#[derive(Debug, Args)]
pub(crate) struct WebhookNameArgs {
    /// The webhook's name
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Arguments of `acrtask webhook deliveries`.
#[derive(Debug, Args)]
pub(crate) struct DeliveriesArgs {
    /// Show only this delivery
    #[arg(value_name = "ID", conflicts_with_all = ["webhook", "since", "until", "refused", "limit"])]
    pub(crate) id: Option<String>,

    /// Only deliveries to this webhook
    #[arg(long, value_name = "NAME")]
    pub(crate) webhook: Option<String>,

    #[command(flatten)]
    pub(crate) period: PeriodArgs,

    /// Show why deliveries were rejected, with the latest rejection of each kind
    #[arg(long, conflicts_with_all = ["since", "until"])]
    pub(crate) refused: bool,

    /// Show at most N entries
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: u32,

    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Arguments of `acrtask webhook redeliver`.
#[derive(Debug, Args)]
pub(crate) struct RedeliverArgs {
    /// The delivery, as `acrtask webhook deliveries` shows it
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Arguments of `acrtask webhook setup`.
#[derive(Debug, Args)]
pub(crate) struct SetupArgs {
    /// The task whose repository gets the webhook
    #[arg(value_name = "TASK")]
    pub(crate) task: String,

    /// Choose the kind of the repository's forge [default: known for the large forges, guessed from
    /// the host's name]
    #[arg(long, value_name = "FORGE")]
    pub(crate) provider: Option<Provider>,

    /// Name the webhook [default: the repository's name]
    #[arg(long, value_name = "NAME")]
    pub(crate) webhook: Option<String>,

    /// Start only tasks whose names begin with this text, like `team/` [default: all tasks; this
    /// requires the scope `admin`]
    #[arg(long, value_name = "PREFIX")]
    pub(crate) prefix: Option<TaskPrefix>,

    /// Replace the secrets of an existing webhook with a new one
    #[arg(long)]
    pub(crate) new_secret: bool,

    /// Configure the forge through its API, with the token in this file, `-` for standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathOrStdin>,

    /// Use this API of the forge [default: the default API of the repository's host]
    #[arg(long, value_name = "URL", requires = "token_file")]
    pub(crate) api: Option<Url>,

    /// Trust these certificate authorities for the forge's API (PEM) [default: the system's]
    #[arg(long, value_name = "FILE", requires = "token_file")]
    pub(crate) forge_ca: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) statuses: StatusArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}
