//! Parts of the page of a run: sentence, steps, images and bases. Pure.

use acrtask_api::{
    outline::{Outline, StepOutline},
    run::{Run, RunResult, StepResult, Waiting},
};
use acrtask_model::{RunState, StepState, count, events::BaseRole};
use acrtask_page::{
    BaseRow, Foreign, GraphNode, ImageRow, RunSteps, StateBadge, StepGraph, StepRow, encode_path,
    encode_query, format_duration,
};
use jiff::Timestamp;

use super::{Site, runs::duration};

/// Thousandths of the timeline that the shortest step occupies.
const MIN_BAR: u64 = 8;

/// Describes the state or result of a run in one sentence.
pub(super) fn describe(
    run: &Run,
    result: &RunResult,
    outline: &Outline,
    waiting: Option<&Waiting>,
    now: Timestamp,
) -> String {
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
        RunState::Running => match describe_running(outline) {
            Some(steps) => format!("The run executes on {runner}: {steps}."),
            None => format!("The run executes on {runner}."),
        },
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

fn describe_running(outline: &Outline) -> Option<String> {
    let steps = &outline.steps;
    let running: Vec<&str> = steps
        .iter()
        .filter(|step| step.state == StepState::Running)
        .map(|step| step.id.as_str())
        .collect();
    let finished = steps.iter().filter(|step| step.state.is_final()).count();
    let first = running.first()?;
    let others = match running.len() - 1 {
        0 => String::new(),
        1 => " and one more step".to_owned(),
        others => format!(" and {others} more steps"),
    };
    let of = count(steps.len(), "step");
    Some(format!("step {first}{others}, {finished} of {of} finished"))
}

/// A step with what is known of it.
struct Step<'s> {
    id: &'s str,
    state: StepState,
    elapsed_ms: Option<u64>,
    outline: Option<&'s StepOutline>,
}

/// Returns the steps of a result, or of the log of a live run.
fn merge_steps<'s>(results: &'s [StepResult], outline: &'s Outline) -> Vec<Step<'s>> {
    if results.is_empty() {
        let steps = outline.steps.iter().map(|step| Step {
            id: step.id.as_str(),
            state: step.state.clone(),
            elapsed_ms: step.elapsed_ms,
            outline: Some(step),
        });
        return steps.collect();
    }
    let steps = results.iter().map(|step| Step {
        id: step.id.as_str(),
        state: step.state.clone(),
        elapsed_ms: Some(step.elapsed_ms),
        outline: outline.step(&step.id),
    });
    steps.collect()
}

/// Shows the steps of a run and the interesting part of its log.
pub(super) fn show_steps(site: &Site, run: &Run, outline: &Outline) -> RunSteps {
    let results = run.result.as_ref().map_or(&[][..], |result| &result.steps);
    let is_final = run.state.is_final();
    let now = run.finished_at.unwrap_or_else(|| site.clock_now());
    let mut steps = merge_steps(results, outline);
    if is_final {
        // The runner was lost, so the log has no end of these steps.
        for step in &mut steps {
            if step.state == StepState::Running {
                step.state = StepState::Canceled {
                    cause: acrtask_model::SkipReason::Interrupted,
                };
            }
        }
    }
    let end_of = |step: &StepOutline| -> Option<i64> {
        let start = step.started_at?.as_millisecond();
        let elapsed = step.elapsed_ms.and_then(|ms| i64::try_from(ms).ok());
        Some(elapsed.map_or_else(|| now.as_millisecond(), |ms| start + ms))
    };
    let outlines = || steps.iter().filter_map(|step| step.outline);
    let begin = outlines()
        .filter_map(|step| step.started_at)
        .min()
        .map(Timestamp::as_millisecond);
    let end = outlines().filter_map(end_of).max();
    let length = begin
        .zip(end)
        .map_or(0, |(begin, end)| end.saturating_sub(begin));
    let bar = |step: &StepOutline| {
        let (begin, start, end) = (begin?, step.started_at?.as_millisecond(), end_of(step)?);
        let share = |ms: i64| u64::try_from(ms.max(0) * 1000 / length.max(1)).unwrap_or(0);
        let width = share(end - start).clamp(MIN_BAR, 1000);
        let start = share(start - begin).min(1000 - width);
        Some((u32::try_from(start).ok()?, u32::try_from(width).ok()?))
    };
    let log_url = |id: &str| format!("/runs/{}/log?step={}", run.id, encode_query(id));
    let rows = steps.iter().map(|step| {
        let state: StateBadge = (&step.state).into();
        let started = step.outline.and_then(|step| step.started_at);
        let is_running = step.state == StepState::Running;
        let elapsed = match (step.elapsed_ms, started) {
            (Some(ms), _) => format_duration(ms),
            (None, Some(_)) if is_running => {
                duration(started, None, site.now()).unwrap_or_default()
            }
            _ => String::new(),
        };
        StepRow {
            id: Foreign::line(step.id),
            log_url: match step.outline {
                Some(outline) if outline.lines > 0 => log_url(step.id),
                _ => String::new(),
            },
            line: Foreign::line(step.outline.map_or("", |step| step.line.as_str())),
            reason: Foreign::line(reason_of(step)),
            duration: elapsed,
            running_since: started
                .filter(|_| is_running)
                .map(Timestamp::as_millisecond),
            cached: match step.outline.map(count_cached) {
                None | Some((_, 0)) => String::new(),
                Some((cached, all)) => format!("{cached} of {all}"),
            },
            bar: step.outline.and_then(bar),
            state,
        }
    });
    RunSteps {
        id: run.id.to_string(),
        waits: Vec::new(),
        excerpt: None,
        graph: graph(&steps, log_url),
        steps: rows.collect(),
        is_final,
    }
}

/// Returns the number of cached and of all finished vertices of a step.
fn count_cached(step: &StepOutline) -> (usize, usize) {
    let vertices = step.vertices.iter();
    let finished: Vec<bool> = vertices
        .filter(|vertex| vertex.completed_at.is_some())
        .map(|vertex| vertex.cached)
        .collect();
    let cached = finished.iter().filter(|cached| **cached).count();
    (cached, finished.len())
}

/// Describes why a step has its state. Empty if the state needs no reason.
fn reason_of(step: &Step<'_>) -> String {
    let retrying = step.outline.and_then(|outline| outline.retrying.as_ref());
    match &step.state {
        StepState::Failed { reason, .. } => reason.clone(),
        StepState::Skipped { cause } | StepState::Canceled { cause } => cause.to_string(),
        StepState::TimedOut { after_secs } => format!("its timeout is {after_secs} s"),
        StepState::Pending | StepState::Running | StepState::Succeeded => {
            retrying.map_or_else(String::new, |reason| format!("retrying: {reason}"))
        }
    }
}

/// Returns the graph of the steps. `None` for a chain, which the table shows as well.
fn graph(steps: &[Step<'_>], log_url: impl Fn(&str) -> String) -> Option<StepGraph> {
    let position = |id: &str| steps.iter().position(|step| step.id == id);
    let mut edges = Vec::new();
    for (to, step) in steps.iter().enumerate() {
        let after = step.outline.map_or(&[][..], |step| &step.after);
        edges.extend(
            after
                .iter()
                .filter_map(|id| Some((position(id.as_str())?, to))),
        );
    }
    let is_chain = edges.len() + 1 == steps.len() && edges.iter().all(|(from, to)| from + 1 == *to);
    if is_chain {
        return None;
    }
    let nodes = steps.iter().map(|step| GraphNode {
        name: step.id.to_owned(),
        state: (&step.state).into(),
        url: step
            .outline
            .filter(|outline| outline.lines > 0)
            .map(|_| log_url(step.id)),
    });
    StepGraph::new("Steps in their order", nodes.collect(), edges)
}

/// Lists the images that a run pushed, then those that it only built.
pub(super) fn list_images(result: &RunResult) -> Vec<ImageRow> {
    let pushed = result.images.iter().map(|image| {
        let repository = image.name.rsplit_once(':');
        let repository = repository.filter(|(_, tag)| !tag.contains('/'));
        let repository = repository.map_or(image.name.as_str(), |(name, _)| name);
        ImageRow {
            name: Foreign::line(&image.name),
            digest: image.digest.to_string(),
            pull: Some(Foreign::line(format!("{repository}@{}", image.digest)).text()),
            url: (!image.staged).then(|| format!("/images/{}", encode_path(&image.name))),
            step: Foreign::line(image.step.as_str()),
            result: if image.staged { "staged" } else { "pushed" },
        }
    });
    let only_built = result.built.iter().flat_map(|built| {
        let names = built.names.iter();
        let unpushed = names.filter(|name| !result.images.iter().any(|image| image.name == **name));
        unpushed.map(|name| ImageRow {
            name: Foreign::line(name),
            digest: built.digest.to_string(),
            pull: None,
            url: None,
            step: Foreign::line(built.step.as_str()),
            result: "built, not pushed",
        })
    });
    pushed.chain(only_built).collect()
}

/// Returns the name of a role on pages.
pub(super) fn role_name(role: BaseRole) -> &'static str {
    match role {
        BaseRole::Runtime => "runtime",
        BaseRole::BuildTime => "build time",
        BaseRole::Frontend => "frontend",
        BaseRole::Cmd => "container",
    }
}

/// Lists the bases of a run.
pub(super) fn list_bases(result: &RunResult) -> Vec<BaseRow> {
    let bases = result.bases.iter().map(|base| BaseRow {
        name: Foreign::line(&base.name),
        digest: base.digest.to_string(),
        role: role_name(base.role),
        step: Foreign::line(base.step.as_str()),
    });
    bases.collect()
}
