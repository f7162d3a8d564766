//! A plan as others read it: JSON ([`PlanView`]), text for a person ([`tree`]), and graphviz ([`dot`]).
//!
//! The first is a function of the plan alone, with names in place of numbers; the others are functions of the first, so
//! that whoever read it as JSON shows the same.

mod dot;
mod tree;

use acrtask_model::{Digest, events::BaseRole};
use serde::{Deserialize, Serialize};

pub use dot::dot;
pub use tree::tree;

use crate::plan::{Estimate, NodeId, Pin, PinTo, Plan, Refused, Size};

/// A plan with everything written out: what `cascade plan -o json` prints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanView {
    /// The bases that moved.
    pub changes: Vec<ChangeView>,
    /// How much is built.
    pub size: Size,
    /// How long it will take.
    pub estimate: Estimate,
    /// The tasks in the order of the plan.
    pub nodes: Vec<NodeView>,
    /// Stale tasks that may not be built.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<RefusedView>,
    /// Changed images that nothing is known to stand on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown: Vec<String>,
}

/// A base that moved.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChangeView {
    /// The image.
    pub image: String,
    /// What stands on it used these.
    pub from: Vec<Digest>,
    /// What it has now.
    pub to: Digest,
}

/// A task of a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeView {
    /// Its name.
    pub task: String,
    /// Its wave, from 0.
    pub wave: usize,
    /// The tasks that it waits for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<String>,
    /// The images that it pushes.
    pub images: Vec<ImageView>,
    /// What its bases are fixed to.
    pub pins: Vec<PinView>,
    /// Past run time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_ms: Option<u64>,
}

/// An image that a task pushes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageView {
    /// The image.
    pub image: String,
    /// The digest it has now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
}

/// What a base is fixed to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PinView {
    /// The base.
    pub image: String,
    /// What it is to the task.
    pub role: BaseRole,
    /// What was used last time.
    pub from: Digest,
    /// A digest, or a task whose output it will be.
    #[serde(flatten)]
    pub to: PinToView,
    /// It is a reason for the build.
    pub reason: bool,
}

/// See [`PinView`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PinToView {
    /// This digest.
    To(Digest),
    /// What this task pushes.
    OutputOf(String),
}

/// A task that may not be built.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RefusedView {
    /// In words.
    pub message: String,
    /// In parts.
    #[serde(flatten)]
    pub refused: Refused,
}

impl Plan<'_> {
    /// Everything written out, with an estimate for so many runs side by side.
    pub fn view(&self, parallel: usize) -> PlanView {
        PlanView {
            changes: self.change_views(),
            size: self.size(),
            estimate: self.estimate(parallel),
            nodes: self.nodes().map(|node| self.node_view(node)).collect(),
            refused: self
                .refused()
                .iter()
                .map(|refused| RefusedView {
                    message: refused.to_string(),
                    refused: refused.clone(),
                })
                .collect(),
            unknown: self.unknown().iter().map(ToString::to_string).collect(),
        }
    }

    /// The images whose digests, not any build of the plan, are reasons for it, in the order of names.
    fn change_views(&self) -> Vec<ChangeView> {
        let mut found: Vec<ChangeView> = Vec::new();
        let mut at = std::collections::BTreeMap::new();
        for (image, to) in self.changes() {
            at.insert(image, found.len());
            found.push(ChangeView {
                image: self.graph().image_name(image).to_owned(),
                from: Vec::new(),
                to: self.digest(to),
            });
        }
        for node in self.nodes() {
            for (pin, to) in self.moved(node) {
                let index = *at.entry(pin.image).or_insert_with(|| {
                    found.push(ChangeView {
                        image: self.graph().image_name(pin.image).to_owned(),
                        from: Vec::new(),
                        to: self.digest(to),
                    });
                    found.len() - 1
                });
                let from = self.digest(pin.used);
                if !found[index].from.contains(&from) {
                    found[index].from.push(from);
                }
            }
        }
        for change in &mut found {
            change.from.sort();
        }
        found.sort();
        found
    }

    /// The pins of a node that are reasons because a digest moved.
    fn moved(&self, node: NodeId) -> impl Iterator<Item = (Pin, crate::plan::DigestId)> {
        self.pins(node).filter_map(|pin| match pin.to {
            PinTo::Digest(to) if pin.is_reason() => Some((pin, to)),
            _ => None,
        })
    }

    fn node_view(&self, node: NodeId) -> NodeView {
        let graph = self.graph();
        let names = |nodes: Vec<NodeId>| {
            nodes
                .into_iter()
                .map(|node| self.name(node).to_owned())
                .collect()
        };
        NodeView {
            task: self.name(node).to_owned(),
            wave: self.wave(node),
            after: names(self.after(node)),
            images: graph
                .images_of(self.task(node))
                .map(|image| ImageView {
                    image: graph.image_name(image).to_owned(),
                    digest: graph.digest_now(image),
                })
                .collect(),
            pins: self
                .pins(node)
                .map(|pin| PinView {
                    image: graph.image_name(pin.image).to_owned(),
                    role: pin.role,
                    from: self.digest(pin.used),
                    to: match pin.to {
                        PinTo::Digest(digest) => PinToView::To(self.digest(digest)),
                        PinTo::Output(parent) => PinToView::OutputOf(self.name(parent).to_owned()),
                    },
                    reason: pin.is_reason(),
                })
                .collect(),
            run_ms: self.run_ms(node),
        }
    }
}
