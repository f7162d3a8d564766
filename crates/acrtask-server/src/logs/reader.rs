//! Readers of lines of a log: the lines of a plan, and windows of lines.
//!
//! Invariant: a reader needs memory for its result and a few chunks, whatever the length of the log.

use std::{
    collections::{HashMap, VecDeque},
    ops::ControlFlow,
    pin::pin,
    sync::Arc,
};

use acrtask_api::outline::{LogLine, MAX_STEPS};
use acrtask_model::RunId;
use acrtask_store::RunRow;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use jiff::Timestamp;

use super::{
    LogError,
    index::{Plan, Selection},
    indexes::with_index,
    read_range,
    split::{RawEvent, Splitter},
    text::{LogEvent, VertexLines},
};
use crate::App;

/// Maximum number of lines of a window.
pub(crate) const MAX_LINES: u64 = 1000;
/// Maximum size of the texts of a window in bytes.
const MAX_BYTES: usize = 4 << 20;
/// Maximum size of a range that is fetched ahead, in bytes.
const SHORT: u64 = 64 << 10;
/// Number of ranges to fetch ahead.
const PREFETCH: usize = 8;
/// Maximum size of a line of a window in bytes.
const MAX_LINE: usize = 32 << 10;

/// Line with its numbers.
#[derive(Debug)]
pub(crate) struct PlacedLine<'e> {
    event: &'e LogEvent<'e>,
    /// Step of the line. Empty for a line of the run itself.
    pub(crate) step: &'e str,
    /// Number of the line among those of its step, from 1.
    pub(crate) number: u64,
    /// Number of the line among the selected ones, from 1.
    pub(crate) position: u64,
    pub(crate) text: &'e str,
}

impl PlacedLine<'_> {
    /// Returns the line for the API.
    pub(crate) fn to_api(&self) -> LogLine {
        let end = self.text.floor_char_boundary(MAX_LINE);
        LogLine {
            step: self.step.to_owned(),
            number: self.number,
            time: self.time(),
            text: self.text[..end].to_owned(),
            is_cut: end < self.text.len(),
        }
    }

    fn time(&self) -> Option<Timestamp> {
        self.event.time()
    }
}

/// Numbers the lines of events that arrive in order.
#[derive(Debug)]
pub(crate) struct Numbering {
    selection: Selection,
    position: u64,
    /// Number of lines so far of each step. The key of the run itself is empty.
    counts: HashMap<String, u64>,
    vertices: VertexLines,
    /// Set if the events are the whole log, so that steps and vertices are recorded.
    is_whole: bool,
}

impl Numbering {
    /// Numbers the lines of a plan.
    pub(crate) fn of(plan: &Plan) -> Self {
        Self {
            selection: plan.selection.clone(),
            position: plan.before,
            counts: plan.counts.clone(),
            vertices: plan.vertices.clone(),
            is_whole: false,
        }
    }

    /// Numbers the lines of a whole log.
    pub(crate) fn of_whole_log() -> Self {
        Self {
            selection: Selection::All,
            position: 0,
            counts: HashMap::from([(String::new(), 0)]),
            vertices: VertexLines::default(),
            is_whole: true,
        }
    }

    /// Returns the step that counts the lines of an event, and the verdict of [`VertexLines`].
    fn place<'e>(&mut self, event: &'e LogEvent<'_>, start: u64) -> (&'e str, bool) {
        if !self.is_whole {
            // The index counts lines of steps beyond its limit as lines of the run.
            let step = event.step().filter(|step| self.counts.contains_key(*step));
            let names_vertex = self.vertices.names_vertex(event, start);
            return (step.unwrap_or_default(), names_vertex);
        }
        let mut step = event.step().unwrap_or_default();
        if !self.counts.contains_key(step) {
            if self.counts.len() <= MAX_STEPS {
                self.counts.insert(step.to_owned(), 0);
            } else {
                step = "";
            }
        }
        (step, self.vertices.record(event, start))
    }

    /// Counts the lines of an event of a whole log.
    pub(crate) fn skip(&mut self, raw: RawEvent<'_>) {
        if let Some(event) = LogEvent::parse(raw) {
            let (step, names_vertex) = self.place(&event, raw.start);
            let lines = event.count_lines(names_vertex);
            self.position += lines;
            if let Some(count) = self.counts.get_mut(step) {
                *count += lines;
            }
        }
    }

    /// Passes each selected line of an event to `each`, until it breaks.
    pub(crate) fn read(
        &mut self,
        raw: RawEvent<'_>,
        each: &mut dyn FnMut(&PlacedLine<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let Some(event) = LogEvent::parse(raw) else {
            return ControlFlow::Continue(());
        };
        let (step, names_vertex) = self.place(&event, raw.start);
        if matches!(&self.selection, Selection::Step(selected) if selected != step) {
            return ControlFlow::Continue(());
        }
        let Some(count) = self.counts.get_mut(step) else {
            return ControlFlow::Continue(());
        };
        let mut flow = ControlFlow::Continue(());
        let position = &mut self.position;
        event.render(names_vertex, &mut |text| {
            *count += 1;
            *position += 1;
            if flow.is_continue() {
                flow = each(&PlacedLine {
                    event: &event,
                    step,
                    number: *count,
                    position: *position,
                    text,
                });
            }
        });
        flow
    }
}

/// Reads the lines of a plan until `each` breaks.
pub(crate) async fn read_plan(
    app: &Arc<App>,
    run: &RunId,
    attempt: u32,
    plan: &Plan,
    each: &mut (dyn FnMut(&PlacedLine<'_>) -> ControlFlow<()> + Send),
) -> Result<(), LogError> {
    let mut numbering = Numbering::of(plan);
    // The lines of a step may be far apart, so short ranges are fetched ahead.
    let ranges = stream::iter(plan.ranges.clone()).map(|range| {
        let log = read_range(app.clone(), run.clone(), attempt, range.clone());
        async move {
            if range.end - range.start > SHORT {
                return Ok::<_, LogError>((range.start, log.boxed()));
            }
            let parts: Vec<Bytes> = log.try_collect().await?;
            let parts = stream::iter(parts.into_iter().map(Ok));
            Ok((range.start, parts.boxed()))
        }
    });
    let mut ranges = pin!(ranges.buffered(PREFETCH));
    while let Some((start, mut chunks)) = ranges.try_next().await? {
        let mut splitter = Splitter::at(start);
        let mut flow = ControlFlow::Continue(());
        while let Some(bytes) = chunks.try_next().await? {
            splitter.push(&bytes, |raw| {
                if flow.is_continue() {
                    flow = numbering.read(raw, each);
                }
            });
            if flow.is_break() {
                return Ok(());
            }
        }
        splitter.finish(|raw| flow = numbering.read(raw, each));
        if flow.is_break() {
            return Ok(());
        }
    }
    Ok(())
}

/// Start of a window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum WindowStart {
    /// This line of the selection, from 1.
    Line(u64),
    /// As many lines before the end as the window has.
    Tail,
    /// The window has this line in its middle.
    Around {
        /// Step of the line. Empty for a line of the run itself.
        step: String,
        /// Number of the line among those of its step, from 1.
        number: u64,
    },
}

/// Size of a window. It has at least one line.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WindowSize {
    /// Maximum number of lines, at most [`MAX_LINES`].
    pub(crate) lines: u64,
    /// Maximum sum of the costs.
    pub(crate) cost: usize,
    /// Returns the cost of a line.
    pub(crate) cost_of: fn(&LogLine) -> usize,
}

impl WindowSize {
    /// Returns the size of at most `lines` lines with [`MAX_BYTES`] of text.
    pub(crate) fn lines(lines: u64) -> Self {
        Self {
            lines,
            cost: MAX_BYTES,
            cost_of: |line| line.text.len(),
        }
    }
}

/// Collects the lines of a window.
///
/// A window that is too large ends after fewer lines. If it was requested by its last line or by a
/// line in its middle, it begins later and contains that line.
#[derive(Debug)]
struct WindowLines {
    size: WindowSize,
    /// Last line that the window must contain, if the log has it.
    target: u64,
    /// Maximum cost of the lines up to the target.
    cost_to_target: usize,
    cost: usize,
    lines: VecDeque<(usize, LogLine)>,
    /// Number of lines dropped from the start.
    dropped: u64,
}

impl WindowLines {
    fn push(&mut self, position: u64, line: LogLine) -> ControlFlow<()> {
        let cost = (self.size.cost_of)(&line);
        self.cost += cost;
        if position > self.target && self.cost > self.size.cost && !self.lines.is_empty() {
            return ControlFlow::Break(());
        }
        self.lines.push_back((cost, line));
        while position <= self.target && self.cost > self.cost_to_target && self.lines.len() > 1 {
            let first = self.lines.pop_front();
            self.cost -= first.map_or(0, |(cost, _)| cost);
            self.dropped += 1;
        }
        if self.lines.len() as u64 + self.dropped == self.size.lines {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }
}

/// Lines of a log.
#[derive(Debug)]
pub(crate) struct Window {
    /// Number of the first line among the selected ones, from 1.
    pub(crate) first: u64,
    pub(crate) lines: Vec<LogLine>,
    /// Number of selected lines in the log.
    pub(crate) total: u64,
    /// Set if the log cannot grow any more.
    pub(crate) is_complete: bool,
}

impl Window {
    /// Returns the number of the line after the window. `None` at the end of the log.
    pub(crate) fn next(&self) -> Option<u64> {
        let next = self.first + self.lines.len() as u64;
        (next <= self.total).then_some(next)
    }
}

/// Reads a window of selected lines. `None` if the log has no such line or step.
pub(crate) async fn read_window(
    app: &Arc<App>,
    row: &RunRow,
    attempt: u32,
    selection: Selection,
    start: WindowStart,
    size: WindowSize,
) -> Result<Option<Window>, LogError> {
    let count = size.lines.min(MAX_LINES);
    let before = |middle: u64| middle.saturating_sub(count / 2).max(1);
    // First line of the window, and the last one that it must contain.
    let (from, target) = match start {
        WindowStart::Line(from) => (Some(from.max(1)), 0),
        WindowStart::Tail => (None, u64::MAX),
        WindowStart::Around { step, number } if selection != Selection::All => {
            if selection != Selection::Step(step) {
                return Ok(None);
            }
            (Some(before(number)), number)
        }
        WindowStart::Around { step, number } => {
            let plan = with_index(app, row, attempt, |index| index.plan_around(&step, number));
            let Some(plan) = plan.await? else {
                return Ok(None);
            };
            let mut position = None;
            let mut find = |line: &PlacedLine<'_>| {
                if line.step == step && line.number == number {
                    position = Some(line.position);
                    return ControlFlow::Break(());
                }
                ControlFlow::Continue(())
            };
            read_plan(app, &row.id, attempt, &plan, &mut find).await?;
            let Some(position) = position else {
                return Ok(None);
            };
            (Some(before(position)), position)
        }
    };
    let plan = with_index(app, row, attempt, |index| {
        let lines = index.count_lines(&selection)?;
        let from = from.unwrap_or_else(|| lines.saturating_sub(count) + 1);
        Some((from, index.plan(selection, from, count)))
    });
    let Some((from, plan)) = plan.await? else {
        return Ok(None);
    };
    let mut window = WindowLines {
        size: WindowSize {
            lines: count,
            ..size
        },
        target,
        cost_to_target: match target {
            u64::MAX => size.cost,
            _ => size.cost / 2,
        },
        cost: 0,
        lines: VecDeque::new(),
        dropped: 0,
    };
    let mut collect = |line: &PlacedLine<'_>| {
        if line.position < from {
            return ControlFlow::Continue(());
        }
        window.push(line.position, line.to_api())
    };
    read_plan(app, &row.id, attempt, &plan, &mut collect).await?;
    Ok(Some(Window {
        first: from + window.dropped,
        lines: window.lines.into_iter().map(|(_, line)| line).collect(),
        total: plan.lines,
        is_complete: plan.is_complete,
    }))
}

#[cfg(test)]
#[path = "reader_tests.rs"]
mod tests;
