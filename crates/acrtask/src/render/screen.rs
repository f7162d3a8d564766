//! Draws each frame over the previous one, without flicker.
//!
//! Each frame is one write, wrapped in a synchronized update. A line is overwritten and cleared to
//! its end, instead of being cleared first. The cursor is hidden during the display. It reappears
//! when the screen is dropped, when the program panics, and through [`restore_cursor`] before a
//! sudden exit.
//!
//! Not supported: terminals that neither reflow nor clip lines when they become narrower. There,
//! the previous frame may stay visible above.

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

/// Shows the cursor again if a screen had hidden it. Also ends an interrupted synchronized update.
pub(crate) fn restore_cursor() {
    if CURSOR_HIDDEN.swap(false, Ordering::SeqCst) {
        let mut out = io::stdout();
        // If even this fails, nothing else can help.
        let _ = out
            .write_all(format!("{END}{SHOW_CURSOR}").as_bytes())
            .and_then(|()| out.flush());
    }
}

/// Returns `true` while a frame is on the screen.
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

/// Terminal with a frame below its log.
#[derive(Debug)]
pub(crate) struct Screen<W: Write> {
    out: W,
    /// Lines of the current frame.
    drawn: Vec<String>,
    hidden: bool,
}

impl<W: Write> Screen<W> {
    /// Creates a screen that draws on `out`.
    pub(crate) fn new(out: W) -> Self {
        restore_cursor_on_panic();
        Self {
            out,
            drawn: Vec::new(),
            hidden: false,
        }
    }

    /// Prints the lines of `above` permanently, and draws `frame` below in place of the previous
    /// frame. `size` is the terminal's current size.
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
        let up = self.frame_rows(size);
        if up > 0 {
            let _ = write!(drawing, "\x1b[{up}A");
        }
        drawing.push('\r');
        for line in above.lines().chain(frame.iter().map(String::as_str)) {
            let line = text::sanitize(line);
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

    /// Returns the rows of the current frame. A terminal that became narrower has wrapped its
    /// lines.
    fn frame_rows(&self, size: Size) -> usize {
        self.drawn
            .iter()
            .map(|line| {
                text::display_width(line)
                    .div_ceil(size.columns.max(1))
                    .max(1)
            })
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

    /// Returns the text on a terminal after `draws`, and whether its cursor is hidden.
    fn draw_all(draws: &[(&str, &[&str])]) -> (String, bool) {
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
    fn frame_replaces_the_previous_one_and_lines_above_stay() {
        let (text, hidden) = draw_all(&[
            ("", &["one", "two", "three"]),
            ("kept 1\n", &["long line one", "2"]),
            ("kept 2\n", &["x"]),
        ]);
        assert_eq!(text, "kept 1\nkept 2\nx");
        assert!(!hidden, "the cursor is back after the screen is dropped");
    }

    #[test]
    fn empty_frame_clears_the_screen_and_shows_the_cursor() {
        let (text, hidden) = draw_all(&[("", &["one", "two"]), ("done\n", &[])]);
        assert_eq!((text.as_str(), hidden), ("done", false));
    }

    #[test]
    fn equal_frame_writes_nothing() {
        let mut bytes = Vec::new();
        let mut screen = Screen::new(&mut bytes);
        screen.draw("", &lines(&["one"]), SIZE).unwrap();
        let before = screen.out.len();
        screen.draw("", &lines(&["one"]), SIZE).unwrap();
        assert_eq!(screen.out.len(), before);
    }

    #[test]
    fn surplus_lines_scroll_away() {
        let (text, _) = draw_all(&[("1\n2\n3\n4\n5\n6\n7\n", &["frame"]), ("8\n", &["frame"])]);
        assert_eq!(text, "5\n6\n7\n8\nframe");
    }

    #[test]
    fn narrower_terminal_wraps_the_frame() {
        let mut bytes = Vec::new();
        let mut screen = Screen::new(&mut bytes);
        screen
            .draw("", &lines(&["0123456789", "ab"]), SIZE)
            .unwrap();
        assert_eq!(
            screen.frame_rows(Size {
                columns: 4,
                rows: 6
            }),
            4
        );
        drop(screen);
    }
}
