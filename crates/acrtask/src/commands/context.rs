//! The context of a run: where its files come from, and where they are on this machine.
//!
//! Invariant: nothing is fetched before it is needed. A signal while something is fetched ends the program, after
//! what had come was removed.

use std::{path::Path, sync::Arc};

use acrtask_job::{Files, Git, JobError};
use acrtask_source::{ContextSpec, GitFacts, GitOptions, Progress, Workspace};

use super::interrupt::until_interrupted;
use crate::{args::task::GitArgs, error::CliError};

/// A context that was named, and fetched once it is needed.
#[derive(Debug)]
pub(crate) struct Context {
    spec: ContextSpec,
    options: acrtask_source::Options,
    fetched: Option<Workspace>,
}

impl Context {
    /// Reads the name of a context. `git` counts if it is a git repository.
    pub(crate) fn named(
        text: &str,
        git: &GitArgs,
        options: acrtask_source::Options,
    ) -> Result<Self, CliError> {
        let spec = ContextSpec::parse(text).map_err(|error| {
            CliError::usage(format!("`{}` is no context: {}", error.text, error.reason))
                .help(error.help)
        })?;
        let progress: acrtask_source::OnProgress = Arc::new(|progress| {
            if let Progress::Started(what) = progress {
                super::remote::say(&what);
            }
        });
        let is_git = matches!(spec, ContextSpec::Git(_));
        let git = GitOptions {
            submodules: git.submodules.unwrap_or(is_git),
            lfs: git.lfs.unwrap_or_default(),
            ..GitOptions::default()
        };
        if !is_git && git != GitOptions::default() {
            return Err(CliError::usage(format!(
                "--submodules and --lfs are for git repositories, and `{text}` is none"
            ))
            .help("name a git URL: `https://HOST/REPOSITORY.git#BRANCH`"));
        }
        Ok(Self {
            spec,
            options: acrtask_source::Options {
                git,
                progress: Some(progress),
                ..options
            },
            fetched: None,
        })
    }

    /// Returns what is taken of it, if it is a git repository.
    pub(crate) fn git(&self) -> &GitOptions {
        &self.options.git
    }

    /// What it is.
    pub(crate) fn spec(&self) -> &ContextSpec {
        &self.spec
    }

    /// The folder, where the context is a folder of this machine.
    pub(crate) fn local_folder(&self) -> Option<&Path> {
        match &self.spec {
            ContextSpec::Folder(path) | ContextSpec::TarballFile(path) if path.is_dir() => {
                Some(path)
            }
            _ => None,
        }
    }

    /// The context as a folder of this machine; fetched at the first call. Blocks: not for a thread of a runtime.
    pub(crate) fn fetch(&mut self) -> Result<&Workspace, CliError> {
        let workspace = match self.fetched.take() {
            Some(workspace) => workspace,
            None => {
                let fetching = acrtask_source::fetch(&self.spec, &self.options);
                until_interrupted(fetching)?.map_err(|error| JobError::from(&error))?
            }
        };
        Ok(self.fetched.insert(workspace))
    }

    /// The folder that was fetched, if it was.
    pub(crate) fn into_workspace(self) -> Option<Workspace> {
        self.fetched
    }

    /// The files of the task, without asking git for anything where that can be avoided.
    pub(crate) fn files(&mut self) -> Result<(Files, Git), CliError> {
        if matches!(self.spec, ContextSpec::None) {
            return Ok((Files::None, Git::Known(GitFacts::default())));
        }
        if let Some(folder) = self.local_folder() {
            let root = folder.canonicalize().map_err(|error| {
                CliError::usage(format!("cannot read the context {}", folder.display()))
                    .because(&error)
            })?;
            return Ok((Files::OfTheOperator(root.clone()), Git::OfFolder(root)));
        }
        let workspace = self.fetch()?;
        Ok((
            Files::FromElsewhere(workspace.root.clone()),
            Git::Known(workspace.facts.clone()),
        ))
    }
}
