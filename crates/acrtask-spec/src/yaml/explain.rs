//! The most likely cause of a YAML error, and what to write instead.

use granit_parser::ErrorKind;

use super::too_deep;
use crate::{code::Code, diagnostic::Diagnostic};

/// Converts an error of the scanner to a diagnostic with help.
pub(super) fn scan_error(text: &str, error: &granit_parser::ScanError) -> Diagnostic {
    if error.kind() == &ErrorKind::RecursionLimitExceeded {
        let at = error.marker().byte_offset().unwrap_or(0).min(text.len());
        return too_deep(at..at);
    }
    let info = error.info();
    let at = error.marker().byte_offset().unwrap_or(text.len());
    let mut at = text.floor_char_boundary(at.min(text.len()));
    let line_start = |at: usize| text[..at].rfind('\n').map_or(0, |i| i + 1);
    // For a tab, the parser reports the start of the surrounding token.
    if info.contains("tab")
        && let Some(tab) = text[line_start(at)..].find('\t')
    {
        at = line_start(at) + tab;
    }
    let line_end = text[at..].find('\n').map_or(text.len(), |i| at + i);
    let line = text[line_start(at)..line_end].trim_end();
    let indentation = &line[..line.len() - line.trim_start().len()];
    let help = if indentation.contains('\t') {
        "indent with spaces; YAML does not take a tab there".to_owned()
    } else {
        let before = &text[..line_start(at)];
        (missing_colon(line)
            .or_else(|| quoted_candidate(line))
            .or_else(|| odd_dash(line, before)))
        .unwrap_or_else(|| {
            "check the indentation of this line and of the line before it: \
                 keys and entries of one level start in the same column"
                .to_owned()
        })
    };
    let len = text[at..line_end].chars().next().map_or(0, char::len_utf8);
    Diagnostic::error(Code::Yaml, format!("this is not YAML: {info}"))
        .at(at..at + len, "it stops making sense here")
        .help(help)
}

/// Returns help for a line with a key of a step but without its colon.
fn missing_colon(line: &str) -> Option<String> {
    let bare = line.trim_start().trim_start_matches("- ");
    let (word, rest) = bare.split_once(' ')?;
    ["build", "cmd", "push", "id", "when", "env"]
        .contains(&word)
        .then(|| format!("a colon is missing: write `{word}: {}`", rest.trim()))
}

/// Returns help for a line `key: value` whose value needs quotes.
fn quoted_candidate(line: &str) -> Option<String> {
    let (key, value) = line.trim_start().split_once(": ")?;
    let value = value.trim();
    let bare_key = key.trim_start_matches("- ");
    if bare_key.is_empty() || !bare_key.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return None;
    }
    if value.starts_with('[') {
        let name = |c: char| c.is_alphanumeric() || "-_./:@".contains(c);
        let names: Vec<String> = value
            .split(|c| !name(c))
            .filter(|name| !name.is_empty())
            .map(|name| format!("'{name}'"))
            .collect();
        return Some(format!(
            "put each name in one pair of quotes: `{key}: [{}]`",
            names.join(", ")
        ));
    }
    let confusing = value.starts_with(['@', '`', '%', '&', '*', '!', '|', '>', '{', '"'])
        || value.contains(": ")
        || value.ends_with(':');
    confusing.then(|| {
        format!(
            "put the value in quotes: `{key}: '{}'`",
            value.replace('\'', "''")
        )
    })
}

/// Returns help for a list entry in another column than the entry before it.
fn odd_dash(line: &str, before: &str) -> Option<String> {
    let column = |line: &str| {
        let bare = line.trim_start();
        bare.starts_with("- ").then(|| line.len() - bare.len() + 1)
    };
    let this = column(line)?;
    let other = before.lines().rev().find_map(column)?;
    (this != other).then(|| {
        format!("this `-` is in column {this}, the one of the entry before it in column {other}: use one column for both")
    })
}
