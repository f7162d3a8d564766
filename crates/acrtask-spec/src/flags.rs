//! Flags of Docker's commands, read as its command line does: `--name value`, `--name=value`, `-n value`,
//! `-nvalue`, and short ones without a value run together.

use std::ops::Range;

use crate::{
    cmd_line::{Word, WordPart},
    diagnostic::nearest,
    plan::LineRefusal,
    words::refusal,
};

/// A flag that a command knows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flag {
    pub(crate) long: &'static str,
    pub(crate) short: Option<char>,
    pub(crate) takes_value: bool,
}

/// A flag with a value.
pub(crate) const fn value(long: &'static str) -> Flag {
    Flag {
        long,
        short: None,
        takes_value: true,
    }
}

/// A flag that is given or not.
pub(crate) const fn switch(long: &'static str) -> Flag {
    Flag {
        long,
        short: None,
        takes_value: false,
    }
}

impl Flag {
    /// The same with a letter.
    pub(crate) const fn or(mut self, short: char) -> Self {
        self.short = Some(short);
        self
    }
}

/// A flag that was given.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) name: &'static str,
    /// The name as written: `-m` or `--memory`.
    pub(crate) written: String,
    /// Of a switch: `true`, or what stands after `=`.
    pub(crate) value: Word,
    pub(crate) span: Range<usize>,
}

/// A word and its place in the line.
pub(crate) type Placed = (Word, Range<usize>);

/// Where flags end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FlagsEnd {
    /// At the first word that is none, as for `docker run`.
    AtFirstWord,
    /// They may stand anywhere, as for `docker build`.
    Anywhere,
}

/// Tells the flags in `words` from the other words.
pub(crate) fn read(
    command: &str,
    table: &[Flag],
    words: &[Placed],
    end: FlagsEnd,
) -> Result<(Vec<Given>, Vec<Placed>), LineRefusal> {
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
                Some((name, _)) => (name, Some(word.after(2 + name.len() + 1))),
                None => (name, None),
            };
            let flag = table
                .iter()
                .find(|flag| flag.long == name)
                .ok_or_else(|| unknown(command, table, name, span))?;
            let value = match attached {
                Some(value) => value,
                None if flag.takes_value => next(&mut rest, &format!("--{name}"), span)?,
                None => Word::text("true"),
            };
            given.push(Given {
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
                .ok_or_else(|| unknown(command, table, head.trim_start_matches('-'), span))?;
            let attached = word.after(after);
            let name = flag.long;
            if flag.takes_value {
                let value = if attached.parts.is_empty() {
                    next(&mut rest, &format!("-{letter}"), span)?
                } else if attached.head().starts_with('=') {
                    attached.after(1)
                } else {
                    attached
                };
                given.push(Given {
                    name,
                    written: format!("-{letter}"),
                    value,
                    span: span.clone(),
                });
                break;
            }
            given.push(Given {
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

fn next<'w>(
    rest: &mut impl Iterator<Item = &'w Placed>,
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

fn unknown(command: &str, table: &[Flag], name: &str, span: &Range<usize>) -> LineRefusal {
    let dashes = if name.chars().count() == 1 { "-" } else { "--" };
    let mut refused = refusal(
        format!("`{command}` has no flag `{dashes}{name}`"),
        span.clone(),
    );
    refused.help = Some(match nearest(name, table.iter().map(|flag| flag.long)) {
        Some(near) => format!("write `--{near}`"),
        None => format!("see `{command} --help` for the flags there are"),
    });
    refused
}

impl Word {
    /// A word of known text.
    pub fn text(text: impl Into<String>) -> Self {
        Self {
            parts: vec![WordPart::Text(text.into())],
        }
    }

    /// The text, where all of it is known before the run.
    pub fn literal(&self) -> Option<String> {
        self.parts
            .iter()
            .map(|part| match part {
                WordPart::Text(text) => Some(text.as_str()),
                _ => None,
            })
            .collect()
    }

    /// The known text that the word begins with.
    pub(crate) fn head(&self) -> &str {
        match self.parts.first() {
            Some(WordPart::Text(text)) => text,
            _ => "",
        }
    }

    /// The word without its first `bytes`, which are known text.
    pub(crate) fn after(&self, bytes: usize) -> Self {
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
