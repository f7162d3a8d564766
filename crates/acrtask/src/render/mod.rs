//! Shows a run while it runs, and what came of it.
//!
//! [`view`] folds events into a state; [`plain`], [`frame`] and [`summary`] are functions of it;
//! [`screen`] draws; this module reads events and the clock and puts them together. It writes on a
//! thread of its own: a reader that does not read delays the log and never the run's connections.
//! A reader that went away is no reason to stop a run: the rest of the log is dropped, silently.

pub(crate) mod cascades;
pub(crate) mod frame;
pub(crate) mod images;
pub(crate) mod plain;
pub(crate) mod proposals;
pub(crate) mod run;
pub(crate) mod screen;
pub(crate) mod style;
pub(crate) mod summary;
pub(crate) mod table;
pub(crate) mod text;
pub(crate) mod timers;
pub(crate) mod view;
pub(crate) mod webhooks;

#[cfg(test)]
mod schema_tests;
#[cfg(test)]
mod tests;

use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};

use acrtask_model::{Event, RunId};
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};

use self::{
    frame::{Size, frame},
    plain::{Detail, Lines},
    screen::Screen,
    style::Style,
    view::RunView,
};
use crate::args::{ColorWhen, RunOutput};

/// Time between two frames.
const TICK: Duration = Duration::from_millis(100);
/// Events that are taken at once.
const BATCH: usize = 512;

/// The form that a run is shown in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// A frame that is redrawn.
    Live(Style),
    /// Lines.
    Plain(Style),
    /// One event a line.
    Json,
}

impl Form {
    /// What `--output` and `--color` mean on this standard output.
    pub(crate) fn new(output: RunOutput, color: ColorWhen) -> Self {
        let terminal = io::stdout().is_terminal();
        let style = Style::new(color, terminal);
        let dumb = std::env::var_os("TERM").is_none_or(|t| t == "dumb");
        match output {
            RunOutput::Json => Self::Json,
            RunOutput::Text if terminal && !dumb => Self::Live(style),
            RunOutput::Text | RunOutput::Plain => Self::Plain(style),
        }
    }
}

/// What is shown of a run.
#[derive(Debug, Clone)]
pub(crate) enum Feed {
    /// Something happened in it.
    Event(Box<Event>),
    /// It has not begun, and this is why. For a frame; lines have no place for it.
    Waiting {
        /// The run.
        run: RunId,
        /// In one sentence.
        why: String,
    },
    /// Its runner was lost, and all of it begins anew.
    Again {
        /// The attempt that begins.
        attempt: u32,
    },
}

impl From<Event> for Feed {
    fn from(event: Event) -> Self {
        Self::Event(Box::new(event))
    }
}

/// Shows `events` until the run's last one was read or nobody sends any more, then the summary. Gives
/// back what is known of the run. `interrupted` turns true when the run is being stopped.
///
/// Blocks: call it on a thread where that is allowed, inside a runtime's context.
pub(crate) fn show<T: Into<Feed>>(
    runtime: &tokio::runtime::Handle,
    mut events: mpsc::Receiver<T>,
    interrupted: &watch::Receiver<bool>,
    form: Form,
) -> RunView {
    let mut renderer = Renderer::new(form, Output::new(io::stdout()));
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        let received = runtime.block_on(async {
            match form {
                Form::Live(_) => tokio::time::timeout(TICK, events.recv_many(&mut batch, BATCH))
                    .await
                    .ok(),
                Form::Plain(_) | Form::Json => Some(events.recv_many(&mut batch, BATCH).await),
            }
        });
        for next in batch.drain(..) {
            renderer.take(&next.into());
        }
        renderer.draw(*interrupted.borrow(), Timestamp::now());
        if received == Some(0) {
            return renderer.finish();
        }
    }
}

/// The state of a rendering.
struct Renderer<W: Write> {
    form: Form,
    view: RunView,
    lines: Lines,
    /// Lines that were made and not yet written.
    pending: String,
    out: Sink<W>,
    last_drawn: Option<Timestamp>,
}

enum Sink<W: Write> {
    Screen(Screen<Output<W>>),
    Stream(Output<W>),
}

impl<W: Write> Renderer<W> {
    fn new(form: Form, out: Output<W>) -> Self {
        let (lines, out) = match form {
            Form::Live(style) => (
                Lines::new(style, Detail::Folded),
                Sink::Screen(Screen::new(out)),
            ),
            Form::Plain(style) => (Lines::new(style, Detail::Full), Sink::Stream(out)),
            Form::Json => (Lines::new(Style::PLAIN, Detail::Full), Sink::Stream(out)),
        };
        Self {
            form,
            view: RunView::default(),
            lines,
            pending: String::new(),
            out,
            last_drawn: None,
        }
    }

    fn take(&mut self, feed: &Feed) {
        match feed {
            Feed::Event(event) => self.event(event),
            Feed::Waiting { run, why } => self.view.wait(run, why),
            Feed::Again { attempt } => {
                self.view = RunView::default();
                let (style, detail) = match self.form {
                    Form::Live(style) => (style, Detail::Folded),
                    Form::Plain(style) => (style, Detail::Full),
                    // A program sees the run begin again.
                    Form::Json => return,
                };
                self.lines = Lines::new(style, detail);
                let what = format!("the runner was lost; attempt {attempt} begins anew");
                self.pending.push_str(&style.warn(&what));
                self.pending.push('\n');
            }
        }
    }

    fn event(&mut self, event: &Event) {
        self.view.apply(event);
        match self.form {
            Form::Json => match serde_json::to_string(event) {
                Ok(line) => {
                    self.pending.push_str(&text::json(&line));
                    self.pending.push('\n');
                }
                Err(error) => tracing::error!(%error, "an event could not be written as JSON"),
            },
            Form::Live(_) | Form::Plain(_) => {
                self.lines.event(&self.view, event, &mut self.pending)
            }
        }
    }

    fn draw(&mut self, interrupted: bool, now: Timestamp) {
        match (&mut self.out, self.form) {
            (Sink::Screen(screen), Form::Live(style)) => {
                // A flood of events must not become a flood of frames.
                let recently = self
                    .last_drawn
                    .is_some_and(|last| view::millis(last, now) < 50);
                if recently && self.pending.len() < 1 << 16 {
                    return;
                }
                self.last_drawn = Some(now);
                let size = terminal_size();
                let frame = frame(&self.view, interrupted, now, size, style);
                // The output took note of what went wrong.
                let _ = screen.draw(&self.pending, &frame, size);
            }
            (Sink::Stream(out), Form::Json) => out.write(&self.pending),
            (Sink::Stream(out), _) => out.write(&text::terminal(&self.pending)),
            (Sink::Screen(_), _) => {}
        }
        self.pending.clear();
    }

    fn finish(mut self) -> RunView {
        match (&mut self.out, self.form) {
            (Sink::Screen(screen), Form::Live(style)) => {
                self.pending.push_str(&summary::summary(&self.view, style));
                let _ = screen.draw(&self.pending, &[], terminal_size());
            }
            (Sink::Stream(out), Form::Plain(style)) => {
                out.write(&text::terminal(&self.pending));
                out.write(&text::terminal(&summary::summary(&self.view, style)));
            }
            (Sink::Stream(out), _) => out.write(&self.pending),
            (Sink::Screen(_), _) => {}
        }
        self.view
    }
}

/// The terminal's size, or a usual one where it does not tell.
pub(crate) fn terminal_size() -> Size {
    let (rows, columns) = console::Term::stdout().size_checked().unwrap_or((24, 80));
    Size {
        columns: usize::from(columns).max(20),
        rows: usize::from(rows).max(2),
    }
}

/// An output whose reader may go away.
#[derive(Debug)]
struct Output<W: Write> {
    out: W,
    gone: bool,
}

impl<W: Write> Output<W> {
    fn new(out: W) -> Self {
        Self { out, gone: false }
    }

    fn write(&mut self, text: &str) {
        if !text.is_empty() {
            // `Write` below never fails.
            let _ = self.write_all(text.as_bytes()).and_then(|()| self.flush());
        }
    }
}

impl<W: Write> Write for Output<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.gone
            && let Err(error) = self.out.write_all(bytes)
        {
            self.gone = true;
            if error.kind() != io::ErrorKind::BrokenPipe {
                tracing::error!(%error, "the log can no longer be written to standard output");
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.gone && self.out.flush().is_err() {
            self.gone = true;
        }
        Ok(())
    }
}
