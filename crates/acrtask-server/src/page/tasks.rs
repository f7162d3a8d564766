//! List of tasks, and one task.

use acrtask_api::{
    admin::Scope,
    run::{RunSummary, StartTask},
    task::{Task, TaskDefinition, Triggers},
    webhook::{DecisionAction, Trigger},
};
use acrtask_page::{
    DurationChart, Foreign, Section, StateBadge, TaskPage, TaskRow, TasksPage, TriggerRow,
    format_duration,
};
use axum::{
    extract::{Path, Query, State},
    http::HeaderMap,
    response::{IntoResponse as _, Redirect, Response},
};
use serde::Deserialize;

use super::{PageError, Site, filled, render, runs::run_row, session::Visitor};
use crate::{
    api::{
        ApiError,
        runs::{self, ListRuns},
        tasks::{self, ListTasks},
        timers,
    },
    auth,
};

/// Number of tasks per page.
const PAGE: u32 = 100;
/// Number of runs on the page of a task.
const LAST_RUNS: u32 = 20;
/// Number of triggers on the page of a task.
const LAST_TRIGGERS: u32 = 15;

/// Position of the list, as in the URL.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ListQuery {
    after: Option<String>,
}

/// Lists tasks.
pub(super) async fn list(
    by: Visitor<auth::Read>,
    State(site): State<Site>,
    Query(query): Query<ListQuery>,
) -> Result<Response, PageError> {
    let after = filled(query.after);
    let input = ListTasks {
        prefix: None,
        limit: Some(PAGE),
        cursor: after.clone(),
    };
    let page = tasks::load_page(&site.api, &by.caller, input).await?;
    render(&TasksPage {
        frame: by.frame("Tasks", Section::Tasks),
        tasks: page
            .items
            .iter()
            .map(|task| task_row(&site, task))
            .collect(),
        next: page.next,
        is_continued: after.is_some(),
    })
}

fn task_row(site: &Site, task: &Task) -> TaskRow {
    let definition = &task.definition;
    let kinds = list_triggers(&definition.triggers);
    let mut kinds: Vec<&str> = kinds.iter().map(|(kind, _)| *kind).collect();
    kinds.dedup();
    TaskRow {
        name: definition.name.clone(),
        kind: kind_of_steps(definition),
        state: enabled_badge(definition.enabled),
        triggers: if kinds.is_empty() {
            "–".to_owned()
        } else {
            kinds.join(", ")
        },
        updated: site.moment(task.updated_at),
    }
}

fn kind_of_steps(definition: &TaskDefinition) -> &'static str {
    if definition.build.is_some() {
        "build"
    } else if definition.cmd.is_some() {
        "container"
    } else {
        "task file"
    }
}

fn enabled_badge(enabled: bool) -> StateBadge {
    if enabled {
        StateBadge::good("enabled")
    } else {
        StateBadge::neutral("disabled")
    }
}

/// Lists the triggers of a task: kind and details.
fn list_triggers(triggers: &Triggers) -> Vec<(&'static str, Foreign)> {
    let mut found = Vec::new();
    let list = |all: &[String], otherwise: &str| {
        if all.is_empty() {
            otherwise.to_owned()
        } else {
            all.join(", ")
        }
    };
    let disabled = |enabled: bool| if enabled { "" } else { " (disabled)" };
    if let Some(commit) = &triggers.commit {
        let mut text = format!("branches {}", list(&commit.branches, "by default"));
        if !commit.tags.is_empty() {
            text = format!("{text}; tags {}", commit.tags.join(", "));
        }
        if !commit.paths.include.is_empty() {
            text = format!("{text}; paths {}", commit.paths.include.join(", "));
        }
        found.push(("Commit", format!("{text}{}", disabled(commit.enabled))));
    }
    if let Some(push) = &triggers.registry_push {
        let text = format!(
            "repositories {}; tags {}",
            push.repositories.join(", "),
            list(&push.tags, "all")
        );
        found.push(("Registry push", format!("{text}{}", disabled(push.enabled))));
    }
    if let Some(base) = &triggers.base_image {
        let text = match base.tags.len() {
            0 => "new digests".to_owned(),
            rules => format!(
                "new digests, and newer tags by {}",
                acrtask_model::count(rules, "rule")
            ),
        };
        found.push(("Base image", format!("{text}{}", disabled(base.enabled))));
    }
    for (name, timer) in &triggers.timers {
        let zone = timer.timezone.as_deref().unwrap_or("UTC");
        let text = format!("{name}: {} ({zone})", timer.schedule);
        found.push(("Timer", format!("{text}{}", disabled(timer.enabled))));
    }
    if let Some(url) = &triggers.url {
        let text = format!("may set {}", list(&url.allow_set, "no values"));
        found.push(("URL", text));
    }
    found
        .into_iter()
        .map(|(kind, text)| (kind, Foreign::line(text)))
        .collect()
}

/// Shows a task.
pub(super) async fn show(
    by: Visitor<auth::Read>,
    State(site): State<Site>,
    Path(name): Path<String>,
) -> Result<Response, PageError> {
    let task = tasks::find(&site.api, &by.caller, &name).await?;
    let input = ListRuns {
        task: Some(name),
        limit: Some(LAST_RUNS),
        ..ListRuns::default()
    };
    let last = runs::load_page(&site.api, &by.caller, input).await?;
    let mut definition = task.definition;
    let triggers = list_triggers(&definition.triggers);
    let decisions = timers::load_triggers(&site.api, &definition.name, None, LAST_TRIGGERS).await?;
    let sees_deliveries = by.caller.tasks.is_none();
    let decisions = decisions.items.into_iter();
    let decisions = decisions.map(|trigger| trigger_row(&site, trigger, sees_deliveries));
    let text = definition.text.take();
    let json =
        serde_json::to_string_pretty(&definition).map_err(|error| ApiError::internal(&error))?;
    let description = Some(&definition.description).filter(|text| !text.is_empty());
    render(&TaskPage {
        frame: by.frame(&format!("Task {}", definition.name), Section::Tasks),
        description: description.map(Foreign::line),
        state: enabled_badge(definition.enabled),
        updated: site.moment(task.updated_at),
        source: task.source.map(Foreign::line),
        text: text.map(Foreign::block),
        definition: Foreign::block(json),
        triggers,
        runs: last.items.iter().map(|run| run_row(&site, run)).collect(),
        durations: chart_durations(&last.items),
        decisions: decisions.collect(),
        may_start: definition.enabled && by.caller.has_scope(Scope::Run),
        name: definition.name,
    })
}

fn trigger_row(site: &Site, trigger: Trigger, sees_deliveries: bool) -> TriggerRow {
    let decision = trigger.decision;
    TriggerRow {
        kind: Foreign::line(trigger.kind),
        received: site.moment(trigger.received_at),
        delivery: trigger.delivery.filter(|_| sees_deliveries),
        state: decision_badge(decision.action),
        run: decision.run.map(|run| run.to_string()),
        reason: Foreign::line(decision.reason),
    }
}

/// Returns the badge of a decision about a trigger.
pub(super) fn decision_badge(action: DecisionAction) -> StateBadge {
    match action {
        DecisionAction::RunStarted => StateBadge::good("run started"),
        DecisionAction::ExistingRun => StateBadge::neutral("existing run"),
        DecisionAction::Ignored => StateBadge::neutral("ignored"),
    }
}

/// Charts the durations of finished runs, the oldest first.
fn chart_durations(runs: &[RunSummary]) -> Option<DurationChart> {
    let finished = runs.iter().rev().filter_map(|run| {
        let ms = run.finished_at?.as_millisecond() - run.started_at?.as_millisecond();
        let ms = u64::try_from(ms).ok()?;
        let label = format!("{}: {} in {}", run.id, run.state, format_duration(ms));
        Some((run.state.into(), ms, label))
    });
    DurationChart::new(finished.collect())
}

/// Starts a run of a task, and leads to it. The path ends with `/-/run`.
pub(super) async fn start(
    by: Visitor<auth::Run>,
    State(site): State<Site>,
    Path(path): Path<String>,
    headers: HeaderMap,
) -> Result<Response, PageError> {
    let name = path.strip_suffix("/-/run").ok_or_else(|| {
        ApiError::not_found("this form does not exist").help("send it to /tasks/NAME/-/run")
    })?;
    let context = runs::request_context(&by.caller, &headers)?;
    let input = StartTask::default();
    let started = tasks::start_task(&site.api, &by.caller, name, input, context).await?;
    Ok(Redirect::to(&format!("/runs/{}", started.row().id)).into_response())
}
