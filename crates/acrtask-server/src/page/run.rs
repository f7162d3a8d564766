//! Page of a run: content, updates while it executes, and forms.

use std::time::Duration;

use acrtask_api::{
    admin::Scope,
    outline::Outline,
    run::{Approval, Run, Waiting},
    spec::{ContextSource, Variables},
};
use acrtask_model::{RunId, RunState};
use acrtask_page::{
    Foreign, LogExcerpt, RunActions, RunHead, RunOutcome, RunPage, RunSteps, Section, StateBadge,
    WaitPart,
};
use acrtask_store::RunRow;
use axum::{
    extract::{Path, Query, Request, State},
    http::HeaderMap,
    response::{IntoResponse as _, Redirect, Response},
};
use jiff::Timestamp;

use super::{
    PageError, Site,
    live::{self, LivePage, LiveQuery, Update},
    log::{SIZE, failure_url, has_failure, is_failure, load_outline, load_window, to_rows},
    render,
    run_parts::{describe, list_bases, list_images, show_steps},
    runs::duration,
    session::{self, Visitor},
};
use crate::{
    api::{ApiError, runs, webhooks, why},
    auth::{self, Caller},
    logs::{
        Subscription,
        reader::{WindowSize, WindowStart},
    },
};

/// Maximum size of an excerpt of the log.
const EXCERPT: WindowSize = WindowSize { lines: 24, ..SIZE };
/// Interval between renderings of a run without news.
const REFRESH: Duration = Duration::from_secs(2);

/// Returns the title of the page of a run.
pub(super) fn describe_title(state: RunState, id: &RunId) -> String {
    format!("{state} run {id}")
}

/// Parts of the page of a run that change while it executes.
struct Parts {
    state: StateBadge,
    title: String,
    head: RunHead,
    actions: RunActions,
    steps: RunSteps,
    outcome: RunOutcome,
    is_final: bool,
}

/// Builds the changing parts.
async fn build_parts(
    site: &Site,
    caller: &Caller,
    row: &RunRow,
    run: &Run,
) -> Result<Parts, ApiError> {
    let outline = load_outline(site, row, row.attempt).await?;
    let failure_url = failure_url(row, row.attempt, &outline);
    let excerpt = load_excerpt(site, row, &outline, failure_url.as_deref()).await?;
    let waiting = if run.state == RunState::Queued {
        Some(why::load_waiting(&site.api, caller, row).await?)
    } else {
        None
    };
    let result = run.result.clone().unwrap_or_default();
    let variables = match &run.result {
        Some(result) if !result.variables.commit.is_empty() => &result.variables,
        _ => &run.spec.variables,
    };
    let is_final = run.state.is_final();
    let is_pending = run.approval == Some(Approval::Pending) && !is_final;
    let sentence = describe(run, &result, &outline, waiting.as_ref(), site.clock_now());
    let cached = match (result.cached_vertices, result.vertices) {
        (_, 0) => String::new(),
        (cached, all) => format!("{cached} of {all}"),
    };
    Ok(Parts {
        state: run.state.into(),
        title: describe_title(run.state, &run.id),
        head: RunHead {
            id: run.id.to_string(),
            state: run.state.into(),
            sentence: Foreign::line(sentence),
            task: run.task.clone(),
            created: site.moment(run.created_at),
            started: run.started_at.map(|at| site.moment(at)),
            finished: run.finished_at.map(|at| site.moment(at)),
            duration: duration(run.started_at, run.finished_at, site.now()).unwrap_or_default(),
            running_since: running_since(run.started_at, run.finished_at),
            runner: run.runner.as_ref().map(Foreign::line),
            attempt: run.attempt,
            cached,
            facts: list_facts(run, variables),
        },
        actions: RunActions {
            id: run.id.to_string(),
            cancel: !is_final && !run.cancel_requested && caller.has_scope(Scope::Run),
            rerun: is_final && caller.has_scope(Scope::Run),
            approve: is_pending && caller.has_scope(Scope::Write),
            commit: Foreign::line(row.commit.clone().unwrap_or_default()),
            log: run.attempt > 0,
            failure_url,
        },
        steps: RunSteps {
            waits: waiting.map_or_else(Vec::new, list_waits),
            excerpt,
            ..show_steps(site, run, &outline)
        },
        outcome: RunOutcome {
            images: list_images(&result),
            bases: list_bases(&result),
        },
        is_final,
    })
}

/// Returns the last lines of the failed step, or of a live run. `None` for other runs.
async fn load_excerpt(
    site: &Site,
    row: &RunRow,
    outline: &Outline,
    failure_url: Option<&str>,
) -> Result<Option<LogExcerpt>, ApiError> {
    if row.attempt == 0 || (row.state.is_final() && failure_url.is_none()) {
        return Ok(None);
    }
    let is_failure_of_run = has_failure(row.state);
    let mut steps = outline.steps.iter();
    let failed = steps.find(|step| is_failure(&step.state) && step.lines > 0);
    let failed = failed.filter(|_| is_failure_of_run);
    let step = failed.map(|step| step.id.as_str());
    let window = load_window(site, row, row.attempt, step, WindowStart::Tail, EXCERPT).await?;
    let title = match failed {
        Some(step) => format!("Step {} {}", step.id, step.state),
        None if is_failure_of_run => "End of the log".to_owned(),
        None => "Newest lines of the log".to_owned(),
    };
    let tail = format!("/runs/{}/log?tail=1", row.id);
    let lines = to_rows(&window);
    Ok((!lines.is_empty()).then(|| LogExcerpt {
        title: Foreign::line(title),
        url: failure_url.map_or(tail, str::to_owned),
        is_failure: is_failure_of_run,
        lines,
    }))
}

/// Returns the start of a run that executes, in milliseconds since 1970.
pub(super) fn running_since(
    started: Option<Timestamp>,
    finished: Option<Timestamp>,
) -> Option<i64> {
    match finished {
        None => started.map(Timestamp::as_millisecond),
        Some(_) => None,
    }
}

/// Shows a run.
pub(super) async fn show(
    by: Visitor<auth::Read>,
    State(site): State<Site>,
    Path(id): Path<String>,
) -> Result<Response, PageError> {
    let row = runs::find(&site.api, &by.caller, &id).await?;
    let run = runs::add_origin(&site.api, &row).await?;
    let parts = build_parts(&site, &by.caller, &row, &run).await?;
    // The caller may not see the task of the earlier run.
    let rerun_of = match &run.rerun_of {
        Some(earlier) => runs::find(&site.api, &by.caller, earlier.as_str())
            .await
            .ok(),
        None => None,
    };
    let (causes, delivery) = find_causes(&site, &by.caller, &run).await?;
    let mut frame = by.frame(&parts.title, Section::Runs);
    frame.icon = parts.state.page_icon();
    frame.live = (!parts.is_final).then(|| format!("/runs/{}/live", run.id));
    render(&RunPage {
        frame,
        is_live: !parts.is_final,
        head: parts.head,
        actions: parts.actions,
        causes,
        delivery,
        cascade: run.cascade.as_ref().map(|cascade| cascade.id),
        rerun_of: rerun_of.map(|earlier| earlier.id.to_string()),
        steps: parts.steps,
        outcome: parts.outcome,
    })
}

/// Returns the causes of a run as sentences, and the delivery that started it. A caller with a task
/// limit sees no deliveries.
async fn find_causes(
    site: &Site,
    caller: &Caller,
    run: &Run,
) -> Result<(Vec<Foreign>, Option<String>), ApiError> {
    let trigger = site.app().store.trigger_of_run(&run.id).await?;
    let mut causes = list_causes(run);
    let detail = trigger.as_ref().and_then(|trigger| trigger.detail.as_ref());
    causes.extend(detail.map(|detail| Foreign::line(format!("Decision: {detail}."))));
    let delivery = trigger.and_then(|trigger| trigger.delivery);
    Ok((causes, delivery.filter(|_| caller.tasks.is_none())))
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

/// Sends the changes of a run until it is finished.
pub(super) async fn follow(
    by: Visitor<auth::Read>,
    State(site): State<Site>,
    Path(id): Path<String>,
    Query(query): Query<LiveQuery>,
) -> Result<Response, PageError> {
    let row = runs::find(&site.api, &by.caller, &id).await?;
    let page = LiveRun {
        changes: site.app().logs.subscribe(&row.id),
        site: site.frozen(),
        caller: by.caller,
        id: row.id,
    };
    live::respond(&site, &by.session, &query, page).await
}

/// A run that an open page shows.
struct LiveRun {
    site: Site,
    caller: Caller,
    id: RunId,
    changes: Subscription,
}

impl LivePage for LiveRun {
    const INTERVAL: Duration = Duration::from_millis(250);

    async fn update(&mut self) -> Result<Update, ApiError> {
        let site = &self.site;
        let row = runs::find(&site.api, &self.caller, self.id.as_str()).await?;
        let parts = build_parts(site, &self.caller, &row, &row.to_api()).await?;
        Ok(Update::new(parts.is_final)
            .add("run-head", &parts.head)
            .add("run-actions", &parts.actions)
            .add("run-steps", &parts.steps)
            .add("run-outcome", &parts.outcome)
            .titled(&parts.title, &parts.state))
    }

    async fn changed(&mut self) {
        // Other changes than those of the log, such as a free slot, have no wake-up.
        let _ = tokio::time::timeout(REFRESH, self.changes.changed()).await;
    }
}

/// Returns the redirect to the page of a run after a form.
fn back_to(id: &str) -> Response {
    let id = acrtask_page::encode_query(id);
    Redirect::to(&format!("/runs/{id}")).into_response()
}

/// Cancels a run.
pub(super) async fn cancel(
    by: Visitor<auth::Run>,
    State(site): State<Site>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, PageError> {
    let body = session::read_form(request.into_body()).await?;
    let reason = session::form_field(&body, "reason");
    runs::request_cancel(&site.api, &by.caller, &id, &reason).await?;
    Ok(back_to(&id))
}

/// Repeats a run, and leads to the new one.
pub(super) async fn rerun(
    by: Visitor<auth::Run>,
    State(site): State<Site>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, PageError> {
    let context = runs::request_context(&by.caller, &headers)?;
    let enqueued = runs::rerun_run(&site.api, &by.caller, &id, context).await?;
    Ok(back_to(enqueued.row().id.as_str()))
}

/// Approves a run of a commit from another repository.
pub(super) async fn approve(
    by: Visitor<auth::Write>,
    State(site): State<Site>,
    Path(id): Path<String>,
) -> Result<Response, PageError> {
    webhooks::approve_run(&site.api, &by.caller, &id).await?;
    Ok(back_to(&id))
}
