//! The context of a run: the source of its files, and their location on this machine.
//!
//! Invariant: the context is fetched only when it is needed. A signal during a fetch ends the
//! program after the partial files were removed.

use std::{path::Path, sync::Arc};

use acrtask_job::{Files, Git, JobError};
use acrtask_source::{ContextSpec, GitOptions, GitVariables, Progress, Workspace};

use super::interrupt::until_interrupted;
use crate::{args::task_file::GitArgs, error::CliError};

/// Parsed context, fetched on first use.
#[derive(Debug)]
pub(crate) struct Context {
    spec: ContextSpec,
    options: acrtask_source::Options,
    fetched: Option<Workspace>,
}

impl Context {
    /// Parses a context. `git` applies if it is a git repository.
    pub(crate) fn parse(
        text: &str,
        git: &GitArgs,
        options: acrtask_source::Options,
    ) -> Result<Self, CliError> {
        let spec = ContextSpec::parse(text).map_err(|error| {
            CliError::usage(format!(
                "`{}` is not a context: {}",
                error.text, error.reason
            ))
            .help(error.help)
        })?;
        let progress: acrtask_source::ProgressCallback = Arc::new(|progress| {
            if let Progress::Started(what) = progress {
                super::remote::print_message(&what);
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
                "--submodules and --lfs require a git repository, and `{text}` is not one"
            ))
            .help("write a git URL: `https://HOST/REPOSITORY.git#BRANCH`"));
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

    /// Returns the git options.
    pub(crate) fn git(&self) -> &GitOptions {
        &self.options.git
    }

    /// Returns the parsed specification.
    pub(crate) fn spec(&self) -> &ContextSpec {
        &self.spec
    }

    /// Returns the folder if the context is a folder of this machine.
    pub(crate) fn local_folder(&self) -> Option<&Path> {
        match &self.spec {
            ContextSpec::Folder(path) | ContextSpec::TarballFile(path) if path.is_dir() => {
                Some(path)
            }
            _ => None,
        }
    }

    /// Returns the context as a local folder, and fetches it on the first call. Blocks, so do not
    /// call it on a runtime thread.
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

    /// Returns the fetched folder, if there is one.
    pub(crate) fn into_workspace(self) -> Option<Workspace> {
        self.fetched
    }

    /// Returns the files of the task. Runs git only if necessary.
    pub(crate) fn files(&mut self) -> Result<(Files, Git), CliError> {
        if matches!(self.spec, ContextSpec::None) {
            return Ok((Files::None, Git::Fetched(GitVariables::default())));
        }
        if let Some(folder) = self.local_folder() {
            let root = folder.canonicalize().map_err(|error| {
                CliError::usage(format!("cannot read the context {}", folder.display()))
                    .because(&error)
            })?;
            return Ok((Files::OperatorFolder(root.clone()), Git::Folder(root)));
        }
        let workspace = self.fetch()?;
        Ok((
            Files::Fetched(workspace.root.clone()),
            Git::Fetched(workspace.variables.clone()),
        ))
    }
}
