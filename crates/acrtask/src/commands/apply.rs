//! `acrtask task apply`: creates and changes a server's tasks from files.

use std::path::Path;

use acrtask_api::task::Task;
use acrtask_spec::{Code, Diagnostic};
use serde::Serialize;

use super::{
    remote::{block_on, client, print_json},
    task_file::terminal_width,
};
use crate::{
    args::{PathOrStdin, server::ListOutput, task::ApplyArgs},
    client::{ApiError, Client},
    error::CliError,
    exit::Exit,
    render::{style::Style, table},
    task_files::{self, TaskDocument, TaskFiles},
};

/// Outcome for a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Created,
    Updated,
    Unchanged,
    Failed,
}

/// Task and its outcome.
#[derive(Debug, Serialize)]
struct Applied {
    name: String,
    file: String,
    line: usize,
    result: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    help: Option<String>,
}

/// Creates and changes tasks as defined in files. An error in one task does not stop the others.
pub(crate) fn apply(args: &ApplyArgs, stderr: Style, stdout: Style) -> Result<Exit, CliError> {
    let declared = read_files(&args.file)?;
    super::remote::write_error(&task_files::render_problems(
        &declared,
        stderr.is_colored(),
        terminal_width(),
    ));
    let client = client(&args.server)?;
    let applied = block_on(async {
        let mut applied = Vec::new();
        for task in &declared.tasks {
            applied.push(apply_task(&client, task).await?);
        }
        Ok(applied)
    })?;
    print_rejections(&applied, stderr);
    match args.output.output {
        ListOutput::Json => print_json(&applied)?,
        // The problems of the files have been printed.
        ListOutput::Text if applied.is_empty() && !declared.is_complete() => Exit::Usage,
        ListOutput::Text => {
            let rows = applied.iter().map(|task| {
                let result = match task.result {
                    Outcome::Created => stdout.good("created"),
                    Outcome::Updated => stdout.good("updated"),
                    Outcome::Unchanged => stdout.dim("unchanged"),
                    Outcome::Failed => stdout.bad("failed"),
                };
                vec![
                    task.name.clone(),
                    result,
                    format!("{}:{}", task.file, task.line),
                ]
            });
            let text = table::render_list(
                &["TASK", "RESULT", "FILE"],
                rows.collect(),
                "no tasks in these files",
                stdout,
            );
            super::print(text.as_bytes())?
        }
    };
    let complete =
        declared.is_complete() && applied.iter().all(|task| task.result != Outcome::Failed);
    Ok(if complete {
        Exit::Succeeded
    } else {
        Exit::Usage
    })
}

fn read_files(files: &[PathOrStdin]) -> Result<TaskFiles, CliError> {
    let mut all = TaskFiles::default();
    for file in files {
        match file {
            PathOrStdin::Stdin => {
                let text = std::io::read_to_string(std::io::stdin()).map_err(|error| {
                    CliError::usage("cannot read standard input").because(&error)
                })?;
                all.add_text("<stdin>", &text);
            }
            PathOrStdin::Path(path) if path.is_dir() => {
                all.add(task_files::read_folder(path, path));
            }
            PathOrStdin::Path(path) => {
                if !path.exists() {
                    return Err(CliError::usage(format!(
                        "{} does not exist",
                        path.display()
                    )));
                }
                all.add_file(path, &path.display().to_string());
            }
        }
    }
    Ok(all)
}

/// Applies one task. A rejection by the server is part of the result; only an unreachable server is
/// an error.
async fn apply_task(client: &Client, task: &TaskDocument) -> Result<Applied, CliError> {
    let (result, error, help) = match put_task(client, task).await {
        Ok(done) => (done, None, None),
        Err(ApiError::Refused {
            status, problem, ..
        }) if status.is_client_error() => (Outcome::Failed, Some(problem.message), problem.help),
        Err(error) => return Err(error.into()),
    };
    Ok(Applied {
        name: task.definition.name.clone(),
        file: task.source.clone(),
        line: task.line,
        result,
        error,
        help,
    })
}

async fn put_task(client: &Client, task: &TaskDocument) -> Result<Outcome, ApiError> {
    let name = task.definition.name.as_str();
    let before: Task = match client.get(&["tasks", name], &[]).await {
        Ok(before) => before,
        Err(error) if error.is_not_found() => {
            let _: Task = client.post(&["tasks"], &task.definition).await?;
            return Ok(Outcome::Created);
        }
        Err(error) => return Err(error),
    };
    if before.definition == task.definition {
        return Ok(Outcome::Unchanged);
    }
    client
        .put(&["tasks", name], Some(before.generation), &task.definition)
        .await?;
    Ok(Outcome::Updated)
}

/// Prints the server's rejections at the positions of the tasks in their files.
fn print_rejections(applied: &[Applied], stderr: Style) {
    for task in applied {
        let Some(error) = &task.error else { continue };
        let source = acrtask_spec::TaskSource {
            name: task.file.clone(),
            text: std::fs::read_to_string(Path::new(&task.file)).unwrap_or_default(),
        };
        let mut diagnostic =
            Diagnostic::error(Code::Refused, format!("the task `{}`: {error}", task.name));
        if !source.text.is_empty() {
            let span = content_span(&source.text, task.line);
            diagnostic = diagnostic.at(span, "this task");
        }
        if let Some(help) = &task.help {
            diagnostic = diagnostic.help(help.clone());
        }
        super::task_file::print_diagnostics(&source, &[diagnostic], stderr);
    }
}

/// Returns the bytes of the first line from `line` on that is not blank, a comment or a separator.
fn content_span(text: &str, line: usize) -> std::ops::Range<usize> {
    let mut at = 0;
    for (number, piece) in text.split_inclusive('\n').enumerate() {
        let content = piece.trim();
        if number + 1 >= line
            && !content.is_empty()
            && !content.starts_with('#')
            && content != "---"
        {
            return at..at + piece.trim_end().len();
        }
        at += piece.len();
    }
    0..0
}
