use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

fn id(text: &str) -> StepId {
    StepId::new(text).unwrap()
}

/// Parses lines of the form `name: before before`. `!` marks a detached step, `?` one with
/// ignoreErrors.
fn graph(lines: &[&str]) -> Graph {
    Graph::new(
        lines
            .iter()
            .map(|line| {
                let (name, after) = line.split_once(':').unwrap();
                Node {
                    id: id(name.trim_end_matches(['!', '?'])),
                    after: after.split_whitespace().map(id).collect(),
                    detach: name.contains('!'),
                    ignore_errors: name.contains('?'),
                }
            })
            .collect(),
    )
}

/// Returns the actions of the graph for a script of `begin`, `NAME ok|fail|timeout|stopped|up` and
/// `interrupt`.
fn play_script(lines: &[&str], script: &[&str]) -> String {
    let mut graph = graph(lines);
    let mut out = String::new();
    for step in script {
        let input = match step.split_once(' ') {
            None if *step == "begin" => Input::Begin,
            None => Input::Stop(SkipReason::Interrupted),
            Some((name, "up")) => Input::Up(id(name)),
            Some((name, end)) => Input::Ended(
                id(name),
                match end {
                    "ok" => End::Succeeded,
                    "timeout" => End::TimedOut { after_secs: 9 },
                    "stopped" => End::Stopped,
                    _ => End::Failed {
                        reason: "exit code 1".into(),
                        exit_code: Some(1),
                    },
                },
            ),
        };
        let actions: Vec<String> = graph
            .apply(input)
            .iter()
            .map(|action| match action {
                Action::Start(id) => format!("start {id}"),
                Action::Stop(id) => format!("stop {id}"),
                Action::SetFinalState(id, state) => match state {
                    StepState::Skipped { cause } | StepState::Canceled { cause } => {
                        format!("{id} {state} because {cause}")
                    }
                    _ => format!("{id} {state}"),
                },
                Action::Finish(outcome) => match &outcome.reason {
                    Some(reason) => format!("run {}: {reason}", outcome.state),
                    None => format!("run {}", outcome.state),
                },
            })
            .collect();
        let done = if actions.is_empty() {
            "nothing".into()
        } else {
            actions.join("; ")
        };
        out.push_str(&format!("{step} -> {done}\n"));
    }
    out
}

#[test]
fn independent_steps_of_a_diamond_run_concurrently() {
    insta::assert_snapshot!(
        play_script(&["a:", "b:a", "c:a", "d:b c"], &["begin", "a ok", "c ok", "b ok", "d ok"]),
        @r"
    begin -> start a
    a ok -> a succeeded; start b; start c
    c ok -> c succeeded
    b ok -> b succeeded; start d
    d ok -> d succeeded; run succeeded
    "
    );
}

#[test]
fn failure_stops_running_steps_and_skips_waiting_ones() {
    insta::assert_snapshot!(
        play_script(&["a:", "b:", "c:a"], &["begin", "a fail", "b stopped"]),
        @r"
    begin -> start a; start b
    a fail -> a failed; stop b; c skipped because step a failed
    b stopped -> b canceled because step a failed; run failed: step a failed: exit code 1
    "
    );
}

#[test]
fn ignored_failure_does_not_end_the_run() {
    insta::assert_snapshot!(
        play_script(&["a?:", "b?:a", "c:b"], &["begin", "a fail", "b timeout", "c ok"]),
        @r"
    begin -> start a
    a fail -> a failed (ignored); start b
    b timeout -> b failed (ignored); start c
    c ok -> c succeeded; run succeeded
    "
    );
}

#[test]
fn detached_step_is_stopped_at_the_end() {
    insta::assert_snapshot!(
        play_script(&["server!:", "test:server"], &["begin", "server up", "test ok", "server fail"]),
        @r"
    begin -> start server
    server up -> start test
    test ok -> test succeeded; stop server
    server fail -> server canceled because the run ended; run succeeded
    "
    );
}

#[test]
fn detached_step_that_cannot_start_fails_the_run() {
    insta::assert_snapshot!(
        play_script(&["server!:", "test:server"], &["begin", "server fail"]),
        @r"
    begin -> start server
    server fail -> server failed; test skipped because step server failed; run failed: step server failed: exit code 1
    "
    );
}

#[test]
fn end_of_a_detached_step_does_not_fail_the_run() {
    insta::assert_snapshot!(
        play_script(&["server!:", "test:server"], &["begin", "server up", "server fail", "test ok"]),
        @r"
    begin -> start server
    server up -> start test
    server fail -> server failed (ignored)
    test ok -> test succeeded; run succeeded
    "
    );
}

#[test]
fn interrupt_stops_all_steps_once() {
    insta::assert_snapshot!(
        play_script(&["a:", "b:a"], &["begin", "interrupt", "interrupt", "a fail", "a ok"]),
        @r"
    begin -> start a
    interrupt -> stop a; b skipped because the run was interrupted
    interrupt -> nothing
    a fail -> a canceled because the run was interrupted; run canceled: the run was interrupted
    a ok -> nothing
    "
    );
}

#[test]
fn empty_graph_finishes_at_once() {
    assert_eq!(play_script(&[], &["begin"]), "begin -> run succeeded\n");
}

/// Generates nodes with arbitrary earlier nodes in `after` and arbitrary switches.
fn nodes() -> impl Strategy<Value = Vec<Node>> {
    proptest::collection::vec((any::<u16>(), any::<bool>(), any::<bool>()), 0..9).prop_map(|rows| {
        rows.iter()
            .enumerate()
            .map(|(i, (mask, detach, ignore_errors))| Node {
                id: StepId::default_at(i),
                after: (0..i)
                    .filter(|j| mask >> j & 1 == 1)
                    .map(StepId::default_at)
                    .collect(),
                detach: *detach && mask % 3 == 0,
                ignore_errors: *ignore_errors,
            })
            .collect()
    })
}

/// The slow and obvious model: sets of names, computed from scratch each time.
#[derive(Default)]
struct Model {
    started: BTreeSet<StepId>,
    done: BTreeSet<StepId>,
    final_states: BTreeMap<StepId, StepState>,
    halted: bool,
}

impl Model {
    fn check(&mut self, nodes: &[Node], actions: &[Action]) -> Result<bool, TestCaseError> {
        let mut finished = false;
        for action in actions {
            match action {
                Action::Start(id) => {
                    prop_assert!(!self.halted, "{id} started after the run was halted");
                    prop_assert!(self.started.insert(id.clone()), "{id} started twice");
                    let node = nodes.iter().find(|n| n.id == *id).unwrap();
                    for before in &node.after {
                        prop_assert!(self.done.contains(before), "{id} started before {before}");
                    }
                }
                Action::SetFinalState(id, state) => {
                    prop_assert!(state.is_final());
                    prop_assert!(
                        self.final_states
                            .insert(id.clone(), state.clone())
                            .is_none(),
                        "{id} has two final states"
                    );
                    if state.lets_others_start() {
                        self.done.insert(id.clone());
                    }
                    if matches!(
                        state,
                        StepState::Failed { ignored: false, .. } | StepState::TimedOut { .. }
                    ) {
                        self.halted = true;
                    }
                    if matches!(state, StepState::Skipped { .. }) {
                        prop_assert!(!self.started.contains(id), "{id} ran and was skipped");
                    }
                }
                Action::Stop(id) => prop_assert!(self.started.contains(id)),
                Action::Finish(_) => {
                    prop_assert_eq!(self.final_states.len(), nodes.len());
                    finished = true;
                }
            }
        }
        if !self.halted {
            for node in nodes {
                let ready = node.after.iter().all(|b| self.done.contains(b));
                prop_assert_eq!(
                    ready,
                    self.started.contains(&node.id),
                    "{} ready {}",
                    node.id,
                    ready
                );
            }
        }
        Ok(finished)
    }
}

proptest! {
    #[test]
    fn graph_agrees_with_the_obvious_model(
        nodes in nodes(),
        picks in proptest::collection::vec((any::<u8>(), 0u8..12), 0..60),
    ) {
        let mut graph = Graph::new(nodes.clone());
        let mut model = Model::default();
        let mut finished = model.check(&nodes, &graph.apply(Input::Begin))?;
        // After the picks, every step succeeds, so that each run finishes.
        for (pick, end) in picks.into_iter().chain(std::iter::repeat((0, 0))) {
            if finished { break; }
            let running: Vec<StepId> = model.started.iter()
                .filter(|id| !model.final_states.contains_key(*id)).cloned().collect();
            prop_assert!(!running.is_empty(), "nothing runs and the run is not over");
            let step = running[pick as usize % running.len()].clone();
            let detached = nodes.iter().any(|n| n.id == step && n.detach);
            let input = match end {
                11 => { model.halted = true; Input::Stop(SkipReason::Interrupted) }
                10 => Input::Ended(step, End::Failed { reason: "x".into(), exit_code: None }),
                9 => Input::Ended(step, End::TimedOut { after_secs: 1 }),
                8 => Input::Ended(step, End::Stopped),
                5..8 if detached && !model.done.contains(&step) => {
                    if !model.halted { model.done.insert(step.clone()); }
                    Input::Up(step)
                }
                _ => Input::Ended(step, End::Succeeded),
            };
            if matches!(&input, Input::Ended(_, End::Stopped)) {
                // No step is stopped without a request.
                if !model.halted { continue; }
            }
            finished = model.check(&nodes, &graph.apply(input))?;
        }
        prop_assert!(finished);
    }
}
