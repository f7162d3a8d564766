//! Splits Rust source into code, comments and string literals, line by line.
//!
//! The language rules differ for the three: names are checked in code, phrases in comments and
//! literals. The scanner knows nested comments, raw strings, byte strings, characters and
//! lifetimes.

/// A line of a Rust file, split into its parts.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct SourceLine {
    /// Code, with an empty literal `""` in the place of each string.
    pub(super) code: String,
    /// Text of the comment without its marker, and which marker it has.
    pub(super) comment: Option<Comment>,
    /// Text of the string literals, or of the part of a longer literal that is on this line.
    pub(super) literals: Vec<String>,
}

/// The text of a comment on one line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Comment {
    /// `///` and `//!` are documentation; `//` and `/* */` are not.
    pub(super) is_doc: bool,
    pub(super) text: String,
}

enum State {
    Code,
    /// Depth of nested `/* */`.
    Block(usize),
    /// A literal; the number of `#` that close it, `None` for one with escapes.
    Literal(Option<usize>),
}

/// Splits `text` into lines. Line `n` of the file has index `n - 1`.
pub(super) fn split_lines(text: &str) -> Vec<SourceLine> {
    let mut state = State::Code;
    text.lines()
        .map(|line| {
            let mut split = SourceLine::default();
            state = split_line(line, &mut split, std::mem::replace(&mut state, State::Code));
            split
        })
        .collect()
}

fn split_line(line: &str, split: &mut SourceLine, mut state: State) -> State {
    let chars: Vec<char> = line.chars().collect();
    let mut at = 0;
    let mut literal = String::new();
    let mut comment = String::new();
    while at < chars.len() {
        match state {
            State::Code => at = scan_code(&chars, at, split, &mut state),
            State::Block(depth) => {
                if starts_with(&chars, at, "*/") {
                    at += 2;
                    state = if depth == 1 {
                        State::Code
                    } else {
                        State::Block(depth - 1)
                    };
                } else if starts_with(&chars, at, "/*") {
                    at += 2;
                    state = State::Block(depth + 1);
                } else {
                    comment.extend(chars.get(at));
                    at += 1;
                }
            }
            State::Literal(hashes) => {
                let closing = format!("\"{}", "#".repeat(hashes.unwrap_or(0)));
                if hashes.is_none() && chars.get(at) == Some(&'\\') {
                    // A separator: the `n` of `\n` is not part of a word.
                    literal.push('\u{1}');
                    at += 2;
                } else if starts_with(&chars, at, &closing) {
                    at += closing.len();
                    split.literals.push(std::mem::take(&mut literal));
                    state = State::Code;
                } else {
                    literal.extend(chars.get(at));
                    at += 1;
                }
            }
        }
    }
    if !literal.is_empty() {
        split.literals.push(literal);
    }
    if !comment.is_empty() {
        split.comment = Some(Comment {
            is_doc: false,
            text: comment,
        });
    }
    state
}

/// Reads one token of code at `at`; returns where the next one begins.
fn scan_code(chars: &[char], at: usize, split: &mut SourceLine, state: &mut State) -> usize {
    if starts_with(chars, at, "//") {
        let text: String = chars.iter().skip(at + 2).collect();
        let is_doc = text.starts_with('!') || (text.starts_with('/') && !text.starts_with("//"));
        split.comment = Some(Comment {
            is_doc,
            text: text.trim_start_matches(['/', '!']).trim().to_owned(),
        });
        return chars.len();
    }
    if starts_with(chars, at, "/*") {
        *state = State::Block(1);
        return at + 2;
    }
    let in_name = at
        .checked_sub(1)
        .and_then(|before| chars.get(before))
        .is_some_and(|before| before.is_alphanumeric() || *before == '_');
    if !in_name && let Some((length, hashes)) = literal_start(chars, at) {
        split.code.push_str("\"\"");
        *state = State::Literal(hashes);
        return at + length;
    }
    if chars.get(at) == Some(&'\'') {
        let length = char_literal_length(chars, at);
        if length > 1 {
            split.code.push_str("' '");
            return at + length;
        }
    }
    split.code.extend(chars.get(at));
    at + 1
}

/// Length of the opening of a string literal at `at`, and the `#` that close it.
fn literal_start(chars: &[char], at: usize) -> Option<(usize, Option<usize>)> {
    let mut next = at;
    while next < at + 2 && matches!(chars.get(next), Some('b' | 'c' | 'r')) {
        next += 1;
    }
    let raw = next > at && chars.get(next - 1) == Some(&'r');
    let mut hashes = 0;
    while raw && chars.get(next + hashes) == Some(&'#') {
        hashes += 1;
    }
    (chars.get(next + hashes) == Some(&'"'))
        .then_some((next + hashes + 1 - at, raw.then_some(hashes)))
}

/// Length of a character literal at `at`; 1 if the quote begins a lifetime.
fn char_literal_length(chars: &[char], at: usize) -> usize {
    if chars.get(at + 1) == Some(&'\\') {
        let end = chars.iter().skip(at + 3).position(|char| *char == '\'');
        return end.map_or(1, |end| end + 4);
    }
    if chars.get(at + 2) == Some(&'\'') {
        3
    } else {
        1
    }
}

fn starts_with(chars: &[char], at: usize, text: &str) -> bool {
    let mut rest = chars.iter().skip(at);
    text.chars().all(|wanted| rest.next() == Some(&wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> Vec<String> {
        split_lines(text)
            .into_iter()
            .map(|line| line.code)
            .collect()
    }

    #[test]
    fn literals_leave_the_code() {
        assert_eq!(code(r#"let a = "x // y"; // z"#), [r#"let a = ""; "#]);
        assert_eq!(
            code("f(r#\"a \" b\"#, b\"c\", 'd', '\\'')"),
            ["f(\"\", \"\", ' ', ' ')"]
        );
        assert_eq!(code("fn f<'a>(x: &'a str)"), ["fn f<'a>(x: &'a str)"]);
        assert_eq!(code("/* a /* b */ c */ d"), [" d"]);
    }

    #[test]
    fn literals_continue_on_the_next_line() {
        let lines = split_lines("let a = \"one\ntwo\" + b;");
        assert_eq!(lines[0].literals, ["one"]);
        assert_eq!(lines[1].literals, ["two"]);
        assert_eq!(lines[1].code, " + b;");
    }

    #[test]
    fn comments_carry_their_kind() {
        let comment = |text: &str| split_lines(text).remove(0).comment.expect("a comment");
        assert!(comment("/// Returns it.").is_doc);
        assert!(comment("//! A module.").is_doc);
        assert!(!comment("x(); // why").is_doc);
        assert!(!comment("//// ruler").is_doc);
        assert_eq!(comment("x(); // why").text, "why");
    }
}
