//! Case and words: titles, wrapping, abbreviations.

use super::{Env, Function, Outcome, functions, int_at, text_at};
use crate::{error::Fault, value::Value};

pub(crate) static TABLE: &[Function] = functions! {
    "title" (Text) |env, args| convert_text(env, args, title);
    "untitle" (Text) |env, args| convert_text(env, args, untitle);
    "swapcase" (Text) |env, args| convert_text(env, args, swap_case);
    "snakecase" (Text) |env, args| convert_text(env, args, |text| join_words(text, '_'));
    "kebabcase" (Text) |env, args| convert_text(env, args, |text| join_words(text, '-'));
    "camelcase" (Text) |env, args| convert_text(env, args, camel_case);
    "nospace" (Text) |env, args| convert_text(env, args, |text| text.chars().filter(|c| !c.is_whitespace()).collect());
    "initials" (Text) |env, args| convert_text(env, args, initials);
    "abbrev" (Int, Text) |env, args| {
        if int_at(args, 0) < 4 { env.new_text(text_at(args, 1)) } else { abbreviate(env, text_at(args, 1), 0, int_at(args, 0)) }
    };
    "abbrevboth" (Int, Int, Text) |env, args| {
        let (left, right, text) = (int_at(args, 0), int_at(args, 1), text_at(args, 2));
        if right < 4 || left > 0 && right < 7 { env.new_text(text) } else { abbreviate(env, text, left, right) }
    };
    "wrap" (Int, Text) |env, args| wrap(env, text_at(args, 1), int_at(args, 0), "", false);
    "wrapWith" (Int, Text, Text) |env, args| wrap(env, text_at(args, 2), int_at(args, 0), text_at(args, 1), true);
};

fn convert_text(env: &mut Env, args: &[Value], convert: impl FnOnce(&str) -> String) -> Outcome {
    let text = text_at(args, 0);
    env.meter.charge_text(text.len() * 2)?;
    env.meter.charge_steps(text.len() as u64 / 2)?;
    env.new_text(convert(text))
}

fn to_upper_char(c: char) -> char {
    let mut upper = c.to_uppercase();
    match (upper.next(), upper.next()) {
        (Some(upper), None) => upper,
        // Go maps each character to one character.
        _ => c,
    }
}

fn to_lower_char(c: char) -> char {
    let mut lower = c.to_lowercase();
    match (lower.next(), lower.next()) {
        (Some(lower), None) => lower,
        _ => c,
    }
}

/// Converts to upper case each letter after a separator, like `strings.Title`. In ASCII, separators
/// are all characters but letters, digits and underscores. Beyond ASCII, only spaces are.
fn title(text: &str) -> String {
    let is_separator = |c: char| {
        if c.is_ascii() {
            !(c.is_ascii_alphanumeric() || c == '_')
        } else {
            !c.is_alphanumeric() && c.is_whitespace()
        }
    };
    let mut previous = ' ';
    text.chars()
        .map(|c| {
            let out = if is_separator(previous) {
                to_upper_char(c)
            } else {
                c
            };
            previous = c;
            out
        })
        .collect()
}

fn untitle(text: &str) -> String {
    let mut starts = true;
    text.chars()
        .map(|c| {
            if c.is_whitespace() {
                starts = true;
                c
            } else if std::mem::take(&mut starts) {
                to_lower_char(c)
            } else {
                c
            }
        })
        .collect()
}

fn swap_case(text: &str) -> String {
    let mut after_space = true;
    text.chars()
        .map(|c| {
            if c.is_uppercase() {
                after_space = false;
                to_lower_char(c)
            } else if c.is_lowercase() {
                after_space = false;
                to_upper_char(c)
            } else {
                after_space = c.is_whitespace();
                c
            }
        })
        .collect()
}

fn initials(text: &str) -> String {
    text.split_whitespace()
        .filter_map(|word| word.chars().next())
        .collect()
}

fn is_connector(c: char) -> bool {
    c == '-' || c == '_' || c.is_whitespace()
}

/// Converts to upper camel case. A letter after connectors becomes upper case, and one of the
/// connectors is removed.
fn camel_case(text: &str) -> String {
    let start = text.find(|c| !is_connector(c)).unwrap_or(text.len());
    let mut out = text[..start].to_owned();
    let mut chars = text[start..].chars();
    let Some(first) = chars.next() else {
        return out;
    };
    let mut pending = to_upper_char(first);
    for c in chars {
        let next = match (is_connector(c), is_connector(pending)) {
            (true, true) => {
                out.push(pending);
                c
            }
            (false, true) => to_upper_char(c),
            _ => {
                out.push(pending);
                c
            }
        };
        pending = next;
    }
    out.push(pending);
    out
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WordKind {
    Number,
    /// A word that starts with a capital: `Word` or `HTTP`.
    Capital,
    Small,
    Connector,
    Punctuation,
    Other,
}

fn is_letter(c: char) -> bool {
    c.is_uppercase() || c.is_lowercase()
}

fn is_punctuation(c: char) -> bool {
    // Go's category P has all ASCII punctuation except these symbols.
    if c.is_ascii() {
        c.is_ascii_punctuation() && !"$+<=>^`|~".contains(c)
    } else {
        ('\u{2010}'..='\u{2027}').contains(&c)
    }
}

/// Splits a text into words, which are runs of one kind. `HTTPServer` becomes `HTTP` and `Server`.
fn split_words(text: &str) -> Vec<(WordKind, &str)> {
    let mut words = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let run = |matches: &dyn Fn(char) -> bool| rest.find(|c| !matches(c)).unwrap_or(rest.len());
        let small_from = |start: usize| {
            rest[start..]
                .find(|c: char| !c.is_lowercase())
                .map_or(rest.len(), |length| start + length)
        };
        let (kind, length) = if is_connector(first) {
            (WordKind::Connector, run(&is_connector))
        } else if is_punctuation(first) {
            (
                WordKind::Punctuation,
                run(&|c| is_punctuation(c) && !is_connector(c)),
            )
        } else if first.is_uppercase() {
            let capitals = run(&char::is_uppercase);
            let one = first.len_utf8();
            let length = match rest[capitals..].chars().next() {
                Some(next) if is_letter(next) && capitals > one => {
                    // The last capital starts the next word.
                    capitals
                        - rest[..capitals]
                            .chars()
                            .next_back()
                            .map_or(0, char::len_utf8)
                }
                Some(next) if is_letter(next) => small_from(capitals),
                _ => capitals,
            };
            (WordKind::Capital, length)
        } else if first.is_lowercase() {
            (WordKind::Small, run(&char::is_lowercase))
        } else if first.is_numeric() {
            (WordKind::Number, run(&char::is_numeric))
        } else {
            let is_other =
                |c: char| !(is_connector(c) || is_letter(c) || c.is_numeric() || is_punctuation(c));
            (WordKind::Other, run(&is_other).max(first.len_utf8()))
        };
        let (word, after) = rest.split_at(length);
        words.push((kind, word));
        rest = after;
    }
    words
}

/// Joins words in lower case with `connector`. A number belongs to the word before it (`Bld4Floor`
/// is `bld4_floor`), unless lower-case letters follow it (`HTTP2xx` is `http_2xx`).
fn join_words(text: &str, connector: char) -> String {
    let words = split_words(text);
    let mut out = String::with_capacity(text.len() + 8);
    let write = |out: &mut String, index: usize| {
        if let Some((kind, word)) = words.get(index) {
            match kind {
                WordKind::Capital => out.extend(word.chars().map(to_lower_char)),
                WordKind::Connector => out.extend(word.chars().map(|_| connector)),
                _ => out.push_str(word),
            }
        }
    };
    let kind = |index: usize| words.get(index).map(|(kind, _)| *kind);
    let needs_connector = |index: usize| {
        !matches!(
            kind(index),
            None | Some(WordKind::Connector | WordKind::Punctuation)
        )
    };
    let joins_number =
        |index: usize| matches!(kind(index), Some(WordKind::Small | WordKind::Number));
    let mut index = 0;
    while index < words.len() {
        write(&mut out, index);
        let previous = kind(index);
        index += 1;
        match previous {
            None | Some(WordKind::Connector | WordKind::Punctuation) => {}
            Some(WordKind::Number) => {
                while joins_number(index) {
                    write(&mut out, index);
                    index += 1;
                }
                if needs_connector(index) {
                    out.push(connector);
                }
            }
            Some(_) if kind(index) == Some(WordKind::Number) && index + 1 < words.len() => {
                if kind(index + 1) == Some(WordKind::Small) {
                    out.push(connector);
                    write(&mut out, index);
                    index += 1;
                    while joins_number(index) {
                        write(&mut out, index);
                        index += 1;
                    }
                } else {
                    write(&mut out, index);
                    index += 1;
                }
                if needs_connector(index) {
                    out.push(connector);
                }
            }
            // A number at the end belongs to its word.
            Some(_) if kind(index) == Some(WordKind::Number) => {}
            Some(_) => {
                if needs_connector(index) {
                    out.push(connector);
                }
            }
        }
    }
    out
}

/// Returns about `width` bytes of the text from `offset`, with dots for the parts left out.
fn abbreviate(env: &mut Env, text: &str, offset: i64, width: i64) -> Outcome {
    let length = i64::try_from(text.len()).unwrap_or(i64::MAX);
    if length <= width {
        return env.new_text(text);
    }
    let slice = |from: i64, to: i64| {
        let range = usize::try_from(from).unwrap_or(0)..usize::try_from(to).unwrap_or(0);
        text.get(range)
            .ok_or_else(|| Fault::call("abbreviating would cut a character in two"))
    };
    let mut offset = offset.min(length);
    if length.saturating_sub(offset) < width - 3 {
        offset = length - (width - 3);
    }
    if offset <= 4 {
        return env.new_text(format!("{}...", slice(0, width - 3)?));
    }
    if width < 7 {
        return env.new_text("");
    }
    if offset + width - 3 < length {
        return env.new_text(format!("...{}...", slice(offset, offset + width - 6)?));
    }
    env.new_text(format!("...{}", slice(length - (width - 3), length)?))
}

/// Breaks lines at spaces, so that they have at most `width` bytes. `breaks_words`: also breaks
/// longer words.
fn wrap(env: &mut Env, text: &str, width: i64, line_break: &str, breaks_words: bool) -> Outcome {
    let line_break = if line_break.is_empty() {
        "\n"
    } else {
        line_break
    };
    let width = usize::try_from(width).unwrap_or(0).max(1);
    env.meter.charge_steps(text.len() as u64 / 2)?;
    env.write_text(|out| {
        let bytes = text.as_bytes();
        let slice = |from: usize, to: usize| {
            text.get(from..to)
                .ok_or_else(|| Fault::call("wrapping would cut a character in two"))
        };
        let mut offset = 0;
        while bytes.len() - offset > width {
            out.charge_step()?;
            if bytes[offset] == b' ' {
                offset += 1;
                continue;
            }
            let window = &bytes[offset..=offset + width];
            let (end, next) = match window.iter().rposition(|byte| *byte == b' ') {
                Some(space) => (offset + space, offset + space + 1),
                None if breaks_words => (offset + width, offset + width),
                None => match bytes[offset + width..]
                    .iter()
                    .position(|byte| *byte == b' ')
                {
                    Some(space) => (offset + width + space, offset + width + space + 1),
                    None => break,
                },
            };
            out.push(slice(offset, end)?)?;
            out.push(line_break)?;
            offset = next;
        }
        out.push(slice(offset, bytes.len())?)
    })
}
