//! Checkout of a git repository, through the program `git`.
//!
//! The program supports the protocols better than libgit2. It uses ssh with the user's
//! configuration, and its shallow fetches of single references work with every server.
//!
//! Git runs with its own environment: without configuration of the system or the user, prompts,
//! hooks, templates or credential helpers. It may use only the protocol of the URL.
//! `GIT_CONFIG_KEY_n` and `GIT_CONFIG_VALUE_n` contain the configuration. A password is a header
//! for one host. Git reads it from a configuration file in memory, through a file descriptor. Names
//! from a caller follow `--`.

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
    git_variables::GitVariables,
    lfs, paths,
    process::{self, Bounds, Exceeded, Output},
    spec::GitUrl,
};
use access::Access;
pub(crate) use access::find_login;
pub(crate) use ssh::has_builtin_keys;
pub(crate) use submodules::join_names;

/// Maximum size of git's output, in bytes: about half a million references of `git ls-remote`.
const MAX_OUTPUT: u64 = 64 << 20;

/// Checks `url` out below `scratch`. Returns the folder that the URL names, and the run variables.
pub(crate) async fn check_out(
    url: &GitUrl,
    scratch: &Path,
    options: &Options,
) -> Result<(PathBuf, GitVariables), SourceError> {
    let tree = scratch.join("tree");
    std::fs::create_dir(&tree).map_err(|source| SourceError::Io {
        attempt: format!("create the folder {}", tree.display()),
        source,
    })?;
    let root = std::fs::canonicalize(&tree).map_err(|source| SourceError::Io {
        attempt: format!("find the folder {}", tree.display()),
        source,
    })?;
    let commit = options.git.commit.as_ref();
    let (git, variables) = Git::fetch_into(url, root.clone(), scratch, commit, options).await?;
    let mut usage = lfs::Usage::default();
    if options.git.lfs {
        lfs::check_out(&git, scratch, &mut usage, options).await?;
    } else {
        lfs::report_left_out(&git, options).await;
    }
    if options.git.submodules {
        submodules::check_out(git, scratch, &mut usage, options).await?;
    } else if let Err(error) = submodules::report_left_out(&git, options).await {
        // The checkout is complete without this list.
        tracing::debug!(%error, "cannot list the submodules");
    }
    let Some(folder) = &url.folder else {
        return Ok((root, variables));
    };
    let fail = |reason: String| SourceError::SubFolder {
        context: url.url.clone(),
        folder: folder.clone(),
        reason,
    };
    let path =
        paths::resolve_inside(&root, Path::new(folder)).map_err(|error| fail(error.to_string()))?;
    match path.metadata() {
        Ok(meta) if meta.is_dir() => Ok((path, variables)),
        Ok(_) => Err(fail("it is not a folder".into())),
        Err(_) => Err(fail("it does not exist".into())),
    }
}

/// Checks that the reference of `url` exists. `scratch` is an empty folder. Returns the new address
/// of a repository that the server redirects.
pub(crate) async fn probe(
    url: &GitUrl,
    scratch: &Path,
    options: &Options,
) -> Result<Option<GitUrl>, SourceError> {
    let git = Git::new(url, scratch.to_owned(), scratch, options).await?;
    match git.check_reference().await {
        Err(error) if redirect::is_redirect(&error) => {
            let git = git.follow_redirect(scratch, options).await?;
            git.check_reference().await?;
            Ok(Some(git.address))
        }
        found => found.map(|()| None),
    }
}

/// Git with the settings for one repository.
pub(crate) struct Git {
    /// URL of the repository, as the user named it.
    pub(crate) url: GitUrl,
    /// Target of the server's redirect, or else the same URL.
    pub(crate) address: GitUrl,
    /// `true` if git may send the repository's login to `address`.
    pub(crate) keeps_login: bool,
    /// Folder of the checkout; a path without links.
    pub(crate) tree: PathBuf,
    access: Access,
    bounds: Bounds,
    /// Home folder of the started programs, removed with this value.
    home: TempDir,
}

impl Git {
    /// Prepares git for `url` and the empty folder `tree`.
    async fn new(
        url: &GitUrl,
        tree: PathBuf,
        scratch: &Path,
        options: &Options,
    ) -> Result<Self, SourceError> {
        Self::with_address(url, url.clone(), true, tree, scratch, options).await
    }

    /// Checks out `commit`, or else the reference of `url`, into the empty folder `tree`. Follows
    /// redirects.
    async fn fetch_into(
        url: &GitUrl,
        tree: PathBuf,
        scratch: &Path,
        commit: Option<&CommitId>,
        options: &Options,
    ) -> Result<(Self, GitVariables), SourceError> {
        let git = Self::new(url, tree, scratch, options).await?;
        match git.fetch(commit).await {
            Err(error) if redirect::is_redirect(&error) => {
                let git = git.follow_redirect(scratch, options).await?;
                options.report(Progress::Started(format!(
                    "warning: {} has moved to {}; write the new address",
                    git.url.url, git.address.url
                )));
                let variables = git.fetch(commit).await?;
                Ok((git, variables))
            }
            variables => variables.map(|variables| (git, variables)),
        }
    }

    /// Returns the same repository at the target of its server's redirect.
    async fn follow_redirect(self, scratch: &Path, options: &Options) -> Result<Self, SourceError> {
        match redirect::follow(&self.url, options).await? {
            Some(moved) => {
                let tree = self.tree.clone();
                let keeps = moved.keeps_login;
                Self::with_address(&self.url, moved.url, keeps, tree, scratch, options).await
            }
            None => Ok(self),
        }
    }

    async fn with_address(
        url: &GitUrl,
        address: GitUrl,
        keeps_login: bool,
        tree: PathBuf,
        scratch: &Path,
        options: &Options,
    ) -> Result<Self, SourceError> {
        let home = tempfile::Builder::new().prefix("home").tempdir_in(scratch);
        let home = home.map_err(|source| SourceError::Io {
            attempt: format!("create a folder in {}", scratch.display()),
            source,
        })?;
        let access = Access::new(&address, keeps_login, home.path(), options).await?;
        // The folder contains both the packs and the checkout.
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

    /// Runs git. Returns at most [`MAX_OUTPUT`] bytes of output.
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
            _ => self.run_error("git", source),
        })
    }

    /// Refuses a checkout that exceeds the limits. Git may finish before the next measurement.
    async fn check_size(&self) -> Result<(), SourceError> {
        let bounds = self.bounds.clone();
        let measured = tokio::task::spawn_blocking(move || bounds.measure(None)).await;
        match measured {
            Ok(Err(exceeded)) => Err(self.run_error("git", io::Error::other(exceeded))),
            _ => Ok(()),
        }
    }

    /// Returns the error for a `program` that did not finish.
    fn run_error(&self, program: &str, source: io::Error) -> SourceError {
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

    /// Runs git. Returns an error if git fails.
    pub(crate) async fn run_checked(
        &self,
        attempt: &str,
        args: &[&str],
    ) -> Result<Output, SourceError> {
        let output = self.run(args).await?;
        if output.success {
            return Ok(output);
        }
        Err(self.git_error(attempt, &output.stderr))
    }

    fn git_error(&self, attempt: &str, stderr: &str) -> SourceError {
        let own_key = self.access.ssh.as_ref().is_some_and(|ssh| ssh.own_key);
        SourceError::Git {
            attempt: format!("{attempt} {}", self.url.url),
            message: report::first_cause(stderr),
            help: report::find_advice(stderr, own_key),
            unreachable: report::is_unreachable(stderr),
        }
    }

    /// Runs `command` on the host of the repository by ssh. `None` if the repository does not use
    /// ssh, or if the host does not support the command.
    pub(crate) async fn run_by_ssh(
        &self,
        command: &str,
        path: &str,
        operation: &str,
    ) -> Result<Option<Vec<u8>>, SourceError> {
        let Some(ssh) = &self.access.ssh else {
            return Ok(None);
        };
        let environment = self.access.environment.iter().cloned();
        let mut remote_command = ssh.command_to(&self.url);
        remote_command
            .arg(format!("{command} {} {operation}", ssh::shell_quote(path)))
            .current_dir(self.home.path())
            .env_clear()
            .envs(environment);
        let output = process::run(remote_command, MAX_OUTPUT, &self.bounds).await;
        let output = output.map_err(|source| self.run_error("ssh", source))?;
        Ok(output.success.then_some(output.stdout))
    }

    /// Returns the mode and the object name of `path` in the checked-out commit.
    pub(crate) async fn find_entry(
        &self,
        path: &str,
    ) -> Result<Option<(String, String)>, SourceError> {
        let args = ["--literal-pathspecs", "ls-tree", "-z", "HEAD", "--", path];
        let listed = self.run_checked("list the files of", &args).await?.stdout;
        let listed = String::from_utf8_lossy(&listed);
        Ok(listed.split('\0').find_map(|line| {
            let (object, name) = line.split_once('\t')?;
            let mut words = object.split(' ');
            let (mode, id) = (words.next()?, words.nth(1)?);
            (name == path).then(|| (mode.to_owned(), id.to_owned()))
        }))
    }

    /// Returns the commit of the submodule at `path`. `None` if `path` is not a submodule.
    async fn submodule_commit(&self, path: &str) -> Result<Option<String>, SourceError> {
        let entry = self.find_entry(path).await?;
        Ok(entry.and_then(|(mode, id)| (mode == "160000").then_some(id)))
    }

    /// Reads the keys that match `pattern` from a configuration file of the commit, without
    /// includes. Empty if the file does not exist.
    pub(crate) async fn read_configuration(
        &self,
        file: &str,
        pattern: &str,
    ) -> Result<Vec<(String, String)>, SourceError> {
        match self.find_entry(file).await? {
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
        // Git fails without a message if no key matches.
        if !output.success && !output.stderr.trim().is_empty() {
            return Err(self.git_error(&format!("read {file} of"), &output.stderr));
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
