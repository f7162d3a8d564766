//! Why a run waits: a pure function of what is known of the queue and of the runners.

use std::sync::Arc;

use acrtask_api::{
    admin::{Problem, RunnerState},
    run::{Approval, RunnerVerdict, Waiting},
};
use acrtask_model::RunState;
use acrtask_store::{Class, Position, RunRow};
use axum::extract::State;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api, ApiError,
    extract::{Json, Path},
    runners::{self, Seen},
    runs,
};
use crate::{
    auth::{self, By, TaskLimit},
    scheduler::place::Profile,
};

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(why))
}

/// Why a run waits: its place in the queue, and what each runner lacks for it.
#[utoipa::path(get, path = "/runs/{id}/why", tag = "runs", params(("id" = String, Path, description = "The run's id.")),
    security(("token" = ["read"])), responses(
    (status = OK, body = Waiting),
    (status = NOT_FOUND, body = Problem),
))]
async fn why(
    by: By<auth::Read>,
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Json<Waiting>, ApiError> {
    let row = runs::find(&api, &by.caller, &id).await?;
    let (mut position, mut seen) = if row.state == RunState::Queued {
        (
            api.app.store.position(&row.id).await?,
            runners::seen(&api.app).await?,
        )
    } else {
        (Position::default(), Vec::new())
    };
    // Runners of pools that its tasks may not use are none of the caller's business, but for those of the run's own pool.
    seen.retain(|seen| seen.runner.pool == row.pool || by.caller.may_use_pool(&seen.runner.pool));
    let hidden = position
        .behind
        .take_if(|blocker| !by.caller.sees(blocker.task.as_deref()));
    let mut waiting = explain(&row, &position, &seen);
    if let Some(blocker) = hidden {
        waiting.summary = behind_hidden(&row, blocker.count);
    }
    Ok(Json(waiting))
}

/// Returns why a run waits for runs of its group that the caller may not see: their number, not their ids.
fn behind_hidden(run: &RunRow, count: u64) -> String {
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

/// Why `run` waits.
pub(crate) fn explain(run: &RunRow, position: &Position, runners: &[Seen]) -> Waiting {
    let over = |summary: String| Waiting {
        ahead: None,
        summary,
        runners: Vec::new(),
        behind: None,
    };
    let runner = run
        .runner_name
        .as_deref()
        .or(run.runner_id.as_deref())
        .unwrap_or("a runner");
    match run.state {
        RunState::Queued => {}
        RunState::Leased => {
            return over(format!(
                "it was handed to {runner}, which has not begun yet"
            ));
        }
        RunState::Running => return over(format!("it does not wait: {runner} carries it out")),
        state => {
            return over(match &run.reason {
                Some(reason) => format!("it is over: {state}, {reason}"),
                None => format!("it is over: {state}"),
            });
        }
    }
    let class = Class {
        id: run.class,
        pool: run.pool.clone(),
        platform: run.platform.clone(),
        labels: run.queue.labels.clone(),
    };
    let task = run.task_name.as_deref();
    let verdicts = runners.iter().map(|seen| verdict(seen, &class, task));
    let verdicts: Vec<RunnerVerdict> = verdicts.collect();
    let suiting: Vec<&Seen> = runners
        .iter()
        .filter(|seen| seen.profile.suits(&class) && seen.profile.tasks.allows(task))
        .collect();
    let online: Vec<&&Seen> = suiting
        .iter()
        .filter(|seen| seen.runner.state == RunnerState::Online)
        .collect();
    let free = online
        .iter()
        .any(|seen| seen.runner.busy < seen.runner.slots);
    let summary = if run.approval == Some(Approval::Pending) {
        let commit = run.commit.as_deref().unwrap_or_default();
        format!(
            "it waits for somebody to approve the commit {commit}, which comes from another repository: `acrtask runs approve {}`",
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
        "there is no runner: start one with `acrtask runner`".into()
    } else if suiting.is_empty() {
        let registered = runners.iter().filter(|seen| seen.profile.suits(&class));
        let of_others = match registered.count() {
            0 => String::new(),
            1 => ", and the runner that has this is registered for other tasks".to_owned(),
            count => {
                format!(", and the {count} runners that have this are registered for other tasks")
            }
        };
        format!("no runner would do: it needs {}{of_others}", needs(&class))
    } else if online.is_empty() {
        format!(
            "{} would do, and {}",
            names(&suiting),
            if suiting
                .iter()
                .all(|seen| seen.runner.state == RunnerState::Draining)
            {
                "takes nothing new"
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
        behind: position.behind.as_ref().map(|behind| behind.run.clone()),
    }
}

fn verdict(seen: &Seen, class: &Class, task: Option<&str>) -> RunnerVerdict {
    let profile = &seen.profile;
    let lack = profile.lacks(class).map(|lack| lack.to_string());
    let lack = lack.or_else(|| {
        (!profile.tasks.allows(task)).then(|| "is registered for other tasks".to_owned())
    });
    let not_now = match seen.runner.state {
        RunnerState::Offline => Some("offline".to_owned()),
        RunnerState::Draining => Some("draining".to_owned()),
        RunnerState::Online if seen.runner.busy >= seen.runner.slots => {
            Some("no free slot".to_owned())
        }
        RunnerState::Online => None,
    };
    RunnerVerdict {
        runner: seen.runner.name.clone(),
        would_do: lack.is_none(),
        why: lack.or(not_now).unwrap_or_else(|| "free".into()),
    }
}

/// What a runner must have, in words.
fn needs(class: &Class) -> String {
    let mut needs = vec![format!("the pool `{}`", class.pool)];
    if !class.platform.is_empty() {
        needs.push(format!("the platform {}", class.platform));
    }
    needs.extend(
        class
            .labels
            .iter()
            .map(|(name, value)| format!("the label {name}={value}")),
    );
    needs.join(", ")
}

fn names(seen: &[&Seen]) -> String {
    let names: Vec<&str> = seen.iter().map(|seen| seen.runner.name.as_str()).collect();
    match names.as_slice() {
        [one] => (*one).to_owned(),
        [one, other] => format!("each of {one} and {other}"),
        [one, rest @ ..] => format!("each of {one} and {} more", rest.len()),
        [] => String::new(),
    }
}

impl Seen {
    /// A runner as it decides about runs.
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
