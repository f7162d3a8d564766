//! Servers and runners as separate processes. Runs go from a client to a registry, on SQLite and on
//! PostgreSQL, with the same result as a local run.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{collections::BTreeSet, path::Path, time::Duration};

use acrtask_tests::{
    Outcome, TestEnvironment, new_run_id,
    project::{create_folder, task_with_one_step},
    second_engine::SecondEngine,
    service::{SharedState, TestRunner, TestServer},
};

mod common;
use common::{assert_triggers_accounted, create_postgres_database, database_url};

/// Returns a task that builds, tests and pushes.
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

fn dockerfile(environment: &TestEnvironment) -> String {
    format!("FROM {}\nRUN echo made > /made\n", environment.busybox())
}

#[tokio::test]
async fn serve_command_alone_builds_tests_and_pushes() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &[]);
    let files = create_folder(&[
        (
            "acr-task.yaml",
            &build_test_push("service/one", "cat /made"),
        ),
        ("Dockerfile", &dockerfile(&environment)),
    ]);
    let outcome = server
        .run(files.path(), &["run", "-o", "plain", "."])
        .wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    assert!(
        outcome.stdout.contains("| made"),
        "{}",
        outcome.transcript()
    );
    let pushed = environment
        .fetch_digest("service/one", &outcome.run)
        .await
        .unwrap();
    assert!(outcome.stdout.contains(&pushed), "{}", outcome.transcript());
    let run = server.fetch_run(&outcome.run);
    assert_eq!(run["state"], "succeeded", "{run:#}");
    assert_eq!(run["attempt"], 1, "{run:#}");
    assert_eq!(run["result"]["images"][0]["digest"], pushed, "{run:#}");
    assert_eq!(
        run["result"]["bases"][0]["name"],
        environment.busybox(),
        "{run:#}"
    );
    let waited = server.run_json(&["runs", "why", &outcome.run, "-o", "json"]);
    assert!(waited["ahead"].is_null(), "{waited:#}");
    assert_triggers_accounted(&database_url(&server)).await;
}

/// Returns the exit code and the output of a run without the parts that vary: times, ids and
/// machine.
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
        // The order of parallel build progress varies.
        .filter(|line| !line.contains("| #"));
    (outcome.code, kept.collect::<Vec<_>>().join("\n"))
}

#[test]
fn run_at_a_server_prints_the_same_as_a_local_run() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &[]);
    let good = build_test_push("service/same", "cat /made; id -u");
    let bad = build_test_push("service/same", "echo no good; exit 3");
    let docker = dockerfile(&environment);
    let broken = format!("FROM {}\nRUN echo here; exit 9\n", environment.busybox());
    let refused = "version: v1.1.0\nsteps:\n  - id: a\n    push: text\n    wen: [b]\n";
    let files = |task: &str, docker: &str| {
        create_folder(&[
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
            files(&task_with_one_step("sleep 60"), ""),
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
        let assert_code = |outcome: &Outcome| {
            assert_eq!(outcome.code, Some(code), "{name}: {}", outcome.transcript());
        };
        let mut local = vec!["run", "-o", "plain"];
        local.extend(&args);
        local.push(".");
        let at_server = server.run(files.path(), &local).wait();
        assert_code(&at_server);
        let on_machine = environment.run_acrtask(files.path(), &local);
        assert_code(&on_machine);
        assert_eq!(
            comparable(&at_server),
            comparable(&on_machine),
            "{name}\n{}\n{}",
            at_server.transcript(),
            on_machine.transcript()
        );
        if name == "refused" {
            // Only the run at a server names a server and a runner.
            let mistakes: Vec<&str> = at_server
                .stderr
                .lines()
                .filter(|line| !line.starts_with("server: ") && !line.starts_with("runner: "))
                .collect();
            assert_eq!(mistakes, on_machine.stderr.lines().collect::<Vec<_>>());
        }
        assert!(
            !at_server.transcript().contains("hush-hush"),
            "{}",
            at_server.transcript()
        );
        assert!(!server.log().contains("hush-hush"), "{}", server.log());
    }
}

/// The server selects lines of a finished and of a running run. Secrets stay masked.
#[test]
fn lines_of_a_log_are_selected_by_step_text_and_address() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &[]);
    let task = format!(
        "version: v1.1.0
steps:
  - {{id: image, build: -t $Registry/service/lines:$ID .}}
  - {{id: count, cmd: \"{busybox} sh -c 'echo {{{{.Values.s}}}}; seq 1 5000'\"}}
  - {{id: wait, cmd: \"{busybox} sh -c 'echo waiting; sleep 600'\"}}
",
        busybox = environment.busybox()
    );
    let files = create_folder(&[
        ("acr-task.yaml", &task),
        ("Dockerfile", &dockerfile(&environment)),
    ]);
    let secret = ["--set-secret", "s=hush-hush"];
    let args = ["run", "--no-wait", secret[0], secret[1], "."];
    let started = server.run(files.path(), &args).wait();
    let run = started.stdout.trim().to_owned();
    let logs = |args: &[&str]| server.run_ok(&[&["runs", "logs", run.as_str()], args].concat());
    server.wait_for_run(&run, |_| {
        let outcome = server.start_client(files.path(), &["runs", "logs", &run, "--step", "wait"]);
        outcome.wait().stdout.contains("wait | waiting")
    });
    for state in ["running", "canceled"] {
        assert_eq!(server.fetch_run(&run)["state"], state);
        // The lines `started` and `base`, and the secret, precede the numbers.
        let around = logs(&["--around", "count:1003"]).stdout;
        assert!(around.contains("count:1003 | 1000\n"), "{state}: {around}");
        assert_eq!(around.lines().count(), 21, "{state}: {around}");
        let found = logs(&["--grep", "4999", "--step", "count"]);
        assert_eq!(found.stdout, "count:5002 | 4999\n", "{state}");
        assert!(
            found.stderr.starts_with("1 line matches"),
            "{}",
            found.stderr
        );
        let found = logs(&["--grep", "^49[0-9]{2}$", "--regex", "--step", "count"]);
        assert_eq!(found.stdout.lines().count(), 100, "{state}");
        assert!(
            found.stderr.starts_with("100 lines match"),
            "{}",
            found.stderr
        );
        let whole = logs(&["--step", "count"]).stdout;
        assert_eq!(
            whole
                .lines()
                .filter(|line| line.starts_with("count | "))
                .count(),
            5004
        );
        assert!(
            whole.contains("count | ***\n"),
            "{state}: {}",
            &whole[..200]
        );
        assert_eq!(logs(&["--grep", "hush-hush"]).stdout, "", "{state}");
        let tail = logs(&["--step", "count", "--tail", "2", "-o", "json"]).stdout;
        let last: serde_json::Value = serde_json::from_str(tail.lines().next().unwrap()).unwrap();
        assert_eq!(
            (&last["number"], &last["text"]),
            (&5003.into(), &"5000".into()),
            "{tail}"
        );
        let missing = server
            .start_client(files.path(), &["runs", "logs", &run, "--step", "other"])
            .wait();
        assert_eq!(missing.code, Some(2), "{}", missing.transcript());
        if state == "running" {
            server.run_ok(&["runs", "cancel", &run]);
            server.wait_for_run(&run, |run| run["state"] == "canceled");
        }
    }
    // The vertices of a build name their inputs.
    let log = logs(&["-o", "json"]).stdout;
    let events = log
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let vertices: Vec<_> = events.filter(|event| event["event"] == "vertex").collect();
    let ids: BTreeSet<&str> = vertices
        .iter()
        .filter_map(|event| event["vertex"].as_str())
        .collect();
    let inputs: BTreeSet<&str> = vertices
        .iter()
        .filter_map(|event| event["inputs"].as_array())
        .flatten()
        .filter_map(serde_json::Value::as_str)
        .collect();
    assert!(
        !inputs.is_empty() && inputs.is_subset(&ids),
        "{inputs:?} {ids:?}"
    );
}

/// A service manager sends SIGTERM once. A client then ends, even if its server has died.
#[test]
fn client_of_a_dead_server_ends_at_sigterm() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let mut server = TestServer::start(&environment, &["--no-runner"]);
    let files = create_folder(&[("acr-task.yaml", &task_with_one_step("true"))]);
    let client = server.run(files.path(), &["run", "-o", "plain", "."]);
    client.wait_for("server: ");
    server.kill();
    client.wait_for("reconnecting");
    client.signal("TERM");
    let outcome = client.wait();
    assert_eq!(outcome.code, Some(130), "{}", outcome.transcript());
    for part in ["cannot cancel the run", "which may continue"] {
        assert!(outcome.stderr.contains(part), "{}", outcome.transcript());
    }
}

/// A server receives the files of a run without `.git` and ignored files, and a Dockerfile outside
/// the context.
#[test]
fn ignored_files_are_not_uploaded() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &[]);
    let list = |id: &str| {
        format!(
            "FROM {}\nCOPY . /src\nRUN cd /src; echo {id} has $(find . -type f | sort)\n",
            environment.busybox()
        )
    };
    let id = new_run_id();
    let files = create_folder(&[
        (
            "app/acr-task.yaml",
            &task_with_one_step("echo has $(find . -type f | sort)"),
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
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    let line = format!("one | {has}");
    let has_line = outcome.stdout.lines().any(|found| found == line);
    assert!(has_line, "{}", outcome.transcript());
    let args = ["build", "-o", "plain", "--no-push", "-t", "service/out:1"];
    let args = [&args[..], &["-f", "../outside", "."]].concat();
    let outcome = server.run(&app, &args).wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    let line = format!("{id} {has}");
    let has_line = outcome.stdout.lines().any(|found| found.ends_with(&line));
    assert!(has_line, "{}", outcome.transcript());
}

async fn check_three_runners(environment: &TestEnvironment, servers: &[&TestServer], db: &str) {
    let runners: Vec<TestRunner> = (0..3)
        .map(|i| {
            let server = servers[i % servers.len()];
            TestRunner::start(server, &format!("r{i}"), &["--slots", "1"])
        })
        .collect();
    let files = create_folder(&[(
        "acr-task.yaml",
        &task_with_one_step("echo began; sleep 2; echo done"),
    )]);
    let started: Vec<_> = (0..6)
        .map(|i| {
            let server = servers[i % servers.len()];
            server.run(files.path(), &["run", "-o", "plain", "."])
        })
        .collect();
    let mut by = BTreeSet::new();
    for running in started {
        let outcome = running.wait();
        assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
        assert!(
            outcome.stdout.contains("| done"),
            "{}",
            outcome.transcript()
        );
        // Every server shows every run.
        for server in servers {
            let run = server.fetch_run(&outcome.run);
            assert_eq!(run["state"], "succeeded", "{run:#}");
            by.insert(run["runner"].as_str().unwrap().to_owned());
        }
    }
    assert_eq!(by.len(), 3, "{by:?}");
    assert_triggers_accounted(db).await;
    drop(runners);
    let _ = environment;
}

#[tokio::test]
async fn three_runners_share_the_runs_of_one_server_on_sqlite() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &["--no-runner"]);
    check_three_runners(&environment, &[&server], &database_url(&server)).await;
}

#[tokio::test]
async fn three_runners_share_the_runs_of_two_servers_on_postgresql() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let Some(db) = create_postgres_database().await else {
        return;
    };
    let shared = SharedState::new(&db);
    let flags = shared.flags();
    let first = TestServer::start(&environment, &flags);
    let second = TestServer::start_with(&environment, &flags, Some(&first.token));
    check_three_runners(&environment, &[&first, &second], &db).await;
    // A client of one server cancels a run on a runner of the other.
    let runner = TestRunner::start(&second, "far", &["--slots", "1", "--pool", "far"]);
    let files = create_folder(&[(
        "acr-task.yaml",
        &task_with_one_step("echo began; sleep 600"),
    )]);
    let run = first.run(files.path(), &["run", "-o", "plain", "--pool", "far", "."]);
    run.wait_for("| began");
    let requested = std::time::Instant::now();
    first.run_ok(&["runs", "cancel", &run.run]);
    let outcome = run.wait();
    assert_eq!(outcome.code, Some(130), "{}", outcome.transcript());
    assert!(
        requested.elapsed() < Duration::from_secs(6),
        "{:?}",
        requested.elapsed()
    );
    drop(runner);
    assert_triggers_accounted(&db).await;
}

#[tokio::test]
async fn queued_run_shows_its_unmet_requirements() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &["--no-runner"]);
    let files = create_folder(&[("acr-task.yaml", &task_with_one_step("echo hello"))]);
    let id = new_run_id();
    let queued = server
        .start_client(
            files.path(),
            &[
                "run",
                "--no-wait",
                "--id",
                &id,
                "-r",
                &environment.registry,
                "--runner-label",
                "disk=ssd",
                ".",
            ],
        )
        .wait();
    assert_eq!(queued.code, Some(0), "{}", queued.transcript());
    let why = server.run_ok(&["runs", "why", &id]);
    assert!(why.stdout.contains("no runner"), "{}", why.transcript());
    let other = TestRunner::start(&server, "spinning", &["--label", "disk=hdd"]);
    let why = server.run_ok(&["runs", "why", &id]);
    assert!(
        why.stdout.contains("spinning") && why.stdout.contains("disk=ssd"),
        "{}",
        why.transcript()
    );
    let fits = TestRunner::start(&server, "solid", &["--label", "disk=ssd"]);
    let run = server.wait_for_run(&id, |run| run["state"] == "succeeded");
    assert_eq!(run["runner"], "solid");
    drop((other, fits));
    assert_triggers_accounted(&database_url(&server)).await;
}

#[test]
fn registry_cache_of_a_task_warms_an_empty_runner() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let Some(engine) = SecondEngine::start() else {
        return;
    };
    let server = TestServer::start(&environment, &["--no-runner"]);
    let warm = TestRunner::start(&server, "warm", &["--pool", "warm"]);
    let cold = TestRunner::start_at(
        &server,
        &server.url,
        "cold",
        &["--pool", "cold", "--docker-host", &engine.host],
        &[("DOCKER_HOST", &engine.host)],
    );
    let files = create_folder(&[(
        "Dockerfile",
        &format!(
            "FROM {}\nRUN echo {} > /made; sleep 1\n",
            environment.busybox(),
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
            environment.registry,
            indent(task)
        ),
    )
    .unwrap();
    let apply = |path: &Path| server.run_ok(&["task", "apply", "-f", path.to_str().unwrap()]);
    apply(&definition);
    let context = files.path().to_str().unwrap();
    let run = |pool: &str| {
        let outcome = server
            .start_client(
                files.path(),
                &["task", "run", "cached", "--context", context, "-o", "json"],
            )
            .wait();
        assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
        let id = outcome.events()[0]["run"].as_str().unwrap().to_owned();
        let run = server.fetch_run(&id);
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
    assert!(!cached, "{}", outcome.transcript());
    let text = std::fs::read_to_string(&definition).unwrap();
    std::fs::write(&definition, text.replace("pool: warm", "pool: cold")).unwrap();
    apply(&definition);
    let (cached, outcome) = run("cold");
    assert!(
        cached,
        "an empty BuildKit did not use the cache: {}",
        outcome.transcript()
    );
    drop((warm, cold));
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}
