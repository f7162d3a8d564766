//! Control planes and runners as processes: runs go the whole way from a client to a registry, on SQLite and on
//! PostgreSQL, and come out as they do on one's own machine.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{collections::BTreeSet, path::Path, time::Duration};

use acrtask_tests::{
    Outcome, World, new_run_id,
    project::{folder, one_step},
    second_engine::SecondEngine,
    service::{Runner, Server, SharedState},
};

mod common;
use common::{database, law_holds, postgres};

/// A task that builds, tests and pushes.
fn build_test_push(repository: &str, test: &str) -> String {
    format!(
        "version: v1.1.0
steps:
  - {{id: image, build: -t $Registry/{repository}:$ID .}}
  - {{id: test, cmd: $Registry/{repository}:$ID sh -c '{test}'}}
  - {{id: out, push: [$Registry/{repository}:$ID]}}
"
    )
}

fn dockerfile(world: &World) -> String {
    format!("FROM {}\nRUN echo made > /made\n", world.busybox())
}

#[tokio::test]
async fn one_command_is_a_whole_service() {
    let Some(world) = World::find() else { return };
    let server = Server::start(&world, &[]);
    let files = folder(&[
        (
            "acr-task.yaml",
            &build_test_push("service/one", "cat /made"),
        ),
        ("Dockerfile", &dockerfile(&world)),
    ]);
    let outcome = server
        .run(files.path(), &["run", "-o", "plain", "."])
        .wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.all());
    assert!(outcome.stdout.contains("| made"), "{}", outcome.all());
    let pushed = world.digest("service/one", &outcome.run).await.unwrap();
    assert!(outcome.stdout.contains(&pushed), "{}", outcome.all());
    let run = server.run_of(&outcome.run);
    assert_eq!(run["state"], "succeeded", "{run:#}");
    assert_eq!(run["attempt"], 1, "{run:#}");
    assert_eq!(run["result"]["images"][0]["digest"], pushed, "{run:#}");
    assert_eq!(
        run["result"]["bases"][0]["name"],
        world.busybox(),
        "{run:#}"
    );
    let waited = server.json(&["runs", "why", &outcome.run, "-o", "json"]);
    assert!(waited["ahead"].is_null(), "{waited:#}");
    law_holds(&database(&server)).await;
}

/// What a run prints, without what differs from run to run: times, ids, where it ran.
fn comparable(outcome: &Outcome) -> (Option<i32>, String) {
    let kept = outcome
        .stdout
        .lines()
        .filter(|line| !line.starts_with("containers: ") && !line.starts_with("builds: "))
        .map(|line| {
            let line = line.replace(&outcome.run, "RUN");
            let mut words: Vec<String> = Vec::new();
            for word in line.split_whitespace() {
                let time = word
                    .trim_end_matches(':')
                    .strip_suffix('s')
                    .is_some_and(|n| n.parse::<f64>().is_ok());
                words.push(if time {
                    "TIME".into()
                } else if word.starts_with("sha256:") {
                    "DIGEST".into()
                } else {
                    word.to_owned()
                });
            }
            words.join(" ")
        })
        // Steps that run side by side, and progress of builds, print in an order of their own.
        .filter(|line| !line.contains("| #"));
    (outcome.code, kept.collect::<Vec<_>>().join("\n"))
}

#[test]
fn a_run_at_a_server_is_as_one_here() {
    let Some(world) = World::find() else { return };
    let server = Server::start(&world, &[]);
    let good = build_test_push("service/same", "cat /made; id -u");
    let bad = build_test_push("service/same", "echo no good; exit 3");
    let docker = dockerfile(&world);
    let broken = format!("FROM {}\nRUN echo here; exit 9\n", world.busybox());
    let refused = "version: v1.1.0\nsteps:\n  - id: a\n    push: text\n    wen: [b]\n";
    let files = |task: &str, docker: &str| {
        folder(&[
            ("acr-task.yaml", task),
            ("Dockerfile", docker),
            ("sub/x y", "z"),
        ])
    };
    for (name, files, args, code) in [
        ("good", files(&good, &docker), vec![], 0),
        ("failing test", files(&bad, &docker), vec![], 1),
        ("failing build", files(&good, &broken), vec![], 1),
        ("refused", files(refused, &docker), vec![], 2),
        ("no push", files(&good, &docker), vec!["--no-push"], 0),
        (
            "timeout",
            files(&one_step("sleep 60"), ""),
            vec!["--timeout", "2s"],
            124,
        ),
        (
            "values and secrets",
            files(
                "version: v1.1.0\nsteps:\n  - id: one\n    cmd: $Registry/base/busybox:1.36 echo {{.Values.a}} {{.Values.s}} {{.Run.Branch}}\n",
                "",
            ),
            vec![
                "--set",
                "a=1",
                "--set-secret",
                "s=hush-hush",
                "--branch",
                "b",
            ],
            0,
        ),
    ] {
        let here = |outcome: &Outcome| {
            assert_eq!(outcome.code, Some(code), "{name}: {}", outcome.all());
        };
        let mut local = vec!["run", "-o", "plain"];
        local.extend(&args);
        local.push(".");
        let at_server = server.run(files.path(), &local).wait();
        here(&at_server);
        let on_machine = world.acrtask(files.path(), &local);
        here(&on_machine);
        assert_eq!(
            comparable(&at_server),
            comparable(&on_machine),
            "{name}\n{}\n{}",
            at_server.all(),
            on_machine.all()
        );
        if name == "refused" {
            // The server and the runner are named there alone.
            let mistakes: Vec<&str> = at_server
                .stderr
                .lines()
                .filter(|line| !line.starts_with("server: ") && !line.starts_with("runner: "))
                .collect();
            assert_eq!(mistakes, on_machine.stderr.lines().collect::<Vec<_>>());
        }
        assert!(
            !at_server.all().contains("hush-hush"),
            "{}",
            at_server.all()
        );
        assert!(!server.log().contains("hush-hush"), "{}", server.log());
    }
}

/// A server gets the files of a run without its history and what is ignored, and a Dockerfile from elsewhere.
#[test]
fn ignored_files_stay_on_the_machine() {
    let Some(world) = World::find() else { return };
    let server = Server::start(&world, &[]);
    let list = |id: &str| {
        format!(
            "FROM {}\nCOPY . /src\nRUN cd /src; echo {id} has $(find . -type f | sort)\n",
            world.busybox()
        )
    };
    let id = new_run_id();
    let files = folder(&[
        (
            "app/acr-task.yaml",
            &one_step("echo has $(find . -type f | sort)"),
        ),
        ("app/.dockerignore", "*.secret\n"),
        ("app/key.secret", "hidden"),
        ("app/.git/HEAD", "ref: refs/heads/main\n"),
        ("app/kept", "x"),
        ("outside", &list(&id)),
    ]);
    let app = files.path().join("app");
    let has = "has ./.dockerignore ./acr-task.yaml ./kept";
    let outcome = server.run(&app, &["run", "-o", "plain", "."]).wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.all());
    let line = format!("one | {has}");
    let has_line = outcome.stdout.lines().any(|found| found == line);
    assert!(has_line, "{}", outcome.all());
    let args = ["build", "-o", "plain", "--no-push", "-t", "service/out:1"];
    let args = [&args[..], &["-f", "../outside", "."]].concat();
    let outcome = server.run(&app, &args).wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.all());
    let line = format!("{id} {has}");
    let has_line = outcome.stdout.lines().any(|found| found.ends_with(&line));
    assert!(has_line, "{}", outcome.all());
}

async fn three_runners_share_the_work(world: &World, servers: &[&Server], db: &str) {
    let runners: Vec<Runner> = (0..3)
        .map(|i| {
            let server = servers[i % servers.len()];
            Runner::start(server, &format!("r{i}"), &["--slots", "1"])
        })
        .collect();
    let files = folder(&[("acr-task.yaml", &one_step("echo began; sleep 2; echo done"))]);
    let started: Vec<_> = (0..6)
        .map(|i| {
            let server = servers[i % servers.len()];
            server.run(files.path(), &["run", "-o", "plain", "."])
        })
        .collect();
    let mut by = BTreeSet::new();
    for running in started {
        let outcome = running.wait();
        assert_eq!(outcome.code, Some(0), "{}", outcome.all());
        assert!(outcome.stdout.contains("| done"), "{}", outcome.all());
        // Each server tells of each run.
        for server in servers {
            let run = server.run_of(&outcome.run);
            assert_eq!(run["state"], "succeeded", "{run:#}");
            by.insert(run["runner"].as_str().unwrap().to_owned());
        }
    }
    assert_eq!(by.len(), 3, "{by:?}");
    law_holds(db).await;
    drop(runners);
    let _ = world;
}

#[tokio::test]
async fn one_server_and_three_runners_on_sqlite() {
    let Some(world) = World::find() else { return };
    let server = Server::start(&world, &["--no-runner"]);
    three_runners_share_the_work(&world, &[&server], &database(&server)).await;
}

#[tokio::test]
async fn two_servers_and_three_runners_on_postgresql() {
    let Some(world) = World::find() else { return };
    let Some(db) = postgres().await else { return };
    let shared = SharedState::new(&db);
    let flags = shared.flags();
    let first = Server::start(&world, &flags);
    let second = Server::start_with(&world, &flags, Some(&first.token));
    three_runners_share_the_work(&world, &[&first, &second], &db).await;
    // A client of one server cancels what runs at a runner of the other.
    let runner = Runner::start(&second, "far", &["--slots", "1", "--pool", "far"]);
    let files = folder(&[("acr-task.yaml", &one_step("echo began; sleep 600"))]);
    let run = first.run(files.path(), &["run", "-o", "plain", "--pool", "far", "."]);
    run.wait_for("| began");
    let asked = std::time::Instant::now();
    first.ok(&["runs", "cancel", &run.run]);
    let outcome = run.wait();
    assert_eq!(outcome.code, Some(130), "{}", outcome.all());
    assert!(
        asked.elapsed() < Duration::from_secs(6),
        "{:?}",
        asked.elapsed()
    );
    drop(runner);
    law_holds(&db).await;
}

#[tokio::test]
async fn a_waiting_run_says_why_and_which_runner_would_do() {
    let Some(world) = World::find() else { return };
    let server = Server::start(&world, &["--no-runner"]);
    let files = folder(&[("acr-task.yaml", &one_step("echo hello"))]);
    let id = new_run_id();
    let queued = server
        .client(
            files.path(),
            &[
                "run",
                "--no-wait",
                "--id",
                &id,
                "-r",
                &world.registry,
                "--runner-label",
                "disk=ssd",
                ".",
            ],
        )
        .wait();
    assert_eq!(queued.code, Some(0), "{}", queued.all());
    let why = server.ok(&["runs", "why", &id]);
    assert!(why.stdout.contains("no runner"), "{}", why.all());
    let other = Runner::start(&server, "spinning", &["--label", "disk=hdd"]);
    let why = server.ok(&["runs", "why", &id]);
    assert!(
        why.stdout.contains("spinning") && why.stdout.contains("disk=ssd"),
        "{}",
        why.all()
    );
    let fits = Runner::start(&server, "solid", &["--label", "disk=ssd"]);
    let run = server.wait_for_run(&id, |run| run["state"] == "succeeded");
    assert_eq!(run["runner"], "solid");
    drop((other, fits));
    law_holds(&database(&server)).await;
}

#[test]
fn a_stored_task_warms_a_runner_that_has_nothing() {
    let Some(world) = World::find() else { return };
    let Some(engine) = SecondEngine::start() else {
        return;
    };
    let server = Server::start(&world, &["--no-runner"]);
    let warm = Runner::start(&server, "warm", &["--pool", "warm"]);
    let cold = Runner::start_at(
        &server,
        &server.url,
        "cold",
        &["--pool", "cold", "--docker-host", &engine.host],
        &[("DOCKER_HOST", &engine.host)],
    );
    let files = folder(&[(
        "Dockerfile",
        &format!(
            "FROM {}\nRUN echo {} > /made; sleep 1\n",
            world.busybox(),
            new_run_id()
        ),
    )]);
    let task = "version: v1.1.0
steps:
  - {id: image, build: -t $Registry/service/cached:$ID .}
  - {id: out, push: [$Registry/service/cached:$ID]}
";
    let definition = files.path().join("task.yaml");
    std::fs::write(
        &definition,
        format!(
            "name: cached\nregistry: {}\nqueue: {{pool: warm}}\ntext: |\n{}",
            world.registry,
            indented(task)
        ),
    )
    .unwrap();
    let apply = |path: &Path| server.ok(&["task", "apply", "-f", path.to_str().unwrap()]);
    apply(&definition);
    let context = files.path().to_str().unwrap();
    let run = |pool: &str| {
        let outcome = server
            .client(
                files.path(),
                &["task", "run", "cached", "--context", context, "-o", "json"],
            )
            .wait();
        assert_eq!(outcome.code, Some(0), "{}", outcome.all());
        let id = outcome.events()[0]["run"].as_str().unwrap().to_owned();
        let run = server.run_of(&id);
        assert_eq!(run["queue"]["pool"], pool, "{run:#}");
        let cached = outcome.events_named("vertex").into_iter().any(|event| {
            event["cached"] == true
                && event["name"]
                    .as_str()
                    .is_some_and(|name| name.contains("RUN echo"))
        });
        (cached, outcome)
    };
    let (cached, outcome) = run("warm");
    assert!(!cached, "{}", outcome.all());
    let text = std::fs::read_to_string(&definition).unwrap();
    std::fs::write(&definition, text.replace("pool: warm", "pool: cold")).unwrap();
    apply(&definition);
    let (cached, outcome) = run("cold");
    assert!(
        cached,
        "an empty BuildKit was not warmed: {}",
        outcome.all()
    );
    drop((warm, cold));
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}
