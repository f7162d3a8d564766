//! Search in the log of an attempt: the first hit soon, then all hits and their true numbers.
//!
//! A log with an index is first searched as bytes, without parsing: the index knows the number of
//! the first hit. A second pass parses and counts every line.
//!
//! Invariants: memory is bounded by a few chunks. The time of a match is linear in the length of
//! its line, also for regular expressions.

use std::{collections::BTreeMap, ops::ControlFlow, pin::pin, sync::Arc, time::Duration};

use acrtask_api::outline::{LogLine, SearchEnd, SearchItem};
use acrtask_store::RunRow;
use futures::TryStreamExt as _;
use memchr::memmem;
use regex::{Regex, RegexBuilder, bytes};
use tokio::sync::mpsc;

use super::{
    LogError,
    index::{LogIndex, Selection},
    indexes::{is_final, is_indexed, with_index},
    read_log,
    reader::{Numbering, PlacedLine, read_plan},
    split::{RawEvent, Splitter},
    text::{HEAD, LogEvent, OUTPUT},
};
use crate::App;

/// Maximum duration of a search. It ends without counts then.
const MAX_TIME: Duration = Duration::from_secs(120);
/// Number of items that wait for the reader.
const QUEUE: usize = 64;
/// Maximum size of a compiled regular expression in bytes.
const MAX_REGEX: usize = 1 << 20;
/// Pattern of a search.
#[derive(Debug, Clone)]
pub(crate) struct Pattern {
    line: Regex,
    /// Finds the pattern in the JSON of an event. `None` if the JSON may hide it.
    json: Option<bytes::Regex>,
}

impl Pattern {
    /// Compiles a text or a regular expression.
    ///
    /// # Errors
    /// The reason why the regular expression is invalid.
    pub(crate) fn new(text: &str, is_regex: bool, ignores_case: bool) -> Result<Self, String> {
        let build = |pattern: &str| {
            RegexBuilder::new(pattern)
                .case_insensitive(ignores_case)
                .size_limit(MAX_REGEX)
                .dfa_size_limit(MAX_REGEX)
                .build()
                .map_err(|error| error.to_string())
        };
        if is_regex {
            return Ok(Self {
                line: build(text)?,
                json: None,
            });
        }
        let escaped = serde_json::to_string(text).unwrap_or_default();
        let in_json = regex::escape(escaped.trim_matches('"'));
        let in_json = bytes::RegexBuilder::new(&in_json)
            .case_insensitive(ignores_case)
            .size_limit(MAX_REGEX)
            .build();
        // A quote at an end would be trimmed with the quotes of the JSON string.
        let is_plain = !text.contains(|c: char| c.is_control() || c == '"');
        Ok(Self {
            line: build(&regex::escape(text))?,
            json: in_json.ok().filter(|_| is_plain),
        })
    }

    /// Returns `true` if a line contains the pattern. Escape sequences of terminals are ignored.
    fn matches(&self, line: &str) -> bool {
        if line.contains('\x1b') {
            self.line
                .is_match(&anstream::adapter::strip_str(line).to_string())
        } else {
            self.line.is_match(line)
        }
    }

    /// Returns `false` if no line of these events matches. `events` are whole events.
    fn may_match(&self, events: &[u8]) -> bool {
        let Some(json) = &self.json else { return true };
        json.is_match(events) || hides_text(events) || !is_all_output(events)
    }

    /// Returns `false` if no line of this event matches.
    fn may_match_event(&self, event: &[u8]) -> bool {
        let Some(json) = &self.json else { return true };
        let head = event.get(..HEAD).unwrap_or(event);
        json.is_match(event) || hides_text(event) || memmem::find(head, OUTPUT).is_none()
    }
}

/// Returns `true` if JSON has escapes that may hide a plain text: all but those of line ends, tabs,
/// quotes and backslashes. An escape sequence of a terminal may be within the text.
fn hides_text(json: &[u8]) -> bool {
    let mut at = 0;
    while let Some(found) = memchr::memchr(b'\\', &json[at..]) {
        let escape = at + found + 1;
        if !matches!(json.get(escape), Some(b'n' | b't' | b'r' | b'"' | b'\\')) {
            return true;
        }
        at = escape + 1;
    }
    false
}

/// Returns `true` if all events are output, whose lines are in their JSON.
fn is_all_output(events: &[u8]) -> bool {
    let lines = memchr::memchr_iter(b'\n', events).count();
    lines == memmem::find_iter(events, OUTPUT).count()
}

/// Search in the log of an attempt.
#[derive(Debug)]
pub(crate) struct Search {
    pub(crate) app: Arc<App>,
    pub(crate) row: RunRow,
    pub(crate) attempt: u32,
    pub(crate) selection: Selection,
    pub(crate) pattern: Pattern,
    /// Maximum number of hits to return. All are counted.
    pub(crate) limit: u64,
}

impl Search {
    /// Starts the search and returns its items. `permit` is released at its end.
    pub(crate) fn start(
        self,
        permit: impl Send + 'static,
    ) -> mpsc::Receiver<Result<SearchItem, LogError>> {
        let (sender, items) = mpsc::channel(QUEUE);
        tokio::spawn(async move {
            let _permit = permit;
            let closing = self.app.closing.clone();
            let search = tokio::time::timeout(MAX_TIME, self.run(&sender));
            tokio::select! {
                found = search => {
                    if let Ok(Err(error)) = found {
                        let _ = sender.send(Err(error)).await;
                    }
                }
                () = closing.cancelled() => {}
                () = sender.closed() => {}
            }
        });
        items
    }

    async fn run(
        &self,
        sender: &mpsc::Sender<Result<SearchItem, LogError>>,
    ) -> Result<(), LogError> {
        let first = self.find_first().await?;
        if let Some(hit) = first.clone().filter(|_| self.limit > 0) {
            let _ = sender.send(Ok(SearchItem::Hit(hit))).await;
        }
        self.count(first, sender).await
    }

    fn selects(&self, step: &str) -> bool {
        match &self.selection {
            Selection::All => true,
            Selection::Step(selected) => selected == step,
        }
    }

    /// Finds the first hit without counting lines. `None` if there is none, or no index.
    async fn find_first(&self) -> Result<Option<LogLine>, LogError> {
        if self.pattern.json.is_none() || !is_indexed(&self.app, &self.row, self.attempt).await {
            return Ok(None);
        }
        let log = read_log(self.app.clone(), self.row.id.clone(), self.attempt, 0);
        let mut log = pin!(log);
        let mut splitter = Splitter::default();
        let mut found = None;
        while let (None, Some(bytes)) = (found, log.try_next().await?) {
            splitter.push_filtered(
                &bytes,
                |events| self.pattern.may_match(events),
                |raw| {
                    if found.is_none() && self.has_hit(raw) {
                        found = Some(raw.start);
                    }
                },
            );
        }
        let Some(position) = found else {
            return Ok(None);
        };
        let plan = with_index(&self.app, &self.row, self.attempt, |index: &LogIndex| {
            index.plan_at(position)
        });
        let Some(plan) = plan.await? else {
            return Ok(None);
        };
        let mut hit = None;
        let mut find = |line: &PlacedLine<'_>| {
            if self.selects(line.step) && self.pattern.matches(line.text) {
                hit = Some(line.to_api());
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        };
        read_plan(&self.app, &self.row.id, self.attempt, &plan, &mut find).await?;
        Ok(hit)
    }

    /// Returns `true` if an event has a selected line that matches. The name of a vertex counts
    /// only in its first event, which precedes the others.
    fn has_hit(&self, raw: RawEvent<'_>) -> bool {
        let Some(event) = LogEvent::parse(raw) else {
            return false;
        };
        if !self.selects(event.step().unwrap_or_default()) {
            return false;
        }
        let mut has_hit = false;
        event.render(true, &mut |line| has_hit |= self.pattern.matches(line));
        has_hit
    }

    /// Sends the hits after the first one, and the counts.
    async fn count(
        &self,
        first: Option<LogLine>,
        sender: &mpsc::Sender<Result<SearchItem, LogError>>,
    ) -> Result<(), LogError> {
        let mut counts = Counts {
            search: self,
            numbering: Numbering::of_whole_log(),
            steps: BTreeMap::new(),
            hits: 0,
            first,
            ready: Vec::new(),
        };
        let log = read_log(self.app.clone(), self.row.id.clone(), self.attempt, 0);
        let mut log = pin!(log);
        let mut splitter = Splitter::default();
        let mut at_end = false;
        while !at_end {
            match log.try_next().await? {
                Some(bytes) => splitter.push(&bytes, |raw| counts.read(raw)),
                None => {
                    at_end = true;
                    if is_final(&self.row, self.attempt) {
                        splitter.finish(|raw| counts.read(raw));
                    }
                }
            }
            for hit in counts.ready.drain(..) {
                let _ = sender.send(Ok(SearchItem::Hit(hit))).await;
            }
            tokio::task::consume_budget().await;
        }
        let end = SearchEnd {
            hits: counts.hits,
            steps: counts.steps,
            is_complete: is_final(&self.row, self.attempt),
        };
        let _ = sender.send(Ok(SearchItem::End(end))).await;
        Ok(())
    }
}

/// Hits of a search so far.
struct Counts<'s> {
    search: &'s Search,
    numbering: Numbering,
    steps: BTreeMap<String, u64>,
    hits: u64,
    /// First hit, which was already sent.
    first: Option<LogLine>,
    /// Hits to send.
    ready: Vec<LogLine>,
}

impl Counts<'_> {
    fn read(&mut self, raw: RawEvent<'_>) {
        let search = self.search;
        let content = raw.content.unwrap_or_default();
        if !search.pattern.may_match_event(content) {
            self.numbering.skip(raw);
            return;
        }
        let _ = self.numbering.read(raw, &mut |line| {
            if search.selects(line.step) && search.pattern.matches(line.text) {
                self.hits += 1;
                *self.steps.entry(line.step.to_owned()).or_default() += 1;
                let is_sent = self
                    .first
                    .as_ref()
                    .is_some_and(|first| first.number == line.number && first.step == line.step);
                if !is_sent && self.hits <= search.limit {
                    self.ready.push(line.to_api());
                }
            }
            ControlFlow::Continue(())
        });
    }
}

#[cfg(test)]
#[path = "search_tests.rs"]
mod tests;
