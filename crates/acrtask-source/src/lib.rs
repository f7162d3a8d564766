//! Contexts: from what a user or a task file names to a folder on this machine.
//!
//! Invariants:
//! - What was fetched lies in a folder of its own, only for this user, and is removed with its [`Workspace`]; what
//!   a process that was killed left, by [`remove_leftovers`]. A folder that is named is pointed at and never
//!   written to.
//! - Nothing of a context is executed while it is fetched: no hooks, no filters, no remote helpers, no `git-lfs`.
//!   Submodules and files of Git LFS come only where [`GitOptions`] asks for them, and whatever names them, a
//!   repository's own files, is held to the same rules as the URL of the context.
//! - An archive cannot reach out of its folder, and every amount has a limit ([`Limits`]).
//! - Passwords are in no argument, no URL, no file and no error. Git gets them in the environment of the one
//!   child that needs them, bound to the host they are for.
//! - Where a task file names the context ([`Origin::TaskFile`]), private and metadata addresses are
//!   refused, and the address that was checked is the one connected to.
//!
//! - An SSH key is in no file either: an agent that lives as long as the fetch has it. The key of a host is checked.
//!
//! - What git keeps on disk and in memory is measured while it runs, and ends it beyond the limits.
//!
//! Left out: ranges and resuming of downloads,
//! artifacts that are an index, extensions and other transfers of Git LFS than `basic`.

pub mod archive;
mod error;
pub mod facts;
mod git;
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
pub use facts::GitFacts;
pub use login::{CommitId, GitCredential, GitOptions, NotACommit, SshKey};
pub use scratch::{Scratch, remove_leftovers};
pub use spec::{ContextSpec, GitTransport, GitUrl, ParseError};

/// Who named the context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Origin {
    /// Whoever runs this program; may name whatever this machine reaches.
    #[default]
    Operator,
    /// A task file, whose author need not be trusted with this machine's network, files and keys.
    TaskFile,
}

/// How much is taken at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one download, as they come over the wire.
    pub download_bytes: u64,
    /// Bytes of all files of an archive, unpacked.
    pub unpacked_bytes: u64,
    /// Entries of an archive.
    pub entries: u64,
    /// Unpacked bytes for each packed one, checked from [`archive::RATIO_FROM`] unpacked bytes on.
    pub ratio: u64,
    /// Bytes of memory of git and what it starts, which keep what a server makes up: references, trees.
    pub memory_bytes: u64,
    /// Time for all of it.
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

/// What is happening, for a progress display.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Begun. The text is for people: `fetching https://example.com/a.git#main`.
    Started(String),
    /// Bytes that have come so far, and how many there will be, if that is known.
    Received {
        /// So far.
        bytes: u64,
        /// In all.
        total: Option<u64>,
    },
}

/// Is told of progress; must not block.
pub type OnProgress = Arc<dyn Fn(Progress) + Send + Sync>;

/// How to fetch.
#[derive(Clone)]
pub struct Options {
    /// Who named the context.
    pub origin: Origin,
    /// Lets a task file's context be at a private address.
    pub allow_private_addresses: bool,
    /// For registries. What was given explicitly for a git host serves git over https too.
    pub credentials: Credentials,
    /// Registries without TLS, besides loopback.
    pub insecure_registries: Vec<String>,
    /// Registries that the operator named, which may be at private addresses also where a task file names the
    /// context: the run's own registry. The insecure ones count as such anyway.
    pub known_registries: Vec<String>,
    /// For git over https.
    pub git_credentials: Vec<GitCredential>,
    /// For git over ssh. Where one is for the host, ssh runs with it alone, and without the operator's configuration.
    pub ssh_keys: Vec<SshKey>,
    /// What to take of a git repository.
    pub git: GitOptions,
    /// The SSH agent's socket. Without it the operator's own contexts use ssh as it is set up, and a
    /// task file's may not use ssh at all.
    pub ssh_agent: Option<PathBuf>,
    /// How much is taken at most.
    pub limits: Limits,
    /// Where folders for what is fetched are made.
    pub scratch_dir: PathBuf,
    /// Is told of progress.
    pub progress: Option<OnProgress>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            origin: Origin::Operator,
            allow_private_addresses: false,
            credentials: Credentials::new(),
            insecure_registries: Vec::new(),
            known_registries: Vec::new(),
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
    pub(crate) fn addresses(&self) -> AddressPolicy {
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

    fn scratch(&self) -> Result<Scratch, SourceError> {
        Scratch::new(&self.scratch_dir).map_err(|source| SourceError::Io {
            attempt: format!("make a folder in {}", self.scratch_dir.display()),
            source,
        })
    }
}

/// A context on this machine.
#[derive(Debug)]
pub struct Workspace {
    /// The folder, absolute and without links in its path.
    pub root: PathBuf,
    /// What git knows about it.
    pub facts: GitFacts,
    /// Whether it is a folder of the user's, that is not ours to change.
    pub borrowed: bool,
    /// Removes it.
    _scratch: Option<Scratch>,
}

impl Workspace {
    /// The path of `relative` inside the workspace, with every link on the way followed.
    ///
    /// # Errors
    /// [`SourceError::SubFolder`] if that leads out of the workspace. The file need not exist.
    pub fn path(&self, relative: &Path) -> Result<PathBuf, SourceError> {
        paths::inside(&self.root, relative).map_err(|error| SourceError::SubFolder {
            context: self.root.display().to_string(),
            folder: relative.display().to_string(),
            reason: error.to_string(),
        })
    }
}

/// Brings `spec` onto this machine.
///
/// # Errors
/// [`SourceError`]. Dropping the future stops everything and removes what was fetched.
pub async fn fetch(spec: &ContextSpec, options: &Options) -> Result<Workspace, SourceError> {
    fetch_with_input(spec, options, tokio::io::stdin()).await
}

/// As [`fetch`], with `input` in the place of standard input.
///
/// # Errors
/// [`SourceError`].
pub async fn fetch_with_input(
    spec: &ContextSpec,
    options: &Options,
    input: impl AsyncRead + Unpin + Send,
) -> Result<Workspace, SourceError> {
    match tokio::time::timeout(options.limits.time, fetch_any(spec, options, input)).await {
        Ok(result) => result,
        Err(_) => Err(SourceError::TimedOut {
            context: spec.to_string(),
            limit: options.limits.time,
        }),
    }
}

/// Whether a git repository can be read, and has the reference that `url` names, with all rules that hold when it is
/// fetched. Nothing is fetched. Returns the new address of a repository that the server redirects.
///
/// # Errors
/// [`SourceError`].
pub async fn probe(url: &GitUrl, options: &Options) -> Result<Option<GitUrl>, SourceError> {
    let probing = async {
        let scratch = options.scratch()?;
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

/// Unpacks what was packed of a folder on another machine and uploaded from there: a tar, perhaps compressed, or a
/// single Dockerfile. Unlike in a [`ContextSpec::Stdin`], links may lead anywhere, as in the folder that they come from.
///
/// # Errors
/// [`SourceError`]. Dropping the future removes what was unpacked.
pub async fn unpack_upload(
    input: impl AsyncRead + Unpin + Send,
    options: &Options,
) -> Result<Workspace, SourceError> {
    let scratch = options.scratch()?;
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
    owned(scratch)
}

async fn fetch_any(
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
            help: "name a git URL, or ask for none of them".into(),
        });
    }
    match spec {
        ContextSpec::Folder(path) | ContextSpec::TarballFile(path) => {
            from_path(path, options).await
        }
        ContextSpec::Git(url) => {
            let scratch = options.scratch()?;
            let (root, facts) = git::check_out(url, scratch.path(), options).await?;
            Ok(Workspace {
                root,
                facts,
                borrowed: false,
                _scratch: Some(scratch),
            })
        }
        ContextSpec::HttpTarball(url) => {
            let scratch = options.scratch()?;
            http::download(url, scratch.path(), options).await?;
            owned(scratch)
        }
        ContextSpec::Oci(reference) => {
            let scratch = options.scratch()?;
            oci::download(reference, scratch.path(), options).await?;
            owned(scratch)
        }
        ContextSpec::Stdin => {
            let scratch = options.scratch()?;
            archive::unpack(input, scratch.path(), &context, &options.limits).await?;
            owned(scratch)
        }
        ContextSpec::None => owned(options.scratch()?),
    }
}

async fn from_path(path: &Path, options: &Options) -> Result<Workspace, SourceError> {
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
        let facts = facts::of_folder(&root);
        return Ok(Workspace {
            root,
            facts,
            borrowed: true,
            _scratch: None,
        });
    }
    let file = tokio::fs::File::open(&root).await.map_err(missing)?;
    let scratch = options.scratch()?;
    archive::unpack(file, scratch.path(), &context, &options.limits).await?;
    owned(scratch)
}

fn owned(scratch: Scratch) -> Result<Workspace, SourceError> {
    let root = std::fs::canonicalize(scratch.path()).map_err(|source| SourceError::Io {
        attempt: format!("find the folder {}", scratch.path().display()),
        source,
    })?;
    Ok(Workspace {
        root,
        facts: GitFacts::default(),
        borrowed: false,
        _scratch: Some(scratch),
    })
}
