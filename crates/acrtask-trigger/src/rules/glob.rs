//! Parser and matcher of one pattern.
//!
//! A pattern becomes a small program, whose states are followed all at once. Invariants: the
//! program has a few bytes per character of the pattern, and matching takes at most one step for
//! each instruction and byte of the text.
//!
//! The syntax is that of the crate `globset` with `literal_separator`. That crate compiles each
//! pattern to a regular expression of up to 100 KiB.

use std::ops::RangeInclusive;

/// Maximum depth of alternatives inside alternatives.
const MAX_DEPTH: usize = 100;
/// Number of bytes and escape sequences that a pattern may have.
pub(super) const MAX_CHARS: usize = 1000;

/// A mistake in the syntax of a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum SyntaxError {
    #[error("unclosed character class; missing ']'")]
    UnclosedClass,
    #[error("invalid range; '{0}' > '{1}'")]
    InvalidRange(char, char),
    #[error("unopened alternate group; missing '{{' (maybe escape '}}' with '[}}]'?)")]
    UnopenedAlternates,
    #[error("unclosed alternate group; missing '}}' (maybe escape '{{' with '[{{]'?)")]
    UnclosedAlternates,
    #[error("alternate groups nested too deeply")]
    TooManyNestedAlternates,
    #[error("dangling '\\'")]
    DanglingEscape,
    #[error("the pattern is longer than {MAX_CHARS} characters")]
    TooLong,
}

/// A set of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ByteSet([u64; 4]);

impl ByteSet {
    fn contains(&self, byte: u8) -> bool {
        self.0[usize::from(byte >> 6)] & (1 << (byte & 63)) != 0
    }

    fn insert(&mut self, bytes: RangeInclusive<u8>) {
        for byte in bytes {
            self.0[usize::from(byte >> 6)] |= 1 << (byte & 63);
        }
    }

    /// Creates the set of a class, which never contains `/`.
    fn of_class(negated: bool, ranges: &[(char, char)]) -> Self {
        let mut set = Self([0; 4]);
        for &(start, end) in ranges {
            let (mut first, mut last) = ([0; 4], [0; 4]);
            let first = start.encode_utf8(&mut first).as_bytes();
            let last = end.encode_utf8(&mut last).as_bytes();
            // A class matches one byte. Characters of several bytes add each of them.
            for &byte in first.iter().chain(last) {
                set.insert(byte..=byte);
            }
            if start != end {
                set.insert(first[first.len() - 1]..=last[0]);
            }
        }
        if negated {
            set.0 = set.0.map(|bits| !bits);
        }
        set.0[usize::from(b'/' >> 6)] &= !(1 << (b'/' & 63));
        set
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Token {
    Literal(char),
    /// `?`
    One,
    /// `*`
    Star,
    /// `**/` at the start, or the whole pattern `**`.
    Prefix,
    /// `/**` at the end.
    Suffix,
    /// `/**/`
    Middle,
    Class(ByteSet),
    Alternates(Vec<Vec<Token>>),
}

impl Token {
    /// Returns `true` for alternatives without content, such as `{,}`.
    fn is_empty(&self) -> bool {
        matches!(self, Self::Alternates(branches) if branches.iter().flatten().all(Self::is_empty))
    }
}

struct Parser {
    chars: Vec<char>,
    /// Index of the next character.
    next: usize,
    /// Open branches of alternatives. The first one is the pattern itself.
    branches: Vec<Vec<Token>>,
    /// For each open `{`, the index of its first branch.
    open: Vec<usize>,
}

impl Parser {
    fn parse(pattern: &str) -> Result<Vec<Token>, SyntaxError> {
        let mut parser = Self {
            chars: pattern.chars().collect(),
            next: 0,
            branches: vec![Vec::new()],
            open: Vec::new(),
        };
        if parser.chars.len() > MAX_CHARS {
            return Err(SyntaxError::TooLong);
        }
        while let Some(c) = parser.bump() {
            match c {
                '?' => parser.push(Token::One),
                '*' => parser.parse_star(),
                '[' => {
                    let class = parser.parse_class()?;
                    parser.push(class);
                }
                '{' if parser.open.len() == MAX_DEPTH => {
                    return Err(SyntaxError::TooManyNestedAlternates);
                }
                '{' => {
                    parser.open.push(parser.branches.len());
                    parser.branches.push(Vec::new());
                }
                '}' => {
                    let first = parser.open.pop().ok_or(SyntaxError::UnopenedAlternates)?;
                    let branches = parser.branches.split_off(first);
                    parser.push(Token::Alternates(branches));
                }
                ',' if !parser.open.is_empty() => parser.branches.push(Vec::new()),
                '\\' => {
                    let escaped = parser.bump().ok_or(SyntaxError::DanglingEscape)?;
                    parser.push(Token::Literal(escaped));
                }
                c => parser.push(Token::Literal(c)),
            }
        }
        if !parser.open.is_empty() {
            return Err(SyntaxError::UnclosedAlternates);
        }
        Ok(parser.branches.pop().unwrap_or_default())
    }

    fn bump(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.next += 1;
        Some(c)
    }

    fn peek(&self) -> Option<char> {
        self.chars.get(self.next).copied()
    }

    fn push(&mut self, token: Token) {
        if let Some(branch) = self.branches.last_mut() {
            branch.push(token);
        }
    }

    fn parse_star(&mut self) {
        let before = self.next.checked_sub(2).map(|index| self.chars[index]);
        if self.peek() != Some('*') {
            return self.push(Token::Star);
        }
        self.next += 1;
        let after = self.peek();
        let is_in_group = self.branches.len() > 1;
        let recursive = if self.branches.last().is_none_or(Vec::is_empty) {
            matches!(after, None | Some('/')).then_some(Token::Prefix)
        } else if before == Some('/') || (is_in_group && matches!(before, Some(',' | '{'))) {
            match after {
                None => Some(Token::Suffix),
                Some(',' | '}') if is_in_group => Some(Token::Suffix),
                Some('/') => Some(Token::Middle),
                Some(_) => None,
            }
        } else {
            None
        };
        let Some(recursive) = recursive else {
            // `**` beside other characters of a segment is `*`.
            return self.push(Token::Star);
        };
        if after == Some('/') {
            self.next += 1;
        }
        if recursive == Token::Prefix {
            return self.push(recursive);
        }
        // The token includes the `/` before it. Another recursive token stays as it is.
        let last = self.branches.last_mut().and_then(Vec::pop);
        self.push(match last {
            Some(last @ (Token::Prefix | Token::Suffix)) => last,
            _ => recursive,
        });
    }

    fn parse_class(&mut self) -> Result<Token, SyntaxError> {
        let negated = matches!(self.peek(), Some('!' | '^'));
        self.next += usize::from(negated);
        let mut ranges: Vec<(char, char)> = Vec::new();
        let mut in_range = false;
        let mut is_first = true;
        loop {
            let c = self.bump().ok_or(SyntaxError::UnclosedClass)?;
            match c {
                ']' if !is_first => break,
                '-' if !is_first && !in_range => in_range = true,
                '[' if !in_range && self.peek() == Some(':') => {
                    ranges.extend(self.parse_named_class().unwrap_or(&[('[', '[')]));
                }
                c => match ranges.last_mut() {
                    Some(range) if in_range => {
                        if c < range.0 {
                            return Err(SyntaxError::InvalidRange(range.0, c));
                        }
                        range.1 = c;
                        in_range = false;
                    }
                    _ => ranges.push((c, c)),
                },
            }
            is_first = false;
        }
        if in_range {
            ranges.push(('-', '-'));
        }
        Ok(Token::Class(ByteSet::of_class(negated, &ranges)))
    }

    /// Parses the rest of `[:alpha:]`. Reads nothing if it is not the name of a class.
    fn parse_named_class(&mut self) -> Option<&'static [(char, char)]> {
        let rest = self.chars.get(self.next + 1..)?;
        let length = rest.iter().position(|c| !c.is_ascii_lowercase())?;
        if rest.get(length..length + 2) != Some(&[':', ']']) || length > 8 {
            return None;
        }
        let name: String = rest[..length].iter().collect();
        self.next += length + 3;
        named_class(&name)
    }
}

fn named_class(name: &str) -> Option<&'static [(char, char)]> {
    Some(match name {
        "alnum" => &[('0', '9'), ('A', 'Z'), ('a', 'z')],
        "alpha" => &[('A', 'Z'), ('a', 'z')],
        "blank" => &[('\t', '\t'), (' ', ' ')],
        "cntrl" => &[('\0', '\x1f'), ('\x7f', '\x7f')],
        "digit" => &[('0', '9')],
        "graph" => &[('!', '~')],
        "lower" => &[('a', 'z')],
        "print" => &[(' ', '~')],
        "punct" => &[('!', '/'), (':', '@'), ('[', '`'), ('{', '~')],
        "space" => &[('\t', '\r'), (' ', ' ')],
        "upper" => &[('A', 'Z')],
        "xdigit" => &[('0', '9'), ('A', 'F'), ('a', 'f')],
        _ => return None,
    })
}

/// Index of an instruction. A pattern of [`MAX_CHARS`] has fewer than 2^16 instructions.
type Index = u16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Instruction {
    Byte(u8),
    /// A byte of a segment: all but `/`.
    InSegment,
    AnyByte,
    /// A byte of the class with this index.
    Class(Index),
    /// Continues at both instructions.
    Split(Index, Index),
    Jump(Index),
    Match,
}

/// A compiled pattern.
#[derive(Debug, Clone)]
pub(super) struct Glob {
    program: Box<[Instruction]>,
    classes: Box<[ByteSet]>,
}

impl Glob {
    /// Compiles a pattern.
    pub(super) fn new(pattern: &str) -> Result<Self, SyntaxError> {
        let tokens = Parser::parse(pattern)?;
        let mut compiler = Compiler::default();
        if tokens == [Token::Prefix] {
            compiler.repeat(Instruction::AnyByte);
        } else {
            compiler.add_all(&tokens);
        }
        compiler.push(Instruction::Match);
        Ok(Self {
            program: compiler.program.into(),
            classes: compiler.classes.into(),
        })
    }

    /// Returns `true` if the whole text matches. Subtracts the number of steps from `steps`, and
    /// returns `None` if too few are left.
    pub(super) fn is_match(&self, text: &str, steps: &mut u64) -> Option<bool> {
        let text = text.as_bytes();
        // Most patterns begin with a literal, which decides most texts.
        let literal = self.program.iter().zip(text);
        let literal = literal.take_while(|(at, byte)| **at == Instruction::Byte(**byte));
        let start = literal.count();
        *steps = steps.checked_sub(1 + start as u64)?;
        match self.program.get(start) {
            Some(Instruction::Byte(_)) | None => return Some(false),
            Some(Instruction::Match) => return Some(start == text.len()),
            _ => {}
        }
        let mut current = States::new(self.program.len());
        let mut following = States::new(self.program.len());
        current.add(&self.program, start);
        for &byte in &text[start..] {
            *steps = steps.checked_sub(current.list.len() as u64)?;
            for &index in &current.list {
                let index = usize::from(index);
                let matches = match self.program[index] {
                    Instruction::Byte(expected) => byte == expected,
                    Instruction::InSegment => byte != b'/',
                    Instruction::AnyByte => true,
                    Instruction::Class(class) => self.classes[usize::from(class)].contains(byte),
                    Instruction::Split(..) | Instruction::Jump(_) | Instruction::Match => false,
                };
                if matches {
                    following.add(&self.program, index + 1);
                }
            }
            if following.list.is_empty() {
                return Some(false);
            }
            std::mem::swap(&mut current, &mut following);
            following.clear();
        }
        let at_end = |index: &Index| self.program[usize::from(*index)] == Instruction::Match;
        Some(current.list.iter().any(at_end))
    }
}

/// States that the matcher is in. A state is the index of an instruction.
struct States {
    list: Vec<Index>,
    contained: Vec<bool>,
    pending: Vec<usize>,
}

impl States {
    fn new(program: usize) -> Self {
        Self {
            list: Vec::new(),
            contained: vec![false; program],
            pending: Vec::new(),
        }
    }

    fn clear(&mut self) {
        for index in self.list.drain(..) {
            self.contained[usize::from(index)] = false;
        }
    }

    /// Adds an instruction and all that it leads to without a byte.
    fn add(&mut self, program: &[Instruction], index: usize) {
        self.pending.push(index);
        while let Some(index) = self.pending.pop() {
            if std::mem::replace(&mut self.contained[index], true) {
                continue;
            }
            if let Ok(state) = Index::try_from(index) {
                self.list.push(state);
            }
            match program[index] {
                Instruction::Jump(to) => self.pending.push(to.into()),
                Instruction::Split(one, other) => {
                    self.pending.extend([usize::from(one), usize::from(other)]);
                }
                _ => {}
            }
        }
    }
}

#[derive(Default)]
struct Compiler {
    program: Vec<Instruction>,
    classes: Vec<ByteSet>,
}

impl Compiler {
    /// Returns the index of the next instruction.
    fn here(&self) -> Index {
        Index::try_from(self.program.len()).unwrap_or(Index::MAX)
    }

    fn push(&mut self, instruction: Instruction) {
        self.program.push(instruction);
    }

    /// Adds `instruction`, repeated any number of times.
    fn repeat(&mut self, instruction: Instruction) {
        let start = self.here();
        self.push(Instruction::Split(start + 1, start + 3));
        self.push(instruction);
        self.push(Instruction::Jump(start));
    }

    /// Adds an optional folder: nothing, or any text that ends with `/`.
    fn add_folders(&mut self) {
        let start = self.here();
        self.push(Instruction::Split(start + 1, start + 5));
        self.repeat(Instruction::AnyByte);
        self.push(Instruction::Byte(b'/'));
    }

    fn add_all(&mut self, tokens: &[Token]) {
        for token in tokens {
            self.add(token);
        }
    }

    fn add(&mut self, token: &Token) {
        match token {
            Token::Literal(c) => {
                let mut bytes = [0; 4];
                for byte in c.encode_utf8(&mut bytes).bytes() {
                    self.push(Instruction::Byte(byte));
                }
            }
            Token::One => self.push(Instruction::InSegment),
            Token::Star => self.repeat(Instruction::InSegment),
            Token::Prefix => self.add_folders(),
            Token::Suffix => {
                self.push(Instruction::Byte(b'/'));
                self.repeat(Instruction::AnyByte);
            }
            Token::Middle => {
                self.push(Instruction::Byte(b'/'));
                self.add_folders();
            }
            Token::Class(set) => {
                let index = Index::try_from(self.classes.len()).unwrap_or(Index::MAX);
                self.push(Instruction::Class(index));
                self.classes.push(*set);
            }
            Token::Alternates(branches) => {
                // An empty alternative is ignored.
                let filled = |branch: &&Vec<Token>| !branch.iter().all(Token::is_empty);
                let branches: Vec<_> = branches.iter().filter(filled).collect();
                let mut ends = Vec::new();
                for (number, branch) in branches.iter().enumerate() {
                    let is_last = number + 1 == branches.len();
                    let split = self.program.len();
                    if !is_last {
                        self.push(Instruction::Match);
                    }
                    self.add_all(branch);
                    if !is_last {
                        ends.push(self.program.len());
                        self.push(Instruction::Match);
                        let branch = Index::try_from(split + 1).unwrap_or(Index::MAX);
                        self.program[split] = Instruction::Split(branch, self.here());
                    }
                }
                let end = self.here();
                for jump in ends {
                    self.program[jump] = Instruction::Jump(end);
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "glob_tests.rs"]
mod tests;
