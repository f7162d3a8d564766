//! One base, three images in the middle, ten applications, a diamond.

use acrtask_tests::World;
use serde_json::Value;

use crate::{
    common::{database, law_holds},
    fleet::{Fleet, member, node},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_new_base_reaches_everything_once_and_in_order() {
    let Some(world) = World::find() else { return };
    let fleet = Fleet::start(&world).await;
    let old = fleet.push("os", "first").await;
    let on = |base: &str| format!("FROM {}\n", fleet.image(base));
    let middle = ["web", "worker", "tools"];
    let mut members: Vec<_> = middle
        .iter()
        .map(|name| member(name, &format!("{}RUN echo {name} > /{name}\n", on("os"))))
        .collect();
    let mut apps = Vec::new();
    for (index, base) in middle.iter().cycle().take(9).enumerate() {
        let name = format!("app{index}");
        members.push(member(&name, &on(base)));
        apps.push(name);
    }
    // Stands on two of them: the bottom of the diamond.
    let tools = fleet.image("tools");
    let both = format!("{}COPY --from={tools} /tools /tools\n", on("web"));
    members.push(member("both", &both).all());
    apps.push("both".into());
    fleet.tasks(&members);
    let apps: Vec<&str> = apps.iter().map(String::as_str).collect();
    fleet.build(&middle);
    fleet.build(&apps);
    fleet.rests_after(0);

    let plan = fleet
        .server
        .json(&["cascade", "plan", &fleet.image("os"), "-o", "json"]);
    assert_eq!(plan["nodes"].as_array().unwrap().len(), 0, "{plan:#}");
    let new = fleet.push("os", "second").await;
    let cascade = fleet.wait_over(1);
    assert_eq!(cascade["changes"][fleet.image("os")], new.as_str());
    let nodes = cascade["nodes"].as_array().unwrap();
    assert_eq!(nodes.len(), 13, "{cascade:#}");
    let time = |value: &Value| -> jiff::Timestamp { value.as_str().unwrap().parse().unwrap() };
    for node in nodes {
        assert_eq!(node["state"], "succeeded", "{cascade:#}");
        assert_eq!(node["attempts"], 1, "{cascade:#}");
        for parent in node["after"].as_array().into_iter().flatten() {
            let parent = crate::fleet::node(&cascade, parent.as_str().unwrap()).unwrap();
            assert!(
                time(&parent["endedAt"]) <= time(&node["startedAt"]),
                "{} began before {} had ended: {cascade:#}",
                node["task"],
                parent["task"]
            );
        }
    }
    let bottom = node(&cascade, "both").unwrap();
    assert_eq!(bottom["after"], serde_json::json!(["tools", "web"]));

    // Each ran twice, first for us and then for the cascade, held to what the cascade says.
    for name in middle.iter().chain(&apps) {
        let runs = fleet.runs(name);
        assert_eq!(runs.len(), 2, "{name}: {runs:#?}");
        assert_eq!(runs[0]["trigger"], "cascade");
        assert_eq!(
            runs[0]["spec"]["pins"],
            node(&cascade, name).unwrap()["pins"]
        );
        assert_eq!(fleet.note(name).await, "second", "{name}");
    }
    // Each run says which cascade started it, and what had moved.
    let run = &fleet.runs("web")[0];
    let moved = serde_json::json!([{"name": fleet.image("os"), "from": old, "to": new}]);
    assert_eq!(
        run["cascade"],
        serde_json::json!({"id": 1, "attempt": 1, "moved": moved})
    );
    let run = fleet.runs("both")[0]["id"].as_str().unwrap().to_owned();
    let shown = fleet.server.ok(&["runs", "show", &run]).stdout;
    assert!(shown.contains("cascade 1\n"), "{shown}");
    let (_, shown) = shown.split_once("Moved bases\n").expect("bases have moved");
    for (line, base) in shown.lines().zip(["tools", "web"]) {
        let after = fleet.digest(base).await.unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[0], fleet.image(base), "{shown}");
        assert_eq!(
            (words[2], words[3]),
            ("->", &after["sha256:".len()..][..12])
        );
    }
    // And what was built says so.
    for name in middle {
        let bases = fleet.built_from(&fleet.image(name));
        assert_eq!(bases[&fleet.image("os")], new, "{name}: not {old}");
    }
    let bases = fleet.built_from(&fleet.image("both"));
    for base in ["web", "tools"] {
        let pushed = fleet.digest(base).await.unwrap();
        assert_eq!(bases[&fleet.image(base)], pushed, "{base}");
    }
    fleet.rests_after(1);
    law_holds(&database(&fleet.server)).await;
}
