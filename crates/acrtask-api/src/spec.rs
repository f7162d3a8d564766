//! Run specification: everything that decides the plan of one run, without secrets.
//!
//! The CLI or the control plane writes it, and the server stores it with the run. The runner, or
//! `acrtask run` on the user's machine, makes the plan from it.
//!
//! Invariant: a specification contains names of secrets, never their values.

use std::collections::{BTreeMap, BTreeSet};

use acrtask_model::Digest;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::forms::{
    AliasName, CommitHash, ContentDigest, ContextPath, ContextUrl, NotBlank, OptionalHost,
    Platform, SecretName, VariableName, VariableValue,
};

/// Run specification.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RunSpec {
    /// Source of the files that the run works on.
    #[serde(default)]
    pub context: ContextSource,
    /// Source of the steps.
    #[serde(default)]
    pub source: RunSource,
    /// Run variables: values of `{{.Run.*}}`.
    #[serde(default)]
    pub variables: Variables,
    /// Values from `--set`. They override those in `values`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, VariableValue>)]
    pub set: BTreeMap<String, String>,
    /// Content of the values file.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schema(value_type = Object)]
    pub values: Map<String, Value>,
    /// Names of the secrets that the run receives separately. A task file reads them as `.Secrets`
    /// and, masked, as `.Values`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<SecretName>)]
    pub secrets: Vec<String>,
    /// Names of `secrets` that builds may mount by id: `RUN --mount=type=secret,id=ID`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<SecretName>)]
    pub build_secrets: Vec<String>,
    /// Environment variables of all steps. A step's own variable overrides the one given here.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<VariableName, VariableValue>)]
    pub env: BTreeMap<String, String>,
    /// Images for the aliases `acr`, `az`, `bash`, `curl` and `cssc`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<AliasName, String>)]
    pub alias_images: BTreeMap<String, String>,
    /// Platforms of builds without `--platform`: `linux/amd64`. The first one is also the platform
    /// of the run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<Platform>)]
    pub platforms: Vec<String>,
    /// Maximum duration of the whole run in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 604_800)]
    pub timeout_secs: Option<u64>,
    /// Build and test, but push nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_push: bool,
    /// Push each image by its digest only and leave its tag unchanged. Promotion sets the tag
    /// later.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub push_by_digest: bool,
    /// Digests that this run must use, by the reference of the base image in the Dockerfile.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, ContentDigest>)]
    pub pins: BTreeMap<String, Digest>,
    /// New base image tags that this run tries, by image. If the run succeeds, later runs of the
    /// task use them too.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub base_tags: BTreeMap<String, String>,
    /// Names of values and secrets that come from an untrusted author. Their text must not change
    /// the steps of the task. The server sets this field and ignores it in requests.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub untrusted_values: BTreeSet<String>,
    /// Layer cache shared by the runs of a task.
    #[serde(default)]
    pub cache: SharedCache,
}

/// Source of the files that a run works on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "camelCase", deny_unknown_fields)]
pub enum ContextSource {
    /// No files: the workspace is empty.
    #[default]
    None,
    /// Uploaded tar archive, optionally compressed.
    Upload {
        /// Id of the upload.
        #[schema(min_length = 1)]
        id: String,
    },
    /// URL that the runner fetches: a git repository (`URL#ref:folder`), a tarball, or
    /// `oci://REFERENCE`.
    Url {
        /// URL without a password, as for `acrtask run URL`.
        #[schema(value_type = ContextUrl)]
        url: String,
        /// Full name of the commit to check out. It overrides the reference in `url`. For git
        /// repositories only.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(value_type = Option<CommitHash>)]
        commit: Option<String>,
        /// Fetch all submodules recursively. For git repositories only.
        #[serde(default = "default_true", skip_serializing_if = "is_true")]
        submodules: bool,
        /// Download the files stored in Git LFS. For git repositories only.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        lfs: bool,
    },
}

impl ContextSource {
    /// Returns a context at `url`. As in `docker build`, a git repository includes its submodules.
    pub fn url(url: impl Into<String>) -> Self {
        Self::Url {
            url: url.into(),
            commit: None,
            submodules: true,
            lfs: false,
        }
    }
}

fn default_true() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_true(value: &bool) -> bool {
    *value
}

/// Source of the steps of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "camelCase", deny_unknown_fields)]
pub enum RunSource {
    /// Task file found in the context: `acr-task.yaml`, otherwise `acb.yaml`.
    #[default]
    DefaultFile,
    /// Task file in the context.
    File {
        /// Path in the context.
        #[schema(value_type = ContextPath)]
        path: String,
    },
    /// Task file in the request itself.
    Inline {
        /// Name shown in diagnostics.
        name: String,
        /// Text of the task file.
        #[schema(value_type = NotBlank)]
        text: String,
    },
    /// Single container.
    Cmd {
        /// Image and its arguments, as in a `cmd` step.
        #[schema(value_type = NotBlank)]
        line: String,
    },
    /// Single image, built and pushed.
    Build(BuildSpec),
}

/// Image to build, as for `acrtask build`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BuildSpec {
    /// Names of the image. A name without a registry gets the registry of the run. Templates and
    /// the aliases `$Registry` and `$ID` are expanded.
    #[schema(value_type = Vec<NotBlank>)]
    pub images: Vec<String>,
    /// Path of the Dockerfile, relative to the context.
    #[serde(default = "default_dockerfile")]
    #[schema(value_type = ContextPath)]
    pub dockerfile: String,
    /// Build stage to stop at, as for `docker build --target`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Build arguments.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub args: BTreeMap<String, String>,
    /// Build arguments whose values are the secrets with the same names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<SecretName>)]
    pub secret_args: Vec<String>,
    /// Labels of the image.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Build without the cache.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_cache: bool,
}

fn default_dockerfile() -> String {
    "Dockerfile".into()
}

/// Run variables: values of `{{.Run.*}}`. The runner fills in empty ones.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Variables {
    /// Registry for images without one.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schema(value_type = OptionalHost)]
    pub registry: String,
    /// Commit that the context was checked out at.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub commit: String,
    /// Branch of that commit.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub branch: String,
    /// Git tag of that commit.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub git_tag: String,
    /// URL of the git repository.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub repository: String,
    /// Time of the run. If absent, the runner uses the time at which it prepares the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub date: Option<jiff::Timestamp>,
    /// Trigger of the run, as `{{.Run.TriggeredBy}}` returns it: `Manual`, `Commit`, `Timer`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub triggered_by: String,
    /// Name of the task.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub task_name: String,
    /// Operating system of the steps.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub os: String,
    /// Version of the operating system.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub os_version: String,
    /// CPU architecture of the steps.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub architecture: String,
    /// Name of the volume that all steps of the run share.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub shared_volume: String,
}

impl Variables {
    /// Returns a human-readable text with the branch and the tag of the commit. The author of the
    /// commit chose both names. Therefore control and formatting characters are escaped.
    pub fn revision(&self) -> Option<String> {
        let named = [("branch", &self.branch), ("tag", &self.git_tag)];
        let named: Vec<String> = named
            .into_iter()
            .filter(|(_, name)| !name.is_empty())
            .map(|(kind, name)| format!("{kind} `{}`", escaped(name)))
            .collect();
        (!named.is_empty()).then(|| named.join(", "))
    }
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let is_format = matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
        if c.is_control() || is_format {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

/// Layer cache in the registry that the runs of one task share, next to each image:
/// `IMAGE:cache_<name>`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "mode", rename_all = "camelCase", deny_unknown_fields)]
pub enum SharedCache {
    /// No shared cache. The task file can still name caches itself.
    #[default]
    Off,
    /// Import and export, for trusted runs.
    ReadWrite {
        /// Name of the task, truncated to the length that a tag allows.
        name: String,
    },
    /// Import only, for unapproved commits. They must not write layers that other runs use.
    ReadOnly {
        /// Name of the task, truncated to the length that a tag allows.
        name: String,
    },
}
