//! List of runs, and one run.

use acrtask_api::{
    outline::Outline,
    run::{Approval, Run, RunResult, RunSummary, Waiting},
    spec::{ContextSource, Variables},
};
use acrtask_model::{RunState, StepState, count, events::BaseRole};
use acrtask_page::{
    BaseRow, Foreign, ImageRow, RunFilters, RunPage, RunRow, RunsPage, Section, StepRow, WaitPart,
    format_duration,
};
use axum::{
    extract::{Path, Query, State},
    response::Response,
};
use jiff::Timestamp;
use serde::Deserialize;

use super::{PageError, Site, filled, render, session::Visitor};
use crate::{
    api::{
        ApiError,
        runs::{self, ListRuns},
        why,
    },
    auth, logs,
};

/// States of runs that did not succeed, without canceled ones.
pub(super) const FAILED_STATES: &str = "failed,timed_out,error";
/// Number of runs per page.
const PAGE: u32 = 100;

/// Filters and position of the list, as in the URL.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ListQuery {
    state: Option<String>,
    task: Option<String>,
    since: Option<String>,
    before: Option<String>,
}

/// Lists runs.
pub(super) async fn list(
    by: Visitor<auth::Read>,
    State(site): State<Site>,
    Query(query): Query<ListQuery>,
) -> Result<Response, PageError> {
    let filters = RunFilters {
        state: filled(query.state),
        task: filled(query.task),
        since: filled(query.since),
    };
    let before = filled(query.before);
    let input = ListRuns {
        state: filters.state.clone(),
        task: filters.task.clone(),
        since: filters.since.clone(),
        cursor: before.clone(),
        limit: Some(PAGE),
        ..ListRuns::default()
    };
    let page = runs::load_page(&site.api, &by.caller, input).await?;
    render(&RunsPage {
        frame: by.frame("Runs", Section::Runs),
        filters,
        is_continued: before.is_some(),
        runs: page.items.iter().map(|run| run_row(&site, run)).collect(),
        next: page.next,
    })
}

/// Returns the row of a run in a list.
pub(super) fn run_row(site: &Site, run: &RunSummary) -> RunRow {
    let trigger = match &run.requested_by {
        Some(by) => format!("{} by {by}", run.trigger),
        None => run.trigger.clone(),
    };
    RunRow {
        id: run.id.to_string(),
        state: run.state.into(),
        task: run.task.clone(),
        trigger: Foreign::line(trigger),
        created: site.moment(run.created_at),
        duration: duration(run.started_at, run.finished_at, site.now()).unwrap_or_default(),
    }
}

/// Formats the time from the start to the end, or to now. `None` if the run has not started.
fn duration(
    started: Option<Timestamp>,
    finished: Option<Timestamp>,
    now: Timestamp,
) -> Option<String> {
    let ms = finished.unwrap_or(now).as_millisecond() - started?.as_millisecond();
    Some(format_duration(u64::try_from(ms).unwrap_or(0)))
}

/// Shows a run.
pub(super) async fn show(
    by: Visitor<auth::Read>,
    State(site): State<Site>,
    Path(id): Path<String>,
) -> Result<Response, PageError> {
    let row = runs::find(&site.api, &by.caller, &id).await?;
    let run = runs::add_origin(&site.api, &row).await?;
    let waiting = if run.state == RunState::Queued {
        Some(why::load_waiting(&site.api, &by.caller, &row).await?)
    } else {
        None
    };
    // The caller may not see the task of the earlier run.
    let rerun_of = match &run.rerun_of {
        Some(earlier) => runs::find(&site.api, &by.caller, earlier.as_str())
            .await
            .ok(),
        None => None,
    };
    let steps = match &run.result {
        Some(result) => list_steps(result),
        None if run.attempt == 0 => Vec::new(),
        None => {
            let outline = logs::with_index(site.app(), &row, row.attempt, |index| index.outline());
            let outline = outline.await.map_err(ApiError::from)?;
            list_live_steps(&outline.outline, site.now())
        }
    };
    let result = run.result.clone().unwrap_or_default();
    let variables = match &run.result {
        Some(result) if !result.variables.commit.is_empty() => &result.variables,
        _ => &run.spec.variables,
    };
    render(&RunPage {
        frame: by.frame(&format!("{} run {}", run.state, run.id), Section::Runs),
        id: run.id.to_string(),
        state: run.state.into(),
        sentence: Foreign::line(describe(&run, &result, waiting.as_ref(), site.now())),
        task: run.task.clone(),
        causes: list_causes(&run),
        rerun_of: rerun_of.map(|earlier| earlier.id.to_string()),
        created: site.moment(run.created_at),
        started: run.started_at.map(|at| site.moment(at)),
        finished: run.finished_at.map(|at| site.moment(at)),
        runner: run.runner.as_ref().map(Foreign::line),
        attempt: run.attempt,
        facts: list_facts(&run, variables),
        waits: waiting.map_or_else(Vec::new, list_waits),
        steps,
        images: list_images(&result),
        bases: list_bases(&result),
        is_final: run.state.is_final(),
        opens_at_end: matches!(
            run.state,
            RunState::Failed | RunState::TimedOut | RunState::Error
        ),
    })
}

/// Describes the state or result of a run in one sentence.
fn describe(run: &Run, result: &RunResult, waiting: Option<&Waiting>, now: Timestamp) -> String {
    let runner = run.runner.as_deref().unwrap_or("a runner");
    let duration = duration(run.started_at, run.finished_at, now);
    let after = duration.map_or_else(String::new, |duration| format!(" after {duration}"));
    let reason = match &run.reason {
        Some(reason) => format!(": {reason}."),
        None => ".".to_owned(),
    };
    match run.state {
        RunState::Queued => match waiting {
            Some(waiting) => format!("The run waits: {}.", waiting.summary),
            None => "The run waits.".to_owned(),
        },
        RunState::Leased => format!("The run is leased to {runner}, which has not started it yet."),
        RunState::Running if run.cancel_requested => {
            format!("The run stops on {runner}: its cancellation was requested.")
        }
        RunState::Running => format!("The run executes on {runner}."),
        RunState::Succeeded => {
            let pushed = match result.images.len() {
                0 => String::new(),
                images => format!(" and pushed {}", count(images, "image")),
            };
            let steps = count(result.steps.len(), "step");
            format!("The run succeeded{after}: it executed {steps}{pushed}.")
        }
        RunState::Failed => format!("The run failed{after}{reason}"),
        RunState::Canceled => format!("The run was canceled{after}{reason}"),
        RunState::TimedOut => format!("The run timed out{after}{reason}"),
        RunState::Error => format!("The run ended with an error{after}{reason}"),
    }
}

/// Lists the causes of a run as sentences.
fn list_causes(run: &Run) -> Vec<Foreign> {
    let mut causes = Vec::new();
    let by = run.requested_by.as_deref();
    causes.push(match (run.trigger.as_str(), by) {
        ("manual" | "task", Some(by)) => format!("{by} requested it."),
        ("rerun", Some(by)) => format!("{by} requested it again."),
        (trigger, Some(by)) => format!("Trigger: {trigger}, by {by}."),
        (trigger, None) => format!("Trigger: {trigger}."),
    });
    if let Some(firing) = &run.firing {
        let missed = match firing.firing_count {
            0 | 1 => String::new(),
            firings => format!(", for {firings} firings"),
        };
        causes.push(format!(
            "The timer {} fired at {}{missed}.",
            firing.timer, firing.scheduled_at
        ));
    }
    if let Some(cascade) = &run.cascade {
        let changes = cascade.changes.iter().map(|change| {
            let (name, from, to) = (&change.reference, &change.from, &change.to);
            format!("Base {name}: {from} → {to}.")
        });
        causes.push(format!(
            "Cascade {} rebuilds the task, start {}.",
            cascade.id, cascade.attempt
        ));
        causes.extend(changes);
    }
    match (run.approval, &run.approved_by) {
        (Some(Approval::Approved), Some(by)) => {
            causes.push(format!("{by} approved the commit from another repository."));
        }
        (Some(Approval::Pending), _) => causes.push(format!(
            "The commit from another repository needs an approval: acrtask runs approve {}",
            run.id
        )),
        _ => {}
    }
    causes.into_iter().map(Foreign::line).collect()
}

fn list_facts(run: &Run, variables: &Variables) -> Vec<(&'static str, Foreign)> {
    let context = match &run.spec.context {
        ContextSource::None => "",
        ContextSource::Upload { .. } => "uploaded files",
        ContextSource::Url { url, .. } => url.as_str(),
    };
    let all = [
        ("Files", context),
        ("Repository", variables.repository.as_str()),
        ("Branch", &variables.branch),
        ("Tag", &variables.git_tag),
        ("Commit", &variables.commit),
        ("Trust domain", &run.domain),
    ];
    let present = all.into_iter().filter(|(_, value)| !value.is_empty());
    present
        .map(|(name, value)| (name, Foreign::line(value)))
        .collect()
}

fn list_waits(waiting: Waiting) -> Vec<WaitPart> {
    let verdicts = waiting.runners.into_iter().map(|verdict| WaitPart {
        runner: Foreign::line(verdict.runner),
        reason: Foreign::line(verdict.reason),
    });
    verdicts.collect()
}

fn list_steps(result: &RunResult) -> Vec<StepRow> {
    let steps = result.steps.iter().map(|step| StepRow {
        id: Foreign::line(step.id.as_str()),
        state: (&step.state).into(),
        reason: Foreign::line(describe_reason(&step.state)),
        duration: format_duration(step.elapsed_ms),
    });
    steps.collect()
}

/// Lists the steps of a run that has no result yet.
fn list_live_steps(outline: &Outline, now: Timestamp) -> Vec<StepRow> {
    let steps = outline.steps.iter().map(|step| StepRow {
        id: Foreign::line(step.id.as_str()),
        state: (&step.state).into(),
        reason: Foreign::line(match &step.retrying {
            Some(reason) => format!("retrying: {reason}"),
            None => describe_reason(&step.state),
        }),
        duration: step
            .elapsed_ms(now)
            .map(format_duration)
            .unwrap_or_default(),
    });
    steps.collect()
}

/// Describes why a step has its state. Empty if the state needs no reason.
fn describe_reason(state: &StepState) -> String {
    match state {
        StepState::Failed { reason, .. } => reason.clone(),
        StepState::Skipped { cause } | StepState::Canceled { cause } => cause.to_string(),
        StepState::TimedOut { after_secs } => format!("its timeout is {after_secs} s"),
        StepState::Pending | StepState::Running | StepState::Succeeded => String::new(),
    }
}

fn list_images(result: &RunResult) -> Vec<ImageRow> {
    let pushed = result.images.iter().map(|image| ImageRow {
        name: Foreign::line(&image.name),
        digest: image.digest.to_string(),
        step: Foreign::line(image.step.as_str()),
        result: if image.staged { "staged" } else { "pushed" },
    });
    let only_built = result.built.iter().flat_map(|built| {
        let names = built.names.iter();
        let unpushed = names.filter(|name| !result.images.iter().any(|image| image.name == **name));
        unpushed.map(|name| ImageRow {
            name: Foreign::line(name),
            digest: built.digest.to_string(),
            step: Foreign::line(built.step.as_str()),
            result: "built, not pushed",
        })
    });
    pushed.chain(only_built).collect()
}

fn list_bases(result: &RunResult) -> Vec<BaseRow> {
    let bases = result.bases.iter().map(|base| BaseRow {
        name: Foreign::line(&base.name),
        digest: base.digest.to_string(),
        role: match base.role {
            BaseRole::Runtime => "runtime",
            BaseRole::BuildTime => "build time",
            BaseRole::Frontend => "frontend",
            BaseRole::Cmd => "container",
        },
        step: Foreign::line(base.step.as_str()),
    });
    bases.collect()
}
