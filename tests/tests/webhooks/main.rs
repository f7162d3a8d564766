//! From a push to an image: a real git server with a password, deliveries as GitHub signs them, a server with its runner,
//! a real registry, and a stand-in of the forge that is told where runs stand.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "../common/mod.rs"]
mod common;
mod forks;
mod killed;
mod place;
mod setup;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use acrtask_tests::{
    World,
    forge::{deliver, deliver_signed},
};
use serde_json::{Value, json};

use place::{FORGE_TOKEN, LIMIT, Place, only_run, task_file};

/// Looks at the command lines of all processes until it is dropped.
struct Watched {
    stop: Arc<AtomicBool>,
    seen: Option<thread::JoinHandle<Vec<String>>>,
}

impl Watched {
    fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let seen = thread::spawn(move || {
            let mut found = Vec::new();
            while !stopped.load(Ordering::SeqCst) {
                let processes = std::fs::read_dir("/proc").unwrap().flatten();
                for entry in processes {
                    let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
                    let line = String::from_utf8_lossy(&line).replace('\0', " ");
                    if line.contains("hunter2") {
                        found.push(line);
                    }
                }
                thread::sleep(Duration::from_millis(5));
            }
            found
        });
        Self {
            stop,
            seen: Some(seen),
        }
    }

    fn found(mut self) -> Vec<String> {
        self.stop.store(true, Ordering::SeqCst);
        self.seen.take().unwrap().join().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_becomes_an_image_and_the_forge_is_told() {
    let Some(world) = World::find() else { return };
    pushed(&world, Place::new(&world)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_on_postgresql() {
    let Some(world) = World::find() else { return };
    let Some(database) = common::postgres().await else {
        return;
    };
    pushed(&world, Place::on(&world, &database)).await;
    common::law_holds(&database).await;
}

/// From a push to an image and to the forge; then the same delivery once more, forged and changed.
async fn pushed(world: &World, place: Place) {
    place.task("app", &[]);
    let before = place.head("main");
    let commit = place
        .repositories
        .commit("app", &[("src/file", "second\n")]);
    // Another one, which must not be what is built.
    place.repositories.commit("app", &[("src/file", "third\n")]);
    // The forge is out of order for a moment: the run does not wait for it.
    place.forge.fail(1);
    let watched = Watched::start();
    let push = place.push(&before, &commit, &["src/file"]);
    let (status, receipt) = place.deliver("push", "delivery-1", &push);
    assert_eq!(status, 200, "{receipt:#}");
    let id = only_run(&receipt);
    let run = place.finished(&id, "succeeded");
    assert_eq!(watched.found(), Vec::<String>::new());

    // That commit, and no other one.
    assert_eq!(run["spec"]["context"]["commit"], commit.as_str(), "{run:#}");
    let facts = &run["result"]["facts"];
    assert_eq!(facts["commit"], commit.as_str(), "{run:#}");
    assert_eq!(facts["branch"], "main", "{run:#}");
    let pushed = world.digest(&place.image, &commit).await;
    assert_eq!(
        run["result"]["images"][0]["digest"].as_str(),
        pushed.as_deref(),
        "{run:#}"
    );
    assert!(pushed.is_some());

    // The forge was told, and what it was told last is how it ended.
    let statuses = place.forge.wait_for("org/app", &commit, "success");
    let states: Vec<&str> = statuses
        .iter()
        .map(|asked| asked.body["state"].as_str().unwrap())
        .collect();
    assert_eq!(states.last(), Some(&"success"), "{states:?}");
    assert!(
        states[..states.len() - 1]
            .iter()
            .all(|state| *state == "pending")
    );
    let last = statuses.last().unwrap();
    assert_eq!(last.body["context"], "acrtask/app");
    // There is no page that a browser could open.
    assert!(last.body.get("target_url").is_none(), "{last:#?}");
    assert!(last.authorization.contains(FORGE_TOKEN), "{last:#?}");

    // The delivery and its run are told of.
    let delivery = place.delivery(&receipt["delivery"]);
    assert_eq!(delivery["senderId"], "delivery-1");
    let outcome = &delivery["outcomes"][0];
    assert_eq!(outcome["what"], "run", "{delivery:#}");
    assert_eq!(outcome["run"], id.as_str());
    let list = place.ok(&["webhook", "deliveries"]).stdout;
    assert!(list.contains(&format!("run {id}")), "{list}");
    let shown = place.ok(&["task", "show", "app"]).stdout;
    assert!(shown.contains(&id), "{shown}");

    // The same once more starts nothing: by its id, and, because GitHub signs the body alone, by its body.
    let (status, again) = place.deliver("push", "delivery-1", &push);
    assert_eq!((status, &again["runs"]), (200, &json!([])), "{again:#}");
    assert_eq!(again["seenBefore"], true, "{again:#}");
    assert_eq!(again["delivery"], receipt["delivery"]);
    let (status, again) = place.deliver("push", "delivery-2", &push);
    assert_eq!((status, &again["runs"]), (200, &json!([])), "{again:#}");
    let replayed = place.delivery(&again["delivery"])["outcomes"][0].clone();
    assert_eq!(replayed["what"], "suppressed", "{replayed:#}");
    let reason = replayed["reason"].as_str().unwrap();
    let first = receipt["delivery"].as_str().unwrap();
    assert!(reason.contains(first), "{reason}");
    // A forged one, and one that was changed on the way.
    let body = place.push(&commit, &before, &["src/file"]).to_string();
    let (status, _) = deliver(&place.hook(), "wrong", "push", "delivery-3", &push).unwrap();
    assert_eq!(status, 401);
    let (status, _) =
        deliver_signed(&place.hook(), "push", "delivery-4", &body, "sha256=00").unwrap();
    assert_eq!(status, 401);
    assert_eq!(place.runs("app").len(), 1);

    // Nothing of a secret is in what was said.
    let log = place.run(&["runs", "logs", "-o", "json", &id]).all();
    let said = [log, place.server.log()].concat();
    assert!(!said.contains("hunter2"), "{said}");

    let doctor = place.run(&["doctor", "app"]);
    assert_eq!(doctor.code, Some(0), "{}", doctor.all());
    assert!(
        doctor.stdout.contains("2 deliveries were refused"),
        "{}",
        doctor.all()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_starts_nothing_says_why() {
    let Some(world) = World::find() else { return };
    let place = Place::new(&world);
    place.task("app", &["--ignore-path", "docs/**"]);
    let before = place.head("main");
    let commit = place
        .repositories
        .commit("app", &[("docs/index.md", "second\n")]);
    let push = place.push(&before, &commit, &["docs/index.md"]);
    let (_, receipt) = place.deliver("push", "delivery-1", &push);
    assert_eq!(receipt["runs"], json!([]), "{receipt:#}");
    let outcome = place.delivery(&receipt["delivery"])["outcomes"][0].clone();
    assert_eq!(outcome["what"], "suppressed", "{outcome:#}");
    let reason = outcome["reason"].as_str().unwrap();
    assert!(
        reason.contains("none of the 1 files that changed"),
        "{reason}"
    );
    let shown = place.ok(&["task", "show", "app"]).stdout;
    assert!(shown.contains("none of the 1 files"), "{shown}");

    // The branch goes away.
    let mut gone = place.push(&commit, &"0".repeat(40), &[]);
    gone["commits"] = json!([]);
    gone["head_commit"] = Value::Null;
    gone["deleted"] = true.into();
    let (_, receipt) = place.deliver("push", "delivery-2", &gone);
    let delivery = place.delivery(&receipt["delivery"]);
    assert_eq!(receipt["runs"], json!([]), "{receipt:#}");
    let outcome = &delivery["outcomes"][0];
    let reason = outcome["reason"].as_str().unwrap();
    assert!(reason.contains("was deleted"), "{delivery:#}");

    // A repository that the webhook may not speak of.
    let mut other = push.clone();
    other["repository"] =
        json!({ "full_name": "org/other", "clone_url": "https://git.example.com/org/other.git" });
    let (status, receipt) = place.deliver("push", "delivery-3", &other);
    assert!(status < 300, "{receipt:#}");
    assert!(
        receipt["note"]
            .as_str()
            .unwrap()
            .contains("may not speak of"),
        "{receipt:#}"
    );
    assert!(place.runs("app").is_empty());

    // Once the task counts those files, the same delivery is looked at once more.
    place.ok(&["task", "update", "app", "--ignore-path", ""]);
    let first = place.server.json(&["webhook", "deliveries", "-o", "json"]);
    let first = first["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["senderId"] == "delivery-1")
        .unwrap()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let again = place
        .server
        .json(&["webhook", "redeliver", &first, "-o", "json"]);
    assert_eq!(again["redeliveryOf"], first.as_str(), "{again:#}");
    let id = again["outcomes"][0]["run"].as_str().unwrap().to_owned();
    place.finished(&id, "succeeded");
    assert!(world.digest(&place.image, &commit).await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strangers_pull_request_waits_and_a_closed_one_is_canceled() {
    let Some(world) = World::find() else { return };
    let place = Place::new(&world);
    place.task("app", &["--pull-request-trigger-enabled", "true"]);
    let theirs = place.commit_of_pull_request(7, &[("src/file", "theirs\n")]);
    let opened = place.pull_request("opened", 7, "stranger/app", &theirs);
    let (_, receipt) = place.deliver("pull_request", "delivery-1", &opened);
    let id = only_run(&receipt);
    let run = place.server.run_of(&id);
    assert_eq!(run["state"], "queued", "{run:#}");
    assert_eq!(run["approval"], "pending", "{run:#}");
    let why = place.ok(&["runs", "why", &id]).stdout;
    assert!(
        why.contains(&format!("acrtask runs approve {id}")) && why.contains(&theirs),
        "{why}"
    );
    let statuses = place.forge.wait_for("org/app", &theirs, "pending");
    let description = statuses[0].body["description"].as_str().unwrap();
    assert!(description.contains("approval"), "{description}");
    // It waits, although a runner is free.
    thread::sleep(Duration::from_secs(2));
    assert_eq!(place.server.run_of(&id)["state"], "queued");
    let approved = place.ok(&["runs", "approve", &id]);
    assert!(approved.stderr.contains(&theirs), "{}", approved.all());
    place.finished(&id, "succeeded");
    assert!(world.digest(&place.image, &theirs).await.is_some());
    place.forge.wait_for("org/app", &theirs, "success");
    let twice = place.ok(&["runs", "approve", &id]);
    assert!(twice.stderr.contains("approved already"), "{}", twice.all());

    // One's own pull request begins at once; closing it ends its run.
    let slow = task_file(
        &place.image,
        "  - id: slow\n    cmd: $Registry/base/busybox:1.36 sleep 300\n",
    );
    let own = place.commit_of_pull_request(8, &[("acr-task.yaml", &slow)]);
    let opened = place.pull_request("opened", 8, "org/app", &own);
    let (_, receipt) = place.deliver("pull_request", "delivery-2", &opened);
    let running = only_run(&receipt);
    place
        .server
        .wait_for_run(&running, |run| run["state"] == "running");
    // A stranger's that nobody has approved goes with its pull request too.
    let never = place.commit_of_pull_request(9, &[("src/file", "never\n")]);
    let opened = place.pull_request("opened", 9, "stranger/app", &never);
    let waiting = only_run(&place.deliver("pull_request", "delivery-3", &opened).1);
    let begun = Instant::now();
    for (n, number, from, commit) in [(4, 8, "org/app", &own), (5, 9, "stranger/app", &never)] {
        let closed = place.pull_request("closed", number, from, commit);
        let (_, receipt) = place.deliver("pull_request", &format!("delivery-{n}"), &closed);
        assert_eq!(receipt["runs"], json!([]), "{receipt:#}");
    }
    for id in [&running, &waiting] {
        let run = place.finished(id, "canceled");
        assert!(
            run["reason"].as_str().unwrap().contains("closed"),
            "{run:#}"
        );
    }
    assert!(begun.elapsed() < LIMIT);
    place.forge.wait_for("org/app", &own, "error");
    assert!(world.digest(&place.image, &never).await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_commit_wins_where_the_task_says_so() {
    let Some(world) = World::find() else { return };
    newest_wins(&world, Place::new(&world)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_commit_wins_on_postgresql() {
    let Some(world) = World::find() else { return };
    let Some(database) = common::postgres().await else {
        return;
    };
    newest_wins(&world, Place::on(&world, &database)).await;
    common::law_holds(&database).await;
}

async fn newest_wins(world: &World, place: Place) {
    place.task("app", &["--newest-wins"]);
    let slow = task_file(
        &place.image,
        "  - id: slow\n    cmd: $Registry/base/busybox:1.36 sleep 300\n",
    );
    let start = place.head("main");
    let first = place
        .repositories
        .commit("app", &[("acr-task.yaml", &slow)]);
    let push = place.push(&start, &first, &["acr-task.yaml"]);
    let older = only_run(&place.deliver("push", "delivery-1", &push).1);
    place
        .server
        .wait_for_run(&older, |run| run["state"] == "running");
    let quick = task_file(&place.image, "");
    let second = place
        .repositories
        .commit("app", &[("acr-task.yaml", &quick)]);
    let push = place.push(&first, &second, &["acr-task.yaml"]);
    let newer = only_run(&place.deliver("push", "delivery-2", &push).1);
    let run = place.finished(&older, "canceled");
    assert_eq!(run["reason"], format!("superseded by {newer}"), "{run:#}");
    place.finished(&newer, "succeeded");
    assert!(world.digest(&place.image, &first).await.is_none());
    assert!(world.digest(&place.image, &second).await.is_some());
    place.forge.wait_for("org/app", &first, "error");
    place.forge.wait_for("org/app", &second, "success");
}
