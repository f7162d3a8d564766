//! Leases: taken, refused, finished, canceled, handed back.

use std::{os::unix::fs::PermissionsExt as _, time::Duration};

use acrtask_api::run::RunResult;
use acrtask_model::{Event, EventKind, RunState, Secret};
use acrtask_proto::runner::{Cancel, Drain, Lease, to_runner::Message};

use super::{
    plane::Plane,
    room::{Room, Setup, config, id, lease},
    script::Act,
};
use crate::{AgentError, key::StateDir, register};

fn last(events: &[Event]) -> (RunState, Option<String>) {
    match &events.last().unwrap().kind {
        EventKind::RunFinished { outcome, .. } => (outcome.state, outcome.reason.clone()),
        other => panic!("the last event is {other:?}"),
    }
}

fn lines(events: &[Event]) -> usize {
    let output = |event: &&Event| matches!(event.kind, EventKind::Output { .. });
    events.iter().filter(output).count()
}

#[tokio::test]
async fn a_run_from_its_lease_to_its_end() {
    let mut room = Room::new().await;
    let (id, running) = room.begin("r1", 3).await;
    assert_eq!(running.job.secrets["token"], "hush-hush");
    assert_eq!(running.job.password.as_deref(), Some("pass-word"));
    assert_eq!(running.job.upload, None);
    running.act(Act::Print(5));
    let log_of = id.clone();
    room.plane
        .until("what is printed comes while it runs", move |state| {
            (state.logs.get(&log_of)?.len() > 500).then_some(())
        })
        .await;
    running.act(Act::End(RunState::Succeeded));
    let (finished, events) = room.plane.finished(&id).await;
    assert_eq!(finished.state, "succeeded");
    assert_eq!(finished.reason, "");
    let result: RunResult = serde_json::from_str(&finished.result_json).unwrap();
    assert_eq!(result.steps.len(), 1);
    assert_eq!(result.facts.commit, "c0ffee");
    assert!(matches!(events[0].kind, EventKind::RunStarted { .. }));
    assert_eq!(
        (lines(&events), last(&events)),
        (5, (RunState::Succeeded, None))
    );
    room.no_logs().await;
    room.plane.with(|state| {
        let hello = &state.hellos[0];
        assert_eq!(
            (hello.slots, hello.platforms.as_slice()),
            (2, &["linux/amd64".to_owned()][..])
        );
        assert!(hello.free_disk > 0 && hello.held.is_empty());
        assert_eq!(
            (&state.accepted, &state.started),
            (&vec![id.clone()], &vec![id])
        );
    });
}

#[tokio::test]
async fn whatever_goes_wrong_a_log_ends_with_how_the_run_ended() {
    let mut room = Room::new().await;
    for (number, act, state, reason) in [
        (
            1,
            Act::NotBegun("no hush-hush here".into()),
            RunState::Error,
            "no *** here",
        ),
        (
            2,
            Act::Refused,
            RunState::Failed,
            "the task file was refused",
        ),
        (3, Act::Panic, RunState::Error, "the runner failed"),
        (
            4,
            Act::Invalid("there is no task file hush-hush".into()),
            RunState::Failed,
            "no task file ***",
        ),
    ] {
        let (id, running) = room.begin("r1", number).await;
        running.act(act);
        let (finished, events) = room.plane.finished(&id).await;
        assert_eq!(finished.state, state.as_str());
        assert!(finished.reason.contains(reason), "{}", finished.reason);
        assert_eq!(last(&events), (state, Some(finished.reason)));
        let result: RunResult = serde_json::from_str(&finished.result_json).unwrap();
        assert_eq!(result.refused, matches!(number, 2 | 4));
    }
    // What the runner does not understand ends the same way.
    let broken = id("r2", 1);
    let spec_json = r#"{"unheard": "of"}"#.into();
    room.plane.lease(
        &broken,
        Lease {
            spec_json,
            ..Lease::default()
        },
    );
    let (finished, _) = room.plane.finished(&broken).await;
    assert!(
        finished.reason.contains("does not understand"),
        "{}",
        finished.reason
    );
}

#[tokio::test]
async fn a_canceled_run_ends_within_a_second() {
    let mut room = Room::new().await;
    let (id, running) = room.begin("r1", 1).await;
    running.act(Act::Print(1));
    let begun = tokio::time::Instant::now();
    room.plane.tell(Message::Cancel(Cancel {
        of: Some(id.proto()),
        reason: "by jo".into(),
    }));
    let (finished, events) = room.plane.finished(&id).await;
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert!(running.cancel.is_cancelled());
    assert_eq!(
        (finished.state.as_str(), finished.reason.as_str()),
        ("canceled", "by jo")
    );
    assert_eq!(last(&events), (RunState::Canceled, Some("by jo".into())));
}

#[tokio::test]
async fn a_lease_that_cannot_be_taken_is_given_back() {
    let mut room = Room::new().await;
    let (_, _first) = room.begin("r1", 1).await;
    *room.script.broken.lock().unwrap() = Some("the engine is away".into());
    room.plane.lease(&id("r2", 1), lease());
    room.plane
        .until("a lease is given back for want of an engine", |state| {
            let declined = state.declined.first()?;
            assert!(declined.reason.contains("engine is away"));
            Some(())
        })
        .await;
    *room.script.broken.lock().unwrap() = None;
    let (second, running) = room.begin("r3", 1).await;
    room.plane.lease(&id("r4", 1), lease());
    room.plane
        .until("a third lease finds no slot", |state| {
            let declined = state.declined.get(1)?;
            assert!(declined.reason.contains("no free slot"));
            Some(())
        })
        .await;
    running.act(Act::End(RunState::Succeeded));
    room.plane.finished(&second).await;
    // The slot is free again.
    room.begin("r4", 2).await;
}

#[tokio::test]
async fn without_disk_nothing_is_taken() {
    let room = Room::with(Setup {
        min_free_disk: u64::MAX,
        ..Setup::default()
    })
    .await;
    room.plane.lease(&id("r1", 1), lease());
    room.plane
        .until("the lease is given back", |state| {
            assert!(state.declined.first()?.reason.contains("too little disk"));
            Some(())
        })
        .await;
    assert_eq!(room.logs(), Vec::<String>::new());
}

#[tokio::test]
async fn a_runner_that_is_told_to_stop_finishes_first() {
    let mut room = Room::new().await;
    let (id, running) = room.begin("r1", 1).await;
    room.shutdown.cancel();
    room.plane
        .until("it says so", |state| state.draining.then_some(()))
        .await;
    let other = super::room::id("r2", 1);
    room.plane.lease(&other, lease());
    room.plane
        .until("it takes nothing new", |state| {
            assert!(state.declined.first()?.reason.contains("leaving"));
            Some(())
        })
        .await;
    assert!(!room.runner.is_finished());
    running.act(Act::End(RunState::Failed));
    let plane = room.plane.clone();
    assert_eq!(plane.finished(&id).await.0.state, "failed");
    room.left().await.unwrap();
}

#[tokio::test]
async fn what_does_not_end_before_the_deadline_is_handed_back() {
    let mut room = Room::with(Setup {
        drain: Duration::from_millis(300),
        ..Setup::default()
    })
    .await;
    let (id, running) = room.begin("r1", 1).await;
    room.shutdown.cancel();
    let plane = room.plane.clone();
    room.left().await.unwrap();
    assert!(running.cancel.is_cancelled());
    plane.with(|state| {
        assert_eq!(state.declined.len(), 1);
        assert_eq!(state.declined[0].of, Some(id.proto()));
        assert!(state.finished.is_empty());
    });
}

#[tokio::test]
async fn a_runner_that_was_drained_by_the_control_plane_stays_for_its_resumption() {
    let mut room = Room::new().await;
    let (id, running) = room.begin("r1", 1).await;
    room.plane.tell(Message::Drain(Drain {}));
    running.act(Act::End(RunState::Succeeded));
    room.plane.finished(&id).await;
    room.no_logs().await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(!room.runner.is_finished());
    room.begin("r2", 1).await;
}

#[tokio::test]
async fn a_runner_registers_once() {
    acrtask_registry::install_crypto_provider();
    let plane = Plane::start().await;
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&format!("http://{}", plane.address), folder.path());
    let mut servers = register::Servers::new(&config).unwrap();
    let state = StateDir::open(&config.state_dir).unwrap();
    config.token = None;
    let missing = register::key(&config, &mut servers, &state).await;
    assert!(matches!(missing, Err(AgentError::NotRegistered { .. })));
    config.token = Some(Secret::new("used"));
    let refused = register::key(&config, &mut servers, &state)
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("has been used"), "{refused}");
    config.token = Some(Secret::new(super::plane::TOKEN));
    register::key(&config, &mut servers, &state).await.unwrap();
    let mode = std::fs::metadata(state.key_path()).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    // The key is there: no token is used any more.
    config.token = Some(Secret::new("used"));
    register::key(&config, &mut servers, &state).await.unwrap();
}
