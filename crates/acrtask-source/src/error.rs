//! Why a context could not be had.

use std::path::PathBuf;

use acrtask_registry::{RegistryError, net::ForbiddenAddress};

/// The help where an address is refused because it is private.
pub(crate) const PRIVATE_ADDRESS_HELP: &str = "an operator who trusts it allows private addresses: `acrtask runner start --allow-private-addresses`";

/// Returns `true` if the error, or a cause of it, is a private address.
fn is_private_address(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source())
        .any(|error| error.is::<ForbiddenAddress>())
}

/// What went wrong. Each text says what was attempted on what, and never shows a password or a signed
/// URL; [`SourceError::help`] says what to do.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// There is no such folder or file.
    #[error("cannot read the context {}", path.display())]
    Missing {
        /// The path.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The program `git` cannot be started.
    #[error("cannot start the program `git` to fetch {url}")]
    NoGit {
        /// The repository.
        url: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// Git gave up.
    #[error("cannot {attempt}: {message}")]
    Git {
        /// What was attempted on what.
        attempt: String,
        /// What git said.
        message: String,
        /// What to do about it.
        help: Option<String>,
        /// Whether it did not get as far as the server.
        unreachable: bool,
    },
    /// No branch, tag, commit or other reference of that name.
    #[error("{url} has no branch, tag, commit or pull request `{reference}`")]
    NoSuchReference {
        /// The repository.
        url: String,
        /// The name.
        reference: String,
    },
    /// A commit that is not, or no more, in the repository.
    #[error("{url} has no commit {commit}{}", reference.as_ref().map(|reference| format!(" in the history of `{reference}`")).unwrap_or_default())]
    CommitGone {
        /// The repository.
        url: String,
        /// The commit.
        commit: String,
        /// Where it was looked for; nothing: in all branches and tags.
        reference: Option<String>,
    },
    /// A submodule that cannot be had.
    #[error("the submodule `{path}` of {url}: {reason}")]
    Submodule {
        /// The repository that it is in.
        url: String,
        /// Its folder.
        path: String,
        /// What is wrong.
        reason: String,
        /// What to do instead.
        help: String,
    },
    /// A submodule whose repository cannot be had.
    #[error("cannot check out the submodule `{path}` of {url}")]
    InSubmodule {
        /// The repository that it is in.
        url: String,
        /// Its folder.
        path: String,
        /// What happened.
        source: Box<SourceError>,
    },
    /// A file of Git LFS that cannot be had.
    #[error("cannot fetch {} of {url} from Git LFS: {reason}", path.as_ref().map_or_else(|| "the files".to_owned(), |path| format!("the file `{path}`")))]
    Lfs {
        /// The repository.
        url: String,
        /// The file; nothing: it is about all of them.
        path: Option<String>,
        /// What is wrong.
        reason: String,
        /// Whether the server could not be reached.
        unreachable: bool,
        /// What to do about it.
        help: Option<String>,
    },
    /// There is no such folder in the context, or it is outside, or it is a file.
    #[error("the folder `{folder}` of {context}: {reason}")]
    SubFolder {
        /// The context.
        context: String,
        /// The folder.
        folder: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A download that did not come through.
    #[error("cannot download {url}")]
    Download {
        /// The URL, for people.
        url: String,
        /// What happened.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A server that answers, but not with the context.
    #[error("cannot download {url}: {reason}")]
    Answer {
        /// The URL, for people.
        url: String,
        /// What it answers.
        reason: String,
    },
    /// Not allowed, by a rule of ours.
    #[error("the context {context} is refused: {reason}")]
    Refused {
        /// The context.
        context: String,
        /// The rule.
        reason: String,
        /// What to do instead.
        help: String,
    },
    /// An archive that is broken, or that reaches out of its folder.
    #[error("cannot unpack {context}: {}{reason}", entry.as_ref().map(|entry| format!("entry `{entry}`: ")).unwrap_or_default())]
    Archive {
        /// The context.
        context: String,
        /// The entry that is to blame.
        entry: Option<String>,
        /// What is wrong.
        reason: String,
    },
    /// Bigger than one of the limits.
    #[error("{context} has more than {limit} {unit}")]
    TooLarge {
        /// The context.
        context: String,
        /// The limit.
        limit: u64,
        /// Of what: `bytes to download`.
        unit: &'static str,
    },
    /// Not finished in time.
    #[error("{context} could not be fetched within {} s", limit.as_secs())]
    TimedOut {
        /// The context.
        context: String,
        /// The limit.
        limit: std::time::Duration,
    },
    /// A registry's answer.
    #[error("cannot fetch {context}")]
    Registry {
        /// The context.
        context: String,
        /// What happened.
        source: Box<RegistryError>,
    },
    /// The machine's own trouble.
    #[error("cannot {attempt}")]
    Io {
        /// What was attempted on what.
        attempt: String,
        /// What the system says.
        source: std::io::Error,
    },
}

impl SourceError {
    /// What to do about it, where something can be done.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Download { .. } | Self::Registry { .. } if is_private_address(self) => {
                Some(PRIVATE_ADDRESS_HELP.into())
            }
            Self::Missing { .. } => Some("name a folder, an archive, a git URL, oci://..., `-` or /dev/null".into()),
            Self::NoGit { .. } => Some("install git 2.37 or newer".into()),
            Self::Git { help, .. } => help.clone(),
            Self::NoSuchReference { .. } => Some("write URL#REF:FOLDER with a REF that exists; a short commit needs a server that shows its branch".into()),
            Self::CommitGone { .. } => Some("it was taken away by a force-push, its branch was deleted, or it never was there: run what the branch has now".into()),
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

    /// Whether somebody else's machine could not be reached, as opposed to a context that is wrong.
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
    fn a_private_address_names_the_flag_that_allows_it() {
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
