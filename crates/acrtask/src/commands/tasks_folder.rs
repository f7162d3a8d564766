//! `acrtask serve --tasks DIR`: keeps the server's tasks equal to the files of a folder.
//!
//! The reconciler is level-triggered: after each change, and at intervals, it reads all files again
//! and updates the database. Invariants: tasks of a file with errors stay unchanged, and other
//! files still apply. A task whose file was removed is deleted. Tasks created through the API or
//! from another folder are never changed.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use acrtask_api::task::Task;
use acrtask_server::{App, validate};
use acrtask_spec::Diagnostic;
use acrtask_store::{StoreError, TaskFilter};
use tokio_util::sync::CancellationToken;

use super::{task_file::terminal_width, watch::Changes};
use crate::{
    args::telemetry::LogFormat,
    error::CliError,
    render::style::Style,
    task_files::{self, TaskDocument, TaskFiles},
};

/// Interval between reconciliations without a change notification.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(60);
/// Tasks per database query.
const PAGE: u32 = 200;

/// Folder of task files, and the state of its reconciler.
#[derive(Debug)]
pub(super) struct TasksFolder {
    root: PathBuf,
    format: LogFormat,
    stderr: Style,
    /// Problems of the previous reconciliation; they are reported only once.
    reported: String,
}

/// Result of one reconciliation.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ReconcileResult {
    /// Names of the created tasks.
    pub(super) created: Vec<String>,
    /// Names of the updated tasks.
    pub(super) updated: Vec<String>,
    /// Names of the deleted tasks.
    pub(super) deleted: Vec<String>,
    /// Number of tasks and files that were rejected.
    pub(super) refused: usize,
}

impl ReconcileResult {
    fn has_changes(&self) -> bool {
        !(self.created.is_empty() && self.updated.is_empty() && self.deleted.is_empty())
    }
}

impl TasksFolder {
    /// Opens an existing folder.
    pub(super) fn open(root: &Path, format: LogFormat, stderr: Style) -> Result<Self, CliError> {
        let refuse = || CliError::usage(format!("the folder {} does not exist", root.display()));
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
            reported: String::new(),
        })
    }

    /// Reconciles the folder until `stop` is canceled.
    pub(super) async fn follow(mut self, app: Arc<App>, stop: CancellationToken) {
        let mut changes = match Changes::watch(&self.root) {
            Ok(changes) => Some(changes),
            Err(error) => {
                tracing::warn!(%error, folder = %self.root.display(), "cannot watch the folder of tasks, reading it at intervals");
                None
            }
        };
        loop {
            match self.reconcile(&app).await {
                Ok(result) if result.has_changes() => {
                    app.timers.notify_one();
                    tracing::info!(
                        folder = %self.root.display(),
                        created = result.created.len(),
                        updated = result.updated.len(),
                        deleted = result.deleted.len(),
                        refused = result.refused,
                        "applied the tasks of a folder"
                    );
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::error!(%error, folder = %self.root.display(), "could not store the tasks of a folder");
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
                () = tokio::time::sleep(RECONCILE_INTERVAL) => {}
            }
        }
    }

    /// Updates the database to match the files.
    pub(super) async fn reconcile(&mut self, app: &App) -> Result<ReconcileResult, StoreError> {
        let root = self.root.clone();
        let declared = tokio::task::spawn_blocking(move || task_files::read_folder(&root, &root))
            .await
            .unwrap_or_default();
        let mut result = ReconcileResult::default();
        let mut problems = Vec::new();
        let stored = stored_tasks(app).await?;
        for task in &declared.tasks {
            if let Err(why) = self.reconcile_task(app, task, &stored, &mut result).await? {
                result.refused += 1;
                problems.push((task.clone(), why));
            }
        }
        let names = task_files::tasks_by_name(&declared);
        for task in &stored {
            let name = &task.definition.name;
            let Some(source) = task.source.as_deref().filter(|source| self.owns(source)) else {
                continue;
            };
            if names.contains_key(name.as_str()) || may_be_incomplete(&declared, source) {
                continue;
            }
            match app.store.delete_task(name).await {
                Ok(()) => result.deleted.push(name.clone()),
                Err(StoreError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        result.refused += declared.problems.len() + declared.unread.len();
        self.report_problems(&declared, &problems);
        Ok(result)
    }

    /// Returns `true` if a task's source is a file below this folder.
    fn owns(&self, source: &str) -> bool {
        Path::new(source).starts_with(&self.root)
    }

    /// Updates one task to match its file; the inner error has the reason of a rejection.
    async fn reconcile_task(
        &self,
        app: &App,
        task: &TaskDocument,
        stored: &[Task],
        result: &mut ReconcileResult,
    ) -> Result<Result<(), String>, StoreError> {
        let problems = validate::check_task(&task.definition);
        if let Err(problems) = problems.into_result() {
            return Ok(Err(problems.to_string()));
        }
        let name = &task.definition.name;
        let now = app.clock.now_ms();
        let before = stored.iter().find(|task| task.definition.name == *name);
        let written = match before {
            None => {
                let id = format!("t{:016x}", rand::random::<u64>());
                let source = Some(task.source.as_str());
                let created = app
                    .store
                    .create_task(&id, &task.definition, source, now)
                    .await;
                created.map(|_| result.created.push(name.clone()))
            }
            Some(before)
                if !before
                    .source
                    .as_deref()
                    .is_some_and(|source| self.owns(source)) =>
            {
                let by = before.source.as_deref().unwrap_or("the API");
                return Ok(Err(format!(
                    "a task with this name already exists, created through {by}; delete it, or rename this one"
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
                updated.map(|_| result.updated.push(name.clone()))
            }
        };
        match written {
            // Another server on the same database was faster; the next reconciliation sees its
            // change.
            Ok(()) | Err(StoreError::Conflict { .. }) => Ok(Ok(())),
            Err(error) => Err(error),
        }
    }

    /// Reports the problems, unless they are the same as in the previous reconciliation.
    fn report_problems(&mut self, declared: &TaskFiles, refused: &[(TaskDocument, String)]) {
        let mut text =
            task_files::render_problems(declared, self.stderr.is_colored(), terminal_width());
        for (task, why) in refused {
            text.push_str(&format!(
                "error: {}:{}: the task `{}`: {why}\n",
                task.source, task.line, task.definition.name
            ));
        }
        if text == self.reported {
            return;
        }
        if self.format == LogFormat::Text {
            super::remote::print_message(text.trim_end());
        } else {
            for (source, diagnostics) in &declared.problems {
                for diagnostic in diagnostics {
                    tracing::error!(
                        file = source.name,
                        line = line_number(&source.text, diagnostic),
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
        self.reported = text;
    }
}

fn line_number(text: &str, diagnostic: &Diagnostic) -> usize {
    let before = text.get(..diagnostic.start()).unwrap_or_default();
    before.matches('\n').count() + 1
}

/// Returns `true` if parts of `source` could not be read. Its tasks then stay unchanged.
fn may_be_incomplete(declared: &TaskFiles, source: &str) -> bool {
    let bad: BTreeSet<&str> = declared
        .problems
        .iter()
        .map(|(file, _)| file.name.as_str())
        .chain(declared.unread.iter().map(|(name, _)| name.as_str()))
        .collect();
    // An unreadable folder is in `unread` under its own name.
    bad.iter().any(|bad| Path::new(source).starts_with(bad))
}

/// Loads every stored task.
async fn stored_tasks(app: &App) -> Result<Vec<Task>, StoreError> {
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
