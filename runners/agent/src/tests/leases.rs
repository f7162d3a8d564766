//! Tests of leases: accepted, declined, finished, canceled, handed back.

use std::{os::unix::fs::PermissionsExt as _, time::Duration};

use acrtask_api::run::RunResult;
use acrtask_model::{Event, EventKind, RunState, Secret};
use acrtask_proto::runner::{Cancel, Drain, Lease, to_runner::Message};

use super::{
    fake_server::FakeServer,
    script::Action,
    test_runner::{Setup, TestRunner, config, id, lease},
};
use crate::{AgentError, key::StateDir, register};

fn last_outcome(events: &[Event]) -> (RunState, Option<String>) {
    match &events.last().unwrap().kind {
        EventKind::RunFinished { outcome, .. } => (outcome.state, outcome.reason.clone()),
        other => panic!("the last event is {other:?}"),
    }
}

fn count_output(events: &[Event]) -> usize {
    let output = |event: &&Event| matches!(event.kind, EventKind::Output { .. });
    events.iter().filter(output).count()
}

#[tokio::test]
async fn run_completes_from_lease_to_result() {
    let mut runner = TestRunner::new().await;
    let (id, running) = runner.start_run("r1", 3).await;
    assert_eq!(running.job.secrets["token"], "hush-hush");
    assert_eq!(running.job.password.as_deref(), Some("pass-word"));
    assert_eq!(running.job.upload, None);
    running.send(Action::Print(5));
    let log_of = id.clone();
    runner
        .server
        .until("output arrives while the run is active", move |state| {
            (state.logs.get(&log_of)?.len() > 500).then_some(())
        })
        .await;
    running.send(Action::End(RunState::Succeeded));
    let (finished, events) = runner.server.wait_finished(&id).await;
    assert_eq!(finished.state, "succeeded");
    assert_eq!(finished.reason, "");
    let result: RunResult = serde_json::from_str(&finished.result_json).unwrap();
    assert_eq!(result.steps.len(), 1);
    assert_eq!(result.variables.commit, "c0ffee");
    assert!(matches!(events[0].kind, EventKind::RunStarted { .. }));
    assert_eq!(
        (count_output(&events), last_outcome(&events)),
        (5, (RunState::Succeeded, None))
    );
    runner.wait_without_logs().await;
    runner.server.with(|state| {
        let hello = &state.hellos[0];
        assert_eq!(
            (hello.slots, hello.platforms.as_slice()),
            (2, &["linux/amd64".to_owned()][..])
        );
        assert!(hello.free_disk > 0 && hello.attempts.is_empty());
        assert_eq!(
            (&state.accepted, &state.started),
            (&vec![id.clone()], &vec![id])
        );
    });
}

#[tokio::test]
async fn log_of_a_failed_run_ends_with_its_outcome() {
    let mut runner = TestRunner::new().await;
    for (number, act, state, reason) in [
        (
            1,
            Action::NotBegun("no hush-hush here".into()),
            RunState::Error,
            "no *** here",
        ),
        (
            2,
            Action::Refused,
            RunState::Failed,
            "the task file was refused",
        ),
        (3, Action::Panic, RunState::Error, "the runner failed"),
        (
            4,
            Action::Invalid("found no task file hush-hush".into()),
            RunState::Failed,
            "no task file ***",
        ),
    ] {
        let (id, running) = runner.start_run("r1", number).await;
        running.send(act);
        let (finished, events) = runner.server.wait_finished(&id).await;
        assert_eq!(finished.state, state.as_str());
        assert!(finished.reason.contains(reason), "{}", finished.reason);
        assert_eq!(last_outcome(&events), (state, Some(finished.reason)));
        let result: RunResult = serde_json::from_str(&finished.result_json).unwrap();
        assert_eq!(result.refused, matches!(number, 2 | 4));
    }
    // An unsupported specification ends the same way.
    let broken = id("r2", 1);
    let spec_json = r#"{"unheard": "of"}"#.into();
    runner.server.lease(
        &broken,
        Lease {
            spec_json,
            ..Lease::default()
        },
    );
    let (finished, _) = runner.server.wait_finished(&broken).await;
    assert!(
        finished.reason.contains("does not support"),
        "{}",
        finished.reason
    );
}

#[tokio::test]
async fn canceled_run_ends_within_a_second() {
    let mut runner = TestRunner::new().await;
    let (id, running) = runner.start_run("r1", 1).await;
    running.send(Action::Print(1));
    let begun = tokio::time::Instant::now();
    runner.server.send(Message::Cancel(Cancel {
        of: Some(id.to_proto()),
        reason: "by jo".into(),
    }));
    let (finished, events) = runner.server.wait_finished(&id).await;
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert!(running.cancel.is_cancelled());
    assert_eq!(
        (finished.state.as_str(), finished.reason.as_str()),
        ("canceled", "by jo")
    );
    assert_eq!(
        last_outcome(&events),
        (RunState::Canceled, Some("by jo".into()))
    );
}

#[tokio::test]
async fn lease_is_declined_without_engine_or_slot() {
    let mut runner = TestRunner::new().await;
    let (_, _first) = runner.start_run("r1", 1).await;
    *runner.script.broken.lock().unwrap() = Some("the engine is unavailable".into());
    runner.server.lease(&id("r2", 1), lease());
    runner
        .server
        .until("a lease is declined without an engine", |state| {
            let declined = state.declined.first()?;
            assert!(declined.reason.contains("engine is unavailable"));
            Some(())
        })
        .await;
    *runner.script.broken.lock().unwrap() = None;
    let (second, running) = runner.start_run("r3", 1).await;
    runner.server.lease(&id("r4", 1), lease());
    runner
        .server
        .until("a third lease is declined without a slot", |state| {
            let declined = state.declined.get(1)?;
            assert!(declined.reason.contains("no free slot"));
            Some(())
        })
        .await;
    running.send(Action::End(RunState::Succeeded));
    runner.server.wait_finished(&second).await;
    // The slot is free again.
    runner.start_run("r4", 2).await;
}

#[tokio::test]
async fn lease_is_declined_without_free_disk() {
    let runner = TestRunner::with_setup(Setup {
        min_free_disk: u64::MAX,
        ..Setup::default()
    })
    .await;
    runner.server.lease(&id("r1", 1), lease());
    runner
        .server
        .until("the lease is declined", |state| {
            assert!(
                state
                    .declined
                    .first()?
                    .reason
                    .contains("too little free disk")
            );
            Some(())
        })
        .await;
    assert_eq!(runner.logs(), Vec::<String>::new());
}

#[tokio::test]
async fn draining_runner_finishes_its_runs() {
    let mut runner = TestRunner::new().await;
    let (id, running) = runner.start_run("r1", 1).await;
    runner.shutdown.cancel();
    runner
        .server
        .until("the runner announces the drain", |state| {
            state.draining.then_some(())
        })
        .await;
    let other = super::test_runner::id("r2", 1);
    runner.server.lease(&other, lease());
    runner
        .server
        .until("the runner declines a new lease", |state| {
            assert!(state.declined.first()?.reason.contains("leaving"));
            Some(())
        })
        .await;
    assert!(!runner.task.is_finished());
    running.send(Action::End(RunState::Failed));
    let server = runner.server.clone();
    assert_eq!(server.wait_finished(&id).await.0.state, "failed");
    runner.wait_exit().await.unwrap();
}

#[tokio::test]
async fn unfinished_run_is_handed_back_at_the_drain_deadline() {
    let mut runner = TestRunner::with_setup(Setup {
        drain: Duration::from_millis(300),
        ..Setup::default()
    })
    .await;
    let (id, running) = runner.start_run("r1", 1).await;
    runner.shutdown.cancel();
    let server = runner.server.clone();
    runner.wait_exit().await.unwrap();
    assert!(running.cancel.is_cancelled());
    server.with(|state| {
        assert_eq!(state.declined.len(), 1);
        assert_eq!(state.declined[0].of, Some(id.to_proto()));
        assert!(state.finished.is_empty());
    });
}

#[tokio::test]
async fn runner_drained_by_the_server_stays_connected() {
    let mut runner = TestRunner::new().await;
    let (id, running) = runner.start_run("r1", 1).await;
    runner.server.send(Message::Drain(Drain {}));
    running.send(Action::End(RunState::Succeeded));
    runner.server.wait_finished(&id).await;
    runner.wait_without_logs().await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(!runner.task.is_finished());
    runner.start_run("r2", 1).await;
}

#[tokio::test]
async fn runner_registers_once() {
    acrtask_registry::install_crypto_provider();
    let server = FakeServer::start().await;
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&format!("http://{}", server.address), folder.path());
    let mut servers = register::Servers::new(&config).unwrap();
    let state = StateDir::open(&config.state_dir).unwrap();
    config.token = None;
    let missing = register::load_or_register(&config, &mut servers, &state).await;
    assert!(matches!(missing, Err(AgentError::NotRegistered { .. })));
    config.token = Some(Secret::new("used"));
    let refused = register::load_or_register(&config, &mut servers, &state)
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("has been used"), "{refused}");
    config.token = Some(Secret::new(super::fake_server::TOKEN));
    register::load_or_register(&config, &mut servers, &state)
        .await
        .unwrap();
    let mode = std::fs::metadata(state.key_path()).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    // The stored key makes the token unnecessary.
    config.token = Some(Secret::new("used"));
    register::load_or_register(&config, &mut servers, &state)
        .await
        .unwrap();
}
