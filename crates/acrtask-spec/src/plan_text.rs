//! A plan as text for people: waves of steps from top to bottom. Steps of one wave share a bracket.
//! Settings other than the defaults are below each step.

use std::time::Duration;

use acrtask_model::mask::Patterns;

use crate::{
    check::DEFAULT_NETWORK,
    graph,
    plan::{Plan, Step, StepKind},
    render::printable,
};

/// Maximum width of the id column, in characters. A longer id shifts the rest of its line.
const MAX_ID: usize = 28;

/// Formats `plan` with its secrets masked. `width` is that of the terminal, in columns. 0 turns
/// cutting and wrapping off.
pub fn plan_text(plan: &Plan, color: bool, width: usize) -> String {
    let mut waves: Vec<Vec<&Step>> = Vec::new();
    for (step, wave) in plan.steps.iter().zip(graph::assign_waves(&plan.steps)) {
        if waves.len() <= wave {
            waves.resize_with(wave + 1, Vec::new);
        }
        waves[wave].push(step);
    }
    let longest_id = plan
        .steps
        .iter()
        .map(|step| step.id.as_str().chars().count())
        .max();
    let renderer = PlanRenderer {
        paint: Paint { color },
        patterns: Patterns::new(&plan.secrets),
        default_network: plan
            .networks
            .iter()
            .rev()
            .find(|network| network.is_default)
            .map(|n| n.name.as_str()),
        width,
        id_width: longest_id.unwrap_or(0).min(MAX_ID),
        number_width: waves.len().to_string().len(),
    };
    let mut out = renderer.render_header(plan, waves.iter().map(Vec::len).max().unwrap_or(0));
    let mut before = 0;
    for (i, steps) in waves.iter().enumerate() {
        out.push('\n');
        renderer.write_wave(&mut out, i + 1, steps, before);
        before = steps.len();
    }
    out
}

/// Settings that all lines share.
struct PlanRenderer<'p> {
    paint: Paint,
    patterns: Patterns,
    default_network: Option<&'p str>,
    width: usize,
    id_width: usize,
    number_width: usize,
}

impl PlanRenderer<'_> {
    fn render_header(&self, plan: &Plan, widest: usize) -> String {
        let paint = &self.paint;
        let plural = if plan.steps.len() == 1 { "" } else { "s" };
        let beside = if widest > 1 {
            format!(", up to {widest} side by side")
        } else {
            String::new()
        };
        let title = paint.bold("task");
        let mut out = format!(
            "{title} {}, {} step{plural}{beside}\n",
            plan.version.as_str(),
            plan.steps.len()
        );
        let networks = plan
            .networks
            .iter()
            .map(|network| network.name.as_str())
            .filter(|name| *name != DEFAULT_NETWORK);
        let networks: Vec<&str> = networks.collect();
        let volumes: Vec<&str> = plan
            .volumes
            .iter()
            .map(|volume| volume.name.as_str())
            .collect();
        for (what, names) in [("networks", networks), ("volumes", volumes)] {
            if !names.is_empty() {
                out += &paint.dim(&printable(&format!("{what} {}", names.join(", "))));
                out.push('\n');
            }
        }
        out
    }

    /// Writes the steps of one wave under a bracket. `before` is the number of steps in the
    /// previous wave.
    fn write_wave(&self, out: &mut String, number: usize, steps: &[&Step], before: usize) {
        let paint = &self.paint;
        for (i, step) in steps.iter().enumerate() {
            let (bracket, below) = match (steps.len(), i) {
                (1, _) => ("──", "  "),
                (_, 0) => ("┌─", "│ "),
                (count, i) if i + 1 == count => ("└─", "  "),
                _ => ("├─", "│ "),
            };
            let number = if i == 0 {
                number.to_string()
            } else {
                String::new()
            };
            let number = paint.dim(&format!("{number:>0$}", self.number_width));
            let id = format!("{:<1$}", printable(step.id.as_str()), self.id_width);
            let (kind, line) = summarize_step(step);
            // Number, bracket, id and kind, with the gaps between them.
            let column = self.number_width + 1 + 2 + 1 + self.id_width + 2 + 5 + 2;
            let columns = self.columns_after(column + id.chars().count() - self.id_width);
            let line = truncate_line(&printable(&self.patterns.mask(&line)), columns);
            let (bracket, id, kind) = (paint.dim(bracket), paint.bold(&id), paint.paint_kind(kind));
            *out += &format!("{number} {bracket} {id}  {kind}  {line}\n");

            let margin = " ".repeat(self.number_width + 1);
            let gap = " ".repeat(column - self.number_width - 1 - 2);
            for note in collect_notes(step, before == 1, self.default_network) {
                let (text, color): (_, fn(&Paint, &str) -> String) = match note {
                    Note::Plain(text) => (text, Paint::dim),
                    Note::Refused(text) => (text, Paint::red),
                };
                for text in wrap_line(
                    &printable(&self.patterns.mask(&text)),
                    self.columns_after(column),
                ) {
                    *out += &format!("{margin}{}{gap}{}\n", paint.dim(below), color(paint, &text));
                }
            }
        }
    }

    /// Returns the number of columns after `column`, at least 20.
    fn columns_after(&self, column: usize) -> usize {
        match self.width {
            0 => usize::MAX,
            width => width.saturating_sub(column).max(20),
        }
    }
}

/// A line below a step.
enum Note {
    Plain(String),
    Refused(String),
}

/// Returns the kind of a step, and its text on one line.
fn summarize_step(step: &Step) -> (&'static str, String) {
    let (kind, line) = match &step.kind {
        StepKind::Build(build) => ("build", build.raw.clone()),
        StepKind::Cmd(cmd) => ("cmd", cmd.raw.clone()),
        StepKind::Push(push) => ("push", push.raw.join(" ")),
    };
    let line: Vec<&str> = line
        .split_whitespace()
        .filter(|word| *word != "\\")
        .collect();
    (kind, line.join(" "))
}

/// Collects the settings other than the defaults. `obvious`: the step can only follow the one above
/// it.
fn collect_notes(step: &Step, obvious: bool, default_network: Option<&str>) -> Vec<Note> {
    let mut notes = Vec::new();
    if !(step.after.is_empty() || obvious && step.after.len() == 1) {
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
    named("timeout", format_unless_default(step.timeout, 600));
    named("start delay", format_unless_default(step.start_delay, 0));
    named("retries", number(step.retries));
    named("retry delay", format_unless_default(step.retry_delay, 5));
    named("retry on", Some(step.retry_on_errors.join(", ")));
    named("repeat", number(step.repeat));
    named(
        "network",
        step.network
            .clone()
            .filter(|network| Some(network.as_str()) != default_network),
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
        let cache = build.cache.as_ref();
        named("cache", cache.map(|cache| cache.reference.to_string()));
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

fn format_unless_default(duration: Duration, default: u64) -> Option<String> {
    let seconds = duration.as_secs();
    if seconds == default {
        return None;
    }
    let mut out = String::new();
    for (size, unit) in [(3600, "h"), (60, "m"), (1, "s")] {
        let count = seconds % (size * 60) / size;
        let count = if size == 3600 { seconds / size } else { count };
        if count > 0 {
            out += &format!("{count}{unit}");
        }
    }
    Some(out)
}

/// Cuts `text` at `columns` characters.
fn truncate_line(text: &str, columns: usize) -> String {
    if text.chars().count() <= columns {
        return text.to_owned();
    }
    text.chars().take(columns - 1).chain(['…']).collect()
}

/// Wraps `text` at `columns` characters, between settings and between words.
fn wrap_line(text: &str, columns: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    // A no-break space keeps the dot at the end of its line.
    for word in text.replace(" · ", "\u{a0}· ").split_ascii_whitespace() {
        let Some(line) = lines.last_mut() else { break };
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > columns {
            lines.push(word.to_owned());
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
        .iter()
        .map(|line| {
            line.replace('\u{a0}', " ")
                .trim_end_matches(" ·")
                .to_owned()
        })
        .collect()
}

struct Paint {
    color: bool,
}

impl Paint {
    fn paint(&self, code: &str, text: &str) -> String {
        if self.color && !text.trim().is_empty() {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }

    fn bold(&self, text: &str) -> String {
        self.paint("1", text)
    }

    fn dim(&self, text: &str) -> String {
        self.paint("2", text)
    }

    fn red(&self, text: &str) -> String {
        self.paint("31", text)
    }

    fn paint_kind(&self, kind: &str) -> String {
        let code = match kind {
            "build" => "34",
            "push" => "35",
            _ => "32",
        };
        self.paint(code, &format!("{kind:<5}"))
    }
}
