//! Text for output: widths, durations and sizes, and sanitizing of untrusted text. Pure.

use std::borrow::Cow;

pub(crate) use acrtask_model::count;
use acrtask_model::printable::is_printable;

/// Returns the columns that `text` takes on a terminal.
pub(crate) fn display_width(text: &str) -> usize {
    console::measure_text_width(text)
}

/// Truncates `text` to `columns`, with a visible mark.
pub(crate) fn truncate(text: &str, columns: usize) -> String {
    console::truncate_str(text, columns, "…").into_owned()
}

/// Pads `text` with blanks to `columns`.
pub(crate) fn pad(text: &str, columns: usize) -> String {
    console::pad_str(text, columns, console::Alignment::Left, None).into_owned()
}

/// Returns a text as one line that shows all of it. Removes escape sequences. Replaces each other
/// character that could move the cursor, break the line or reorder it with a visible mark.
pub(crate) fn plain_line(text: &str) -> Cow<'_, str> {
    sanitize_line(text, false)
}

/// Returns the line of [`plain_line`] with its colors, which are reset at its end.
pub(crate) fn colored_line(text: &str) -> Cow<'_, str> {
    sanitize_line(text, true)
}

fn sanitize_line(text: &str, colors: bool) -> Cow<'_, str> {
    if text.chars().all(is_printable) {
        return Cow::Borrowed(text);
    }
    let text = text.trim_end_matches(['\r', '\n']);
    Cow::Owned(without_sequences(text, colors, |c| Some(mark(c))))
}

/// Returns the visible mark of a character that is not printable.
fn mark(c: char) -> char {
    const PICTURES: u32 = 0x2400;
    match c {
        '\0'..='\x1f' => char::from_u32(PICTURES + u32::from(c)).unwrap_or('\u{fffd}'),
        '\x7f' => '\u{2421}',
        _ => '\u{fffd}',
    }
}

/// Returns a printed line as a terminal shows it in the end: after carriage returns, only the last
/// state. Removes control characters, and escape sequences except for `colors`.
pub(crate) fn printed_line(line: &str, colors: bool) -> Cow<'_, str> {
    if line.chars().all(is_printable) {
        return Cow::Borrowed(line);
    }
    let line = line.trim_end_matches(['\r', '\n']);
    let line = line
        .rsplit('\r')
        .find(|part| !part.is_empty())
        .unwrap_or("");
    Cow::Owned(without_sequences(line, colors, |_| None))
}

/// Removes escape sequences except for `colors`. Replaces tabs with blanks, and each other
/// unprintable character with the result of `replace`.
fn without_sequences(text: &str, colors: bool, replace: impl Fn(char) -> Option<char>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut colored = false;
    for part in split_sequences(text) {
        match part {
            Part::Text(text) => {
                for c in text.chars() {
                    match c {
                        '\t' => out.push_str("    "),
                        c if is_printable(c) => out.push(c),
                        c => out.extend(replace(c)),
                    }
                }
            }
            Part::Color(color) if colors => {
                out.push_str(color);
                colored = true;
            }
            Part::Color(_) | Part::Other => {}
        }
    }
    if colored {
        out.push_str("\x1b[0m");
    }
    out
}

/// Removes everything from `text` except for lines and colors: cursor movements, titles, links, the
/// clipboard, and overrides of the writing direction. Every output of this program passes through
/// this function last, regardless of its source.
pub(crate) fn sanitize(text: &str) -> Cow<'_, str> {
    let harmless = |c: char| is_printable(c) || matches!(c, '\n' | '\t');
    if text.chars().all(harmless) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for part in split_sequences(text) {
        match part {
            Part::Text(text) => out.extend(text.chars().filter(|c| harmless(*c))),
            Part::Color(color) => out.push_str(color),
            Part::Other => {}
        }
    }
    Cow::Owned(out)
}

/// Piece of a text for a terminal.
#[derive(Debug, PartialEq, Eq)]
enum Part<'t> {
    /// Characters, including control characters.
    Text(&'t str),
    /// Escape sequence that only selects colors (SGR).
    Color(&'t str),
    /// Any other escape sequence.
    Other,
}

/// Splits `text` at its escape sequences, including those with 8-bit introducers (ECMA-48).
fn split_sequences(text: &str) -> impl Iterator<Item = Part<'_>> {
    let introduces = |c: char| {
        matches!(
            c,
            '\x1b' | '\u{90}' | '\u{98}' | '\u{9b}' | '\u{9d}'..='\u{9f}'
        )
    };
    let mut rest = text;
    std::iter::from_fn(move || {
        let at = rest.find(introduces).unwrap_or(rest.len());
        if at > 0 {
            let (before, after) = rest.split_at(at);
            rest = after;
            return Some(Part::Text(before));
        }
        let mut chars = rest.chars();
        let kind = match chars.next()? {
            '\x1b' => chars.next().unwrap_or('\x1b'),
            // 8-bit form of the character after the escape.
            c => char::from_u32(u32::from(c) - 0x40).unwrap_or(c),
        };
        let body = chars.as_str();
        let len = rest.len() - body.len() + sequence_length(kind, body);
        let (sequence, after) = rest.split_at(len);
        rest = after;
        let color = kind == '[' && sequence.ends_with('m') && sequence.starts_with("\x1b[");
        let digits = |byte: u8| byte.is_ascii_digit() || matches!(byte, b';' | b':');
        Some(match sequence.get(2..len - 1) {
            Some(inner) if color && inner.bytes().all(digits) => Part::Color(sequence),
            _ => Part::Other,
        })
    })
}

/// Returns the length of an escape sequence behind its introducer. Of an unterminated sequence,
/// only the introducer is removed.
fn sequence_length(kind: char, body: &str) -> usize {
    match kind {
        // Parameters and one final byte.
        '[' => {
            let last = body.find(|c: char| !(' '..='?').contains(&c));
            last.filter(|at| (b'@'..=b'~').contains(&body.as_bytes()[*at]))
                .map_or(0, |at| at + 1)
        }
        // A string up to its terminator, on one line.
        ']' | 'P' | 'X' | '^' | '_' => {
            let line = body.split('\n').next().unwrap_or_default();
            let end = |terminator: &str| line.find(terminator).map(|at| at + terminator.len());
            let ends = ["\x07", "\x1b\\", "\u{9c}"].into_iter().filter_map(end);
            ends.min().unwrap_or(0)
        }
        // Designations of character sets: one more byte.
        ' '..='/' => usize::from(body.starts_with(|c: char| c.is_ascii_graphic())),
        _ => 0,
    }
}

/// Escapes the characters of a JSON text that could still affect a terminal.
pub(crate) fn escape_json(text: &str) -> Cow<'_, str> {
    let harmless = |c: char| is_printable(c) || matches!(c, '\n' | '\t' | '\r');
    if text.chars().all(harmless) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if harmless(c) {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    Cow::Owned(out)
}

/// Formats milliseconds as `0.4s`, `12.3s`, `2m03s`, `1h02m`.
pub(crate) fn format_duration(ms: u64) -> String {
    // Truncates tenths, so that 59.96 s does not become `60.0s`.
    let seconds = ms / 1000;
    match seconds {
        0..60 => format!("{seconds}.{}s", ms % 1000 / 100),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

/// Formats bytes as `12 B`, `3.4 kB`, `1.2 GB`.
pub(crate) fn format_bytes(n: i64) -> String {
    let n = n.max(0);
    if n < 1000 {
        return format!("{n} B");
    }
    let mut value = n as f64;
    let mut unit = "B";
    for next in ["kB", "MB", "GB", "TB"] {
        if value < 999.95 {
            break;
        }
        value /= 1000.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_line_cannot_move_the_cursor() {
        for (line, shown) in [
            ("plain", "plain"),
            ("a\tb", "a    b"),
            ("\x1b[31mred\x1b[0m", "red"),
            ("\x1b[2J\x1b[1;1Hgone", "gone"),
            ("\x1b]0;title\x07text", "text"),
            ("10%\r50%\r100%", "100%"),
            ("100%\r", "100%"),
            ("bell\x07", "bell"),
            ("\u{9b}31mred", "red"),
            ("", ""),
        ] {
            assert_eq!(printed_line(line, false), shown, "{line:?}");
        }
    }

    #[test]
    fn plain_line_shows_every_character_safely() {
        for (text, shown) in [
            ("plain", "plain"),
            ("a\tb", "a    b"),
            ("ends\r\n", "ends"),
            ("failed\rsucceeded", "failed␍succeeded"),
            ("one\ntwo", "one␊two"),
            ("a\u{85}b\u{2028}c\u{2029}d", "a\u{fffd}b\u{fffd}c\u{fffd}d"),
            (
                "a\u{202e}b\u{2066}c\u{200f}d\u{200b}e",
                "a\u{fffd}b\u{fffd}c\u{fffd}d\u{fffd}e",
            ),
            ("\x1b[31mred\x1b[0m\x1b[2J", "red"),
            ("bell\x07\x08\x7f", "bell␇␈␡"),
        ] {
            assert_eq!(plain_line(text), shown, "{text:?}");
        }
        // ESC and CSI start a sequence with the following characters.
        let alone = |c: &char| !is_printable(*c) && !matches!(c, '\t' | '\x1b' | '\u{9b}');
        for c in ('\0'..='\u{ffff}').filter(alone) {
            let text = format!("a{c} b");
            let line = plain_line(&text);
            assert!(
                line.starts_with('a') && line.ends_with('b'),
                "{c:?}: {line:?}"
            );
            assert!(line.chars().all(is_printable), "{c:?}: {line:?}");
        }
    }

    #[test]
    fn sanitize_keeps_lines_and_colors_only() {
        for (text, shown) in [
            ("a\n\tb\n", "a\n\tb\n"),
            ("\x1b[1;31mred\x1b[0m", "\x1b[1;31mred\x1b[0m"),
            ("\x1b[2J\x1b[1;1Hgone\x1bc", "gone"),
            ("\x1b]8;;http://evil\x1b\\text\x1b]8;;\x1b\\", "text"),
            ("\x1b]8;;http://evil\x07text\x1b]8;;\x07", "text"),
            ("\x1b]52;c;ZXZpbA==\x07x", "x"),
            ("\u{9b}2Jx\u{9d}0;t\u{9c}", "x"),
            ("ok\rno", "okno"),
            ("a\u{202e}b\u{2066}c\u{200b}d\x7f\x08", "abcd"),
            ("\x1bP+q544e\x1b\\x", "x"),
        ] {
            let safe = sanitize(text);
            assert_eq!(safe, shown, "{text:?}");
            let left = console::strip_ansi_codes(&safe).into_owned();
            assert!(
                left.chars().all(|c| is_printable(c) || "\n\t".contains(c)),
                "{safe:?}"
            );
        }
    }

    #[test]
    fn escaped_json_has_the_same_value() {
        let value = serde_json::json!({"name": "a\u{9b}2J\u{202e}b\u{e0041}\x1b\x7f"});
        let text = value.to_string();
        let safe = escape_json(&text);
        assert!(safe.chars().all(is_printable), "{safe:?}");
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&safe).unwrap(),
            value
        );
    }

    #[test]
    fn colors_are_kept_if_requested() {
        assert_eq!(colored_line("\x1b[31mred"), "\x1b[31mred\x1b[0m");
        assert_eq!(colored_line("\x1b[2Jx"), "x");
        assert_eq!(printed_line("\x1b[31mred", true), "\x1b[31mred\x1b[0m");
        assert_eq!(printed_line("\x1b[2Jx", true), "x");
    }

    #[test]
    fn durations_and_sizes_are_formatted() {
        for (ms, shown) in [
            (0, "0.0s"),
            (449, "0.4s"),
            (59_960, "59.9s"),
            (60_000, "1m00s"),
            (123_000, "2m03s"),
            (3_725_000, "1h02m"),
        ] {
            assert_eq!(format_duration(ms), shown);
        }
        for (n, shown) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (999_960, "1.0 MB"),
            (12_345_678, "12.3 MB"),
        ] {
            assert_eq!(format_bytes(n), shown);
        }
    }
}
