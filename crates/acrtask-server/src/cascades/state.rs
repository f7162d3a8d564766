//! The state of cascades between the database and the state machine: rows to cascades, and two states to what changed.

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

/// The state as one version of the database has it.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) version: i64,
    pub(super) settings: CascadeSettings,
    pub(super) cascades: Cascades,
    /// Which cascades push without tags, as far as that is decided.
    pub(super) holds: BTreeMap<CascadeId, bool>,
    /// When the clock has something to do, as the last look at it said; nothing before that.
    pub(super) looked: Option<Option<Timestamp>>,
}

impl Loaded {
    /// From rows.
    pub(super) fn new(stored: StoredCascades) -> Result<Self, StoreError> {
        let mut cascades: BTreeMap<u64, Cascade> = BTreeMap::new();
        let mut holds = BTreeMap::new();
        for row in stored.cascades {
            if let Some(held) = row.holds {
                holds.insert(CascadeId(row.id), held);
            }
            cascades.insert(row.id, head(&row)?);
        }
        for row in stored.nodes {
            if let Some(cascade) = cascades.get_mut(&row.cascade) {
                let node = node(&row)?;
                cascade.nodes.insert(row.task, node);
            }
        }
        let attempts: BTreeMap<String, Attempt> = stored
            .attempts
            .into_iter()
            .map(|(task, text)| Ok((task, read(&text)?)))
            .collect::<Result<_, StoreError>>()?;
        Ok(Self {
            version: stored.version,
            settings: settings::parse(stored.settings.as_deref())?,
            cascades: Cascades::from_parts(cascades.into_values().collect(), attempts, stored.next),
            holds,
            looked: None,
        })
    }
}

fn read<T: DeserializeOwned>(text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::Invalid {
        what: format!("what is stored of cascades cannot be read: {error}"),
    })
}

fn written(value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Invalid {
        what: format!("a cascade cannot be written down: {error}"),
    })
}

/// A cascade without its tasks.
pub(super) fn head(row: &CascadeRow) -> Result<Cascade, StoreError> {
    read(&row.head)
}

/// A task of a cascade.
pub(super) fn node(row: &CascadeNodeRow) -> Result<Node, StoreError> {
    read(&row.node)
}

fn row(cascade: &Cascade, holds: Option<bool>, active: bool) -> Result<CascadeRow, StoreError> {
    let (phase, over_at): (_, Option<Ms>) = match &cascade.phase {
        Phase::Settling { .. } => ("settling", None),
        Phase::Active => ("active", None),
        Phase::Canceling { .. } => ("canceling", None),
        Phase::Over { at } => ("over", Some(at.as_millisecond())),
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
        head: written(&head)?,
        waits: cascade.waits_for_approval(),
        holds,
        over_at,
        active,
        promotion: "none".to_owned(),
        promotion_by: None,
        promotion_at: None,
        promotion_error: None,
        promotion_next_at: None,
    })
}

/// A node's state in one word.
pub(super) fn word(state: &NodeState) -> &'static str {
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

/// What has to be written so that the database has `after` in place of `before`. `gone`: cascades that were taken out of
/// `after` and are kept for people.
pub(super) fn difference(
    before: &Loaded,
    after: &Cascades,
    holds: &BTreeMap<CascadeId, bool>,
    gone: &[Cascade],
) -> Result<CascadeChange, StoreError> {
    let mut change = CascadeChange {
        next: after.newest(),
        ..CascadeChange::default()
    };
    let kept = after.iter().map(|cascade| (cascade, true));
    for (cascade, active) in kept.chain(gone.iter().map(|cascade| (cascade, false))) {
        let id = cascade.id;
        let old = before.cascades.get(id);
        let new = row(cascade, holds.get(&id).copied(), active)?;
        let old_row = old
            .map(|old| row(old, before.holds.get(&id).copied(), true))
            .transpose()?;
        if old_row.as_ref() != Some(&new) {
            change.cascades.push(new);
        }
        for (task, node) in &cascade.nodes {
            if old.and_then(|old| old.nodes.get(task)) != Some(node) {
                change.nodes.push(CascadeNodeRow {
                    cascade: id.0,
                    task: task.clone(),
                    state: word(&node.state).to_owned(),
                    node: written(node)?,
                });
            }
        }
    }
    let mut left: BTreeSet<&str> = BTreeSet::new();
    for (task, attempt) in after.attempts() {
        left.insert(task);
        if before.cascades.last_attempt(task) != Some(attempt) {
            let text = written(attempt)?;
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

/// Nothing is to be written.
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
    use crate::api::testing::sha;

    fn loaded(cascades: Cascades) -> Loaded {
        Loaded {
            version: 7,
            settings: CascadeSettings::default(),
            cascades,
            holds: BTreeMap::new(),
            looked: None,
        }
    }

    #[test]
    fn what_is_written_is_what_is_loaded_and_the_same_again_is_nothing() {
        let mut facts = GraphBuilder::default();
        let base = "docker.io/library/base:1".parse().unwrap();
        facts.tag(&base, &sha('9'));
        facts.task(&TaskFacts {
            name: "app".into(),
            policy: Policy::Runtime,
            images: vec![TagFacts {
                image: "r.io/app:1".parse().unwrap(),
                digest: sha('a'),
            }],
            bases: vec![BaseFacts {
                image: base,
                role: BaseRole::Runtime,
                digest: sha('1'),
            }],
            run_ms: Some(5),
        });
        let now = "2026-11-25T12:00:00Z".parse().unwrap();
        let mut after = Cascades::default();
        after.reconcile(&facts.finish(), &Settings::default(), now);
        let holds = BTreeMap::from([(CascadeId(1), true)]);
        let before = loaded(Cascades::default());
        let change = difference(&before, &after, &holds, &[]).unwrap();
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
        assert_eq!(read.holds, holds);
        let again = difference(&read, &after, &holds, &[]).unwrap();
        assert!(is_empty(&again, &read), "{again:?}");
    }
}
