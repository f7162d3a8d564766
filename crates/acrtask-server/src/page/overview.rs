//! Overview: counts with links to their lists.

use acrtask_api::admin::RunnerState;
use acrtask_page::{OverviewPage, Section};
use axum::{extract::State, response::Response};

use super::{
    PageError, Site, render,
    runs::{FAILED_STATES, run_row},
    session::Visitor,
};
use crate::{
    api::{
        runners,
        runs::{self, ListRuns},
    },
    auth,
};

/// Number of runs in each list.
const SHOWN: u32 = 10;
/// Period in which failed runs are counted, in milliseconds: one day.
const PERIOD_MS: i64 = 24 * 3_600_000;

/// Shows the overview.
pub(super) async fn show(
    by: Visitor<auth::Read>,
    State(site): State<Site>,
) -> Result<Response, PageError> {
    let app = site.app();
    let now = app.clock.now_ms();
    // Whole seconds, so that the count and the linked list cover the same time.
    let since = (now - PERIOD_MS).div_euclid(1000) * 1000;
    let (task, prefix) = by.caller.limit.clone().into_names();
    let counts = app
        .store
        .run_counts(task.as_deref(), prefix.as_deref(), since)
        .await?;
    let visible = runners::load_visible(app, &by.caller).await?;
    let online: Vec<_> = visible
        .iter()
        .filter(|runner| runner.state != RunnerState::Offline)
        .collect();
    let failed_since = acrtask_store::timestamp(since)
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string();
    let live = ListRuns {
        state: Some("queued,leased,running".into()),
        limit: Some(SHOWN),
        ..ListRuns::default()
    };
    let failed = ListRuns {
        state: Some(FAILED_STATES.into()),
        since: Some(failed_since.clone()),
        limit: Some(SHOWN),
        ..ListRuns::default()
    };
    let live = runs::load_page(&site.api, &by.caller, live).await?;
    let failed = runs::load_page(&site.api, &by.caller, failed).await?;
    render(&OverviewPage {
        frame: by.frame("Overview", Section::Overview),
        running: counts.running,
        waiting: counts.queued,
        failed: counts.failed,
        failed_since,
        runners_online: online.len(),
        runners: visible.len(),
        busy: online.iter().map(|runner| u64::from(runner.busy)).sum(),
        slots: online.iter().map(|runner| u64::from(runner.slots)).sum(),
        live_runs: live.items.iter().map(|run| run_row(&site, run)).collect(),
        failed_runs: failed.items.iter().map(|run| run_row(&site, run)).collect(),
    })
}
