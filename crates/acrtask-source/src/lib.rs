//! Contexts: resolution of a user's or a task file's text to a folder on this machine.
//!
//! Invariants:
//! - A fetched context is in its own folder, accessible to this user only, and is removed with its
//!   [`Workspace`]. [`remove_orphans`] removes the folders of killed processes. A local folder is
//!   used in place, and never written to.
//! - Fetching executes nothing of a context: no hooks, no filters, no remote helpers, no `git-lfs`.
//!   Submodules and files of Git LFS are fetched only if [`GitOptions`] requests them. The
//!   repository's own files name their URLs, which must satisfy the same policy as the URL of the
//!   context.
//! - An archive cannot write outside of its folder, and all amounts have a limit ([`Limits`]).
//! - Passwords are in no argument, URL, file or error. Git reads them from memory through a file
//!   descriptor of the one process that needs them. Each one is bound to its host.
//! - If a task file names the context ([`Origin::TaskFile`]), private and metadata addresses are
//!   refused, and the connection uses the checked address.
//! - An SSH key is not stored in a file either. An agent stores it during the fetch. The host's key
//!   is verified.
//! - The disk and memory usage of git is measured while it runs. Git is killed beyond the limits.
//!
//! Left out: ranges and resumption of downloads, artifacts that are an index, and extensions and
//! transfers of Git LFS other than `basic`.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

pub mod archive;
mod error;
mod git;
pub mod git_variables;
mod http;
mod lfs;
mod login;
mod oci;
pub mod paths;
mod process;
mod scratch;
mod spec;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use acrtask_registry::{AddressPolicy, Credentials};
use tokio::io::AsyncRead;

pub use error::SourceError;
pub use git_variables::GitVariables;
pub use login::{CommitId, GitCredential, GitOptions, InvalidCommitId, SshKey};
pub use scratch::{Scratch, remove_orphans};
pub use spec::{ContextSpec, GitTransport, GitUrl, ParseError};

/// Source of a context's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Origin {
    /// The operator of this program, who may name everything that this machine can access.
    #[default]
    Operator,
    /// A task file. Its author need not be trusted with this machine's network, files and keys.
    TaskFile,
}

/// Limits of one fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Maximum size of one download, in bytes, as transferred.
    pub download_bytes: u64,
    /// Maximum size of all unpacked files of an archive, in bytes.
    pub unpacked_bytes: u64,
    /// Maximum number of entries of an archive.
    pub entries: u64,
    /// Maximum ratio of unpacked to packed bytes, checked from [`archive::RATIO_FROM`] unpacked
    /// bytes on.
    pub ratio: u64,
    /// Maximum memory of git and its child processes, in bytes. They store data that the server
    /// chooses: references and trees.
    pub memory_bytes: u64,
    /// Maximum duration of the fetch.
    pub time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            download_bytes: 8 << 30,
            unpacked_bytes: 32 << 30,
            entries: 2_000_000,
            ratio: 200,
            memory_bytes: 4 << 30,
            time: Duration::from_secs(1800),
        }
    }
}

/// Progress of a fetch, for a display.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// The fetch has begun. The text is for users: `fetching https://example.com/a.git#main`.
    Started(String),
    /// More bytes have arrived.
    Received {
        /// Number of received bytes.
        bytes: u64,
        /// Total number of bytes. `None` if unknown.
        total: Option<u64>,
    },
}

/// Callback for progress. It must not block.
pub type ProgressCallback = Arc<dyn Fn(Progress) + Send + Sync>;

/// Options of a fetch.
#[derive(Clone)]
pub struct Options {
    /// Source of the context's name.
    pub origin: Origin,
    /// Allows a task file's context to be at a private address.
    pub allow_private_addresses: bool,
    /// Credentials of registries. An explicit credential for a git host also applies to git over
    /// https.
    pub credentials: Credentials,
    /// Registries without TLS, in addition to loopback.
    pub insecure_registries: Vec<String>,
    /// Registries that the operator named. They may be at private addresses even if a task file
    /// names the context, as the run's own registry does. Insecure registries always count as such.
    pub operator_registries: Vec<String>,
    /// Credentials for git over https.
    pub git_credentials: Vec<GitCredential>,
    /// Keys for git over ssh. If one is for the host, ssh uses only this key, and not the
    /// operator's configuration.
    pub ssh_keys: Vec<SshKey>,
    /// Parts of a git repository to fetch.
    pub git: GitOptions,
    /// Socket of the SSH agent. Without it, the operator's own contexts use ssh with its
    /// configuration, and a task file's contexts cannot use ssh.
    pub ssh_agent: Option<PathBuf>,
    /// Limits of the fetch.
    pub limits: Limits,
    /// Parent folder of the folders for fetched contexts.
    pub scratch_dir: PathBuf,
    /// Receiver of progress.
    pub progress: Option<ProgressCallback>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            origin: Origin::Operator,
            allow_private_addresses: false,
            credentials: Credentials::new(),
            insecure_registries: Vec::new(),
            operator_registries: Vec::new(),
            git_credentials: Vec::new(),
            ssh_keys: Vec::new(),
            git: GitOptions::default(),
            ssh_agent: None,
            limits: Limits::default(),
            scratch_dir: std::env::temp_dir(),
            progress: None,
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("origin", &self.origin)
            .field("allow_private_addresses", &self.allow_private_addresses)
            .field("limits", &self.limits)
            .field("scratch_dir", &self.scratch_dir)
            .finish_non_exhaustive()
    }
}

impl Options {
    pub(crate) fn address_policy(&self) -> AddressPolicy {
        match self.origin {
            Origin::TaskFile if !self.allow_private_addresses => AddressPolicy::PublicOnly,
            Origin::TaskFile | Origin::Operator => AddressPolicy::Any,
        }
    }

    pub(crate) fn report(&self, progress: Progress) {
        if let Some(report) = &self.progress {
            report(progress);
        }
    }

    fn create_scratch(&self) -> Result<Scratch, SourceError> {
        Scratch::new(&self.scratch_dir).map_err(|source| SourceError::Io {
            attempt: format!("create a folder in {}", self.scratch_dir.display()),
            source,
        })
    }
}

/// Context on this machine.
#[derive(Debug)]
pub struct Workspace {
    /// Folder of the context: an absolute path without links.
    pub root: PathBuf,
    /// Run variables from git.
    pub variables: GitVariables,
    /// `true` for a local folder of the user, which must not be changed.
    pub borrowed: bool,
    /// Guard that removes the folder.
    _scratch: Option<Scratch>,
}

impl Workspace {
    /// Returns the path of `relative` inside the workspace, with all links resolved.
    ///
    /// # Errors
    /// [`SourceError::SubFolder`] if the path leads out of the workspace. The file may be missing.
    pub fn path(&self, relative: &Path) -> Result<PathBuf, SourceError> {
        paths::resolve_inside(&self.root, relative).map_err(|error| SourceError::SubFolder {
            context: self.root.display().to_string(),
            folder: relative.display().to_string(),
            reason: error.to_string(),
        })
    }
}

/// Fetches `spec` to this machine.
///
/// # Errors
/// [`SourceError`]. Dropping the future stops all processes and removes the fetched files.
pub async fn fetch(spec: &ContextSpec, options: &Options) -> Result<Workspace, SourceError> {
    fetch_with_input(spec, options, tokio::io::stdin()).await
}

/// Fetches `spec` like [`fetch`], with `input` instead of standard input.
///
/// # Errors
/// [`SourceError`].
pub async fn fetch_with_input(
    spec: &ContextSpec,
    options: &Options,
    input: impl AsyncRead + Unpin + Send,
) -> Result<Workspace, SourceError> {
    match tokio::time::timeout(options.limits.time, fetch_spec(spec, options, input)).await {
        Ok(result) => result,
        Err(_) => Err(SourceError::TimedOut {
            context: spec.to_string(),
            limit: options.limits.time,
        }),
    }
}

/// Checks that a git repository is readable and has the reference of `url`, with the policy of a
/// fetch. Fetches nothing. Returns the new address of a repository that the server redirects.
///
/// # Errors
/// [`SourceError`].
pub async fn probe(url: &GitUrl, options: &Options) -> Result<Option<GitUrl>, SourceError> {
    let probing = async {
        let scratch = options.create_scratch()?;
        git::probe(url, scratch.path(), options).await
    };
    match tokio::time::timeout(options.limits.time, probing).await {
        Ok(result) => result,
        Err(_) => Err(SourceError::TimedOut {
            context: url.to_string(),
            limit: options.limits.time,
        }),
    }
}

/// Unpacks the upload of a folder from another machine: a tar archive, possibly compressed, or a
/// single Dockerfile. Unlike in a [`ContextSpec::Stdin`], links may lead anywhere, as in the
/// uploaded folder.
///
/// # Errors
/// [`SourceError`]. Dropping the future removes the unpacked files.
pub async fn unpack_upload(
    input: impl AsyncRead + Unpin + Send,
    options: &Options,
) -> Result<Workspace, SourceError> {
    let scratch = options.create_scratch()?;
    let (context, limits) = ("the uploaded context", &options.limits);
    let links = archive::Links::Anywhere;
    let unpacking = archive::unpack_with(input, scratch.path(), context, limits, links);
    match tokio::time::timeout(limits.time, unpacking).await {
        Ok(unpacked) => unpacked?,
        Err(_) => {
            return Err(SourceError::TimedOut {
                context: context.into(),
                limit: limits.time,
            });
        }
    };
    wrap_scratch(scratch)
}

async fn fetch_spec(
    spec: &ContextSpec,
    options: &Options,
    input: impl AsyncRead + Unpin + Send,
) -> Result<Workspace, SourceError> {
    let context = spec.to_string();
    if !matches!(spec, ContextSpec::Folder(_) | ContextSpec::None) {
        options.report(Progress::Started(format!("fetching {context}")));
    }
    if options.git != GitOptions::default() && !matches!(spec, ContextSpec::Git(_)) {
        return Err(SourceError::Refused {
            context,
            reason: "only a git repository has commits, submodules and files of Git LFS".into(),
            help: "name a git URL, or request none of them".into(),
        });
    }
    match spec {
        ContextSpec::Folder(path) | ContextSpec::TarballFile(path) => {
            open_path(path, options).await
        }
        ContextSpec::Git(url) => {
            let scratch = options.create_scratch()?;
            let (root, variables) = git::check_out(url, scratch.path(), options).await?;
            Ok(Workspace {
                root,
                variables,
                borrowed: false,
                _scratch: Some(scratch),
            })
        }
        ContextSpec::HttpTarball(url) => {
            let scratch = options.create_scratch()?;
            http::download(url, scratch.path(), options).await?;
            wrap_scratch(scratch)
        }
        ContextSpec::Oci(reference) => {
            let scratch = options.create_scratch()?;
            oci::download(reference, scratch.path(), options).await?;
            wrap_scratch(scratch)
        }
        ContextSpec::Stdin => {
            let scratch = options.create_scratch()?;
            archive::unpack(input, scratch.path(), &context, &options.limits).await?;
            wrap_scratch(scratch)
        }
        ContextSpec::None => wrap_scratch(options.create_scratch()?),
    }
}

async fn open_path(path: &Path, options: &Options) -> Result<Workspace, SourceError> {
    let context = path.display().to_string();
    let missing = |source| SourceError::Missing {
        path: path.to_owned(),
        source,
    };
    if options.origin == Origin::TaskFile {
        return Err(SourceError::Refused {
            context,
            reason: "a task file cannot name a path of this machine".into(),
            help: "name a folder of the run's own context".into(),
        });
    }
    let root = std::fs::canonicalize(path).map_err(missing)?;
    if root.is_dir() {
        let variables = git_variables::read_folder(&root);
        return Ok(Workspace {
            root,
            variables,
            borrowed: true,
            _scratch: None,
        });
    }
    let file = tokio::fs::File::open(&root).await.map_err(missing)?;
    let scratch = options.create_scratch()?;
    archive::unpack(file, scratch.path(), &context, &options.limits).await?;
    wrap_scratch(scratch)
}

fn wrap_scratch(scratch: Scratch) -> Result<Workspace, SourceError> {
    let root = std::fs::canonicalize(scratch.path()).map_err(|source| SourceError::Io {
        attempt: format!("find the folder {}", scratch.path().display()),
        source,
    })?;
    Ok(Workspace {
        root,
        variables: GitVariables::default(),
        borrowed: false,
        _scratch: Some(scratch),
    })
}
