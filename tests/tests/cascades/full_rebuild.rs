//! Full rebuild of one base, three middle images and ten applications, one of which closes a
//! diamond.

use acrtask_tests::TestEnvironment;
use serde_json::Value;

use crate::{
    common::{assert_triggers_accounted, database_url},
    fleet::{TestFleet, find_node, new_member},
};

#[tokio::test(flavor = "multi_thread")]
async fn new_base_rebuilds_every_dependent_once_and_in_order() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let fleet = TestFleet::start(&environment).await;
    let old = fleet.push("os", "first").await;
    let on = |base: &str| format!("FROM {}\n", fleet.image_name(base));
    let middle = ["web", "worker", "tools"];
    let mut members: Vec<_> = middle
        .iter()
        .map(|name| new_member(name, &format!("{}RUN echo {name} > /{name}\n", on("os"))))
        .collect();
    let mut apps = Vec::new();
    for (index, base) in middle.iter().cycle().take(9).enumerate() {
        let name = format!("app{index}");
        members.push(new_member(&name, &on(base)));
        apps.push(name);
    }
    // Built from two of the middle images: the bottom of the diamond.
    let tools = fleet.image_name("tools");
    let both = format!("{}COPY --from={tools} /tools /tools\n", on("web"));
    members.push(new_member("both", &both).with_all_bases());
    apps.push("both".into());
    fleet.create_tasks(&members);
    let apps: Vec<&str> = apps.iter().map(String::as_str).collect();
    fleet.run_tasks(&middle);
    fleet.run_tasks(&apps);
    fleet.assert_fresh_after(0);

    let plan = fleet
        .server
        .run_json(&["cascade", "plan", &fleet.image_name("os"), "-o", "json"]);
    assert_eq!(plan["nodes"].as_array().unwrap().len(), 0, "{plan:#}");
    let new = fleet.push("os", "second").await;
    let cascade = fleet.wait_finished(1);
    assert_eq!(cascade["changes"][fleet.image_name("os")], new.as_str());
    let nodes = cascade["nodes"].as_array().unwrap();
    assert_eq!(nodes.len(), 13, "{cascade:#}");
    let time = |value: &Value| -> jiff::Timestamp { value.as_str().unwrap().parse().unwrap() };
    for node in nodes {
        assert_eq!(node["state"], "succeeded", "{cascade:#}");
        assert_eq!(node["attempts"], 1, "{cascade:#}");
        for parent in node["after"].as_array().into_iter().flatten() {
            let parent = crate::fleet::find_node(&cascade, parent.as_str().unwrap()).unwrap();
            assert!(
                time(&parent["endedAt"]) <= time(&node["startedAt"]),
                "{} began before {} had ended: {cascade:#}",
                node["task"],
                parent["task"]
            );
        }
    }
    let bottom = find_node(&cascade, "both").unwrap();
    assert_eq!(bottom["after"], serde_json::json!(["tools", "web"]));

    // Each task ran twice: once for the test, then in the cascade with its pins.
    for name in middle.iter().chain(&apps) {
        let runs = fleet.list_runs(name);
        assert_eq!(runs.len(), 2, "{name}: {runs:#?}");
        assert_eq!(runs[0]["trigger"], "cascade");
        assert_eq!(
            runs[0]["spec"]["pins"],
            find_node(&cascade, name).unwrap()["pins"]
        );
        assert_eq!(fleet.base_note(name).await, "second", "{name}");
    }
    // Each run shows its cascade and the digest changes that started it.
    let run = &fleet.list_runs("web")[0];
    let moved = serde_json::json!([{"reference": fleet.image_name("os"), "from": old, "to": new}]);
    assert_eq!(
        run["cascade"],
        serde_json::json!({"id": 1, "attempt": 1, "changes": moved})
    );
    let run = fleet.list_runs("both")[0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let shown = fleet.server.run_ok(&["runs", "show", &run]).stdout;
    assert!(shown.contains("cascade 1\n"), "{shown}");
    let (_, shown) = shown
        .split_once("Digest changes\n")
        .expect("the run shows digest changes");
    for (line, base) in shown.lines().zip(["tools", "web"]) {
        let after = fleet.fetch_digest(base).await.unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[0], fleet.image_name(base), "{shown}");
        assert_eq!(
            (words[2], words[3]),
            ("->", &after["sha256:".len()..][..12])
        );
    }
    // The recorded bases of the images confirm it.
    for name in middle {
        let bases = fleet.built_from(&fleet.image_name(name));
        assert_eq!(bases[&fleet.image_name("os")], new, "{name}: not {old}");
    }
    let bases = fleet.built_from(&fleet.image_name("both"));
    for base in ["web", "tools"] {
        let pushed = fleet.fetch_digest(base).await.unwrap();
        assert_eq!(bases[&fleet.image_name(base)], pushed, "{base}");
    }
    fleet.assert_fresh_after(1);
    assert_triggers_accounted(&database_url(&fleet.server)).await;
}
