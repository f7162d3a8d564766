//! Pushes that are held back until what they are tested by has succeeded, and tags that go back.

use acrtask_tests::World;
use serde_json::json;

use crate::fleet::{Fleet, member, node};

/// An image in the middle, and an application that is tested, whose cascades hold their pushes back.
async fn gated(world: &World) -> Fleet {
    let fleet = Fleet::start(world).await;
    fleet.push("os", "first").await;
    let from = |base: &str| format!("FROM {}\n", fleet.image(base));
    let app = fleet.image("app");
    let steps = format!(
        "  - {{id: build, build: -t {app} .}}\n  - {{id: test, cmd: {app} test ! -e /broken}}\n  \
         - {{id: wait, cmd: {app} sleep 2}}\n  - {{id: push, push: [{app}]}}\n"
    );
    fleet.tasks(&[
        member("middle", &from("os")),
        member("app", &from("middle")).steps(&steps),
    ]);
    fleet.build(&["middle"]);
    fleet.build(&["app"]);
    fleet.settings(&json!({"promotion": {"tasks": "app", "tests": ["app/test"]}}));
    fleet
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_move_together_when_the_tests_have_passed_and_go_back_at_a_word() {
    let Some(world) = World::find() else { return };
    let fleet = gated(&world).await;
    let names = ["middle", "app"];
    let before = [fleet.digest("middle").await, fleet.digest("app").await];
    fleet.push("os", "second").await;
    fleet.wait_task(1, "app", "running");
    // The middle has been built, and its tag has not moved.
    let cascade = fleet.cascade(1);
    assert_eq!(node(&cascade, "middle").unwrap()["state"], "succeeded");
    assert_eq!(cascade["holds"], json!(true), "{cascade:#}");
    assert_eq!(cascade["promotion"], "held", "{cascade:#}");
    assert_eq!(fleet.digest("middle").await, before[0]);
    let held = &cascade["images"][0];
    assert_eq!(held["state"], "held", "{cascade:#}");
    assert_eq!(held["before"].as_str(), before[0].as_deref());
    // The application stands on what is held back, by its digest.
    let pins = &node(&cascade, "app").unwrap()["pins"];
    assert_eq!(pins[fleet.image("middle")], held["after"], "{cascade:#}");

    let cascade = fleet.wait(1, |cascade| cascade["promotion"] == "promoted");
    assert_eq!(cascade["phase"], "over", "{cascade:#}");
    for name in names {
        assert_eq!(fleet.note(name).await, "second", "{name}");
    }
    for image in cascade["images"].as_array().unwrap() {
        assert_eq!(image["state"], "moved", "{cascade:#}");
    }
    let middle = fleet.digest("middle").await.unwrap();
    let bases = fleet.built_from(&fleet.image("app"));
    assert_eq!(bases[&fleet.image("middle")], middle);
    fleet.rests_after(1);

    // All the way back, with one command.
    let outcome = fleet.server.ok(&["cascade", "rollback", "1"]);
    let cascade = fleet.wait(1, |cascade| cascade["promotion"] == "rolledBack");
    for (name, before) in names.into_iter().zip(before) {
        assert_eq!(fleet.digest(name).await, before, "{name}");
        assert_eq!(fleet.note(name).await, "first", "{name}");
    }
    for image in cascade["images"].as_array().unwrap() {
        assert_eq!(image["state"], "rolledBack", "{}", outcome.all());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_tag_moves_where_a_test_fails() {
    let Some(world) = World::find() else { return };
    let fleet = gated(&world).await;
    let before = [fleet.digest("middle").await, fleet.digest("app").await];
    let from = format!("FROM {}\n", fleet.image("middle"));
    fleet.rewrite("app", &format!("{from}RUN touch /broken\n"));
    fleet.push("os", "second").await;
    let cascade = fleet.wait_over(1);
    assert_eq!(node(&cascade, "middle").unwrap()["state"], "succeeded");
    assert_eq!(node(&cascade, "app").unwrap()["state"], "failed");
    std::thread::sleep(std::time::Duration::from_secs(2));
    let after = [fleet.digest("middle").await, fleet.digest("app").await];
    assert_eq!(after, before);
    let cascade = fleet.cascade(1);
    assert_eq!(cascade["images"][0]["state"], "held", "{cascade:#}");
    assert_eq!(cascade["promotion"], "held", "{cascade:#}");

    // The next base, with the fault mended, moves everything.
    fleet.rewrite("app", &from);
    fleet.push("os", "third").await;
    fleet.wait(2, |cascade| cascade["promotion"] == "promoted");
    for name in ["middle", "app"] {
        assert_eq!(fleet.note(name).await, "third", "{name}");
    }
    let first = fleet.cascade(1);
    assert_eq!(first["phase"], "over", "{first:#}");
}
