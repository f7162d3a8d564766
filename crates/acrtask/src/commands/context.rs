//! The context of a run: where its files come from, and where they are on this machine.
//!
//! Invariant: nothing is fetched before it is needed. A signal while something is fetched ends the program, after
//! what had come was removed.

use std::{
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use acrtask_source::{ContextSpec, Progress, SourceError, Workspace};

use super::interrupt::until_interrupted;
use crate::error::CliError;

/// A context that was named, and fetched once it is needed.
#[derive(Debug)]
pub(crate) struct Context {
    spec: ContextSpec,
    options: acrtask_source::Options,
    fetched: Option<Workspace>,
}

impl Context {
    /// Reads the name of a context.
    pub(crate) fn named(text: &str, options: acrtask_source::Options) -> Result<Self, CliError> {
        let spec = ContextSpec::parse(text).map_err(|error| {
            CliError::usage(format!("`{}` is no context: {}", error.text, error.reason))
                .help(error.help)
        })?;
        let progress: acrtask_source::OnProgress = Arc::new(|progress| {
            if let Progress::Started(what) = progress {
                let _ = writeln!(std::io::stderr(), "{what}");
            }
        });
        Ok(Self {
            spec,
            options: acrtask_source::Options {
                progress: Some(progress),
                ..options
            },
            fetched: None,
        })
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
                until_interrupted(fetching)?.map_err(|e| source_error(&e))?
            }
        };
        Ok(self.fetched.insert(workspace))
    }

    /// The folder that was fetched, if it was.
    pub(crate) fn into_workspace(self) -> Option<Workspace> {
        self.fetched
    }

    /// The folder where files of the task are, without asking git for anything where that can be avoided.
    pub(crate) fn root(&mut self) -> Result<Option<PathBuf>, CliError> {
        match &self.spec {
            ContextSpec::None => Ok(None),
            _ => match self.local_folder() {
                Some(folder) => {
                    let folder = folder.canonicalize().map_err(|error| {
                        CliError::usage(format!("cannot read the context {}", folder.display()))
                            .because(&error)
                    })?;
                    Ok(Some(folder))
                }
                None => self.fetch().map(|workspace| Some(workspace.root.clone())),
            },
        }
    }
}

fn source_error(error: &SourceError) -> CliError {
    let message = error.to_string();
    let shown = if error.is_unreachable() {
        CliError::unreachable(message)
    } else {
        CliError::usage(message)
    };
    let shown = match std::error::Error::source(error) {
        Some(cause) => shown.because(cause),
        None => shown,
    };
    match error.help() {
        Some(help) => shown.help(help),
        None => shown,
    }
}
