//! Text for people: widths, times, sizes, and what a step printed made safe to show. Pure.

use std::borrow::Cow;

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

/// What a step printed, with nothing in it that could move the cursor, ring or recolour: no escape
/// sequences, no control characters; tabs become blanks; of a line that was overwritten with carriage
/// returns, the last state.
pub(crate) fn plain(line: &str) -> Cow<'_, str> {
    clean(line, false)
}

/// The same, but colours stay, and are switched off at the end.
pub(crate) fn colored(line: &str) -> Cow<'_, str> {
    clean(line, true)
}

fn clean(line: &str, colors: bool) -> Cow<'_, str> {
    if !line.contains(|c: char| c.is_control()) {
        return Cow::Borrowed(line);
    }
    let line = line.trim_end_matches(['\r', '\n']);
    let line = line
        .rsplit('\r')
        .find(|part| !part.is_empty())
        .unwrap_or("");
    let mut out = String::with_capacity(line.len());
    let mut colored = false;
    for (part, is_ansi) in console::AnsiCodeIterator::new(line) {
        if is_ansi {
            if colors && part.starts_with("\x1b[") && part.ends_with('m') {
                out.push_str(part);
                colored = true;
            }
            continue;
        }
        for c in part.chars() {
            match c {
                '\t' => out.push_str("    "),
                c if c.is_control() => {}
                c => out.push(c),
            }
        }
    }
    if colored {
        out.push_str("\x1b[0m");
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

/// `1 step`, `2 steps`.
pub(crate) fn count(n: usize, one: &str) -> String {
    if n == 1 {
        format!("1 {one}")
    } else {
        format!("{n} {one}s")
    }
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
            assert_eq!(plain(line), shown, "{line:?}");
        }
    }

    #[test]
    fn colours_stay_where_they_are_wanted() {
        assert_eq!(colored("\x1b[31mred"), "\x1b[31mred\x1b[0m");
        assert_eq!(colored("\x1b[2Jx"), "x");
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
