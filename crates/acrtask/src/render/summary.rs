//! Summary of a run: failed steps with their last lines, each step with its state, and images and
//! bases with digests. Pure.

use std::fmt::Write as _;

use acrtask_api::outline::StepOutline;
use acrtask_model::{
    RunState, StepState,
    events::{BaseRole, Evidence},
};

use super::{
    plain::{state_name, state_reason},
    style::Style,
    table::write_section,
    text,
    view::RunView,
};

/// Renders the summary of a finished run, or of a run whose log ended early.
pub(crate) fn render_summary(view: &RunView, style: Style) -> String {
    let mut out = String::new();
    write_failures(view, style, &mut out);
    write_steps(view, style, &mut out);
    write_images(view, style, &mut out);
    write_bases(view, style, &mut out);
    if let Some(finished) = &view.finished {
        if !finished.remaining.is_empty() {
            let _ = writeln!(out, "\n{}", style.bold("Not removed"));
            for resource in &finished.remaining {
                let _ = writeln!(out, "  {}", text::plain_line(resource));
            }
        }
        if finished.outcome.state == RunState::Succeeded {
            let run = view.run.as_ref().map_or("", |r| r.as_str());
            let what = style.good(&format!(
                "run {run} succeeded in {}",
                text::format_duration(finished.elapsed_ms)
            ));
            let _ = writeln!(out, "\n{what}");
        }
    }
    out
}

/// Returns why a run did not succeed, in one line; `None` if it succeeded.
pub(crate) fn failure_message(view: &RunView) -> Option<String> {
    let finished = view.finished.as_ref()?;
    let run = view.run.as_ref().map_or("", |r| r.as_str());
    let verb = match finished.outcome.state {
        RunState::Succeeded => return None,
        RunState::TimedOut => "timed out",
        RunState::Canceled => "was canceled",
        RunState::Queued
        | RunState::Leased
        | RunState::Running
        | RunState::Failed
        | RunState::Error => "failed",
    };
    let why = finished
        .outcome
        .reason
        .as_ref()
        .map(|r| format!(": {}", text::plain_line(r)))
        .unwrap_or_default();
    Some(format!(
        "run {run} {verb} after {}{why}",
        text::format_duration(finished.elapsed_ms)
    ))
}

fn write_failures(view: &RunView, style: Style, out: &mut String) {
    for step in &view.steps {
        if step.log_tail.is_empty() && step.excerpt.is_none() {
            continue;
        }
        let why = state_reason(&step.state)
            .map(|r| format!(": {r}"))
            .unwrap_or_default();
        let head = format!("step {} {}{why}", step.id, state_name(&step.state));
        let _ = writeln!(out, "\n{}", style.state(&step.state, &head));
        if let Some(excerpt) = &step.excerpt {
            for line in excerpt.lines() {
                let _ = writeln!(out, "  {}", text::plain_line(line));
            }
        }
        // The output of a step that could not start is only its reason, which is already shown.
        let shown = state_reason(&step.state).map(|reason| format!("acrtask: {reason}"));
        let has_more = shown.is_none_or(|shown| step.log_tail != [shown]);
        if has_more && !step.log_tail.is_empty() {
            let _ = writeln!(out, "{}", style.dim("  last lines:"));
            for line in &step.log_tail {
                let _ = writeln!(
                    out,
                    "  {} {}",
                    style.dim("|"),
                    text::printed_line(line, false)
                );
            }
        }
    }
}

fn write_steps(view: &RunView, style: Style, out: &mut String) {
    if view.steps.is_empty() {
        return;
    }
    let rows = view.steps.iter().map(|step| {
        vec![
            step.id.to_string(),
            style.state(&step.state, &state_name(&step.state)),
            match &step.state {
                StepState::Skipped { .. } | StepState::Pending => "-".to_owned(),
                _ => step
                    .elapsed_ms
                    .map_or("-".to_owned(), text::format_duration),
            },
            step_note(step),
        ]
    });
    write_section("Steps", rows.collect(), style, out);
}

fn step_note(step: &StepOutline) -> String {
    let attempts = if step.attempt > 1 {
        format!("{} attempts", step.attempt)
    } else {
        String::new()
    };
    match (state_reason(&step.state), attempts.is_empty()) {
        (Some(reason), true) => reason,
        (Some(reason), false) => format!("{reason}; {attempts}"),
        (None, _) => attempts,
    }
}

// A digest gets its own line, because it does not fit beside a name on most terminals.

fn write_images(view: &RunView, style: Style, out: &mut String) {
    if view.images.is_empty() {
        return;
    }
    let _ = writeln!(out, "\n{}", style.bold("Images"));
    for image in &view.images {
        let state = if image.staged {
            style.good("staged (no tag yet)")
        } else if image.pushed {
            style.good("pushed")
        } else {
            style.dim("built, not pushed")
        };
        let _ = writeln!(out, "  {}  {state}", image.name);
        let _ = writeln!(out, "    {}", image.digest);
        for (platform, digest) in &image.platforms {
            let _ = writeln!(out, "    {digest}  {platform}");
        }
    }
}

fn write_bases(view: &RunView, style: Style, out: &mut String) {
    if view.bases.is_empty() {
        return;
    }
    let _ = writeln!(out, "\n{}", style.bold("Bases"));
    for base in &view.bases {
        let steps: Vec<_> = base.steps.iter().map(|s| s.as_str()).collect();
        let role = match base.role {
            BaseRole::Runtime => "runtime base of",
            BaseRole::BuildTime => "build-time base of",
            BaseRole::Frontend => "Dockerfile frontend of",
            BaseRole::Cmd => "run by",
        };
        let evidence = match base.evidence {
            Evidence::Provenance => "by provenance",
            Evidence::Resolved => "as the build resolved it",
            Evidence::Engine => "by the engine",
        };
        let role = format!("{role} {}, {evidence}", steps.join(", "));
        let _ = writeln!(out, "  {}  {}", base.name, style.dim(&role));
        let _ = writeln!(out, "    {}", base.digest);
    }
}
