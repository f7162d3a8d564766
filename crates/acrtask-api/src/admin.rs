//! Tokens, secrets, credentials and runners, as the API shows them. No value of a secret ever is in an answer.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::forms::{
    Audience, LabelValue, NotBlank, SecretValue, Subject, TaskNames, Title, Username, Word,
};

use crate::run::SecretText;

/// Rights of a token. Each includes those before it: `admin` > `write` > `run` > `read`.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// See tasks, runs, logs and runners.
    Read,
    /// Start, cancel and rerun.
    Run,
    /// Create, change and delete tasks, secrets and credentials.
    Write,
    /// Everything: tokens, runners, federation.
    Admin,
}

impl Scope {
    /// Returns `true` if a token with this scope may do what `other` allows.
    pub fn includes(self, other: Self) -> bool {
        self >= other
    }
}

/// A token, without what it is checked by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Token {
    /// Its id.
    pub id: String,
    /// What it is for.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// Only tasks with this name, or, where it ends in `*`, with names that begin so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tasks: Option<String>,
    /// The pools that its tasks may name beside the default one, where it has `tasks`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<String>,
    /// When it was made.
    #[schema(value_type = String)]
    pub created_at: Timestamp,
    /// When it ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub expires_at: Option<Timestamp>,
    /// When it was last used, to the minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub last_used_at: Option<Timestamp>,
}

/// Asks for a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateToken {
    /// What it is for.
    #[schema(value_type = Title)]
    pub name: String,
    /// What it may do.
    #[schema(min_items = 1)]
    pub scopes: Vec<Scope>,
    /// As in [`Token`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<TaskNames>)]
    pub tasks: Option<String>,
    /// As in [`Token`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<Word>)]
    pub pools: Vec<String>,
    /// Seconds that it holds for; nothing: until it is revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 316_224_000)]
    pub ttl_secs: Option<u64>,
}

/// A token that was made just now: the only time that it is seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewToken {
    /// The token itself.
    pub secret: SecretText,
    /// What is known of it.
    #[serde(flatten)]
    pub token: Token,
}

/// Whose identity tokens are exchanged for tokens of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Federation {
    /// Its name.
    #[schema(value_type = Word)]
    pub name: String,
    /// The issuer, exactly as `iss` has it: `https://token.actions.githubusercontent.com`.
    #[schema(pattern = "^https?://")]
    pub issuer: String,
    /// What `aud` must hold.
    #[schema(value_type = Audience)]
    pub audience: String,
    /// What `sub` must be; `*` stands for anything: `repo:org/app:ref:refs/heads/*`.
    #[schema(value_type = Subject)]
    pub subject: String,
    /// What the token may do; never `admin`.
    #[schema(min_items = 1)]
    pub scopes: Vec<Scope>,
    /// As in [`Token`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<TaskNames>)]
    pub tasks: Option<String>,
    /// As in [`Token`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<Word>)]
    pub pools: Vec<String>,
    /// Seconds that the token holds for; at most 3600.
    #[serde(default = "quarter_hour")]
    #[schema(minimum = 1, maximum = 3600)]
    pub ttl_secs: u64,
}

fn quarter_hour() -> u64 {
    900
}

/// An identity token that is to be exchanged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExchangeToken {
    /// The JSON Web Token that the CI system gave the job.
    pub token: SecretText,
}

/// Who the caller is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Me {
    /// The token's name.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// As in [`Token`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tasks: Option<String>,
    /// The server's version.
    pub server_version: String,
    /// The id of the key that secrets are encrypted with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The id of the store of logs and contexts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blobs: Option<String>,
}

/// A secret, without its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Secret {
    /// Its name.
    pub name: String,
    /// The task that alone may use it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// When it was last set.
    #[schema(value_type = String)]
    pub updated_at: Timestamp,
}

/// The value of a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PutSecret {
    /// The value.
    #[schema(value_type = SecretValue)]
    pub value: SecretText,
    /// The task that alone may use it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
}

/// A login for a registry or a git host, without its password.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Credential {
    /// Host and port.
    pub host: String,
    /// The user.
    pub username: String,
    /// The task that alone may use it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// When it was last set.
    #[schema(value_type = String)]
    pub updated_at: Timestamp,
}

/// A login for a registry or a git host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PutCredential {
    /// The user.
    #[schema(value_type = Username)]
    pub username: String,
    /// The password or token; for git over ssh the text of a private key without a passphrase.
    #[schema(value_type = SecretValue)]
    pub password: SecretText,
    /// Of a private key: lines of a `known_hosts` file, which alone say which keys the host may have. Not needed for
    /// github.com, gitlab.com, bitbucket.org, codeberg.org and ssh.dev.azure.com.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<NotBlank>)]
    pub known_hosts: Option<String>,
    /// The task that alone may use it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
}

impl PutCredential {
    /// What is kept in the place of a password, as runners get it: of a private key its text, and behind that the lines
    /// of `known_hosts`.
    ///
    /// # Errors
    /// What is wrong with the lines.
    pub fn kept(&self) -> Result<String, &'static str> {
        let password = &self.password.0;
        let Some(lines) = &self.known_hosts else {
            return Ok(password.clone());
        };
        let text = password.trim();
        if !text.starts_with("-----BEGIN") || !text.ends_with("-----") {
            return Err("`knownHosts` goes with a private key, and the password is none");
        }
        let whole = |line: &str| {
            let line = line.trim();
            line.is_empty() || line.starts_with('#') || line.split_whitespace().count() >= 3
        };
        if lines.trim().is_empty() || !lines.lines().all(whole) {
            return Err(
                "`knownHosts` is not lines of a known_hosts file: `HOST TYPE KEY`, as `ssh-keyscan` prints them",
            );
        }
        Ok(format!("{text}\n{}\n", lines.trim()))
    }
}

/// A runner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Runner {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Whether it takes runs.
    pub state: RunnerState,
    /// Its pool.
    pub pool: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// `linux/amd64` ...
    pub platforms: Vec<String>,
    /// Runs that it carries out at once.
    pub slots: u32,
    /// The only tasks whose runs it gets: a name, or a prefix with `*`. Absent: all runs of its pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tasks: Option<String>,
    /// Runs that it holds now.
    pub busy: u32,
    /// What its engine and builder are, and can do.
    pub features: BTreeMap<String, String>,
    /// Bytes that are free where it keeps its files.
    pub free_disk: u64,
    /// The version of its program.
    pub version: String,
    /// When it was last heard of.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub last_seen_at: Option<Timestamp>,
}

/// Whether a runner takes runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum RunnerState {
    /// It is connected and takes runs.
    Online,
    /// It finishes what it holds and takes nothing new.
    Draining,
    /// It is not connected.
    Offline,
}

/// Asks for a token that registers one runner.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CreateRunnerToken {
    /// The pool that the runner will be in; nothing: `default`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Word>)]
    pub pool: Option<String>,
    /// Labels of the runner. It can have no others.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<Word, LabelValue>)]
    pub labels: BTreeMap<String, String>,
    /// Most slots of the runner, 1 to 4096; 16 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 4096)]
    pub max_slots: Option<u32>,
    /// The only tasks whose runs and secrets the runner gets: a name, or a prefix with `*`. Absent: all runs of its pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<TaskNames>)]
    pub tasks: Option<String>,
    /// Seconds that the token holds for; nothing: an hour.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 2_592_000)]
    pub ttl_secs: Option<u64>,
}

/// A token that registers one runner: the only time that it is seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunnerToken {
    /// The token itself.
    pub secret: SecretText,
    /// When it ends.
    #[schema(value_type = String)]
    pub expires_at: Timestamp,
}

/// What every refused request is answered with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// Stable, for programs: `not-found`, `forbidden`, `invalid`, `conflict`, `too-large` ...
    pub code: String,
    /// What is wrong, in one sentence.
    pub message: String,
    /// What to do instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}
