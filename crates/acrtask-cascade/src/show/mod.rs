//! Renderings of a plan: JSON ([`PlanView`]), text for people ([`render_tree`]) and graphviz
//! ([`render_dot`]).
//!
//! [`PlanView`] depends only on the plan and uses names instead of numbers. The other forms depend
//! only on [`PlanView`], so a client that reads the JSON renders the same text.

mod dot;
mod tree;

use acrtask_model::{Digest, events::BaseRole};
use serde::{Deserialize, Serialize};

pub use dot::render_dot;
pub use tree::render_tree;

use crate::plan::{Estimate, NodeId, Pin, PinTo, Plan, Refused, Size};

/// A plan with all names written out, as `cascade plan -o json` prints it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanView {
    /// Bases that moved.
    pub changes: Vec<ChangeView>,
    /// Number of tasks, images and waves.
    pub size: Size,
    /// Estimated duration.
    pub estimate: Estimate,
    /// Tasks in the order of the plan.
    pub nodes: Vec<NodeView>,
    /// Stale tasks that must not be built.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<RefusedView>,
    /// Changed images that no known task uses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown: Vec<String>,
}

/// A base that moved.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChangeView {
    /// Name of the image.
    pub image: String,
    /// Digests that the dependents of the image were built from.
    pub from: Vec<Digest>,
    /// Current digest.
    pub to: Digest,
}

/// A task of a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeView {
    /// Name of the task.
    pub task: String,
    /// Wave of the task, from 0.
    pub wave: usize,
    /// Tasks that this task waits for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<String>,
    /// Images that the task pushes.
    pub images: Vec<ImageView>,
    /// Pinned bases of the task.
    pub pins: Vec<PinView>,
    /// Past run time in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_ms: Option<u64>,
}

/// An image that a task pushes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageView {
    /// Name of the image.
    pub image: String,
    /// Current digest of the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
}

/// Pinned base of a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PinView {
    /// Name of the base.
    pub image: String,
    /// Role of the base in the build.
    pub role: BaseRole,
    /// Digest that the last run used.
    pub from: Digest,
    /// Digest to use, or the task whose output is used.
    #[serde(flatten)]
    pub to: PinToView,
    /// `true` if the base is a reason for the build.
    pub reason: bool,
}

/// Target of a [`PinView`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PinToView {
    /// A digest.
    To(Digest),
    /// The image that this task pushes.
    OutputOf(String),
}

/// A stale task that must not be built.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RefusedView {
    /// Reason as text.
    pub message: String,
    /// Reason as data.
    #[serde(flatten)]
    pub refused: Refused,
}

impl Plan<'_> {
    /// Returns the plan with all names written out and an estimate for `parallel` concurrent runs.
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

    /// Returns the images whose new digests are reasons for the plan, in the order of names.
    ///
    /// Images that the plan itself builds are left out.
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
            for (pin, to) in self.moved_pins(node) {
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

    /// Returns the pins of a node that are reasons because a digest moved.
    fn moved_pins(&self, node: NodeId) -> impl Iterator<Item = (Pin, crate::plan::DigestId)> {
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
            after: names(self.parents(node)),
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
