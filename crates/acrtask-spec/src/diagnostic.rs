//! What is wrong with a task file, as data.
//!
//! Invariants: spans are bytes of the text that the author wrote, whatever aliases and templates
//! made of it later; a code never changes its meaning; messages hold no secret that was resolved
//! (`resolve` masks them). Pictures are made by [`crate::render`], not here.

use std::{borrow::Cow, ops::Range};

use serde::Serialize;
use serde_json::{Value, json};

use crate::TaskSource;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The file can be used; something in it does nothing, or not what it seems to.
    Warning,
    /// The file cannot be used.
    Error,
}

/// A place in the text with a few words about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// Bytes of the author's text.
    pub span: Range<usize>,
    /// What is there; may be empty.
    pub text: String,
}

/// One problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Which kind of problem: stable, for programs and for search, like `unknown-key`.
    pub code: Cow<'static, str>,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, in one sentence without a full stop.
    pub message: String,
    /// Where. The first is the place to go to; empty where the whole file is meant.
    pub labels: Vec<Label>,
    /// What to write instead.
    pub help: Option<String>,
}

impl Diagnostic {
    /// An error without a place yet.
    pub fn error(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code: Cow::Borrowed(code),
            severity: Severity::Error,
            message: message.into(),
            labels: Vec::new(),
            help: None,
        }
    }

    /// A warning without a place yet.
    pub fn warning(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(code, message)
        }
    }

    /// Adds a place.
    #[must_use]
    pub fn at(mut self, span: Range<usize>, text: impl Into<String>) -> Self {
        self.labels.push(Label {
            span,
            text: text.into(),
        });
        self
    }

    /// Says what to write instead.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Whether it stands in the way of a plan.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// Where its first label begins, or the beginning of the file.
    pub fn start(&self) -> usize {
        self.labels.first().map_or(0, |label| label.span.start)
    }

    /// The same with each place cut to whole characters of `text`.
    #[must_use]
    pub(crate) fn within(mut self, text: &str) -> Self {
        for label in &mut self.labels {
            let start = text.floor_char_boundary(label.span.start);
            label.span = start..text.ceil_char_boundary(label.span.end.max(start));
        }
        self
    }

    /// The same with `change` applied to every text a person reads.
    #[must_use]
    pub(crate) fn map_texts(mut self, change: impl Fn(&str) -> String) -> Self {
        self.message = change(&self.message);
        self.help = self.help.map(|help| change(&help));
        for label in &mut self.labels {
            label.text = change(&label.text);
        }
        self
    }

    /// The form for programs: `code`, `severity`, `message`, `help` where there is one, `file`, and
    /// where there is a place `line`, `column`, `endLine`, `endColumn` (all from 1, columns in
    /// characters, the end after the last character). Further places are in `notes`.
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

/// A place as people count: from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

impl Position {
    /// The place of the byte at `offset`; past the end is the end.
    pub fn of(text: &str, offset: usize) -> Self {
        let before = &text.as_bytes()[..offset.min(text.len())];
        let line_start = before
            .iter()
            .rposition(|b| *b == b'\n')
            .map_or(0, |i| i + 1);
        // Bytes that continue a character are not counted.
        let is_first = |b: &&u8| (**b & 0xC0) != 0x80;
        Self {
            line: 1 + before.iter().filter(|b| **b == b'\n').count(),
            column: 1 + before[line_start..].iter().filter(is_first).count(),
        }
    }
}

/// The nearest of the first two hundred of `known` to `given`, where one is near enough to be meant.
pub(crate) fn nearest<'a>(
    given: &str,
    known: impl IntoIterator<Item = &'a str>,
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
        // `retry` for `retries`: the same word with another ending.
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
    known
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
    fn finds_the_nearest() {
        let known = ["when", "workingDirectory", "entryPoint", "retries", "id"];
        for (given, expected) in [
            ("When", Some("when")),
            ("working-directory", Some("workingDirectory")),
            ("entrypoint", Some("entryPoint")),
            ("wehn", Some("when")),
            ("retry", Some("retries")),
            ("dockerfile", None),
            ("Id", Some("id")),
        ] {
            assert_eq!(nearest(given, known), expected, "{given}");
        }
    }
}
