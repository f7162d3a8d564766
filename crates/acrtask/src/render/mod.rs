//! Live display, log and summary of a run.
//!
//! [`view`] folds events into a state; [`plain`], [`frame`] and [`summary`] are functions of that
//! state. [`screen`] draws; this module connects them with the events and the clock. Rendering runs
//! on its own thread, so a slow reader of the log never blocks the run's connections. A closed
//! standard output does not stop a run: the rest of the log is dropped silently.

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
    frame::{Size, render_frame},
    plain::{Detail, LineRenderer},
    screen::Screen,
    style::Style,
    view::RunView,
};
use crate::args::{ColorWhen, RunOutput};

/// Interval between two frames.
const FRAME_INTERVAL: Duration = Duration::from_millis(100);
/// Maximum number of events per batch.
const BATCH: usize = 512;

/// Forms of a run's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Frame that is redrawn.
    Live(Style),
    /// Lines of text.
    Plain(Style),
    /// JSON with one event per line.
    Json,
}

impl Form {
    /// Combines `--output` and `--color` with the kind of standard output.
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

/// Input of the renderer.
#[derive(Debug, Clone)]
pub(crate) enum Feed {
    /// Event of the run.
    Event(Box<Event>),
    /// Reason why the run has not started; shown in a live frame only.
    Waiting {
        /// The run.
        run: RunId,
        /// Reason in one sentence.
        why: String,
    },
    /// New attempt after the runner was lost; all previous events are obsolete.
    NewAttempt {
        /// Number of the new attempt.
        attempt: u32,
    },
}

impl From<Event> for Feed {
    fn from(event: Event) -> Self {
        Self::Event(Box::new(event))
    }
}

/// Shows `events` until the run's last event or the end of the channel, then the summary. Returns
/// the state of the run. `interrupted` becomes `true` when the run is being stopped.
///
/// Blocks, so call it on a blocking thread inside a runtime's context.
pub(crate) fn render_events<T: Into<Feed>>(
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
                Form::Live(_) => {
                    tokio::time::timeout(FRAME_INTERVAL, events.recv_many(&mut batch, BATCH))
                        .await
                        .ok()
                }
                Form::Plain(_) | Form::Json => Some(events.recv_many(&mut batch, BATCH).await),
            }
        });
        for next in batch.drain(..) {
            renderer.accept(&next.into());
        }
        renderer.draw(*interrupted.borrow(), Timestamp::now());
        if received == Some(0) {
            return renderer.finish();
        }
    }
}

/// Renderer and its state.
struct Renderer<W: Write> {
    form: Form,
    view: RunView,
    lines: LineRenderer,
    /// Lines that are not written yet.
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
                LineRenderer::new(style, Detail::Reduced),
                Sink::Screen(Screen::new(out)),
            ),
            Form::Plain(style) => (LineRenderer::new(style, Detail::Full), Sink::Stream(out)),
            Form::Json => (
                LineRenderer::new(Style::PLAIN, Detail::Full),
                Sink::Stream(out),
            ),
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

    fn accept(&mut self, feed: &Feed) {
        match feed {
            Feed::Event(event) => self.accept_event(event),
            Feed::Waiting { run, why } => self.view.set_waiting(run, why),
            Feed::NewAttempt { attempt } => {
                self.view = RunView::default();
                let (style, detail) = match self.form {
                    Form::Live(style) => (style, Detail::Reduced),
                    Form::Plain(style) => (style, Detail::Full),
                    // A program sees the new events itself.
                    Form::Json => return,
                };
                self.lines = LineRenderer::new(style, detail);
                let message = format!("the runner was lost; attempt {attempt} starts");
                self.pending.push_str(&style.warn(&message));
                self.pending.push('\n');
            }
        }
    }

    fn accept_event(&mut self, event: &Event) {
        self.view.apply(event);
        match self.form {
            Form::Json => match serde_json::to_string(event) {
                Ok(line) => {
                    self.pending.push_str(&text::escape_json(&line));
                    self.pending.push('\n');
                }
                Err(error) => tracing::error!(%error, "cannot write an event as JSON"),
            },
            Form::Live(_) | Form::Plain(_) => {
                self.lines.write_event(&self.view, event, &mut self.pending)
            }
        }
    }

    fn draw(&mut self, interrupted: bool, now: Timestamp) {
        match (&mut self.out, self.form) {
            (Sink::Screen(screen), Form::Live(style)) => {
                // Limits the frame rate during bursts of events.
                let recently = self
                    .last_drawn
                    .is_some_and(|last| view::millis_between(last, now) < 50);
                if recently && self.pending.len() < 1 << 16 {
                    return;
                }
                self.last_drawn = Some(now);
                let size = terminal_size();
                let frame = render_frame(&self.view, interrupted, now, size, style);
                // `Output` has already logged the error.
                let _ = screen.draw(&self.pending, &frame, size);
            }
            (Sink::Stream(out), Form::Json) => out.write(&self.pending),
            (Sink::Stream(out), _) => out.write(&text::sanitize(&self.pending)),
            (Sink::Screen(_), _) => {}
        }
        self.pending.clear();
    }

    fn finish(mut self) -> RunView {
        match (&mut self.out, self.form) {
            (Sink::Screen(screen), Form::Live(style)) => {
                self.pending
                    .push_str(&summary::render_summary(&self.view, style));
                let _ = screen.draw(&self.pending, &[], terminal_size());
            }
            (Sink::Stream(out), Form::Plain(style)) => {
                out.write(&text::sanitize(&self.pending));
                out.write(&text::sanitize(&summary::render_summary(&self.view, style)));
            }
            (Sink::Stream(out), _) => out.write(&self.pending),
            (Sink::Screen(_), _) => {}
        }
        self.view
    }
}

/// Returns the terminal's size, or 80 by 24 if it is unknown.
pub(crate) fn terminal_size() -> Size {
    let (rows, columns) = console::Term::stdout().size_checked().unwrap_or((24, 80));
    Size {
        columns: usize::from(columns).max(20),
        rows: usize::from(rows).max(2),
    }
}

/// Output that ignores writes after its reader closed it.
#[derive(Debug)]
struct Output<W: Write> {
    out: W,
    closed: bool,
}

impl<W: Write> Output<W> {
    fn new(out: W) -> Self {
        Self { out, closed: false }
    }

    fn write(&mut self, text: &str) {
        if !text.is_empty() {
            // `Write` below never returns an error.
            let _ = self.write_all(text.as_bytes()).and_then(|()| self.flush());
        }
    }
}

impl<W: Write> Write for Output<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.closed
            && let Err(error) = self.out.write_all(bytes)
        {
            self.closed = true;
            if error.kind() != io::ErrorKind::BrokenPipe {
                tracing::error!(%error, "cannot write the log to standard output");
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.closed && self.out.flush().is_err() {
            self.closed = true;
        }
        Ok(())
    }
}
