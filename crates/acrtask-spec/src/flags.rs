//! Parser of the flags of Docker commands. Supports `--name value`, `--name=value`, `-n value`,
//! `-nvalue`, and combined short flags without values.

use std::ops::Range;

use crate::{
    cmd_line::{Word, WordPart},
    diagnostic::find_nearest,
    lexer::refusal,
    plan::LineRefusal,
};

/// A flag of a command.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flag {
    pub(crate) long: &'static str,
    pub(crate) short: Option<char>,
    pub(crate) takes_value: bool,
}

/// Defines a flag with a value.
pub(crate) const fn value(long: &'static str) -> Flag {
    Flag {
        long,
        short: None,
        takes_value: true,
    }
}

/// Defines a flag without a value.
pub(crate) const fn switch(long: &'static str) -> Flag {
    Flag {
        long,
        short: None,
        takes_value: false,
    }
}

impl Flag {
    /// Adds a one-letter form.
    pub(crate) const fn with_short(mut self, short: char) -> Self {
        self.short = Some(short);
        self
    }
}

/// A flag in a line.
#[derive(Debug)]
pub(crate) struct GivenFlag {
    pub(crate) name: &'static str,
    /// Name as written: `-m` or `--memory`.
    pub(crate) written: String,
    /// Value of the flag. For a switch: `true`, or the text after `=`.
    pub(crate) value: Word,
    pub(crate) span: Range<usize>,
}

/// A word and its range in the line.
pub(crate) type PlacedWord = (Word, Range<usize>);

/// Position at which flags end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FlagsEnd {
    /// Flags end at the first other word, as in `docker run`.
    AtFirstWord,
    /// Flags may be anywhere, as in `docker build`.
    Anywhere,
}

/// Separates the flags in `words` from the other words.
pub(crate) fn split_flags(
    command: &str,
    table: &[Flag],
    words: &[PlacedWord],
    end: FlagsEnd,
) -> Result<(Vec<GivenFlag>, Vec<PlacedWord>), LineRefusal> {
    let mut given = Vec::new();
    let mut others = Vec::new();
    let mut rest = words.iter();
    while let Some((word, span)) = rest.next() {
        let head = word.head();
        if head == "--" && word.parts.len() == 1 {
            break;
        }
        if !head.starts_with('-') || head == "-" {
            others.push((word.clone(), span.clone()));
            if end == FlagsEnd::AtFirstWord {
                break;
            }
            continue;
        }
        if let Some(name) = head.strip_prefix("--") {
            let (name, attached) = match name.split_once('=') {
                Some((name, _)) => (name, Some(word.without_prefix(2 + name.len() + 1))),
                None => (name, None),
            };
            let flag = table
                .iter()
                .find(|flag| flag.long == name)
                .ok_or_else(|| unknown_flag(command, table, name, span))?;
            let value = match attached {
                Some(value) => value,
                None if flag.takes_value => next_value(&mut rest, &format!("--{name}"), span)?,
                None => Word::text("true"),
            };
            given.push(GivenFlag {
                name: flag.long,
                written: format!("--{name}"),
                value,
                span: span.clone(),
            });
            continue;
        }
        let mut at = 1;
        while let Some(letter) = head[at..].chars().next() {
            let after = at + letter.len_utf8();
            let flag = table
                .iter()
                .find(|flag| flag.short == Some(letter))
                .ok_or_else(|| unknown_flag(command, table, head.trim_start_matches('-'), span))?;
            let attached = word.without_prefix(after);
            let name = flag.long;
            if flag.takes_value {
                let value = if attached.parts.is_empty() {
                    next_value(&mut rest, &format!("-{letter}"), span)?
                } else if attached.head().starts_with('=') {
                    attached.without_prefix(1)
                } else {
                    attached
                };
                given.push(GivenFlag {
                    name,
                    written: format!("-{letter}"),
                    value,
                    span: span.clone(),
                });
                break;
            }
            given.push(GivenFlag {
                name,
                written: format!("-{letter}"),
                value: Word::text("true"),
                span: span.clone(),
            });
            at = after;
        }
    }
    others.extend(rest.cloned());
    Ok((given, others))
}

fn next_value<'w>(
    rest: &mut impl Iterator<Item = &'w PlacedWord>,
    flag: &str,
    span: &Range<usize>,
) -> Result<Word, LineRefusal> {
    rest.next()
        .map(|(word, _)| word.clone())
        .ok_or_else(|| LineRefusal {
            message: format!("`{flag}` needs a value"),
            span: span.clone(),
            help: Some(format!("write it after the flag: `{flag} VALUE`")),
        })
}

fn unknown_flag(command: &str, table: &[Flag], name: &str, span: &Range<usize>) -> LineRefusal {
    let dashes = if name.chars().count() == 1 { "-" } else { "--" };
    let mut refused = refusal(
        format!("`{command}` has no flag `{dashes}{name}`"),
        span.clone(),
    );
    refused.help = Some(
        match find_nearest(name, table.iter().map(|flag| flag.long)) {
            Some(near) => format!("write `--{near}`"),
            None => format!("see `{command} --help` for the flags there are"),
        },
    );
    refused
}

impl Word {
    /// Creates a word of literal text.
    pub fn text(text: impl Into<String>) -> Self {
        Self {
            parts: vec![WordPart::Text(text.into())],
        }
    }

    /// Returns the text of the word. `None` if a part is expanded only in the run.
    pub fn literal(&self) -> Option<String> {
        self.parts
            .iter()
            .map(|part| match part {
                WordPart::Text(text) => Some(text.as_str()),
                _ => None,
            })
            .collect()
    }

    /// Returns the literal text at the start of the word.
    pub(crate) fn head(&self) -> &str {
        match self.parts.first() {
            Some(WordPart::Text(text)) => text,
            _ => "",
        }
    }

    /// Returns the word without its first `bytes`, which must be literal text.
    pub(crate) fn without_prefix(&self, bytes: usize) -> Self {
        let mut parts = self.parts.clone();
        if let Some(WordPart::Text(text)) = parts.first_mut() {
            *text = text.get(bytes..).unwrap_or_default().to_owned();
            if text.is_empty() && (parts.len() > 1 || bytes == self.head().len()) {
                parts.remove(0);
            }
        }
        Self { parts }
    }
}
