//! Runs, tasks and runners of a server, as tables and texts. Pure: the time comes in.

use acrtask_api::{
    admin::{Runner, RunnerState},
    run::{Approval, Run, RunSummary, Waiting},
    spec::{ContextSource, Work},
    task::Task,
};
use acrtask_model::{Event, EventKind, Outcome, RunState, events::StepSummary};
use jiff::Timestamp;

use super::{
    style::Style,
    summary,
    table::{facts, list, titled},
    text,
    view::{RunView, millis},
};

/// A state in its colour.
pub(crate) fn state(state: RunState, style: Style) -> String {
    let text = state.to_string();
    match state {
        RunState::Succeeded => style.good(&text),
        RunState::Failed | RunState::TimedOut | RunState::Error => style.bad(&text),
        RunState::Canceled => style.warn(&text),
        RunState::Queued | RunState::Leased => style.dim(&text),
        RunState::Running => text,
    }
}

/// How long ago: `5s`, `3m`, `2h`, `4d`.
pub(crate) fn ago(time: Timestamp, now: Timestamp) -> String {
    let seconds = millis(time, now) / 1000;
    match seconds {
        0..60 => format!("{seconds}s ago"),
        60..3600 => format!("{}m ago", seconds / 60),
        3600..86_400 => format!("{}h ago", seconds / 3600),
        _ => format!("{}d ago", seconds / 86_400),
    }
}

/// A list of runs.
pub(crate) fn runs(runs: &[RunSummary], now: Timestamp, style: Style) -> String {
    let rows = runs.iter().map(|run| {
        vec![
            run.id.to_string(),
            run.task.clone().unwrap_or_else(|| "-".into()),
            state(run.state, style),
            ago(run.created_at, now),
            took(run.started_at, run.finished_at, now),
            run.runner.clone().unwrap_or_else(|| "-".into()),
            why_listed(run),
        ]
    });
    list(
        &["ID", "TASK", "STATE", "CREATED", "TIME", "RUNNER", "WHY"],
        rows.collect(),
        "there are no runs",
        style,
    )
}

/// The reason of a run in a list; of one that waits for its approval, what would be approved.
fn why_listed(run: &RunSummary) -> String {
    match (&run.reason, &run.revision) {
        (None, Some(revision)) => one_line(&format!("needs approval: {revision}")),
        (reason, _) => reason.as_deref().map(one_line).unwrap_or_default(),
    }
}

fn took(started: Option<Timestamp>, finished: Option<Timestamp>, now: Timestamp) -> String {
    started.map_or("-".into(), |started| {
        text::duration(millis(started, finished.unwrap_or(now)))
    })
}

fn one_line(text: &str) -> String {
    text::cut(&text::plain(text.lines().next().unwrap_or_default()), 60)
}

/// One run: its facts, and what came of it.
pub(crate) fn run(run: &Run, now: Timestamp, style: Style) -> String {
    let context = match &run.spec.context {
        ContextSource::None => "none".to_owned(),
        ContextSource::Upload { id } => format!("upload {id}"),
        ContextSource::Url { url, commit, .. } => match commit {
            Some(commit) => format!("{url} at {commit}"),
            None => url.clone(),
        },
    };
    let work = match &run.spec.work {
        Work::Usual => "acr-task.yaml".to_owned(),
        Work::File { path } => path.clone(),
        Work::Text { name, .. } => format!("{name} (sent with the run)"),
        Work::Cmd { line } => format!("cmd: {line}"),
        Work::Build(build) => format!("build: {}", build.images.join(" ")),
    };
    let attempt = if run.attempt > 1 {
        run.attempt.to_string()
    } else {
        String::new()
    };
    let mut out = facts(
        &[
            ("run", run.id.to_string()),
            ("task", run.task.clone().unwrap_or_default()),
            ("state", state(run.state, style)),
            (
                "why",
                run.reason
                    .as_deref()
                    .map(|why| text::plain(why).into_owned())
                    .unwrap_or_default(),
            ),
            (
                "stopping",
                if run.cancel_requested && !run.state.is_final() {
                    "somebody asked for its end".into()
                } else {
                    String::new()
                },
            ),
            ("context", text::plain(&context).into_owned()),
            ("revision", run.spec.facts.revision().unwrap_or_default()),
            ("work", work),
            ("trigger", trigger(run)),
            ("by", run.requested_by.clone().unwrap_or_default()),
            ("approval", approval(run)),
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
                format!("{} ({})", run.created_at, ago(run.created_at, now)),
            ),
            (
                "time",
                run.started_at
                    .map(|_| took(run.started_at, run.finished_at, now))
                    .unwrap_or_default(),
            ),
        ],
        style,
    );
    out.push_str(&moved(run, style));
    out.push_str(&summary::summary(&result(run), style));
    out
}

fn trigger(run: &Run) -> String {
    match (&run.tick, &run.cascade) {
        (Some(tick), _) => super::timers::tick(tick),
        (None, Some(of)) if of.attempt > 1 => format!("cascade {}, start {}", of.id, of.attempt),
        (None, Some(of)) => format!("cascade {}", of.id),
        (None, None) => run.trigger.clone(),
    }
}

/// The bases that made a cascade start it.
fn moved(run: &Run, style: Style) -> String {
    let bases = run.cascade.iter().flat_map(|of| &of.moved);
    let rows = bases.map(|base| {
        vec![
            base.name.clone(),
            format!("{} -> {}", base.from.short(), base.to.short()),
        ]
    });
    let mut out = String::new();
    titled("Moved bases", rows.collect(), style, &mut out);
    out
}

fn approval(run: &Run) -> String {
    match run.approval {
        None => String::new(),
        Some(Approval::Pending) => format!("needed: `acrtask runs approve {}`", run.id),
        Some(Approval::Approved) => {
            format!("by {}", run.approved_by.as_deref().unwrap_or("somebody"))
        }
    }
}

/// What came of `run`, as if its events had been read.
fn result(run: &Run) -> RunView {
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
            held: image.held,
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

/// Why a run ended as it did, where its log does not tell: it never began, or its runner was lost.
pub(crate) fn verdict(run: &Run) -> Option<String> {
    let outcome = Outcome {
        state: run.state,
        reason: run.reason.clone(),
    };
    let verb = match outcome.state {
        RunState::Succeeded => return None,
        RunState::Canceled => "was stopped",
        RunState::TimedOut => "timed out",
        _ => "failed",
    };
    let why = outcome
        .reason
        .map(|why| format!(": {}", text::plain(&why)))
        .unwrap_or_default();
    Some(format!("run {} {verb}{why}", run.id))
}

/// What a run waits for.
pub(crate) fn why(waiting: &Waiting, style: Style) -> String {
    let mut out = format!("{}\n", text::plain(&waiting.summary));
    let rows = waiting.runners.iter().map(|runner| {
        vec![
            runner.runner.clone(),
            if runner.would_do {
                style.good("would do")
            } else {
                style.warn("would not do")
            },
            runner.why.clone(),
        ]
    });
    titled("Runners", rows.collect(), style, &mut out);
    out
}

/// A list of tasks.
pub(crate) fn tasks(tasks: &[Task], style: Style) -> String {
    let rows = tasks.iter().map(|task| {
        let definition = &task.definition;
        vec![
            definition.name.clone(),
            if definition.enabled {
                style.good("enabled")
            } else {
                style.dim("disabled")
            },
            work(task),
            definition.context.clone().unwrap_or_else(|| "-".into()),
            triggers(task),
        ]
    });
    list(
        &["NAME", "STATUS", "WORK", "CONTEXT", "TRIGGERS"],
        rows.collect(),
        "there are no tasks",
        style,
    )
}

fn work(task: &Task) -> String {
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

fn triggers(task: &Task) -> String {
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

/// A list of runners.
pub(crate) fn runners(runners: &[Runner], now: Timestamp, style: Style) -> String {
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
            text::bytes(i64::try_from(runner.free_disk).unwrap_or(i64::MAX)),
            runner
                .last_seen_at
                .map_or("never".into(), |seen| ago(seen, now)),
        ]
    });
    list(
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
        "there are no runners",
        style,
    )
}

/// One task: what is known of it, and its definition.
pub(crate) fn task(task: &Task, yaml: &str, style: Style) -> String {
    let mut out = facts(
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
