//! State of a run for the live frame and the summary: the outline of its events, and the activity
//! of running vertices. Pure.
//!
//! Invariant: memory is bounded, regardless of the output of a step.

use std::{
    collections::{HashMap, VecDeque},
    ops::Deref,
};

pub(crate) use acrtask_api::outline::millis_between;
use acrtask_api::outline::{Outline, StepOutline, VertexOutline};
use acrtask_model::{Event, EventKind, RunId, StepId};

use super::text;

/// Maximum number of last lines kept for each vertex.
const TAIL_LINES: usize = 10;
/// Maximum width of each of these lines in columns.
const TAIL_WIDTH: usize = 400;

/// Current state of a run.
#[derive(Debug, Default)]
pub(crate) struct RunView {
    outline: Outline,
    /// Set while the run waits for a runner.
    pub(crate) is_waiting: bool,
    /// Activity of the vertices of running steps, by step and vertex.
    activities: HashMap<(StepId, String), VertexActivity>,
}

/// Output and transfers of a vertex.
#[derive(Debug, Default)]
pub(crate) struct VertexActivity {
    /// Last lines of output.
    pub(crate) tail: VecDeque<String>,
    /// Data transfers.
    pub(crate) transfers: Vec<TransferView>,
}

/// Data transfer.
#[derive(Debug)]
pub(crate) struct TransferView {
    /// Identifier of the data.
    pub(crate) id: String,
    /// Bytes transferred.
    pub(crate) current: i64,
    /// Total bytes; 0 if unknown.
    pub(crate) total: i64,
    /// Set when the transfer is complete.
    pub(crate) done: bool,
}

impl Deref for RunView {
    type Target = Outline;

    fn deref(&self) -> &Outline {
        &self.outline
    }
}

impl RunView {
    /// Returns the width of the longest step id, at most `most` columns.
    pub(crate) fn id_width(&self, most: usize) -> usize {
        self.steps
            .iter()
            .map(|s| text::display_width(s.id.as_str()))
            .max()
            .unwrap_or(0)
            .min(most)
    }

    /// Returns the activity of a vertex. `None` if it had no output and no transfer.
    pub(crate) fn activity(
        &self,
        step: &StepOutline,
        vertex: &VertexOutline,
    ) -> Option<&VertexActivity> {
        self.activities.get(&(step.id.clone(), vertex.id.clone()))
    }

    /// Applies an event to the state.
    pub(crate) fn apply(&mut self, event: &Event) {
        // The first event ends the wait for a runner.
        if std::mem::take(&mut self.is_waiting) {
            self.outline.progress = None;
        }
        self.outline.apply(event);
        match &event.kind {
            EventKind::StepStarted { step, .. } | EventKind::StepFinished { step, .. } => {
                self.activities.retain(|(of, _), _| of != step);
            }
            EventKind::Output {
                step,
                vertex: Some(vertex),
                text,
                ..
            } => {
                if let Some(activity) = self.activity_mut(step, vertex) {
                    for line in text.lines() {
                        activity.push_line(line);
                    }
                }
            }
            EventKind::Transfer {
                step,
                vertex,
                id,
                current,
                total,
                done,
            } => {
                if let Some(activity) = self.activity_mut(step, vertex) {
                    activity.set_transfer(TransferView {
                        id: id.clone(),
                        current: *current,
                        total: *total,
                        done: *done,
                    });
                }
            }
            _ => {}
        }
    }

    /// Records why `run` has not started yet.
    pub(crate) fn set_waiting(&mut self, run: &RunId, why: &str) {
        if self.started_at.is_none() {
            self.outline.run = Some(run.clone());
            self.is_waiting = true;
            self.outline.progress = Some(why.to_owned());
        }
    }

    /// Returns the activity of a vertex of the outline.
    fn activity_mut(&mut self, step: &StepId, vertex: &str) -> Option<&mut VertexActivity> {
        self.outline.step(step)?.find_vertex(vertex)?;
        let key = (step.clone(), vertex.to_owned());
        Some(self.activities.entry(key).or_default())
    }
}

impl VertexActivity {
    fn push_line(&mut self, line: &str) {
        if self.tail.len() == TAIL_LINES {
            self.tail.pop_front();
        }
        let line = text::truncate(&text::printed_line(line, false), TAIL_WIDTH);
        self.tail.push_back(line);
    }

    fn set_transfer(&mut self, transfer: TransferView) {
        match self.transfers.iter_mut().find(|t| t.id == transfer.id) {
            Some(earlier) => *earlier = transfer,
            None => self.transfers.push(transfer),
        }
    }
}
