//! Plain lines: each begins with the id of its step. For pipes, files and CI. Pure.
//!
//! A line is printed once and stands; nothing is held back, so a step that hangs shows how far it came.

use std::{collections::HashMap, fmt::Write as _};

use acrtask_model::{Event, EventKind, SkipReason, StepId, StepState, events::Vertex};

use super::{
    style::Style,
    text,
    view::{RunView, millis},
};

/// Longest step id that is padded for.
const ID_WIDTH: usize = 24;

/// What a line renderer leaves out, because something else shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detail {
    /// Every line.
    Full,
    /// Builds are folded by the live frame; only containers' output, warnings and ends of steps.
    Folded,
}

/// Turns events into lines.
#[derive(Debug)]
pub(crate) struct Lines {
    style: Style,
    detail: Detail,
    /// How far each vertex of the running builds was printed: BuildKit tells the same thing several times.
    printed: HashMap<(StepId, String), Phase>,
}

/// How far a vertex is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Started,
    Completed,
}

impl Lines {
    /// Lines in `style`.
    pub(crate) fn new(style: Style, detail: Detail) -> Self {
        Self {
            style,
            detail,
            printed: HashMap::new(),
        }
    }

    /// The lines of `event`, each with its line end, written to `out`. `view` has taken `event` in already.
    pub(crate) fn event(&mut self, view: &RunView, event: &Event, out: &mut String) {
        let folded = self.detail == Detail::Folded;
        match &event.kind {
            // Diagnostics go to standard error, with the text that they are about.
            EventKind::TaskFile { .. } => {}
            EventKind::RunStarted {
                steps,
                engine,
                builder,
            } => {
                let s = &self.style;
                let steps = text::count(steps.len(), "step");
                let _ = writeln!(
                    out,
                    "{} {}: {steps}",
                    s.bold("run"),
                    s.bold(event.run.as_str())
                );
                let _ = writeln!(out, "{}", s.dim(&format!("containers: {engine}")));
                let _ = writeln!(out, "{}", s.dim(&format!("builds:     {builder}")));
            }
            EventKind::Progress { message } if !folded => {
                let _ = writeln!(out, "{}", self.style.dim(&text::plain(message)));
            }
            EventKind::StepStarted { step, attempt } => {
                self.printed.retain(|(of, _), _| of != step);
                let Some(known) = view.step(step) else { return };
                // The frame shows what runs.
                if folded {
                    return;
                }
                let again = if *attempt > 1 {
                    format!(" (attempt {attempt})")
                } else {
                    String::new()
                };
                let line = first_line(&known.summary.line);
                self.line(
                    view,
                    step,
                    &self
                        .style
                        .bold(&format!("{}: {line}{again}", known.summary.r#type)),
                    out,
                );
            }
            EventKind::Output {
                step, vertex, text, ..
            } => {
                let known = view.step(step);
                if folded && known.is_some_and(|known| known.summary.r#type != "cmd") {
                    return;
                }
                let number = vertex
                    .as_ref()
                    .and_then(|vertex| known?.vertex_of(vertex))
                    .map(|vertex| vertex.number);
                let number = number.map(|n| format!("#{n} ")).unwrap_or_default();
                for line in text.split('\n') {
                    let line = text::printed(line, self.style.is_colored());
                    self.line(view, step, &format!("{number}{line}"), out);
                }
            }
            EventKind::Vertex { step, vertex } if !folded => self.vertex(view, step, vertex, out),
            EventKind::StepRetrying {
                step,
                attempt,
                delay_secs,
                reason,
            } => {
                let what = format!("attempt {attempt} failed: {reason}; again in {delay_secs}s");
                self.line(view, step, &self.style.warn(&text::plain(&what)), out);
            }
            EventKind::StepFinished {
                step,
                state,
                elapsed_ms,
                ..
            } => {
                // The frame shows the good ends, the summary shows them again.
                let bad = matches!(state, StepState::Failed { .. } | StepState::TimedOut { .. });
                if folded && !bad {
                    return;
                }
                let reason = reason(state).map(|r| format!(": {r}")).unwrap_or_default();
                let time = match state {
                    StepState::Skipped { .. } => String::new(),
                    _ => format!(" in {}", text::duration(*elapsed_ms)),
                };
                let state = self.style.state(state, &word(state));
                self.line(view, step, &format!("{state}{time}{reason}"), out);
            }
            EventKind::ImageBuilt {
                step,
                names,
                digest,
            } if !folded => {
                for name in names {
                    self.line(
                        view,
                        step,
                        &format!("built {name} {}", self.style.dim(&digest.to_string())),
                        out,
                    );
                }
            }
            EventKind::ImagePushed {
                step,
                name,
                digest,
                held,
                ..
            } if !folded => {
                // A push step says it in its own output.
                if view.step(step).is_some_and(|s| s.summary.r#type == "push") {
                    return;
                }
                let digest = self.style.dim(&digest.to_string());
                let line = if *held {
                    format!("held {name} {digest} (no tag yet)")
                } else {
                    format!("pushed {name} {digest}")
                };
                self.line(view, step, &line, out);
            }
            EventKind::Warning {
                step,
                message,
                help,
            } => {
                let help = help.as_ref().map(|h| format!(" ({h})")).unwrap_or_default();
                let what = self.style.warn(&format!(
                    "warning: {}{}",
                    text::plain(message),
                    text::plain(&help)
                ));
                match step {
                    Some(step) => self.line(view, step, &what, out),
                    None => {
                        let _ = writeln!(out, "{what}");
                    }
                }
            }
            // The summary shows these.
            EventKind::BaseUsed { .. } | EventKind::RunFinished { .. } => {}
            // A terminal's business, and many.
            EventKind::Transfer { .. } => {}
            EventKind::Progress { .. }
            | EventKind::Vertex { .. }
            | EventKind::ImageBuilt { .. }
            | EventKind::ImagePushed { .. } => {}
        }
    }

    fn vertex(&mut self, view: &RunView, step: &StepId, vertex: &Vertex, out: &mut String) {
        let Some(number) = view
            .step(step)
            .and_then(|s| s.vertex_of(&vertex.vertex))
            .map(|v| v.number)
        else {
            return;
        };
        let failed = !vertex.error.is_empty();
        let phase = match (vertex.started, vertex.completed) {
            (_, Some(_)) => Phase::Completed,
            _ if failed => Phase::Completed,
            (Some(_), None) => Phase::Started,
            (None, None) => return,
        };
        let before = self
            .printed
            .insert((step.clone(), vertex.vertex.clone()), phase);
        if before >= Some(phase) {
            self.printed
                .extend(before.map(|before| ((step.clone(), vertex.vertex.clone()), before)));
            return;
        }
        let name = text::plain(&vertex.name);
        if before.is_none() && !vertex.cached {
            self.line(view, step, &format!("#{number} {name}"), out);
        }
        if phase == Phase::Started {
            return;
        }
        let end = match (vertex.started, vertex.completed) {
            _ if failed => self
                .style
                .bad(&format!("ERROR: {}", text::plain(&vertex.error))),
            _ if vertex.cached => format!("{name} {}", self.style.good("CACHED")),
            (Some(started), Some(completed)) => {
                format!(
                    "{} {}",
                    self.style.good("DONE"),
                    text::duration(millis(started, completed))
                )
            }
            _ => self.style.good("DONE"),
        };
        self.line(view, step, &format!("#{number} {end}"), out);
    }

    fn line(&self, view: &RunView, step: &StepId, text: &str, out: &mut String) {
        let id = text::pad(step.as_str(), view.id_width(ID_WIDTH));
        let id = self.style.step(
            view.steps
                .iter()
                .position(|s| s.summary.id == *step)
                .unwrap_or(0),
            &id,
        );
        let line = format!("{id} | {text}");
        let _ = writeln!(out, "{}", line.trim_end());
    }
}

/// What a state is called.
pub(crate) fn word(state: &StepState) -> String {
    match state {
        // A detached step did what it was asked to.
        StepState::Canceled {
            because: SkipReason::RunEnded,
        } => "stopped".into(),
        // The run ended before the step's own end was told.
        StepState::Pending => "not started".into(),
        state => state.to_string(),
    }
}

/// Why a step ended as it did; nothing where the state says it all.
pub(crate) fn reason(state: &StepState) -> Option<String> {
    match state {
        StepState::Pending | StepState::Running | StepState::Succeeded => None,
        StepState::Failed { reason, .. } => Some(text::plain(reason).into_owned()),
        StepState::Skipped { because } | StepState::Canceled { because } => {
            Some(because.to_string())
        }
        StepState::TimedOut { after_secs } => Some(format!("its limit is {after_secs}s")),
    }
}

/// The first line of a step's line, marked where there are more.
pub(crate) fn first_line(line: &str) -> String {
    let mut lines = line.trim().lines();
    let first = lines
        .next()
        .unwrap_or("")
        .trim_end_matches(['\\', ' ', '\t']);
    let more = if lines.next().is_some() { " …" } else { "" };
    format!("{}{more}", text::plain(first))
}
