//! Conversion of the events of a log to readable lines. Skips events that this version does not
//! support. Pure.

use std::fmt::Write as _;

use acrtask_model::{Event, EventKind, StepState};

use super::events::MAX_LINE;

/// Incremental converter of event bytes to lines.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    partial: Vec<u8>,
    /// The line is longer than an event can be. Its bytes are dropped up to the next line end.
    too_long: bool,
    /// Vertices that were already written, with their step.
    shown: std::collections::HashSet<(String, String)>,
}

impl Lines {
    /// Returns the lines of all events that end in `bytes`.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> String {
        let mut out = String::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.partial.len() + piece.len() > MAX_LINE {
                if !self.too_long {
                    write_lines(&mut out, None, "skipped a line that is not an event");
                }
                self.too_long = true;
                self.partial = Vec::new();
            }
            if !self.too_long {
                self.partial.extend_from_slice(piece);
            }
            if piece.ends_with(b"\n") {
                let line = std::mem::take(&mut self.partial);
                self.convert_line(&line, &mut out);
                self.too_long = false;
            }
        }
        out
    }

    /// Returns the lines of a last event without a line end, which a lost runner may leave behind.
    pub(crate) fn finish(&mut self) -> String {
        let mut out = String::new();
        let line = std::mem::take(&mut self.partial);
        self.convert_line(&line, &mut out);
        out
    }

    fn convert_line(&mut self, line: &[u8], out: &mut String) {
        if let Ok(event) = serde_json::from_slice::<Event>(line) {
            self.write_event(event.kind, out);
        }
    }

    fn write_event(&mut self, kind: EventKind, out: &mut String) {
        match kind {
            EventKind::TaskFile { name, problems, .. } => {
                for problem in problems {
                    let word = if problem.error { "error" } else { "warning" };
                    write_lines(
                        out,
                        None,
                        &format!("{word}[{}]: {name}: {}", problem.code, problem.message),
                    );
                    if let Some(help) = problem.help {
                        write_lines(out, None, &format!("  help: {help}"));
                    }
                }
            }
            EventKind::RunStarted {
                steps,
                engine,
                builder,
            } => {
                let count = acrtask_model::count(steps.len(), "step");
                write_lines(
                    out,
                    None,
                    &format!("{count}; containers: {engine}; builds: {builder}"),
                );
            }
            EventKind::Progress { message } => write_lines(out, None, &message),
            EventKind::StepStarted { step, attempt } => match attempt {
                0 | 1 => write_lines(out, Some(step.as_str()), "started"),
                number => write_lines(out, Some(step.as_str()), &format!("attempt {number}")),
            },
            EventKind::Output { step, text, .. } => write_lines(out, Some(step.as_str()), &text),
            EventKind::Vertex { step, vertex } => {
                let key = (step.to_string(), vertex.vertex.clone());
                if vertex.started.is_some() && self.shown.insert(key) {
                    let cached = if vertex.cached { " (cached)" } else { "" };
                    write_lines(
                        out,
                        Some(step.as_str()),
                        &format!("{}{cached}", vertex.name),
                    );
                }
                if !vertex.error.is_empty() {
                    write_lines(
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
            } => write_lines(
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
                    write_lines(out, Some(step.as_str()), &excerpt);
                }
                let text = format!("{} in {}", format_state(&state), format_seconds(elapsed_ms));
                write_lines(out, Some(step.as_str()), &text);
            }
            EventKind::ImageBuilt {
                step,
                names,
                digest,
            } => {
                for name in names {
                    write_lines(out, Some(step.as_str()), &format!("built {name} {digest}"));
                }
            }
            EventKind::ImagePushed {
                step,
                name,
                digest,
                tag_deferred: true,
                ..
            } => write_lines(
                out,
                Some(step.as_str()),
                &format!("staged {name} {digest} (no tag yet)"),
            ),
            EventKind::ImagePushed {
                step, name, digest, ..
            } => write_lines(out, Some(step.as_str()), &format!("pushed {name} {digest}")),
            EventKind::BaseUsed {
                step, name, digest, ..
            } => write_lines(out, Some(step.as_str()), &format!("base {name} {digest}")),
            EventKind::Warning {
                step,
                message,
                help,
            } => {
                let step = step.as_ref().map(acrtask_model::StepId::as_str);
                write_lines(out, step, &format!("warning: {message}"));
                if let Some(help) = help {
                    write_lines(out, step, &format!("  help: {help}"));
                }
            }
            EventKind::RunFinished {
                outcome,
                elapsed_ms,
                remaining,
            } => {
                for left in remaining {
                    write_lines(out, None, &format!("left: {left}"));
                }
                let mut text = format!("run {} in {}", outcome.state, format_seconds(elapsed_ms));
                if let Some(reason) = outcome.reason {
                    let _ = write!(text, ": {reason}");
                }
                write_lines(out, None, &text);
            }
        }
    }
}

fn format_state(state: &StepState) -> String {
    match state {
        StepState::Failed { reason, .. } => format!("{state}: {reason}"),
        StepState::Skipped { cause } | StepState::Canceled { cause } => {
            format!("{state}: {cause}")
        }
        _ => state.to_string(),
    }
}

fn format_seconds(ms: u64) -> String {
    format!("{}.{} s", ms / 1000, ms % 1000 / 100)
}

/// Writes lines of a step. Writes lines of the run if `step` is `None`.
fn write_lines(out: &mut String, step: Option<&str>, text: &str) {
    for line in text.trim_end_matches('\n').split('\n') {
        // On a terminal, a carriage return would overwrite the name of the step.
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
