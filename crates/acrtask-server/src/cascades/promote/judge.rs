//! Whether what a cascade has held back may get its tags.
//!
//! All chosen tests that are part of the cascade have passed; where none is chosen, or none of them is part of it, all of
//! its tasks were built or needed no build. A task that is built in a cascade that follows passes or fails there, and one
//! that failed passes where it is built again later. What stands on images that another cascade holds back waits for that
//! one, and is given up with it. Invariants: nothing is decided of a cascade that is not over, and no tag is given to what
//! stands on an image that has none.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use acrtask_cascade::cascade::{Node, NodePin, NodeState, SkippedBecause, StaleBecause};
use acrtask_model::{Digest, StepState};
use acrtask_store::{PromotionRow, StoreError};

use crate::{App, cascades::state};

/// Cascades that a task is followed through.
const FOLLOWED: usize = 64;

/// What is to be done with what is held back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The tags are moved.
    Promote,
    /// It is given up, and why.
    Drop(String),
    /// It stays as it is, and why.
    Wait(String),
}

/// Whether a task or a step has done well.
enum Passed {
    Yes,
    /// Not yet.
    Open(String),
    No(String),
}

type Nodes = BTreeMap<String, Node>;

/// Says what is to be done with what a cascade that is over has held back.
pub(super) async fn judge(
    app: &App,
    row: &PromotionRow,
    tests: &[String],
) -> Result<Verdict, StoreError> {
    let nodes = nodes_of(app, row.id).await?;
    if let Some(by) = nodes.values().find_map(|node| match &node.state {
        NodeState::Canceled { by } => Some(by),
        _ => None,
    }) {
        return Ok(Verdict::Drop(format!("its cascade was canceled by {by}")));
    }
    if let Some(below) = stands_on_held(app, row.id, &nodes).await? {
        let why = below.to_string();
        return Ok(match below.dropped {
            true => Verdict::Drop(why),
            false => Verdict::Wait(why),
        });
    }
    let chosen: Vec<(&str, Option<&str>)> = tests
        .iter()
        .filter_map(|test| chosen(test, &nodes))
        .collect();
    let needed: Vec<(&str, Option<&str>)> = if chosen.is_empty() {
        nodes.keys().map(|task| (task.as_str(), None)).collect()
    } else {
        chosen
    };
    let mut waits = None;
    for (task, step) in needed {
        match passed(app, row.id, &nodes, task, step).await? {
            Passed::Yes => {}
            Passed::Open(why) => waits = waits.or(Some(why)),
            // It may be tried again for as long as the cascade is kept for that.
            Passed::No(why) if row.active => return Ok(Verdict::Wait(why)),
            Passed::No(why) => return Ok(Verdict::Drop(why)),
        }
    }
    Ok(waits.map_or(Verdict::Promote, Verdict::Wait))
}

async fn nodes_of(app: &App, id: u64) -> Result<Nodes, StoreError> {
    let mut nodes = Nodes::new();
    for row in app.store.cascade_nodes(id).await? {
        let node = state::node(&row)?;
        nodes.insert(row.task, node);
    }
    Ok(nodes)
}

/// A test as a task of the cascade, and a step of it. The names of tasks may have a slash in them.
fn chosen<'t>(test: &'t str, nodes: &Nodes) -> Option<(&'t str, Option<&'t str>)> {
    if nodes.contains_key(test) {
        return Some((test, None));
    }
    let (task, step) = test.rsplit_once('/')?;
    nodes.contains_key(task).then_some((task, Some(step)))
}

async fn passed(
    app: &App,
    id: u64,
    nodes: &Nodes,
    task: &str,
    step: Option<&str>,
) -> Result<Passed, StoreError> {
    let first = in_one(app, id, nodes.get(task), task, step).await?;
    let Passed::No(why) = first else {
        return Ok(first);
    };
    // Where it was tried again since, that counts.
    let last = app.store.cascade_of_task(task).await?;
    let Some(last) = last.filter(|last| *last > id) else {
        return Ok(Passed::No(why));
    };
    let later = nodes_of(app, last).await?;
    Ok(
        match in_one(app, last, later.get(task), task, step).await? {
            Passed::No(_) => Passed::No(why),
            passed => passed,
        },
    )
}

/// How a task stands in one cascade, or in the one that it was moved to.
async fn in_one(
    app: &App,
    id: u64,
    node: Option<&Node>,
    task: &str,
    step: Option<&str>,
) -> Result<Passed, StoreError> {
    let mut at = id;
    let mut state = node.map(|node| node.state.clone());
    for _ in 0..FOLLOWED {
        let Some(now) = state else {
            return Ok(Passed::No(format!("{task} is in no cascade any more")));
        };
        return Ok(match now {
            NodeState::Succeeded { .. } => match step {
                None => Passed::Yes,
                Some(step) => step_passed(app, at, task, step).await?,
            },
            NodeState::Skipped {
                because: SkippedBecause::Moved { to },
            } => {
                at = to.0;
                let mut nodes = nodes_of(app, at).await?;
                state = nodes.remove(task).map(|node| node.state);
                continue;
            }
            NodeState::Skipped { .. } => Passed::Yes,
            NodeState::Pending | NodeState::Ready { .. } | NodeState::Running { .. } => {
                Passed::Open(format!("{task} is still built, in cascade {at}"))
            }
            NodeState::Failed { reason, .. } => Passed::No(format!("{task} failed: {reason}")),
            NodeState::Canceled { by } => Passed::No(format!("{task} was canceled by {by}")),
            NodeState::Stale { because } => Passed::No(match because {
                StaleBecause::Below { task: below } => {
                    format!("{task} was not built, because {below} was not")
                }
                _ => format!("{task} was not built"),
            }),
        });
    }
    Ok(Passed::No(format!(
        "{task} was moved on through more than {FOLLOWED} cascades"
    )))
}

/// Whether a step of the newest run of a task in a cascade has succeeded.
async fn step_passed(app: &App, id: u64, task: &str, step: &str) -> Result<Passed, StoreError> {
    let runs = app.store.cascade_runs(id).await?;
    let last = runs.into_iter().rfind(|run| run.task == task);
    let Some(last) = last else {
        return Ok(Passed::No(format!("{task} has no run in cascade {id}")));
    };
    let run = match app.store.run(&last.run).await {
        Ok(run) => run,
        Err(StoreError::NotFound { .. }) => {
            return Ok(Passed::No(format!("the run of {task} is gone")));
        }
        Err(error) => return Err(error),
    };
    let steps = run.result.map(|result| result.steps).unwrap_or_default();
    Ok(match steps.iter().find(|found| found.id.as_str() == step) {
        Some(found) if found.state == StepState::Succeeded => Passed::Yes,
        Some(_) => Passed::No(format!("step {step} of {task} has not succeeded")),
        None => Passed::No(format!("{task} has no step {step}")),
    })
}

/// Why nobody may move the tags of a cascade, with what to do first: it stands on images of another one that have none.
pub(super) async fn ungrounded(app: &App, id: u64) -> Result<Option<String>, StoreError> {
    let nodes = nodes_of(app, id).await?;
    let below = stands_on_held(app, id, &nodes).await?;
    Ok(below.map(|below| {
        let first = match below.dropped {
            true => ", and so is what stands on it".to_owned(),
            false => format!(
                "; `acrtask cascade promote {}` lets these go first",
                below.cascade
            ),
        };
        format!("{below}{first}")
    }))
}

/// Images of another cascade that a cascade has been built on, and that have no tags.
struct Below {
    cascade: u64,
    /// One of them. Those of a cascade that were given up come first.
    image: String,
    dropped: bool,
}

impl fmt::Display for Below {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cascade, image, .. } = self;
        match self.dropped {
            true => write!(
                f,
                "it stands on {image} of cascade {cascade}, which was given up"
            ),
            false => write!(f, "it stands on images that cascade {cascade} holds back"),
        }
    }
}

/// What keeps a cascade from being promoted, whatever its own tests say.
async fn stands_on_held(app: &App, id: u64, nodes: &Nodes) -> Result<Option<Below>, StoreError> {
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
        Some(Below {
            cascade,
            image,
            dropped,
        })
    });
    Ok(below.min_by_key(|below| (!below.dropped, below.cascade)))
}
