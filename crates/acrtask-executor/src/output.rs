//! What a step prints on its way to the events: masked, cut into lines, watched.
//!
//! Nothing is lost and memory is bounded: [`StepOutput::line_sink`] takes chunks of any size, sends
//! whole lines as soon as they are whole, and waits while the receiver is behind, so that in the end the
//! container itself waits. A line without an end is sent in pieces: after [`MAX_LINE`] bytes, and after
//! [`LINE_WAIT`], so that prompts and progress bars are seen. What the masker holds back is in no piece.

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

/// Longest piece of one line, in bytes.
pub(crate) const MAX_LINE: usize = 64 * 1024;

/// Longest time that the beginning of a line waits for its end.
const LINE_WAIT: Duration = Duration::from_millis(500);

/// Lines of a failed step that its last event repeats.
const TAIL_LINES: usize = 20;
/// Longest line in there, in characters.
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

    /// Sends an event; waits while the receiver is behind. A receiver that has gone away is fine: the
    /// run goes on without one. What is told in sentences may quote a line of the task, and is masked.
    pub(crate) async fn send(&self, kind: EventKind) {
        let event = Event {
            time: now(),
            run: self.run.clone(),
            kind: self.masked(kind),
        };
        let _ = self.sender.send(event).await;
    }

    fn masked(&self, kind: EventKind) -> EventKind {
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
                left,
            } => EventKind::RunFinished {
                outcome: Outcome {
                    reason: outcome.reason.map(mask),
                    ..outcome
                },
                elapsed_ms,
                left: left.into_iter().map(mask).collect(),
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

/// The time of an event.
pub(crate) fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

/// Where everything goes that one step prints.
#[derive(Debug, Clone)]
pub(crate) struct StepOutput {
    pub(crate) step: StepId,
    pub(crate) events: Events,
    patterns: Patterns,
    tail: Arc<Mutex<VecDeque<String>>>,
    watch: Arc<Mutex<Watch>>,
}

/// Whether the output of an attempt contained one of `retryOnErrors`.
#[derive(Debug, Default)]
struct Watch {
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
            watch: Arc::new(Mutex::new(Watch {
                needles,
                found: false,
            })),
        }
    }

    /// A new attempt: its output alone decides whether it is retried.
    pub(crate) fn begin_attempt(&self) {
        lock(&self.watch).found = false;
    }

    /// True where this attempt's output contained one of the texts.
    pub(crate) fn found(&self) -> bool {
        lock(&self.watch).found
    }

    /// The last lines of both streams, masked.
    pub(crate) fn tail(&self) -> Vec<String> {
        lock(&self.tail).iter().cloned().collect()
    }

    /// A sink for one stream of one process.
    pub(crate) fn line_sink(&self, stream: Stream) -> LineSink {
        self.sink(stream, None)
    }

    /// A sink for one stream of one vertex of a build.
    pub(crate) fn vertex_sink(&self, stream: Stream, vertex: String) -> LineSink {
        self.sink(stream, Some(vertex))
    }

    fn sink(&self, stream: Stream, vertex: Option<String>) -> LineSink {
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

    /// One line of the executor's own, or of a built-in word.
    pub(crate) async fn say(&self, stream: Stream, text: &str) {
        self.watch_text(text.as_bytes());
        let text = self.patterns.mask(text);
        self.emit(stream, None, text).await;
    }

    /// `text` with every secret masked.
    pub(crate) fn mask(&self, text: &str) -> String {
        self.patterns.mask(text)
    }

    /// Looks for the texts of `retryOnErrors` in something that is shown in another way.
    pub(crate) fn watch_text(&self, bytes: &[u8]) {
        let mut watch = lock(&self.watch);
        if !watch.found {
            watch.found = watch.needles.iter().any(|needle| contains(bytes, needle));
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

/// Turns the chunks of one stream into events.
#[derive(Debug)]
pub(crate) struct LineSink {
    masker: Masker,
    /// The end of the last chunk, in which a watched text could begin.
    carry: Vec<u8>,
    lines: Arc<LineSender>,
    /// Sends a line that stays open. `None` until a line was open at the end of a chunk.
    flusher: Option<AbortOnDropHandle<()>>,
}

impl LineSink {
    /// Takes a chunk in.
    pub(crate) async fn push(&mut self, chunk: &[u8]) {
        self.watch(chunk);
        // A chunk may be as large as a frame of the engine; masking goes in pieces, so that memory
        // stays bounded whatever the engine sends.
        for piece in chunk.chunks(MAX_LINE) {
            let safe = self.masker.push(piece);
            let leaves_open = self.lines.take(&safe).await;
            if leaves_open && self.flusher.is_none() {
                let flushing = Arc::clone(&self.lines).flush_open_lines();
                self.flusher = Some(AbortOnDropHandle::new(tokio::spawn(flushing)));
            }
        }
    }

    /// The end of the stream.
    pub(crate) async fn finish(&mut self) {
        let rest = self.masker.finish();
        self.lines.take(&rest).await;
        let mut open = self.lines.open.lock().await;
        let last = std::mem::take(&mut *open).bytes;
        if !last.is_empty() {
            self.lines.send(&last).await;
        }
    }

    fn watch(&mut self, chunk: &[u8]) {
        let mut watch = lock(&self.lines.output.watch);
        let Some(longest) = watch.needles.iter().map(Vec::len).max() else {
            return;
        };
        if watch.found {
            return;
        }
        self.carry.extend_from_slice(chunk);
        watch.found = watch.needles.iter().any(|n| contains(&self.carry, n));
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
    /// Held while a piece is sent, so that pieces stay in order.
    open: tokio::sync::Mutex<OpenLine>,
    /// Wakes [`Self::flush_open_lines`] when a line begins.
    opened: Notify,
}

/// The last line of a stream, while it has no end.
#[derive(Debug, Default)]
struct OpenLine {
    /// Masked bytes that were not sent yet.
    bytes: Vec<u8>,
    /// When the first of them arrived. `None` if there are none.
    since: Option<Instant>,
    /// A piece of this line was sent already.
    begun: bool,
}

impl LineSender {
    /// Sends the lines that `bytes` end. Returns `true` if a line is open then.
    async fn take(&self, bytes: &[u8]) -> bool {
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
            let mut whole = lines.as_slice();
            if std::mem::take(&mut open.begun) {
                // This line end belongs to a piece that was sent as a line.
                let after = whole.strip_prefix(b"\n");
                let after = after.or_else(|| whole.strip_prefix(b"\r\n"));
                whole = after.unwrap_or(whole);
            }
            if let Some(text) = whole.strip_suffix(b"\n") {
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

    /// Sends what of a line has waited for [`LINE_WAIT`]. Does not end.
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
                let cut = whole_chars(&open.bytes);
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
        // A progress bar returns to the start of its line; what follows the last return is what a
        // terminal would show at the end, but a log keeps everything.
        let text = text.replace("\r\n", "\n");
        let text = text.strip_suffix('\r').unwrap_or(&text).to_owned();
        self.output
            .emit(self.stream, self.vertex.clone(), text)
            .await;
    }
}

/// Returns the length of `bytes` without a character whose last bytes are missing.
fn whole_chars(bytes: &[u8]) -> usize {
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

/// The last position at or before `at` where a character begins.
fn char_boundary(bytes: &[u8], at: usize) -> usize {
    let back = (0..4.min(at))
        .find(|back| bytes.get(at - back).is_none_or(|b| b & 0xC0 != 0x80))
        .unwrap_or(0);
    at - back
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|w| w == needle)
}

/// A panic while one of these is held leaves nothing half done.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "output_tests.rs"]
mod tests;
