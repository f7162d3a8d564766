//! `acrtask serve --tasks DIR`: the server's tasks follow the files of a folder.
//!
//! Level-triggered: at each change, and now and then, the files are read again and the database is made what they say.
//! Invariants: a file with mistakes leaves its tasks as they last were, and loses nothing of other files; a task whose
//! file is gone is deleted; a task that was made through the API, or by another folder, is never touched.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use acrtask_api::task::Task;
use acrtask_server::{App, submit};
use acrtask_spec::Diagnostic;
use acrtask_store::{StoreError, TaskFilter};
use tokio_util::sync::CancellationToken;

use super::{task::terminal_width, watch::Changes};
use crate::{
    args::control::LogFormat,
    declare::{self, Declared, DeclaredTask},
    error::CliError,
    render::style::Style,
};

/// How often everything is looked at again, whatever was told of changes.
const AGAIN: Duration = Duration::from_secs(60);
/// Tasks that are read of the database at once.
const PAGE: u32 = 200;

/// A folder whose files are followed.
#[derive(Debug)]
pub(super) struct TasksFolder {
    root: PathBuf,
    format: LogFormat,
    stderr: Style,
    /// What was said of mistakes the last time: they are told once.
    told: String,
}

/// What a round did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Round {
    /// Names of tasks.
    pub(super) created: Vec<String>,
    /// Names of tasks.
    pub(super) updated: Vec<String>,
    /// Names of tasks.
    pub(super) deleted: Vec<String>,
    /// Tasks that are not as their files say.
    pub(super) refused: usize,
}

impl Round {
    fn has_changed_something(&self) -> bool {
        !(self.created.is_empty() && self.updated.is_empty() && self.deleted.is_empty())
    }
}

impl TasksFolder {
    /// One that is there.
    pub(super) fn open(root: &Path, format: LogFormat, stderr: Style) -> Result<Self, CliError> {
        let refuse = || CliError::usage(format!("there is no folder {}", root.display()));
        let root = root
            .canonicalize()
            .map_err(|error| refuse().because(&error))?;
        if !root.is_dir() {
            return Err(refuse());
        }
        Ok(Self {
            root,
            format,
            stderr,
            told: String::new(),
        })
    }

    /// Follows the folder until `stop`.
    pub(super) async fn follow(mut self, app: Arc<App>, stop: CancellationToken) {
        let mut changes = match Changes::of(&self.root) {
            Ok(changes) => Some(changes),
            Err(error) => {
                tracing::warn!(%error, folder = %self.root.display(), "changes are seen only now and then");
                None
            }
        };
        loop {
            match self.reconcile(&app).await {
                Ok(round) if round.has_changed_something() => {
                    app.timers.notify_one();
                    tracing::info!(
                        folder = %self.root.display(),
                        created = round.created.len(),
                        updated = round.updated.len(),
                        deleted = round.deleted.len(),
                        refused = round.refused,
                        "the tasks of a folder were read"
                    );
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::error!(%error, folder = %self.root.display(), "the tasks of a folder could not be written down");
                }
            }
            let changed = async {
                match &mut changes {
                    Some(changes) => changes.next().await.map(drop),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                seen = changed => if seen.is_none() {
                    changes = None;
                },
                () = tokio::time::sleep(AGAIN) => {}
            }
        }
    }

    /// Makes the database what the files say.
    pub(super) async fn reconcile(&mut self, app: &App) -> Result<Round, StoreError> {
        let root = self.root.clone();
        let declared = tokio::task::spawn_blocking(move || declare::folder(&root, &root))
            .await
            .unwrap_or_default();
        let mut round = Round::default();
        let mut problems = Vec::new();
        let stored = stored(app).await?;
        for task in &declared.tasks {
            if let Err(why) = self.one(app, task, &stored, &mut round).await? {
                round.refused += 1;
                problems.push((task.clone(), why));
            }
        }
        let names = declare::by_name(&declared);
        for task in &stored {
            let name = &task.definition.name;
            let Some(source) = task.source.as_deref().filter(|source| self.owns(source)) else {
                continue;
            };
            if names.contains_key(name.as_str()) || unsure(&declared, source) {
                continue;
            }
            match app.store.delete_task(name).await {
                Ok(()) => round.deleted.push(name.clone()),
                Err(StoreError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        round.refused += declared.problems.len() + declared.unread.len();
        self.tell(&declared, &problems);
        Ok(round)
    }

    /// Whether a task's source is a file below this folder.
    fn owns(&self, source: &str) -> bool {
        Path::new(source).starts_with(&self.root)
    }

    /// Makes one task what its file says, or says why not.
    async fn one(
        &self,
        app: &App,
        task: &DeclaredTask,
        stored: &[Task],
        round: &mut Round,
    ) -> Result<Result<(), String>, StoreError> {
        let problems = submit::check_task(&task.definition);
        if let Err(problems) = problems.into_result() {
            return Ok(Err(problems.to_string()));
        }
        let name = &task.definition.name;
        let now = app.clock.now_ms();
        let before = stored.iter().find(|known| known.definition.name == *name);
        let written = match before {
            None => {
                let id = format!("t{:016x}", rand::random::<u64>());
                let source = Some(task.source.as_str());
                let created = app
                    .store
                    .create_task(&id, &task.definition, source, now)
                    .await;
                created.map(|_| round.created.push(name.clone()))
            }
            Some(before)
                if !before
                    .source
                    .as_deref()
                    .is_some_and(|source| self.owns(source)) =>
            {
                let by = before.source.as_deref().unwrap_or("the API");
                return Ok(Err(format!(
                    "there is a task of this name already, made through {by}; delete it, or give this one another name"
                )));
            }
            Some(before)
                if before.definition == task.definition
                    && before.source.as_deref() == Some(&task.source) =>
            {
                return Ok(Ok(()));
            }
            Some(before) => {
                let source = Some(Some(task.source.as_str()));
                let updated = app
                    .store
                    .update_task(name, &task.definition, source, Some(before.generation), now)
                    .await;
                updated.map(|_| round.updated.push(name.clone()))
            }
        };
        match written {
            // Another server of the same database was quicker; the next round sees what it did.
            Ok(()) | Err(StoreError::Conflict { .. }) => Ok(Ok(())),
            Err(error) => Err(error),
        }
    }

    /// Says what is wrong, once.
    fn tell(&mut self, declared: &Declared, refused: &[(DeclaredTask, String)]) {
        let mut text = declare::shown(declared, self.stderr.is_colored(), terminal_width());
        for (task, why) in refused {
            text.push_str(&format!(
                "error: {}:{}: the task `{}`: {why}\n",
                task.source, task.line, task.definition.name
            ));
        }
        if text == self.told {
            return;
        }
        if self.format == LogFormat::Text {
            super::remote::say(text.trim_end());
        } else {
            for (source, diagnostics) in &declared.problems {
                for diagnostic in diagnostics {
                    tracing::error!(
                        file = source.name,
                        line = line(&source.text, diagnostic),
                        help = diagnostic.help.as_deref(),
                        "{}",
                        diagnostic.message
                    );
                }
            }
            for (file, why) in &declared.unread {
                tracing::error!(file, "cannot be read: {why}");
            }
            for (task, why) in refused {
                tracing::error!(
                    file = task.source,
                    line = task.line,
                    task = task.definition.name,
                    "{why}"
                );
            }
        }
        self.told = text;
    }
}

fn line(text: &str, diagnostic: &Diagnostic) -> usize {
    let before = text.get(..diagnostic.start()).unwrap_or_default();
    before.matches('\n').count() + 1
}

/// Whether `source` may declare more than what could be read of it: its tasks stay as they last were.
fn unsure(declared: &Declared, source: &str) -> bool {
    let bad: BTreeSet<&str> = declared
        .problems
        .iter()
        .map(|(file, _)| file.name.as_str())
        .chain(declared.unread.iter().map(|(name, _)| name.as_str()))
        .collect();
    // A folder that cannot be read is unread as a whole.
    bad.iter().any(|bad| Path::new(source).starts_with(bad))
}

/// Every task that is stored.
async fn stored(app: &App) -> Result<Vec<Task>, StoreError> {
    let mut all: Vec<Task> = Vec::new();
    loop {
        let page = app
            .store
            .tasks(TaskFilter {
                after: all.last().map(|task| task.definition.name.clone()),
                limit: PAGE,
                ..TaskFilter::default()
            })
            .await?;
        let last = page.len() < PAGE as usize;
        all.extend(page);
        if last {
            return Ok(all);
        }
    }
}

#[cfg(test)]
mod tests;
