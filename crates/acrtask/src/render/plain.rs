//! Plain log lines that start with the id of their step, for pipes, files and CI. Pure.
//!
//! Lines are printed once and never delayed, so that a step that hangs shows its progress.

use std::{collections::HashMap, fmt::Write as _};

use acrtask_model::{Event, EventKind, SkipReason, StepId, StepState, events::Vertex};

use super::{
    style::Style,
    text,
    view::{RunView, millis_between},
};

/// Maximum width that step ids are padded to.
const ID_WIDTH: usize = 24;

/// Amount of detail in the lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detail {
    /// All lines.
    Full,
    /// Output of containers, warnings and failed steps only; the live frame shows the rest.
    Reduced,
}

/// Renderer of events as lines.
#[derive(Debug)]
pub(crate) struct LineRenderer {
    style: Style,
    detail: Detail,
    /// Printed phase of each vertex of the running builds, because BuildKit repeats its messages.
    printed: HashMap<(StepId, String), Phase>,
}

/// Phase of a vertex.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Started,
    Completed,
}

impl LineRenderer {
    /// Creates a renderer with `style`.
    pub(crate) fn new(style: Style, detail: Detail) -> Self {
        Self {
            style,
            detail,
            printed: HashMap::new(),
        }
    }

    /// Writes the lines of `event` to `out`. `view` must already include the event.
    pub(crate) fn write_event(&mut self, view: &RunView, event: &Event, out: &mut String) {
        let reduced = self.detail == Detail::Reduced;
        match &event.kind {
            // Diagnostics go to standard error, with the source text.
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
            EventKind::Progress { message } if !reduced => {
                let _ = writeln!(out, "{}", self.style.dim(&text::plain_line(message)));
            }
            EventKind::StepStarted { step, attempt } => {
                self.printed.retain(|(of, _), _| of != step);
                let Some(step_view) = view.step(step) else {
                    return;
                };
                // The frame shows running steps.
                if reduced {
                    return;
                }
                let suffix = if *attempt > 1 {
                    format!(" (attempt {attempt})")
                } else {
                    String::new()
                };
                let line = first_line(&step_view.line);
                self.write_line(
                    view,
                    step,
                    &self
                        .style
                        .bold(&format!("{}: {line}{suffix}", step_view.r#type)),
                    out,
                );
            }
            EventKind::Output {
                step, vertex, text, ..
            } => {
                let step_view = view.step(step);
                if reduced && step_view.is_some_and(|view| view.r#type != "cmd") {
                    return;
                }
                let number = vertex
                    .as_ref()
                    .and_then(|vertex| step_view?.find_vertex(vertex))
                    .map(|vertex| vertex.number);
                let number = number.map(|n| format!("#{n} ")).unwrap_or_default();
                for line in text.split('\n') {
                    let line = text::printed_line(line, self.style.is_colored());
                    self.write_line(view, step, &format!("{number}{line}"), out);
                }
            }
            EventKind::Vertex { step, vertex } if !reduced => {
                self.write_vertex(view, step, vertex, out)
            }
            EventKind::StepRetrying {
                step,
                attempt,
                delay_secs,
                reason,
            } => {
                let message =
                    format!("attempt {attempt} failed: {reason}; retrying in {delay_secs}s");
                self.write_line(
                    view,
                    step,
                    &self.style.warn(&text::plain_line(&message)),
                    out,
                );
            }
            EventKind::StepFinished {
                step,
                state,
                elapsed_ms,
                ..
            } => {
                // Neither the frame nor the summary needs lines for successful steps.
                let is_failure =
                    matches!(state, StepState::Failed { .. } | StepState::TimedOut { .. });
                if reduced && !is_failure {
                    return;
                }
                let reason = state_reason(state)
                    .map(|r| format!(": {r}"))
                    .unwrap_or_default();
                let time = match state {
                    StepState::Skipped { .. } => String::new(),
                    _ => format!(" in {}", text::format_duration(*elapsed_ms)),
                };
                let state = self.style.state(state, &state_name(state));
                self.write_line(view, step, &format!("{state}{time}{reason}"), out);
            }
            EventKind::ImageBuilt {
                step,
                names,
                digest,
            } if !reduced => {
                for name in names {
                    self.write_line(
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
                tag_deferred,
                ..
            } if !reduced => {
                // A push step prints this in its own output.
                if view.step(step).is_some_and(|s| s.r#type == "push") {
                    return;
                }
                let digest = self.style.dim(&digest.to_string());
                let line = if *tag_deferred {
                    format!("staged {name} {digest} (no tag yet)")
                } else {
                    format!("pushed {name} {digest}")
                };
                self.write_line(view, step, &line, out);
            }
            EventKind::Warning {
                step,
                message,
                help,
            } => {
                let help = help.as_ref().map(|h| format!(" ({h})")).unwrap_or_default();
                let warning = self.style.warn(&format!(
                    "warning: {}{}",
                    text::plain_line(message),
                    text::plain_line(&help)
                ));
                match step {
                    Some(step) => self.write_line(view, step, &warning, out),
                    None => {
                        let _ = writeln!(out, "{warning}");
                    }
                }
            }
            // The summary contains these.
            EventKind::BaseUsed { .. } | EventKind::RunFinished { .. } => {}
            // Transfers are frequent, and only useful in a live frame.
            EventKind::Transfer { .. } => {}
            EventKind::Progress { .. }
            | EventKind::Vertex { .. }
            | EventKind::ImageBuilt { .. }
            | EventKind::ImagePushed { .. } => {}
        }
    }

    fn write_vertex(&mut self, view: &RunView, step: &StepId, vertex: &Vertex, out: &mut String) {
        let Some(number) = view
            .step(step)
            .and_then(|s| s.find_vertex(&vertex.vertex))
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
        let name = text::plain_line(&vertex.name);
        if before.is_none() && !vertex.cached {
            self.write_line(view, step, &format!("#{number} {name}"), out);
        }
        if phase == Phase::Started {
            return;
        }
        let end = match (vertex.started, vertex.completed) {
            _ if failed => self
                .style
                .bad(&format!("ERROR: {}", text::plain_line(&vertex.error))),
            _ if vertex.cached => format!("{name} {}", self.style.good("CACHED")),
            (Some(started), Some(completed)) => {
                format!(
                    "{} {}",
                    self.style.good("DONE"),
                    text::format_duration(millis_between(started, completed))
                )
            }
            _ => self.style.good("DONE"),
        };
        self.write_line(view, step, &format!("#{number} {end}"), out);
    }

    fn write_line(&self, view: &RunView, step: &StepId, text: &str, out: &mut String) {
        let id = text::pad(step.as_str(), view.id_width(ID_WIDTH));
        let id = self.style.step(
            view.steps.iter().position(|s| s.id == *step).unwrap_or(0),
            &id,
        );
        let line = format!("{id} | {text}");
        let _ = writeln!(out, "{}", line.trim_end());
    }
}

/// Returns the name of a state for output.
pub(crate) fn state_name(state: &StepState) -> String {
    match state {
        // A detached step is stopped normally at the end of the run.
        StepState::Canceled {
            cause: SkipReason::RunEnded,
        } => "stopped".into(),
        // The log ended before the step started.
        StepState::Pending => "not started".into(),
        state => state.to_string(),
    }
}

/// Returns why a step has its state; `None` if the state needs no reason.
pub(crate) fn state_reason(state: &StepState) -> Option<String> {
    match state {
        StepState::Pending | StepState::Running | StepState::Succeeded => None,
        StepState::Failed { reason, .. } => Some(text::plain_line(reason).into_owned()),
        StepState::Skipped { cause } | StepState::Canceled { cause } => Some(cause.to_string()),
        StepState::TimedOut { after_secs } => Some(format!("its limit is {after_secs}s")),
    }
}

/// Returns the first line of a step's command, with a mark if there are more.
pub(crate) fn first_line(line: &str) -> String {
    let mut lines = line.trim().lines();
    let first = lines
        .next()
        .unwrap_or("")
        .trim_end_matches(['\\', ' ', '\t']);
    let more = if lines.next().is_some() { " …" } else { "" };
    format!("{}{more}", text::plain_line(first))
}
