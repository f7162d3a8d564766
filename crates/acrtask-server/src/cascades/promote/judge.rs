//! Decisions about promotions.
//!
//! A cascade is promoted if all chosen tests that are part of it have passed. If none is part of
//! it, all of its tasks must have been built or have needed no build. A task that moved to a
//! following cascade passes or fails there. A failed task passes if a later build of it succeeds. A
//! cascade that depends on staged images of another one waits for that one, and is discarded with
//! it.
//!
//! Invariants: only finished cascades are judged. No image gets a tag while an image below it has
//! none.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use acrtask_cascade::cascade::{Node, NodePin, NodeState, SkipCause, StaleCause};
use acrtask_model::{Digest, StepState};
use acrtask_store::{PromotionRow, StoreError};

use crate::{App, cascades::state};

/// Maximum number of cascades to follow a moved task through.
const MAX_MOVES: usize = 64;

/// Decision about the staged images of a cascade.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Move the tags.
    Promote,
    /// Discard the images, for this reason.
    Discard(String),
    /// Keep the images staged, for this reason.
    Wait(String),
}

/// Result of a task or step.
enum TestResult {
    Passed,
    /// In progress, with an explanation.
    Open(String),
    Failed(String),
}

type Nodes = BTreeMap<String, Node>;

/// Decides about the staged images of a finished cascade.
pub(super) async fn judge(
    app: &App,
    row: &PromotionRow,
    tests: &[String],
) -> Result<Verdict, StoreError> {
    let nodes = read_nodes(app, row.id).await?;
    if let Some(by) = nodes.values().find_map(|node| match &node.state {
        NodeState::Canceled { by } => Some(by),
        _ => None,
    }) {
        return Ok(Verdict::Discard(format!(
            "its cascade was canceled by {by}"
        )));
    }
    if let Some(below) = find_untagged_base(app, row.id, &nodes).await? {
        let why = below.to_string();
        return Ok(match below.dropped {
            true => Verdict::Discard(why),
            false => Verdict::Wait(why),
        });
    }
    let chosen: Vec<(&str, Option<&str>)> = tests
        .iter()
        .filter_map(|test| resolve_test(test, &nodes))
        .collect();
    let needed: Vec<(&str, Option<&str>)> = if chosen.is_empty() {
        nodes.keys().map(|task| (task.as_str(), None)).collect()
    } else {
        chosen
    };
    let mut waits = None;
    for (task, step) in needed {
        match task_result(app, row.id, &nodes, task, step).await? {
            TestResult::Passed => {}
            TestResult::Open(why) => waits = waits.or(Some(why)),
            // The task can be retried as long as the cascade is not archived.
            TestResult::Failed(why) if row.active => return Ok(Verdict::Wait(why)),
            TestResult::Failed(why) => return Ok(Verdict::Discard(why)),
        }
    }
    Ok(waits.map_or(Verdict::Promote, Verdict::Wait))
}

async fn read_nodes(app: &App, id: u64) -> Result<Nodes, StoreError> {
    let mut nodes = Nodes::new();
    for row in app.store.cascade_nodes(id).await? {
        let node = state::parse_node(&row)?;
        nodes.insert(row.task, node);
    }
    Ok(nodes)
}

/// Resolves a test to a task of the cascade and an optional step. Task names may contain slashes.
fn resolve_test<'t>(test: &'t str, nodes: &Nodes) -> Option<(&'t str, Option<&'t str>)> {
    if nodes.contains_key(test) {
        return Some((test, None));
    }
    let (task, step) = test.rsplit_once('/')?;
    nodes.contains_key(task).then_some((task, Some(step)))
}

async fn task_result(
    app: &App,
    id: u64,
    nodes: &Nodes,
    task: &str,
    step: Option<&str>,
) -> Result<TestResult, StoreError> {
    let first = result_in_cascade(app, id, nodes.get(task), task, step).await?;
    let TestResult::Failed(why) = first else {
        return Ok(first);
    };
    // A later attempt in another cascade counts instead.
    let last = app.store.cascade_of_task(task).await?;
    let Some(last) = last.filter(|last| *last > id) else {
        return Ok(TestResult::Failed(why));
    };
    let later = read_nodes(app, last).await?;
    Ok(
        match result_in_cascade(app, last, later.get(task), task, step).await? {
            TestResult::Failed(_) => TestResult::Failed(why),
            passed => passed,
        },
    )
}

/// Returns the result of a task in one cascade, or in the cascade it was moved to.
async fn result_in_cascade(
    app: &App,
    id: u64,
    node: Option<&Node>,
    task: &str,
    step: Option<&str>,
) -> Result<TestResult, StoreError> {
    let mut at = id;
    let mut state = node.map(|node| node.state.clone());
    for _ in 0..MAX_MOVES {
        let Some(now) = state else {
            return Ok(TestResult::Failed(format!(
                "{task} is not part of the cascade"
            )));
        };
        return Ok(match now {
            NodeState::Succeeded { .. } => match step {
                None => TestResult::Passed,
                Some(step) => step_result(app, at, task, step).await?,
            },
            NodeState::Skipped {
                cause: SkipCause::Moved { to },
            } => {
                at = to.0;
                let mut nodes = read_nodes(app, at).await?;
                state = nodes.remove(task).map(|node| node.state);
                continue;
            }
            NodeState::Skipped { .. } => TestResult::Passed,
            NodeState::Pending | NodeState::Ready { .. } | NodeState::Running { .. } => {
                TestResult::Open(format!("{task} is still being built in cascade {at}"))
            }
            NodeState::Failed { reason, .. } => {
                TestResult::Failed(format!("{task} failed: {reason}"))
            }
            NodeState::Canceled { by } => {
                TestResult::Failed(format!("{task} was canceled by {by}"))
            }
            NodeState::Stale { cause } => TestResult::Failed(match cause {
                StaleCause::Below { task: below } => {
                    format!("{task} was not built, because {below} was not")
                }
                _ => format!("{task} was not built"),
            }),
        });
    }
    Ok(TestResult::Failed(format!(
        "{task} was moved through more than {MAX_MOVES} cascades"
    )))
}

/// Returns the result of a step in the newest run of a task in a cascade.
async fn step_result(app: &App, id: u64, task: &str, step: &str) -> Result<TestResult, StoreError> {
    let runs = app.store.cascade_runs(id).await?;
    let last = runs.into_iter().rfind(|run| run.task == task);
    let Some(last) = last else {
        return Ok(TestResult::Failed(format!(
            "{task} has no run in cascade {id}"
        )));
    };
    let run = match app.store.run(&last.run).await {
        Ok(run) => run,
        Err(StoreError::NotFound { .. }) => {
            return Ok(TestResult::Failed(format!(
                "the run of {task} no longer exists"
            )));
        }
        Err(error) => return Err(error),
    };
    let steps = run.result.map(|result| result.steps).unwrap_or_default();
    Ok(match steps.iter().find(|found| found.id.as_str() == step) {
        Some(found) if found.state == StepState::Succeeded => TestResult::Passed,
        Some(_) => TestResult::Failed(format!("step {step} of {task} has not succeeded")),
        None => TestResult::Failed(format!("{task} has no step {step}")),
    })
}

/// Returns why a cascade cannot be promoted: it depends on untagged images of another one.
///
/// The text names the command to run first.
pub(super) async fn promotion_obstacle(app: &App, id: u64) -> Result<Option<String>, StoreError> {
    let nodes = read_nodes(app, id).await?;
    let below = find_untagged_base(app, id, &nodes).await?;
    Ok(below.map(|below| {
        let first = match below.dropped {
            true => " together with its dependents".to_owned(),
            false => format!(
                "; promote that one first: `acrtask cascade promote {}`",
                below.cascade
            ),
        };
        format!("{below}{first}")
    }))
}

/// Untagged images of another cascade that a cascade was built on.
struct UntaggedBase {
    cascade: u64,
    /// Name of an image; a discarded one if there is any.
    image: String,
    dropped: bool,
}

impl fmt::Display for UntaggedBase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cascade, image, .. } = self;
        match self.dropped {
            true => write!(
                f,
                "it depends on {image} of cascade {cascade}, which was discarded"
            ),
            false => write!(f, "it depends on staged images of cascade {cascade}"),
        }
    }
}

/// Returns the untagged images that prevent the promotion, regardless of the tests.
async fn find_untagged_base(
    app: &App,
    id: u64,
    nodes: &Nodes,
) -> Result<Option<UntaggedBase>, StoreError> {
    let unpromoted = app.store.unpromoted_images().await?;
    let mut by_digest: HashMap<(&str, &Digest), (u64, bool)> = HashMap::new();
    let mut of_cascade: HashMap<(&str, u64), bool> = HashMap::new();
    for (name, digest, of, dropped) in &unpromoted {
        if *of != id {
            by_digest.insert((name, digest), (*of, *dropped));
            of_cascade.insert((name, *of), *dropped);
        }
    }
    let built = |node: &&Node| matches!(node.state, NodeState::Succeeded { .. });
    let bases = nodes.values().filter(built).flat_map(|node| &node.bases);
    let below = bases.filter_map(|base| {
        let image = base.image.to_string();
        let (cascade, dropped) = match &base.pin {
            NodePin::Digest(digest) => *by_digest.get(&(image.as_str(), digest))?,
            NodePin::Output { cascade, .. } => {
                (cascade.0, *of_cascade.get(&(image.as_str(), cascade.0))?)
            }
        };
        Some(UntaggedBase {
            cascade,
            image,
            dropped,
        })
    });
    Ok(below.min_by_key(|below| (!below.dropped, below.cascade)))
}
