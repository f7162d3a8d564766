//! Kinds of bases: several platforms, build stages, copied files, and a registry with a password.

use std::{process::Stdio, thread, time::Duration};

use acrtask_tests::{
    TestEnvironment,
    project::{RegistryClient, create_folder},
};
use serde_json::{Value, json};

use crate::fleet::{TestFleet, find_node, new_member, node_states};

/// Returns the architecture of this machine, and another one.
fn architectures() -> (&'static str, &'static str) {
    match std::env::consts::ARCH {
        "aarch64" => ("arm64", "amd64"),
        _ => ("amd64", "arm64"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn change_of_an_unused_platform_rebuilds_nothing() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let fleet = TestFleet::start(&environment).await;
    let (here, there) = architectures();
    let first = fleet
        .push_index("os", &[(here, "first"), (there, "first")])
        .await;
    let base = fleet.image_name("os");
    fleet.create_tasks(&[new_member("app", &format!("FROM {base}\n"))]);
    fleet.run_tasks(&["app"]);
    fleet.assert_fresh_after(0);
    assert_eq!(fleet.built_from(&fleet.image_name("app"))[&base], first);

    let other = fleet
        .push_index("os", &[(here, "first"), (there, "second")])
        .await;
    fleet.server.run_ok(&["base", "check", &base]);
    let moved = fleet
        .server
        .run_json(&["base", "show", &base, "-o", "json"]);
    assert_eq!(moved[0]["digest"], other.as_str(), "{moved:#}");
    fleet.assert_fresh_after(0);
    let shown = fleet
        .server
        .run_json(&["images", "show", &fleet.image_name("app"), "-o", "json"]);
    assert_eq!(shown["bases"][0]["effect"], "otherPlatform", "{shown:#}");
    let plan = fleet
        .server
        .run_json(&["cascade", "plan", &base, "-o", "json"]);
    assert_eq!(plan["nodes"].as_array().unwrap().len(), 0, "{plan:#}");

    let ours = fleet
        .push_index("os", &[(here, "third"), (there, "second")])
        .await;
    fleet.wait_finished(1);
    assert_eq!(fleet.base_note("app").await, "third");
    assert_eq!(fleet.built_from(&fleet.image_name("app"))[&base], ours);
    fleet.assert_fresh_after(1);
}

/// A task file can build for any platforms. Each base counts for the platforms of the stages that
/// use it.
#[tokio::test(flavor = "multi_thread")]
async fn base_platforms_count_for_the_stages_that_use_them() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let fleet = TestFleet::start(&environment).await;
    let (here, there) = architectures();
    let notes = |ours, theirs| [(here, ours), (there, theirs)];
    fleet.push_index("os", &notes("first", "first")).await;
    fleet.push("plain", "first").await;
    let (os, plain) = (fleet.image_name("os"), fleet.image_name("plain"));
    let from = format!("FROM {os}\n");
    let cross = format!(
        "FROM --platform=linux/{there} {os} AS made\nFROM {plain}\nCOPY --from=made /note /made\n"
    );
    let built = |name: &str, dockerfile: &str, flags: &str| {
        let image = fleet.image_name(name);
        let steps = format!("  - build: {flags} -t {image} .\n  - push: [{image}]\n");
        new_member(name, dockerfile).with_steps(&steps)
    };
    fleet.create_tasks(&[
        built("own", &from, ""),
        built("other", &from, &format!("--platform linux/{there}")),
        built(
            "both",
            &from,
            &format!("--platform linux/{here},linux/{there}"),
        ),
        built("cross", &cross, "").with_all_bases(),
    ]);
    fleet.run_tasks(&["own", "other", "both", "cross"]);
    fleet.assert_fresh_after(0);
    let shown = |name: &str| {
        let image = fleet.image_name(name);
        fleet
            .server
            .run_json(&["images", "show", &image, "-o", "json"])
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
    let cascade = fleet.wait_finished(1);
    let expected = ["both", "cross", "other"].map(|task| (task, "succeeded"));
    assert_eq!(node_states(&cascade), expected.into(), "{cascade:#}");
    assert_eq!(fleet.base_note("other").await, "second");
    assert_eq!(shown("own")["bases"][0]["effect"], "otherPlatform");
    fleet.assert_fresh_after(1);

    fleet.push_index("os", &notes("third", "second")).await;
    let cascade = fleet.wait_finished(2);
    let expected = ["both", "own"].map(|task| (task, "succeeded"));
    assert_eq!(node_states(&cascade), expected.into(), "{cascade:#}");
    assert_eq!(fleet.base_note("own").await, "third");
    assert_eq!(shown("other")["bases"][0]["effect"], "otherPlatform");
    fleet.assert_fresh_after(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_bases_trigger_rebuilds_with_base_image_type_all() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let fleet = TestFleet::start(&environment).await;
    for name in ["os", "compiler"] {
        fleet.push(name, "first").await;
    }
    let (os, compiler) = (fleet.image_name("os"), fleet.image_name("compiler"));
    let stage = format!(
        "FROM {compiler} AS build\nRUN echo made > /made\nFROM {os}\nCOPY --from=build /made /made\n"
    );
    let copy = format!("FROM {os}\nCOPY --from={compiler} /bin/true /bin/copied\n");
    let mount = format!("FROM {os}\nRUN --mount=from={compiler},target=/c ls /c > /seen\n");
    fleet.create_tasks(&[
        new_member("runtime-alone", &stage),
        new_member("stage", &stage).with_all_bases(),
        new_member("copy", &copy).with_all_bases(),
        new_member("mount", &mount).with_all_bases(),
    ]);
    fleet.run_tasks(&["runtime-alone", "stage", "copy", "mount"]);
    fleet.assert_fresh_after(0);
    let new = fleet.push("compiler", "second").await;
    let cascade = fleet.wait_finished(1);
    let expected = ["copy", "mount", "stage"].map(|task| (task, "succeeded"));
    assert_eq!(node_states(&cascade), expected.into(), "{cascade:#}");
    for task in ["copy", "mount", "stage"] {
        assert_eq!(
            fleet.built_from(&fleet.image_name(task))[&compiler],
            new,
            "{task}"
        );
    }
    // Runtime bases count for every task.
    fleet.push("os", "third").await;
    let cascade = fleet.wait_finished(2);
    assert_eq!(node_states(&cascade).len(), 4, "{cascade:#}");
    assert_eq!(fleet.base_note("runtime-alone").await, "third");
    // The base used by that rebuild is now the recorded base.
    fleet.assert_fresh_after(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn private_base_in_another_registry_triggers_rebuilds() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let (Some(host), Some(user), Some(password)) = (
        variable("ACRTASK_TEST_AUTH_REGISTRY"),
        variable("ACRTASK_TEST_AUTH_USER"),
        variable("ACRTASK_TEST_AUTH_PASSWORD"),
    ) else {
        return;
    };
    let fleet = TestFleet::start(&environment).await;
    let private = RegistryClient::new(&host, Some((&user, &password)));
    fleet.push_to(&private, "os", "first").await;
    let base = fleet.image_name_at(&host, "os");
    fleet.create_tasks(&[
        new_member("app", &format!("FROM {base}\n")),
        new_member("end", &format!("FROM {}\n", fleet.image_name("app"))),
    ]);
    let set = environment
        .command()
        .args(["credential", "set", &host, "--username", &user])
        .args(["--from-env", "THE_PASSWORD"])
        .envs(fleet.server.variables())
        .env("THE_PASSWORD", &password)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(set.status.success(), "{set:?}");
    fleet.run_tasks(&["app"]);
    fleet.run_tasks(&["end"]);
    fleet.assert_fresh_after(0);
    let watched = fleet
        .server
        .run_json(&["base", "show", &base, "-o", "json"]);
    assert_eq!(watched[0]["status"], "ok", "{watched:#}");
    let new = fleet.push_to(&private, "os", "second").await;
    let cascade = fleet.wait_finished(1);
    assert_eq!(
        find_node(&cascade, "app").unwrap()["pins"][&base],
        new.as_str()
    );
    assert_eq!(fleet.base_note("end").await, "second");
    // The registry now denies access. The status shows this, and it triggers nothing.
    let gone = ["credential", "delete", &host];
    fleet.server.run_ok(&gone);
    fleet.push_to(&private, "os", "third").await;
    thread::sleep(Duration::from_secs(2));
    let watched = fleet
        .server
        .run_json(&["base", "show", &base, "-o", "json"]);
    assert_eq!(watched[0]["status"], "denied", "{watched:#}");
    assert_eq!(fleet.list_cascades().len(), 1);
    let list: Vec<Value> = fleet.list_runs("app");
    assert_eq!(list.len(), 2);
    assert!(!fleet.server.log().contains(&password));
}

/// Pushes the frontend built with these tests, together with the libraries it links to.
fn push_frontend(fleet: &TestFleet, note: &str) -> String {
    let program = env!("CARGO_BIN_EXE_frontend");
    let listed = std::process::Command::new("ldd").arg(program).output();
    let listed = String::from_utf8(listed.unwrap().stdout).unwrap();
    let files = create_folder(&[(
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
    let image = fleet.image_name("frontend");
    let args = ["build", "-t", &image, "--local", "."];
    let outcome = fleet.environment.start(files.path(), &args).wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    image
}

#[tokio::test(flavor = "multi_thread")]
async fn builds_use_the_pinned_digests_of_bases_and_frontends() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    // The interval is long, so that bases are polled only when the test requests it.
    let fleet = TestFleet::start_with(
        &environment,
        &["--base-interval", "1h", "--allow", "frontends"],
    )
    .await;
    fleet.push("os", "first").await;
    let os = fleet.image_name("os");
    let frontend = push_frontend(&fleet, "first");
    let dockerfile = format!("# syntax={frontend}\nFROM {os}\nRUN echo built\n");
    fleet.create_tasks(&[new_member("app", &dockerfile).with_all_bases()]);
    fleet.run_tasks(&["app"]);
    let app = fleet.image_name("app");
    let first = fleet.fetch_digest("frontend").await.unwrap();
    assert_eq!(fleet.built_from(&app)[&frontend], first);
    fleet.assert_fresh_after(0);

    fleet.apply_settings(&json!({"rules": [{"tasks": "", "mode": "approval"}]}));
    let seen = fleet.push("os", "second").await;
    push_frontend(&fleet, "second");
    let seen_frontend = fleet.fetch_digest("frontend").await.unwrap();
    assert_ne!(seen_frontend, first);
    fleet.server.run_ok(&["base", "check"]);
    fleet.wait_for_cascade(1, |cascade| cascade["awaitingApproval"] == json!(true));
    // Both change again before the server polls them.
    fleet.push("os", "third").await;
    push_frontend(&fleet, "third");
    fleet.server.run_ok(&["cascade", "approve", "1"]);
    let cascade = fleet.wait_finished(1);
    assert_eq!(find_node(&cascade, "app").unwrap()["state"], "succeeded");
    let bases = fleet.built_from(&app);
    assert_eq!(bases[&os], seen, "{bases:#?}");
    assert_eq!(bases[&frontend], seen_frontend, "{bases:#?}");
    assert_eq!(fleet.base_note("app").await, "second");
}
