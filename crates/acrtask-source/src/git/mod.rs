//! Checking a git repository out, through the program `git`.
//!
//! The program rather than libgit2, for the protocols: it speaks ssh as the user has it set up, and shallow
//! fetches of single references work with every server.
//!
//! It runs with an environment of its own: no configuration of the system or the user, no prompts, no
//! hooks, no templates, no credential helpers; of the protocols only the one that the URL names. Configuration
//! goes in as `GIT_CONFIG_KEY_n` and `GIT_CONFIG_VALUE_n`, passwords too, as a header for the one host: the
//! environment of a process is readable by its user alone, arguments are readable by all. What a
//! caller named stands behind `--`.

mod access;

use std::{
    io,
    path::{Path, PathBuf},
};

use tokio::process::Command;

use crate::{
    Options,
    error::SourceError,
    facts::GitFacts,
    paths,
    process::{self, Output},
    spec::GitUrl,
};
use access::{check_policy, environment};

/// How much of `git ls-remote` is read, in bytes: about half a million references.
const MAX_REFS: u64 = 64 << 20;
/// The reference that a fetch is stored under.
const FETCHED: &str = "refs/acrtask/fetched";
/// Checks `url` out below `scratch`. Gives the folder that the URL names, and facts.
pub(crate) async fn check_out(
    url: &GitUrl,
    scratch: &Path,
    options: &Options,
) -> Result<(PathBuf, GitFacts), SourceError> {
    let git = Git::new(url, scratch, options).await?;
    let facts = git.fetch(url.reference.as_deref()).await?;
    let root = std::fs::canonicalize(&git.tree).map_err(|source| SourceError::Io {
        attempt: format!("find the folder {}", git.tree.display()),
        source,
    })?;
    let Some(folder) = &url.folder else {
        return Ok((root, facts));
    };
    let fail = |reason: String| SourceError::SubFolder {
        context: git.url.clone(),
        folder: folder.clone(),
        reason,
    };
    let path = paths::inside(&root, Path::new(folder)).map_err(|error| fail(error.to_string()))?;
    match path.metadata() {
        Ok(meta) if meta.is_dir() => Ok((path, facts)),
        Ok(_) => Err(fail("it is not a folder".into())),
        Err(_) => Err(fail("there is no such folder".into())),
    }
}

/// Git, set up for one repository.
struct Git {
    url: String,
    tree: PathBuf,
    environment: Vec<(String, String)>,
}

impl Git {
    async fn new(url: &GitUrl, scratch: &Path, options: &Options) -> Result<Self, SourceError> {
        let pinned = check_policy(url, options).await?;
        let tree = scratch.join("tree");
        let home = scratch.join("home");
        for folder in [&tree, &home] {
            std::fs::create_dir(folder).map_err(|source| SourceError::Io {
                attempt: format!("make the folder {}", folder.display()),
                source,
            })?;
        }
        let environment = environment(url, &home, pinned.as_ref(), options);
        Ok(Self {
            url: url.url.clone(),
            tree,
            environment,
        })
    }

    async fn run(&self, args: &[&str]) -> Result<Output, SourceError> {
        let mut command = Command::new("git");
        command
            .current_dir(&self.tree)
            .args(args)
            .env_clear()
            .envs(self.environment.iter().cloned());
        process::run(command, MAX_REFS)
            .await
            .map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => SourceError::NoGit {
                    url: self.url.clone(),
                    source,
                },
                _ => SourceError::Io {
                    attempt: format!("run git for {}", self.url),
                    source,
                },
            })
    }

    /// Runs git, and takes anything but success for an error.
    async fn must(&self, attempt: &str, args: &[&str]) -> Result<Output, SourceError> {
        let output = self.run(args).await?;
        if output.success {
            return Ok(output);
        }
        Err(SourceError::Git {
            attempt: format!("{attempt} {}", self.url),
            message: first_cause(&output.stderr),
            help: advice(&output.stderr),
            unreachable: is_unreachable(&output.stderr),
        })
    }

    async fn fetch(&self, reference: Option<&str>) -> Result<GitFacts, SourceError> {
        self.must(
            "make a repository for",
            &["init", "--quiet", "--template=", "."],
        )
        .await?;
        let mut facts = GitFacts {
            repository: Some(self.url.clone()),
            ..GitFacts::default()
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
                let missing = || SourceError::NoSuchReference {
                    url: self.url.clone(),
                    reference: reference.into(),
                };
                if !is_commit(reference) {
                    return Err(missing());
                }
                self.fetch_commit(reference).await?.ok_or_else(missing)?;
            }
        }
        let commit = self
            .revision(FETCHED)
            .await?
            .ok_or_else(|| SourceError::NoSuchReference {
                url: self.url.clone(),
                reference: reference.unwrap_or("HEAD").into(),
            })?;
        self.must(
            "check out",
            &["checkout", "--quiet", "--force", "--detach", &commit],
        )
        .await?;
        facts.commit = Some(commit);
        Ok(facts)
    }

    async fn fetch_refs(&self, options: &[&str], refspecs: &[&str]) -> Result<(), SourceError> {
        let args = fetch_args(options, &self.url, refspecs);
        self.must("fetch", &args).await.map(drop)
    }

    /// Fetches a commit by its name. Servers need not give out what is no reference's tip; then everything is
    /// fetched, which also finds a shortened name.
    async fn fetch_commit(&self, commit: &str) -> Result<Option<()>, SourceError> {
        if matches!(commit.len(), 40 | 64) {
            let refspec = format!("+{commit}:{FETCHED}");
            let args = fetch_args(&["--depth=1"], &self.url, &[&refspec]);
            if self.run(&args).await?.success {
                return Ok(Some(()));
            }
        }
        let all = [
            "+refs/heads/*:refs/acrtask/heads/*",
            "+refs/tags/*:refs/acrtask/tags/*",
        ];
        self.fetch_refs(&[], &all).await?;
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

    /// Asks the server what `reference` is.
    async fn look_up(&self, reference: Option<&str>) -> Result<Option<Found>, SourceError> {
        let mut args = vec!["ls-remote", "--symref", "--", &self.url];
        let names = reference.map_or_else(|| vec!["HEAD".to_owned()], candidates);
        args.extend(names.iter().map(String::as_str));
        let output = self.must("read the references of", &args).await?;
        if output.stdout.len() as u64 > MAX_REFS {
            return Err(SourceError::TooLarge {
                context: self.url.clone(),
                limit: MAX_REFS,
                unit: "bytes of references",
            });
        }
        let listed = String::from_utf8_lossy(&output.stdout);
        let found = choose(&names, &listed);
        if found.is_none() && reference.is_none() {
            return Err(SourceError::Git {
                attempt: format!("fetch {}", self.url),
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
struct Found {
    /// In full, as it is fetched.
    name: String,
    branch: Option<String>,
    tag: Option<String>,
}

/// What `reference` may be in full, most likely first: a branch goes before a tag, as for `git checkout`.
fn candidates(reference: &str) -> Vec<String> {
    if reference.starts_with("refs/") || reference == "HEAD" {
        return vec![reference.to_owned()];
    }
    ["refs/heads/", "refs/tags/", "refs/"]
        .iter()
        .map(|prefix| format!("{prefix}{reference}"))
        .collect()
}

/// The first of `names` in the output of `git ls-remote --symref`.
fn choose(names: &[String], listed: &str) -> Option<Found> {
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

/// The line of git's output that says most.
fn first_cause(stderr: &str) -> String {
    let lines = || {
        stderr
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
    };
    let telling = lines().find(|line| {
        ["fatal:", "error:", "ERROR:", "remote:"]
            .iter()
            .any(|prefix| line.starts_with(prefix))
            || line.contains("Permission denied")
            || line.contains("Host key verification")
    });
    let line = telling
        .or_else(|| lines().next_back())
        .unwrap_or("git says nothing");
    line.chars().filter(|c| !c.is_control()).take(500).collect()
}

/// Whether git, or the curl or ssh that it uses, says that there was no connection.
fn is_unreachable(stderr: &str) -> bool {
    [
        "Could not resolve host",
        "Failed to connect",
        "Couldn't connect to server",
        "Connection refused",
        "Connection timed out",
        "Connection reset",
        "No route to host",
        "Network is unreachable",
        "unable to connect to",
        "unable to look up",
    ]
    .iter()
    .any(|sign| stderr.contains(sign))
}

/// What to do about git's commonest failures.
fn advice(stderr: &str) -> Option<String> {
    let table = [
        (
            "could not read Username",
            "the repository does not exist, or is private: give a credential for its host",
        ),
        (
            "Authentication failed",
            "check the credential for this host: it is wrong or expired",
        ),
        (
            "The requested URL returned error: 403",
            "the credential for this host does not allow this",
        ),
        (
            "not found",
            "check the URL; a private repository needs a credential for its host",
        ),
        (
            "Repository not found",
            "check the URL; a private repository needs a credential for its host",
        ),
        (
            "Permission denied (publickey",
            "load a key that the host knows into the SSH agent",
        ),
        (
            "Host key verification failed",
            "connect once with ssh to make the host known",
        ),
        (
            "Could not resolve host",
            "check the host's name and the network",
        ),
        (
            "dubious ownership",
            "the repository belongs to another user of this machine",
        ),
        (
            "unable to update url base from redirection",
            "write the URL that the server redirects to",
        ),
    ];
    table
        .iter()
        .find(|(sign, _)| stderr.contains(sign))
        .map(|(_, help)| (*help).to_owned())
}

#[cfg(test)]
mod tests;
