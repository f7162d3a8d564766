//! List of runners.

use acrtask_api::admin::{Runner, RunnerState};
use acrtask_page::{Foreign, RunnerRow, RunnersPage, Section, StateBadge};
use axum::{extract::State, response::Response};

use super::{PageError, Site, render, session::Visitor};
use crate::{api::runners, auth};

/// Lists the runners that the user may see.
pub(super) async fn list(
    by: Visitor<auth::Read>,
    State(site): State<Site>,
) -> Result<Response, PageError> {
    let visible = runners::load_visible(site.app(), &by.caller).await?;
    render(&RunnersPage {
        frame: by.frame("Runners", Section::Runners),
        runners: visible
            .iter()
            .map(|runner| runner_row(&site, runner))
            .collect(),
    })
}

fn runner_row(site: &Site, runner: &Runner) -> RunnerRow {
    let labels: Vec<String> = runner
        .labels
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    RunnerRow {
        name: Foreign::line(&runner.name),
        state: match runner.state {
            RunnerState::Online => StateBadge::good("online"),
            RunnerState::Draining => StateBadge::warning("draining"),
            RunnerState::Offline => StateBadge::neutral("offline"),
        },
        pool: Foreign::line(&runner.pool),
        platforms: Foreign::line(runner.platforms.join(", ")),
        busy: runner.busy,
        slots: runner.slots,
        labels: Foreign::line(labels.join(", ")),
        version: Foreign::line(&runner.version),
        seen: runner.last_seen_at.map(|at| site.moment(at)),
    }
}
