//! What goes wrong in the middle, and what comes in the middle.

use acrtask_tests::World;

use crate::fleet::{Fleet, member, node, states};

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_stops_what_is_below_it_and_nothing_else() {
    let Some(world) = World::find() else { return };
    let fleet = Fleet::start(&world).await;
    fleet.push("os", "first").await;
    let on = |base: &str| format!("FROM {}\n", fleet.image(base));
    fleet.tasks(&[
        member("left", &on("os")),
        member("right", &on("os")),
        member("left-app", &on("left")),
        member("right-app", &on("right")),
        member("right-end", &on("right-app")),
    ]);
    fleet.build(&["left", "right"]);
    fleet.build(&["left-app", "right-app"]);
    fleet.build(&["right-end"]);
    fleet.rewrite("right", &format!("{}RUN cat /etc/missing\n", on("os")));
    fleet.settings(&serde_json::json!({"retries": 1}));
    fleet.push("os", "second").await;
    let cascade = fleet.wait_over(1);
    let expected = [
        ("left", "succeeded"),
        ("left-app", "succeeded"),
        ("right", "failed"),
        ("right-app", "stale"),
        ("right-end", "stale"),
    ];
    assert_eq!(states(&cascade), expected.into(), "{cascade:#}");
    let failed = node(&cascade, "right").unwrap();
    assert_eq!(failed["attempts"], 2, "{cascade:#}");
    let log = fleet.log(failed["run"].as_str().unwrap());
    assert!(log.contains("/etc/missing"), "{log}");
    let why = |task| node(&cascade, task).unwrap()["why"].as_str().unwrap();
    assert!(!why("right").is_empty(), "{cascade:#}");
    assert!(why("right-app").contains("right"), "{cascade:#}");
    assert!(why("right-end").contains("right-app"), "{cascade:#}");
    // It is known to be stale, and is not tried again by itself.
    assert_eq!(fleet.stale(), [fleet.image("right")]);
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert_eq!(fleet.cascades().len(), 1);
    assert_eq!(fleet.runs("right").len(), 3);

    // Mended, and tried again: what is left, and nothing else.
    fleet.rewrite("right", &on("os"));
    fleet.server.ok(&["cascade", "retry", "1"]);
    let cascade = fleet.wait_built("right-end");
    for task in ["right", "right-app"] {
        let state = &node(&cascade, task).unwrap()["state"];
        assert_eq!(state, "succeeded", "{cascade:#}");
    }
    assert_eq!(fleet.note("right-end").await, "second");
    assert_eq!(fleet.runs("left").len(), 2);
    fleet.rests_after(fleet.cascades().len());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_in_the_middle_joins_or_follows() {
    let Some(world) = World::find() else { return };
    let fleet = Fleet::start(&world).await;
    fleet.push("os", "first").await;
    let from = |base: &str| format!("FROM {}\n", fleet.image(base));
    fleet.tasks(&[
        member("slow", &fleet.slow("os", 6)),
        member("app", &from("slow")),
    ]);
    fleet.build(&["slow"]);
    fleet.build(&["app"]);
    fleet.push("os", "second").await;
    fleet.wait_task(1, "slow", "running");
    let newest = fleet.push("os", "third").await;
    fleet.server.ok(&["base", "check", &fleet.image("os")]);
    let first = fleet.wait_over(1);
    let second = fleet.wait_over(2);
    assert_eq!(second["follows"], 1, "{second:#}");
    assert_eq!(second["changes"][fleet.image("os")], newest.as_str());
    // What had begun ended well, and came again; what is below it was built once, on the newest.
    assert_eq!(node(&first, "slow").unwrap()["state"], "succeeded");
    assert_eq!(
        node(&first, "app").unwrap()["state"],
        "skipped",
        "{first:#}"
    );
    let expected = [("app", "succeeded"), ("slow", "succeeded")];
    assert_eq!(states(&second), expected.into(), "{second:#}");
    assert_eq!(fleet.runs("slow").len(), 3);
    assert_eq!(fleet.runs("app").len(), 2);
    assert_eq!(fleet.note("app").await, "third");
    fleet.rests_after(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loop_is_refused_with_its_path() {
    let Some(world) = World::find() else { return };
    // Bases are looked at when the test says so: a push is seen before its run has ended.
    let fleet = Fleet::with(&world, &["--base-interval", "1h"]).await;
    for name in ["egg", "hen"] {
        fleet.push(name, "first").await;
    }
    let from = |base: &str| format!("FROM {}\nRUN echo\n", fleet.image(base));
    fleet.tasks(&[member("egg", &from("hen")), member("hen", &from("egg"))]);
    fleet.build(&["egg"]);
    // Now each is older than what it stands on, for ever.
    fleet.build(&["hen"]);
    assert_eq!(fleet.stale(), [fleet.image("egg")]);
    std::thread::sleep(std::time::Duration::from_secs(3));
    let refused = format!(
        "egg pushes {} -> hen pushes {} -> egg: a task that rebuilds its own base never comes to rest; give one of them \
         the policy `None`, or another tag for its base",
        fleet.image("egg"),
        fleet.image("hen")
    );
    let plan = fleet.server.ok(&["cascade", "plan"]).stdout;
    let line = format!("not built: {refused}");
    assert!(plan.lines().any(|shown| shown == line), "{plan}\n{line}");
    let plan = fleet.server.json(&["cascade", "plan", "-o", "json"]);
    assert_eq!(plan["nodes"].as_array().unwrap().len(), 0, "{plan:#}");
    assert_eq!(plan["refused"].as_array().unwrap().len(), 1, "{plan:#}");
    assert_eq!(plan["refused"][0]["message"], refused, "{plan:#}");
    // Whoever asks for the image that stays stale is told the same.
    let why = fleet.command(&["images", "why", &fleet.image("egg")]);
    assert!(why.stdout.contains(&refused), "{}", why.all());
    assert_eq!(fleet.cascades(), Vec::<serde_json::Value>::new());
    assert_eq!((fleet.runs("egg").len(), fleet.runs("hen").len()), (1, 1));
}
