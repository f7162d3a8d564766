//! `acrtask webhook`, `acrtask doctor`, `acrtask runs approve`: what makes commits start runs, and what keeps them from it.

use std::path::PathBuf;

use acrtask_model::RunId;
use acrtask_trigger::{Provider, RegistrySource};
use clap::{Args, Subcommand};
use url::Url;

use super::{
    PathOrStdin,
    control::ListArgs,
    server::{OutputArgs, PeriodArgs, ServerArgs},
};

/// `acrtask webhook ...`.
#[derive(Debug, Subcommand)]
pub(crate) enum WebhookCommand {
    /// Say what to enter at the forge of a task's repository, or enter it there
    #[command(after_long_help = SETUP_EXAMPLES)]
    Setup(Box<SetupArgs>),
    /// Make a webhook: an address that one forge or registry sends deliveries to
    #[command(after_long_help = CREATE_EXAMPLES)]
    Create(Box<CreateWebhookArgs>),
    /// Change some of a webhook; what is not named stays
    #[command(after_long_help = UPDATE_EXAMPLES)]
    Update(Box<UpdateWebhookArgs>),
    /// List the webhooks
    List(ListArgs),
    /// Show a webhook
    Show(ShowWebhookArgs),
    /// Delete a webhook: what is sent to it is refused from then on
    Delete(WebhookNameArgs),
    /// List deliveries, the newest first, and what each led to
    #[command(after_long_help = DELIVERIES_EXAMPLES)]
    Deliveries(DeliveriesArgs),
    /// Look at a delivery once more, as the tasks are now
    #[command(after_long_help = "\
Examples:
  acrtask webhook redeliver d1     what it leads to now is a delivery of its own

A commit that has a run of the task already gets no second one.")]
    Redeliver(RedeliverArgs),
}

const SETUP_EXAMPLES: &str = "\
Examples:
  acrtask webhook setup app                              prints what to enter where
  acrtask webhook setup app --token-file github.token    enters it, and waits for the forge's ping
  acrtask webhook setup app --provider gitea --statuses  a forge of your own; it is told where runs stand

The webhook is made at the server where there is none for the repository; one that there is serves
all tasks of the repository. The token needs to manage webhooks: at GitHub `admin:repo_hook` or
\"Webhooks: read and write\", at GitLab `api` as a maintainer, at Gitea and Forgejo
`write:repository`, at Bitbucket Cloud `webhook` (of an API token, which stands in the file as
EMAIL:TOKEN, `read:webhook:bitbucket` and `write:webhook:bitbucket`), at Azure DevOps
\"Code: Read\" of an administrator of the project. It is used now, and kept nowhere.";

const CREATE_EXAMPLES: &str = "\
Examples:
  acrtask webhook create app --provider github --secret-file secret \\
    --repository https://github.com/org/app.git
  acrtask webhook create harbor --provider harbor --secret-env HARBOR_TOKEN
  acrtask webhook create app --provider gitea --secret-file secret \\
    --status-api https://git.example.com/api/v1 --status-token GITEA_TOKEN

Without a secret one is made, and printed once, on standard output.";

const UPDATE_EXAMPLES: &str = "\
Examples:
  acrtask webhook update app --secret-file old --secret-file new    both hold, while the sender changes
  acrtask webhook update app --secret-file new                      only the new one
  acrtask webhook update app --no-statuses";

const DELIVERIES_EXAMPLES: &str = "\
Examples:
  acrtask webhook deliveries
  acrtask webhook deliveries --webhook app --limit 5
  acrtask webhook deliveries --since 24h                            of the last day
  acrtask webhook deliveries --refused                              why deliveries were not taken
  acrtask webhook deliveries d1                                     one, with all that is known of it
  acrtask webhook deliveries -o json | jq '.items[] | select(.outcomes == [])'";

/// Who sends deliveries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sender {
    /// Of commits.
    Forge(Provider),
    /// Of images.
    Registry(RegistrySource),
}

impl Sender {
    /// Its name in the API.
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
        let usual = if text == "bitbucket" {
            "bitbucket-cloud"
        } else {
            text
        };
        if let Ok(provider) = usual.parse() {
            return Ok(Self::Forge(provider));
        }
        if let Ok(source) = usual.parse() {
            return Ok(Self::Registry(source));
        }
        let forges: Vec<_> = Provider::ALL.iter().map(|one| one.name()).collect();
        let registries: Vec<_> = RegistrySource::ALL.iter().map(|one| one.name()).collect();
        Err(format!(
            "no sender is called so; forges: {}; registries: {}",
            forges.join(", "),
            registries.join(", ")
        ))
    }
}

/// Where the secrets of a webhook are. Values are never taken from the command line.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct SecretsFrom {
    /// A file with a secret that the sender proves itself with, `-` for standard input; may be repeated: each of them holds
    #[arg(long, value_name = "FILE")]
    pub(crate) secret_file: Vec<PathOrStdin>,

    /// A variable of the environment with such a secret; may be repeated
    #[arg(long, value_name = "NAME")]
    pub(crate) secret_env: Vec<String>,
}

/// Whether and how the forge is told where runs stand.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Statuses")]
pub(crate) struct StatusArgs {
    /// Tell the forge where runs stand, with the stored login for its API's host
    #[arg(long)]
    pub(crate) statuses: bool,

    /// The stored secret that holds the token for that
    #[arg(long, value_name = "SECRET")]
    pub(crate) status_token: Option<String>,

    /// The forge's API, as in https://github.example.com/api/v3 [default: the usual one of the repository's host]
    #[arg(long, value_name = "URL")]
    pub(crate) status_api: Option<Url>,
}

impl StatusArgs {
    /// Whether statuses are asked for in any way.
    pub(crate) fn given(&self) -> bool {
        self.statuses || self.status_token.is_some() || self.status_api.is_some()
    }
}

/// `acrtask webhook create`.
#[derive(Debug, Args)]
pub(crate) struct CreateWebhookArgs {
    /// Its name, which is in its address: letters, digits, `-`, `_` and `.`
    pub(crate) name: String,

    /// Who sends: github, gitlab, gitea, forgejo, bitbucket-cloud, bitbucket-server, azure-devops, generic; of registries: distribution, harbor, docker-hub, azure, github-packages, quay, ecr
    #[arg(long, value_name = "SENDER")]
    pub(crate) provider: Sender,

    /// A repository that it may speak of, as a URL for `git clone`; may be repeated [default: all]
    #[arg(long, value_name = "URL")]
    pub(crate) repository: Vec<String>,

    #[command(flatten)]
    pub(crate) secrets: SecretsFrom,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) statuses: StatusArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// `acrtask webhook update`.
#[derive(Debug, Args)]
pub(crate) struct UpdateWebhookArgs {
    /// Its name
    pub(crate) name: String,

    /// The repositories that it may speak of, in the place of those before; '' for all
    #[arg(long, value_name = "URL")]
    pub(crate) repository: Vec<String>,

    /// No longer tell the forge where runs stand
    #[arg(long, conflicts_with_all = ["statuses", "status_token", "status_api"])]
    pub(crate) no_statuses: bool,

    #[command(flatten)]
    pub(crate) secrets: SecretsFrom,
    #[command(flatten)]
    pub(crate) statuses: StatusArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// `acrtask webhook show`.
#[derive(Debug, Args)]
pub(crate) struct ShowWebhookArgs {
    /// Its name
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// A webhook's name.
#[derive(Debug, Args)]
pub(crate) struct WebhookNameArgs {
    /// Its name
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// `acrtask webhook deliveries`.
#[derive(Debug, Args)]
pub(crate) struct DeliveriesArgs {
    /// Only this delivery
    #[arg(value_name = "ID", conflicts_with_all = ["webhook", "since", "until", "refused", "limit"])]
    pub(crate) id: Option<String>,

    /// Only deliveries to this webhook
    #[arg(long, value_name = "NAME")]
    pub(crate) webhook: Option<String>,

    #[command(flatten)]
    pub(crate) period: PeriodArgs,

    /// Show why deliveries were refused, with the last refusal of each kind
    #[arg(long, conflicts_with_all = ["since", "until"])]
    pub(crate) refused: bool,

    /// At most so many
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: u32,

    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// `acrtask webhook redeliver`.
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

/// `acrtask webhook setup`.
#[derive(Debug, Args)]
pub(crate) struct SetupArgs {
    /// The task whose repository is meant
    #[arg(value_name = "TASK")]
    pub(crate) task: String,

    /// What the repository's host is [default: known for the large ones, guessed from the host's name]
    #[arg(long, value_name = "FORGE")]
    pub(crate) provider: Option<Provider>,

    /// The webhook's name [default: the repository's]
    #[arg(long, value_name = "NAME")]
    pub(crate) webhook: Option<String>,

    /// A new secret in the place of the old ones, for a webhook that there is already
    #[arg(long)]
    pub(crate) new_secret: bool,

    /// Enter it through the forge's API, with the token in this file, `-` for standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathOrStdin>,

    /// The forge's API [default: the usual one of the repository's host]
    #[arg(long, value_name = "URL", requires = "token_file")]
    pub(crate) api: Option<Url>,

    /// Certificates of the authorities that the forge's API is trusted by (PEM) [default: the system's]
    #[arg(long, value_name = "FILE", requires = "token_file")]
    pub(crate) forge_ca: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) statuses: StatusArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// `acrtask runs approve`.
#[derive(Debug, Args)]
pub(crate) struct ApproveArgs {
    /// The runs
    #[arg(required = true, value_name = "ID", value_parser = |text: &str| RunId::new(text))]
    pub(crate) ids: Vec<RunId>,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// `acrtask doctor`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  acrtask doctor             the server, its runners, its webhooks
  acrtask doctor app         and all that the task `app` needs
  acrtask doctor app -o json | jq '.checks[] | select(.verdict == \"wrong\")'

It looks and changes nothing. Registries and git hosts are asked from this machine, without a login,
and from the server, with the logins that runs of the task are given (a token with the scope `run`
is needed for that); a runner may reach others.

Exit codes:
    0  nothing is wrong
    1  something is wrong
    2  the usage is wrong, or no server is known")]
pub(crate) struct DoctorArgs {
    /// A task
    #[arg(value_name = "TASK")]
    pub(crate) task: Option<String>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}
