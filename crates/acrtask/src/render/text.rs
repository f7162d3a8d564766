//! Text for people: widths, times, sizes, and foreign texts made safe to show. Pure.

use std::borrow::Cow;

pub(crate) use acrtask_model::count;
use acrtask_model::printable::is_printable;

/// Columns that `text` takes on a terminal.
pub(crate) fn width(text: &str) -> usize {
    console::measure_text_width(text)
}

/// `text` in at most `columns`, with a visible mark where it was cut.
pub(crate) fn cut(text: &str, columns: usize) -> String {
    console::truncate_str(text, columns, "…").into_owned()
}

/// `text` with blanks up to `columns`.
pub(crate) fn pad(text: &str, columns: usize) -> String {
    console::pad_str(text, columns, console::Alignment::Left, None).into_owned()
}

/// Returns a text as one line that shows all of it. Removes escape sequences, and replaces each other character that
/// could move the cursor, break the line or reorder it with a visible mark.
pub(crate) fn plain(text: &str) -> Cow<'_, str> {
    one_line(text, false)
}

/// Returns the same line with its colours, which end with it.
pub(crate) fn colored(text: &str) -> Cow<'_, str> {
    one_line(text, true)
}

fn one_line(text: &str, colors: bool) -> Cow<'_, str> {
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

/// Returns a line that a step printed, as a terminal would show it at the end: of a line that carriage returns have
/// overwritten, the last state. Removes escape sequences but `colors`, and control characters.
pub(crate) fn printed(line: &str, colors: bool) -> Cow<'_, str> {
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

/// Removes escape sequences but `colors`. Tabs become blanks, and other characters that are not printable what `replace`
/// returns.
fn without_sequences(text: &str, colors: bool, replace: impl Fn(char) -> Option<char>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut colored = false;
    for part in parts(text) {
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

/// Removes from `text` everything that could do more to a terminal than show lines in colours: cursor
/// movements, titles, links, the clipboard, overrides of the direction of writing. Every text of this
/// program passes here last, whatever a server, a forge, a registry or a runner put into it.
pub(crate) fn terminal(text: &str) -> Cow<'_, str> {
    let harmless = |c: char| is_printable(c) || matches!(c, '\n' | '\t');
    if text.chars().all(harmless) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for part in parts(text) {
        match part {
            Part::Text(text) => out.extend(text.chars().filter(|c| harmless(*c))),
            Part::Color(color) => out.push_str(color),
            Part::Other => {}
        }
    }
    Cow::Owned(out)
}

/// A piece of a text for a terminal.
#[derive(Debug, PartialEq, Eq)]
enum Part<'t> {
    /// Characters, controls among them.
    Text(&'t str),
    /// An escape sequence that selects colours and nothing else (SGR).
    Color(&'t str),
    /// Another escape sequence.
    Other,
}

/// Splits `text` at its escape sequences, those with 8-bit introducers included (ECMA-48).
fn parts(text: &str) -> impl Iterator<Item = Part<'_>> {
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
            // The 8-bit form of the character behind the escape.
            c => char::from_u32(u32::from(c) - 0x40).unwrap_or(c),
        };
        let body = chars.as_str();
        let len = rest.len() - body.len() + length_of(kind, body);
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

/// The length of an escape sequence behind its introducer of this kind. Of one that does not end, only
/// the introducer is removed.
fn length_of(kind: char, body: &str) -> usize {
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

/// Escapes in a JSON text what JSON itself would leave to act on a terminal.
pub(crate) fn json(text: &str) -> Cow<'_, str> {
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

/// Milliseconds as `0.4s`, `12.3s`, `2m03s`, `1h02m`.
pub(crate) fn duration(ms: u64) -> String {
    // Tenths are cut, not rounded, so that 59.96 s is not `60.0s`.
    let seconds = ms / 1000;
    match seconds {
        0..60 => format!("{seconds}.{}s", ms % 1000 / 100),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

/// Bytes as `12 B`, `3.4 kB`, `1.2 GB`.
pub(crate) fn bytes(n: i64) -> String {
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
    fn what_a_step_printed_cannot_move_the_cursor() {
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
            assert_eq!(printed(line, false), shown, "{line:?}");
        }
    }

    #[test]
    fn one_line_hides_and_forges_nothing() {
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
            assert_eq!(plain(text), shown, "{text:?}");
        }
        // ESC and CSI begin a sequence with the characters behind them.
        let alone = |c: &char| !is_printable(*c) && !matches!(c, '\t' | '\x1b' | '\u{9b}');
        for c in ('\0'..='\u{ffff}').filter(alone) {
            let text = format!("a{c} b");
            let line = plain(&text);
            assert!(
                line.starts_with('a') && line.ends_with('b'),
                "{c:?}: {line:?}"
            );
            assert!(line.chars().all(is_printable), "{c:?}: {line:?}");
        }
    }

    #[test]
    fn terminal_text_keeps_lines_and_colours_only() {
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
            let safe = terminal(text);
            assert_eq!(safe, shown, "{text:?}");
            let left = console::strip_ansi_codes(&safe).into_owned();
            assert!(
                left.chars().all(|c| is_printable(c) || "\n\t".contains(c)),
                "{safe:?}"
            );
        }
    }

    #[test]
    fn json_on_a_terminal_is_the_same_json() {
        let value = serde_json::json!({"name": "a\u{9b}2J\u{202e}b\u{e0041}\x1b\x7f"});
        let text = value.to_string();
        let safe = json(&text);
        assert!(safe.chars().all(is_printable), "{safe:?}");
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&safe).unwrap(),
            value
        );
    }

    #[test]
    fn colours_stay_where_they_are_wanted() {
        assert_eq!(colored("\x1b[31mred"), "\x1b[31mred\x1b[0m");
        assert_eq!(colored("\x1b[2Jx"), "x");
        assert_eq!(printed("\x1b[31mred", true), "\x1b[31mred\x1b[0m");
        assert_eq!(printed("\x1b[2Jx", true), "x");
    }

    #[test]
    fn times_and_sizes() {
        for (ms, shown) in [
            (0, "0.0s"),
            (449, "0.4s"),
            (59_960, "59.9s"),
            (60_000, "1m00s"),
            (123_000, "2m03s"),
            (3_725_000, "1h02m"),
        ] {
            assert_eq!(duration(ms), shown);
        }
        for (n, shown) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (999_960, "1.0 MB"),
            (12_345_678, "12.3 MB"),
        ] {
            assert_eq!(bytes(n), shown);
        }
    }
}
