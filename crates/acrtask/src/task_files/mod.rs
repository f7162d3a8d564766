//! Tasks and settings as files: parses texts into definitions and diagnostics with positions. Only
//! [`read_folder`] and [`TaskFiles::add_file`] read files; the rest is pure.
//!
//! Invariants: an error in one document does not affect the others. If two documents use the same
//! name, the second one is an error. The server validates what only it can judge: schedules and
//! contexts.

use std::{
    collections::BTreeMap,
    io::Read,
    path::{Path, PathBuf},
};

use acrtask_api::{cascade::CascadeSettings, task::TaskDefinition, task_keys};
use acrtask_spec::{Code, Diagnostic, TaskSource};
use serde::de::DeserializeOwned;

use crate::error::CliError;

/// Extensions of the files that are read in a folder.
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];
/// Maximum size of a file in bytes.
const MAX_SIZE: u64 = 4 << 20;

/// Tasks and problems of a set of files.
#[derive(Debug, Default)]
pub(crate) struct TaskFiles {
    /// Tasks, in the order of the files.
    pub(crate) tasks: Vec<TaskDocument>,
    /// Files with errors, and their diagnostics.
    pub(crate) problems: Vec<(TaskSource, Vec<Diagnostic>)>,
    /// Files that could not be read, and the reasons; their tasks are unknown.
    pub(crate) unread: Vec<(String, String)>,
}

/// Task with its position in a file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TaskDocument {
    /// Definition of the task.
    pub(crate) definition: TaskDefinition,
    /// Name of the file.
    pub(crate) source: String,
    /// First line of the document, counted from 1.
    pub(crate) line: usize,
}

impl TaskFiles {
    /// Returns `true` if all files were read without errors.
    pub(crate) fn is_complete(&self) -> bool {
        self.problems.is_empty() && self.unread.is_empty()
    }

    /// Parses the text of the file `name` and adds its tasks.
    pub(crate) fn add_text(&mut self, name: &str, text: &str) {
        let mut problems = Vec::new();
        for document in documents(text) {
            match document.task() {
                Ok(definition) => {
                    let first = self
                        .tasks
                        .iter()
                        .find(|task| task.definition.name == definition.name);
                    match first {
                        Some(first) => problems.push(
                            Diagnostic::error(
                                Code::DuplicateTask,
                                format!("the task `{}` is defined twice", definition.name),
                            )
                            .at(document.first_line(), "defined again")
                            .help(format!(
                                "the first definition is in {}, line {}",
                                first.source, first.line
                            )),
                        ),
                        None => self.tasks.push(TaskDocument {
                            definition,
                            source: name.into(),
                            line: document.line,
                        }),
                    }
                }
                Err(diagnostic) => problems.push(diagnostic),
            }
        }
        if !problems.is_empty() {
            let source = TaskSource {
                name: name.into(),
                text: text.into(),
            };
            self.problems.push((source, problems));
        }
    }

    /// Adds the tasks of other files; a name that is already used is an error of those files.
    pub(crate) fn add(&mut self, other: Self) {
        self.problems.extend(other.problems);
        self.unread.extend(other.unread);
        for task in other.tasks {
            let name = &task.definition.name;
            match self.tasks.iter().find(|task| task.definition.name == *name) {
                Some(first) => {
                    let why = format!(
                        "the task `{name}` is already defined in {}, line {}",
                        first.source, first.line
                    );
                    self.unread.push((task.source, why));
                }
                None => self.tasks.push(task),
            }
        }
    }

    /// Reads a file and adds its tasks.
    pub(crate) fn add_file(&mut self, path: &Path, name: &str) {
        let read = || -> std::io::Result<String> {
            let mut text = String::new();
            std::fs::File::open(path)?
                .take(MAX_SIZE + 1)
                .read_to_string(&mut text)?;
            if text.len() as u64 > MAX_SIZE {
                return Err(std::io::Error::other(format!(
                    "it is larger than {MAX_SIZE} bytes"
                )));
            }
            Ok(text)
        };
        match read() {
            Ok(text) => self.add_text(name, &text),
            Err(error) => self.unread.push((name.into(), error.to_string())),
        }
    }
}

/// Reads every file below `root`, in the order of their names. File names are shown relative to
/// `shown`.
pub(crate) fn read_folder(root: &Path, shown: &Path) -> TaskFiles {
    let mut declared = TaskFiles::default();
    let mut files = Vec::new();
    collect_files(root, &mut files, &mut declared.unread, 0);
    files.sort();
    for path in files {
        let name = path.strip_prefix(root).unwrap_or(&path);
        declared.add_file(&path, &shown.join(name).display().to_string());
    }
    declared
}

fn collect_files(
    folder: &Path,
    files: &mut Vec<PathBuf>,
    unread: &mut Vec<(String, String)>,
    depth: u32,
) {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => {
            unread.push((folder.display().to_string(), error.to_string()));
            return;
        }
    };
    for entry in entries.flatten() {
        let path = entry.path();
        // Editors and Kubernetes config maps keep copies in hidden files and folders.
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        // Links to files are followed, because config maps use them; links to folders are not,
        // because of cycles.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && depth < 16 {
            collect_files(&path, files, unread, depth + 1);
        } else if path.is_file()
            && path
                .extension()
                .is_some_and(|extension| EXTENSIONS.iter().any(|allowed| extension == *allowed))
        {
            files.push(path);
        }
    }
}

/// Converts a definition to YAML that [`TaskFiles::add_text`] parses.
pub(crate) fn to_yaml(definition: &TaskDefinition) -> Result<String, CliError> {
    serde_yaml::to_string(definition).map_err(|error| {
        CliError::unreachable(format!(
            "cannot convert the task {} to YAML",
            definition.name
        ))
        .because(&error)
    })
}

/// Parses a file of cascade settings.
pub(crate) fn parse_cascade_settings(text: &str) -> Result<CascadeSettings, Diagnostic> {
    let document = Document {
        text,
        start: 0,
        line: 1,
    };
    document.parse(Code::Settings, "these are not cascade settings")
}

/// YAML document of a file.
struct Document<'a> {
    /// Text of the document.
    text: &'a str,
    /// Offset of the text in the file, in bytes.
    start: usize,
    /// First line of the document, counted from 1.
    line: usize,
}

/// Splits a text into its documents, without empty ones. Every line that starts with `---` starts a
/// document, even in a block scalar.
fn documents(text: &str) -> Vec<Document<'_>> {
    let mut found = Vec::new();
    let (mut start, mut line) = (0, 1);
    let mut at = 0;
    for (number, piece) in text.split_inclusive('\n').enumerate() {
        let mark = piece.trim_end();
        if at > start && (mark == "---" || mark.starts_with("--- ")) {
            found.push(Document {
                text: &text[start..at],
                start,
                line,
            });
            (start, line) = (at, number + 1);
        }
        at += piece.len();
    }
    found.push(Document {
        text: &text[start..],
        start,
        line,
    });
    found.retain(|document| {
        document.text.lines().any(|line| {
            let line = line.trim();
            !line.is_empty() && !line.starts_with('#') && line != "---" && line != "..."
        })
    });
    found
}

impl Document<'_> {
    fn task(&self) -> Result<TaskDefinition, Diagnostic> {
        self.parse(Code::Task, "this is not a task")
            .map_err(|diagnostic| {
                let reference =
                    "docs/task-definition.md and `acrtask schema task` list the keys of a task";
                match task_keys::find_key_level(&diagnostic.message) {
                    Some(place) => diagnostic.help(format!("{place}; {reference}")),
                    None => diagnostic.help(reference),
                }
            })
    }

    fn parse<T: DeserializeOwned>(&self, code: Code, message: &str) -> Result<T, Diagnostic> {
        let options = serde_yaml::options! {
            with_snippet: false,
        };
        serde_yaml::from_str_with_options(self.text, options).map_err(|error| {
            let diagnostic =
                Diagnostic::error(code, format!("{message}: {}", parser_message(&error)));
            match error.location() {
                Some(place) => diagnostic.at(self.word_at(place.line(), place.column()), "here"),
                None => diagnostic.at(self.first_line(), "in the document that starts here"),
            }
        })
    }

    /// Returns the span in the file of the word at a line and a column of the document, both
    /// counted from 1.
    fn word_at(&self, line: u64, column: u64) -> std::ops::Range<usize> {
        let number = |n: u64| usize::try_from(n).unwrap_or(1).saturating_sub(1);
        let before: usize = self
            .text
            .split_inclusive('\n')
            .take(number(line))
            .map(str::len)
            .sum();
        let rest = self.text[before..].lines().next().unwrap_or_default();
        let from = rest
            .char_indices()
            .nth(number(column))
            .map_or(rest.len(), |(at, _)| at);
        let word = rest[from..]
            .find(|c: char| c.is_whitespace() || c == ':')
            .unwrap_or(rest.len() - from);
        let start = self.start + before + from;
        start..start + word.max(usize::from(from < rest.len()))
    }

    /// Returns the span of the first line that is not blank, a comment or a separator.
    fn first_line(&self) -> std::ops::Range<usize> {
        let mut at = self.start;
        for piece in self.text.split_inclusive('\n') {
            let line = piece.trim();
            if !line.is_empty() && !line.starts_with('#') && line != "---" {
                let indent = piece.len() - piece.trim_start().len();
                return at + indent..at + piece.trim_end().len();
            }
            at += piece.len();
        }
        self.start..self.start
    }
}

/// Returns the parser's message without the position, which the diagnostic shows, and with words for
/// the parser's own terms.
fn parser_message(error: &serde_yaml::Error) -> String {
    let text = error.to_string();
    let text = text.lines().next().unwrap_or_default();
    let text = &text
        .replace("expected mapping start", "expected a map, `KEY: VALUE`")
        .replace("expected sequence start", "expected a list, `[ITEM, ...]`");
    match text.rsplit_once(" at line ") {
        Some((message, place))
            if !place.contains(char::is_alphabetic) || place.contains("column") =>
        {
            message.to_owned()
        }
        _ => text.to_owned(),
    }
}

/// Renders the problems of all files.
pub(crate) fn render_problems(declared: &TaskFiles, colored: bool, width: usize) -> String {
    let mut out = String::new();
    for (source, diagnostics) in &declared.problems {
        out.push_str(&acrtask_spec::render_diagnostics(
            source,
            diagnostics,
            colored,
            width,
        ));
    }
    for (name, why) in &declared.unread {
        out.push_str(&format!("error: cannot read {name}: {why}\n"));
    }
    out
}

/// Returns the tasks by name.
pub(crate) fn tasks_by_name(declared: &TaskFiles) -> BTreeMap<&str, &TaskDocument> {
    declared
        .tasks
        .iter()
        .map(|task| (task.definition.name.as_str(), task))
        .collect()
}

#[cfg(test)]
mod tests;
