//! `acrtask task apply`: makes the server's tasks what files say.

use std::path::Path;

use acrtask_api::task::Task;
use acrtask_spec::Diagnostic;
use serde::Serialize;

use super::{
    remote::{block_on, client, print_json},
    task::terminal_width,
};
use crate::{
    args::{PathOrStdin, server::ListOutput, stored::ApplyArgs},
    client::{ApiError, Client},
    declare::{self, Declared, DeclaredTask},
    error::CliError,
    exit::Exit,
    render::{style::Style, table},
};

/// What became of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Done {
    Created,
    Updated,
    Unchanged,
    Failed,
}

/// A task and what became of it.
#[derive(Debug, Serialize)]
struct Applied {
    name: String,
    file: String,
    line: usize,
    result: Done,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    help: Option<String>,
}

/// Creates and changes tasks as files say. One that is refused keeps none of the others from it.
pub(crate) fn apply(args: &ApplyArgs, stderr: Style, stdout: Style) -> Result<Exit, CliError> {
    let declared = read(&args.file)?;
    say_all(&declare::shown(
        &declared,
        stderr.is_colored(),
        terminal_width(),
    ));
    let client = client(&args.server)?;
    let applied = block_on(async {
        let mut applied = Vec::new();
        for task in &declared.tasks {
            applied.push(one(&client, task).await?);
        }
        Ok(applied)
    })?;
    refusals(&applied, stderr);
    match args.output.output {
        ListOutput::Json => print_json(&applied)?,
        ListOutput::Text => {
            let rows = applied.iter().map(|task| {
                let result = match task.result {
                    Done::Created => stdout.good("created"),
                    Done::Updated => stdout.good("updated"),
                    Done::Unchanged => stdout.dim("unchanged"),
                    Done::Failed => stdout.bad("failed"),
                };
                vec![
                    task.name.clone(),
                    result,
                    format!("{}:{}", task.file, task.line),
                ]
            });
            let text = table::list(
                &["TASK", "RESULT", "FILE"],
                rows.collect(),
                "there are no tasks in these files",
                stdout,
            );
            super::print(text.as_bytes())?
        }
    };
    let whole = declared.is_whole() && applied.iter().all(|task| task.result != Done::Failed);
    Ok(if whole { Exit::Succeeded } else { Exit::Usage })
}

fn read(files: &[PathOrStdin]) -> Result<Declared, CliError> {
    let mut all = Declared::default();
    for file in files {
        match file {
            PathOrStdin::Stdin => {
                let text = std::io::read_to_string(std::io::stdin()).map_err(|error| {
                    CliError::usage("cannot read standard input").because(&error)
                })?;
                all.read("<stdin>", &text);
            }
            PathOrStdin::Path(path) if path.is_dir() => {
                all.add(declare::folder(path, path));
            }
            PathOrStdin::Path(path) => {
                if !path.exists() {
                    return Err(CliError::usage(format!("there is no {}", path.display())));
                }
                all.read_file(path, &path.display().to_string());
            }
        }
    }
    Ok(all)
}

/// What the server makes of one task. An error only where it cannot be reached.
async fn one(client: &Client, task: &DeclaredTask) -> Result<Applied, CliError> {
    let (result, error, help) = match put(client, task).await {
        Ok(done) => (done, None, None),
        Err(ApiError::Refused {
            status, problem, ..
        }) if status.is_client_error() => (Done::Failed, Some(problem.message), problem.help),
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

async fn put(client: &Client, task: &DeclaredTask) -> Result<Done, ApiError> {
    let name = task.definition.name.as_str();
    let before: Task = match client.get(&["tasks", name], &[]).await {
        Ok(before) => before,
        Err(error) if error.is_not_found() => {
            let _: Task = client.post(&["tasks"], &task.definition).await?;
            return Ok(Done::Created);
        }
        Err(error) => return Err(error),
    };
    if before.definition == task.definition {
        return Ok(Done::Unchanged);
    }
    client
        .put(&["tasks", name], Some(before.generation), &task.definition)
        .await?;
    Ok(Done::Updated)
}

/// Shows what the server refused where it stands in its file.
fn refusals(applied: &[Applied], stderr: Style) {
    for task in applied {
        let Some(error) = &task.error else { continue };
        let source = acrtask_spec::TaskSource {
            name: task.file.clone(),
            text: std::fs::read_to_string(Path::new(&task.file)).unwrap_or_default(),
        };
        let mut diagnostic =
            Diagnostic::error("refused", format!("the task `{}`: {error}", task.name));
        if !source.text.is_empty() {
            let span = line_of(&source.text, task.line);
            diagnostic = diagnostic.at(span, "this task");
        }
        if let Some(help) = &task.help {
            diagnostic = diagnostic.help(help.clone());
        }
        super::task::tell(&source, &[diagnostic], stderr);
    }
}

/// The bytes of the first line from `line` on that says something.
fn line_of(text: &str, line: usize) -> std::ops::Range<usize> {
    let mut at = 0;
    for (number, piece) in text.split_inclusive('\n').enumerate() {
        let said = piece.trim();
        if number + 1 >= line && !said.is_empty() && !said.starts_with('#') && said != "---" {
            return at..at + piece.trim_end().len();
        }
        at += piece.len();
    }
    0..0
}

fn say_all(text: &str) {
    super::remote::write_error(text);
}
