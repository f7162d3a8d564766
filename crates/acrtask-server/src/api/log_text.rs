//! Lines to read from the events of a log. Events that this version does not know are left out. Pure.

use std::fmt::Write as _;

use acrtask_model::{Event, EventKind, StepState};

use super::events::MAX_LINE;

/// Makes lines of events as their bytes come.
#[derive(Debug, Default)]
pub(super) struct Lines {
    partial: Vec<u8>,
    /// The line is too long to be an event: what comes of it is passed over.
    too_long: bool,
    /// Vertices of builds whose names were shown, with the step.
    shown: std::collections::HashSet<(String, String)>,
}

impl Lines {
    /// The lines of all events that end in `bytes`.
    pub(super) fn push(&mut self, bytes: &[u8]) -> String {
        let mut out = String::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.partial.len() + piece.len() > MAX_LINE {
                if !self.too_long {
                    say(
                        &mut out,
                        None,
                        "what stands here is no event, and is left out",
                    );
                }
                self.too_long = true;
                self.partial = Vec::new();
            }
            if !self.too_long {
                self.partial.extend_from_slice(piece);
            }
            if piece.ends_with(b"\n") {
                let line = std::mem::take(&mut self.partial);
                self.line(&line, &mut out);
                self.too_long = false;
            }
        }
        out
    }

    /// The lines of an event without its line end: what a runner had sent when it was lost.
    pub(super) fn finish(&mut self) -> String {
        let mut out = String::new();
        let line = std::mem::take(&mut self.partial);
        self.line(&line, &mut out);
        out
    }

    fn line(&mut self, line: &[u8], out: &mut String) {
        if let Ok(event) = serde_json::from_slice::<Event>(line) {
            self.event(event.kind, out);
        }
    }

    fn event(&mut self, kind: EventKind, out: &mut String) {
        match kind {
            EventKind::TaskFile { name, problems, .. } => {
                for problem in problems {
                    let word = if problem.error { "error" } else { "warning" };
                    say(
                        out,
                        None,
                        &format!("{word}[{}]: {name}: {}", problem.code, problem.message),
                    );
                    if let Some(help) = problem.help {
                        say(out, None, &format!("  help: {help}"));
                    }
                }
            }
            EventKind::RunStarted {
                steps,
                engine,
                builder,
            } => {
                let count = acrtask_model::count(steps.len(), "step");
                say(
                    out,
                    None,
                    &format!("{count}; containers: {engine}; builds: {builder}"),
                );
            }
            EventKind::Progress { message } => say(out, None, &message),
            EventKind::StepStarted { step, attempt } => match attempt {
                0 | 1 => say(out, Some(step.as_str()), "started"),
                again => say(out, Some(step.as_str()), &format!("attempt {again}")),
            },
            EventKind::Output { step, text, .. } => say(out, Some(step.as_str()), &text),
            EventKind::Vertex { step, vertex } => {
                let key = (step.to_string(), vertex.vertex.clone());
                if vertex.started.is_some() && self.shown.insert(key) {
                    let cached = if vertex.cached { " (cached)" } else { "" };
                    say(
                        out,
                        Some(step.as_str()),
                        &format!("{}{cached}", vertex.name),
                    );
                }
                if !vertex.error.is_empty() {
                    say(
                        out,
                        Some(step.as_str()),
                        &format!("error: {}", vertex.error),
                    );
                }
            }
            EventKind::Transfer { .. } => {}
            EventKind::StepRetrying {
                step,
                attempt,
                delay_secs,
                reason,
            } => say(
                out,
                Some(step.as_str()),
                &format!("attempt {attempt} failed: {reason}; the next one in {delay_secs} s"),
            ),
            EventKind::StepFinished {
                step,
                state,
                elapsed_ms,
                excerpt,
                ..
            } => {
                if let Some(excerpt) = excerpt {
                    say(out, Some(step.as_str()), &excerpt);
                }
                let text = format!("{} in {}", state_text(&state), seconds(elapsed_ms));
                say(out, Some(step.as_str()), &text);
            }
            EventKind::ImageBuilt {
                step,
                names,
                digest,
            } => {
                for name in names {
                    say(out, Some(step.as_str()), &format!("built {name} {digest}"));
                }
            }
            EventKind::ImagePushed {
                step,
                name,
                digest,
                held: true,
                ..
            } => say(
                out,
                Some(step.as_str()),
                &format!("held {name} {digest} (no tag yet)"),
            ),
            EventKind::ImagePushed {
                step, name, digest, ..
            } => say(out, Some(step.as_str()), &format!("pushed {name} {digest}")),
            EventKind::BaseUsed {
                step, name, digest, ..
            } => say(out, Some(step.as_str()), &format!("base {name} {digest}")),
            EventKind::Warning {
                step,
                message,
                help,
            } => {
                let step = step.as_ref().map(acrtask_model::StepId::as_str);
                say(out, step, &format!("warning: {message}"));
                if let Some(help) = help {
                    say(out, step, &format!("  help: {help}"));
                }
            }
            EventKind::RunFinished {
                outcome,
                elapsed_ms,
                left,
            } => {
                for left in left {
                    say(out, None, &format!("left: {left}"));
                }
                let mut text = format!("run {} in {}", outcome.state, seconds(elapsed_ms));
                if let Some(reason) = outcome.reason {
                    let _ = write!(text, ": {reason}");
                }
                say(out, None, &text);
            }
        }
    }
}

fn state_text(state: &StepState) -> String {
    match state {
        StepState::Failed { reason, .. } => format!("{state}: {reason}"),
        StepState::Skipped { because } | StepState::Canceled { because } => {
            format!("{state}: {because}")
        }
        _ => state.to_string(),
    }
}

fn seconds(ms: u64) -> String {
    format!("{}.{} s", ms / 1000, ms % 1000 / 100)
}

/// Lines of a step, or of the run.
fn say(out: &mut String, step: Option<&str>, text: &str) {
    for line in text.trim_end_matches('\n').split('\n') {
        // A carriage return would hide the step's name on a terminal.
        let line = line
            .trim_end_matches('\r')
            .rsplit('\r')
            .next()
            .unwrap_or_default();
        match step {
            Some(step) => {
                let _ = writeln!(out, "{step} | {line}");
            }
            None => {
                let _ = writeln!(out, "{line}");
            }
        }
    }
}

#[cfg(test)]
#[path = "log_text_tests.rs"]
mod tests;
