//! Splits a line as `sh` does: words, quotes, operators, redirections.
//!
//! No shell ever reads the line. Of the expansions of `sh`, `$HOME`, a leading `~` and `$(date
//! +FORMAT)` are supported. Any other expansion is refused with its span. Patterns such as `*` stay
//! as they are, as in `sh` if no file matches.

use std::ops::Range;

use crate::{
    alias::PREDEFINED,
    cmd_line::{Word, WordPart},
    plan::LineRefusal,
};

/// Part of a help text that requests the version with aliases.
pub(crate) const BEGIN_WITH_VERSION: &str = "begin the file with `version: v1.1.0`";

/// A token of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) kind: TokenKind,
    pub(crate) span: Range<usize>,
}

/// The kind of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TokenKind {
    Word(Word),
    /// `&&`, `||`, `;`, `|`, or the end of a line.
    Operator(Operator),
    /// `>`, `>>` or `<`, with the file descriptor before it.
    Redirect {
        fd: Option<u8>,
        redirection: Redirection,
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

/// Splits `line` into tokens.
///
/// # Errors
///
/// Returns the first part that needs a shell, or a quote that is not closed. Its help is set if it
/// does not depend on the kind of line.
pub(crate) fn tokenize(line: &str) -> Result<Vec<Token>, LineRefusal> {
    Lexer { line, at: 0 }.read_tokens()
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

/// The parts of a word that is being read.
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

    /// Ensures that the word has a part, because empty quotes are a word too.
    fn ensure_text(&mut self) {
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

    fn read_tokens(mut self) -> Result<Vec<Token>, LineRefusal> {
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
                '\n' | ';' | '&' | '|' | '(' | ')' => TokenKind::Operator(self.read_operator(c)?),
                '<' | '>' => self.read_redirect(None)?,
                _ => {
                    let digits = self.rest().bytes().take_while(u8::is_ascii_digit).count();
                    let number = self.rest()[..digits].parse::<u8>();
                    match (self.rest()[digits..].starts_with(['<', '>']), number) {
                        (true, Ok(fd)) => {
                            self.at += digits;
                            self.read_redirect(Some(fd))?
                        }
                        _ => TokenKind::Word(self.read_word()?),
                    }
                }
            };
            tokens.push(Token {
                kind,
                span: start..self.at,
            });
        }
    }

    fn read_operator(&mut self, c: char) -> Result<Operator, LineRefusal> {
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
                 an `&` that is part of a word needs quotes"
                    .to_owned(),
            );
        }
        Err(refused)
    }

    fn read_redirect(&mut self, fd: Option<u8>) -> Result<TokenKind, LineRefusal> {
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
        let redirection = if self.eat(">>") {
            Redirection::Append
        } else if self.eat(">|") || self.eat(">") {
            Redirection::Output
        } else {
            self.eat("<");
            Redirection::Input
        };
        let is_supported = match redirection {
            Redirection::Input => matches!(fd, None | Some(0)),
            _ => matches!(fd, None | Some(1 | 2)),
        };
        if is_supported {
            Ok(TokenKind::Redirect { fd, redirection })
        } else {
            Err(refusal(
                "only standard input, output (1) and error (2) are redirected here",
                start..self.at,
            ))
        }
    }

    fn read_word(&mut self) -> Result<Word, LineRefusal> {
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
                '\'' => self.read_single_quoted(&mut parts)?,
                '"' => self.read_double_quoted(&mut parts)?,
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
                '$' | '`' => self.read_expansion(&mut parts)?,
                _ => {
                    self.at += c.len_utf8();
                    parts.push(c);
                }
            }
        }
        Ok(Word { parts: parts.0 })
    }

    fn read_single_quoted(&mut self, parts: &mut Parts) -> Result<(), LineRefusal> {
        let start = self.at;
        self.at += 1;
        let Some(len) = self.rest().find('\'') else {
            return Err(unfinished("'", start..start + 1));
        };
        self.rest()[..len].chars().for_each(|c| parts.push(c));
        parts.ensure_text();
        self.at += len + 1;
        Ok(())
    }

    fn read_double_quoted(&mut self, parts: &mut Parts) -> Result<(), LineRefusal> {
        let start = self.at;
        self.at += 1;
        loop {
            let Some(c) = self.peek() else {
                return Err(unfinished("\"", start..start + 1));
            };
            match c {
                '"' => {
                    self.at += 1;
                    parts.ensure_text();
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
                '$' | '`' => self.read_expansion(parts)?,
                _ => {
                    self.at += c.len_utf8();
                    parts.push(c);
                }
            }
        }
    }

    /// Reads the expansion at `$` or a back quote.
    fn read_expansion(&mut self, parts: &mut Parts) -> Result<(), LineRefusal> {
        let start = self.at;
        let rest = self.rest();
        if let Some(inner) = rest.strip_prefix('`') {
            let len = inner.find('`').map_or(rest.len(), |i| i + 2);
            return Err(refusal(
                "text between back quotes is a command of a shell",
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
            let len = substitution_len(rest).ok_or_else(|| unfinished("$(", start..start + 2))?;
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

/// Returns the length of `$(...)` at the start of `text`. Skips quotes and inner brackets.
fn substitution_len(text: &str) -> Option<usize> {
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

/// Returns the format of `date +FORMAT`. Accepts `-u`, which has no effect because the clock is in
/// UTC.
fn date_format(inner: &str) -> Option<String> {
    let tokens = Lexer { line: inner, at: 0 }.read_tokens().ok()?;
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

/// Quotes `text` as one word of a shell, in single quotes.
pub(crate) fn single_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split_words(line: &str) -> Vec<String> {
        tokenize(line)
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

    /// The expected words come from `sh -c 'printf "%s\n" LINE'`.
    #[test]
    fn lines_are_split_as_by_sh() {
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
                    "<Redirect { fd: None, redirection: Output }>",
                    "b",
                ],
            ),
        ] {
            assert_eq!(split_words(line), expected, "{line}");
        }
    }

    #[test]
    fn home_and_date_are_expanded() {
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
            let tokens = tokenize(line).unwrap();
            assert_eq!(tokens.len(), 1);
            assert_eq!(
                tokens[0].kind,
                TokenKind::Word(Word { parts: expected }),
                "{line}"
            );
        }
    }

    #[test]
    fn refusals_carry_the_span_of_the_cause() {
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
            assert_eq!(tokenize(line).unwrap_err().span, span, "{line}");
        }
    }
}
