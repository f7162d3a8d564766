//! Overview: counts with links to their lists, and what runs, waits and failed.

use std::time::Duration;

use acrtask_api::{
    admin::RunnerState,
    run::{Approval, RunSummary},
};
use acrtask_model::RunState;
use acrtask_page::{
    ApprovalRow, FailureRow, Foreign, OverviewCounts, OverviewLists, OverviewPage, Section, WaitRow,
};
use axum::{
    extract::{Query, State},
    response::Response,
};

use super::{
    PageError, Site,
    cascades::cascade_row,
    live::{self, LivePage, LiveQuery, Update},
    render,
    runs::{FAILED_STATES, run_row},
    session::Visitor,
};
use crate::{
    api::{
        ApiError,
        cascades::{self, ListCascades},
        images::{self, ListImages},
        runners,
        runs::{self, ListRuns},
        why,
    },
    auth::{self, Caller},
    bases::staleness::Staleness,
};

/// Number of entries in each list.
const SHOWN: usize = 10;
/// Number of waiting runs with a reason.
const REASONS: usize = 5;
/// Number of live and of failed runs that are read.
const READ: u32 = 200;
/// Period in which failed runs are counted, in milliseconds: one day.
const PERIOD_MS: i64 = 24 * 3_600_000;
/// Interval between updates.
const INTERVAL: Duration = Duration::from_secs(2);

/// Shows the overview.
pub(super) async fn show(
    by: Visitor<auth::Read>,
    State(site): State<Site>,
) -> Result<Response, PageError> {
    let (counts, lists) = load(&site, &by.caller).await?;
    let mut frame = by.frame("Overview", Section::Overview);
    frame.live = Some("/live".to_owned());
    render(&OverviewPage {
        frame,
        counts,
        lists,
    })
}

/// Sends the changes of the overview.
pub(super) async fn follow(
    by: Visitor<auth::Read>,
    State(site): State<Site>,
    Query(query): Query<LiveQuery>,
) -> Result<Response, PageError> {
    let page = LiveOverview {
        site: site.frozen(),
        caller: by.caller,
    };
    live::respond(&site, &by.session, &query, page).await
}

/// An overview that a user has open.
struct LiveOverview {
    site: Site,
    caller: Caller,
}

impl LivePage for LiveOverview {
    const INTERVAL: Duration = INTERVAL;

    async fn update(&mut self) -> Result<Update, ApiError> {
        let (counts, lists) = load(&self.site, &self.caller).await?;
        Ok(Update::new(false)
            .add("overview-counts", &counts)
            .add("overview-lists", &lists))
    }

    async fn changed(&mut self) {
        tokio::time::sleep(INTERVAL).await;
    }
}

async fn load(site: &Site, caller: &Caller) -> Result<(OverviewCounts, OverviewLists), ApiError> {
    let app = site.app();
    // Whole seconds, so that the count and the linked list cover the same time.
    let since = (site.now().as_millisecond() - PERIOD_MS).div_euclid(1000) * 1000;
    let (task, prefix) = caller.limit.clone().into_names();
    let counts = app
        .store
        .run_counts(task.as_deref(), prefix.as_deref(), since)
        .await?;
    let visible = runners::load_visible(app, caller).await?;
    let online: Vec<_> = visible
        .iter()
        .filter(|runner| runner.state != RunnerState::Offline)
        .collect();
    let failed_since = acrtask_store::timestamp(since)
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string();
    let list = async |states: &str, since: Option<String>| {
        let input = ListRuns {
            state: Some(states.into()),
            since,
            limit: Some(READ),
            ..ListRuns::default()
        };
        let page = runs::load_page(&site.api, caller, input).await?;
        Ok::<_, ApiError>(page.items)
    };
    let live = list("queued,leased,running", None).await?;
    let failed = list(FAILED_STATES, Some(failed_since.clone())).await?;
    let active = ListCascades {
        active: true,
        limit: Some(READ),
        ..ListCascades::default()
    };
    let cascades = cascades::load_page(&site.api, caller, active).await?.items;
    let (waiting, running): (Vec<_>, Vec<_>) = live
        .into_iter()
        .partition(|run| run.state == RunState::Queued);
    let runs_to_approve = waiting
        .iter()
        .filter(|run| run.approval == Some(Approval::Pending))
        .map(|run| ApprovalRow {
            url: format!("/runs/{}", run.id),
            name: format!("run {}", run.id),
            about: Foreign::line(run.revision.as_deref().unwrap_or_default()),
            created: site.moment(run.created_at),
        });
    let cascades_to_approve = cascades
        .iter()
        .filter(|cascade| cascade.awaiting_approval)
        .map(|cascade| {
            let bases: Vec<&str> = cascade.changes.keys().map(String::as_str).collect();
            ApprovalRow {
                url: format!("/cascades/{}", cascade.id),
                name: format!("cascade {}", cascade.id),
                about: Foreign::line(bases.join(", ")),
                created: site.moment(cascade.created_at),
            }
        });
    let approvals = runs_to_approve.chain(cascades_to_approve).take(SHOWN);
    let approvals = approvals.collect();
    let rows = |runs: &[RunSummary]| {
        let runs = runs.iter().take(SHOWN);
        runs.map(|run| run_row(site, run)).collect()
    };
    let shown_cascades = cascades.iter().take(SHOWN);
    Ok((
        OverviewCounts {
            running: counts.running,
            waiting: counts.queued,
            failed: counts.failed,
            failed_since,
            stale: count_stale(site, caller).await?,
            cascades: cascades.len(),
            runners_online: online.len(),
            runners: visible.len(),
            busy: online.iter().map(|runner| u64::from(runner.busy)).sum(),
            slots: online.iter().map(|runner| u64::from(runner.slots)).sum(),
        },
        OverviewLists {
            approvals,
            running: rows(&running),
            waiting: explain(site, caller, &waiting).await?,
            failures: group_by_task(site, &failed),
            cascades: shown_cascades.map(|one| cascade_row(site, one)).collect(),
        },
    ))
}

/// Counts the stale images that the caller may see, at most [`READ`] with a task limit.
async fn count_stale(site: &Site, caller: &Caller) -> Result<usize, ApiError> {
    let stale = Staleness::read(site.app()).await?;
    if caller.tasks.is_none() {
        return Ok(stale.stale_images().count());
    }
    let input = ListImages {
        stale: true,
        limit: Some(READ),
        ..ListImages::default()
    };
    let page = images::load_page(&site.api, caller, input, &stale).await?;
    Ok(page.items.len())
}

/// Returns waiting runs with their reasons.
async fn explain(
    site: &Site,
    caller: &Caller,
    waiting: &[RunSummary],
) -> Result<Vec<WaitRow>, ApiError> {
    let mut rows = Vec::new();
    for run in waiting.iter().take(REASONS) {
        let row = match runs::find(&site.api, caller, run.id.as_str()).await {
            Ok(row) => row,
            // Retention has removed the run.
            Err(error) if error.status() == http::StatusCode::NOT_FOUND => continue,
            Err(error) => return Err(error),
        };
        let reason = why::load_waiting(&site.api, caller, &row).await?.summary;
        rows.push(WaitRow {
            run: run_row(site, run),
            reason: Foreign::line(reason),
        });
    }
    Ok(rows)
}

/// Groups failed runs, the newest first, by their task.
fn group_by_task(site: &Site, failed: &[RunSummary]) -> Vec<FailureRow> {
    let mut rows: Vec<FailureRow> = Vec::new();
    for run in failed {
        let group = rows
            .iter_mut()
            .find(|row| row.task.is_some() && row.task == run.task);
        if let Some(row) = group {
            row.count += 1;
            row.first = Some((run.id.to_string(), site.moment(run.created_at)));
            continue;
        }
        rows.push(FailureRow {
            task: run.task.clone(),
            state: run.state.into(),
            run: run.id.to_string(),
            reason: Foreign::line(run.reason.as_deref().unwrap_or_default()),
            last: site.moment(run.created_at),
            count: 1,
            first: None,
        });
    }
    rows.truncate(SHOWN);
    rows
}
