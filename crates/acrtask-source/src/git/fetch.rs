//! Bringing one commit of a repository here, with as little of its history as the server lets us.

use super::{Git, MAX_OUTPUT};
use crate::{CommitId, error::SourceError, facts::GitFacts};

/// The reference that a fetch is stored under.
const FETCHED: &str = "refs/acrtask/fetched";
/// How far back a reference's history is looked through for a commit that the server does not give out by its name.
/// The last one is git's word for all of it.
const DEPTHS: [&str; 5] = ["8", "64", "512", "4096", "2147483647"];
/// All that may hold a commit, for servers that do not give it out by its name.
const ALL: [&str; 2] = [
    "+refs/heads/*:refs/acrtask/heads/*",
    "+refs/tags/*:refs/acrtask/tags/*",
];

impl Git {
    /// Checks `commit` out, else what the URL's reference points at.
    pub(super) async fn fetch(&self, commit: Option<&CommitId>) -> Result<GitFacts, SourceError> {
        // A repository has one kind of names; the longer ones are those of SHA-256.
        let format = match commit {
            Some(commit) if commit.as_str().len() == 64 => "--object-format=sha256",
            _ => "--object-format=sha1",
        };
        self.must(
            "make a repository for",
            &["init", "--quiet", "--template=", format, "."],
        )
        .await?;
        let facts = match commit {
            Some(commit) => self.fetch_exact(commit).await?,
            None => self.fetch_reference().await?,
        };
        let commit = facts.commit.as_deref().unwrap_or(FETCHED);
        self.must(
            "check out",
            &["checkout", "--quiet", "--force", "--detach", commit],
        )
        .await?;
        self.check_size().await?;
        Ok(facts)
    }

    async fn fetch_reference(&self) -> Result<GitFacts, SourceError> {
        let reference = self.url.reference.as_deref();
        let mut facts = GitFacts {
            repository: Some(self.url.url.clone()),
            ..GitFacts::default()
        };
        let missing = || SourceError::NoSuchReference {
            url: self.url.url.clone(),
            reference: reference.unwrap_or("HEAD").into(),
        };
        match self.look_up(reference).await? {
            Some(found) => {
                let refspec = format!("+{}:{FETCHED}", found.name);
                self.fetch_refs(&["--depth=1"], &[&refspec]).await?;
                facts.branch = found.branch;
                facts.tag = found.tag;
            }
            None => {
                let reference = reference.unwrap_or("HEAD");
                if !is_commit(reference) {
                    return Err(missing());
                }
                self.fetch_commit(reference).await?.ok_or_else(missing)?;
            }
        }
        facts.commit = Some(self.revision(FETCHED).await?.ok_or_else(missing)?);
        Ok(facts)
    }

    /// Fetches exactly `commit`: by its name, else out of the history of the URL's reference.
    async fn fetch_exact(&self, commit: &CommitId) -> Result<GitFacts, SourceError> {
        let reference = self.url.reference.as_deref();
        let found = match reference {
            Some(reference) => self.look_up(Some(reference)).await?,
            None => None,
        };
        if !self.fetch_by_name(commit.as_str()).await? {
            let of_reference = found
                .as_ref()
                .map(|found| format!("+{}:{FETCHED}", found.name));
            let refspecs: Vec<&str> = match &of_reference {
                Some(refspec) => vec![refspec],
                None => ALL.to_vec(),
            };
            if !self.deepen(commit, &refspecs).await? {
                return Err(SourceError::CommitGone {
                    url: self.url.url.clone(),
                    commit: commit.to_string(),
                    reference: found.map(|found| found.name),
                });
            }
        }
        // What a name stands for may be a tag; a commit's own name stands for itself.
        if self.revision(commit.as_str()).await?.as_deref() != Some(commit.as_str()) {
            return Err(SourceError::NoSuchReference {
                url: self.url.url.clone(),
                reference: commit.to_string(),
            });
        }
        let (branch, tag) = match (found, reference) {
            (Some(found), _) => (found.branch, found.tag),
            // The reference is gone by now, and the commit is not.
            (None, Some(reference)) => named(reference),
            (None, None) => (None, None),
        };
        Ok(GitFacts {
            commit: Some(commit.to_string()),
            branch,
            tag,
            repository: Some(self.url.url.clone()),
        })
    }

    /// Whether the server gives the commit out by its full name: servers need not, where it is no reference's tip.
    async fn fetch_by_name(&self, commit: &str) -> Result<bool, SourceError> {
        let refspec = format!("+{commit}:{FETCHED}");
        let args = fetch_args(&["--depth=1"], &self.address.url, &[&refspec]);
        Ok(self.run(&args).await?.success)
    }

    /// Fetches more and more history of `refspecs`; whether `commit` is in it.
    async fn deepen(&self, commit: &CommitId, refspecs: &[&str]) -> Result<bool, SourceError> {
        for depth in DEPTHS {
            self.fetch_refs(&[&format!("--depth={depth}")], refspecs)
                .await?;
            if self.revision(commit.as_str()).await?.is_some() {
                return Ok(true);
            }
            let asked = self.run(&["rev-parse", "--is-shallow-repository"]).await?;
            if asked.stdout.starts_with(b"false") {
                break;
            }
        }
        Ok(false)
    }

    async fn fetch_refs(&self, options: &[&str], refspecs: &[&str]) -> Result<(), SourceError> {
        let args = fetch_args(options, &self.address.url, refspecs);
        self.must("fetch", &args).await.map(drop)
    }

    /// Fetches a commit by its name. Where the server does not give it out, everything is fetched, which also finds a
    /// shortened name.
    async fn fetch_commit(&self, commit: &str) -> Result<Option<()>, SourceError> {
        if matches!(commit.len(), 40 | 64) && self.fetch_by_name(commit).await? {
            return Ok(Some(()));
        }
        self.fetch_refs(&[], &ALL).await?;
        let Some(full) = self.revision(commit).await? else {
            return Ok(None);
        };
        self.must("name a commit of", &["update-ref", FETCHED, &full])
            .await?;
        Ok(Some(()))
    }

    /// The full name of the commit that `name` stands for in the fetched repository.
    async fn revision(&self, name: &str) -> Result<Option<String>, SourceError> {
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

    /// Whether the server has what the URL names. A commit may be there without a reference to it.
    pub(super) async fn find_reference(&self) -> Result<(), SourceError> {
        let reference = self.url.reference.as_deref();
        let found = self.look_up(reference).await?.is_some();
        if found || reference.is_some_and(is_commit) {
            return Ok(());
        }
        Err(SourceError::NoSuchReference {
            url: self.url.url.clone(),
            reference: reference.unwrap_or("HEAD").into(),
        })
    }

    /// Asks the server what `reference` is.
    async fn look_up(&self, reference: Option<&str>) -> Result<Option<Found>, SourceError> {
        let mut args = vec!["ls-remote", "--symref", "--", &self.address.url];
        let names = reference.map_or_else(|| vec!["HEAD".to_owned()], candidates);
        args.extend(names.iter().map(String::as_str));
        let output = self.must("read the references of", &args).await?;
        if output.stdout.len() as u64 > MAX_OUTPUT {
            return Err(SourceError::TooLarge {
                context: self.url.url.clone(),
                limit: MAX_OUTPUT,
                unit: "bytes of references",
            });
        }
        let listed = String::from_utf8_lossy(&output.stdout);
        let found = choose(&names, &listed);
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

/// A reference that a server has.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// In full, as it is fetched.
    pub(super) name: String,
    pub(super) branch: Option<String>,
    pub(super) tag: Option<String>,
}

/// What `reference` may be in full, most likely first: a branch goes before a tag, as for `git checkout`.
pub(super) fn candidates(reference: &str) -> Vec<String> {
    if reference.starts_with("refs/") || reference == "HEAD" {
        return vec![reference.to_owned()];
    }
    ["refs/heads/", "refs/tags/", "refs/"]
        .iter()
        .map(|prefix| format!("{prefix}{reference}"))
        .collect()
}

/// The first of `names` in the output of `git ls-remote --symref`.
pub(super) fn choose(names: &[String], listed: &str) -> Option<Found> {
    let lines: Vec<(&str, &str)> = listed
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .collect();
    let name = names.iter().find(|name| {
        lines
            .iter()
            .any(|(left, right)| right == name && !left.starts_with("ref: "))
    })?;
    // Of HEAD the server says what it points at.
    let target = lines
        .iter()
        .find_map(|(left, right)| left.strip_prefix("ref: ").filter(|_| right == name));
    let full = target.unwrap_or(name);
    Some(Found {
        name: name.clone(),
        branch: full.strip_prefix("refs/heads/").map(str::to_owned),
        tag: full.strip_prefix("refs/tags/").map(str::to_owned),
    })
}

/// Whether it can be a commit's name, in full or shortened.
fn is_commit(text: &str) -> bool {
    (7..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// What a reference that nobody can be asked about is: a branch, unless it says otherwise.
fn named(reference: &str) -> (Option<String>, Option<String>) {
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
