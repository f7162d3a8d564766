//! What stands at the end of a run: the failed steps with their last lines, each step with its state,
//! each image and each base with its digest. Pure.

use std::fmt::Write as _;

use acrtask_model::{
    RunState, StepState,
    events::{BaseRole, Evidence},
};

use super::{
    plain::{reason, word},
    style::Style,
    table::titled as table,
    text,
    view::{RunView, StepView},
};

/// The summary of a run that is over (or of one whose end was never told), each line with its line end.
pub(crate) fn summary(view: &RunView, style: Style) -> String {
    let mut out = String::new();
    failures(view, style, &mut out);
    steps(view, style, &mut out);
    images(view, style, &mut out);
    bases(view, style, &mut out);
    if let Some(finished) = &view.finished {
        if !finished.left.is_empty() {
            let _ = writeln!(out, "\n{}", style.bold("Left behind"));
            for left in &finished.left {
                let _ = writeln!(out, "  {}", text::plain(left));
            }
        }
        if finished.outcome.state == RunState::Succeeded {
            let run = view.run.as_ref().map_or("", |r| r.as_str());
            let what = style.good(&format!(
                "run {run} succeeded in {}",
                text::duration(finished.elapsed_ms)
            ));
            let _ = writeln!(out, "\n{what}");
        }
    }
    out
}

/// Why a run did not succeed, in one line; nothing for one that did.
pub(crate) fn verdict(view: &RunView) -> Option<String> {
    let finished = view.finished.as_ref()?;
    let run = view.run.as_ref().map_or("", |r| r.as_str());
    let verb = match finished.outcome.state {
        RunState::Succeeded => return None,
        RunState::TimedOut => "timed out",
        RunState::Canceled => "was stopped",
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
        .map(|r| format!(": {}", text::plain(r)))
        .unwrap_or_default();
    Some(format!(
        "run {run} {verb} after {}{why}",
        text::duration(finished.elapsed_ms)
    ))
}

fn failures(view: &RunView, style: Style, out: &mut String) {
    for step in &view.steps {
        if step.log_tail.is_empty() && step.excerpt.is_none() {
            continue;
        }
        let why = reason(&step.state)
            .map(|r| format!(": {r}"))
            .unwrap_or_default();
        let head = format!("step {} {}{why}", step.summary.id, word(&step.state));
        let _ = writeln!(out, "\n{}", style.state(&step.state, &head));
        if let Some(excerpt) = &step.excerpt {
            for line in excerpt.lines() {
                let _ = writeln!(out, "  {}", text::plain(line));
            }
        }
        // A step that came to nothing printed its reason alone, which has just been told.
        let told = reason(&step.state).map(|reason| format!("acrtask: {reason}"));
        let news = told.is_none_or(|told| step.log_tail != [told]);
        if news && !step.log_tail.is_empty() {
            let _ = writeln!(out, "{}", style.dim("  its last lines:"));
            for line in &step.log_tail {
                let _ = writeln!(out, "  {} {}", style.dim("|"), text::printed(line, false));
            }
        }
    }
}

fn steps(view: &RunView, style: Style, out: &mut String) {
    if view.steps.is_empty() {
        return;
    }
    let rows = view.steps.iter().map(|step| {
        vec![
            step.summary.id.to_string(),
            style.state(&step.state, &word(&step.state)),
            match &step.state {
                StepState::Skipped { .. } | StepState::Pending => "-".to_owned(),
                _ => step.elapsed_ms.map_or("-".to_owned(), text::duration),
            },
            why(step),
        ]
    });
    table("Steps", rows.collect(), style, out);
}

fn why(step: &StepView) -> String {
    let attempts = if step.attempt > 1 {
        format!("{} attempts", step.attempt)
    } else {
        String::new()
    };
    match (reason(&step.state), attempts.is_empty()) {
        (Some(reason), true) => reason,
        (Some(reason), false) => format!("{reason}; {attempts}"),
        (None, _) => attempts,
    }
}

// A digest stands on a line of its own: beside a name it would not fit on a usual terminal.

fn images(view: &RunView, style: Style, out: &mut String) {
    if view.images.is_empty() {
        return;
    }
    let _ = writeln!(out, "\n{}", style.bold("Images"));
    for image in &view.images {
        let state = if image.held {
            style.good("held (no tag yet)")
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

fn bases(view: &RunView, style: Style, out: &mut String) {
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
            BaseRole::Ran => "run by",
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
