//! Index of the log of an attempt: its outline, and the positions of its lines. Pure.
//!
//! An [`Extent`] is a range of bytes with consecutive lines of one step, or of the whole log. An
//! extent of a step never crosses the start of an extent of the whole log. So the numbers of all
//! lines of an extent of the whole log follow from the extents alone.
//!
//! Invariants: the index of a log does not depend on the parts in which its bytes arrive. Memory is
//! bounded: if extents become too many, they become longer.

use std::{collections::HashMap, ops::Range};

use acrtask_api::outline::{Outline, RunOutline};
use acrtask_model::{Event, EventKind, StepState};
use serde::{Deserialize, Serialize};

use super::{
    split::{RawEvent, Splitter},
    text::{LogEvent, VertexLines},
};

/// Maximum number of lines of an extent at first.
const LINES: u64 = 1000;
/// Maximum number of bytes of other steps between two events of an extent at first.
const GAP: u64 = 16 << 10;
/// Maximum number of extents.
const MAX_EXTENTS: usize = 64 << 10;
/// Maximum length of a text in the outline, in bytes.
const MAX_TEXT: usize = 1 << 10;
/// Maximum length of the lines of a Dockerfile in the outline, in bytes.
const MAX_EXCERPT: usize = 8 << 10;
/// Maximum length of an id or a digest in the outline, in bytes.
const MAX_ID: usize = 200;
/// Maximum number of texts in a list of the outline, such as inputs of a vertex.
const MAX_TEXTS: usize = 50;

/// Selection of lines of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Selection {
    /// All lines, in the order of the log.
    All,
    /// Lines of this step. Empty: lines of the run itself.
    Step(String),
}

/// Consecutive lines in a range of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Extent {
    /// Number of lines before the first one.
    before: u64,
    /// Position of its first event.
    start: u64,
    /// Position after its last event.
    end: u64,
}

/// Positions of the lines of one selection.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Extents {
    lines: u64,
    parts: Vec<Extent>,
}

impl Extents {
    /// Adds an event with `lines` lines. Starts an extent if `limits` or `boundary` require it, and
    /// returns the number of new extents.
    fn add(&mut self, lines: u64, event: &Range<u64>, limits: Limits, boundary: u64) -> usize {
        let before = self.lines;
        self.lines += lines;
        match self.parts.last_mut() {
            Some(last)
                if before - last.before < limits.lines
                    && event.start.saturating_sub(last.end) <= limits.gap
                    && last.start >= boundary =>
            {
                last.end = event.end;
                0
            }
            _ => {
                self.parts.push(Extent {
                    before,
                    start: event.start,
                    end: event.end,
                });
                1
            }
        }
    }

    /// Joins extents as far as `limits` allow, and returns their number. `boundary_of` returns the start of the extent of
    /// the whole log that contains a position.
    fn join(&mut self, limits: Limits, boundary_of: impl Fn(u64) -> u64) -> usize {
        let mut joined: Vec<Extent> = Vec::new();
        for (at, part) in self.parts.iter().enumerate() {
            let after = self
                .parts
                .get(at + 1)
                .map_or(self.lines, |next| next.before);
            match joined.last_mut() {
                Some(last)
                    if after - last.before <= limits.lines
                        && part.start.saturating_sub(last.end) <= limits.gap
                        && last.start >= boundary_of(part.start) =>
                {
                    last.end = part.end;
                }
                _ => joined.push(*part),
            }
        }
        self.parts = joined;
        self.parts.len()
    }

    /// Returns the number of lines before `position`, the start of an extent of the whole log.
    fn lines_before(&self, position: u64) -> u64 {
        let at = self.parts.partition_point(|part| part.start < position);
        self.parts.get(at).map_or(self.lines, |part| part.before)
    }

    /// Returns the position in the list of the extent with the line `number`, from 1.
    fn find(&self, number: u64) -> Option<usize> {
        if number == 0 || number > self.lines {
            return None;
        }
        let after = self.parts.partition_point(|part| part.before < number);
        after.checked_sub(1)
    }
}

/// Limits of extents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Limits {
    /// Maximum number of lines of an extent. Only its last event may exceed it.
    lines: u64,
    /// Maximum number of bytes of other steps between two events of an extent.
    gap: u64,
    /// Maximum number of extents.
    extents: usize,
}

/// Index of the log of an attempt.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LogIndex {
    attempt: u32,
    /// Time of the request for the run. Another run may later have the same id.
    run_created_at: i64,
    outline: Outline,
    /// Positions of all lines.
    all: Extents,
    /// Positions of the lines of the run itself.
    run: Extents,
    /// Positions of the lines of each step, in the order of the outline.
    steps: Vec<Extents>,
    vertices: VertexLines,
    /// Number of extents.
    extents: usize,
    limits: Limits,
    /// Size of the indexed log in bytes.
    bytes: u64,
    is_complete: bool,
    #[serde(skip)]
    splitter: Splitter,
}

/// Ranges to read for lines of a log, and the numbers of the lines in them.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) selection: Selection,
    /// Ranges of bytes. Each starts with an event.
    pub(crate) ranges: Vec<Range<u64>>,
    /// Number of selected lines before the ranges.
    pub(crate) before: u64,
    /// Number of lines of each step before the ranges. The key of the run itself is empty. Only
    /// the numbers of the selected steps are valid.
    pub(crate) counts: HashMap<String, u64>,
    pub(crate) vertices: VertexLines,
    /// Number of selected lines in the index.
    pub(crate) lines: u64,
    pub(crate) is_complete: bool,
}

impl LogIndex {
    pub(crate) fn new(run_created_at: i64, attempt: u32) -> Self {
        Self {
            attempt,
            run_created_at,
            outline: Outline::default(),
            all: Extents::default(),
            run: Extents::default(),
            steps: Vec::new(),
            vertices: VertexLines::default(),
            extents: 0,
            limits: Limits {
                lines: LINES,
                gap: GAP,
                extents: MAX_EXTENTS,
            },
            bytes: 0,
            is_complete: false,
            splitter: Splitter::default(),
        }
    }

    /// Returns `true` if this is the index of that attempt.
    pub(crate) fn is_of(&self, run_created_at: i64, attempt: u32) -> bool {
        self.run_created_at == run_created_at && self.attempt == attempt
    }

    /// Returns the size of the indexed log in bytes, which is the position of the next byte.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns `true` if the whole log is indexed and cannot grow any more.
    pub(crate) fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// Returns the outline for the API.
    pub(crate) fn outline(&self) -> RunOutline {
        RunOutline {
            attempt: self.attempt,
            is_complete: self.is_complete,
            lines: self.all.lines,
            bytes: self.bytes,
            outline: self.outline.clone(),
        }
    }

    /// Returns the approximate size in memory in bytes.
    pub(crate) fn memory(&self) -> usize {
        /// Size of an entry without its texts, with an id and the maps that find it.
        const ENTRY: usize = 500;
        let vertices = self.outline.steps.iter().flat_map(|step| &step.vertices);
        let vertices = vertices.map(|vertex| {
            ENTRY + vertex.name.len() + vertex.error.len() + 100 * vertex.inputs.len()
        });
        let steps = self.outline.steps.iter().map(|step| {
            let lines = step.log_tail.iter().map(String::len).sum::<usize>();
            let excerpt = step.excerpt.as_ref().map_or(0, String::len);
            ENTRY + step.line.len() + 100 * step.after.len() + lines + excerpt
        });
        let entries = self.outline.images.len() + self.outline.bases.len();
        vertices.chain(steps).sum::<usize>()
            + entries * 4 * ENTRY
            + self.extents * size_of::<Extent>()
            + self.splitter.buffered()
    }

    /// Indexes the next bytes of the log.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let mut splitter = std::mem::take(&mut self.splitter);
        splitter.push(bytes, |raw| self.add(raw));
        self.splitter = splitter;
        self.bytes = self.splitter.offset();
    }

    /// Ends the index of a log that cannot grow any more.
    pub(crate) fn finish(&mut self) {
        let mut splitter = std::mem::take(&mut self.splitter);
        splitter.finish(|raw| self.add(raw));
        self.is_complete = true;
    }

    fn add(&mut self, raw: RawEvent<'_>) {
        let Some(mut event) = LogEvent::parse(raw) else {
            return;
        };
        let lines = event.count_lines(self.vertices.record(&event, raw.start));
        let has_short_id = event.step().is_none_or(|id| id.len() <= MAX_ID);
        let id = event.step().filter(|_| has_short_id);
        let step = id.and_then(|id| self.outline.step_index(id));
        match &mut event {
            LogEvent::Output(output) => {
                if let Some(at) = step {
                    self.outline.steps[at].bytes += output.text.len() as u64;
                }
            }
            LogEvent::Other(event) if has_short_id => {
                shorten(event);
                self.outline.apply(event);
            }
            LogEvent::Other(_) | LogEvent::Skipped => {}
        }
        self.steps
            .resize_with(self.outline.steps.len(), Extents::default);
        if lines == 0 {
            return;
        }
        let range = raw.start..raw.end;
        self.extents += self.all.add(lines, &range, self.limits, 0);
        let boundary = self.all.parts.last().map_or(0, |part| part.start);
        let own = match step {
            Some(at) => {
                self.outline.steps[at].lines += lines;
                &mut self.steps[at]
            }
            None => &mut self.run,
        };
        self.extents += own.add(lines, &range, self.limits, boundary);
        while self.extents > self.limits.extents {
            self.join_extents();
        }
    }

    fn join_extents(&mut self) {
        self.limits.lines *= 2;
        self.limits.gap *= 2;
        self.extents = self.all.join(self.limits, |_| 0);
        let all = &self.all.parts;
        let boundary_of = |position: u64| {
            let after = all.partition_point(|part| part.start <= position);
            after.checked_sub(1).map_or(0, |at| all[at].start)
        };
        self.extents += self.run.join(self.limits, boundary_of);
        for step in &mut self.steps {
            self.extents += step.join(self.limits, boundary_of);
        }
    }

    fn extents(&self, selection: &Selection) -> Option<&Extents> {
        match selection {
            Selection::All => Some(&self.all),
            Selection::Step(step) if step.is_empty() => Some(&self.run),
            Selection::Step(step) => {
                let mut steps = self.outline.steps.iter();
                let at = steps.position(|outline| outline.id.as_str() == step)?;
                self.steps.get(at)
            }
        }
    }

    /// Returns the number of selected lines. `None` if the log has no such step.
    pub(crate) fn count_lines(&self, selection: &Selection) -> Option<u64> {
        Some(self.extents(selection)?.lines)
    }

    /// Returns the plan to read at most `count` selected lines from line `from` on, from 1.
    pub(crate) fn plan(&self, selection: Selection, from: u64, count: u64) -> Plan {
        let empty = Extents::default();
        let extents = self.extents(&selection).unwrap_or(&empty);
        let first = extents.find(from);
        let until = from.saturating_add(count);
        let parts = extents.parts.iter().skip(first.unwrap_or(usize::MAX));
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for part in parts.take_while(|part| part.before + 1 < until) {
            match ranges.last_mut() {
                Some(last) if last.end == part.start => last.end = part.end,
                _ => ranges.push(part.start..part.end),
            }
        }
        let start = first.map_or(extents.lines, |at| extents.parts[at].before);
        let position = ranges.first().map_or(0, |range| range.start);
        let ids = self.outline.steps.iter().map(|step| step.id.to_string());
        let mut counts: HashMap<String, u64> = ids
            .zip(&self.steps)
            .map(|(id, step)| (id, step.lines_before(position)))
            .collect();
        counts.insert(String::new(), self.run.lines_before(position));
        if let Selection::Step(step) = &selection {
            counts.insert(step.clone(), start);
        }
        Plan {
            ranges,
            before: start,
            counts,
            vertices: self.vertices.clone(),
            lines: extents.lines,
            is_complete: self.is_complete,
            selection,
        }
    }

    /// Returns the plan to read the extent of the whole log that contains a line of a step.
    pub(crate) fn plan_around(&self, step: &str, number: u64) -> Option<Plan> {
        let extents = self.extents(&Selection::Step(step.to_owned()))?;
        let part = extents.parts[extents.find(number)?];
        self.plan_at(part.start)
    }

    /// Returns the plan to read the extent of the whole log that contains the event at `position`.
    pub(crate) fn plan_at(&self, position: u64) -> Option<Plan> {
        let after = self
            .all
            .parts
            .partition_point(|part| part.start <= position);
        let part = self.all.parts.get(after.checked_sub(1)?)?;
        let next = self
            .all
            .parts
            .get(after)
            .map_or(self.all.lines, |next| next.before);
        Some(self.plan(Selection::All, part.before + 1, next - part.before))
    }
}

/// Cuts long texts of an event, so that the memory of an outline is bounded.
fn shorten(event: &mut Event) {
    let cut_at = |text: &mut String, at: usize| text.truncate(text.floor_char_boundary(at));
    let cut = |text: &mut String| cut_at(text, MAX_TEXT);
    match &mut event.kind {
        EventKind::RunStarted {
            steps,
            engine,
            builder,
        } => {
            [engine, builder].into_iter().for_each(cut);
            steps.retain(|step| step.id.as_str().len() <= MAX_ID);
            for step in steps {
                cut(&mut step.r#type);
                cut(&mut step.line);
                step.after.retain(|id| id.as_str().len() <= MAX_ID);
                step.after.truncate(MAX_TEXTS);
            }
        }
        EventKind::Progress { message } => cut(message),
        EventKind::Vertex { vertex, .. } => {
            cut_at(&mut vertex.vertex, MAX_ID);
            cut(&mut vertex.name);
            cut(&mut vertex.error);
            vertex.inputs.truncate(MAX_TEXTS);
            vertex.inputs.iter_mut().for_each(|id| cut_at(id, MAX_ID));
        }
        EventKind::StepRetrying { reason, .. } => cut(reason),
        EventKind::StepFinished {
            state,
            log_tail,
            excerpt,
            ..
        } => {
            if let StepState::Failed { reason, .. } = state {
                cut(reason);
            }
            log_tail.truncate(MAX_TEXTS);
            log_tail.iter_mut().for_each(cut);
            excerpt
                .iter_mut()
                .for_each(|text| cut_at(text, MAX_EXCERPT));
        }
        EventKind::ImageBuilt { names, .. } => {
            names.truncate(MAX_TEXTS);
            names.iter_mut().for_each(cut);
        }
        EventKind::ImagePushed {
            name, platforms, ..
        } => {
            cut(name);
            platforms.retain(|platform, _| platform.len() <= MAX_ID);
            while platforms.len() > MAX_TEXTS {
                platforms.pop_last();
            }
        }
        EventKind::BaseUsed { name, .. } => cut(name),
        EventKind::RunFinished {
            outcome, remaining, ..
        } => {
            outcome.reason.iter_mut().for_each(cut);
            remaining.truncate(MAX_TEXTS);
            remaining.iter_mut().for_each(cut);
        }
        _ => {}
    }
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
