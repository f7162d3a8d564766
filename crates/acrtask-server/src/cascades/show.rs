//! Cascades as people see them: rows of the database, with what they mean. A few statements each, whatever their size.

use std::collections::{BTreeMap, HashMap};

use acrtask_api::cascade::{
    CascadeCounts, CascadeDetail, CascadeImage, CascadeImageState, CascadeNode, CascadeNodeState,
    CascadePhase, CascadePromotion, CascadeSummary, PushedImage,
};
use acrtask_cascade::cascade::{Cascade, Node, NodePin, NodeState, Phase};
use acrtask_model::Digest;
use acrtask_store::{CascadeFilter, CascadeRow, CascadeRunRow, StoreError, timestamp};

use super::{
    settings,
    state::{self, word},
    why::Around,
};
use crate::App;

/// Which cascades a list shows.
#[derive(Debug, Clone, Default)]
pub struct ListFilter {
    /// Only numbers below this one.
    pub before: Option<u64>,
    /// Only those that are not over.
    pub open: bool,
    /// Only those that have, or had, something to do with the task of this name.
    pub task: Option<String>,
    /// The same of a task whose name begins so.
    pub task_prefix: Option<String>,
    /// At most so many.
    pub limit: u32,
}

/// Cascades, the newest first.
///
/// # Errors
/// When the database cannot be used.
pub async fn list(app: &App, filter: ListFilter) -> Result<Vec<CascadeSummary>, StoreError> {
    let rows = app
        .store
        .cascades(CascadeFilter {
            before: filter.before,
            open: filter.open,
            task: filter.task,
            task_prefix: filter.task_prefix,
            limit: filter.limit,
        })
        .await?;
    let ids = rows.iter().map(|row| row.id).collect();
    let mut counts: HashMap<u64, CascadeCounts> = HashMap::new();
    for (id, state, tasks) in app.store.cascade_node_counts(ids).await? {
        let of = counts.entry(id).or_default();
        let state = node_state(&state)?;
        *field(of, state) = u32::try_from(tasks).unwrap_or(u32::MAX);
    }
    rows.iter()
        .map(|row| {
            let head = state::head(row)?;
            summary(row, &head, counts.remove(&row.id).unwrap_or_default())
        })
        .collect()
}

fn field(counts: &mut CascadeCounts, state: CascadeNodeState) -> &mut u32 {
    match state {
        CascadeNodeState::Pending => &mut counts.pending,
        CascadeNodeState::Ready => &mut counts.ready,
        CascadeNodeState::Running => &mut counts.running,
        CascadeNodeState::Succeeded => &mut counts.succeeded,
        CascadeNodeState::Failed => &mut counts.failed,
        CascadeNodeState::Stale => &mut counts.stale,
        CascadeNodeState::Skipped => &mut counts.skipped,
        CascadeNodeState::Canceled => &mut counts.canceled,
    }
}

/// A cascade with all that is known of it.
///
/// # Errors
/// `NotFound` where there is none; when the database cannot be used.
pub async fn show(app: &App, id: u64) -> Result<CascadeDetail, StoreError> {
    let store = &app.store;
    let row = store.cascade(id).await?;
    let mut cascade = state::head(&row)?;
    for row in store.cascade_nodes(id).await? {
        let node = state::node(&row)?;
        cascade.nodes.insert(row.task, node);
    }
    // The newest run of each task comes last.
    let runs: HashMap<String, CascadeRunRow> = store
        .cascade_runs(id)
        .await?
        .into_iter()
        .map(|run| (run.task.clone(), run))
        .collect();
    let times = store.cascade_run_times(id).await?;
    let now = app.clock.now();
    let settings = settings::at(&settings::settings(app).await?, now);
    let around = Around {
        cascade: &cascade,
        settings: &settings,
        now,
    };
    let built = built(&cascade);
    let mut counts = CascadeCounts::default();
    let mut nodes = Vec::with_capacity(cascade.nodes.len());
    for (task, node) in &cascade.nodes {
        let state = node_state(word(&node.state))?;
        counts.add(state);
        let run = runs.get(task);
        let ms = times.get(task).and_then(|ms| u64::try_from(*ms).ok());
        nodes.push(CascadeNode {
            task: task.clone(),
            state,
            why: around.why(node, run),
            after: after(task, node, &built),
            run: run.map(|run| run.run.clone()),
            attempts: node.attempts,
            images: images(node),
            pins: pins(&cascade, node),
            started_at: run.and_then(|run| run.started_at).map(timestamp),
            ended_at: run.and_then(|run| run.finished_at).map(timestamp),
            estimate_ms: ms,
        });
    }
    let images = store
        .cascade_images(id)
        .await?
        .into_iter()
        .map(|image| {
            Ok(CascadeImage {
                name: image.name,
                before: image.before,
                after: image.after,
                state: CascadeImageState::parse(&image.state)
                    .ok_or_else(|| unknown(&image.state))?,
                why: image.error,
            })
        })
        .collect::<Result<_, StoreError>>()?;
    Ok(CascadeDetail {
        summary: summary(&row, &cascade, counts)?,
        nodes,
        images,
    })
}

fn unknown(word: &str) -> StoreError {
    StoreError::Invalid {
        what: format!("nothing of a cascade can be `{word}`"),
    }
}

fn node_state(text: &str) -> Result<CascadeNodeState, StoreError> {
    CascadeNodeState::parse(text).ok_or_else(|| unknown(text))
}

fn summary(
    row: &CascadeRow,
    head: &Cascade,
    counts: CascadeCounts,
) -> Result<CascadeSummary, StoreError> {
    let wanted: CascadePromotion =
        serde_json::from_value(serde_json::Value::from(row.promotion.as_str()))
            .map_err(|_| unknown(&row.promotion))?;
    let (promotion, promotion_note) = reached(row, wanted);
    Ok(CascadeSummary {
        id: row.id,
        phase: CascadePhase::parse(&row.phase).ok_or_else(|| unknown(&row.phase))?,
        paused: head.paused,
        approved: head.approved,
        waits_for_approval: row.waits,
        created: head.created,
        settles_at: match head.phase {
            Phase::Settling { until } => Some(until),
            _ => None,
        },
        over_at: row.over_at.map(timestamp),
        follows: row.follows,
        changes: head
            .changes
            .iter()
            .map(|(image, digest)| (image.to_string(), digest.clone()))
            .collect(),
        counts,
        holds: row.holds == Some(true),
        promotion,
        promotion_note,
    })
}

/// What is wanted of its tags is said once it is done; until then what was before, and why it is not done.
fn reached(row: &CascadeRow, wanted: CascadePromotion) -> (CascadePromotion, Option<String>) {
    let error = row.promotion_error.clone();
    if row.promotion_next_at.is_none() {
        return (wanted, error);
    }
    let (before, doing) = match wanted {
        CascadePromotion::Promoted => (CascadePromotion::Held, "its tags are being moved"),
        CascadePromotion::RolledBack if row.holds == Some(true) => {
            (CascadePromotion::Promoted, "its tags are being put back")
        }
        _ => (CascadePromotion::None, "its tags are being put back"),
    };
    let note = match error {
        Some(error) => format!("{doing}, which has to be tried again: {error}"),
        None => doing.to_owned(),
    };
    (before, Some(note))
}

/// The images that tasks of a cascade have pushed, with their tasks.
fn built(cascade: &Cascade) -> HashMap<String, &str> {
    let mut built = HashMap::new();
    for (task, node) in &cascade.nodes {
        if let NodeState::Succeeded { digests } = &node.state {
            built.extend(digests.keys().map(|image| (image.to_string(), &**task)));
        }
    }
    built
}

/// The tasks that a node waits for, or has waited for: once they have pushed, their digests are what it is fixed to.
fn after(task: &str, node: &Node, built: &HashMap<String, &str>) -> Vec<String> {
    let mut after: Vec<String> = node
        .bases
        .iter()
        .filter_map(|base| match &base.pin {
            NodePin::Output { task, .. } => Some(task.clone()),
            NodePin::Digest(_) => {
                let parent = built.get(&base.image.to_string())?;
                (*parent != task).then(|| (*parent).to_owned())
            }
        })
        .collect();
    after.sort();
    after.dedup();
    after
}

fn images(node: &Node) -> Vec<PushedImage> {
    let NodeState::Succeeded { digests } = &node.state else {
        return Vec::new();
    };
    digests
        .iter()
        .map(|(image, digest)| PushedImage {
            name: image.to_string(),
            digest: digest.clone(),
        })
        .collect()
}

/// What the bases of a node are fixed to, as far as that is known.
fn pins(cascade: &Cascade, node: &Node) -> BTreeMap<String, Digest> {
    if let NodeState::Ready { pins, .. } | NodeState::Running { pins, .. } = &node.state {
        return pins
            .iter()
            .map(|(image, digest)| (image.to_string(), digest.clone()))
            .collect();
    }
    let mut found = BTreeMap::new();
    for base in &node.bases {
        let parent = cascade.parent_of(base);
        // Of a task of another cascade it is known once this one is at rest.
        let waits = match (&base.pin, parent) {
            (NodePin::Digest(_), _) => false,
            (NodePin::Output { .. }, Some(state)) => state.is_open(),
            (NodePin::Output { .. }, None) => node.state.is_open(),
        };
        if !waits {
            let digest = base.fixed_by(parent).clone();
            found.insert(base.image.to_string(), digest);
        }
    }
    found
}
