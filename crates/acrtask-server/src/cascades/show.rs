//! API views of cascades. Each view needs a constant number of database statements.

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
    state::{self, state_name},
    why::Explainer,
};
use crate::App;

/// Filter for a list of cascades.
#[derive(Debug, Clone, Default)]
pub struct ListFilter {
    /// Only cascades with numbers below this one.
    pub before: Option<u64>,
    /// Only unfinished cascades.
    pub open: bool,
    /// Only cascades that contain or contained the task with this name.
    pub task: Option<String>,
    /// Only cascades that contain or contained a task with this name prefix.
    pub task_prefix: Option<String>,
    /// Maximum number of cascades.
    pub limit: u32,
}

/// Returns cascades, the newest first.
///
/// # Errors
/// The database failed.
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
        let counts = counts.entry(id).or_default();
        let state = parse_node_state(&state)?;
        *count_field(counts, state) = u32::try_from(tasks).unwrap_or(u32::MAX);
    }
    rows.iter()
        .map(|row| {
            let head = state::parse_head(row)?;
            to_summary(row, &head, counts.remove(&row.id).unwrap_or_default())
        })
        .collect()
}

fn count_field(counts: &mut CascadeCounts, state: CascadeNodeState) -> &mut u32 {
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

/// Returns a cascade with its nodes and images.
///
/// # Errors
/// `NotFound` if the cascade does not exist. Other errors if the database failed.
pub async fn show(app: &App, id: u64) -> Result<CascadeDetail, StoreError> {
    let store = &app.store;
    let row = store.cascade(id).await?;
    let mut cascade = state::parse_head(&row)?;
    for row in store.cascade_nodes(id).await? {
        let node = state::parse_node(&row)?;
        cascade.nodes.insert(row.task, node);
    }
    // The rows are sorted, so the newest run of each task wins.
    let runs: HashMap<String, CascadeRunRow> = store
        .cascade_runs(id)
        .await?
        .into_iter()
        .map(|run| (run.task.clone(), run))
        .collect();
    let times = store.cascade_run_times(id).await?;
    let now = app.clock.now();
    let settings = settings::settings_at(&settings::read_settings(app).await?, now);
    let explainer = Explainer {
        cascade: &cascade,
        settings: &settings,
        now,
    };
    let built = built_images(&cascade);
    let mut counts = CascadeCounts::default();
    let mut nodes = Vec::with_capacity(cascade.nodes.len());
    for (task, node) in &cascade.nodes {
        let state = parse_node_state(state_name(&node.state))?;
        counts.add(state);
        let run = runs.get(task);
        let ms = times.get(task).and_then(|ms| u64::try_from(*ms).ok());
        nodes.push(CascadeNode {
            task: task.clone(),
            state,
            reason: explainer.explain(node, run),
            after: awaited_tasks(task, node, &built),
            run: run.map(|run| run.run.clone()),
            attempts: node.attempts,
            images: pushed_images(node),
            pins: final_pins(&cascade, node),
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
                    .ok_or_else(|| unknown_state(&image.state))?,
                reason: image.error,
            })
        })
        .collect::<Result<_, StoreError>>()?;
    Ok(CascadeDetail {
        summary: to_summary(&row, &cascade, counts)?,
        nodes,
        images,
    })
}

fn unknown_state(word: &str) -> StoreError {
    StoreError::Invalid {
        what: format!("`{word}` is not a state of a cascade"),
    }
}

fn parse_node_state(text: &str) -> Result<CascadeNodeState, StoreError> {
    CascadeNodeState::parse(text).ok_or_else(|| unknown_state(text))
}

fn to_summary(
    row: &CascadeRow,
    head: &Cascade,
    counts: CascadeCounts,
) -> Result<CascadeSummary, StoreError> {
    let wanted: CascadePromotion =
        serde_json::from_value(serde_json::Value::from(row.promotion.as_str()))
            .map_err(|_| unknown_state(&row.promotion))?;
    let (promotion, promotion_note) = reached_promotion(row, wanted);
    Ok(CascadeSummary {
        id: row.id,
        phase: CascadePhase::parse(&row.phase).ok_or_else(|| unknown_state(&row.phase))?,
        paused: head.paused,
        approved: head.approved,
        awaiting_approval: row.awaiting_approval,
        created_at: head.created,
        settles_at: match head.phase {
            Phase::Settling { until } => Some(until),
            _ => None,
        },
        finished_at: row.finished_at.map(timestamp),
        follows: row.follows,
        changes: head
            .changes
            .iter()
            .map(|(image, digest)| (image.to_string(), digest.clone()))
            .collect(),
        counts,
        stages_images: row.stages_images == Some(true),
        promotion,
        promotion_note,
    })
}

/// Returns the reached promotion state and a note.
///
/// Until the tags have moved, returns the previous state and the reason for the delay.
fn reached_promotion(
    row: &CascadeRow,
    wanted: CascadePromotion,
) -> (CascadePromotion, Option<String>) {
    let error = row.promotion_error.clone();
    if row.promotion_next_at.is_none() {
        return (wanted, error);
    }
    let (before, doing) = match wanted {
        CascadePromotion::Promoted => (CascadePromotion::Staged, "moving its tags"),
        CascadePromotion::RolledBack if row.stages_images == Some(true) => {
            (CascadePromotion::Promoted, "restoring its tags")
        }
        _ => (CascadePromotion::None, "restoring its tags"),
    };
    let note = match error {
        Some(error) => format!("{doing}; retrying after an error: {error}"),
        None => doing.to_owned(),
    };
    (before, Some(note))
}

/// Returns the images that tasks of a cascade have pushed, with the task of each.
fn built_images(cascade: &Cascade) -> HashMap<String, &str> {
    let mut built = HashMap::new();
    for (task, node) in &cascade.nodes {
        if let NodeState::Succeeded { digests } = &node.state {
            built.extend(digests.keys().map(|image| (image.to_string(), &**task)));
        }
    }
    built
}

/// Returns the tasks that a node waits or waited for. After these have pushed, the node is pinned
/// to their digests.
fn awaited_tasks(task: &str, node: &Node, built: &HashMap<String, &str>) -> Vec<String> {
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

fn pushed_images(node: &Node) -> Vec<PushedImage> {
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

/// Returns the pinned digests of a node's bases, as far as they are final.
fn final_pins(cascade: &Cascade, node: &Node) -> BTreeMap<String, Digest> {
    if let NodeState::Ready { pins, .. } | NodeState::Running { pins, .. } = &node.state {
        return pins
            .iter()
            .map(|(image, digest)| (image.to_string(), digest.clone()))
            .collect();
    }
    let mut found = BTreeMap::new();
    for base in &node.bases {
        let parent = cascade.parent_of(base);
        // The digest of another cascade's task is final once this node has settled.
        let waits = match (&base.pin, parent) {
            (NodePin::Digest(_), _) => false,
            (NodePin::Output { .. }, Some(state)) => state.is_open(),
            (NodePin::Output { .. }, None) => node.state.is_open(),
        };
        if !waits {
            let digest = base.resolved_digest(parent).clone();
            found.insert(base.image.to_string(), digest);
        }
    }
    found
}
