//! Webhooks that forges and registries send deliveries to, and what became of each delivery.

use acrtask_model::RunId;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::forms::{Provider, SecretName, WebhookSecret};

use crate::run::SecretText;

/// A webhook: where one forge or registry sends its deliveries, `POST /hooks/NAME`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Webhook {
    /// Its name.
    pub name: String,
    /// What it is.
    #[serde(flatten)]
    pub definition: WebhookDefinition,
    /// How many secrets it takes: two while they are being changed.
    pub secrets: u32,
    /// What to enter at the sender: a URL, or a path where the server does not know its own address.
    pub url: String,
    /// When it was made.
    #[schema(value_type = String)]
    pub created_at: Timestamp,
    /// When it was last changed.
    #[schema(value_type = String)]
    pub updated_at: Timestamp,
}

/// What a webhook is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct WebhookDefinition {
    /// Who sends: a forge (`github`, `gitlab`, `gitea`, `forgejo`, `bitbucket-cloud`, `bitbucket-server`, `azure-devops`,
    /// `generic`) or a registry (`distribution`, `harbor`, `docker-hub`, `azure`, `github-packages`, `quay`, `ecr`).
    pub provider: String,
    /// The repositories that it may speak of, as URLs for `git clone`; nothing: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub repositories: Vec<String>,
    /// Tells the forge where runs stand; nothing: it is not told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statuses: Option<CommitStatuses>,
}

/// How a forge is told where runs stand.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CommitStatuses {
    /// The forge's API, as in `https://github.example.com/api/v3`; nothing: the usual one of the repository's host.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^https?://")]
    pub api: Option<String>,
    /// The stored secret that holds the token for it; nothing: the login for the API's host, the task's own first.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<SecretName>)]
    pub token: Option<String>,
}

/// Sets a webhook.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PutWebhook {
    /// As in [`WebhookDefinition`].
    #[schema(value_type = Provider)]
    pub provider: String,
    /// The secrets that a sender may prove itself with: any one of them suffices, so that they can be changed one side
    /// after the other. Nothing leaves those that there are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<WebhookSecret>, max_items = 8)]
    pub secrets: Vec<SecretText>,
    /// As in [`WebhookDefinition`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub repositories: Vec<String>,
    /// As in [`WebhookDefinition`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statuses: Option<CommitStatuses>,
}

/// What a sender is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Receipt {
    /// The delivery's id here.
    pub delivery: String,
    /// It came before, and nothing was started now.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub seen_before: bool,
    /// The runs that it led to.
    #[schema(value_type = Vec<String>)]
    pub runs: Vec<RunId>,
    /// Why there is none, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// A delivery, and what it led to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Delivery {
    /// Its id here.
    pub id: String,
    /// The webhook that it came to.
    pub webhook: String,
    /// The sender's id of it.
    pub sender_id: String,
    /// What kind of thing happened: `push`, `tag`, `pullRequest`, `ping`, `registryPush`, `declined`.
    pub kind: String,
    /// The repository that it happened to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// What happened, in one sentence.
    pub summary: String,
    /// Why no task was looked at, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The delivery whose body was looked at once more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redelivery_of: Option<String>,
    /// Bytes of its body.
    pub size: u64,
    /// When it came.
    #[schema(value_type = String)]
    pub received_at: Timestamp,
    /// What it led to, for each task that was looked at.
    pub outcomes: Vec<Outcome>,
    /// The watched base images among those that a registry reported as pushed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub watches: Vec<DeliveryWatch>,
}

/// A watched base image that was pushed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryWatch {
    /// Registry, repository and tag.
    pub image: String,
    /// The cascade that builds its dependents. `None`: its digest did not change, or it is not checked yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cascade: Option<u64>,
}

/// What a delivery led to for one task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// The task.
    pub task: String,
    /// What it led to.
    pub what: OutcomeKind,
    /// The run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub run: Option<RunId>,
    /// Why, in one sentence.
    pub reason: String,
}

/// What a trigger led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum OutcomeKind {
    /// A run of its own.
    Run,
    /// A run that there was already, of the same commit.
    Joined,
    /// Nothing.
    Suppressed,
}

/// Deliveries to a webhook that were refused for the same reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// The webhook.
    pub webhook: String,
    /// The kind of refusal: `unproved`, `stale`, `too-large` ...
    pub code: String,
    /// The message of the last one.
    pub message: String,
    /// The address that the last one came from.
    pub address: String,
    /// Number of refusals.
    pub count: u64,
    /// Time of the first one.
    #[schema(value_type = String)]
    pub first_at: Timestamp,
    /// Time of the last one.
    #[schema(value_type = String)]
    pub last_at: Timestamp,
}

/// What started, or did not start, a run of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Trigger {
    /// Its id.
    pub id: String,
    /// What it was: `commit`, `tag`, `pull-request`, `registry-push`, `timer`, `manual` ...
    pub kind: String,
    /// When it came.
    #[schema(value_type = String)]
    pub received_at: Timestamp,
    /// The delivery that it came with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery: Option<String>,
    /// What it led to.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Where the run stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// The tick of a timer that it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tick: Option<crate::timer::Tick>,
}
