//! Lines of a log as rows of a page.

use std::{collections::HashMap, fmt};

use crate::{Span, encode_query, parse_line, show_hidden, text::write_escaped};

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
            _ => f.write_str("<i>… the rest of the line is in the raw log</i>"),
        }
    }
}

impl askama::filters::HtmlSafe for LogContent<'_> {}

/// Numbers the lines of one attempt, from its first line on.
#[derive(Debug, Default)]
pub struct LogLines {
    counts: HashMap<String, u64>,
}

impl LogLines {
    /// Counts a line of the text form of a log, `STEP | TEXT`. Returns its number within the step.
    /// Call [`Self::parse`] only for lines of the page.
    pub fn count(&mut self, line: &str) -> u64 {
        let (step, _) = split_step(line);
        match self.counts.get_mut(step) {
            Some(count) => {
                *count += 1;
                *count
            }
            None => {
                self.counts.insert(step.to_owned(), 1);
                1
            }
        }
    }

    /// Parses a counted line.
    pub fn parse(line: &str, number: u64) -> LogLine {
        let (step, text) = split_step(line);
        let (spans, dropped) = parse_line(text);
        LogLine {
            step: step.to_owned(),
            number,
            spans,
            dropped,
        }
    }
}

/// Splits `STEP | TEXT`. The step is empty for a line of the run. Ids of steps have no white space.
fn split_step(line: &str) -> (&str, &str) {
    match line.split_once(" | ") {
        Some((step, text)) if !step.is_empty() && !step.contains(char::is_whitespace) => {
            (step, text)
        }
        _ => ("", line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_numbered_within_their_step() {
        let mut lines = LogLines::default();
        let all = ["3 steps", "build | a", "test | b", "build | c", "x y | z"];
        let found: Vec<String> = all
            .iter()
            .map(|line| {
                let number = lines.count(line);
                LogLines::parse(line, number).id()
            })
            .collect();
        assert_eq!(found, [":L1", "build:L1", "test:L1", "build:L2", ":L2"]);
    }

    #[test]
    fn content_is_inert_and_styled() {
        let line = "build | \x1b[31m<img src=x onerror=alert(1)>\x1b[0m\u{202e}";
        let line = LogLines::parse(line, 7);
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
