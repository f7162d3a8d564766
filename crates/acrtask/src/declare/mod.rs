//! Tasks and settings as files: from texts to definitions, and to what is wrong with them, with its place. Pure but for
//! [`folder`], which reads.
//!
//! Invariants: a mistake in one document loses none of the others; a name that two documents give is an error of the
//! second one. What only the server can judge (schedules, contexts) is left to it.

use std::{
    collections::BTreeMap,
    io::Read,
    path::{Path, PathBuf},
};

use acrtask_api::{cascade::CascadeSettings, task::TaskDefinition, task_keys};
use acrtask_spec::{Diagnostic, TaskSource};
use serde::de::DeserializeOwned;

use crate::error::CliError;

/// Endings of files that are read in a folder.
const ENDINGS: [&str; 3] = ["yaml", "yml", "json"];
/// Largest file that is read.
const LARGEST: u64 = 4 << 20;

/// What files declare.
#[derive(Debug, Default)]
pub(crate) struct Declared {
    /// Tasks, in the order of the files.
    pub(crate) tasks: Vec<DeclaredTask>,
    /// Files with something wrong in them.
    pub(crate) problems: Vec<(TaskSource, Vec<Diagnostic>)>,
    /// Files that cannot be read: their tasks are unknown.
    pub(crate) unread: Vec<(String, String)>,
}

/// A task that a file declares.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DeclaredTask {
    /// What it is.
    pub(crate) definition: TaskDefinition,
    /// The file.
    pub(crate) source: String,
    /// The line that its document begins at, from 1.
    pub(crate) line: usize,
}

impl Declared {
    /// Nothing is wrong.
    pub(crate) fn is_whole(&self) -> bool {
        self.problems.is_empty() && self.unread.is_empty()
    }

    /// Takes in what the file `name` holds.
    pub(crate) fn read(&mut self, name: &str, text: &str) {
        let mut problems = Vec::new();
        for document in documents(text) {
            match document.task() {
                Ok(definition) => {
                    let taken = self
                        .tasks
                        .iter()
                        .find(|task| task.definition.name == definition.name);
                    match taken {
                        Some(first) => problems.push(
                            Diagnostic::error(
                                "duplicate-task",
                                format!("the task `{}` is declared twice", definition.name),
                            )
                            .at(document.first_line(), "the second time")
                            .help(format!(
                                "the first one is in {}, line {}",
                                first.source, first.line
                            )),
                        ),
                        None => self.tasks.push(DeclaredTask {
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

    /// Takes in what other files declare; a name that is known already is an error of theirs.
    pub(crate) fn add(&mut self, other: Self) {
        self.problems.extend(other.problems);
        self.unread.extend(other.unread);
        for task in other.tasks {
            let name = &task.definition.name;
            match self
                .tasks
                .iter()
                .find(|known| known.definition.name == *name)
            {
                Some(first) => {
                    let why = format!(
                        "the task `{name}` is declared in {}, line {}, already",
                        first.source, first.line
                    );
                    self.unread.push((task.source, why));
                }
                None => self.tasks.push(task),
            }
        }
    }

    /// Takes in a file.
    pub(crate) fn read_file(&mut self, path: &Path, name: &str) {
        let read = || -> std::io::Result<String> {
            let mut text = String::new();
            std::fs::File::open(path)?
                .take(LARGEST + 1)
                .read_to_string(&mut text)?;
            if text.len() as u64 > LARGEST {
                return Err(std::io::Error::other(format!(
                    "it is larger than {LARGEST} bytes"
                )));
            }
            Ok(text)
        };
        match read() {
            Ok(text) => self.read(name, &text),
            Err(error) => self.unread.push((name.into(), error.to_string())),
        }
    }
}

/// What every file below `root` declares, in the order of their names. `shown` is put before them.
pub(crate) fn folder(root: &Path, shown: &Path) -> Declared {
    let mut declared = Declared::default();
    let mut files = Vec::new();
    walk(root, &mut files, &mut declared.unread, 0);
    files.sort();
    for path in files {
        let name = path.strip_prefix(root).unwrap_or(&path);
        declared.read_file(&path, &shown.join(name).display().to_string());
    }
    declared
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>, unread: &mut Vec<(String, String)>, depth: u32) {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => {
            unread.push((folder.display().to_string(), error.to_string()));
            return;
        }
    };
    for entry in entries.flatten() {
        let path = entry.path();
        // Editors and config maps keep copies in hidden files and folders.
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        // A link is followed to a file, as config maps have them, and not to a folder, which may lead round.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && depth < 16 {
            walk(&path, files, unread, depth + 1);
        } else if path.is_file()
            && path
                .extension()
                .is_some_and(|ending| ENDINGS.iter().any(|known| ending == *known))
        {
            files.push(path);
        }
    }
}

/// The form of a definition that [`Declared::read`] takes.
pub(crate) fn yaml(definition: &TaskDefinition) -> Result<String, CliError> {
    serde_yaml::to_string(definition).map_err(|error| {
        CliError::unreachable(format!(
            "the task {} cannot be written as YAML",
            definition.name
        ))
        .because(&error)
    })
}

/// The settings that a file holds.
pub(crate) fn cascade_settings(text: &str) -> Result<CascadeSettings, Diagnostic> {
    let whole = Document {
        text,
        start: 0,
        line: 1,
    };
    whole.holds("settings", "these are no settings of cascades")
}

/// A document of a file.
struct Document<'a> {
    /// Its bytes in the file.
    text: &'a str,
    start: usize,
    /// The line that it begins at, from 1.
    line: usize,
}

/// The documents of a text, without empty ones. A line that begins with `---` begins one, in whatever it stands.
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
        self.holds("task", "this is no task").map_err(|diagnostic| {
            let reference =
                "docs/task-definition.md and `acrtask schema task` list the keys of a task";
            match task_keys::right_level(&diagnostic.message) {
                Some(place) => diagnostic.help(format!("{place}; {reference}")),
                None => diagnostic.help(reference),
            }
        })
    }

    fn holds<T: DeserializeOwned>(
        &self,
        code: &'static str,
        is_not: &str,
    ) -> Result<T, Diagnostic> {
        let options = serde_yaml::options! {
            with_snippet: false,
        };
        serde_yaml::from_str_with_options(self.text, options).map_err(|error| {
            let diagnostic = Diagnostic::error(code, format!("{is_not}: {}", said(&error)));
            match error.location() {
                Some(place) => diagnostic.at(self.at(place.line(), place.column()), "here"),
                None => diagnostic.at(self.first_line(), "in what begins here"),
            }
        })
    }

    /// The word at a line and a column of it, both from 1, as bytes of the file.
    fn at(&self, line: u64, column: u64) -> std::ops::Range<usize> {
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

    /// Its first line that says something.
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

/// What the parser says, without the place, which is shown.
fn said(error: &serde_yaml::Error) -> String {
    let text = error.to_string();
    let text = text.lines().next().unwrap_or_default();
    match text.rsplit_once(" at line ") {
        Some((said, place)) if !place.contains(char::is_alphabetic) || place.contains("column") => {
            said.to_owned()
        }
        _ => text.to_owned(),
    }
}

/// What is wrong, file by file, as a person reads it.
pub(crate) fn shown(declared: &Declared, colored: bool, width: usize) -> String {
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

/// The tasks of each file: what a watcher compares.
pub(crate) fn by_name(declared: &Declared) -> BTreeMap<&str, &DeclaredTask> {
    declared
        .tasks
        .iter()
        .map(|task| (task.definition.name.as_str(), task))
        .collect()
}

#[cfg(test)]
mod tests;
