//! Draws a frame over the one before, without flicker.
//!
//! One write for each frame, between the marks of a synchronized update; each line is overwritten and
//! cleared to its end rather than cleared first. The cursor is hidden meanwhile, and comes back when the
//! screen is dropped, when the program panics, and through [`restore_cursor`] before a sudden exit.
//!
//! Left out: what a terminal does that neither reflows nor clips lines when it becomes narrower; there
//! the frame of before the change may stay above.

use std::{
    fmt::Write as _,
    io::{self, Write},
    sync::{
        Once,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{frame::Size, text};

const BEGIN: &str = "\x1b[?2026h";
const END: &str = "\x1b[?2026l";
const HIDE_CURSOR: &str = "\x1b[?25l";
const SHOW_CURSOR: &str = "\x1b[?25h";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";

static CURSOR_HIDDEN: AtomicBool = AtomicBool::new(false);

/// Shows the cursor again where a screen had hidden it. Also ends a synchronized update that was cut off.
pub(crate) fn restore_cursor() {
    if CURSOR_HIDDEN.swap(false, Ordering::SeqCst) {
        let mut out = io::stdout();
        // Nothing is left to do where even this fails.
        let _ = out
            .write_all(format!("{END}{SHOW_CURSOR}").as_bytes())
            .and_then(|()| out.flush());
    }
}

/// Whether a frame stands on the screen now.
pub(crate) fn frame_is_shown() -> bool {
    CURSOR_HIDDEN.load(Ordering::SeqCst)
}

fn restore_cursor_on_panic() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore_cursor();
            before(info);
        }));
    });
}

/// A terminal with a frame at its end.
#[derive(Debug)]
pub(crate) struct Screen<W: Write> {
    out: W,
    /// The lines of the frame as they stand.
    drawn: Vec<String>,
    hidden: bool,
}

impl<W: Write> Screen<W> {
    /// A screen that draws on `out`.
    pub(crate) fn new(out: W) -> Self {
        restore_cursor_on_panic();
        Self {
            out,
            drawn: Vec::new(),
            hidden: false,
        }
    }

    /// Puts `above` (whole lines) where it stays, and `frame` below it in place of the one before.
    /// `size` is the terminal's size now.
    pub(crate) fn draw(&mut self, above: &str, frame: &[String], size: Size) -> io::Result<()> {
        if above.is_empty() && frame == self.drawn {
            return Ok(());
        }
        let mut drawing = String::from(BEGIN);
        if !self.hidden && !frame.is_empty() {
            drawing.push_str(HIDE_CURSOR);
            self.hidden = true;
            CURSOR_HIDDEN.store(true, Ordering::SeqCst);
        }
        let up = self.rows(size);
        if up > 0 {
            let _ = write!(drawing, "\x1b[{up}A");
        }
        drawing.push('\r');
        for line in above.lines().chain(frame.iter().map(String::as_str)) {
            let line = text::terminal(line);
            let _ = write!(drawing, "{line}{CLEAR_LINE}\r\n");
        }
        drawing.push_str(CLEAR_BELOW);
        if self.hidden && frame.is_empty() {
            drawing.push_str(SHOW_CURSOR);
            self.hidden = false;
            CURSOR_HIDDEN.store(false, Ordering::SeqCst);
        }
        drawing.push_str(END);
        self.drawn = frame.to_vec();
        self.out.write_all(drawing.as_bytes())?;
        self.out.flush()
    }

    /// Rows that the frame takes now: a terminal that became narrower has wrapped its lines.
    fn rows(&self, size: Size) -> usize {
        self.drawn
            .iter()
            .map(|line| text::width(line).div_ceil(size.columns.max(1)).max(1))
            .sum()
    }
}

impl<W: Write> Drop for Screen<W> {
    fn drop(&mut self) {
        if self.hidden {
            CURSOR_HIDDEN.store(false, Ordering::SeqCst);
            let _ = self
                .out
                .write_all(SHOW_CURSOR.as_bytes())
                .and_then(|()| self.out.flush());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size {
        columns: 20,
        rows: 6,
    };

    fn lines(text: &[&str]) -> Vec<String> {
        text.iter().map(|&t| t.to_owned()).collect()
    }

    /// What a terminal shows after `draws`, and whether its cursor is hidden.
    fn shown(draws: &[(&str, &[&str])]) -> (String, bool) {
        let mut bytes = Vec::new();
        let mut screen = Screen::new(&mut bytes);
        for (above, frame) in draws {
            screen.draw(above, &lines(frame), SIZE).unwrap();
        }
        drop(screen);
        let mut terminal = vt100::Parser::new(6, 20, 100);
        terminal.process(&bytes);
        (
            terminal.screen().contents(),
            terminal.screen().hide_cursor(),
        )
    }

    #[test]
    fn a_frame_replaces_the_one_before_and_lines_above_stay() {
        let (text, hidden) = shown(&[
            ("", &["one", "two", "three"]),
            ("kept 1\n", &["long line one", "2"]),
            ("kept 2\n", &["x"]),
        ]);
        assert_eq!(text, "kept 1\nkept 2\nx");
        assert!(!hidden, "the cursor is back after the screen is dropped");
    }

    #[test]
    fn an_empty_frame_clears_and_shows_the_cursor() {
        let (text, hidden) = shown(&[("", &["one", "two"]), ("done\n", &[])]);
        assert_eq!((text.as_str(), hidden), ("done", false));
    }

    #[test]
    fn the_same_frame_writes_nothing() {
        let mut bytes = Vec::new();
        let mut screen = Screen::new(&mut bytes);
        screen.draw("", &lines(&["one"]), SIZE).unwrap();
        let before = screen.out.len();
        screen.draw("", &lines(&["one"]), SIZE).unwrap();
        assert_eq!(screen.out.len(), before);
    }

    #[test]
    fn more_lines_than_rows_scroll_away() {
        let (text, _) = shown(&[("1\n2\n3\n4\n5\n6\n7\n", &["frame"]), ("8\n", &["frame"])]);
        assert_eq!(text, "5\n6\n7\n8\nframe");
    }

    #[test]
    fn a_narrower_terminal_has_wrapped_the_frame() {
        let mut bytes = Vec::new();
        let mut screen = Screen::new(&mut bytes);
        screen
            .draw("", &lines(&["0123456789", "ab"]), SIZE)
            .unwrap();
        assert_eq!(
            screen.rows(Size {
                columns: 4,
                rows: 6
            }),
            4
        );
        drop(screen);
    }
}
