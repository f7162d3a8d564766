//! Webhooks of forges and registries, their deliveries, and the decisions about each delivery.

use acrtask_model::RunId;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::forms::{Provider, SecretName, TaskPrefix, WebhookSecret};

use crate::{admin::scope_includes, run::SecretText};

/// Webhook: endpoint `POST /hooks/NAME` for the deliveries of one forge or registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Webhook {
    /// Name of the webhook.
    pub name: String,
    /// Definition of the webhook.
    #[serde(flatten)]
    pub definition: WebhookDefinition,
    /// Number of accepted secrets. Two during a rotation.
    pub secrets: u32,
    /// URL for the settings of the sender. Only a path if the server does not know its public URL.
    pub url: String,
    /// Time of creation.
    #[schema(value_type = String)]
    pub created_at: Timestamp,
    /// Time of the last change.
    #[schema(value_type = String)]
    pub updated_at: Timestamp,
}

/// Definition of a webhook.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct WebhookDefinition {
    /// Sender: a forge (`github`, `gitlab`, `gitea`, `forgejo`, `bitbucket-cloud`,
    /// `bitbucket-server`, `azure-devops`, `generic`) or a registry (`distribution`, `harbor`,
    /// `docker-hub`, `azure`, `github-packages`, `quay`, `ecr`).
    pub provider: String,
    /// Repositories that deliveries may concern, as URLs for `git clone`. If empty, all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub repositories: Vec<String>,
    /// Prefix, followed by `*`, of the names of the tasks that deliveries may start. If absent, all
    /// tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tasks: Option<String>,
    /// Commit statuses that the server sends to the forge. If absent, it sends none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statuses: Option<CommitStatuses>,
}

impl WebhookDefinition {
    /// Returns `true` if deliveries may start the task named `name`.
    pub fn may_start(&self, name: &str) -> bool {
        scope_includes(None, self.tasks.as_deref(), name)
    }
}

/// Options for commit statuses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CommitStatuses {
    /// URL of the forge's API: `https://github.example.com/api/v3`. If absent, the default API of
    /// the repository's host.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^https?://")]
    pub api: Option<String>,
    /// Name of the stored secret with the API token. If absent, the login for the host of the API.
    /// A login of the task takes precedence.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<SecretName>)]
    pub token: Option<String>,
}

/// Request to create or replace a webhook.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PutWebhook {
    /// Sender, as in [`WebhookDefinition`].
    #[schema(value_type = Provider)]
    pub provider: String,
    /// Secrets that authenticate the sender. Each of them is accepted, which allows a rotation. If
    /// empty, the stored secrets remain.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<WebhookSecret>, max_items = 8)]
    pub secrets: Vec<SecretText>,
    /// Repositories, as in [`WebhookDefinition`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub repositories: Vec<String>,
    /// Prefix of tasks, as in [`WebhookDefinition`]. A token without the scope `admin` requires it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<TaskPrefix>)]
    pub tasks: Option<String>,
    /// Commit statuses, as in [`WebhookDefinition`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statuses: Option<CommitStatuses>,
}

/// Response to the sender of a delivery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Receipt {
    /// Id of the delivery.
    pub delivery: String,
    /// `true` if the server received this delivery before. Then it started nothing now.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub duplicate: bool,
    /// Ids of the runs that the delivery led to.
    #[schema(value_type = Vec<String>)]
    pub runs: Vec<RunId>,
    /// Reason why no run started, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Delivery and the decisions about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Delivery {
    /// Id of the delivery.
    pub id: String,
    /// Name of the webhook.
    pub webhook: String,
    /// Id that the sender gave the delivery.
    pub sender_id: String,
    /// Kind of event: `push`, `tag`, `pullRequest`, `ping`, `registryPush` or `declined`.
    pub kind: String,
    /// Repository that the event is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// Description of the event in one sentence.
    pub summary: String,
    /// Reason if the delivery concerned no task, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Id of the delivery that this one repeats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redelivery_of: Option<String>,
    /// Size of the body in bytes.
    pub size: u64,
    /// Time of arrival.
    #[schema(value_type = String)]
    pub received_at: Timestamp,
    /// Decision for each task that the delivery concerned.
    pub decisions: Vec<Decision>,
    /// Observed base images that a registry reported as pushed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub watches: Vec<DeliveryWatch>,
}

/// Observed base image that was pushed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryWatch {
    /// Registry, repository and tag.
    pub image: String,
    /// Cascade that rebuilds the dependents. Absent if the digest did not change, or if it was not
    /// checked yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cascade: Option<u64>,
}

/// Decision about a trigger for one task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// Name of the task.
    pub task: String,
    /// Action that the trigger led to.
    pub action: DecisionAction,
    /// Id of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub run: Option<RunId>,
    /// Reason in one sentence.
    pub reason: String,
}

/// Action that a trigger led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum DecisionAction {
    /// A new run started.
    RunStarted,
    /// The commit already had a run.
    ExistingRun,
    /// No run started.
    Ignored,
}

/// Rejected deliveries of a webhook, grouped by reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// Name of the webhook.
    pub webhook: String,
    /// Reason code: `unproved`, `stale`, `too-large` ...
    pub code: String,
    /// Message of the last rejection.
    pub message: String,
    /// Address of the last sender.
    pub address: String,
    /// Number of rejections.
    pub count: u64,
    /// Time of the first rejection.
    #[schema(value_type = String)]
    pub first_at: Timestamp,
    /// Time of the last rejection.
    #[schema(value_type = String)]
    pub last_at: Timestamp,
}

/// Trigger of a task and the decision about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Trigger {
    /// Id of the trigger.
    pub id: String,
    /// Kind of trigger: `commit`, `tag`, `pullRequest`, `registryPush`, `timer`, `manual` ...
    pub kind: String,
    /// Time of arrival.
    #[schema(value_type = String)]
    pub received_at: Timestamp,
    /// Id of the delivery that contained the trigger.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery: Option<String>,
    /// Decision about the trigger.
    #[serde(flatten)]
    pub decision: Decision,
    /// State of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Timer firing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firing: Option<crate::timer::Firing>,
}
