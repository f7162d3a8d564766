//! Failures and base changes during a cascade.

use acrtask_tests::TestEnvironment;

use crate::fleet::{TestFleet, find_node, new_member, node_states};

#[tokio::test(flavor = "multi_thread")]
async fn failed_node_stops_only_its_dependents() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let fleet = TestFleet::start(&environment).await;
    fleet.push("os", "first").await;
    let on = |base: &str| format!("FROM {}\n", fleet.image_name(base));
    fleet.create_tasks(&[
        new_member("left", &on("os")),
        new_member("right", &on("os")),
        new_member("left-app", &on("left")),
        new_member("right-app", &on("right")),
        new_member("right-end", &on("right-app")),
    ]);
    fleet.run_tasks(&["left", "right"]);
    fleet.run_tasks(&["left-app", "right-app"]);
    fleet.run_tasks(&["right-end"]);
    fleet.rewrite("right", &format!("{}RUN cat /etc/missing\n", on("os")));
    fleet.apply_settings(&serde_json::json!({"retries": 1}));
    fleet.push("os", "second").await;
    let cascade = fleet.wait_finished(1);
    let expected = [
        ("left", "succeeded"),
        ("left-app", "succeeded"),
        ("right", "failed"),
        ("right-app", "stale"),
        ("right-end", "stale"),
    ];
    assert_eq!(node_states(&cascade), expected.into(), "{cascade:#}");
    let failed = find_node(&cascade, "right").unwrap();
    assert_eq!(failed["attempts"], 2, "{cascade:#}");
    let log = fleet.log(failed["run"].as_str().unwrap());
    assert!(log.contains("/etc/missing"), "{log}");
    let why = |task| {
        find_node(&cascade, task).unwrap()["reason"]
            .as_str()
            .unwrap()
    };
    assert!(!why("right").is_empty(), "{cascade:#}");
    assert!(why("right-app").contains("right"), "{cascade:#}");
    assert!(why("right-end").contains("right-app"), "{cascade:#}");
    // The image is reported as stale. It is not retried automatically.
    assert_eq!(fleet.stale_images(), [fleet.image_name("right")]);
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert_eq!(fleet.list_cascades().len(), 1);
    assert_eq!(fleet.list_runs("right").len(), 3);

    // After the fix, a retry builds only the remaining nodes.
    fleet.rewrite("right", &on("os"));
    fleet.server.run_ok(&["cascade", "retry", "1"]);
    let cascade = fleet.wait_built("right-end");
    for task in ["right", "right-app"] {
        let state = &find_node(&cascade, task).unwrap()["state"];
        assert_eq!(state, "succeeded", "{cascade:#}");
    }
    assert_eq!(fleet.base_note("right-end").await, "second");
    assert_eq!(fleet.list_runs("left").len(), 2);
    fleet.assert_fresh_after(fleet.list_cascades().len());
}

#[tokio::test(flavor = "multi_thread")]
async fn change_during_a_cascade_joins_or_follows() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let fleet = TestFleet::start(&environment).await;
    fleet.push("os", "first").await;
    let from = |base: &str| format!("FROM {}\n", fleet.image_name(base));
    fleet.create_tasks(&[
        new_member("slow", &fleet.slow_dockerfile("os", 6)),
        new_member("app", &from("slow")),
    ]);
    fleet.run_tasks(&["slow"]);
    fleet.run_tasks(&["app"]);
    fleet.push("os", "second").await;
    fleet.wait_task(1, "slow", "running");
    let newest = fleet.push("os", "third").await;
    fleet
        .server
        .run_ok(&["base", "check", &fleet.image_name("os")]);
    let first = fleet.wait_finished(1);
    let second = fleet.wait_finished(2);
    assert_eq!(second["follows"], 1, "{second:#}");
    assert_eq!(second["changes"][fleet.image_name("os")], newest.as_str());
    // The running node succeeded and was built again. Its dependent was built once, from the newest
    // digest.
    assert_eq!(find_node(&first, "slow").unwrap()["state"], "succeeded");
    assert_eq!(
        find_node(&first, "app").unwrap()["state"],
        "skipped",
        "{first:#}"
    );
    let expected = [("app", "succeeded"), ("slow", "succeeded")];
    assert_eq!(node_states(&second), expected.into(), "{second:#}");
    assert_eq!(fleet.list_runs("slow").len(), 3);
    assert_eq!(fleet.list_runs("app").len(), 2);
    assert_eq!(fleet.base_note("app").await, "third");
    fleet.assert_fresh_after(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn cycle_of_tasks_is_refused_with_its_path() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    // The interval is long, so that no base is polled before its run has ended.
    let fleet = TestFleet::start_with(&environment, &["--base-interval", "1h"]).await;
    for name in ["egg", "hen"] {
        fleet.push(name, "first").await;
    }
    let from = |base: &str| format!("FROM {}\nRUN echo\n", fleet.image_name(base));
    fleet.create_tasks(&[
        new_member("egg", &from("hen")),
        new_member("hen", &from("egg")),
    ]);
    fleet.run_tasks(&["egg"]);
    // From now on each image is older than its base.
    fleet.run_tasks(&["hen"]);
    assert_eq!(fleet.stale_images(), [fleet.image_name("egg")]);
    std::thread::sleep(std::time::Duration::from_secs(3));
    let refused = format!(
        "egg pushes {} -> hen pushes {} -> egg: a task that rebuilds its own base would be rebuilt forever; give one of them \
         the policy `None`, or another tag for its base",
        fleet.image_name("egg"),
        fleet.image_name("hen")
    );
    let plan = fleet.server.run_ok(&["cascade", "plan"]).stdout;
    let line = format!("not built: {refused}");
    assert!(plan.lines().any(|shown| shown == line), "{plan}\n{line}");
    let plan = fleet.server.run_json(&["cascade", "plan", "-o", "json"]);
    assert_eq!(plan["nodes"].as_array().unwrap().len(), 0, "{plan:#}");
    assert_eq!(plan["refused"].as_array().unwrap().len(), 1, "{plan:#}");
    assert_eq!(plan["refused"][0]["message"], refused, "{plan:#}");
    // `images why` for the stale image shows the same message.
    let why = fleet.run_client(&["images", "why", &fleet.image_name("egg")]);
    assert!(why.stdout.contains(&refused), "{}", why.transcript());
    assert_eq!(fleet.list_cascades(), Vec::<serde_json::Value>::new());
    assert_eq!(
        (fleet.list_runs("egg").len(), fleet.list_runs("hen").len()),
        (1, 1)
    );
}
