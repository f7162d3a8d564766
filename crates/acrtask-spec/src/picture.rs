//! A plan as a picture for people: waves of steps from top to bottom, with what runs side by side under
//! one bracket, and under each step what about it is out of the ordinary.

use std::{fmt::Write as _, time::Duration};

use acrtask_model::mask::Patterns;

use crate::{
    check::DEFAULT_NETWORK,
    graph,
    plan::{Plan, Step, StepKind},
};

/// Widest column of ids, in characters; longer ids push their line to the right.
const MAX_ID: usize = 28;

/// The picture of `plan`, secrets masked. `width` is that of the terminal, in columns; 0 means that lines are
/// never cut.
pub fn plan_text(plan: &Plan, color: bool, width: usize) -> String {
    let paint = Paint { color };
    let patterns = Patterns::new(&plan.secrets);
    let waves = graph::waves(&plan.steps);
    let last = waves.iter().copied().max().unwrap_or(0);
    let widest = (0..=last)
        .map(|wave| waves.iter().filter(|at| **at == wave).count())
        .max()
        .unwrap_or(0);
    let id_width = plan
        .steps
        .iter()
        .map(|step| step.id.as_str().chars().count())
        .max()
        .unwrap_or(0)
        .min(MAX_ID);
    let number_width = (last + 1).to_string().len();

    let mut out = String::new();
    let plural = if plan.steps.len() == 1 { "" } else { "s" };
    let beside = if widest > 1 {
        format!(", up to {widest} side by side")
    } else {
        String::new()
    };
    writeln!(
        out,
        "{} {}, {} step{plural}{beside}",
        paint.bold("task"),
        plan.version.as_str(),
        plan.steps.len()
    )
    .ok();
    let given = |name: &str| name != DEFAULT_NETWORK;
    let networks: Vec<&str> = plan
        .networks
        .iter()
        .map(|network| network.name.as_str())
        .filter(|n| given(n))
        .collect();
    let volumes: Vec<&str> = plan
        .volumes
        .iter()
        .map(|volume| volume.name.as_str())
        .collect();
    for (what, names) in [("networks", networks), ("volumes", volumes)] {
        if !names.is_empty() {
            writeln!(
                out,
                "{}",
                paint.dim(&format!("{what} {}", names.join(", ")))
            )
            .ok();
        }
    }

    for wave in 0..=last {
        let steps: Vec<&Step> = plan
            .steps
            .iter()
            .zip(&waves)
            .filter(|(_, at)| **at == wave)
            .map(|(step, _)| step)
            .collect();
        if steps.is_empty() {
            continue;
        }
        out.push('\n');
        for (i, step) in steps.iter().enumerate() {
            let (bracket, below) = match (steps.len(), i) {
                (1, _) => ("──", "  "),
                (_, 0) => ("┌─", "│ "),
                (count, i) if i + 1 == count => ("└─", "  "),
                _ => ("├─", "│ "),
            };
            let number = if i == 0 {
                (wave + 1).to_string()
            } else {
                String::new()
            };
            let number = paint.dim(&format!("{number:>number_width$}"));
            let id = format!("{:<id_width$}", step.id.as_str());
            let (kind, line) = summary(step, &patterns);
            let before = number_width + 1 + 3 + id.chars().count() + 2 + 5 + 2;
            writeln!(
                out,
                "{number} {} {}  {}  {}",
                paint.dim(bracket),
                paint.bold(&id),
                paint.kind(kind),
                cut(&line, width, before),
            )
            .ok();
            let indent = " ".repeat(id_width + 1 + 2 + 5 + 1);
            let previous_alone =
                wave > 0 && waves.iter().filter(|at| **at == wave - 1).count() == 1;
            for note in notes(step, previous_alone) {
                let (text, refused) = match note {
                    Note::Plain(text) => (text, false),
                    Note::Refused(text) => (text, true),
                };
                let text = cut(
                    &patterns.mask(&text),
                    width,
                    number_width + 3 + indent.len(),
                );
                let text = if refused {
                    paint.red(&text)
                } else {
                    paint.dim(&text)
                };
                writeln!(
                    out,
                    "{:number_width$} {}{indent}{text}",
                    "",
                    paint.dim(below)
                )
                .ok();
            }
        }
    }
    out
}

/// A line under a step.
enum Note {
    Plain(String),
    Refused(String),
}

/// The kind of a step and its line on one line.
fn summary(step: &Step, patterns: &Patterns) -> (&'static str, String) {
    let (kind, line) = match &step.kind {
        StepKind::Build(build) => ("build", build.raw.clone()),
        StepKind::Cmd(cmd) => ("cmd", cmd.raw.clone()),
        StepKind::Push(push) => ("push", push.raw.join(" ")),
    };
    let line: Vec<&str> = line
        .split_whitespace()
        .filter(|word| *word != "\\")
        .collect();
    (kind, patterns.mask(&line.join(" ")))
}

/// What differs from the defaults. `obvious` says that the step can only follow the one above it.
fn notes(step: &Step, obvious: bool) -> Vec<Note> {
    let mut notes = Vec::new();
    if !step.after.is_empty() && !(obvious && step.after.len() == 1) {
        let names: Vec<&str> = step.after.iter().map(|id| id.as_str()).collect();
        notes.push(Note::Plain(format!("after {}", names.join(", "))));
    }
    let container = &step.container;
    let mut settings: Vec<String> = Vec::new();
    let mut flag = |on: bool, word: &str| {
        if on {
            settings.push(word.to_owned());
        }
    };
    flag(container.detach, "detached");
    flag(container.privileged, "privileged");
    flag(container.keep, "kept");
    flag(container.pull, "always pulled");
    flag(step.ignore_errors, "errors ignored");
    flag(
        step.disable_working_directory_override,
        "image's own working directory",
    );
    let mut named = |word: &str, value: Option<String>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            settings.push(format!("{word} {value}"));
        }
    };
    let number = |count: u32| (count > 0).then(|| count.to_string());
    let names = |env: &[String]| {
        let names: Vec<&str> = env
            .iter()
            .map(|entry| entry.split('=').next().unwrap_or_default())
            .collect();
        Some(names.join(", "))
    };
    named("timeout", differs(step.timeout, 600));
    named("start delay", differs(step.start_delay, 0));
    named("retries", number(step.retries));
    named("retry delay", differs(step.retry_delay, 5));
    named("retry on", Some(step.retry_on_errors.join(", ")));
    named("repeat", number(step.repeat));
    named(
        "network",
        step.network
            .clone()
            .filter(|network| network != DEFAULT_NETWORK),
    );
    named("in", Some(step.working_directory.clone()));
    named("as", container.user.clone());
    named("entry point", container.entry_point.clone());
    named("cpus", container.cpus.clone());
    named("isolation", container.isolation.clone());
    named("ports", Some(container.ports.join(", ")));
    named("exposes", Some(container.expose.join(", ")));
    named("download retries", number(container.download_retries));
    named("env", names(&step.env));
    for mount in &container.volume_mounts {
        named(
            "volume",
            Some(format!("{} at {}", mount.name, mount.mount_path)),
        );
    }
    if let StepKind::Build(build) = &step.kind {
        named("cache", build.cache.as_ref().map(ToString::to_string));
    }
    if !settings.is_empty() {
        notes.push(Note::Plain(settings.join(" · ")));
    }
    notes.extend(
        step.refusals()
            .map(|refused| Note::Refused(format!("cannot run: {}", refused.message))),
    );
    notes
}

fn differs(duration: Duration, default: u64) -> Option<String> {
    let seconds = duration.as_secs();
    if seconds == default {
        return None;
    }
    let mut out = String::new();
    for (size, unit) in [(3600, "h"), (60, "m"), (1, "s")] {
        let count = seconds % (size * 60) / size;
        let count = if size == 3600 { seconds / size } else { count };
        if count > 0 {
            write!(out, "{count}{unit}").ok();
        }
    }
    Some(out)
}

/// `text` on one line, cut where it would pass the terminal's edge.
fn cut(text: &str, width: usize, before: usize) -> String {
    let text = text.replace('\n', " ");
    let room = width.saturating_sub(before).max(20);
    if width == 0 || text.chars().count() <= room {
        return text;
    }
    text.chars().take(room - 1).chain(['…']).collect()
}

struct Paint {
    color: bool,
}

impl Paint {
    fn with(&self, code: &str, text: &str) -> String {
        if self.color && !text.trim().is_empty() {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }

    fn bold(&self, text: &str) -> String {
        self.with("1", text)
    }

    fn dim(&self, text: &str) -> String {
        self.with("2", text)
    }

    fn red(&self, text: &str) -> String {
        self.with("31", text)
    }

    fn kind(&self, kind: &str) -> String {
        let code = match kind {
            "build" => "34",
            "push" => "35",
            _ => "32",
        };
        self.with(code, &format!("{kind:<5}"))
    }
}
