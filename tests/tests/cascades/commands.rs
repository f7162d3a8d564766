//! Commands that control a cascade: pause, resume, cancel, retry, approve.

use std::{thread, time::Duration};

use acrtask_tests::TestEnvironment;
use serde_json::json;

use crate::fleet::{TestFleet, find_node, new_member, node_states};

/// Starts a fleet of a slow image and an image built from it.
async fn slow_fleet(environment: &TestEnvironment) -> TestFleet {
    let fleet = TestFleet::start(environment).await;
    fleet.push("os", "first").await;
    let from = |base: &str| format!("FROM {}\n", fleet.image_name(base));
    fleet.create_tasks(&[
        new_member("slow", &fleet.slow_dockerfile("os", 2)),
        new_member("app", &from("slow")),
    ]);
    fleet.run_tasks(&["slow"]);
    fleet.run_tasks(&["app"]);
    fleet
}

#[tokio::test(flavor = "multi_thread")]
async fn paused_cascade_resumes() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let fleet = slow_fleet(&environment).await;
    fleet.push("os", "second").await;
    fleet.wait_task(1, "slow", "running");
    fleet.server.run_ok(&["cascade", "pause", "1"]);
    // The running node continues. The next node waits and gives the reason.
    fleet.wait_task(1, "app", "ready");
    thread::sleep(Duration::from_secs(2));
    let cascade = fleet.show_cascade(1);
    assert_eq!(cascade["paused"], json!(true), "{cascade:#}");
    let expected = [("app", "ready"), ("slow", "succeeded")];
    assert_eq!(node_states(&cascade), expected.into(), "{cascade:#}");
    let why = find_node(&cascade, "app").unwrap()["reason"]
        .as_str()
        .unwrap();
    assert!(why.contains("paused"), "{why}");
    fleet.server.run_ok(&["cascade", "resume", "1"]);
    let cascade = fleet.wait_finished(1);
    let expected = [("app", "succeeded"), ("slow", "succeeded")];
    assert_eq!(node_states(&cascade), expected.into(), "{cascade:#}");
    fleet.assert_fresh_after(1);
    let late = fleet.run_client(&["cascade", "pause", "1"]);
    assert_ne!(late.code, Some(0), "{}", late.transcript());
    assert!(late.stderr.contains("is finished"), "{}", late.transcript());
}

#[tokio::test(flavor = "multi_thread")]
async fn canceled_cascade_can_be_retried() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let fleet = slow_fleet(&environment).await;
    let before = fleet.fetch_digest("slow").await;
    fleet.push("os", "second").await;
    fleet.wait_task(1, "slow", "running");
    fleet.server.run_ok(&["cascade", "cancel", "1"]);
    let cascade = fleet.wait_finished(1);
    let expected = [("app", "canceled"), ("slow", "canceled")];
    assert_eq!(node_states(&cascade), expected.into(), "{cascade:#}");
    assert_eq!(fleet.list_runs("slow")[0]["state"], "canceled");
    assert_eq!(fleet.fetch_digest("slow").await, before);
    // The image stays stale until a user retries the cascade.
    assert_eq!(fleet.stale_images(), [fleet.image_name("slow")]);
    thread::sleep(Duration::from_secs(3));
    assert_eq!(fleet.list_cascades().len(), 1);
    fleet.server.run_ok(&["cascade", "retry", "1"]);
    let cascade = fleet.wait_built("app");
    let expected = [("app", "succeeded"), ("slow", "succeeded")];
    assert_eq!(node_states(&cascade), expected.into(), "{cascade:#}");
    assert_eq!(fleet.base_note("app").await, "second");
    fleet.assert_fresh_after(fleet.list_cascades().len());
}

#[tokio::test(flavor = "multi_thread")]
async fn approval_is_required_before_a_node_starts() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let fleet = slow_fleet(&environment).await;
    fleet.apply_settings(&json!({"rules": [{"tasks": "app", "mode": "approval"}]}));
    fleet.push("os", "second").await;
    let cascade = fleet.wait_for_cascade(1, |cascade| cascade["awaitingApproval"] == json!(true));
    let expected = [("app", "ready"), ("slow", "succeeded")];
    assert_eq!(node_states(&cascade), expected.into(), "{cascade:#}");
    assert_eq!(fleet.list_runs("app").len(), 1);
    fleet.server.run_ok(&["cascade", "approve", "1"]);
    let cascade = fleet.wait_finished(1);
    assert_eq!(find_node(&cascade, "app").unwrap()["state"], "succeeded");
    fleet.assert_fresh_after(1);
}

#[tokio::test(flavor = "multi_thread")]
async fn canary_nodes_run_before_all_others() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let fleet = TestFleet::start(&environment).await;
    fleet.push("os", "first").await;
    let on = format!("FROM {}\n", fleet.image_name("os"));
    let names = ["app/brave", "app/shy", "app/timid"];
    fleet.create_tasks(&names.map(|name| new_member(name, &on)));
    fleet.run_tasks(&names);
    fleet.apply_settings(&json!({
        "rules": [{"tasks": "app/", "mode": {"canary": {"first": ["app/brave"]}}}]
    }));
    fleet.rewrite("app/brave", &format!("{on}RUN cat /etc/missing\n"));
    fleet.push("os", "second").await;
    let cascade = fleet.wait_finished(1);
    let expected = [
        ("app/brave", "failed"),
        ("app/shy", "stale"),
        ("app/timid", "stale"),
    ];
    assert_eq!(node_states(&cascade), expected.into(), "{cascade:#}");
    let why = find_node(&cascade, "app/shy").unwrap()["reason"]
        .as_str()
        .unwrap();
    assert!(why.contains("app/brave"), "{why}");
    assert_eq!(fleet.list_runs("app/shy").len(), 1);
    // The next canary succeeds, and then all nodes run.
    fleet.rewrite("app/brave", &on);
    fleet.push("os", "third").await;
    let cascade = fleet.wait_finished(2);
    let expected = names.map(|name| (name, "succeeded"));
    assert_eq!(node_states(&cascade), expected.into(), "{cascade:#}");
    let time = |task, key| find_node(&cascade, task).unwrap()[key].as_str().unwrap();
    for later in ["app/shy", "app/timid"] {
        assert!(time("app/brave", "endedAt") <= time(later, "startedAt"));
    }
    fleet.assert_fresh_after(2);
}
