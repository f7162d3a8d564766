//! The parsed words of a build step, `docker build ARGS`.
//!
//! Words are split as by a shell, but no shell reads them: see [`parse`]. Left out: everything that
//! needs a shell (variables, `&&`, redirections), and flags that change what the command does
//! (`--check`, `--call`).

use std::time::Duration;

mod parse;

pub(crate) use parse::{context_ref, split_flags};
pub use parse::{from_words, parse, parse_at};

/// The source of a build's files, as the line names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContextRef {
    /// A folder of the run's own context: `.`, `sub/folder`.
    Path(String),
    /// A git repository: `URL#ref:folder`.
    Git(String),
    /// A tarball, or a single Dockerfile, by URL.
    Http(String),
    /// An artifact in a registry: `oci://REF`.
    Oci(String),
    /// `-`: an empty context with only the Dockerfile, or the standard input of the run.
    Stdin,
}

/// A build as described by the flags of `docker build`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildLine {
    /// Source of the build's files.
    pub context: ContextRef,
    /// `-f`: relative to the context. `-` means standard input.
    pub file: Option<String>,
    /// `-t`, as written.
    pub tags: Vec<String>,
    /// `--build-arg NAME[=VALUE]`. A name alone gets its value from the step's environment.
    pub build_args: Vec<(String, Option<String>)>,
    /// `--label`.
    pub labels: Vec<(String, String)>,
    /// `--target`.
    pub target: Option<String>,
    /// `--platform`, split at commas.
    pub platforms: Vec<String>,
    /// `--no-cache`.
    pub no_cache: bool,
    /// `--no-cache-filter`, split at commas.
    pub no_cache_filter: Vec<String>,
    /// `--pull`.
    pub pull: bool,
    /// `--push`: push as part of the build.
    pub push: bool,
    /// `--secret`, one entry for each flag.
    pub secrets: Vec<SecretSpec>,
    /// `--ssh ID[=PATH,...]`.
    pub ssh: Vec<String>,
    /// `--cache-from`.
    pub cache_from: Vec<CacheSpec>,
    /// `--cache-to`.
    pub cache_to: Vec<CacheSpec>,
    /// `--network`.
    pub network: Option<String>,
    /// `--add-host HOST:IP`.
    pub add_hosts: Vec<String>,
    /// `--shm-size`, in bytes.
    pub shm_size: Option<u64>,
    /// `--ulimit`, as written.
    pub ulimits: Vec<String>,
    /// `--build-context NAME=VALUE`.
    pub build_contexts: Vec<(String, String)>,
    /// `--provenance` and `--attest type=provenance`: attributes. `Some("false")` turns it off.
    pub provenance: Option<String>,
    /// `--sbom` and `--attest type=sbom`.
    pub sbom: Option<String>,
    /// `--output`, as written.
    pub outputs: Vec<String>,
    /// `--iidfile`: a file in the workspace.
    pub iidfile: Option<String>,
    /// `--metadata-file`: a file in the workspace.
    pub metadata_file: Option<String>,
    /// `--quiet`.
    pub quiet: bool,
    /// Accepted flags without effect, each with the sentence of its warning.
    pub ignored: Vec<(String, String)>,
    /// Limit of the whole build. `None` if no flag sets one.
    pub timeout: Option<Duration>,
}

impl BuildLine {
    /// Returns the paths of the context, of the Dockerfile and of named contexts. Leaves out those
    /// that are not local.
    pub fn local_paths(&self) -> impl Iterator<Item = &str> {
        let context = match &self.context {
            ContextRef::Path(path) => Some(path.as_str()),
            _ => None,
        };
        // With a remote context, `-f` is a path in it.
        let file = self.file.as_deref();
        let file = file.filter(|file| context.is_some() && *file != "-");
        let named = self.build_contexts.iter().filter_map(|(_, value)| {
            let path = match value.strip_prefix("oci-layout://") {
                Some(layout) => layout.split('@').next().unwrap_or(layout),
                None => value,
            };
            let is_url =
                path.contains("://") || path.starts_with("git@") || path.starts_with("target:");
            (!is_url).then_some(path)
        });
        context.into_iter().chain(file).chain(named)
    }
}

/// `--secret id=ID[,src=FILE|,env=NAME][,type=...]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretSpec {
    /// Id by which the Dockerfile refers to the secret.
    pub id: String,
    /// File in the workspace.
    pub src: Option<String>,
    /// Variable of the step's environment.
    pub env: Option<String>,
}

/// `--cache-from` and `--cache-to`: `type=registry,ref=...`, or a bare reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheSpec {
    /// Backend, such as `registry`, `inline` or `local`.
    pub kind: String,
    /// The other attributes, in order.
    pub attrs: Vec<(String, String)>,
}
