//! Lines of a log as rows of a page.

use std::fmt;

use crate::{
    Span, encode_query, parse_line, show_hidden,
    text::{push_visible_in_line, write_escaped},
};

/// Text after a cut line.
const REST: &str = "… the rest of the line is in the raw log";

/// A line of a log. Its address is `STEP:LN` within its attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// Step that printed the line. Empty for a line of the run itself.
    pub step: String,
    /// Number of the line among those of its step, from 1.
    pub number: u64,
    spans: Vec<Span>,
    dropped: usize,
}

impl LogLine {
    /// Creates the row of a line with its number within its step.
    pub fn new(step: &str, number: u64, text: &str) -> Self {
        let (spans, dropped) = parse_line(text);
        Self {
            step: step.to_owned(),
            number,
            spans,
            dropped,
        }
    }

    /// Returns the id of the element.
    pub fn id(&self) -> String {
        format!("{}:L{}", self.step, self.number)
    }

    /// Returns the fragment of a URL that leads to the line.
    pub fn fragment(&self) -> String {
        encode_query(&self.id())
    }

    /// Returns the label of the link to the line.
    pub fn label(&self) -> String {
        let step = show_hidden(&self.step);
        format!("{step} {}", self.number).trim_start().to_owned()
    }

    /// Returns pieces of the line: CSS classes and visible text, not escaped.
    pub fn pieces(&self) -> Vec<(&str, String)> {
        let pieces = self.spans.iter().map(|span| {
            let mut text = String::new();
            for c in span.text.chars() {
                push_visible_in_line(&mut text, c);
            }
            (span.classes.as_str(), text)
        });
        let mut pieces: Vec<(&str, String)> = pieces.collect();
        if self.dropped > 0 {
            pieces.push(("italic", REST.to_owned()));
        }
        pieces
    }

    /// Returns the approximate size of the row in a page, in bytes.
    pub fn html_size(&self) -> usize {
        /// Elements of a row without its names and its text.
        const ELEMENTS: usize = 40;
        let content = self.content().to_string();
        ELEMENTS + self.id().len() + self.fragment().len() + self.label().len() + content.len()
    }

    /// Returns the text with its styles.
    pub fn content(&self) -> LogContent<'_> {
        LogContent(self)
    }
}

/// Styled text of a line.
#[derive(Debug)]
pub struct LogContent<'l>(&'l LogLine);

impl fmt::Display for LogContent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for span in &self.0.spans {
            if span.classes.is_empty() {
                write_escaped(f, &span.text, true)?;
            } else {
                write!(f, "<span class=\"{}\">", span.classes)?;
                write_escaped(f, &span.text, true)?;
                f.write_str("</span>")?;
            }
        }
        match self.0.dropped {
            0 => Ok(()),
            _ => write!(f, "<i>{REST}</i>"),
        }
    }
}

impl askama::filters::HtmlSafe for LogContent<'_> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_inert_and_styled() {
        let text = "\x1b[31m<img src=x onerror=alert(1)>\x1b[0m\u{202e}";
        let line = LogLine::new("build", 7, text);
        assert_eq!(
            line.content().to_string(),
            "<span class=\"fg1\">&lt;img src=x onerror=alert(1)&gt;</span>[U+202E]"
        );
        assert_eq!(
            (line.label(), line.fragment()),
            ("build 7".into(), "build%3AL7".into())
        );
    }
}
