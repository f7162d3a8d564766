//! Staged images: tags are set only after the tests have succeeded, and can be rolled back.

use acrtask_tests::TestEnvironment;
use serde_json::json;

use crate::fleet::{TestFleet, find_node, new_member};

/// Starts a fleet of an image and a tested application. Cascades stage their images.
async fn staging_fleet(environment: &TestEnvironment) -> TestFleet {
    let fleet = TestFleet::start(environment).await;
    fleet.push("os", "first").await;
    let from = |base: &str| format!("FROM {}\n", fleet.image_name(base));
    let app = fleet.image_name("app");
    let steps = format!(
        "  - {{id: build, build: -t {app} .}}\n  - {{id: test, cmd: {app} test ! -e /broken}}\n  \
         - {{id: wait, cmd: {app} sleep 2}}\n  - {{id: push, push: [{app}]}}\n"
    );
    fleet.create_tasks(&[
        new_member("middle", &from("os")),
        new_member("app", &from("middle")).with_steps(&steps),
    ]);
    fleet.run_tasks(&["middle"]);
    fleet.run_tasks(&["app"]);
    fleet.apply_settings(&json!({"promotion": {"tasks": "app", "tests": ["app/test"]}}));
    fleet
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_are_promoted_after_the_tests_and_rolled_back_on_command() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let fleet = staging_fleet(&environment).await;
    let names = ["middle", "app"];
    let before = [
        fleet.fetch_digest("middle").await,
        fleet.fetch_digest("app").await,
    ];
    fleet.push("os", "second").await;
    fleet.wait_task(1, "app", "running");
    // The middle image has been built, but its tag is unchanged.
    let cascade = fleet.show_cascade(1);
    assert_eq!(find_node(&cascade, "middle").unwrap()["state"], "succeeded");
    assert_eq!(cascade["stagesImages"], json!(true), "{cascade:#}");
    assert_eq!(cascade["promotion"], "staged", "{cascade:#}");
    assert_eq!(fleet.fetch_digest("middle").await, before[0]);
    let staged = &cascade["images"][0];
    assert_eq!(staged["state"], "staged", "{cascade:#}");
    assert_eq!(staged["before"].as_str(), before[0].as_deref());
    // The application is built from the staged image by its digest.
    let pins = &find_node(&cascade, "app").unwrap()["pins"];
    assert_eq!(
        pins[fleet.image_name("middle")],
        staged["after"],
        "{cascade:#}"
    );

    let cascade = fleet.wait_for_cascade(1, |cascade| cascade["promotion"] == "promoted");
    assert_eq!(cascade["phase"], "finished", "{cascade:#}");
    for name in names {
        assert_eq!(fleet.base_note(name).await, "second", "{name}");
    }
    for image in cascade["images"].as_array().unwrap() {
        assert_eq!(image["state"], "promoted", "{cascade:#}");
    }
    let middle = fleet.fetch_digest("middle").await.unwrap();
    let bases = fleet.built_from(&fleet.image_name("app"));
    assert_eq!(bases[&fleet.image_name("middle")], middle);
    fleet.assert_fresh_after(1);

    // One command restores both tags.
    let outcome = fleet.server.run_ok(&["cascade", "rollback", "1"]);
    let cascade = fleet.wait_for_cascade(1, |cascade| cascade["promotion"] == "rolledBack");
    for (name, before) in names.into_iter().zip(before) {
        assert_eq!(fleet.fetch_digest(name).await, before, "{name}");
        assert_eq!(fleet.base_note(name).await, "first", "{name}");
    }
    for image in cascade["images"].as_array().unwrap() {
        assert_eq!(image["state"], "rolledBack", "{}", outcome.transcript());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_tag_is_promoted_if_a_test_fails() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let fleet = staging_fleet(&environment).await;
    let before = [
        fleet.fetch_digest("middle").await,
        fleet.fetch_digest("app").await,
    ];
    let from = format!("FROM {}\n", fleet.image_name("middle"));
    fleet.rewrite("app", &format!("{from}RUN touch /broken\n"));
    fleet.push("os", "second").await;
    let cascade = fleet.wait_finished(1);
    assert_eq!(find_node(&cascade, "middle").unwrap()["state"], "succeeded");
    assert_eq!(find_node(&cascade, "app").unwrap()["state"], "failed");
    std::thread::sleep(std::time::Duration::from_secs(2));
    let after = [
        fleet.fetch_digest("middle").await,
        fleet.fetch_digest("app").await,
    ];
    assert_eq!(after, before);
    let cascade = fleet.show_cascade(1);
    assert_eq!(cascade["images"][0]["state"], "staged", "{cascade:#}");
    assert_eq!(cascade["promotion"], "staged", "{cascade:#}");

    // After the fix, the next base change sets every tag.
    fleet.rewrite("app", &from);
    fleet.push("os", "third").await;
    fleet.wait_for_cascade(2, |cascade| cascade["promotion"] == "promoted");
    for name in ["middle", "app"] {
        assert_eq!(fleet.base_note(name).await, "third", "{name}");
    }
    let first = fleet.show_cascade(1);
    assert_eq!(first["phase"], "finished", "{first:#}");
}
