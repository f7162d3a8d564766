//! Formatting of diagnostics for people: the source line with a label, and the help.

use std::fmt;

use miette::{
    GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, SourceCode, ThemeCharacters,
    ThemeStyles,
};

use crate::{
    TaskSource,
    diagnostic::{Diagnostic, Position, Severity},
};

/// Maximum length of a shown source line, in bytes.
const LONGEST_LINE: usize = 2000;

/// Formats `diagnostics` with their places in `source`, and a line with their counts. `width` is
/// that of the terminal, in columns.
pub fn render_diagnostics(
    source: &TaskSource,
    diagnostics: &[Diagnostic],
    color: bool,
    width: usize,
) -> String {
    let styles = if color {
        ThemeStyles::ansi()
    } else {
        ThemeStyles::none()
    };
    let theme = GraphicalTheme {
        characters: ThemeCharacters::unicode(),
        styles,
    };
    let handler = GraphicalReportHandler::new_themed(theme)
        .with_width(width)
        .with_links(false)
        .with_context_lines(1)
        .with_wrap_lines(true)
        .with_break_words(false)
        .without_cause_chain();
    let code = NamedSource::new(printable(&source.name), printable(&source.text));
    // If a line is too long for a terminal, show its position instead.
    let showable = source.text.lines().all(|line| line.len() <= LONGEST_LINE);
    let mut out = String::new();
    for diagnostic in diagnostics {
        let diagnostic = diagnostic.clone().map_texts(printable);
        let shown = MietteDiagnostic {
            diagnostic: &diagnostic,
            code: &code,
            showable,
        };
        if handler.render_report(&mut out, &shown).is_err() {
            // A label is outside of the text. Show at least the message.
            out.push_str(&diagnostic.message);
        }
        out.push('\n');
    }
    out.push_str(&count_line(diagnostics));
    out
}

/// Replaces characters that control a terminal or reverse the direction of text.
///
/// Line breaks and tabs stay. A replacement has the same length, so byte offsets stay valid.
pub(crate) fn printable(text: &str) -> String {
    let steers = |c: char| {
        c.is_control()
            || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let shown = |c: char| match c {
        '\n' | '\t' => c,
        // Most of them are before a line break, where a replacement would only disturb.
        '\r' => ' ',
        c if !steers(c) => c,
        c => match c.len_utf8() {
            1 => '?',
            2 => '¿',
            _ => '\u{fffd}',
        },
    };
    text.chars().map(shown).collect()
}

/// Returns `2 errors, 1 warning`. Empty without diagnostics.
fn count_line(diagnostics: &[Diagnostic]) -> String {
    let errors = diagnostics
        .iter()
        .filter(|diagnostic| diagnostic.is_error())
        .count();
    let counted = |number: usize, word: &str| match number {
        0 => None,
        1 => Some(format!("1 {word}")),
        number => Some(format!("{number} {word}s")),
    };
    let parts: Vec<String> = [
        counted(errors, "error"),
        counted(diagnostics.len() - errors, "warning"),
    ]
    .into_iter()
    .flatten()
    .collect();
    if parts.is_empty() {
        String::new()
    } else {
        format!("{}\n", parts.join(", "))
    }
}

/// Adapter of a diagnostic for miette.
struct MietteDiagnostic<'a> {
    diagnostic: &'a Diagnostic,
    code: &'a NamedSource<String>,
    showable: bool,
}

impl fmt::Debug for MietteDiagnostic<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.diagnostic, f)
    }
}

impl fmt::Display for MietteDiagnostic<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.showable && !self.diagnostic.labels.is_empty() {
            let at = Position::of(self.code.inner(), self.diagnostic.start());
            write!(f, "{}:{}:{}: ", self.code.name(), at.line, at.column)?;
        }
        f.write_str(&self.diagnostic.message)
    }
}

impl std::error::Error for MietteDiagnostic<'_> {}

impl miette::Diagnostic for MietteDiagnostic<'_> {
    fn code<'b>(&'b self) -> Option<Box<dyn fmt::Display + 'b>> {
        // The severity is spelled out for searches and for terminals without color.
        let word = match self.diagnostic.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        Some(Box::new(format!("{word}[{}]", self.diagnostic.code)))
    }

    fn severity(&self) -> Option<miette::Severity> {
        Some(match self.diagnostic.severity {
            Severity::Error => miette::Severity::Error,
            Severity::Warning => miette::Severity::Warning,
        })
    }

    fn help<'b>(&'b self) -> Option<Box<dyn fmt::Display + 'b>> {
        let help = self.diagnostic.help.as_ref()?;
        Some(Box::new(help))
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        (self.showable && !self.diagnostic.labels.is_empty()).then_some(self.code)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let len = self.code.inner().len();
        Some(Box::new(self.diagnostic.labels.iter().enumerate().map(
            move |(i, label)| {
                let start = label.span.start.min(len);
                let text = Some(label.text.clone()).filter(|text| !text.is_empty());
                let span = (start, label.span.end.min(len) - start);
                if i == 0 {
                    LabeledSpan::new_primary_with_span(text, span)
                } else {
                    LabeledSpan::new_with_span(text, span)
                }
            },
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_not_printed() {
        for (text, expected) in [
            ("plain ä\n\tx", "plain ä\n\tx"),
            ("a\r\nb", "a \nb"),
            ("\u{1b}[31m\0\u{7f}", "?[31m??"),
            ("\u{9b}31m", "¿31m"),
            ("\u{202e}\u{2066}\u{2028}", "\u{fffd}\u{fffd}\u{fffd}"),
            ("\u{61c}", "¿"),
        ] {
            assert_eq!(printable(text), expected, "{text:?}");
            assert_eq!(printable(text).len(), text.len(), "{text:?}");
        }
    }
}
