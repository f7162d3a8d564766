//! Contexts from real git servers, over HTTP with a password and over SSH with a key. The tests
//! check the files, the refusals, the transferred bytes, and that nothing from a repository is
//! executed.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    fs::Permissions,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use acrtask_model::Secret;
use acrtask_source::{
    ContextSpec, GitCredential, GitOptions, Options, Origin, SourceError, SshKey, Workspace, fetch,
};
use acrtask_tests::{
    TestEnvironment,
    git_server::{HttpGit, Repositories, SshGit, git, git_command},
    project,
    service::{TestRunner, TestServer},
};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

mod commits;
mod http;
mod lfs;
mod redirects;
mod ssh;
mod submodules;

const TOKEN: &str = "hunter2-the-token";

/// Returns the options of a runner that may reach private addresses.
fn runner_options() -> (TempDir, Options) {
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        origin: Origin::TaskFile,
        allow_private_addresses: true,
        scratch_dir: folder.path().to_owned(),
        ..Options::default()
    };
    (folder, options)
}

fn git_credential(host: &str) -> GitCredential {
    GitCredential {
        host: host.into(),
        username: "ci".into(),
        password: Secret::new(TOKEN),
    }
}

fn at_commit(commit: &str) -> GitOptions {
    GitOptions {
        commit: Some(commit.parse().unwrap()),
        ..GitOptions::default()
    }
}

async fn fetch_context(url: &str, options: &Options) -> Result<Workspace, SourceError> {
    let spec = ContextSpec::parse(url).unwrap_or_else(|error| panic!("{error}"));
    fetch(&spec, options).await
}

/// Returns the text of an error with its causes and its help.
fn error_text(error: &SourceError) -> String {
    let mut text = format!("{error:?} {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    format!("{text}; {}", error.help().unwrap_or_default())
}

fn read(workspace: &Workspace, path: &str) -> String {
    std::fs::read_to_string(workspace.root.join(path))
        .unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Lists the files below `folder` that contain `text`.
fn files_with(folder: &Path, text: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            found.extend(files_with(&path, text));
        } else if std::fs::read(&path)
            .is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(text))
        {
            found.push(path);
        }
    }
    found
}

/// Returns the command lines of all processes on this machine.
fn command_lines() -> String {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " ") + "\n")
        .collect()
}

/// Adds a gitlink at `path` and its entry in `.gitmodules`.
fn add_submodule(repositories: &Repositories, name: &str, path: &str, url: &str, commit: &str) {
    let work = repositories.work_path(name);
    std::fs::create_dir_all(work.join(path)).unwrap();
    let mut modules = std::fs::File::options()
        .create(true)
        .append(true)
        .open(work.join(".gitmodules"))
        .unwrap();
    write!(
        modules,
        "[submodule \"{path}\"]\n\tpath = {path}\n\turl = {url}\n\tupdate = !touch pwned\n"
    )
    .unwrap();
    let entry = format!("160000,{commit},{path}");
    git(&work, &["update-index", "--add", "--cacheinfo", &entry]);
    git(&work, &["add", ".gitmodules"]);
    git(&work, &["commit", "--quiet", "--message", "submodule"]);
    git(&work, &["push", "--quiet", "--force", "origin", "HEAD"]);
}
