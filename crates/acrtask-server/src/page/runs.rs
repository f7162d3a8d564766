//! List of runs.

use acrtask_api::run::RunSummary;
use acrtask_page::{Foreign, RunFilters, RunRow, RunsPage, Section, format_duration};
use axum::{
    extract::{Query, State},
    response::Response,
};
use jiff::Timestamp;
use serde::Deserialize;

use super::{PageError, Site, filled, render, run::running_since, session::Visitor};
use crate::{
    api::runs::{self, ListRuns},
    auth,
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
        running_since: running_since(run.started_at, run.finished_at),
    }
}

/// Formats the time from the start to the end, or to now. `None` if the run has not started.
pub(super) fn duration(
    started: Option<Timestamp>,
    finished: Option<Timestamp>,
    now: Timestamp,
) -> Option<String> {
    let ms = finished.unwrap_or(now).as_millisecond() - started?.as_millisecond();
    Some(format_duration(u64::try_from(ms).unwrap_or(0)))
}
