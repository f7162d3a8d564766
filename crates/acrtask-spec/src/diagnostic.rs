//! Problems of a task file, as data.
//!
//! Invariants:
//! - Spans are byte ranges of the author's text, before aliases and templates.
//! - Messages contain no resolved secret, because `resolve` masks them.
//!
//! [`crate::render`] formats diagnostics for people.

use std::{borrow::Cow, ops::Range};

use serde::Serialize;
use serde_json::{Value, json};

use crate::{TaskSource, code::Code};

/// Severity of a diagnostic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The file is usable, but a part of it has no effect or an unexpected one.
    Warning,
    /// The file is unusable.
    Error,
}

/// A span of the text with a short remark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// Byte range of the author's text.
    pub span: Range<usize>,
    /// Remark about the span. May be empty.
    pub text: String,
}

/// A problem of a task file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Text of the problem's [`Code`]. A runner of a later version may send one that this version
    /// does not have.
    pub code: Cow<'static, str>,
    /// Severity of the problem.
    pub severity: Severity,
    /// Description of the problem in one sentence, without a full stop.
    pub message: String,
    /// Places of the problem, the main one first. Empty if the whole file is meant.
    pub labels: Vec<Label>,
    /// Help: what to write instead.
    pub help: Option<String>,
}

impl Diagnostic {
    /// Creates an error without labels.
    pub fn error(code: Code, message: impl Into<String>) -> Self {
        Self {
            code: Cow::Borrowed(code.as_str()),
            severity: Severity::Error,
            message: message.into(),
            labels: Vec::new(),
            help: None,
        }
    }

    /// Creates a warning without labels.
    pub fn warning(code: Code, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(code, message)
        }
    }

    /// Adds a label.
    #[must_use]
    pub fn at(mut self, span: Range<usize>, text: impl Into<String>) -> Self {
        self.labels.push(Label {
            span,
            text: text.into(),
        });
        self
    }

    /// Sets the help.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Returns `true` if the problem prevents a plan.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// Returns the start of the first label, or 0 without labels.
    pub fn start(&self) -> usize {
        self.labels.first().map_or(0, |label| label.span.start)
    }

    /// Extends each label to whole characters of `text`.
    #[must_use]
    pub(crate) fn clamped_to(mut self, text: &str) -> Self {
        for label in &mut self.labels {
            let start = text.floor_char_boundary(label.span.start);
            label.span = start..text.ceil_char_boundary(label.span.end.max(start));
        }
        self
    }

    /// Applies `change` to every text that is shown to people.
    #[must_use]
    pub(crate) fn map_texts(mut self, change: impl Fn(&str) -> String) -> Self {
        self.message = change(&self.message);
        self.help = self.help.map(|help| change(&help));
        for label in &mut self.labels {
            label.text = change(&label.text);
        }
        self
    }

    /// Converts the diagnostic to JSON for programs.
    ///
    /// Always contains `code`, `severity`, `message` and `file`; `help` if present. With a label,
    /// it contains `line`, `column`, `endLine` and `endColumn`. These count from 1, columns in
    /// characters; the end is after the last character. Further labels are in `notes`.
    pub fn to_json(&self, source: &TaskSource) -> Value {
        let mut out = json!({
            "code": self.code,
            "severity": self.severity,
            "message": self.message,
            "file": source.name,
        });
        if let Some(help) = &self.help {
            out["help"] = json!(help);
        }
        let place = |label: &Label| {
            let start = Position::of(&source.text, label.span.start);
            let end = Position::of(&source.text, label.span.end);
            json!({
                "text": label.text,
                "line": start.line,
                "column": start.column,
                "endLine": end.line,
                "endColumn": end.column,
            })
        };
        let mut places = self.labels.iter().map(place);
        if let (Some(Value::Object(first)), Some(object)) = (places.next(), out.as_object_mut()) {
            object.extend(first.into_iter().map(|(key, value)| match key.as_str() {
                "text" => ("label".to_owned(), value),
                _ => (key, value),
            }));
        }
        let notes: Vec<Value> = places.collect();
        if !notes.is_empty() {
            out["notes"] = json!(notes);
        }
        out
    }
}

/// Line and column of a byte in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

impl Position {
    /// Returns the position of the byte at `offset`. An offset past the end gives the end.
    pub fn of(text: &str, offset: usize) -> Self {
        let before = &text.as_bytes()[..offset.min(text.len())];
        let line_start = before
            .iter()
            .rposition(|b| *b == b'\n')
            .map_or(0, |i| i + 1);
        // Skip bytes that continue a character.
        let is_first = |b: &&u8| (**b & 0xC0) != 0x80;
        Self {
            line: 1 + before.iter().filter(|b| **b == b'\n').count(),
            column: 1 + before[line_start..].iter().filter(is_first).count(),
        }
    }
}

/// Returns the candidate that is nearest to `given`, if one is similar enough. Checks the first 200
/// candidates.
pub(crate) fn find_nearest<'a>(
    given: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let plain = |text: &str| {
        text.chars()
            .filter(|c| c.is_alphanumeric())
            .flat_map(char::to_lowercase)
            .collect::<String>()
    };
    let given_plain = plain(given);
    let near = |candidate: &&'a str| {
        let candidate_plain = plain(candidate);
        let allowed = 1.max(candidate.len().min(given.len()) / 3);
        // Accept another ending of the same word: `retry` for `retries`.
        let same = given_plain
            .bytes()
            .zip(candidate_plain.bytes())
            .take_while(|(a, b)| a == b);
        let same = same.count();
        let ending = same >= 4 && same + 1 >= given_plain.len();
        if !ending && candidate_plain.len().abs_diff(given_plain.len()) > allowed {
            return None;
        }
        let distance = strsim::osa_distance(&given_plain, &candidate_plain);
        (ending || distance <= allowed).then_some((distance, *candidate))
    };
    candidates
        .into_iter()
        .take(200)
        .filter(|candidate| candidate.len() < 100 && given.len() < 100)
        .filter_map(|candidate| near(&candidate))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_characters() {
        let text = "a\nbä€c\n";
        for (offset, line, column) in [
            (0, 1, 1),
            (2, 2, 1),
            (3, 2, 2),
            (5, 2, 3),
            (8, 2, 4),
            (99, 3, 1),
        ] {
            assert_eq!(
                Position::of(text, offset),
                Position { line, column },
                "{offset}"
            );
        }
    }

    #[test]
    fn find_nearest_matches_misspelled_names() {
        let candidates = ["when", "workingDirectory", "entryPoint", "retries", "id"];
        for (given, expected) in [
            ("When", Some("when")),
            ("working-directory", Some("workingDirectory")),
            ("entrypoint", Some("entryPoint")),
            ("wehn", Some("when")),
            ("retry", Some("retries")),
            ("dockerfile", None),
            ("Id", Some("id")),
        ] {
            assert_eq!(find_nearest(given, candidates), expected, "{given}");
        }
    }
}
