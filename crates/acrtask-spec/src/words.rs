//! A line taken apart as `sh` would: words, quotes, operators, redirections.
//!
//! Nothing is ever given to a shell. Of the expansions of `sh`, `$HOME`, a leading `~` and
//! `$(date +FORMAT)` are known; every other one is refused with its place. Patterns like `*` stay as they
//! are, which is what `sh` does where nothing matches them.

use std::ops::Range;

use crate::{
    alias::PREDEFINED,
    cmd_line::{Word, WordPart},
    plan::LineRefusal,
};

/// The part of a help that asks for the version with aliases.
pub(crate) const BEGIN_WITH_VERSION: &str = "begin the file with `version: v1.1.0`";

/// A piece of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) kind: TokenKind,
    pub(crate) span: Range<usize>,
}

/// What a piece is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TokenKind {
    Word(Word),
    /// `&&`, `||`, `;`, `|`, or the end of a line.
    Operator(Operator),
    /// `>`, `>>`, `<` with the number before it.
    Redirect {
        fd: Option<u8>,
        how: Redirection,
    },
    /// `2>&1`.
    Duplicate {
        fd: u8,
        onto: u8,
    },
}

/// An operator between commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operator {
    And,
    Or,
    Then,
    Pipe,
    /// A line break that ends a command.
    Newline,
}

/// A redirection to or from a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Redirection {
    Output,
    Append,
    Input,
}

/// Takes `line` apart.
///
/// # Errors
///
/// The first thing that needs a shell, or a quote that does not end. Its help is filled in where it does
/// not depend on what the line is for.
pub(crate) fn split(line: &str) -> Result<Vec<Token>, LineRefusal> {
    Lexer { line, at: 0 }.tokens()
}

pub(crate) fn refusal(message: impl Into<String>, span: Range<usize>) -> LineRefusal {
    LineRefusal {
        message: message.into(),
        span,
        help: None,
    }
}

struct Lexer<'a> {
    line: &'a str,
    at: usize,
}

/// The parts of a word while it is read.
#[derive(Default)]
struct Parts(Vec<WordPart>);

impl Parts {
    fn push(&mut self, c: char) {
        if let Some(WordPart::Text(text)) = self.0.last_mut() {
            text.push(c);
        } else {
            self.0.push(WordPart::Text(c.into()));
        }
    }

    /// A word of quotes with nothing in them is still a word.
    fn touch(&mut self) {
        if self.0.is_empty() {
            self.0.push(WordPart::Text(String::new()));
        }
    }
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.line[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn eat(&mut self, text: &str) -> bool {
        let found = self.rest().starts_with(text);
        if found {
            self.at += text.len();
        }
        found
    }

    fn tokens(mut self) -> Result<Vec<Token>, LineRefusal> {
        let mut tokens = Vec::new();
        loop {
            while self.eat(" ")
                || self.eat("\t")
                || self.eat("\r")
                || self.eat("\\\n")
                || self.eat("\\\r\n")
            {}
            if self.peek() == Some('#') {
                self.at += self.rest().find('\n').unwrap_or(self.rest().len());
            }
            let start = self.at;
            let Some(c) = self.peek() else {
                return Ok(tokens);
            };
            let kind = match c {
                '\n' | ';' | '&' | '|' | '(' | ')' => TokenKind::Operator(self.operator(c)?),
                '<' | '>' => self.redirect(None)?,
                _ => {
                    let digits = self.rest().bytes().take_while(u8::is_ascii_digit).count();
                    let number = self.rest()[..digits].parse::<u8>();
                    match (self.rest()[digits..].starts_with(['<', '>']), number) {
                        (true, Ok(fd)) => {
                            self.at += digits;
                            self.redirect(Some(fd))?
                        }
                        _ => TokenKind::Word(self.word()?),
                    }
                }
            };
            tokens.push(Token {
                kind,
                span: start..self.at,
            });
        }
    }

    fn operator(&mut self, c: char) -> Result<Operator, LineRefusal> {
        let start = self.at;
        for (text, operator) in [
            ("\n", Operator::Newline),
            ("&&", Operator::And),
            ("||", Operator::Or),
            (";", Operator::Then),
            ("|", Operator::Pipe),
        ] {
            if self.eat(text) {
                return Ok(operator);
            }
        }
        self.at += c.len_utf8();
        let message = match c {
            '&' => "`&` would start something in the background of a shell",
            _ => "`(` and `)` group commands of a shell",
        };
        let mut refused = refusal(message, start..self.at);
        if c == '&' {
            refused.help = Some(
                "a step that goes on while others run: `detach: true`; steps side by side: `when: [\"-\"]`; \
                 an `&` that belongs to a word stands in quotes"
                    .to_owned(),
            );
        }
        Err(refused)
    }

    fn redirect(&mut self, fd: Option<u8>) -> Result<TokenKind, LineRefusal> {
        let start = self.at;
        if self.eat("<<") {
            return Err(refusal(
                "`<<` feeds text of the line to a shell's command",
                start..self.at,
            ));
        }
        if self.eat(">&") {
            let digits = self.rest().bytes().take_while(u8::is_ascii_digit).count();
            let onto = self.rest()[..digits].parse().ok();
            self.at += digits;
            let fd = fd.unwrap_or(1);
            return match onto {
                Some(onto @ 1..=2) if (1..=2).contains(&fd) => {
                    Ok(TokenKind::Duplicate { fd, onto })
                }
                _ => Err(refusal(
                    "only `2>&1` and `1>&2` join outputs here",
                    start..self.at,
                )),
            };
        }
        if self.eat("<&") || self.eat("<>") {
            return Err(refusal("this redirection needs a shell", start..self.at));
        }
        let how = if self.eat(">>") {
            Redirection::Append
        } else if self.eat(">|") || self.eat(">") {
            Redirection::Output
        } else {
            self.eat("<");
            Redirection::Input
        };
        let known = match how {
            Redirection::Input => matches!(fd, None | Some(0)),
            _ => matches!(fd, None | Some(1 | 2)),
        };
        if known {
            Ok(TokenKind::Redirect { fd, how })
        } else {
            Err(refusal(
                "only standard input, output (1) and error (2) are redirected here",
                start..self.at,
            ))
        }
    }

    fn word(&mut self) -> Result<Word, LineRefusal> {
        let mut parts = Parts::default();
        if self.peek() == Some('~') {
            let after = self.rest()[1..].chars().next();
            if after.is_none_or(|c| c == '/' || c.is_whitespace()) {
                self.at += 1;
                parts.0.push(WordPart::Home);
            }
        }
        while let Some(c) = self.peek() {
            match c {
                ' ' | '\t' | '\r' | '\n' | ';' | '&' | '|' | '(' | ')' | '<' | '>' => break,
                '\'' => self.single(&mut parts)?,
                '"' => self.double(&mut parts)?,
                '\\' => {
                    self.at += 1;
                    match self.peek() {
                        Some('\n') => self.at += 1,
                        Some(next) => {
                            self.at += next.len_utf8();
                            parts.push(next);
                        }
                        None => parts.push('\\'),
                    }
                }
                '$' | '`' => self.expansion(&mut parts)?,
                _ => {
                    self.at += c.len_utf8();
                    parts.push(c);
                }
            }
        }
        Ok(Word { parts: parts.0 })
    }

    fn single(&mut self, parts: &mut Parts) -> Result<(), LineRefusal> {
        let start = self.at;
        self.at += 1;
        let Some(len) = self.rest().find('\'') else {
            return Err(unfinished("'", start..start + 1));
        };
        self.rest()[..len].chars().for_each(|c| parts.push(c));
        parts.touch();
        self.at += len + 1;
        Ok(())
    }

    fn double(&mut self, parts: &mut Parts) -> Result<(), LineRefusal> {
        let start = self.at;
        self.at += 1;
        loop {
            let Some(c) = self.peek() else {
                return Err(unfinished("\"", start..start + 1));
            };
            match c {
                '"' => {
                    self.at += 1;
                    parts.touch();
                    return Ok(());
                }
                '\\' => {
                    self.at += 1;
                    match self.peek() {
                        Some('\n') => self.at += 1,
                        Some(next @ ('$' | '`' | '"' | '\\')) => {
                            self.at += 1;
                            parts.push(next);
                        }
                        _ => parts.push('\\'),
                    }
                }
                '$' | '`' => self.expansion(parts)?,
                _ => {
                    self.at += c.len_utf8();
                    parts.push(c);
                }
            }
        }
    }

    /// At `$` or a back quote.
    fn expansion(&mut self, parts: &mut Parts) -> Result<(), LineRefusal> {
        let start = self.at;
        let rest = self.rest();
        if let Some(inner) = rest.strip_prefix('`') {
            let len = inner.find('`').map_or(rest.len(), |i| i + 2);
            return Err(refusal(
                "what stands between back quotes is a command of a shell",
                start..start + len,
            ));
        }
        if rest.starts_with("$((") {
            let len = rest.find("))").map_or(rest.len(), |i| i + 2);
            return Err(refusal(
                "`$((...))` is arithmetic of a shell",
                start..start + len,
            ));
        }
        if rest.starts_with("$(") {
            let len = closing(rest).ok_or_else(|| unfinished("$(", start..start + 2))?;
            let inner = &rest[2..len - 1];
            self.at += len;
            if let Some(format) = date_format(inner) {
                parts.0.push(WordPart::Date(format));
                return Ok(());
            }
            return Err(refusal(
                format!("`$({})` is a command of a shell", inner.trim()),
                start..self.at,
            ));
        }
        let name_len = |text: &str| {
            let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
            end.unwrap_or(text.len())
        };
        let after = &rest[1..];
        let (name, len) = if let Some(braced) = after.strip_prefix('{') {
            let end = braced
                .find('}')
                .ok_or_else(|| unfinished("${", start..start + 2))?;
            (&braced[..end], end + 3)
        } else if after.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
            let len = name_len(after);
            (&after[..len], len + 1)
        } else if after.starts_with(|c: char| c.is_ascii_digit() || "?$@*#!-".contains(c)) {
            (&after[..1], 2)
        } else {
            self.at += 1;
            parts.push('$');
            return Ok(());
        };
        self.at += len;
        if name == "HOME" {
            parts.0.push(WordPart::Home);
            return Ok(());
        }
        let mut refused = refusal(
            format!(
                "`{}` would be a shell's to fill in, and no shell reads this line",
                &rest[..len]
            ),
            start..self.at,
        );
        if PREDEFINED.contains(&name) {
            refused.help = Some(format!(
                "write `{{{{.Run.{name}}}}}`, or {BEGIN_WITH_VERSION}, from which on `${name}` is an alias"
            ));
        }
        Err(refused)
    }
}

fn unfinished(what: &str, span: Range<usize>) -> LineRefusal {
    let mut refused = refusal(format!("the `{what}` that begins here does not end"), span);
    refused.help = Some(match what {
        "'" | "\"" => {
            format!("close it with another `{what}`, or write `\\{what}` for the character itself")
        }
        _ => "close it, or put it in single quotes for the text itself".to_owned(),
    });
    refused
}

/// The length of `$(...)` at the beginning of `text`, its quotes and inner brackets respected.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0u32;
    let mut quote = None;
    let mut escaped = false;
    for (i, c) in text.char_indices() {
        match (quote, c) {
            _ if escaped => escaped = false,
            (Some('\''), '\'') | (Some('"'), '"') => quote = None,
            (None | Some('"'), '\\') => escaped = true,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '(') => depth += 1,
            (None, ')') => {
                depth -= 1;
                if depth == 0 {
                    return Some(i + 1);
                }
            }
            _ => {}
        }
    }
    None
}

/// The format of `date +FORMAT`; with `-u`, which changes nothing here, because the clock is in UTC.
fn date_format(inner: &str) -> Option<String> {
    let tokens = Lexer { line: inner, at: 0 }.tokens().ok()?;
    let words: Option<Vec<String>> = tokens
        .iter()
        .map(|token| match &token.kind {
            TokenKind::Word(word) => word.literal(),
            _ => None,
        })
        .collect();
    let words = words?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let format = match words.as_slice() {
        ["date", format] | ["date", "-u" | "--utc", format] => format,
        _ => return None,
    };
    format.strip_prefix('+').map(str::to_owned)
}

/// `text` as one word of a shell, in single quotes.
pub(crate) fn single_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        split(line)
            .unwrap()
            .into_iter()
            .map(|token| match token.kind {
                TokenKind::Word(word) => word
                    .literal()
                    .unwrap_or_else(|| format!("{:?}", word.parts)),
                other => format!("<{other:?}>"),
            })
            .collect()
    }

    /// Each line was given to `sh -c 'printf "%s\n" LINE'` to see what it makes of it.
    #[test]
    fn splits_as_sh_does() {
        for (line, expected) in [
            ("a b\tc", vec!["a", "b", "c"]),
            ("a\\ b", vec!["a b"]),
            ("a \\\n b", vec!["a", "b"]),
            ("a\\\nb", vec!["ab"]),
            ("'a b'\"c d\"e", vec!["a bc de"]),
            ("'' \"\"", vec!["", ""]),
            ("\"a\\\"b\\c\\\\d\"", vec!["a\"b\\c\\d"]),
            ("'a\\'", vec!["a\\"]),
            ("C:\\build", vec!["C:build"]),
            ("a # b", vec!["a"]),
            ("a#b", vec!["a#b"]),
            ("a$ \"$\" $/", vec!["a$", "$", "$/"]),
            ("x=* [a]? {0}", vec!["x=*", "[a]?", "{0}"]),
            (
                "2x 10 a2>b",
                vec![
                    "2x",
                    "10",
                    "a2",
                    "<Redirect { fd: None, how: Output }>",
                    "b",
                ],
            ),
        ] {
            assert_eq!(words(line), expected, "{line}");
        }
    }

    #[test]
    fn knows_home_and_date() {
        for (line, expected) in [
            ("$HOME", vec![WordPart::Home]),
            (
                "\"${HOME}/x\"",
                vec![WordPart::Home, WordPart::Text("/x".into())],
            ),
            ("~/x", vec![WordPart::Home, WordPart::Text("/x".into())]),
            (
                "a$(date +%F)",
                vec![WordPart::Text("a".into()), WordPart::Date("%F".into())],
            ),
            (
                "\"$(date \"+%Y %m\")\"",
                vec![WordPart::Date("%Y %m".into())],
            ),
        ] {
            let tokens = split(line).unwrap();
            assert_eq!(tokens.len(), 1);
            assert_eq!(
                tokens[0].kind,
                TokenKind::Word(Word { parts: expected }),
                "{line}"
            );
        }
    }

    #[test]
    fn refuses_with_a_place() {
        for (line, span) in [
            ("a $X", 2..4),
            ("a \"x${Y}\"", 4..8),
            ("a `b` c", 2..5),
            ("a $(b c) d", 2..8),
            ("a $((1+2))", 2..10),
            ("a & b", 2..3),
            ("(a)", 0..1),
            ("a << E", 2..4),
            ("a 'b", 2..3),
            ("a 3> b", 3..4),
            ("a $?", 2..4),
        ] {
            assert_eq!(split(line).unwrap_err().span, span, "{line}");
        }
    }
}
