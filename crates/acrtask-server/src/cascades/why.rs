//! Why a task of a cascade stands where it stands, in one sentence that reads well behind its state. Pure.

use acrtask_cascade::cascade::{
    AttemptEnd, Cascade, Gate, Node, NodePin, NodeState, Phase, Settings, SkippedBecause,
    StaleBecause,
};
use acrtask_store::CascadeRunRow;
use jiff::Timestamp;

/// What it is told from.
pub(super) struct Around<'a> {
    /// With its tasks.
    pub(super) cascade: &'a Cascade,
    pub(super) settings: &'a Settings,
    pub(super) now: Timestamp,
}

impl Around<'_> {
    /// Why, where there is something to say.
    pub(super) fn why(&self, node: &Node, run: Option<&CascadeRunRow>) -> Option<String> {
        Some(match &node.state {
            NodeState::Pending => self.pending(node, run),
            NodeState::Ready { not_before, .. } => self.ready(node, *not_before, run),
            NodeState::Running { .. } => {
                let run = run?;
                match superseded(run) {
                    Some(why) => format!("{why}, which is waited for"),
                    None if run.started_at.is_none() => {
                        format!("its run {} waits in the queue", run.run)
                    }
                    None => return None,
                }
            }
            NodeState::Succeeded { .. } => return None,
            NodeState::Failed { reason, again } => match again.filter(|at| *at > self.now) {
                Some(at) => format!("{reason}; tried again at {at}"),
                None => reason.clone(),
            },
            NodeState::Stale { because } => stale(because),
            NodeState::Skipped { because } => match because {
                SkippedBecause::Unchanged => {
                    "what it stands on came out with the digests that it has already".into()
                }
                SkippedBecause::Fresh => "it is not stale any more".into(),
                SkippedBecause::Moved { to } => format!("it is built in cascade {to}"),
            },
            NodeState::Canceled { by } => format!("canceled by {by}"),
        })
    }

    /// What keeps all of the cascade from going on.
    fn halted(&self) -> Option<String> {
        match &self.cascade.phase {
            Phase::Settling { until } => {
                Some(format!("further changes are waited for until {until}"))
            }
            _ if self.cascade.paused => Some(format!(
                "the cascade is paused; `acrtask cascade resume {}` lets it go on",
                self.cascade.id
            )),
            _ => None,
        }
    }

    fn pending(&self, node: &Node, run: Option<&CascadeRunRow>) -> String {
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
        match (waits.is_empty(), self.halted()) {
            (false, _) => format!("waits for {}", waits.join(", ")),
            (true, Some(halted)) => halted,
            (true, None) => match run.and_then(superseded) {
                Some(why) => format!("{why}; whether that has built it is looked at"),
                None => "a run of it in another cascade is still under way".into(),
            },
        }
    }

    fn ready(
        &self,
        node: &Node,
        not_before: Option<Timestamp>,
        run: Option<&CascadeRunRow>,
    ) -> String {
        if let Some(halted) = self.halted() {
            return halted;
        }
        match &node.gate {
            Gate::Approval if !self.cascade.approved => {
                return format!(
                    "waits until somebody approves: `acrtask cascade approve {}`",
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
                    return format!(
                        "waits until {}, which go first, have succeeded",
                        open.join(", ")
                    );
                }
            }
            _ => {}
        }
        if let Some(at) = not_before.filter(|at| *at > self.now) {
            let failed = run.and_then(|run| run.reason.as_deref());
            let because = failed.map_or(String::new(), |reason| format!(", after: {reason}"));
            return format!("tried again at {at}{because}");
        }
        if let Some(until) = self.settings.quiet_until(self.now) {
            return format!("quiet hours last until {until}");
        }
        "waits for a free place among the cascade's runs".into()
    }
}

/// Returns why a newer run replaces this one. A run of another task is not named.
fn superseded(run: &CascadeRunRow) -> Option<String> {
    run.superseded_by.as_ref()?;
    let reason = run.reason.as_deref().unwrap_or("superseded by a newer run");
    Some(format!("its run {} was {reason}", run.run))
}

fn stale(because: &StaleBecause) -> String {
    match because {
        StaleBecause::Below { task } => format!("{task}, which it stands on, was not built"),
        StaleBecause::Canary { task } => format!("{task}, which goes first, was not built"),
        StaleBecause::Tried { end } => {
            let ended = match end {
                AttemptEnd::Succeeded => "it succeeded, and its images still stand on others",
                AttemptEnd::Failed => "it failed",
                AttemptEnd::Canceled => "it was canceled",
                AttemptEnd::Held => "a task that goes first was not built",
            };
            format!("it was tried for these very digests before: {ended}")
        }
        StaleBecause::Refused => {
            "it would build its own base again and again, or another task pushes its image; \
             `acrtask cascade plan` says which"
                .into()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use acrtask_cascade::cascade::{CascadeId, Key, NodeBase};

    use super::*;
    use crate::api::testing::sha;

    fn node(state: NodeState) -> Node {
        Node {
            state,
            bases: vec![NodeBase {
                image: "r.io/base:1".parse().unwrap(),
                counted: true,
                used: sha('1'),
                pin: NodePin::Output {
                    task: "base".into(),
                    cascade: CascadeId(3),
                    otherwise: sha('1'),
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
    fn whoever_waits_says_for_what() {
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
                key: Key::of("a", &BTreeMap::new()),
                not_before,
            })
        };
        let failed = |again| {
            let reason = "exit code 1".into();
            node(NodeState::Failed { reason, again })
        };
        let told = |cascade: &Cascade, node: &Node| {
            let around = Around {
                cascade,
                settings: &settings,
                now,
            };
            around.why(node, None).unwrap()
        };
        let mut gated = ready(None);
        gated.gate = Gate::Approval;
        let mut canary = ready(None);
        canary.gate = Gate::Canary {
            first: ["base".to_owned()].into(),
        };
        let mut seen = vec![
            told(&cascade, &node(NodeState::Pending)),
            told(&cascade, &ready(None)),
            told(&cascade, &ready(Some(later))),
            told(&cascade, &failed(Some(later))),
            told(&cascade, &failed(Some(now))),
            told(&cascade, &gated),
            told(&cascade, &canary),
        ];
        cascade.paused = true;
        seen.push(told(&cascade, &ready(None)));
        cascade.phase = Phase::Settling { until: later };
        seen.push(told(&cascade, &ready(None)));
        insta::assert_snapshot!(seen.join("\n"), @r"
        waits for base
        waits for a free place among the cascade's runs
        tried again at 2026-11-25T12:01:00Z
        exit code 1; tried again at 2026-11-25T12:01:00Z
        exit code 1
        waits until somebody approves: `acrtask cascade approve 3`
        waits until base, which go first, have succeeded
        the cascade is paused; `acrtask cascade resume 3` lets it go on
        further changes are waited for until 2026-11-25T12:01:00Z
        ");
    }
}
