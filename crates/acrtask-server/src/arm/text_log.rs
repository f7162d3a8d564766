//! Logs of runs as text with stable offsets.
//!
//! The stored log consists of events. Readers of the text request small ranges of it, often of 4
//! KiB. [`TextLog`] remembers positions in the conversion and the last converted pieces, so that
//! such a reader costs one conversion in total.
//!
//! Invariants:
//! * A byte at an offset never changes: the text is the text of all attempts, in order, and a last
//!   line.
//! * Memory is bounded: [`MAX_LOGS`] logs with [`WINDOW`] bytes of text and few positions each.
//! * All state may be lost at any time.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex as StdMutex, PoisonError},
};

use acrtask_arm::summary_line;
use acrtask_model::RunId;
use acrtask_store::RunRow;
use bytes::Bytes;
use futures::TryStreamExt as _;
use tokio::sync::Mutex;

use crate::{
    App,
    logs::{LogError, read_log, text::Lines},
};

/// Most logs with a remembered conversion.
const MAX_LOGS: usize = 32;
/// Bytes of text that are kept per log.
const WINDOW: usize = 1 << 20;
/// Most recent positions that are kept per log.
const MAX_RECENT: usize = 8;
/// Most positions at regular distances that are kept per log.
const MAX_SPACED: usize = 8;
/// Smallest distance between them, in bytes of text.
const MIN_SPACING: u64 = 4 << 20;
/// Largest state of a position that is kept, in bytes.
const MAX_STATE: usize = 128 << 10;

/// Conversions of the logs that were read last.
#[derive(Debug, Default)]
pub(super) struct TextLogs {
    logs: StdMutex<Recent>,
}

#[derive(Debug, Default)]
struct Recent {
    turn: u64,
    by_run: HashMap<RunId, (u64, Arc<Mutex<TextLog>>)>,
}

impl TextLogs {
    /// Returns the log of a run. Forgets the log whose last use is the oldest.
    pub(super) fn get(&self, run: &RunId) -> Arc<Mutex<TextLog>> {
        let mut recent = self.logs.lock().unwrap_or_else(PoisonError::into_inner);
        recent.turn += 1;
        let turn = recent.turn;
        if let Some((used, log)) = recent.by_run.get_mut(run) {
            *used = turn;
            return log.clone();
        }
        if recent.by_run.len() >= MAX_LOGS {
            let oldest = recent.by_run.iter().min_by_key(|(_, (used, _))| *used);
            if let Some(oldest) = oldest.map(|(run, _)| run.clone()) {
                recent.by_run.remove(&oldest);
            }
        }
        let log = Arc::<Mutex<TextLog>>::default();
        recent.by_run.insert(run.clone(), (turn, log.clone()));
        log
    }
}

/// Position in the conversion of a log.
#[derive(Debug, Clone, Default)]
struct Position {
    /// Attempt whose events come next. 0 before the first one.
    attempt: u32,
    /// Offset in the events of the attempt.
    offset: u64,
    /// State of the conversion.
    lines: Lines,
    /// Offset in the text.
    text: u64,
    /// The text is complete.
    complete: bool,
}

/// Conversion of one log.
#[derive(Debug)]
pub(super) struct TextLog {
    /// Length of the text so far, and the position behind it.
    end: Position,
    /// Positions of the last conversions.
    recent: VecDeque<Position>,
    /// Positions at regular distances, in order.
    spaced: Vec<Position>,
    /// Smallest distance of `spaced`.
    spacing: u64,
    /// Last converted pieces with their offsets.
    window: VecDeque<(u64, Bytes)>,
}

impl Default for TextLog {
    fn default() -> Self {
        Self {
            end: Position::default(),
            recent: VecDeque::new(),
            spaced: Vec::new(),
            spacing: MIN_SPACING,
            window: VecDeque::new(),
        }
    }
}

impl TextLog {
    /// Converts all stored events, and returns the length of the text.
    pub(super) async fn length(&mut self, app: &Arc<App>, run: &RunRow) -> Result<u64, LogError> {
        let end = self.end.clone();
        self.convert(app, run, end, u64::MAX).await?;
        Ok(self.end.text)
    }

    /// Returns the length of the text that was converted so far.
    pub(super) fn converted(&self) -> u64 {
        self.end.text
    }

    /// Returns text from `offset` on. `None` if the text ends there.
    pub(super) async fn read_at(
        &mut self,
        app: &Arc<App>,
        run: &RunRow,
        offset: u64,
    ) -> Result<Option<Bytes>, LogError> {
        if let Some(found) = self.find(offset) {
            return Ok(Some(found));
        }
        let positions = self.recent.iter().chain(&self.spaced);
        let from = positions
            .filter(|position| position.text <= offset)
            .max_by_key(|position| position.text)
            .cloned()
            .unwrap_or_default();
        self.convert(app, run, from, offset).await?;
        Ok(self.find(offset))
    }

    fn find(&self, offset: u64) -> Option<Bytes> {
        self.window.iter().rev().find_map(|(begin, text)| {
            let skip = usize::try_from(offset.checked_sub(*begin)?).ok()?;
            (skip < text.len()).then(|| text.slice(skip..))
        })
    }

    /// Converts events from a position until the text contains the byte at `target`, or until all
    /// stored events are converted.
    async fn convert(
        &mut self,
        app: &Arc<App>,
        run: &RunRow,
        mut position: Position,
        target: u64,
    ) -> Result<(), LogError> {
        while position.text <= target && !position.complete {
            self.drain(&mut position, target);
            if position.attempt > 0 {
                let log = read_log(
                    app.clone(),
                    run.id.clone(),
                    position.attempt,
                    position.offset,
                );
                let mut log = std::pin::pin!(log);
                while position.text <= target
                    && let Some(bytes) = log.try_next().await?
                {
                    position.offset += bytes.len() as u64;
                    position.lines.push(bytes);
                    self.drain(&mut position, target);
                }
            }
            let is_earlier = position.attempt < run.attempt;
            if position.text > target || !is_earlier && !run.state.is_final() {
                break;
            }
            // An earlier attempt never changes again.
            position.lines.finish();
            self.drain(&mut position, target);
            if position.text > target {
                break;
            }
            let mut text = String::new();
            if !is_earlier {
                text = format!("{}\n", summary_line(&run.to_api()));
                position.complete = true;
            } else {
                if position.attempt > 0 {
                    text = format!("attempt {} begins\n", position.attempt + 1);
                }
                position.attempt += 1;
                position.offset = 0;
                position.lines = Lines::default();
            }
            self.record(&mut position, &text);
        }
        if position.text >= self.end.text {
            self.end = position;
        }
        Ok(())
    }

    /// Records the text of bytes that were read, until it contains the byte at `target`.
    fn drain(&mut self, position: &mut Position, target: u64) {
        while position.text <= target
            && let Some(text) = position.lines.next_piece()
        {
            self.record(position, &text);
        }
    }

    /// Records converted text, and the position behind it.
    fn record(&mut self, position: &mut Position, text: &str) {
        if text.is_empty() {
            return;
        }
        // Azure's clients print only up to a line end of CR and LF.
        let text = Bytes::from(text.replace('\n', "\r\n"));
        let begin = position.text;
        position.text += text.len() as u64;
        self.window.push_back((begin, text));
        let mut kept: usize = self.window.iter().map(|(_, text)| text.len()).sum();
        while kept > WINDOW && self.window.len() > 1 {
            kept -= self.window.pop_front().map_or(0, |(_, text)| text.len());
        }
        if position.lines.memory() > MAX_STATE {
            return;
        }
        self.recent.push_back(position.clone());
        if self.recent.len() > MAX_RECENT {
            self.recent.pop_front();
        }
        let last = self.spaced.last().map_or(0, |position| position.text);
        if position.text >= last + self.spacing {
            self.spaced.push(position.clone());
            if self.spaced.len() > MAX_SPACED {
                self.spacing *= 2;
                let mut keep = false;
                self.spaced.retain(|_| {
                    keep = !keep;
                    !keep
                });
            }
        }
    }
}
