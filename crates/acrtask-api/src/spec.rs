//! What one run is to do: all that decides its plan, without secrets.
//!
//! The client or the control plane writes it, it is stored with the run, and the runner (or `acrtask run` on the
//! user's own machine) makes a plan of it. Invariant: a spec holds names of secrets and never a value.

use std::collections::{BTreeMap, BTreeSet};

use acrtask_model::Digest;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::forms::{
    AliasName, CommitName, ContentDigest, ContextPath, ContextUrl, NotBlank, OptionalHost,
    Platform, SecretName, VariableName, VariableValue,
};

/// What one run is to do.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RunSpec {
    /// Where the files come from.
    #[serde(default)]
    pub context: ContextSource,
    /// What is done with them.
    #[serde(default)]
    pub work: Work,
    /// What `{{.Run.*}}` gives.
    #[serde(default)]
    pub facts: Facts,
    /// `--set`: values that win over those of `values`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, VariableValue>)]
    pub set: BTreeMap<String, String>,
    /// What a values file holds.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schema(value_type = Object)]
    pub values: Map<String, Value>,
    /// The secrets that the run is given beside this spec: in `.Secrets` and, masked, in `.Values`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<SecretName>)]
    pub secrets: Vec<String>,
    /// Secrets for `RUN --mount=type=secret,id=ID` of builds that ask for them by id alone; names of `secrets` too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<SecretName>)]
    pub build_secrets: Vec<String>,
    /// Variables of every step that does not set them itself.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<VariableName, VariableValue>)]
    pub env: BTreeMap<String, String>,
    /// The images behind `acr`, `az`, `bash`, `curl`, `cssc`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<AliasName, String>)]
    pub alias_images: BTreeMap<String, String>,
    /// `linux/amd64` ...: what builds are for where their line says nothing; the first is the run's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<Platform>)]
    pub platforms: Vec<String>,
    /// Limit of the whole run, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 604_800)]
    pub timeout_secs: Option<u64>,
    /// Build and test, but push nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_push: bool,
    /// Push each image by its digest alone and leave its tag as it is: somebody else moves the tag later.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hold: bool,
    /// Base images by the reference that a Dockerfile uses, and the digest that stands for it in this run.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, ContentDigest>)]
    pub pins: BTreeMap<String, Digest>,
    /// New tags of base images that this run tries, by image. Where it succeeds, later runs of its task get them too.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub base_tags: BTreeMap<String, String>,
    /// Names of values and secrets whose text may not change what the task does: its author does not vouch for them. The
    /// server decides it; in a request it has no effect.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub untrusted_values: BTreeSet<String>,
    /// The layer cache that the runs of a task share.
    #[serde(default)]
    pub cache: SharedCache,
}

/// Where the files of a run come from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "from", rename_all = "camelCase", deny_unknown_fields)]
pub enum ContextSource {
    /// Nothing: an empty workspace.
    #[default]
    None,
    /// What was uploaded to the server: a tar, perhaps compressed.
    Upload {
        /// The id that the upload was given.
        #[schema(min_length = 1)]
        id: String,
    },
    /// A git repository (`URL#ref:folder`), a tarball's URL, or `oci://REFERENCE`: fetched by the runner.
    Url {
        /// As `acrtask run URL` takes it, without a password.
        #[schema(value_type = ContextUrl)]
        url: String,
        /// Of a git repository: exactly this commit, by its full name, whatever the reference of `url` points at when it
        /// is fetched.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(value_type = Option<CommitName>)]
        commit: Option<String>,
        /// Of a git repository: with its submodules, and theirs.
        #[serde(default = "yes", skip_serializing_if = "is_true")]
        submodules: bool,
        /// Of a git repository: with the files that stand in Git LFS.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        lfs: bool,
    },
}

impl ContextSource {
    /// Returns the files at `url`, with the submodules of a git repository, as `docker build` takes them.
    pub fn url(url: impl Into<String>) -> Self {
        Self::Url {
            url: url.into(),
            commit: None,
            submodules: true,
            lfs: false,
        }
    }
}

fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_true(value: &bool) -> bool {
    *value
}

/// What a run does with its files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "do", rename_all = "camelCase", deny_unknown_fields)]
pub enum Work {
    /// The task file that is found in the context: `acr-task.yaml`, then `acb.yaml`.
    #[default]
    Usual,
    /// A task file of the context.
    File {
        /// Its path in the context.
        #[schema(value_type = ContextPath)]
        path: String,
    },
    /// A task file that came with the request.
    Text {
        /// Its name, as diagnostics show it.
        name: String,
        /// What it holds.
        #[schema(value_type = NotBlank)]
        text: String,
    },
    /// One container.
    Cmd {
        /// The image and its arguments, as a `cmd` step has them.
        #[schema(value_type = NotBlank)]
        line: String,
    },
    /// One image, built and pushed.
    Build(BuildSpec),
}

/// One image to build: what `acrtask build` takes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BuildSpec {
    /// The image's names; one without a registry gets the run's own. Templates and `$Registry`, `$ID` work in them.
    #[schema(value_type = Vec<NotBlank>)]
    pub images: Vec<String>,
    /// The Dockerfile, relative to the context.
    #[serde(default = "dockerfile")]
    #[schema(value_type = ContextPath)]
    pub dockerfile: String,
    /// `--target`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Build arguments.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub args: BTreeMap<String, String>,
    /// Build arguments whose values are secrets of the run with the same names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<SecretName>)]
    pub secret_args: Vec<String>,
    /// Labels of the image.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Use nothing of the cache.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_cache: bool,
}

fn dockerfile() -> String {
    "Dockerfile".into()
}

/// What `{{.Run.*}}` gives, where it is known before the run. What is empty is found out by whoever runs it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Facts {
    /// The registry that images without one belong to.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schema(value_type = OptionalHost)]
    pub registry: String,
    /// The commit.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub commit: String,
    /// The branch.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub branch: String,
    /// The git tag.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub git_tag: String,
    /// The repository's URL.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub repository: String,
    /// The time of the run; nothing: when it is prepared.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub date: Option<jiff::Timestamp>,
    /// What triggered it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub triggered_by: String,
    /// The task's name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub task_name: String,
    /// The operating system of the steps.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub os: String,
    /// Its version.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub os_version: String,
    /// The processor of the steps.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub architecture: String,
    /// What `{{.Run.SharedVolume}}` gives.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub shared_volume: String,
}

impl Facts {
    /// Returns the branch and the tag of the commit as a text for people. Characters that could change how a terminal or
    /// a page shows it are escaped, because the author of the commit chose both names.
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

/// The layer cache in the registry that the runs of one task share, beside each image: `IMAGE:cache_<name>`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "use", rename_all = "camelCase", deny_unknown_fields)]
pub enum SharedCache {
    /// Only what the task file itself says.
    #[default]
    Off,
    /// Imported and exported: runs that are trusted.
    ReadWrite {
        /// The task's name, cut to what a tag may hold.
        name: String,
    },
    /// Imported only: what has not been approved must not leave layers for others.
    ReadOnly {
        /// As above.
        name: String,
    },
}
