//! What people say to a cascade: pause, go on, cancel, try again.

use std::{thread, time::Duration};

use acrtask_tests::World;
use serde_json::json;

use crate::fleet::{Fleet, member, node, states};

/// A slow image, and one on it.
async fn slow_fleet(world: &World) -> Fleet {
    let fleet = Fleet::start(world).await;
    fleet.push("os", "first").await;
    let from = |base: &str| format!("FROM {}\n", fleet.image(base));
    fleet.tasks(&[
        member("slow", &fleet.slow("os", 2)),
        member("app", &from("slow")),
    ]);
    fleet.build(&["slow"]);
    fleet.build(&["app"]);
    fleet
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cascade_is_paused_and_goes_on() {
    let Some(world) = World::find() else { return };
    let fleet = slow_fleet(&world).await;
    fleet.push("os", "second").await;
    fleet.wait_task(1, "slow", "running");
    fleet.server.ok(&["cascade", "pause", "1"]);
    // What runs goes on; what is next waits, and says for what.
    fleet.wait_task(1, "app", "ready");
    thread::sleep(Duration::from_secs(2));
    let cascade = fleet.cascade(1);
    assert_eq!(cascade["paused"], json!(true), "{cascade:#}");
    let expected = [("app", "ready"), ("slow", "succeeded")];
    assert_eq!(states(&cascade), expected.into(), "{cascade:#}");
    let why = node(&cascade, "app").unwrap()["why"].as_str().unwrap();
    assert!(why.contains("paused"), "{why}");
    fleet.server.ok(&["cascade", "resume", "1"]);
    let cascade = fleet.wait_over(1);
    let expected = [("app", "succeeded"), ("slow", "succeeded")];
    assert_eq!(states(&cascade), expected.into(), "{cascade:#}");
    fleet.rests_after(1);
    let late = fleet.command(&["cascade", "pause", "1"]);
    assert_ne!(late.code, Some(0), "{}", late.all());
    assert!(late.stderr.contains("is over"), "{}", late.all());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cascade_is_canceled_and_tried_again() {
    let Some(world) = World::find() else { return };
    let fleet = slow_fleet(&world).await;
    let before = fleet.digest("slow").await;
    fleet.push("os", "second").await;
    fleet.wait_task(1, "slow", "running");
    fleet.server.ok(&["cascade", "cancel", "1"]);
    let cascade = fleet.wait_over(1);
    let expected = [("app", "canceled"), ("slow", "canceled")];
    assert_eq!(states(&cascade), expected.into(), "{cascade:#}");
    assert_eq!(fleet.runs("slow")[0]["state"], "canceled");
    assert_eq!(fleet.digest("slow").await, before);
    // It stays stale, and nothing takes it up but somebody who says so.
    assert_eq!(fleet.stale(), [fleet.image("slow")]);
    thread::sleep(Duration::from_secs(3));
    assert_eq!(fleet.cascades().len(), 1);
    fleet.server.ok(&["cascade", "retry", "1"]);
    let cascade = fleet.wait_built("app");
    let expected = [("app", "succeeded"), ("slow", "succeeded")];
    assert_eq!(states(&cascade), expected.into(), "{cascade:#}");
    assert_eq!(fleet.note("app").await, "second");
    fleet.rests_after(fleet.cascades().len());
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_agrees_first() {
    let Some(world) = World::find() else { return };
    let fleet = slow_fleet(&world).await;
    fleet.settings(&json!({"rules": [{"tasks": "app", "mode": "approval"}]}));
    fleet.push("os", "second").await;
    let cascade = fleet.wait(1, |cascade| cascade["waitsForApproval"] == json!(true));
    let expected = [("app", "ready"), ("slow", "succeeded")];
    assert_eq!(states(&cascade), expected.into(), "{cascade:#}");
    assert_eq!(fleet.runs("app").len(), 1);
    fleet.server.ok(&["cascade", "approve", "1"]);
    let cascade = fleet.wait_over(1);
    assert_eq!(node(&cascade, "app").unwrap()["state"], "succeeded");
    fleet.rests_after(1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_named_few_go_first() {
    let Some(world) = World::find() else { return };
    let fleet = Fleet::start(&world).await;
    fleet.push("os", "first").await;
    let on = format!("FROM {}\n", fleet.image("os"));
    let names = ["app/brave", "app/shy", "app/timid"];
    fleet.tasks(&names.map(|name| member(name, &on)));
    fleet.build(&names);
    fleet.settings(&json!({
        "rules": [{"tasks": "app/", "mode": {"canary": {"first": ["app/brave"]}}}]
    }));
    fleet.rewrite("app/brave", &format!("{on}RUN cat /etc/missing\n"));
    fleet.push("os", "second").await;
    let cascade = fleet.wait_over(1);
    let expected = [
        ("app/brave", "failed"),
        ("app/shy", "stale"),
        ("app/timid", "stale"),
    ];
    assert_eq!(states(&cascade), expected.into(), "{cascade:#}");
    let why = node(&cascade, "app/shy").unwrap()["why"].as_str().unwrap();
    assert!(why.contains("app/brave"), "{why}");
    assert_eq!(fleet.runs("app/shy").len(), 1);
    // The next one goes well, and then all go.
    fleet.rewrite("app/brave", &on);
    fleet.push("os", "third").await;
    let cascade = fleet.wait_over(2);
    let expected = names.map(|name| (name, "succeeded"));
    assert_eq!(states(&cascade), expected.into(), "{cascade:#}");
    let time = |task, key| node(&cascade, task).unwrap()[key].as_str().unwrap();
    for later in ["app/shy", "app/timid"] {
        assert!(time("app/brave", "endedAt") <= time(later, "startedAt"));
    }
    fleet.rests_after(2);
}
