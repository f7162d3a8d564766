//! The path of a step's output to its events: masked, cut into lines, and searched for retry texts.
//!
//! No output is lost and memory is bounded. [`StepOutput::line_sink`] accepts chunks of any size
//! and sends complete lines at once. It waits while the receiver is slow, so that in the end the
//! container itself waits. A line without an end is sent in pieces, after [`MAX_LINE`] bytes and
//! after [`LINE_WAIT`], so that prompts and progress bars appear. No piece contains bytes that the
//! masker still buffers.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use acrtask_model::{
    Event, EventKind, Masker, Outcome, RunId, StepId, StepState, events::Stream, mask::Patterns,
};
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};
use tokio_util::task::AbortOnDropHandle;

/// Maximum length of a piece of one line, in bytes.
pub(crate) const MAX_LINE: usize = 64 * 1024;

/// Maximum time that the beginning of a line waits for its end.
const LINE_WAIT: Duration = Duration::from_millis(500);

/// Number of lines of a failed step that its last event repeats.
const TAIL_LINES: usize = 20;
/// Maximum length of such a line, in characters.
const TAIL_LINE_CHARS: usize = 400;

/// Sends the events of one run. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Events {
    run: RunId,
    sender: mpsc::Sender<Event>,
    patterns: Patterns,
}

impl Events {
    pub(crate) fn new(run: RunId, sender: mpsc::Sender<Event>, patterns: Patterns) -> Self {
        Self {
            run,
            sender,
            patterns,
        }
    }

    /// Sends an event and waits while the receiver is slow. If the receiver is closed, the run
    /// continues without it. Masks messages, which may quote a line of the task.
    pub(crate) async fn send(&self, kind: EventKind) {
        let event = Event {
            time: now(),
            run: self.run.clone(),
            kind: self.mask_event(kind),
        };
        let _ = self.sender.send(event).await;
    }

    fn mask_event(&self, kind: EventKind) -> EventKind {
        let mask = |text: String| self.patterns.mask(&text);
        match kind {
            EventKind::Warning {
                step,
                message,
                help,
            } => EventKind::Warning {
                step,
                message: mask(message),
                help: help.map(mask),
            },
            EventKind::Progress { message } => EventKind::Progress {
                message: mask(message),
            },
            EventKind::StepRetrying {
                step,
                attempt,
                delay_secs,
                reason,
            } => EventKind::StepRetrying {
                step,
                attempt,
                delay_secs,
                reason: mask(reason),
            },
            EventKind::StepFinished {
                step,
                state,
                elapsed_ms,
                log_tail,
                excerpt,
            } => EventKind::StepFinished {
                step,
                state: match state {
                    StepState::Failed {
                        reason,
                        exit_code,
                        ignored,
                    } => StepState::Failed {
                        reason: mask(reason),
                        exit_code,
                        ignored,
                    },
                    other => other,
                },
                elapsed_ms,
                log_tail: log_tail.into_iter().map(mask).collect(),
                excerpt: excerpt.map(mask),
            },
            EventKind::RunFinished {
                outcome,
                elapsed_ms,
                remaining,
            } => EventKind::RunFinished {
                outcome: Outcome {
                    reason: outcome.reason.map(mask),
                    ..outcome
                },
                elapsed_ms,
                remaining: remaining.into_iter().map(mask).collect(),
            },
            other => other,
        }
    }

    pub(crate) async fn warn(
        &self,
        step: Option<&StepId>,
        message: impl Into<String>,
        help: Option<String>,
    ) {
        self.send(EventKind::Warning {
            step: step.cloned(),
            message: message.into(),
            help,
        })
        .await;
    }
}

/// Returns the time of an event.
#[allow(
    clippy::disallowed_methods,
    reason = "the time of an event is the time of its creation"
)]
pub(crate) fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

/// The destination of a step's output.
#[derive(Debug, Clone)]
pub(crate) struct StepOutput {
    pub(crate) step: StepId,
    pub(crate) events: Events,
    patterns: Patterns,
    tail: Arc<Mutex<VecDeque<String>>>,
    search: Arc<Mutex<RetryTextSearch>>,
}

/// The search of an attempt's output for the texts of `retryOnErrors`.
#[derive(Debug, Default)]
struct RetryTextSearch {
    needles: Vec<Vec<u8>>,
    found: bool,
}

impl StepOutput {
    pub(crate) fn new(
        step: StepId,
        events: Events,
        patterns: Patterns,
        retry_on_errors: &[String],
    ) -> Self {
        let needles = retry_on_errors
            .iter()
            .filter(|text| !text.is_empty())
            .map(|text| text.as_bytes().to_vec())
            .collect();
        Self {
            step,
            events,
            patterns,
            tail: Arc::default(),
            search: Arc::new(Mutex::new(RetryTextSearch {
                needles,
                found: false,
            })),
        }
    }

    /// Begins a new attempt. Only the output of this attempt decides about the next retry.
    pub(crate) fn begin_attempt(&self) {
        lock(&self.search).found = false;
    }

    /// Returns `true` if this attempt's output contained one of the texts.
    pub(crate) fn found_retry_text(&self) -> bool {
        lock(&self.search).found
    }

    /// Returns the last lines of both streams, masked.
    pub(crate) fn tail(&self) -> Vec<String> {
        lock(&self.tail).iter().cloned().collect()
    }

    /// Returns a sink for one stream of one process.
    pub(crate) fn line_sink(&self, stream: Stream) -> LineSink {
        self.new_sink(stream, None)
    }

    /// Returns a sink for one stream of one vertex of a build.
    pub(crate) fn vertex_sink(&self, stream: Stream, vertex: String) -> LineSink {
        self.new_sink(stream, Some(vertex))
    }

    fn new_sink(&self, stream: Stream, vertex: Option<String>) -> LineSink {
        LineSink {
            masker: Masker::new(self.patterns.clone()),
            carry: Vec::new(),
            lines: Arc::new(LineSender {
                output: self.clone(),
                stream,
                vertex,
                open: tokio::sync::Mutex::default(),
                opened: Notify::new(),
            }),
            flusher: None,
        }
    }

    /// Prints a line of the executor itself or of a built-in command.
    pub(crate) async fn print_line(&self, stream: Stream, text: &str) {
        self.search_retry_texts(text.as_bytes());
        let text = self.patterns.mask(text);
        self.emit(stream, None, text).await;
    }

    /// Returns `text` with every secret masked.
    pub(crate) fn mask(&self, text: &str) -> String {
        self.patterns.mask(text)
    }

    /// Searches bytes for the texts of `retryOnErrors` that reach the log in another form.
    pub(crate) fn search_retry_texts(&self, bytes: &[u8]) {
        let mut search = lock(&self.search);
        if !search.found {
            search.found = search
                .needles
                .iter()
                .any(|needle| contains_bytes(bytes, needle));
        }
    }

    async fn emit(&self, stream: Stream, vertex: Option<String>, text: String) {
        {
            let mut tail = lock(&self.tail);
            let lines: Vec<&str> = text.lines().rev().take(TAIL_LINES).collect();
            for line in lines.into_iter().rev() {
                if tail.len() == TAIL_LINES {
                    tail.pop_front();
                }
                tail.push_back(line.chars().take(TAIL_LINE_CHARS).collect());
            }
        }
        self.events
            .send(EventKind::Output {
                step: self.step.clone(),
                stream,
                vertex,
                text,
            })
            .await;
    }
}

/// Converts the chunks of one stream to events.
#[derive(Debug)]
pub(crate) struct LineSink {
    masker: Masker,
    /// The end of the last chunk, in which a watched text may begin.
    carry: Vec<u8>,
    lines: Arc<LineSender>,
    /// Task that sends a line that stays open. `None` until a chunk ends with an open line.
    flusher: Option<AbortOnDropHandle<()>>,
}

impl LineSink {
    /// Processes a chunk.
    pub(crate) async fn push(&mut self, chunk: &[u8]) {
        self.search_chunk(chunk);
        // A chunk may be as large as a frame of the engine. Masking it in pieces bounds memory.
        for piece in chunk.chunks(MAX_LINE) {
            let safe = self.masker.push(piece);
            let leaves_open = self.lines.send_complete_lines(&safe).await;
            if leaves_open && self.flusher.is_none() {
                let flushing = Arc::clone(&self.lines).flush_open_lines();
                self.flusher = Some(AbortOnDropHandle::new(tokio::spawn(flushing)));
            }
        }
    }

    /// Sends the rest of the stream.
    pub(crate) async fn finish(&mut self) {
        let rest = self.masker.finish();
        self.lines.send_complete_lines(&rest).await;
        let mut open = self.lines.open.lock().await;
        let last = std::mem::take(&mut *open).bytes;
        if !last.is_empty() {
            self.lines.send(&last).await;
        }
    }

    fn search_chunk(&mut self, chunk: &[u8]) {
        let mut search = lock(&self.lines.output.search);
        let Some(longest) = search.needles.iter().map(Vec::len).max() else {
            return;
        };
        if search.found {
            return;
        }
        self.carry.extend_from_slice(chunk);
        search.found = search
            .needles
            .iter()
            .any(|n| contains_bytes(&self.carry, n));
        let keep = self.carry.len().min(longest - 1);
        self.carry.drain(..self.carry.len() - keep);
    }
}

/// Sends the masked lines of one stream.
#[derive(Debug)]
struct LineSender {
    output: StepOutput,
    stream: Stream,
    vertex: Option<String>,
    /// Locked while a piece is sent, so that pieces stay in order.
    open: tokio::sync::Mutex<OpenLine>,
    /// Wakes [`Self::flush_open_lines`] when a line begins.
    opened: Notify,
}

/// The last line of a stream while it has no end.
#[derive(Debug, Default)]
struct OpenLine {
    /// Masked bytes that have not been sent.
    bytes: Vec<u8>,
    /// Arrival time of the first of these bytes. `None` if there are none.
    since: Option<Instant>,
    /// Set if a piece of this line has been sent.
    begun: bool,
}

impl LineSender {
    /// Sends the lines that `bytes` complete. Returns `true` if a line is open afterwards.
    async fn send_complete_lines(&self, bytes: &[u8]) -> bool {
        let mut open = self.open.lock().await;
        if bytes.is_empty() {
            return open.since.is_some();
        }
        let had_open = open.since.is_some();
        open.bytes.extend_from_slice(bytes);
        let end = open.bytes.iter().rposition(|b| *b == b'\n');
        if let Some(end) = end {
            let rest = open.bytes.split_off(end + 1);
            let lines = std::mem::replace(&mut open.bytes, rest);
            let mut complete = lines.as_slice();
            if std::mem::take(&mut open.begun) {
                // This line end belongs to a piece that was sent as a line.
                let after = complete.strip_prefix(b"\n");
                let after = after.or_else(|| complete.strip_prefix(b"\r\n"));
                complete = after.unwrap_or(complete);
            }
            if let Some(text) = complete.strip_suffix(b"\n") {
                self.send(text).await;
            }
        }
        while open.bytes.len() >= MAX_LINE {
            let cut = char_boundary(&open.bytes, MAX_LINE);
            self.send_piece(&mut open, cut).await;
        }
        let is_open = !open.bytes.is_empty();
        if !is_open {
            open.since = None;
        } else if end.is_some() || !had_open {
            open.since = Some(Instant::now());
            self.opened.notify_one();
        }
        is_open
    }

    /// Sends the part of a line that has waited for [`LINE_WAIT`]. Never returns.
    async fn flush_open_lines(self: Arc<Self>) {
        loop {
            let since = self.open.lock().await.since;
            let Some(since) = since else {
                self.opened.notified().await;
                continue;
            };
            tokio::time::sleep_until(since + LINE_WAIT).await;
            let mut open = self.open.lock().await;
            if open.since.is_some_and(|at| at.elapsed() >= LINE_WAIT) {
                let cut = complete_chars_len(&open.bytes);
                self.send_piece(&mut open, cut).await;
                open.since = (!open.bytes.is_empty()).then(Instant::now);
            }
        }
    }

    /// Sends the first `cut` bytes of the open line.
    async fn send_piece(&self, open: &mut OpenLine, cut: usize) {
        let rest = open.bytes.split_off(cut);
        let piece = std::mem::replace(&mut open.bytes, rest);
        if !piece.is_empty() {
            open.begun = true;
            self.send(&piece).await;
        }
    }

    async fn send(&self, lines: &[u8]) {
        let text = String::from_utf8_lossy(lines);
        // A progress bar returns to the start of its line. A terminal would show only the text
        // after the last return, but a log keeps everything.
        let text = text.replace("\r\n", "\n");
        let text = text.strip_suffix('\r').unwrap_or(&text).to_owned();
        self.output
            .emit(self.stream, self.vertex.clone(), text)
            .await;
    }
}

/// Returns the length of `bytes` without an incomplete last character.
fn complete_chars_len(bytes: &[u8]) -> usize {
    let from = bytes.len().saturating_sub(3);
    let Some(last) = bytes[from..].iter().rposition(|b| b & 0xC0 != 0x80) else {
        return bytes.len();
    };
    let start = from + last;
    let length = match bytes[start] {
        0xC2..=0xDF => 2,
        0xE0..=0xEF => 3,
        0xF0..=0xF4 => 4,
        _ => 1,
    };
    if start + length > bytes.len() {
        start
    } else {
        bytes.len()
    }
}

/// Returns the last position at or before `at` where a character begins.
fn char_boundary(bytes: &[u8], at: usize) -> usize {
    let back = (0..4.min(at))
        .find(|back| bytes.get(at - back).is_none_or(|b| b & 0xC0 != 0x80))
        .unwrap_or(0);
    at - back
}

fn contains_bytes(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|w| w == needle)
}

/// Locks a mutex. Ignores poisoning, because a panic leaves no inconsistent state behind any of
/// these locks.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "output_tests.rs"]
mod tests;
