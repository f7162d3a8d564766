//! Explanation of a node's state in one sentence that follows the name of the state. Pure.

use acrtask_cascade::cascade::{
    AttemptEnd, Cascade, Gate, Node, NodePin, NodeState, Phase, Settings, SkipCause, StaleCause,
};
use acrtask_store::CascadeRunRow;
use jiff::Timestamp;

/// Input of the explanations.
pub(super) struct Explainer<'a> {
    /// Cascade with its nodes.
    pub(super) cascade: &'a Cascade,
    pub(super) settings: &'a Settings,
    pub(super) now: Timestamp,
}

impl Explainer<'_> {
    /// Returns the explanation of a node's state. `None` if the state needs none.
    pub(super) fn explain(&self, node: &Node, run: Option<&CascadeRunRow>) -> Option<String> {
        Some(match &node.state {
            NodeState::Pending => self.explain_pending(node, run),
            NodeState::Ready { not_before, .. } => self.explain_ready(node, *not_before, run),
            NodeState::Running { .. } => {
                let run = run?;
                match superseded_text(run) {
                    Some(why) => format!("{why}; waiting for that run"),
                    None if run.started_at.is_none() => {
                        format!("its run {} waits in the queue", run.run)
                    }
                    None => return None,
                }
            }
            NodeState::Succeeded { .. } => return None,
            NodeState::Failed { reason, again } => match again.filter(|at| *at > self.now) {
                Some(at) => format!("{reason}; retry at {at}"),
                None => reason.clone(),
            },
            NodeState::Stale { cause } => explain_stale(cause),
            NodeState::Skipped { cause } => match cause {
                SkipCause::Unchanged => "its rebuilt bases have the same digests as before".into(),
                SkipCause::Fresh => "it became fresh in the meantime".into(),
                SkipCause::Moved { to } => format!("it is built in cascade {to}"),
            },
            NodeState::Canceled { by } => format!("canceled by {by}"),
        })
    }

    /// Returns the reason why the whole cascade does not continue.
    fn halt_reason(&self) -> Option<String> {
        match &self.cascade.phase {
            Phase::Settling { until } => Some(format!("collecting further changes until {until}")),
            _ if self.cascade.paused => Some(format!(
                "the cascade is paused; continue it with `acrtask cascade resume {}`",
                self.cascade.id
            )),
            _ => None,
        }
    }

    fn explain_pending(&self, node: &Node, run: Option<&CascadeRunRow>) -> String {
        let mut waits: Vec<String> = Vec::new();
        for base in &node.bases {
            let NodePin::Output { task, cascade, .. } = &base.pin else {
                continue;
            };
            let name = if *cascade == self.cascade.id {
                let open = self.cascade.nodes.get(task);
                if open.is_some_and(|node| !node.state.is_open()) {
                    continue;
                }
                task.clone()
            } else {
                format!("{task} in cascade {cascade}")
            };
            if !waits.contains(&name) {
                waits.push(name);
            }
        }
        match (waits.is_empty(), self.halt_reason()) {
            (false, _) => format!("waits for {}", waits.join(", ")),
            (true, Some(halted)) => halted,
            (true, None) => match run.and_then(superseded_text) {
                Some(why) => format!("{why}; checking whether that run built it"),
                None => "it is still running in another cascade".into(),
            },
        }
    }

    fn explain_ready(
        &self,
        node: &Node,
        not_before: Option<Timestamp>,
        run: Option<&CascadeRunRow>,
    ) -> String {
        if let Some(halted) = self.halt_reason() {
            return halted;
        }
        match &node.gate {
            Gate::Approval if !self.cascade.approved => {
                return format!(
                    "waits for approval: `acrtask cascade approve {}`",
                    self.cascade.id
                );
            }
            Gate::Canary { first } => {
                let open: Vec<&str> = first
                    .iter()
                    .filter(|task| {
                        let canary = self.cascade.nodes.get(*task);
                        canary.is_some_and(|node| node.state.is_open())
                    })
                    .map(String::as_str)
                    .collect();
                if !open.is_empty() {
                    return format!("waits for canary tasks: {}", open.join(", "));
                }
            }
            _ => {}
        }
        if let Some(at) = not_before.filter(|at| *at > self.now) {
            let failed = run.and_then(|run| run.reason.as_deref());
            let cause = failed.map_or(String::new(), |reason| format!(", after: {reason}"));
            return format!("retry at {at}{cause}");
        }
        if let Some(until) = self.settings.quiet_until(self.now) {
            return format!("quiet hours last until {until}");
        }
        "waits for a free slot among the cascade's runs".into()
    }
}

/// Returns why a newer run replaces this one. A run of another task is not named.
fn superseded_text(run: &CascadeRunRow) -> Option<String> {
    run.superseded_by.as_ref()?;
    let reason = run.reason.as_deref().unwrap_or("superseded by a newer run");
    Some(format!("its run {} was {reason}", run.run))
}

fn explain_stale(cause: &StaleCause) -> String {
    match cause {
        StaleCause::Below { task } => format!("its base task {task} was not built"),
        StaleCause::Canary { task } => format!("the canary {task} was not built"),
        StaleCause::Tried { end } => {
            let ended = match end {
                AttemptEnd::Succeeded => "it succeeded, but its images still use other digests",
                AttemptEnd::Failed => "it failed",
                AttemptEnd::Canceled => "it was canceled",
                AttemptEnd::CanaryFailed => "a canary was not built",
            };
            format!("a run for the same digests was tried before: {ended}")
        }
        StaleCause::Refused => {
            "it would rebuild its own base forever, or another task pushes its image; \
             `acrtask cascade plan` shows which"
                .into()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use acrtask_cascade::cascade::{CascadeId, Key, NodeBase};

    use super::*;
    use crate::api::testing::letter_digest;

    fn node(state: NodeState) -> Node {
        Node {
            state,
            bases: vec![NodeBase {
                image: "r.io/base:1".parse().unwrap(),
                counted: true,
                used: letter_digest('1'),
                pin: NodePin::Output {
                    task: "base".into(),
                    cascade: CascadeId(3),
                    otherwise: letter_digest('1'),
                },
            }],
            gate: Gate::Open,
            chain_ms: 1,
            attempts: 1,
            failures: 0,
            moved: 0,
            outdated: false,
        }
    }

    #[test]
    fn waiting_node_names_what_it_waits_for() {
        let now: Timestamp = "2026-11-25T12:00:00Z".parse().unwrap();
        let later: Timestamp = "2026-11-25T12:01:00Z".parse().unwrap();
        let mut cascade = Cascade {
            id: CascadeId(3),
            created: now,
            phase: Phase::Active,
            paused: false,
            approved: false,
            follows: None,
            changes: BTreeMap::new(),
            nodes: BTreeMap::from([("base".to_owned(), node(NodeState::Pending))]),
        };
        let settings = Settings::default();
        let ready = |not_before| {
            node(NodeState::Ready {
                pins: BTreeMap::new(),
                key: Key::compute("a", &BTreeMap::new()),
                not_before,
            })
        };
        let failed = |again| {
            let reason = "exit code 1".into();
            node(NodeState::Failed { reason, again })
        };
        let explain = |cascade: &Cascade, node: &Node| {
            let explainer = Explainer {
                cascade,
                settings: &settings,
                now,
            };
            explainer.explain(node, None).unwrap()
        };
        let mut gated = ready(None);
        gated.gate = Gate::Approval;
        let mut canary = ready(None);
        canary.gate = Gate::Canary {
            first: ["base".to_owned()].into(),
        };
        let mut seen = vec![
            explain(&cascade, &node(NodeState::Pending)),
            explain(&cascade, &ready(None)),
            explain(&cascade, &ready(Some(later))),
            explain(&cascade, &failed(Some(later))),
            explain(&cascade, &failed(Some(now))),
            explain(&cascade, &gated),
            explain(&cascade, &canary),
        ];
        cascade.paused = true;
        seen.push(explain(&cascade, &ready(None)));
        cascade.phase = Phase::Settling { until: later };
        seen.push(explain(&cascade, &ready(None)));
        insta::assert_snapshot!(seen.join("\n"), @r"
        waits for base
        waits for a free slot among the cascade's runs
        retry at 2026-11-25T12:01:00Z
        exit code 1; retry at 2026-11-25T12:01:00Z
        exit code 1
        waits for approval: `acrtask cascade approve 3`
        waits for canary tasks: base
        the cascade is paused; continue it with `acrtask cascade resume 3`
        collecting further changes until 2026-11-25T12:01:00Z
        ");
    }
}
