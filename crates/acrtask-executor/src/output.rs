//! What a step prints on its way to the events: masked, cut into lines, watched.
//!
//! Nothing is lost and memory is bounded: [`StepOutput::line_sink`] takes chunks of any size, sends
//! whole lines as soon as they are whole, and waits while the receiver is behind, so that in the end the
//! container itself waits. A line without an end is sent in pieces of [`MAX_LINE`] bytes.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use acrtask_model::{
    Event, EventKind, Masker, Outcome, RunId, StepId, StepState, events::Stream, mask::Patterns,
};
use tokio::sync::mpsc;

/// Longest piece of one line, in bytes.
pub(crate) const MAX_LINE: usize = 64 * 1024;

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
            vertex,
            masker: Masker::new(self.patterns.clone()),
            stream,
            pending: Vec::new(),
            carry: Vec::new(),
            output: self.clone(),
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
    output: StepOutput,
    stream: Stream,
    vertex: Option<String>,
    masker: Masker,
    /// Masked bytes of a line that has no end yet.
    pending: Vec<u8>,
    /// The end of the last chunk, in which a watched text could begin.
    carry: Vec<u8>,
}

impl LineSink {
    /// Takes a chunk in.
    pub(crate) async fn push(&mut self, chunk: &[u8]) {
        self.watch(chunk);
        // A chunk may be as large as a frame of the engine; masking goes in pieces, so that memory
        // stays bounded whatever the engine sends.
        for piece in chunk.chunks(MAX_LINE) {
            let safe = self.masker.push(piece);
            self.take(&safe).await;
        }
    }

    /// The end of the stream.
    pub(crate) async fn finish(&mut self) {
        let rest = self.masker.finish();
        self.take(&rest).await;
        if !self.pending.is_empty() {
            let last = std::mem::take(&mut self.pending);
            self.send(&last).await;
        }
    }

    async fn take(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
        if let Some(end) = self.pending.iter().rposition(|b| *b == b'\n') {
            let rest = self.pending.split_off(end + 1);
            let lines = std::mem::replace(&mut self.pending, rest);
            self.send(&lines[..end]).await;
        }
        while self.pending.len() >= MAX_LINE {
            let cut = char_boundary(&self.pending, MAX_LINE);
            let rest = self.pending.split_off(cut);
            let piece = std::mem::replace(&mut self.pending, rest);
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

    fn watch(&mut self, chunk: &[u8]) {
        let mut watch = lock(&self.output.watch);
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
mod tests {
    use acrtask_model::Secret;

    use super::*;

    /// What comes out when `chunks` go in.
    async fn lines(chunks: &[&[u8]], secrets: &[&str], watch: &[&str]) -> (Vec<String>, bool) {
        let (sender, mut receiver) = mpsc::channel(10_000);
        let secrets: Vec<Secret> = secrets.iter().map(|s| Secret::new(*s)).collect();
        let output = StepOutput::new(
            StepId::new("s").unwrap(),
            Events::new(RunId::new("r").unwrap(), sender, Patterns::new(&secrets)),
            Patterns::new(&secrets),
            &watch.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>(),
        );
        let mut sink = output.line_sink(Stream::Stdout);
        for chunk in chunks {
            sink.push(chunk).await;
        }
        sink.finish().await;
        let found = output.found();
        drop((sink, output));
        let mut texts = Vec::new();
        while let Some(event) = receiver.recv().await {
            if let EventKind::Output { text, .. } = event.kind {
                texts.push(text);
            }
        }
        (texts, found)
    }

    #[tokio::test]
    async fn whole_lines_as_soon_as_they_are_whole() {
        let (out, _) = lines(&[b"one\ntw", b"o\nthree\n\nfour"], &[], &[]).await;
        assert_eq!(out, ["one", "two\nthree\n", "four"]);
        assert_eq!(lines(&[b"a\r\nb\r\n"], &[], &[]).await.0, ["a\nb"]);
        assert!(lines(&[b""], &[], &[]).await.0.is_empty());
    }

    #[tokio::test]
    async fn a_secret_split_over_chunks_is_masked() {
        let (out, _) = lines(&[b"x hunt", b"er2! y\n"], &["hunter2!"], &[]).await;
        assert_eq!(out, ["x *** y"]);
    }

    #[tokio::test]
    async fn sentences_are_masked_too() {
        let (sender, mut receiver) = mpsc::channel(10);
        let secrets = [Secret::new("hunter2!")];
        let run = RunId::new("r").unwrap();
        let events = Events::new(run, sender, Patterns::new(&secrets));
        let step = StepId::new("s").unwrap();
        let help = Some("not hunter2!".to_owned());
        events.warn(Some(&step), "no hunter2!", help).await;
        for kind in [
            EventKind::Progress {
                message: "pulling hunter2!".into(),
            },
            EventKind::StepRetrying {
                step,
                attempt: 1,
                delay_secs: 1,
                reason: "curl -u hunter2! failed".into(),
            },
        ] {
            events.send(kind).await;
        }
        drop(events);
        let mut told = String::new();
        while let Some(event) = receiver.recv().await {
            told += &serde_json::to_string(&event).unwrap();
        }
        assert!(told.contains("***") && !told.contains("hunter2"), "{told}");
    }

    #[tokio::test]
    async fn a_line_without_end_comes_in_pieces_and_whole() {
        let long = "ä".repeat(MAX_LINE);
        let (out, _) = lines(&[long.as_bytes()], &[], &[]).await;
        assert!(out.len() >= 2);
        assert!(out.iter().all(|piece| piece.len() <= MAX_LINE));
        assert_eq!(out.concat(), long);
    }

    #[tokio::test]
    async fn a_watched_text_is_found_over_chunks() {
        assert!(
            lines(&[b"connection re", b"set by peer"], &[], &["reset"])
                .await
                .1
        );
        assert!(
            !lines(&[b"connection re", b"fused"], &[], &["reset"])
                .await
                .1
        );
    }
}
