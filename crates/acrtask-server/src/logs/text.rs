//! Conversion of the events of a log to readable lines. Skips events that this version does not
//! support. Pure.
//!
//! The lines of an event belong to one step, or to the run. This is the only rendering of events at
//! the server: for downloads, pages of lines and searches.

use std::{borrow::Cow, collections::HashMap, fmt::Write as _};

use acrtask_model::{Event, EventKind, StepId, StepState, events::Vertex};
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::split::{RawEvent, Splitter};

/// Text of a line that is longer than an event can be.
const SKIPPED: &str = "skipped a line that is not an event";
/// Size of a piece of text after which the next one begins, in bytes.
const PIECE: usize = 64 << 10;
/// Maximum number of vertices whose first event is recorded.
const MAX_VERTICES: usize = 10_000;
/// Size of the start of an event that names its kind, in bytes.
pub(super) const HEAD: usize = 200;
/// Marker of output in the JSON of an event. Text contains no such marker, because its quotes are
/// escaped.
pub(super) const OUTPUT: &[u8] = br#""event":"output""#;

/// Event of a log. Output is most of a log, so its text is parsed without a copy if possible.
#[derive(Debug)]
pub(crate) enum LogEvent<'b> {
    Output(OutputEvent<'b>),
    Other(Box<Event>),
    /// A line that is longer than an event can be.
    Skipped,
}

/// Output of a step.
#[derive(Debug, Deserialize)]
pub(crate) struct OutputEvent<'b> {
    #[serde(borrow)]
    event: Cow<'b, str>,
    #[serde(borrow)]
    time: Cow<'b, str>,
    #[serde(borrow)]
    pub(crate) step: Cow<'b, str>,
    #[serde(borrow)]
    pub(crate) text: Cow<'b, str>,
}

impl<'b> LogEvent<'b> {
    /// Parses an event. `None` if the line is not an event that this version supports.
    pub(crate) fn parse(raw: RawEvent<'b>) -> Option<Self> {
        let Some(line) = raw.content else {
            return Some(Self::Skipped);
        };
        let head = line.get(..HEAD).unwrap_or(line);
        if memchr::memmem::find(head, OUTPUT).is_some()
            && let Ok(output) = serde_json::from_slice::<OutputEvent<'b>>(line)
            && output.event == "output"
            && StepId::is_valid(&output.step)
        {
            return Some(Self::Output(output));
        }
        let event: Event = serde_json::from_slice(line).ok()?;
        Some(match event.kind {
            EventKind::Output { step, text, .. } => Self::Output(OutputEvent {
                event: "output".into(),
                time: event.time.to_string().into(),
                step: String::from(step).into(),
                text: text.into(),
            }),
            _ => Self::Other(Box::new(event)),
        })
    }

    /// Returns the step of the event. `None` for an event of the run.
    pub(crate) fn step(&self) -> Option<&str> {
        match self {
            Self::Output(output) => Some(&output.step),
            Self::Other(event) => step_of(&event.kind).map(StepId::as_str),
            Self::Skipped => None,
        }
    }

    /// Returns the time of the event.
    pub(crate) fn time(&self) -> Option<Timestamp> {
        match self {
            Self::Output(output) => output.time.parse().ok(),
            Self::Other(event) => Some(event.time),
            Self::Skipped => None,
        }
    }

    /// Returns the number of lines.
    pub(crate) fn count_lines(&self, names_vertex: bool) -> u64 {
        if let Self::Output(output) = self {
            let text = output.text.trim_end_matches('\n');
            return 1 + memchr::memchr_iter(b'\n', text.as_bytes()).count() as u64;
        }
        let mut lines = 0;
        self.render(names_vertex, &mut |_| lines += 1);
        lines
    }

    /// Passes each line to `each`. `names_vertex` is the verdict of [`VertexLines`].
    pub(crate) fn render(&self, names_vertex: bool, each: &mut dyn FnMut(&str)) {
        match self {
            Self::Output(output) => split_lines(&output.text, each),
            Self::Other(event) => render_event(&event.kind, names_vertex, each),
            Self::Skipped => each(SKIPPED),
        }
    }
}

/// Returns the step of an event. `None` for an event of the run.
fn step_of(kind: &EventKind) -> Option<&StepId> {
    match kind {
        EventKind::TaskFile { .. }
        | EventKind::RunStarted { .. }
        | EventKind::Progress { .. }
        | EventKind::RunFinished { .. } => None,
        EventKind::Warning { step, .. } => step.as_ref(),
        EventKind::StepStarted { step, .. }
        | EventKind::Output { step, .. }
        | EventKind::Vertex { step, .. }
        | EventKind::Transfer { step, .. }
        | EventKind::StepRetrying { step, .. }
        | EventKind::StepFinished { step, .. }
        | EventKind::ImageBuilt { step, .. }
        | EventKind::ImagePushed { step, .. }
        | EventKind::BaseUsed { step, .. } => Some(step),
    }
}

/// Positions of the events that print the names of vertices: the first one of each vertex that
/// has started. A part of a log is rendered with the positions from the whole log.
///
/// After [`MAX_VERTICES`] vertices, the name is printed by each event of a running vertex.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct VertexLines(HashMap<u64, u64>);

impl VertexLines {
    /// Records an event of the whole log. Returns `true` if it prints the name of its vertex.
    pub(crate) fn record(&mut self, event: &LogEvent<'_>, offset: u64) -> bool {
        if let Some((key, _)) = started_vertex(event)
            && self.0.len() < MAX_VERTICES
        {
            self.0.entry(key).or_insert(offset);
        }
        self.names_vertex(event, offset)
    }

    /// Returns `true` if the recorded event at `offset` prints the name of its vertex.
    pub(crate) fn names_vertex(&self, event: &LogEvent<'_>, offset: u64) -> bool {
        let Some((key, vertex)) = started_vertex(event) else {
            return false;
        };
        match self.0.get(&key) {
            Some(first) => *first == offset,
            None => vertex.completed.is_none(),
        }
    }
}

/// Returns the vertex of an event, if it has started, with a key for its step and digest.
fn started_vertex<'e>(event: &'e LogEvent<'_>) -> Option<(u64, &'e Vertex)> {
    let LogEvent::Other(event) = event else {
        return None;
    };
    let EventKind::Vertex { step, vertex } = &event.kind else {
        return None;
    };
    vertex.started?;
    let hash = Sha256::new()
        .chain_update(step.as_str())
        .chain_update([0])
        .chain_update(&vertex.vertex)
        .finalize();
    let key = hash[..8]
        .iter()
        .fold(0, |key, byte| (key << 8) | u64::from(*byte));
    Some((key, vertex))
}

/// Incremental converter of event bytes to text.
///
/// Each line of the text has the id of its step, so the text can be much longer than the bytes.
/// [`Lines::next_piece`] returns it in pieces of about [`PIECE`] bytes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lines {
    splitter: Splitter,
    vertices: VertexLines,
    /// Bytes that are not split yet.
    input: Bytes,
    rest: Rest,
}

/// Lines of an event that did not fit into a piece.
#[derive(Debug, Clone, Default)]
struct Rest {
    prefix: String,
    /// Lines without the prefix. Each has a line end.
    lines: String,
    /// Start of the next line in `lines`.
    next: usize,
}

impl Rest {
    fn is_empty(&self) -> bool {
        self.next == self.lines.len()
    }

    /// Moves lines to `out` until it has [`PIECE`] bytes.
    fn move_to(&mut self, out: &mut String) {
        while out.len() < PIECE && !self.is_empty() {
            let left = &self.lines[self.next..];
            let end = memchr::memchr(b'\n', left.as_bytes()).map_or(left.len(), |at| at + 1);
            out.push_str(&self.prefix);
            out.push_str(&left[..end]);
            self.next += end;
        }
        if self.is_empty() {
            *self = Self::default();
        }
    }
}

impl Lines {
    /// Adds bytes of the log. Call it after [`Lines::next_piece`] has returned `None`.
    pub(crate) fn push(&mut self, bytes: Bytes) {
        self.input = bytes;
    }

    /// Returns the approximate memory of the state, in bytes.
    pub(crate) fn memory(&self) -> usize {
        let waiting = self.input.len() + self.rest.lines.len();
        self.splitter.buffered() + self.vertices.0.capacity() * 24 + waiting
    }

    /// Adds the lines of a last event without a line end. Call it after the last
    /// [`Lines::next_piece`] of the last bytes.
    pub(crate) fn finish(&mut self) {
        let (vertices, rest) = (&mut self.vertices, &mut self.rest);
        self.splitter
            .finish(|raw| write_event(raw, vertices, None, rest));
    }

    /// Returns the next piece of the text. `None` if more bytes are needed.
    pub(crate) fn next_piece(&mut self) -> Option<String> {
        let mut out = String::new();
        self.rest.move_to(&mut out);
        while out.len() < PIECE && self.rest.is_empty() && !self.input.is_empty() {
            let end = memchr::memchr(b'\n', &self.input).map_or(self.input.len(), |at| at + 1);
            let line = self.input.split_to(end);
            let (vertices, rest) = (&mut self.vertices, &mut self.rest);
            self.splitter.push(&line, |raw| {
                write_event(raw, vertices, Some(&mut out), rest)
            });
        }
        (!out.is_empty()).then_some(out)
    }
}

/// Writes the lines of an event as `STEP | TEXT` to `out`. Lines that do not fit go to `rest`.
fn write_event(
    raw: RawEvent<'_>,
    vertices: &mut VertexLines,
    mut out: Option<&mut String>,
    rest: &mut Rest,
) {
    let Some(event) = LogEvent::parse(raw) else {
        return;
    };
    let names_vertex = vertices.record(&event, raw.start);
    let prefix = event.step().map(|step| format!("{step} | "));
    let prefix = prefix.unwrap_or_default();
    event.render(names_vertex, &mut |line| {
        let target = match out.as_mut().filter(|out| out.len() < PIECE) {
            Some(out) => {
                out.push_str(&prefix);
                out
            }
            None => &mut rest.lines,
        };
        target.push_str(line);
        target.push('\n');
    });
    if !rest.is_empty() {
        rest.prefix = prefix;
    }
}

/// Passes each line of a text to `each`.
fn split_lines(text: &str, each: &mut dyn FnMut(&str)) {
    for line in text.trim_end_matches('\n').split('\n') {
        // On a terminal, a carriage return would overwrite the name of the step.
        let line = line.trim_end_matches('\r').rsplit('\r').next();
        each(line.unwrap_or_default());
    }
}

fn render_event(kind: &EventKind, names_vertex: bool, each: &mut dyn FnMut(&str)) {
    let mut print = |text: &str| split_lines(text, each);
    match kind {
        EventKind::TaskFile { name, problems, .. } => {
            for problem in problems {
                let word = if problem.error { "error" } else { "warning" };
                print(&format!(
                    "{word}[{}]: {name}: {}",
                    problem.code, problem.message
                ));
                if let Some(help) = &problem.help {
                    print(&format!("  help: {help}"));
                }
            }
        }
        EventKind::RunStarted {
            steps,
            engine,
            builder,
        } => {
            let count = acrtask_model::count(steps.len(), "step");
            print(&format!("{count}; containers: {engine}; builds: {builder}"));
        }
        EventKind::Progress { message } => print(message),
        EventKind::StepStarted { attempt, .. } => match attempt {
            0 | 1 => print("started"),
            number => print(&format!("attempt {number}")),
        },
        EventKind::Output { text, .. } => print(text),
        EventKind::Vertex { vertex, .. } => {
            if names_vertex {
                let cached = if vertex.cached { " (cached)" } else { "" };
                print(&format!("{}{cached}", vertex.name));
            }
            if !vertex.error.is_empty() {
                print(&format!("error: {}", vertex.error));
            }
        }
        EventKind::Transfer { .. } => {}
        EventKind::StepRetrying {
            attempt,
            delay_secs,
            reason,
            ..
        } => print(&format!(
            "attempt {attempt} failed: {reason}; the next one in {delay_secs} s"
        )),
        EventKind::StepFinished {
            state,
            elapsed_ms,
            excerpt,
            ..
        } => {
            if let Some(excerpt) = excerpt {
                print(excerpt);
            }
            let time = format_seconds(*elapsed_ms);
            print(&format!("{} in {time}", format_state(state)));
        }
        EventKind::ImageBuilt { names, digest, .. } => {
            for name in names {
                print(&format!("built {name} {digest}"));
            }
        }
        EventKind::ImagePushed {
            name,
            digest,
            tag_deferred: true,
            ..
        } => print(&format!("staged {name} {digest} (no tag yet)")),
        EventKind::ImagePushed { name, digest, .. } => print(&format!("pushed {name} {digest}")),
        EventKind::BaseUsed { name, digest, .. } => print(&format!("base {name} {digest}")),
        EventKind::Warning { message, help, .. } => {
            print(&format!("warning: {message}"));
            if let Some(help) = help {
                print(&format!("  help: {help}"));
            }
        }
        EventKind::RunFinished {
            outcome,
            elapsed_ms,
            remaining,
        } => {
            for left in remaining {
                print(&format!("left: {left}"));
            }
            let mut text = format!("run {} in {}", outcome.state, format_seconds(*elapsed_ms));
            if let Some(reason) = &outcome.reason {
                let _ = write!(text, ": {reason}");
            }
            print(&text);
        }
    }
}

fn format_state(state: &StepState) -> String {
    match state {
        StepState::Failed { reason, .. } => format!("{state}: {reason}"),
        StepState::Skipped { cause } | StepState::Canceled { cause } => {
            format!("{state}: {cause}")
        }
        _ => state.to_string(),
    }
}

fn format_seconds(ms: u64) -> String {
    format!("{}.{} s", ms / 1000, ms % 1000 / 100)
}

#[cfg(test)]
#[path = "text_tests.rs"]
mod tests;
