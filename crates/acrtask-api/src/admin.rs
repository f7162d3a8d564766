//! Tokens, secrets, credentials and runners. No response contains the value of a stored secret.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::forms::{
    Audience, LabelValue, NotBlank, SecretValue, ShortName, Subject, TaskPattern, TaskPrefix,
    Title, Username,
};

use crate::run::SecretText;

/// Scope of a token. Each scope includes those before it: `admin` > `write` > `run` > `read`.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Read tasks, runs, logs and runners.
    Read,
    /// Start, cancel and rerun runs.
    Run,
    /// Create, change and delete tasks, secrets and credentials.
    Write,
    /// Manage tokens, runners and federations.
    Admin,
}

impl Scope {
    /// Returns `true` if this scope allows everything that `other` allows.
    pub fn includes(self, other: Self) -> bool {
        self >= other
    }
}

/// Token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Token {
    /// Id of the token.
    pub id: String,
    /// Name of the token.
    pub name: String,
    /// Scopes of the token.
    pub scopes: Vec<Scope>,
    /// Name of the only task that the token may use, or a prefix followed by `*`. If absent, all
    /// tasks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tasks: Option<String>,
    /// Pools, besides the default one, that tasks of the token may use. Applies only together with
    /// `tasks`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<String>,
    /// Time of creation.
    #[schema(value_type = String)]
    pub created_at: Timestamp,
    /// Time of expiry.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub expires_at: Option<Timestamp>,
    /// Time of the last use, rounded to one minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub last_used_at: Option<Timestamp>,
}

/// Request to create a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateToken {
    /// Name of the token.
    #[schema(value_type = Title)]
    pub name: String,
    /// Scopes of the token.
    #[schema(min_items = 1)]
    pub scopes: Vec<Scope>,
    /// Task restriction, as in [`Token`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<TaskPattern>)]
    pub tasks: Option<String>,
    /// Pools, as in [`Token`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<ShortName>)]
    pub pools: Vec<String>,
    /// Lifetime in seconds. If absent, the token does not expire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 316_224_000)]
    pub ttl_secs: Option<u64>,
}

/// New token. Only this response contains its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewToken {
    /// Secret of the token.
    pub secret: SecretText,
    /// Properties of the token.
    #[serde(flatten)]
    pub token: Token,
}

/// Federation: the conditions to exchange a foreign identity token for a token of this server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Federation {
    /// Name of the federation.
    #[schema(value_type = ShortName)]
    pub name: String,
    /// Exact value of the claim `iss`: `https://token.actions.githubusercontent.com`.
    #[schema(pattern = "^https?://")]
    pub issuer: String,
    /// Value that the claim `aud` must contain.
    #[schema(value_type = Audience)]
    pub audience: String,
    /// Pattern for the claim `sub`. `*` matches any text: `repo:org/app:ref:refs/heads/*`.
    #[schema(value_type = Subject)]
    pub subject: String,
    /// Scopes of the new token, except `admin`.
    #[schema(min_items = 1)]
    pub scopes: Vec<Scope>,
    /// Task restriction, as in [`Token`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<TaskPattern>)]
    pub tasks: Option<String>,
    /// Pools, as in [`Token`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<ShortName>)]
    pub pools: Vec<String>,
    /// Lifetime of the new token in seconds, at most 3600.
    #[serde(default = "default_ttl_secs")]
    #[schema(minimum = 1, maximum = 3600)]
    pub ttl_secs: u64,
}

fn default_ttl_secs() -> u64 {
    900
}

/// Request to exchange an identity token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExchangeToken {
    /// JSON Web Token of the CI job.
    pub token: SecretText,
}

/// Identity of the caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Me {
    /// Name of the token.
    pub name: String,
    /// Scopes of the token.
    pub scopes: Vec<Scope>,
    /// Task restriction, as in [`Token`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tasks: Option<String>,
    /// Version of the server.
    pub server_version: String,
    /// Id of the key that encrypts secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Id of the blob store for logs and contexts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blobs: Option<String>,
}

/// Secret, without its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Secret {
    /// Name of the secret.
    pub name: String,
    /// Name of the only task that may use the secret. If `tasks` is absent too, all tasks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// Prefix, followed by `*`, of the names of the tasks that may use the secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tasks: Option<String>,
    /// Time of the last change.
    #[schema(value_type = String)]
    pub updated_at: Timestamp,
}

impl Secret {
    /// Returns `true` if the task named `name` may use the secret.
    pub fn applies_to(&self, name: &str) -> bool {
        scope_includes(self.task.as_deref(), self.tasks.as_deref(), name)
    }
}

impl Credential {
    /// Returns `true` if the task named `name` may use the credential.
    pub fn applies_to(&self, name: &str) -> bool {
        scope_includes(self.task.as_deref(), self.tasks.as_deref(), name)
    }
}

/// Returns `true` if the task named `name` is `task`, if given, and matches `tasks`, if given.
pub(crate) fn scope_includes(task: Option<&str>, tasks: Option<&str>, name: &str) -> bool {
    let prefix = tasks.map(|tasks| tasks.trim_end_matches('*'));
    task.is_none_or(|task| task == name) && prefix.is_none_or(|prefix| name.starts_with(prefix))
}

/// Request to set a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PutSecret {
    /// Value of the secret.
    #[schema(value_type = SecretValue)]
    pub value: SecretText,
    /// Name of the only task that may use the secret. If `tasks` is absent too, all tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// Prefix, followed by `*`, of the names of the tasks that may use the secret: `team/*`.
    /// Excludes `task`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<TaskPrefix>)]
    pub tasks: Option<String>,
}

/// Credential for a registry or a git host, without its password.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Credential {
    /// Host, with or without a port.
    pub host: String,
    /// User name.
    pub username: String,
    /// Name of the only task that may use the credential. If `tasks` is absent too, all tasks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// Prefix, followed by `*`, of the names of the tasks that may use the credential.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tasks: Option<String>,
    /// Time of the last change.
    #[schema(value_type = String)]
    pub updated_at: Timestamp,
}

/// Request to set a credential for a registry or a git host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PutCredential {
    /// User name.
    #[schema(value_type = Username)]
    pub username: String,
    /// Password or token. For git over SSH, a private key without a passphrase.
    #[schema(value_type = SecretValue)]
    pub password: SecretText,
    /// Lines of a `known_hosts` file for a private key. They list all keys that the host may use.
    /// Not needed for github.com, gitlab.com, bitbucket.org, codeberg.org and ssh.dev.azure.com.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<NotBlank>)]
    pub known_hosts: Option<String>,
    /// Name of the only task that may use the credential. If `tasks` is absent too, all tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// Prefix, followed by `*`, of the names of the tasks that may use the credential: `team/*`.
    /// Excludes `task`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<TaskPrefix>)]
    pub tasks: Option<String>,
}

impl PutCredential {
    /// Returns the password to store, in the format that runners expect. A private key is followed
    /// by the lines of `known_hosts`.
    ///
    /// # Errors
    ///
    /// Describes invalid lines, or lines without a private key.
    pub fn stored_password(&self) -> Result<String, &'static str> {
        let password = &self.password.0;
        let Some(lines) = &self.known_hosts else {
            return Ok(password.clone());
        };
        let text = password.trim();
        if !text.starts_with("-----BEGIN") || !text.ends_with("-----") {
            return Err("`knownHosts` requires a private key as `password`");
        }
        let is_host_key = |line: &str| {
            let line = line.trim();
            line.is_empty() || line.starts_with('#') || line.split_whitespace().count() >= 3
        };
        if lines.trim().is_empty() || !lines.lines().all(is_host_key) {
            return Err(
                "`knownHosts` has an invalid line: write `HOST TYPE KEY`, as `ssh-keyscan` prints it",
            );
        }
        Ok(format!("{text}\n{}\n", lines.trim()))
    }
}

/// Runner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Runner {
    /// Id of the runner.
    pub id: String,
    /// Name of the runner.
    pub name: String,
    /// Connection state.
    pub state: RunnerState,
    /// Pool of the runner.
    pub pool: String,
    /// Labels of the runner.
    pub labels: BTreeMap<String, String>,
    /// Platforms of the runner: `linux/amd64`.
    pub platforms: Vec<String>,
    /// Maximum number of concurrent runs.
    pub slots: u32,
    /// Name of the only task whose runs the runner receives, or a prefix followed by `*`. If
    /// absent, all runs of its pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tasks: Option<String>,
    /// Number of current runs.
    pub busy: u32,
    /// Versions and features of the engine and the builder.
    pub features: BTreeMap<String, String>,
    /// Free disk space in bytes, on the file system of the runner's state.
    pub free_disk: u64,
    /// Version of the runner.
    pub version: String,
    /// Time of the last message.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub last_seen_at: Option<Timestamp>,
}

/// Connection state of a runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum RunnerState {
    /// The runner is connected and accepts runs.
    Online,
    /// The runner finishes its current runs and accepts no new ones.
    Draining,
    /// The runner is not connected.
    Offline,
}

/// Request to create a registration token for one runner.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CreateRunnerToken {
    /// Pool of the runner. If absent, `default`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<ShortName>)]
    pub pool: Option<String>,
    /// Labels of the runner. It cannot have others.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<ShortName, LabelValue>)]
    pub labels: BTreeMap<String, String>,
    /// Maximum number of slots, 1 to 4096. If absent, 16.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 4096)]
    pub max_slots: Option<u32>,
    /// Name of the only task whose runs and secrets the runner receives, or a prefix followed by
    /// `*`. If absent, all runs of its pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<TaskPattern>)]
    pub tasks: Option<String>,
    /// Lifetime of the token in seconds. If absent, one hour.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 2_592_000)]
    pub ttl_secs: Option<u64>,
}

/// Registration token for one runner. Only this response contains its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunnerToken {
    /// Secret of the token.
    pub secret: SecretText,
    /// Time of expiry.
    #[schema(value_type = String)]
    pub expires_at: Timestamp,
}

/// Body of an error response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// Stable code for programs: `not-found`, `forbidden`, `invalid`, `conflict`, `too-large` ...
    pub code: String,
    /// Cause in one sentence.
    pub message: String,
    /// Suggested solution.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}
