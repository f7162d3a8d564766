//! Kinds of bases: of several platforms, of build stages, what is copied from, in a registry with a password.

use std::{process::Stdio, thread, time::Duration};

use acrtask_tests::{
    World,
    project::{RegistryClient, folder},
};
use serde_json::{Value, json};

use crate::fleet::{Fleet, member, node, states};

/// This machine's processor, and another one.
fn processors() -> (&'static str, &'static str) {
    match std::env::consts::ARCH {
        "aarch64" => ("arm64", "amd64"),
        _ => ("amd64", "arm64"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_platform_of_a_base_rebuilds_nothing() {
    let Some(world) = World::find() else { return };
    let fleet = Fleet::start(&world).await;
    let (here, there) = processors();
    let first = fleet
        .push_index("os", &[(here, "first"), (there, "first")])
        .await;
    let base = fleet.image("os");
    fleet.tasks(&[member("app", &format!("FROM {base}\n"))]);
    fleet.build(&["app"]);
    fleet.rests_after(0);
    assert_eq!(fleet.built_from(&fleet.image("app"))[&base], first);

    let other = fleet
        .push_index("os", &[(here, "first"), (there, "second")])
        .await;
    fleet.server.ok(&["base", "check", &base]);
    let moved = fleet.server.json(&["base", "show", &base, "-o", "json"]);
    assert_eq!(moved[0]["digest"], other.as_str(), "{moved:#}");
    fleet.rests_after(0);
    let shown = fleet
        .server
        .json(&["images", "show", &fleet.image("app"), "-o", "json"]);
    assert_eq!(shown["bases"][0]["effect"], "otherPlatform", "{shown:#}");
    let plan = fleet.server.json(&["cascade", "plan", &base, "-o", "json"]);
    assert_eq!(plan["nodes"].as_array().unwrap().len(), 0, "{plan:#}");

    let ours = fleet
        .push_index("os", &[(here, "third"), (there, "second")])
        .await;
    fleet.wait_over(1);
    assert_eq!(fleet.note("app").await, "third");
    assert_eq!(fleet.built_from(&fleet.image("app"))[&base], ours);
    fleet.rests_after(1);
}

/// Task files build for whatever platforms they say, each base is used for those that its stage is for.
#[tokio::test(flavor = "multi_thread")]
async fn each_platform_of_a_base_counts_where_a_task_file_uses_it() {
    let Some(world) = World::find() else { return };
    let fleet = Fleet::start(&world).await;
    let (here, there) = processors();
    let notes = |ours, theirs| [(here, ours), (there, theirs)];
    fleet.push_index("os", &notes("first", "first")).await;
    fleet.push("plain", "first").await;
    let (os, plain) = (fleet.image("os"), fleet.image("plain"));
    let from = format!("FROM {os}\n");
    let cross = format!(
        "FROM --platform=linux/{there} {os} AS made\nFROM {plain}\nCOPY --from=made /note /made\n"
    );
    let built = |name: &str, dockerfile: &str, flags: &str| {
        let image = fleet.image(name);
        let steps = format!("  - build: {flags} -t {image} .\n  - push: [{image}]\n");
        member(name, dockerfile).steps(&steps)
    };
    fleet.tasks(&[
        built("own", &from, ""),
        built("other", &from, &format!("--platform linux/{there}")),
        built(
            "both",
            &from,
            &format!("--platform linux/{here},linux/{there}"),
        ),
        built("cross", &cross, "").all(),
    ]);
    fleet.build(&["own", "other", "both", "cross"]);
    fleet.rests_after(0);
    let shown = |name: &str| {
        let image = fleet.image(name);
        fleet.server.json(&["images", "show", &image, "-o", "json"])
    };
    let linux = |names: &[&str]| -> Vec<String> {
        let mut names: Vec<String> = names.iter().map(|name| format!("linux/{name}")).collect();
        names.sort();
        names
    };
    for (name, of_image, of_base) in [
        ("own", &[here][..], &[here][..]),
        ("other", &[there], &[there]),
        ("both", &[here, there], &[here, there]),
        ("cross", &[here], &[there]),
    ] {
        let image = shown(name);
        assert_eq!(image["platforms"], json!(linux(of_image)), "{image:#}");
        let mut bases = image["bases"].as_array().unwrap().iter();
        let base = bases.find(|base| base["name"] == os.as_str()).unwrap();
        assert_eq!(base["platforms"], json!(linux(of_base)), "{image:#}");
    }

    fleet.push_index("os", &notes("first", "second")).await;
    let cascade = fleet.wait_over(1);
    let expected = ["both", "cross", "other"].map(|task| (task, "succeeded"));
    assert_eq!(states(&cascade), expected.into(), "{cascade:#}");
    assert_eq!(fleet.note("other").await, "second");
    assert_eq!(shown("own")["bases"][0]["effect"], "otherPlatform");
    fleet.rests_after(1);

    fleet.push_index("os", &notes("third", "second")).await;
    let cascade = fleet.wait_over(2);
    let expected = ["both", "own"].map(|task| (task, "succeeded"));
    assert_eq!(states(&cascade), expected.into(), "{cascade:#}");
    assert_eq!(fleet.note("own").await, "third");
    assert_eq!(shown("other")["bases"][0]["effect"], "otherPlatform");
    fleet.rests_after(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_builds_use_counts_where_a_task_says_all() {
    let Some(world) = World::find() else { return };
    let fleet = Fleet::start(&world).await;
    for name in ["os", "compiler"] {
        fleet.push(name, "first").await;
    }
    let (os, compiler) = (fleet.image("os"), fleet.image("compiler"));
    let stage = format!(
        "FROM {compiler} AS build\nRUN echo made > /made\nFROM {os}\nCOPY --from=build /made /made\n"
    );
    let copy = format!("FROM {os}\nCOPY --from={compiler} /bin/true /bin/copied\n");
    let mount = format!("FROM {os}\nRUN --mount=from={compiler},target=/c ls /c > /seen\n");
    fleet.tasks(&[
        member("runtime-alone", &stage),
        member("stage", &stage).all(),
        member("copy", &copy).all(),
        member("mount", &mount).all(),
    ]);
    fleet.build(&["runtime-alone", "stage", "copy", "mount"]);
    fleet.rests_after(0);
    let new = fleet.push("compiler", "second").await;
    let cascade = fleet.wait_over(1);
    let expected = ["copy", "mount", "stage"].map(|task| (task, "succeeded"));
    assert_eq!(states(&cascade), expected.into(), "{cascade:#}");
    for task in ["copy", "mount", "stage"] {
        assert_eq!(
            fleet.built_from(&fleet.image(task))[&compiler],
            new,
            "{task}"
        );
    }
    // What images stand on counts for all.
    fleet.push("os", "third").await;
    let cascade = fleet.wait_over(2);
    assert_eq!(states(&cascade).len(), 4, "{cascade:#}");
    assert_eq!(fleet.note("runtime-alone").await, "third");
    // And what was used meanwhile is what it stands on now.
    fleet.rests_after(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_base_in_another_registry() {
    let Some(world) = World::find() else { return };
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let (Some(host), Some(user), Some(password)) = (
        variable("ACRTASK_TEST_AUTH_REGISTRY"),
        variable("ACRTASK_TEST_AUTH_USER"),
        variable("ACRTASK_TEST_AUTH_PASSWORD"),
    ) else {
        return;
    };
    let fleet = Fleet::start(&world).await;
    let private = RegistryClient::new(&host, Some((&user, &password)));
    fleet.push_to(&private, "os", "first").await;
    let base = fleet.image_at(&host, "os");
    fleet.tasks(&[
        member("app", &format!("FROM {base}\n")),
        member("end", &format!("FROM {}\n", fleet.image("app"))),
    ]);
    let set = world
        .command()
        .args(["credential", "set", &host, "--username", &user])
        .args(["--from-env", "THE_PASSWORD"])
        .envs(fleet.server.variables())
        .env("THE_PASSWORD", &password)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(set.status.success(), "{set:?}");
    fleet.build(&["app"]);
    fleet.build(&["end"]);
    fleet.rests_after(0);
    let watched = fleet.server.json(&["base", "show", &base, "-o", "json"]);
    assert_eq!(watched[0]["status"], "ok", "{watched:#}");
    let new = fleet.push_to(&private, "os", "second").await;
    let cascade = fleet.wait_over(1);
    assert_eq!(node(&cascade, "app").unwrap()["pins"][&base], new.as_str());
    assert_eq!(fleet.note("end").await, "second");
    // Nobody may see it any more: that is a state of its own, and no reason for anything.
    let gone = ["credential", "delete", &host];
    fleet.server.ok(&gone);
    fleet.push_to(&private, "os", "third").await;
    thread::sleep(Duration::from_secs(2));
    let watched = fleet.server.json(&["base", "show", &base, "-o", "json"]);
    assert_eq!(watched[0]["status"], "denied", "{watched:#}");
    assert_eq!(fleet.cascades().len(), 1);
    let list: Vec<Value> = fleet.runs("app");
    assert_eq!(list.len(), 2);
    assert!(!fleet.server.log().contains(&password));
}

/// Pushes the frontend that is built beside these tests, with what it is linked to.
fn push_frontend(fleet: &Fleet, note: &str) -> String {
    let program = env!("CARGO_BIN_EXE_frontend");
    let listed = std::process::Command::new("ldd").arg(program).output();
    let listed = String::from_utf8(listed.unwrap().stdout).unwrap();
    let files = folder(&[(
        "Dockerfile",
        &format!("FROM scratch\nCOPY . /\nLABEL note={note}\nENTRYPOINT [\"/frontend\"]\n"),
    )]);
    std::fs::copy(program, files.path().join("frontend")).unwrap();
    for library in listed
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
    {
        let to = files.path().join(library.trim_start_matches('/'));
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(library, to).unwrap();
    }
    let image = fleet.image("frontend");
    let args = ["build", "-t", &image, "--local", "."];
    let outcome = fleet.world.start(files.path(), &args).wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.all());
    image
}

#[tokio::test(flavor = "multi_thread")]
async fn builds_are_held_to_what_the_cascade_saw_frontends_too() {
    let Some(world) = World::find() else { return };
    // Bases are looked at when the test says so.
    let fleet = Fleet::with(&world, &["--base-interval", "1h", "--allow", "frontends"]).await;
    fleet.push("os", "first").await;
    let os = fleet.image("os");
    let frontend = push_frontend(&fleet, "first");
    let dockerfile = format!("# syntax={frontend}\nFROM {os}\nRUN echo built\n");
    fleet.tasks(&[member("app", &dockerfile).all()]);
    fleet.build(&["app"]);
    let app = fleet.image("app");
    let first = fleet.digest("frontend").await.unwrap();
    assert_eq!(fleet.built_from(&app)[&frontend], first);
    fleet.rests_after(0);

    fleet.settings(&json!({"rules": [{"tasks": "", "mode": "approval"}]}));
    let seen = fleet.push("os", "second").await;
    push_frontend(&fleet, "second");
    let seen_frontend = fleet.digest("frontend").await.unwrap();
    assert_ne!(seen_frontend, first);
    fleet.server.ok(&["base", "check"]);
    fleet.wait(1, |cascade| cascade["waitsForApproval"] == json!(true));
    // They move once more, and nobody has seen that yet.
    fleet.push("os", "third").await;
    push_frontend(&fleet, "third");
    fleet.server.ok(&["cascade", "approve", "1"]);
    let cascade = fleet.wait_over(1);
    assert_eq!(node(&cascade, "app").unwrap()["state"], "succeeded");
    let bases = fleet.built_from(&app);
    assert_eq!(bases[&os], seen, "{bases:#?}");
    assert_eq!(bases[&frontend], seen_frontend, "{bases:#?}");
    assert_eq!(fleet.note("app").await, "second");
}
