//! A rendering with a placeholder for each untrusted range.
//!
//! Invariant: a placeholder is a lowercase word that starts with a letter. Its prefix occurs
//! nowhere in the rendering. YAML and the words of a line read it as ordinary text.

use std::{
    collections::{BTreeSet, HashMap},
    ops::Range,
};

use acrtask_template::Sources;

use super::{Rendering, rules::Fault};
use crate::{code::Code, diagnostic::Diagnostic};

/// Names of the sources of untrusted text, such as `.Values.tag`, by number.
#[derive(Debug, Clone, Default)]
pub(crate) struct Names(pub(crate) Vec<String>);

impl Names {
    /// Formats sources for people: "`.Values.a` or `.Run.Branch`".
    pub(crate) fn list(&self, sources: Sources) -> String {
        let names: Vec<String> = self
            .0
            .iter()
            .enumerate()
            .filter(|(number, _)| sources.contains(*number))
            .map(|(_, name)| match name.contains(char::is_control) {
                // The user who starts a run may choose the name, too.
                true => format!("`{}`", name.escape_debug()),
                false => format!("`{name}`"),
            })
            .take(3)
            .collect();
        match names.as_slice() {
            [] => "a value".to_owned(),
            names => names.join(" or "),
        }
    }
}

/// A text that was computed from untrusted input.
#[derive(Debug)]
pub(super) struct Value {
    /// The text in the rendering, without the quotes around it.
    pub(super) raw: String,
    /// The unescaped `raw`, if a template function quoted the text.
    decoded: Option<String>,
    /// The unescaped `raw`, if the template's author may have quoted the text.
    escaped: Option<String>,
    pub(super) sources: Sources,
}

impl Value {
    /// Returns the text without quotes and escapes of a template function.
    pub(super) fn text(&self) -> &str {
        self.decoded.as_deref().unwrap_or(&self.raw)
    }
}

/// A piece of a text with placeholders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Piece<'t> {
    Text(&'t str),
    /// The number of a value.
    Value(usize),
}

/// A rendering with placeholders, and the values behind them.
pub(super) struct Marks<'r> {
    /// The rendering with a placeholder for each untrusted range.
    pub(super) text: String,
    prefix: String,
    pub(super) values: Vec<Value>,
    /// The untrusted ranges of the rendering, and the value in each.
    ranges: Vec<(Range<usize>, usize)>,
    rendering: &'r Rendering<'r>,
}

impl<'r> Marks<'r> {
    /// Replaces the untrusted ranges. `None` if there are none.
    pub(super) fn new(rendering: &'r Rendering<'r>) -> Option<Self> {
        if rendering.untrusted.is_empty() {
            return None;
        }
        let mut prefix = "zq".to_owned();
        while rendering.text.contains(&prefix) {
            prefix.push('z');
        }
        let mut marks = Self {
            text: String::with_capacity(rendering.text.len()),
            prefix,
            values: Vec::new(),
            ranges: Vec::new(),
            rendering,
        };
        let mut numbers: HashMap<(&str, Sources), usize> = HashMap::new();
        let mut copied = 0;
        for (range, sources) in rendering.untrusted {
            let Some(written) = rendering.text.get(range.clone()) else {
                continue;
            };
            let (quote, value) = strip_quotes(written, *sources);
            let number = *numbers.entry((written, *sources)).or_insert_with(|| {
                marks.values.push(value);
                marks.values.len() - 1
            });
            marks.text.push_str(&rendering.text[copied..range.start]);
            let placeholder = marks.placeholder(number);
            marks.text.push_str(quote);
            marks.text.push_str(&placeholder);
            marks.text.push_str(quote);
            marks.ranges.push((range.clone(), number));
            copied = range.end;
        }
        marks.text.push_str(&rendering.text[copied..]);
        Some(marks)
    }

    fn placeholder(&self, number: usize) -> String {
        format!("{}{number}q", self.prefix)
    }

    /// Returns the sources of all values.
    pub(super) fn all_sources(&self) -> Sources {
        let mut all = Sources::NONE;
        for value in &self.values {
            all |= value.sources;
        }
        all
    }

    /// Splits a text at its placeholders.
    pub(super) fn pieces<'t>(&self, marked: &'t str) -> Vec<Piece<'t>> {
        let mut pieces = Vec::new();
        let mut rest = marked;
        while let Some(at) = rest.find(&self.prefix) {
            let after = &rest[at + self.prefix.len()..];
            let digits = after.bytes().take_while(u8::is_ascii_digit).count();
            let number = after[..digits].parse().ok();
            let Some(number) = number.filter(|number| *number < self.values.len()) else {
                break;
            };
            if at > 0 {
                pieces.push(Piece::Text(&rest[..at]));
            }
            pieces.push(Piece::Value(number));
            rest = after[digits..].strip_prefix('q').unwrap_or_default();
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest));
        }
        pieces
    }

    /// Returns `true` if the text contains a placeholder.
    pub(super) fn is_marked(&self, text: &str) -> bool {
        text.contains(&self.prefix)
    }

    /// Returns the sources of the placeholders in a text.
    pub(super) fn sources_of(&self, marked: &str) -> Sources {
        let mut sources = Sources::NONE;
        for piece in self.pieces(marked) {
            if let Piece::Value(number) = piece {
                sources |= self.values[number].sources;
            }
        }
        sources
    }

    /// Returns the ranges of the values in a text whose placeholders are replaced by raw values.
    pub(super) fn ranges_in(&self, marked: &str) -> Vec<(Range<usize>, Sources)> {
        let mut at = 0;
        let mut ranges = Vec::new();
        for piece in self.pieces(marked) {
            let start = at;
            match piece {
                Piece::Text(text) => at += text.len(),
                Piece::Value(number) => {
                    let value = &self.values[number];
                    at += value.raw.len();
                    ranges.push((start..at, value.sources));
                }
            }
        }
        ranges
    }

    /// Returns `true` if `real` equals `marked` with a value for each placeholder.
    pub(super) fn matches(&self, marked: &str, real: &str) -> bool {
        if !self.is_marked(marked) {
            return marked == real;
        }
        let mut ends = BTreeSet::from([0]);
        for piece in self.pieces(marked) {
            let texts = match piece {
                Piece::Text(text) => [Some(text), None, None],
                Piece::Value(number) => {
                    let value = &self.values[number];
                    [
                        Some(value.raw.as_str()),
                        value.decoded.as_deref(),
                        value.escaped.as_deref(),
                    ]
                }
            };
            let mut next = BTreeSet::new();
            for end in ends {
                for text in texts.into_iter().flatten() {
                    if real[end..].starts_with(text) {
                        next.insert(end + text.len());
                    }
                }
            }
            ends = next;
        }
        ends.contains(&real.len())
    }

    /// Converts a fault to a diagnostic. `span` is the range of the text with the fault.
    pub(super) fn diagnostic(
        &self,
        fault: &Fault,
        span: Range<usize>,
        step: Option<&str>,
    ) -> Diagnostic {
        let inside = self.ranges.iter().find(|(range, number)| {
            let sources = self.values[*number].sources;
            span.start <= range.start
                && range.end <= span.end
                && (sources | fault.sources) == fault.sources
        });
        let place = inside.map_or(span, |(range, _)| {
            range.start..range.end.max(range.start + 1)
        });
        let of_step = step.map_or(String::new(), |step| format!(" in the step `{step}`"));
        Diagnostic::error(
            Code::UntrustedValue,
            format!(
                "the value of {} cannot be used{of_step}: {}",
                self.rendering.names.list(fault.sources),
                fault.message
            ),
        )
        .at(place, "used here")
        .help(format!(
            "{}; or start the run as a user or token that may `write` the task",
            fault.help
        ))
    }
}

/// Removes quotes that `quote`, `squote` or `toJson` added.
fn strip_quotes(written: &str, sources: Sources) -> (&'static str, Value) {
    let value = |raw: &str, decoded: Option<String>| Value {
        raw: raw.to_owned(),
        escaped: raw
            .contains('\\')
            .then(|| serde_json::from_str(&format!("\"{raw}\"")).ok())
            .flatten(),
        decoded,
        sources,
    };
    let between = |quote: char| {
        written
            .strip_prefix(quote)
            .and_then(|rest| rest.strip_suffix(quote))
    };
    if let Some(raw) = between('"')
        && let Ok(decoded) = serde_json::from_str::<String>(written)
    {
        return ("\"", value(raw, Some(decoded)));
    }
    match between('\'') {
        Some(raw) if !raw.contains('\'') => ("'", value(raw, None)),
        _ => ("", value(written, None)),
    }
}
