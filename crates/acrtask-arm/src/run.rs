//! Runs as ARM documents, and the words of their logs.

use acrtask_api::{run::Run, spec::RunSource};
use acrtask_model::{ImageRef, RunState};
use serde_json::{Value, json};

use crate::registry_id;

/// Details of a run that the run itself does not contain.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RunDetails {
    /// The run was marked for archiving.
    pub archived: bool,
}

/// Returns a run of the registry `registry` as an ARM document.
pub fn run_document(run: &Run, registry: &str, details: RunDetails) -> Value {
    let is_automatic = !matches!(run.trigger.as_str(), "manual" | "task" | "rerun");
    let mut properties = json!({
        "runId": run.id.as_str(),
        "status": status_word(run.state),
        "lastUpdatedTime": run.finished_at.or(run.started_at).unwrap_or(run.created_at).to_string(),
        "runType": run_type(run, is_automatic),
        "createTime": run.created_at.to_string(),
        "isArchiveEnabled": details.archived,
        "platform": platform_document(run),
        "agentConfiguration": {"cpu": 2},
        "provisioningState": "Succeeded",
        "outputImages": output_images(run),
    });
    let mut add = |name: &str, value: Value| {
        properties[name] = value;
    };
    for (name, time) in [
        ("startTime", run.started_at),
        ("finishTime", run.finished_at),
    ] {
        if let Some(time) = time {
            add(name, json!(time.to_string()));
        }
    }
    if let Some(task) = &run.task {
        add("task", json!(task));
    }
    if let Some(pool) = &run.queue.pool {
        add("agentPoolName", json!(pool));
    }
    if run.state.is_final()
        && run.state != RunState::Succeeded
        && let Some(reason) = &run.reason
    {
        add("runErrorMessage", json!(reason));
    }
    if let Some(firing) = &run.firing {
        add(
            "timerTrigger",
            json!({
                "timerTriggerName": firing.timer,
                "scheduleOccurrence": firing.scheduled_at.to_string(),
            }),
        );
    }
    let variables = &run.spec.variables;
    if matches!(run.trigger.as_str(), "commit" | "tag" | "pullRequest") {
        add(
            "sourceTrigger",
            json!({
                "eventType": run.trigger,
                "commitId": variables.commit,
                "branchName": variables.branch,
                "repositoryUrl": variables.repository,
            }),
        );
    }
    json!({
        "type": "Microsoft.ContainerRegistry/registries/runs",
        "id": format!("{}/runs/{}", registry_id(registry), run.id),
        "name": run.id.as_str(),
        "properties": properties,
    })
}

/// Returns the status of a run in ARM.
fn status_word(state: RunState) -> &'static str {
    match state {
        RunState::Queued => "Queued",
        RunState::Leased => "Started",
        RunState::Running => "Running",
        RunState::Succeeded => "Succeeded",
        RunState::Failed => "Failed",
        RunState::Canceled => "Canceled",
        RunState::TimedOut => "Timeout",
        RunState::Error => "Error",
    }
}

fn run_type(run: &Run, is_automatic: bool) -> &'static str {
    match (&run.spec.source, is_automatic) {
        (RunSource::Build(_), true) => "AutoBuild",
        (_, true) => "AutoRun",
        (_, false) => "QuickRun",
    }
}

fn platform_document(run: &Run) -> Value {
    let platform = run
        .spec
        .platforms
        .first()
        .map_or("linux/amd64", String::as_str);
    let mut parts = platform.split('/');
    let mut document = json!({
        "os": parts.next().unwrap_or("linux"),
        "architecture": parts.next().unwrap_or("amd64"),
    });
    if let Some(variant) = parts.next() {
        document["variant"] = json!(variant);
    }
    document
}

fn output_images(run: &Run) -> Value {
    let images = run.result.iter().flat_map(|result| &result.images);
    let images = images.map(|image| {
        let mut document = json!({"digest": image.digest.as_str()});
        match image.name.parse::<ImageRef>() {
            Ok(name) => {
                document["registry"] = json!(name.registry());
                document["repository"] = json!(name.repository());
                if let Some(tag) = name.tag() {
                    document["tag"] = json!(tag);
                }
            }
            Err(_) => document["repository"] = json!(image.name),
        }
        document
    });
    Value::Array(images.collect())
}

/// Returns the value of `x-ms-meta-Complete` for a finished run. `None` while it is not finished.
pub fn completion_word(state: RunState) -> Option<&'static str> {
    Some(match state {
        RunState::Queued | RunState::Leased | RunState::Running => return None,
        RunState::Succeeded => "succeeded",
        RunState::Failed => "failed",
        RunState::Canceled => "canceled",
        RunState::TimedOut => "timedout",
        RunState::Error => "internalerror",
    })
}

/// Returns the last line of the log of a finished run. It never changes.
pub fn summary_line(run: &Run) -> String {
    let begin = run.started_at.unwrap_or(run.created_at);
    let end = run.finished_at.unwrap_or(begin);
    let seconds = (end.as_millisecond() - begin.as_millisecond()).max(0) / 1000;
    let id = &run.id;
    let reason = run.reason.as_deref().unwrap_or_default();
    let reason = reason.replace(['\r', '\n'], " ");
    match run.state {
        RunState::Succeeded => format!("Run ID: {id} was successful after {seconds}s"),
        RunState::Canceled => format!("Run ID: {id} was canceled after {seconds}s. {reason}"),
        RunState::TimedOut => format!("Run ID: {id} timed out after {seconds}s. {reason}"),
        _ => format!("Run ID: {id} failed after {seconds}s. Error: {reason}"),
    }
    .trim_end()
    .to_owned()
}

#[cfg(test)]
mod tests {
    use acrtask_api::{
        run::{ImageResult, RunResult},
        spec::{BuildSpec, RunSpec},
    };
    use acrtask_model::{RunId, StepId};

    use super::*;

    pub(crate) fn run(state: RunState) -> Run {
        let time = |seconds: i64| jiff::Timestamp::from_second(1_800_000_000 + seconds).unwrap();
        Run {
            id: RunId::new("r1").unwrap(),
            task: None,
            state,
            reason: state.is_final().then(|| "a step\nfailed".into()),
            trigger: "manual".into(),
            requested_by: None,
            rerun_of: None,
            attempt: 1,
            runner: None,
            queue: acrtask_api::task::QueueOptions::default(),
            spec: RunSpec {
                source: RunSource::Build(BuildSpec::default()),
                platforms: vec!["linux/arm64/v8".into()],
                ..RunSpec::default()
            },
            created_at: time(0),
            started_at: Some(time(1)),
            finished_at: state.is_final().then(|| time(6)),
            cancel_requested: false,
            log_length: 0,
            result: Some(RunResult {
                images: vec![ImageResult {
                    step: StepId::new("build").unwrap(),
                    name: "127.0.0.1:5000/hello:1".into(),
                    digest: format!("sha256:{}", "a".repeat(64)).parse().unwrap(),
                    platforms: std::collections::BTreeMap::new(),
                    staged: false,
                }],
                ..RunResult::default()
            }),
            domain: String::new(),
            approval: None,
            approved_by: None,
            firing: None,
            cascade: None,
        }
    }

    #[test]
    fn run_has_the_members_of_arm() {
        let document = run_document(
            &run(RunState::Failed),
            "myreg",
            RunDetails { archived: true },
        );
        insta::assert_json_snapshot!(document);
    }

    #[test]
    fn last_line_names_the_result() {
        let lines: Vec<String> = RunState::ALL
            .into_iter()
            .filter(|state| state.is_final())
            .map(|state| {
                format!(
                    "{}: {}",
                    completion_word(state).unwrap(),
                    summary_line(&run(state))
                )
            })
            .collect();
        insta::assert_snapshot!(lines.join("\n"));
        assert_eq!(completion_word(RunState::Running), None);
    }
}
