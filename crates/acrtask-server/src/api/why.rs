//! Reasons why runs wait: a pure function of the queue and of the runners.

use std::sync::Arc;

use acrtask_api::{
    admin::{Problem, RunnerState},
    run::{Approval, RunnerVerdict, Waiting},
};
use acrtask_model::RunState;
use acrtask_store::{Position, RunRow, RunnerRequirement};
use axum::extract::State;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api, ApiError,
    extract::{Json, Path},
    runners::{self, RunnerView},
    runs,
};
use crate::{
    auth::{self, Authenticated, Caller, TaskLimit},
    scheduler::assignment::Profile,
};

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(why))
}

/// Returns why a run waits: its position in the queue, and what each runner lacks for it.
#[utoipa::path(get, path = "/runs/{id}/why", tag = "runs", params(("id" = String, Path, description = "Id of the run.")),
    security(("token" = ["read"])), responses(
    (status = OK, body = Waiting),
    (status = NOT_FOUND, body = Problem),
))]
async fn why(
    by: Authenticated<auth::Read>,
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Json<Waiting>, ApiError> {
    let row = runs::find(&api, &by.caller, &id).await?;
    load_waiting(&api, &by.caller, &row).await.map(Json)
}

/// Returns why a run waits, without the runs and runners that the caller may not see.
pub(crate) async fn load_waiting(
    api: &Api,
    caller: &Caller,
    row: &RunRow,
) -> Result<Waiting, ApiError> {
    let (mut position, mut views) = if row.state == RunState::Queued {
        (
            api.app.store.position(&row.id).await?,
            runners::load_runners(&api.app).await?,
        )
    } else {
        (Position::default(), Vec::new())
    };
    // The caller sees the runners of pools that its tasks may use, and of the run's own pool.
    views.retain(|view| view.runner.pool == row.pool || caller.may_use_pool(&view.runner.pool));
    let hidden = position
        .behind
        .take_if(|blocker| !caller.may_see(blocker.task.as_deref()));
    let mut waiting = explain(row, &position, &views);
    if let Some(blocker) = hidden {
        waiting.summary = explain_hidden_blocker(row, blocker.count);
    }
    Ok(waiting)
}

/// Returns the reason of a run that waits for hidden runs of its group: their number, not their
/// ids.
fn explain_hidden_blocker(run: &RunRow, count: u64) -> String {
    let runs = match count {
        1 => "one run".to_owned(),
        count => format!("{count} runs"),
    };
    let group = run.group.as_ref().map(ToString::to_string);
    format!(
        "it waits for {runs} of tasks that this token may not see: runs of {} take turns",
        group.unwrap_or_default()
    )
}

/// Explains why `run` waits.
pub(crate) fn explain(run: &RunRow, position: &Position, runners: &[RunnerView]) -> Waiting {
    let not_waiting = |summary: String| Waiting {
        ahead: None,
        summary,
        runners: Vec::new(),
        blocked_by: None,
    };
    let runner = run
        .runner_name
        .as_deref()
        .or(run.runner_id.as_deref())
        .unwrap_or("a runner");
    match run.state {
        RunState::Queued => {}
        RunState::Leased => {
            return not_waiting(format!(
                "it is leased to {runner}, which has not started it yet"
            ));
        }
        RunState::Running => return not_waiting(format!("it does not wait: {runner} executes it")),
        state => {
            return not_waiting(match &run.reason {
                Some(reason) => format!("it is finished: {state}, {reason}"),
                None => format!("it is finished: {state}"),
            });
        }
    }
    let requirement = RunnerRequirement {
        id: run.requirement_id,
        pool: run.pool.clone(),
        platform: run.platform.clone(),
        labels: run.queue.labels.clone(),
    };
    let task = run.task_name.as_deref();
    let verdicts = runners
        .iter()
        .map(|view| check_runner(view, &requirement, task));
    let verdicts: Vec<RunnerVerdict> = verdicts.collect();
    let matching: Vec<&RunnerView> = runners
        .iter()
        .filter(|view| view.profile.matches(&requirement) && view.profile.tasks.allows(task))
        .collect();
    let online: Vec<&&RunnerView> = matching
        .iter()
        .filter(|view| view.runner.state == RunnerState::Online)
        .collect();
    let free = online
        .iter()
        .any(|view| view.runner.busy < view.runner.slots);
    let summary = if run.approval == Some(Approval::Pending) {
        let commit = run.commit.as_deref().unwrap_or_default();
        format!(
            "it waits for an approval of the commit {commit} from another repository: `acrtask runs approve {}`",
            run.id
        )
    } else if let Some(behind) = &position.behind {
        let group = run.group.as_ref().map(ToString::to_string);
        format!(
            "it waits for the run {}: runs of {} take turns",
            behind.run,
            group.unwrap_or_default()
        )
    } else if runners.is_empty() {
        "no runner is registered: start one with `acrtask runner`".into()
    } else if matching.is_empty() {
        let registered = runners
            .iter()
            .filter(|view| view.profile.matches(&requirement));
        let of_others = match registered.count() {
            0 => String::new(),
            1 => ", and the runner that has this is registered for other tasks".to_owned(),
            count => {
                format!(", and the {count} runners that have this are registered for other tasks")
            }
        };
        format!(
            "no runner would do: it needs {}{of_others}",
            describe_requirements(&requirement)
        )
    } else if online.is_empty() {
        format!(
            "{} would do, but {}",
            list_names(&matching),
            if matching
                .iter()
                .all(|view| view.runner.state == RunnerState::Draining)
            {
                "drains"
            } else {
                "is not connected"
            }
        )
    } else if position.ahead > 0 {
        format!(
            "{} before it",
            match position.ahead {
                1 => "one run is".to_owned(),
                ahead => format!("{ahead} runs are"),
            }
        )
    } else if free {
        "it is next, and a runner is free: it starts in a moment".into()
    } else {
        "it is next: every runner that would do is busy".into()
    };
    Waiting {
        ahead: Some(position.ahead),
        summary,
        runners: verdicts,
        blocked_by: position.behind.as_ref().map(|behind| behind.run.clone()),
    }
}

fn check_runner(
    view: &RunnerView,
    requirement: &RunnerRequirement,
    task: Option<&str>,
) -> RunnerVerdict {
    let profile = &view.profile;
    let unmet = profile
        .unmet_requirement(requirement)
        .map(|unmet| unmet.to_string());
    let unmet = unmet.or_else(|| {
        (!profile.tasks.allows(task)).then(|| "is registered for other tasks".to_owned())
    });
    let not_now = match view.runner.state {
        RunnerState::Offline => Some("offline".to_owned()),
        RunnerState::Draining => Some("draining".to_owned()),
        RunnerState::Online if view.runner.busy >= view.runner.slots => {
            Some("no free slot".to_owned())
        }
        RunnerState::Online => None,
    };
    RunnerVerdict {
        runner: view.runner.name.clone(),
        matches: unmet.is_none(),
        reason: unmet.or(not_now).unwrap_or_else(|| "free".into()),
    }
}

/// Describes the requirements of a run for its runner.
fn describe_requirements(requirement: &RunnerRequirement) -> String {
    let mut needs = vec![format!("the pool `{}`", requirement.pool)];
    if !requirement.platform.is_empty() {
        needs.push(format!("the platform {}", requirement.platform));
    }
    needs.extend(
        requirement
            .labels
            .iter()
            .map(|(name, value)| format!("the label {name}={value}")),
    );
    needs.join(", ")
}

fn list_names(views: &[&RunnerView]) -> String {
    let names: Vec<&str> = views.iter().map(|view| view.runner.name.as_str()).collect();
    match names.as_slice() {
        [one] => (*one).to_owned(),
        [one, other] => format!("each of {one} and {other}"),
        [one, rest @ ..] => format!("each of {one} and {} more", rest.len()),
        [] => String::new(),
    }
}

impl RunnerView {
    /// Creates the view of a runner, with its profile.
    pub(crate) fn new(runner: acrtask_api::admin::Runner) -> Self {
        Self {
            profile: Arc::new(Profile {
                pool: runner.pool.clone(),
                platforms: runner.platforms.clone(),
                labels: runner.labels.clone(),
                tasks: TaskLimit::parse(runner.tasks.as_deref()),
            }),
            runner,
        }
    }
}

#[cfg(test)]
#[path = "why_tests.rs"]
mod tests;
