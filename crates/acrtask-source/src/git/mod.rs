//! Checking a git repository out, through the program `git`.
//!
//! The program rather than libgit2, for the protocols: it speaks ssh as the user has it set up, and shallow
//! fetches of single references work with every server.
//!
//! It runs with an environment of its own: no configuration of the system or the user, no prompts, no
//! hooks, no templates, no credential helpers; of the protocols only the one that the URL names. Configuration
//! goes in as `GIT_CONFIG_KEY_n` and `GIT_CONFIG_VALUE_n`. A password is a header for the one host, in a
//! configuration file in memory that git reads by a file descriptor. What a caller named stands behind `--`.

mod access;
mod fetch;
mod redirect;
mod report;
mod ssh;
mod submodules;

use std::{
    io,
    path::{Path, PathBuf},
};

use tempfile::TempDir;
use tokio::process::Command;

use crate::{
    CommitId, Options, Progress,
    error::SourceError,
    facts::GitFacts,
    lfs, paths,
    process::{self, Bounds, Exceeded, Output},
    spec::GitUrl,
};
use access::Access;
pub(crate) use access::login;
pub(crate) use ssh::is_well_known;
pub(crate) use submodules::names;

/// How much of an answer of git is read, in bytes: of `git ls-remote` about half a million references.
const MAX_OUTPUT: u64 = 64 << 20;

/// Checks `url` out below `scratch`. Gives the folder that the URL names, and facts.
pub(crate) async fn check_out(
    url: &GitUrl,
    scratch: &Path,
    options: &Options,
) -> Result<(PathBuf, GitFacts), SourceError> {
    let tree = scratch.join("tree");
    std::fs::create_dir(&tree).map_err(|source| SourceError::Io {
        attempt: format!("make the folder {}", tree.display()),
        source,
    })?;
    let root = std::fs::canonicalize(&tree).map_err(|source| SourceError::Io {
        attempt: format!("find the folder {}", tree.display()),
        source,
    })?;
    let commit = options.git.commit.as_ref();
    let (git, facts) = Git::fetched(url, root.clone(), scratch, commit, options).await?;
    let mut taken = lfs::Taken::default();
    if options.git.lfs {
        lfs::check_out(&git, scratch, &mut taken, options).await?;
    } else {
        lfs::report_left_out(&git, options).await;
    }
    if options.git.submodules {
        submodules::check_out(git, scratch, &mut taken, options).await?;
    } else if let Err(error) = submodules::report_left_out(&git, options).await {
        // The files are there without them.
        tracing::debug!(%error, "cannot list the submodules");
    }
    let Some(folder) = &url.folder else {
        return Ok((root, facts));
    };
    let fail = |reason: String| SourceError::SubFolder {
        context: url.url.clone(),
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

/// Looks for the reference that `url` names. `scratch` is an empty folder. Returns the new address of a repository that
/// the server redirects.
pub(crate) async fn probe(
    url: &GitUrl,
    scratch: &Path,
    options: &Options,
) -> Result<Option<GitUrl>, SourceError> {
    let git = Git::new(url, scratch.to_owned(), scratch, options).await?;
    match git.find_reference().await {
        Err(error) if redirect::is_redirect(&error) => {
            let git = git.redirected(scratch, options).await?;
            git.find_reference().await?;
            Ok(Some(git.address))
        }
        found => found.map(|()| None),
    }
}

/// Git, set up for one repository.
pub(crate) struct Git {
    /// The repository, as it was named.
    pub(crate) url: GitUrl,
    /// The address that its server redirects to, else the same.
    pub(crate) address: GitUrl,
    /// The repository's login may be sent to `address`.
    pub(crate) keeps_login: bool,
    /// What is checked out; without links in its path.
    pub(crate) tree: PathBuf,
    access: Access,
    bounds: Bounds,
    /// Of the programs that run; goes with this.
    home: TempDir,
}

impl Git {
    /// For `url` and an empty folder `tree`.
    async fn new(
        url: &GitUrl,
        tree: PathBuf,
        scratch: &Path,
        options: &Options,
    ) -> Result<Self, SourceError> {
        Self::at(url, url.clone(), true, tree, scratch, options).await
    }

    /// Checks `commit`, else what the reference of `url` names, out into the empty folder `tree`. Follows redirects.
    async fn fetched(
        url: &GitUrl,
        tree: PathBuf,
        scratch: &Path,
        commit: Option<&CommitId>,
        options: &Options,
    ) -> Result<(Self, GitFacts), SourceError> {
        let git = Self::new(url, tree, scratch, options).await?;
        match git.fetch(commit).await {
            Err(error) if redirect::is_redirect(&error) => {
                let git = git.redirected(scratch, options).await?;
                options.report(Progress::Started(format!(
                    "warning: {} has moved to {}; write the new address",
                    git.url.url, git.address.url
                )));
                let facts = git.fetch(commit).await?;
                Ok((git, facts))
            }
            facts => facts.map(|facts| (git, facts)),
        }
    }

    /// The same repository at the address that its server redirects to.
    async fn redirected(self, scratch: &Path, options: &Options) -> Result<Self, SourceError> {
        match redirect::follow(&self.url, options).await? {
            Some(moved) => {
                let tree = self.tree.clone();
                let keeps = moved.keeps_login;
                Self::at(&self.url, moved.url, keeps, tree, scratch, options).await
            }
            None => Ok(self),
        }
    }

    async fn at(
        url: &GitUrl,
        address: GitUrl,
        keeps_login: bool,
        tree: PathBuf,
        scratch: &Path,
        options: &Options,
    ) -> Result<Self, SourceError> {
        let home = tempfile::Builder::new().prefix("home").tempdir_in(scratch);
        let home = home.map_err(|source| SourceError::Io {
            attempt: format!("make a folder in {}", scratch.display()),
            source,
        })?;
        let access = Access::new(&address, keeps_login, home.path(), options).await?;
        // What is packed and what is checked out lie there side by side.
        let limits = &options.limits;
        let bounds = Bounds {
            folder: scratch.to_owned(),
            bytes: limits.download_bytes.saturating_add(limits.unpacked_bytes),
            entries: limits.entries,
            memory: limits.memory_bytes,
        };
        Ok(Self {
            url: url.clone(),
            address,
            keeps_login,
            tree,
            access,
            bounds,
            home,
        })
    }

    /// Runs git. At most [`MAX_OUTPUT`] bytes are kept.
    pub(crate) async fn run(&self, args: &[&str]) -> Result<Output, SourceError> {
        let mut command = Command::new("git");
        command.current_dir(&self.tree).args(args);
        let output = match self.access.apply(&mut command) {
            Ok(()) => process::run(command, MAX_OUTPUT, &self.bounds).await,
            Err(error) => Err(error),
        };
        output.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => SourceError::NoGit {
                url: self.url.url.clone(),
                source,
            },
            _ => self.not_run("git", source),
        })
    }

    /// Refuses a checkout that exceeds the limits: git may be quicker than what watches it.
    async fn check_size(&self) -> Result<(), SourceError> {
        let bounds = self.bounds.clone();
        let measured = tokio::task::spawn_blocking(move || bounds.measure(None)).await;
        match measured {
            Ok(Err(exceeded)) => Err(self.not_run("git", io::Error::other(exceeded))),
            _ => Ok(()),
        }
    }

    /// Says why `program` did not run to its end.
    fn not_run(&self, program: &str, source: io::Error) -> SourceError {
        let exceeded = source
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<Exceeded>());
        match exceeded {
            Some(exceeded) => SourceError::TooLarge {
                context: self.url.url.clone(),
                limit: exceeded.limit,
                unit: exceeded.unit,
            },
            None => SourceError::Io {
                attempt: format!("run {program} for {}", self.url.url),
                source,
            },
        }
    }

    /// Runs git, and takes anything but success for an error.
    pub(crate) async fn must(&self, attempt: &str, args: &[&str]) -> Result<Output, SourceError> {
        let output = self.run(args).await?;
        if output.success {
            return Ok(output);
        }
        Err(self.failure(attempt, &output.stderr))
    }

    fn failure(&self, attempt: &str, stderr: &str) -> SourceError {
        let own_key = self.access.ssh.as_ref().is_some_and(|ssh| ssh.own_key);
        SourceError::Git {
            attempt: format!("{attempt} {}", self.url.url),
            message: report::first_cause(stderr),
            help: report::advice(stderr, own_key),
            unreachable: report::is_unreachable(stderr),
        }
    }

    /// Asks the host of a repository that is reached by ssh for what another of its commands says. Nothing where ssh is
    /// not the way to it, and where it does not know the command.
    pub(crate) async fn ask_by_ssh(
        &self,
        command: &str,
        path: &str,
        operation: &str,
    ) -> Result<Option<Vec<u8>>, SourceError> {
        let Some(ssh) = &self.access.ssh else {
            return Ok(None);
        };
        let environment = self.access.environment.iter().cloned();
        let mut asking = ssh.to(&self.url);
        asking
            .arg(format!("{command} {} {operation}", ssh::quoted(path)))
            .current_dir(self.home.path())
            .env_clear()
            .envs(environment);
        let output = process::run(asking, MAX_OUTPUT, &self.bounds).await;
        let output = output.map_err(|source| self.not_run("ssh", source))?;
        Ok(output.success.then_some(output.stdout))
    }

    /// What the commit that is checked out has at `path`: mode and name of the object.
    pub(crate) async fn entry(&self, path: &str) -> Result<Option<(String, String)>, SourceError> {
        let args = ["--literal-pathspecs", "ls-tree", "-z", "HEAD", "--", path];
        let listed = self.must("list the files of", &args).await?.stdout;
        let listed = String::from_utf8_lossy(&listed);
        Ok(listed.split('\0').find_map(|line| {
            let (object, name) = line.split_once('\t')?;
            let mut words = object.split(' ');
            let (mode, id) = (words.next()?, words.nth(1)?);
            (name == path).then(|| (mode.to_owned(), id.to_owned()))
        }))
    }

    /// Returns the commit of the submodule at `path`. `None` if something else, or nothing, is there.
    async fn submodule_commit(&self, path: &str) -> Result<Option<String>, SourceError> {
        let entry = self.entry(path).await?;
        Ok(entry.and_then(|(mode, id)| (mode == "160000").then_some(id)))
    }

    /// What a file of the commit, in the form of git's configuration, says about keys that match `pattern`; nothing
    /// where there is no such file. Nothing that it names is included.
    pub(crate) async fn configuration(
        &self,
        file: &str,
        pattern: &str,
    ) -> Result<Vec<(String, String)>, SourceError> {
        match self.entry(file).await? {
            Some((mode, _)) if mode.starts_with("100") => {}
            _ => return Ok(Vec::new()),
        }
        let blob = format!("HEAD:{file}");
        let args = [
            "config",
            "--no-includes",
            "-z",
            "--blob",
            &blob,
            "--get-regexp",
            pattern,
        ];
        let output = self.run(&args).await?;
        // It fails without a message where nothing matches.
        if !output.success && !output.stderr.trim().is_empty() {
            return Err(self.failure(&format!("read {file} of"), &output.stderr));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let pairs = text.split('\0').filter_map(|pair| pair.split_once('\n'));
        Ok(pairs
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect())
    }
}

#[cfg(test)]
mod tests;
