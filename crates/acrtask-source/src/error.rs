//! Errors of fetching contexts.

use std::path::PathBuf;

use acrtask_registry::{RegistryError, net::ForbiddenAddress};

/// Help for a refused private address.
pub(crate) const PRIVATE_ADDRESS_HELP: &str = "an operator who trusts it allows private addresses: `acrtask runner start --allow-private-addresses`";

/// Returns `true` if the error, or a cause of it, is a private address.
fn is_private_address(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source())
        .any(|error| error.is::<ForbiddenAddress>())
}

/// Error of fetching a context. Each text names the attempt and its target, and never contains a
/// password or a signed URL. [`SourceError::help`] advises the user.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The folder or file does not exist.
    #[error("cannot read the context {}", path.display())]
    Missing {
        /// Path of the folder or file.
        path: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
    },
    /// The program `git` cannot be started.
    #[error("cannot start the program `git` to fetch {url}")]
    NoGit {
        /// URL of the repository.
        url: String,
        /// Error of the operating system.
        source: std::io::Error,
    },
    /// Git failed.
    #[error("cannot {attempt}: {message}")]
    Git {
        /// Attempted operation and its target.
        attempt: String,
        /// Error message of git.
        message: String,
        /// Advice to the user.
        help: Option<String>,
        /// `true` if git could not connect to the server.
        unreachable: bool,
    },
    /// The repository has no branch, tag, commit or other reference of this name.
    #[error("{url} has no branch, tag, commit or pull request `{reference}`")]
    NoSuchReference {
        /// URL of the repository.
        url: String,
        /// Name of the reference.
        reference: String,
    },
    /// The repository does not contain the commit, or no longer.
    #[error("{url} has no commit {commit}{}", reference.as_ref().map(|reference| format!(" in the history of `{reference}`")).unwrap_or_default())]
    CommitGone {
        /// URL of the repository.
        url: String,
        /// Full name of the commit.
        commit: String,
        /// Searched reference. `None` if git searched all branches and tags.
        reference: Option<String>,
    },
    /// A submodule cannot be checked out.
    #[error("the submodule `{path}` of {url}: {reason}")]
    Submodule {
        /// URL of the parent repository.
        url: String,
        /// Folder of the submodule.
        path: String,
        /// Description of the problem.
        reason: String,
        /// Advice to the user.
        help: String,
    },
    /// The repository of a submodule cannot be fetched.
    #[error("cannot check out the submodule `{path}` of {url}")]
    InSubmodule {
        /// URL of the parent repository.
        url: String,
        /// Folder of the submodule.
        path: String,
        /// Cause.
        source: Box<SourceError>,
    },
    /// A file cannot be fetched from Git LFS.
    #[error("cannot fetch {} of {url} from Git LFS: {reason}", path.as_ref().map_or_else(|| "the files".to_owned(), |path| format!("the file `{path}`")))]
    Lfs {
        /// URL of the repository.
        url: String,
        /// Path of the file. `None` if the problem concerns all files.
        path: Option<String>,
        /// Description of the problem.
        reason: String,
        /// `true` if the server is unreachable.
        unreachable: bool,
        /// Advice to the user.
        help: Option<String>,
    },
    /// The subfolder does not exist in the context, leads out of it, or is a file.
    #[error("the folder `{folder}` of {context}: {reason}")]
    SubFolder {
        /// Text of the context.
        context: String,
        /// Path of the subfolder.
        folder: String,
        /// Description of the problem.
        reason: String,
    },
    /// The download failed.
    #[error("cannot download {url}")]
    Download {
        /// URL without secrets.
        url: String,
        /// Cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server responded with something else than the context.
    #[error("cannot download {url}: {reason}")]
    UnexpectedResponse {
        /// URL without secrets.
        url: String,
        /// Description of the response.
        reason: String,
    },
    /// A policy does not permit the context.
    #[error("the context {context} is refused: {reason}")]
    Refused {
        /// Text of the context.
        context: String,
        /// Violated rule.
        reason: String,
        /// Advice to the user.
        help: String,
    },
    /// The archive is broken, or leads out of its folder.
    #[error("cannot unpack {context}: {}{reason}", entry.as_ref().map(|entry| format!("entry `{entry}`: ")).unwrap_or_default())]
    Archive {
        /// Text of the context.
        context: String,
        /// Invalid entry. `None` if the problem concerns the whole archive.
        entry: Option<String>,
        /// Description of the problem.
        reason: String,
    },
    /// The context exceeds a limit.
    #[error("{context} has more than {limit} {unit}")]
    TooLarge {
        /// Text of the context.
        context: String,
        /// Exceeded limit, in `unit`.
        limit: u64,
        /// Unit of the limit: `bytes to download`.
        unit: &'static str,
    },
    /// Fetching exceeded its time limit.
    #[error("{context} could not be fetched within {} s", limit.as_secs())]
    TimedOut {
        /// Text of the context.
        context: String,
        /// Exceeded time limit.
        limit: std::time::Duration,
    },
    /// A registry reported an error.
    #[error("cannot fetch {context}")]
    Registry {
        /// Text of the context.
        context: String,
        /// Cause.
        source: Box<RegistryError>,
    },
    /// An operation of the operating system failed.
    #[error("cannot {attempt}")]
    Io {
        /// Attempted operation and its target.
        attempt: String,
        /// Error of the operating system.
        source: std::io::Error,
    },
}

impl SourceError {
    /// Returns advice to the user. `None` if the user can do nothing about the error.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Download { .. } | Self::Registry { .. } if is_private_address(self) => {
                Some(PRIVATE_ADDRESS_HELP.into())
            }
            Self::Missing { .. } => Some("name a folder, an archive, a git URL, oci://..., `-` or /dev/null".into()),
            Self::NoGit { .. } => Some("install git 2.37 or newer".into()),
            Self::Git { help, .. } => help.clone(),
            Self::NoSuchReference { .. } => Some("write URL#REF:FOLDER with a REF that exists; for a short commit, a branch of the server must contain it".into()),
            Self::CommitGone { .. } => Some("a force-push or a deleted branch removed it, or it never existed: run the current commit of the branch".into()),
            Self::Refused { help, .. } | Self::Submodule { help, .. } => Some(help.clone()),
            Self::InSubmodule { source, .. } => {
                const WITHOUT: &str = "`--submodules=false` leaves submodules out";
                Some(match source.help() {
                    Some(help) => format!("{help}; {WITHOUT}"),
                    None => WITHOUT.into(),
                })
            }
            Self::Lfs { help, .. } => help.clone(),
            Self::Registry { source, .. } => source.help(),
            _ => None,
        }
    }

    /// Returns `true` if a remote server is unreachable, in contrast to an invalid context.
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::Download { .. } | Self::TimedOut { .. } => true,
            Self::Git { unreachable, .. } | Self::Lfs { unreachable, .. } => *unreachable,
            Self::InSubmodule { source, .. } => source.is_unreachable(),
            Self::Registry { source, .. } => matches!(**source, RegistryError::Unreachable { .. }),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_for_a_private_address_names_the_flag_that_allows_it() {
        let forbidden = ForbiddenAddress {
            host: "internal".into(),
            address: [10, 0, 0, 1].into(),
        };
        let by_registry = SourceError::Registry {
            context: "oci://internal/app:1".into(),
            source: Box::new(RegistryError::Unreachable {
                attempt: "resolve internal/app:1".into(),
                host: "internal".into(),
                source: Box::new(forbidden.clone()),
            }),
        };
        let by_download = SourceError::Download {
            url: "https://internal/a.tar".into(),
            source: Box::new(forbidden),
        };
        for error in [by_registry, by_download] {
            let help = error.help().unwrap();
            assert!(help.contains("--allow-private-addresses"), "{help}");
        }
    }
}
