//! Splits a template into tokens, as Go's `text/template` does.
//!
//! The whole text is split at once. A fault ends the list with an `Error` token, which the parser
//! reports when it reaches it. So faults earlier in the text are reported first.

use crate::{ast::Span, error::TemplateErrorKind};

/// Maximum number of tokens in a template. Each run of spaces in an action is a token.
const MAX_TOKENS: usize = 200_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keyword {
    Block,
    Break,
    Continue,
    Define,
    Else,
    End,
    If,
    Nil,
    Range,
    Template,
    With,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TokenKind {
    Text,
    LeftDelim,
    RightDelim,
    Space,
    Assign,
    Declare,
    Pipe,
    LeftParen,
    RightParen,
    /// A printable ASCII character. Only the comma has a meaning, in `range $i, $e`.
    Char,
    Bool,
    CharConstant,
    Dot,
    Field,
    Identifier,
    Number,
    RawString,
    Str,
    Variable,
    Keyword(Keyword),
    Eof,
    Error(Box<LexError>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LexError {
    pub(crate) kind: TemplateErrorKind,
    pub(crate) message: String,
    pub(crate) help: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) kind: TokenKind,
    pub(crate) span: Span,
}

const SPACES: [char; 4] = [' ', '\t', '\r', '\n'];

fn is_space(c: char) -> bool {
    SPACES.contains(&c)
}

pub(crate) fn is_alphanumeric(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

/// Formats a character like Go's `%#U`.
pub(crate) fn describe_char(c: Option<char>) -> String {
    match c {
        None => "end of text".to_owned(),
        Some(c) if c.is_control() => format!("U+{:04X}", u32::from(c)),
        Some(c) => format!("U+{:04X} '{c}'", u32::from(c)),
    }
}

pub(crate) struct Lexer<'a> {
    text: &'a str,
    position: usize,
    start: usize,
    tokens: Vec<Token>,
}

impl<'a> Lexer<'a> {
    /// Splits `text` into tokens. The last one is `Eof` or `Error`.
    pub(crate) fn tokenize(text: &'a str) -> Vec<Token> {
        let mut lexer = Self {
            text,
            position: 0,
            start: 0,
            tokens: Vec::new(),
        };
        if let Err(error) = lexer.run() {
            let span = lexer.span();
            lexer.tokens.push(Token {
                kind: TokenKind::Error(Box::new(error)),
                span,
            });
        }
        lexer.tokens
    }

    fn rest(&self) -> &'a str {
        &self.text[self.position..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.peek();
        self.position += next.map_or(0, char::len_utf8);
        next
    }

    fn accept(&mut self, valid: &str) -> bool {
        let accepted = self.peek().is_some_and(|c| valid.contains(c));
        if accepted {
            self.next();
        }
        accepted
    }

    fn accept_run(&mut self, valid: &str) {
        while self.accept(valid) {}
    }

    #[allow(
        clippy::cast_possible_truncation,
        reason = "the parser refuses texts that do not fit 32 bits"
    )]
    fn span(&self) -> Span {
        Span {
            start: self.start as u32,
            end: self.position as u32,
        }
    }

    fn emit(&mut self, kind: TokenKind) {
        let span = self.span();
        self.tokens.push(Token { kind, span });
        self.start = self.position;
    }

    fn run(&mut self) -> Result<(), LexError> {
        loop {
            let Some(length) = self.rest().find("{{") else {
                self.position = self.text.len();
                if self.position > self.start {
                    self.emit(TokenKind::Text);
                }
                self.emit(TokenKind::Eof);
                return Ok(());
            };
            let text = &self.rest()[..length];
            let delimiter = self.position + length;
            let trims = has_left_trim(&self.text[delimiter + 2..]);
            let kept = if trims {
                text.trim_end_matches(SPACES)
            } else {
                text
            };
            self.position += kept.len();
            if !kept.is_empty() {
                self.emit(TokenKind::Text);
            }
            self.position = delimiter + 2;
            let content = self.position + if trims { 2 } else { 0 };
            if self.text[content..].starts_with("/*") {
                self.start = delimiter;
                self.read_comment(content)?;
            } else {
                self.start = delimiter;
                self.emit(TokenKind::LeftDelim);
                self.position = content;
                self.start = content;
                self.read_action(delimiter)?;
            }
        }
    }

    fn read_comment(&mut self, content: usize) -> Result<(), LexError> {
        self.position = content + 2;
        let Some(length) = self.rest().find("*/") else {
            return Err(lex_error(
                "unclosed comment",
                Some("a comment ends with `*/}}`"),
            ));
        };
        self.position += length + 2;
        let rest = self.rest();
        let trims = has_right_trim(rest);
        if !rest[if trims { 2 } else { 0 }..].starts_with("}}") {
            return Err(lex_error(
                "comment ends before closing delimiter",
                Some("`}}` follows right after `*/`"),
            ));
        }
        self.skip_delimiter(trims);
        self.start = self.position;
        Ok(())
    }

    /// Skips the right delimiter and, if it trims, the spaces after it.
    fn skip_delimiter(&mut self, trims: bool) {
        self.position += if trims { 4 } else { 2 };
        if trims {
            let rest = self.rest();
            self.position += rest.len() - rest.trim_start_matches(SPACES).len();
        }
    }

    /// Splits the inside of an action and its right delimiter. The `{{` is at `opening`.
    fn read_action(&mut self, opening: usize) -> Result<(), LexError> {
        let mut parens = 0_usize;
        loop {
            let rest = self.rest();
            let trims = has_right_trim(rest) && rest[2..].starts_with("}}");
            if trims || rest.starts_with("}}") {
                if parens > 0 {
                    return Err(lex_error("unclosed left paren", None));
                }
                if trims {
                    self.position += 2;
                    self.start = self.position;
                }
                self.position += 2;
                self.emit(TokenKind::RightDelim);
                if trims {
                    let rest = self.rest();
                    self.position += rest.len() - rest.trim_start_matches(SPACES).len();
                    self.start = self.position;
                }
                return Ok(());
            }
            if self.tokens.len() > MAX_TOKENS {
                let message = format!("the template has more than {MAX_TOKENS} words and spaces");
                return Err(LexError {
                    kind: TemplateErrorKind::Limit,
                    message,
                    help: None,
                });
            }
            let Some(c) = self.next() else {
                // The error covers the unclosed action, not the end of the file.
                self.start = opening;
                self.position = opening + 2;
                return Err(lex_error(
                    "unclosed action",
                    Some("an action ends with `}}`"),
                ));
            };
            match c {
                c if is_space(c) => self.read_space(),
                '=' => self.emit(TokenKind::Assign),
                ':' => {
                    if !self.accept("=") {
                        return Err(lex_error("expected :=", None));
                    }
                    self.emit(TokenKind::Declare);
                }
                '|' => self.emit(TokenKind::Pipe),
                '"' => self.read_quoted('"', "unterminated quoted string", TokenKind::Str)?,
                '\'' => self.read_quoted(
                    '\'',
                    "unterminated character constant",
                    TokenKind::CharConstant,
                )?,
                '`' => self.read_raw_string()?,
                '$' => self.read_field_or_variable(TokenKind::Variable)?,
                '.' if !self.peek().is_some_and(|c| c.is_ascii_digit()) => {
                    self.read_field_or_variable(TokenKind::Field)?
                }
                '.' | '+' | '-' | '0'..='9' => {
                    self.position -= 1;
                    self.read_number()?;
                }
                c if is_alphanumeric(c) => self.read_identifier()?,
                '(' => {
                    parens += 1;
                    self.emit(TokenKind::LeftParen);
                }
                ')' => {
                    let Some(left) = parens.checked_sub(1) else {
                        return Err(lex_error("unexpected right paren", None));
                    };
                    parens = left;
                    self.emit(TokenKind::RightParen);
                }
                c if c.is_ascii_graphic() => self.emit(TokenKind::Char),
                c => {
                    return Err(lex_error(
                        &format!(
                            "unrecognized character in action: {}",
                            describe_char(Some(c))
                        ),
                        matches!(c, '\u{201c}' | '\u{201d}' | '\u{2018}' | '\u{2019}')
                            .then_some("a text is written between straight quotes: \"text\""),
                    ));
                }
            }
        }
    }

    /// Reads a run of spaces after its first one. Leaves the last one if a trimming delimiter
    /// starts with it.
    fn read_space(&mut self) {
        while let Some(c) = self.peek().filter(|c| is_space(*c)) {
            if has_right_trim(self.rest()) && self.rest()[2..].starts_with("}}") {
                break;
            }
            self.position += c.len_utf8();
        }
        self.emit(TokenKind::Space);
    }

    /// Returns `true` if a word may end here.
    fn at_terminator(&self) -> bool {
        match self.peek() {
            None | Some('.' | ',' | '|' | ':' | ')' | '(') => true,
            Some(c) => is_space(c) || self.rest().starts_with("}}"),
        }
    }

    fn read_identifier(&mut self) -> Result<(), LexError> {
        while self.peek().is_some_and(is_alphanumeric) {
            self.next();
        }
        self.expect_terminator()?;
        let kind = match &self.text[self.start..self.position] {
            "block" => TokenKind::Keyword(Keyword::Block),
            "break" => TokenKind::Keyword(Keyword::Break),
            "continue" => TokenKind::Keyword(Keyword::Continue),
            "define" => TokenKind::Keyword(Keyword::Define),
            "else" => TokenKind::Keyword(Keyword::Else),
            "end" => TokenKind::Keyword(Keyword::End),
            "if" => TokenKind::Keyword(Keyword::If),
            "nil" => TokenKind::Keyword(Keyword::Nil),
            "range" => TokenKind::Keyword(Keyword::Range),
            "template" => TokenKind::Keyword(Keyword::Template),
            "with" => TokenKind::Keyword(Keyword::With),
            "true" | "false" => TokenKind::Bool,
            _ => TokenKind::Identifier,
        };
        self.emit(kind);
        Ok(())
    }

    fn read_field_or_variable(&mut self, kind: TokenKind) -> Result<(), LexError> {
        if self.at_terminator() {
            self.emit(if kind == TokenKind::Variable {
                TokenKind::Variable
            } else {
                TokenKind::Dot
            });
            return Ok(());
        }
        while self.peek().is_some_and(is_alphanumeric) {
            self.next();
        }
        self.expect_terminator()?;
        self.emit(kind);
        Ok(())
    }

    fn expect_terminator(&mut self) -> Result<(), LexError> {
        if self.at_terminator() {
            return Ok(());
        }
        let next = self.peek();
        let help = match next {
            Some('-') => self.dashed_key_help(),
            Some('}') => Some("an action ends with `}}`".to_owned()),
            _ => None,
        };
        self.start = self.position;
        self.next();
        Err(LexError {
            kind: TemplateErrorKind::Parse,
            message: format!("bad character {}", describe_char(next)),
            help,
        })
    }

    /// Returns help for a key with a dash, such as `.Values.my-key`.
    fn dashed_key_help(&self) -> Option<String> {
        let is_key = |c: char| is_alphanumeric(c) || c == '-';
        let tail = self.rest();
        let tail = &tail[..tail.find(|c| !is_key(c)).unwrap_or(tail.len())];
        let before = &self.text[..self.position];
        let path_start = before
            .char_indices()
            .rev()
            .take_while(|(_, c)| is_alphanumeric(*c) || matches!(c, '.' | '$'))
            .last()
            .map(|(index, _)| index)?;
        let (parent, key) = before[path_start..].rsplit_once('.')?;
        let parent = if parent.is_empty() { "." } else { parent };
        Some(format!(
            "a key with a dash is read with `index`: {{{{index {parent} \"{key}{tail}\"}}}}"
        ))
    }

    fn read_number(&mut self) -> Result<(), LexError> {
        let well_formed = self.scan_number();
        if well_formed && matches!(self.peek(), Some('+' | '-')) {
            // `1+2i` is a complex number in Go. Complex numbers are left out.
            self.scan_number();
            return Err(self.bad_number());
        }
        if !well_formed {
            return Err(self.bad_number());
        }
        self.emit(TokenKind::Number);
        Ok(())
    }

    fn bad_number(&self) -> LexError {
        let text = &self.text[self.start..self.position];
        lex_error(
            &format!("bad number syntax: {}", crate::format::quote(text)),
            text.ends_with(|c: char| c.is_alphabetic())
                .then_some("a text is written between quotes: \"text\""),
        )
    }

    fn scan_number(&mut self) -> bool {
        const DECIMAL: &str = "0123456789_";
        const HEX: &str = "0123456789abcdefABCDEF_";
        self.accept("+-");
        let mut digits = DECIMAL;
        if self.accept("0") {
            if self.accept("xX") {
                digits = HEX;
            } else if self.accept("oO") {
                digits = "01234567_";
            } else if self.accept("bB") {
                digits = "01_";
            }
        }
        self.accept_run(digits);
        if self.accept(".") {
            self.accept_run(digits);
        }
        if (digits == DECIMAL && self.accept("eE")) || (digits == HEX && self.accept("pP")) {
            self.accept("+-");
            self.accept_run(DECIMAL);
        }
        if self.peek().is_some_and(is_alphanumeric) {
            self.next();
            return false;
        }
        true
    }

    fn read_quoted(&mut self, quote: char, message: &str, kind: TokenKind) -> Result<(), LexError> {
        loop {
            match self.next() {
                Some('\\') if self.peek().is_some_and(|c| c != '\n') => {
                    self.next();
                }
                None | Some('\\' | '\n') => return Err(lex_error(message, None)),
                Some(c) if c == quote => break,
                Some(_) => {}
            }
        }
        self.emit(kind);
        Ok(())
    }

    fn read_raw_string(&mut self) -> Result<(), LexError> {
        let Some(length) = self.rest().find('`') else {
            self.position = self.start + 1;
            return Err(lex_error("unterminated raw quoted string", None));
        };
        self.position += length + 1;
        self.emit(TokenKind::RawString);
        Ok(())
    }
}

fn has_left_trim(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.first() == Some(&b'-') && bytes.get(1).is_some_and(|b| is_space(char::from(*b)))
}

fn has_right_trim(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(|b| is_space(char::from(*b))) && bytes.get(1) == Some(&b'-')
}

fn lex_error(message: &str, help: Option<&str>) -> LexError {
    LexError {
        kind: TemplateErrorKind::Parse,
        message: message.to_owned(),
        help: help.map(str::to_owned),
    }
}
