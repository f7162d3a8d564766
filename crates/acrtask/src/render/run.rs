//! Runs, tasks and runners of a server, as tables and texts. Pure: the time is a parameter.

use acrtask_api::{
    admin::{Runner, RunnerState},
    run::{Approval, Run, RunSummary, Waiting},
    spec::{ContextSource, RunSource},
    task::Task,
};
use acrtask_model::{Event, EventKind, Outcome, RunState, events::StepSummary};
use jiff::Timestamp;

use super::{
    style::Style,
    summary,
    table::{key_values, render_list, write_section},
    text,
    view::{RunView, millis_between},
};

/// Returns the name of a state in its color.
pub(crate) fn styled_state(state: RunState, style: Style) -> String {
    let text = state.to_string();
    match state {
        RunState::Succeeded => style.good(&text),
        RunState::Failed | RunState::TimedOut | RunState::Error => style.bad(&text),
        RunState::Canceled => style.warn(&text),
        RunState::Queued | RunState::Leased => style.dim(&text),
        RunState::Running => text,
    }
}

/// Formats the age of `time`: `5s ago`, `3m ago`, `2h ago`, `4d ago`.
pub(crate) fn format_age(time: Timestamp, now: Timestamp) -> String {
    let seconds = millis_between(time, now) / 1000;
    match seconds {
        0..60 => format!("{seconds}s ago"),
        60..3600 => format!("{}m ago", seconds / 60),
        3600..86_400 => format!("{}h ago", seconds / 3600),
        _ => format!("{}d ago", seconds / 86_400),
    }
}

/// Renders a list of runs.
pub(crate) fn render_runs(runs: &[RunSummary], now: Timestamp, style: Style) -> String {
    let rows = runs.iter().map(|run| {
        vec![
            run.id.to_string(),
            run.task.clone().unwrap_or_else(|| "-".into()),
            styled_state(run.state, style),
            format_age(run.created_at, now),
            duration_text(run.started_at, run.finished_at, now),
            run.runner.clone().unwrap_or_else(|| "-".into()),
            list_reason(run),
        ]
    });
    render_list(
        &["ID", "TASK", "STATE", "CREATED", "TIME", "RUNNER", "WHY"],
        rows.collect(),
        "no runs",
        style,
    )
}

/// Returns the reason of a run in a list; for a run that waits for its approval, the revision to
/// approve.
fn list_reason(run: &RunSummary) -> String {
    match (&run.reason, &run.revision) {
        (None, Some(revision)) => first_text_line(&format!("needs approval: {revision}")),
        (reason, _) => reason.as_deref().map(first_text_line).unwrap_or_default(),
    }
}

fn duration_text(
    started: Option<Timestamp>,
    finished: Option<Timestamp>,
    now: Timestamp,
) -> String {
    started.map_or("-".into(), |started| {
        text::format_duration(millis_between(started, finished.unwrap_or(now)))
    })
}

fn first_text_line(text: &str) -> String {
    text::truncate(
        &text::plain_line(text.lines().next().unwrap_or_default()),
        60,
    )
}

/// Renders one run with its result.
pub(crate) fn render_run(run: &Run, now: Timestamp, style: Style) -> String {
    let context = match &run.spec.context {
        ContextSource::None => "none".to_owned(),
        ContextSource::Upload { id } => format!("upload {id}"),
        ContextSource::Url { url, commit, .. } => match commit {
            Some(commit) => format!("{url} at {commit}"),
            None => url.clone(),
        },
    };
    let source = match &run.spec.source {
        RunSource::DefaultFile => "acr-task.yaml".to_owned(),
        RunSource::File { path } => path.clone(),
        RunSource::Inline { name, .. } => format!("{name} (sent with the run)"),
        RunSource::Cmd { line } => format!("cmd: {line}"),
        RunSource::Build(build) => format!("build: {}", build.images.join(" ")),
    };
    let attempt = if run.attempt > 1 {
        run.attempt.to_string()
    } else {
        String::new()
    };
    let mut out = key_values(
        &[
            ("run", run.id.to_string()),
            ("task", run.task.clone().unwrap_or_default()),
            ("state", styled_state(run.state, style)),
            (
                "why",
                run.reason
                    .as_deref()
                    .map(|why| text::plain_line(why).into_owned())
                    .unwrap_or_default(),
            ),
            (
                "stopping",
                if run.cancel_requested && !run.state.is_final() {
                    "cancellation requested".into()
                } else {
                    String::new()
                },
            ),
            ("context", text::plain_line(&context).into_owned()),
            (
                "revision",
                run.spec.variables.revision().unwrap_or_default(),
            ),
            ("source", source),
            ("trigger", trigger_text(run)),
            ("by", run.requested_by.clone().unwrap_or_default()),
            ("approval", approval_text(run)),
            ("domain", run.domain.clone()),
            (
                "repeats",
                run.rerun_of
                    .as_ref()
                    .map(ToString::to_string)
                    .unwrap_or_default(),
            ),
            ("runner", run.runner.clone().unwrap_or_default()),
            ("attempt", attempt),
            (
                "created",
                format!("{} ({})", run.created_at, format_age(run.created_at, now)),
            ),
            (
                "time",
                run.started_at
                    .map(|_| duration_text(run.started_at, run.finished_at, now))
                    .unwrap_or_default(),
            ),
        ],
        style,
    );
    out.push_str(&render_digest_changes(run, style));
    out.push_str(&summary::render_summary(&result_view(run), style));
    out
}

fn trigger_text(run: &Run) -> String {
    match (&run.firing, &run.cascade) {
        (Some(firing), _) => super::timers::describe_firing(firing),
        (None, Some(of)) if of.attempt > 1 => format!("cascade {}, start {}", of.id, of.attempt),
        (None, Some(of)) => format!("cascade {}", of.id),
        (None, None) => run.trigger.clone(),
    }
}

/// Renders the digest changes that a cascade's run was started for.
fn render_digest_changes(run: &Run, style: Style) -> String {
    let bases = run.cascade.iter().flat_map(|of| &of.changes);
    let rows = bases.map(|base| {
        vec![
            base.reference.clone(),
            format!("{} -> {}", base.from.short(), base.to.short()),
        ]
    });
    let mut out = String::new();
    write_section("Digest changes", rows.collect(), style, &mut out);
    out
}

fn approval_text(run: &Run) -> String {
    match run.approval {
        None => String::new(),
        Some(Approval::Pending) => format!("needed: `acrtask runs approve {}`", run.id),
        Some(Approval::Approved) => {
            format!(
                "by {}",
                run.approved_by.as_deref().unwrap_or("an unknown user")
            )
        }
    }
}

/// Folds the result of `run` into a view, like its events.
fn result_view(run: &Run) -> RunView {
    let mut view = RunView::default();
    let Some(result) = &run.result else {
        return view;
    };
    let mut apply = |kind| {
        view.apply(&Event {
            time: run.created_at,
            run: run.id.clone(),
            kind,
        });
    };
    apply(EventKind::RunStarted {
        steps: result
            .steps
            .iter()
            .map(|step| StepSummary {
                id: step.id.clone(),
                r#type: String::new(),
                line: String::new(),
                after: Vec::new(),
            })
            .collect(),
        engine: String::new(),
        builder: String::new(),
    });
    for step in &result.steps {
        apply(EventKind::StepFinished {
            step: step.id.clone(),
            state: step.state.clone(),
            elapsed_ms: step.elapsed_ms,
            log_tail: Vec::new(),
            excerpt: None,
        });
    }
    for image in &result.images {
        apply(EventKind::ImagePushed {
            step: image.step.clone(),
            name: image.name.clone(),
            digest: image.digest.clone(),
            platforms: std::collections::BTreeMap::new(),
            tag_deferred: image.staged,
        });
    }
    for base in &result.bases {
        apply(EventKind::BaseUsed {
            step: base.step.clone(),
            role: base.role,
            name: base.name.clone(),
            digest: base.digest.clone(),
            evidence: base.evidence,
            platforms: Vec::new(),
        });
    }
    view
}

/// Returns why a run did not succeed if its log does not show it, because it never started or its
/// runner was lost.
pub(crate) fn failure_message(run: &Run) -> Option<String> {
    let outcome = Outcome {
        state: run.state,
        reason: run.reason.clone(),
    };
    let verb = match outcome.state {
        RunState::Succeeded => return None,
        RunState::Canceled => "was canceled",
        RunState::TimedOut => "timed out",
        _ => "failed",
    };
    let why = outcome
        .reason
        .map(|why| format!(": {}", text::plain_line(&why)))
        .unwrap_or_default();
    Some(format!("run {} {verb}{why}", run.id))
}

/// Renders the reasons why a run waits.
pub(crate) fn render_waiting(waiting: &Waiting, style: Style) -> String {
    let mut out = format!("{}\n", text::plain_line(&waiting.summary));
    let rows = waiting.runners.iter().map(|runner| {
        vec![
            runner.runner.clone(),
            if runner.matches {
                style.good("matches")
            } else {
                style.warn("does not match")
            },
            runner.reason.clone(),
        ]
    });
    write_section("Runners", rows.collect(), style, &mut out);
    out
}

/// Renders a list of tasks.
pub(crate) fn render_tasks(tasks: &[Task], style: Style) -> String {
    let rows = tasks.iter().map(|task| {
        let definition = &task.definition;
        vec![
            definition.name.clone(),
            if definition.enabled {
                style.good("enabled")
            } else {
                style.dim("disabled")
            },
            source_text(task),
            definition.context.clone().unwrap_or_else(|| "-".into()),
            trigger_names(task),
        ]
    });
    render_list(
        &["NAME", "STATUS", "SOURCE", "CONTEXT", "TRIGGERS"],
        rows.collect(),
        "no tasks",
        style,
    )
}

fn source_text(task: &Task) -> String {
    let definition = &task.definition;
    match (
        &definition.build,
        &definition.cmd,
        &definition.text,
        &definition.file,
    ) {
        (Some(build), ..) => format!("build {}", build.images.join(" ")),
        (_, Some(_), ..) => "cmd".into(),
        (_, _, Some(_), _) => "text".into(),
        (.., Some(file)) => file.clone(),
        (None, None, None, None) => "acr-task.yaml".into(),
    }
}

fn trigger_names(task: &Task) -> String {
    let triggers = &task.definition.triggers;
    let mut names: Vec<String> = Vec::new();
    if triggers
        .commit
        .as_ref()
        .is_some_and(|commit| commit.enabled)
    {
        names.push("commit".into());
    }
    if triggers
        .registry_push
        .as_ref()
        .is_some_and(|push| push.enabled)
    {
        names.push("images".into());
    }
    if triggers
        .base_image
        .as_ref()
        .is_some_and(|base| base.enabled)
    {
        names.push("base image".into());
    }
    let timers = triggers.timers.values().filter(|timer| timer.enabled);
    names.extend(timers.map(|timer| timer.schedule.clone()));
    if names.is_empty() {
        return "-".into();
    }
    names.join(", ")
}

/// Renders a list of runners.
pub(crate) fn render_runners(runners: &[Runner], now: Timestamp, style: Style) -> String {
    let rows = runners.iter().map(|runner| {
        let labels: Vec<String> = runner
            .labels
            .iter()
            .map(|(k, v)| format!("{k}={v}"))
            .collect();
        vec![
            runner.name.clone(),
            match runner.state {
                RunnerState::Online => style.good("online"),
                RunnerState::Draining => style.warn("draining"),
                RunnerState::Offline => style.bad("offline"),
            },
            runner.pool.clone(),
            format!("{}/{}", runner.busy, runner.slots),
            runner.platforms.join(","),
            if labels.is_empty() {
                "-".into()
            } else {
                labels.join(",")
            },
            text::format_bytes(i64::try_from(runner.free_disk).unwrap_or(i64::MAX)),
            runner
                .last_seen_at
                .map_or("never".into(), |seen| format_age(seen, now)),
        ]
    });
    render_list(
        &[
            "NAME",
            "STATE",
            "POOL",
            "BUSY",
            "PLATFORMS",
            "LABELS",
            "FREE DISK",
            "SEEN",
        ],
        rows.collect(),
        "no runners",
        style,
    )
}

/// Renders one task with its definition.
pub(crate) fn render_task(task: &Task, yaml: &str, style: Style) -> String {
    let mut out = key_values(
        &[
            ("task", task.definition.name.clone()),
            ("id", task.id.clone()),
            ("generation", task.generation.to_string()),
            ("file", task.source.clone().unwrap_or_default()),
            ("created", task.created_at.to_string()),
            ("updated", task.updated_at.to_string()),
        ],
        style,
    );
    out.push('\n');
    out.push_str(yaml);
    out
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
