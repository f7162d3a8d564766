//! Conversion between stored rows and the state machine, and computation of the changes between two
//! states.

use std::collections::{BTreeMap, BTreeSet};

use acrtask_api::cascade::CascadeSettings;
use acrtask_cascade::{
    Cascades,
    cascade::{Attempt, Cascade, CascadeId, Node, NodeState, Phase},
};
use acrtask_store::{CascadeChange, CascadeNodeRow, CascadeRow, Ms, StoreError, StoredCascades};
use jiff::Timestamp;
use serde::{Serialize, de::DeserializeOwned};

use super::settings;

/// State of one stored version.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) version: i64,
    pub(super) settings: CascadeSettings,
    pub(super) cascades: Cascades,
    /// Cascades that push by digest (`true`) or by tag (`false`), as far as decided.
    pub(super) stages: BTreeMap<CascadeId, bool>,
    /// Time of the next pass, as computed by the last one. `None` before the first pass.
    pub(super) next_wake: Option<Option<Timestamp>>,
}

impl Loaded {
    /// Converts stored rows.
    pub(super) fn new(stored: StoredCascades) -> Result<Self, StoreError> {
        let mut cascades: BTreeMap<u64, Cascade> = BTreeMap::new();
        let mut stages = BTreeMap::new();
        for row in stored.cascades {
            if let Some(stage) = row.stages_images {
                stages.insert(CascadeId(row.id), stage);
            }
            cascades.insert(row.id, parse_head(&row)?);
        }
        for row in stored.nodes {
            if let Some(cascade) = cascades.get_mut(&row.cascade) {
                let node = parse_node(&row)?;
                cascade.nodes.insert(row.task, node);
            }
        }
        let attempts: BTreeMap<String, Attempt> = stored
            .attempts
            .into_iter()
            .map(|(task, text)| Ok((task, parse_json(&text)?)))
            .collect::<Result<_, StoreError>>()?;
        Ok(Self {
            version: stored.version,
            settings: settings::parse(stored.settings.as_deref())?,
            cascades: Cascades::from_parts(cascades.into_values().collect(), attempts, stored.next),
            stages,
            next_wake: None,
        })
    }
}

fn parse_json<T: DeserializeOwned>(text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::Invalid {
        what: format!("cannot read stored cascades: {error}"),
    })
}

fn to_json(value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Invalid {
        what: format!("cannot serialize a cascade: {error}"),
    })
}

/// Parses a cascade without its nodes.
pub(super) fn parse_head(row: &CascadeRow) -> Result<Cascade, StoreError> {
    parse_json(&row.head)
}

/// Parses a node of a cascade.
pub(super) fn parse_node(row: &CascadeNodeRow) -> Result<Node, StoreError> {
    parse_json(&row.node)
}

fn to_row(cascade: &Cascade, stages: Option<bool>, active: bool) -> Result<CascadeRow, StoreError> {
    let (phase, finished_at): (_, Option<Ms>) = match &cascade.phase {
        Phase::Settling { .. } => ("settling", None),
        Phase::Active => ("active", None),
        Phase::Canceling { .. } => ("canceling", None),
        Phase::Finished { at } => ("finished", Some(at.as_millisecond())),
    };
    let head = Cascade {
        id: cascade.id,
        created: cascade.created,
        phase: cascade.phase.clone(),
        paused: cascade.paused,
        approved: cascade.approved,
        follows: cascade.follows,
        changes: cascade.changes.clone(),
        nodes: BTreeMap::new(),
    };
    Ok(CascadeRow {
        id: cascade.id.0,
        created_at: cascade.created.as_millisecond(),
        phase: phase.to_owned(),
        follows: cascade.follows.map(|id| id.0),
        head: to_json(&head)?,
        awaiting_approval: cascade.is_awaiting_approval(),
        stages_images: stages,
        finished_at,
        active,
        promotion: "none".to_owned(),
        promotion_by: None,
        promotion_at: None,
        promotion_error: None,
        promotion_next_at: None,
    })
}

/// Returns the name of a node's state.
pub(super) fn state_name(state: &NodeState) -> &'static str {
    match state {
        NodeState::Pending => "pending",
        NodeState::Ready { .. } => "ready",
        NodeState::Running { .. } => "running",
        NodeState::Succeeded { .. } => "succeeded",
        NodeState::Failed { .. } => "failed",
        NodeState::Stale { .. } => "stale",
        NodeState::Skipped { .. } => "skipped",
        NodeState::Canceled { .. } => "canceled",
    }
}

/// Returns the changes to store so that the database contains `after` instead of `before`.
///
/// `archived` contains cascades that were removed from `after` and stay in the database.
pub(super) fn diff_states(
    before: &Loaded,
    after: &Cascades,
    stages: &BTreeMap<CascadeId, bool>,
    archived: &[Cascade],
) -> Result<CascadeChange, StoreError> {
    let mut change = CascadeChange {
        next: after.newest(),
        ..CascadeChange::default()
    };
    let active = after.iter().map(|cascade| (cascade, true));
    for (cascade, active) in active.chain(archived.iter().map(|cascade| (cascade, false))) {
        let id = cascade.id;
        let old = before.cascades.get(id);
        let new = to_row(cascade, stages.get(&id).copied(), active)?;
        let old_row = old
            .map(|old| to_row(old, before.stages.get(&id).copied(), true))
            .transpose()?;
        if old_row.as_ref() != Some(&new) {
            change.cascades.push(new);
        }
        for (task, node) in &cascade.nodes {
            if old.and_then(|old| old.nodes.get(task)) != Some(node) {
                change.nodes.push(CascadeNodeRow {
                    cascade: id.0,
                    task: task.clone(),
                    state: state_name(&node.state).to_owned(),
                    node: to_json(node)?,
                });
            }
        }
    }
    let mut left: BTreeSet<&str> = BTreeSet::new();
    for (task, attempt) in after.attempts() {
        left.insert(task);
        if before.cascades.last_attempt(task) != Some(attempt) {
            let text = to_json(attempt)?;
            change.attempts.push((task.to_owned(), Some(text)));
        }
    }
    for (task, _) in before.cascades.attempts() {
        if !left.contains(task) {
            change.attempts.push((task.to_owned(), None));
        }
    }
    Ok(change)
}

/// Returns `true` if there is nothing to store.
pub(super) fn is_empty(change: &CascadeChange, before: &Loaded) -> bool {
    change.next == before.cascades.newest()
        && change.settings.is_none()
        && change.cascades.is_empty()
        && change.nodes.is_empty()
        && change.attempts.is_empty()
        && change.runs.is_empty()
        && change.cancels.is_empty()
        && change.seen.is_empty()
}

#[cfg(test)]
mod tests {
    use acrtask_cascade::{
        GraphBuilder,
        cascade::Settings,
        graph::{BaseFacts, Policy, TagFacts, TaskFacts},
    };
    use acrtask_model::events::BaseRole;

    use super::*;
    use crate::api::testing::letter_digest;

    fn loaded(cascades: Cascades) -> Loaded {
        Loaded {
            version: 7,
            settings: CascadeSettings::default(),
            cascades,
            stages: BTreeMap::new(),
            next_wake: None,
        }
    }

    #[test]
    fn stored_state_is_restored_without_differences() {
        let mut facts = GraphBuilder::default();
        let base = "docker.io/library/base:1".parse().unwrap();
        facts.set_digest(&base, &letter_digest('9'));
        facts.add_task(&TaskFacts {
            name: "app".into(),
            policy: Policy::Runtime,
            images: vec![TagFacts {
                image: "r.io/app:1".parse().unwrap(),
                digest: letter_digest('a'),
            }],
            bases: vec![BaseFacts {
                image: base,
                role: BaseRole::Runtime,
                digest: letter_digest('1'),
            }],
            run_ms: Some(5),
        });
        let now = "2026-11-25T12:00:00Z".parse().unwrap();
        let mut after = Cascades::default();
        after.reconcile(&facts.finish(), &Settings::default(), now);
        let stages = BTreeMap::from([(CascadeId(1), true)]);
        let before = loaded(Cascades::default());
        let change = diff_states(&before, &after, &stages, &[]).unwrap();
        assert_eq!(
            (change.next, change.cascades.len(), change.nodes.len()),
            (1, 1, 1)
        );
        let stored = StoredCascades {
            version: 8,
            next: change.next,
            settings: None,
            cascades: change.cascades,
            nodes: change.nodes,
            attempts: Vec::new(),
        };
        let read = Loaded::new(stored).unwrap();
        assert_eq!(read.cascades, after);
        assert_eq!(read.stages, stages);
        let again = diff_states(&read, &after, &stages, &[]).unwrap();
        assert!(is_empty(&again, &read), "{again:?}");
    }
}
