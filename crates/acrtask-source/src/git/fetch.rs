//! Fetch of one commit of a repository, with as little history as the server allows.

use super::{Git, MAX_OUTPUT};
use crate::{CommitId, error::SourceError, git_variables::GitVariables};

/// Reference that stores the fetched commit.
const FETCHED: &str = "refs/acrtask/fetched";
/// Depths for the search of a commit that the server does not send by name. In git, the last value
/// means the complete history.
const DEPTHS: [&str; 5] = ["8", "64", "512", "4096", "2147483647"];
/// All references that may contain a commit, for servers that do not send commits by name.
const ALL_REFERENCES: [&str; 2] = [
    "+refs/heads/*:refs/acrtask/heads/*",
    "+refs/tags/*:refs/acrtask/tags/*",
];

impl Git {
    /// Checks out `commit`, or else the reference of the URL.
    pub(super) async fn fetch(
        &self,
        commit: Option<&CommitId>,
    ) -> Result<GitVariables, SourceError> {
        // All object names of a repository have the same length. The longer ones are SHA-256.
        let format = match commit {
            Some(commit) if commit.as_str().len() == 64 => "--object-format=sha256",
            _ => "--object-format=sha1",
        };
        self.run_checked(
            "create a repository for",
            &["init", "--quiet", "--template=", format, "."],
        )
        .await?;
        let variables = match commit {
            Some(commit) => self.fetch_exact(commit).await?,
            None => self.fetch_reference().await?,
        };
        let commit = variables.commit.as_deref().unwrap_or(FETCHED);
        self.run_checked(
            "check out",
            &["checkout", "--quiet", "--force", "--detach", commit],
        )
        .await?;
        self.check_size().await?;
        Ok(variables)
    }

    async fn fetch_reference(&self) -> Result<GitVariables, SourceError> {
        let reference = self.url.reference.as_deref();
        let mut variables = GitVariables {
            repository: Some(self.url.url.clone()),
            ..GitVariables::default()
        };
        let missing = || SourceError::NoSuchReference {
            url: self.url.url.clone(),
            reference: reference.unwrap_or("HEAD").into(),
        };
        match self.find_reference(reference).await? {
            Some(found) => {
                let refspec = format!("+{}:{FETCHED}", found.name);
                self.fetch_refs(&["--depth=1"], &[&refspec]).await?;
                variables.branch = found.branch;
                variables.tag = found.tag;
            }
            None => {
                let reference = reference.unwrap_or("HEAD");
                if !is_commit(reference) {
                    return Err(missing());
                }
                self.fetch_commit(reference).await?.ok_or_else(missing)?;
            }
        }
        variables.commit = Some(self.resolve_commit(FETCHED).await?.ok_or_else(missing)?);
        Ok(variables)
    }

    /// Fetches exactly `commit`: by its name, or else from the history of the URL's reference.
    async fn fetch_exact(&self, commit: &CommitId) -> Result<GitVariables, SourceError> {
        let reference = self.url.reference.as_deref();
        let found = match reference {
            Some(reference) => self.find_reference(Some(reference)).await?,
            None => None,
        };
        if !self.fetch_by_name(commit.as_str()).await? {
            let of_reference = found
                .as_ref()
                .map(|found| format!("+{}:{FETCHED}", found.name));
            let refspecs: Vec<&str> = match &of_reference {
                Some(refspec) => vec![refspec],
                None => ALL_REFERENCES.to_vec(),
            };
            if !self.deepen(commit, &refspecs).await? {
                return Err(SourceError::CommitGone {
                    url: self.url.url.clone(),
                    commit: commit.to_string(),
                    reference: found.map(|found| found.name),
                });
            }
        }
        // The name may belong to a tag. A commit resolves to its own name.
        if self.resolve_commit(commit.as_str()).await?.as_deref() != Some(commit.as_str()) {
            return Err(SourceError::NoSuchReference {
                url: self.url.url.clone(),
                reference: commit.to_string(),
            });
        }
        let (branch, tag) = match (found, reference) {
            (Some(found), _) => (found.branch, found.tag),
            // The reference no longer exists, but the commit does.
            (None, Some(reference)) => guess_kind(reference),
            (None, None) => (None, None),
        };
        Ok(GitVariables {
            commit: Some(commit.to_string()),
            branch,
            tag,
            repository: Some(self.url.url.clone()),
        })
    }

    /// Fetches the commit by its full name. Returns `false` if the server refuses, as it may for
    /// commits without a reference.
    async fn fetch_by_name(&self, commit: &str) -> Result<bool, SourceError> {
        let refspec = format!("+{commit}:{FETCHED}");
        let args = fetch_args(&["--depth=1"], &self.address.url, &[&refspec]);
        Ok(self.run(&args).await?.success)
    }

    /// Fetches more and more history of `refspecs`. Returns `true` once it contains `commit`.
    async fn deepen(&self, commit: &CommitId, refspecs: &[&str]) -> Result<bool, SourceError> {
        for depth in DEPTHS {
            self.fetch_refs(&[&format!("--depth={depth}")], refspecs)
                .await?;
            if self.resolve_commit(commit.as_str()).await?.is_some() {
                return Ok(true);
            }
            let shallow = self.run(&["rev-parse", "--is-shallow-repository"]).await?;
            if shallow.stdout.starts_with(b"false") {
                break;
            }
        }
        Ok(false)
    }

    async fn fetch_refs(&self, options: &[&str], refspecs: &[&str]) -> Result<(), SourceError> {
        let args = fetch_args(options, &self.address.url, refspecs);
        self.run_checked("fetch", &args).await.map(drop)
    }

    /// Fetches a commit by its name. If the server does not send it, fetches everything. This also
    /// resolves a short name.
    async fn fetch_commit(&self, commit: &str) -> Result<Option<()>, SourceError> {
        if matches!(commit.len(), 40 | 64) && self.fetch_by_name(commit).await? {
            return Ok(Some(()));
        }
        self.fetch_refs(&[], &ALL_REFERENCES).await?;
        let Some(full) = self.resolve_commit(commit).await? else {
            return Ok(None);
        };
        self.run_checked("name a commit of", &["update-ref", FETCHED, &full])
            .await?;
        Ok(Some(()))
    }

    /// Returns the full name of the commit that `name` resolves to in the fetched repository.
    async fn resolve_commit(&self, name: &str) -> Result<Option<String>, SourceError> {
        let commit = format!("{name}^{{commit}}");
        let output = self
            .run(&[
                "rev-parse",
                "--quiet",
                "--verify",
                "--end-of-options",
                &commit,
            ])
            .await?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Ok((output.success && is_commit(&text)).then_some(text))
    }

    /// Checks that the server has the reference of the URL. A commit may exist without a reference.
    pub(super) async fn check_reference(&self) -> Result<(), SourceError> {
        let reference = self.url.reference.as_deref();
        let found = self.find_reference(reference).await?.is_some();
        if found || reference.is_some_and(is_commit) {
            return Ok(());
        }
        Err(SourceError::NoSuchReference {
            url: self.url.url.clone(),
            reference: reference.unwrap_or("HEAD").into(),
        })
    }

    /// Requests `reference` from the server.
    async fn find_reference(
        &self,
        reference: Option<&str>,
    ) -> Result<Option<RemoteReference>, SourceError> {
        let mut args = vec!["ls-remote", "--symref", "--", &self.address.url];
        let names = reference.map_or_else(|| vec!["HEAD".to_owned()], full_names);
        args.extend(names.iter().map(String::as_str));
        let output = self.run_checked("read the references of", &args).await?;
        if output.stdout.len() as u64 > MAX_OUTPUT {
            return Err(SourceError::TooLarge {
                context: self.url.url.clone(),
                limit: MAX_OUTPUT,
                unit: "bytes of references",
            });
        }
        let listed = String::from_utf8_lossy(&output.stdout);
        let found = find_listed(&names, &listed);
        if found.is_none() && reference.is_none() {
            return Err(SourceError::Git {
                attempt: format!("fetch {}", self.url.url),
                message: "the repository is empty, or its default branch does not exist".into(),
                help: Some("name a branch: URL#BRANCH".into()),
                unreachable: false,
            });
        }
        Ok(found)
    }
}

fn fetch_args<'a>(options: &[&'a str], url: &'a str, refspecs: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec![
        "fetch",
        "--quiet",
        "--no-tags",
        "--no-recurse-submodules",
        "--no-write-fetch-head",
        "--no-auto-maintenance",
    ];
    args.extend(options);
    args.extend(["--", url]);
    args.extend(refspecs);
    args
}

/// Reference of a remote repository.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RemoteReference {
    /// Full name, as git fetches it.
    pub(super) name: String,
    pub(super) branch: Option<String>,
    pub(super) tag: Option<String>,
}

/// Returns the possible full names of `reference`, most likely first. A branch precedes a tag, as
/// in `git checkout`.
pub(super) fn full_names(reference: &str) -> Vec<String> {
    if reference.starts_with("refs/") || reference == "HEAD" {
        return vec![reference.to_owned()];
    }
    ["refs/heads/", "refs/tags/", "refs/"]
        .iter()
        .map(|prefix| format!("{prefix}{reference}"))
        .collect()
}

/// Returns the first of `names` in the output of `git ls-remote --symref`.
pub(super) fn find_listed(names: &[String], listed: &str) -> Option<RemoteReference> {
    let lines: Vec<(&str, &str)> = listed
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .collect();
    let name = names.iter().find(|name| {
        lines
            .iter()
            .any(|(left, right)| right == name && !left.starts_with("ref: "))
    })?;
    // For HEAD, the server lists the target.
    let target = lines
        .iter()
        .find_map(|(left, right)| left.strip_prefix("ref: ").filter(|_| right == name));
    let full = target.unwrap_or(name);
    Some(RemoteReference {
        name: name.clone(),
        branch: full.strip_prefix("refs/heads/").map(str::to_owned),
        tag: full.strip_prefix("refs/tags/").map(str::to_owned),
    })
}

/// Returns `true` if the text may be the name of a commit, in full or shortened.
fn is_commit(text: &str) -> bool {
    (7..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Returns the branch or tag of a reference that no longer exists. A name without a prefix is a
/// branch.
fn guess_kind(reference: &str) -> (Option<String>, Option<String>) {
    let branch = |name: &str| (Some(name.to_owned()), None);
    match reference.strip_prefix("refs/") {
        None => branch(reference),
        Some(rest) => match (rest.strip_prefix("heads/"), rest.strip_prefix("tags/")) {
            (Some(name), _) => branch(name),
            (None, Some(name)) => (None, Some(name.to_owned())),
            (None, None) => (None, None),
        },
    }
}
