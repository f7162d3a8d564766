//! Hostile contexts, given to a real server with its runner under a trace of its system calls: no program is started but
//! git, no file is opened for writing outside of the server's own folder, and no connection goes anywhere but to the
//! addresses that were checked.
//!
//! All of it happens in namespaces of its own (network, mounts, processes), where a name server flips its answers and where
//! every private address is a trap; nothing of this machine can be reached from there, and nothing of it is changed.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod corpus;
mod front;
mod network;
mod registries;
mod repositories;
mod scenarios;
mod tls;
mod trace;

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use acrtask_tests::{
    World,
    git_server::{HttpGit, Repositories},
    service::Server,
};
use reqwest::Client;
use serde_json::{Value, json};

use corpus::Case;
use trace::{Allowed, Call, Trace};

/// Set for the process that is in the namespaces: a folder of its own.
const INSIDE: &str = "ACRTASK_TEST_HOSTILE_INSIDE";
/// The longest that a run may take.
const LIMIT: Duration = Duration::from_secs(40);

#[test]
fn hostile_inputs_are_traced() {
    let Some(world) = World::find() else { return };
    let Some(strace) = std::env::var_os("ACRTASK_TEST_STRACE") else {
        assert!(
            std::env::var_os("ACRTASK_TEST_SKIP_ENGINE").is_some(),
            "ACRTASK_TEST_STRACE is not set: run `cargo xtask test`"
        );
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("acrtask");
    let script = format!(
        "#!/bin/sh\nif [ \"$1\" = serve ]; then\n  exec '{}' -f -qq -yy -s 4096 --seccomp-bpf -e trace={} -e signal=none -o '{}' -- \
         '{program}' \"$@\"\nfi\nexec '{program}' \"$@\"\n",
        Path::new(&strace).display(),
        trace::CALLS,
        folder.path().join("trace").display(),
        program = world.program().display(),
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    run_in_namespaces("inside", folder.path(), &program);
}

/// Runs the ignored test `name` of this file's program in namespaces of its own, with `program` as the program under
/// test.
fn run_in_namespaces(name: &str, folder: &Path, program: &Path) {
    let mut command = Command::new("unshare");
    command.args([
        "--net",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ]);
    let root = std::fs::metadata("/proc/self")
        .is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    if !root {
        command.args(["--user", "--map-root-user"]);
    }
    let output = command
        .arg("--")
        .arg(std::env::current_exe().unwrap())
        .args([name, "--exact", "--ignored", "--nocapture"])
        .env(INSIDE, folder)
        .env("ACRTASK_TEST_BIN", program)
        .env_remove("ACRTASK_SERVER")
        .env_remove("ACRTASK_TOKEN")
        .output()
        .unwrap();
    let printed = format!(
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{printed}");
    assert!(printed.contains("1 passed"), "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the other test runs it in namespaces of its own"]
async fn inside() {
    let (Some(world), Some(folder)) = (World::find(), std::env::var_os(INSIDE)) else {
        return;
    };
    let folder = PathBuf::from(folder);
    let (config, authority) = network::certificates();
    network::set_up(&folder, &authority);
    network::name_server();
    let trapped = network::traps();
    let repositories = Repositories::default();
    let mark = folder.join("somebody-was-here");
    let cases = corpus::cases(mark.to_str().unwrap(), &repositories);
    let git = HttpGit::start(&repositories.root(), None);
    front::start(
        network::public(),
        config,
        corpus::site(git.address().parse().unwrap()),
    )
    .unwrap();

    let server = Server::start(&world, &[]);
    let place = Asked {
        client: Client::new(),
        base: format!("{}/api/v1", server.url),
        token: server.token.clone(),
    };
    place.runner_is_there().await;
    let allowed = allowed(&server);
    let mut trace = Trace::new(folder.join("trace"));
    // What it does when it starts is its own business.
    assert!(!trace.more().is_empty(), "nothing is traced");
    let mut wrong = Vec::new();
    let mut reached = 0;
    for case in &cases {
        let told = place.try_out(case).await;
        let calls = trace.more();
        for objection in calls.iter().filter_map(|call| allowed.objection(call)) {
            wrong.push(format!("{}: {objection}", case.name));
        }
        reached += calls.iter().filter(is_public).count();
        if told.came != case.comes || !told.said.contains(case.says) {
            wrong.push(format!(
                "{}: its files came: {}\n{}",
                case.name, told.came, told.said
            ));
        }
        if mark.exists() {
            wrong.push(format!("{}: a command of its own was run", case.name));
            std::fs::remove_file(&mark).unwrap();
        }
    }
    assert_eq!(
        trapped.load(Ordering::SeqCst),
        0,
        "something came to a private address"
    );
    assert!(
        wrong.is_empty(),
        "{} are wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    // Every archive and every repository that came from where it may.
    assert!(
        reached > 40,
        "the trace misses connections: {reached} of {} cases",
        cases.len()
    );
}

fn is_public(call: &&Call) -> bool {
    Allowed::is_connection(call, network::public())
}

/// What the server may do: start git and what git brings, write to its folder, ask its engine, and connect to itself and to
/// what is public.
fn allowed(server: &Server) -> Allowed {
    let own = server.url.trim_start_matches("http://").parse().unwrap();
    let engine = std::env::var("DOCKER_HOST").unwrap_or_default();
    let engine = engine
        .strip_prefix("unix://")
        .unwrap_or("/var/run/docker.sock");
    Allowed {
        programs: vec!["git", "git-remote-https"],
        folders: vec![server.data()],
        addresses: vec![own, network::public()],
        // glibc asks for a cache of names, which is not there.
        sockets: vec![engine.into(), "/var/run/nscd/socket".into()],
    }
}

/// A server that is asked.
struct Asked {
    client: Client,
    base: String,
    token: String,
}

/// What became of a case.
struct Told {
    came: bool,
    said: String,
}

impl Asked {
    async fn get(&self, path: &str) -> String {
        let request = self.client.get(format!("{}{path}", self.base));
        let answer = request.bearer_auth(&self.token).send().await.unwrap();
        answer.text().await.unwrap()
    }

    async fn runner_is_there(&self) {
        let begun = Instant::now();
        while !self.get("/runners").await.contains("\"state\":\"online\"") {
            assert!(begun.elapsed() < LIMIT, "the runner does not come");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Starts a run with the case's context, and waits for its end.
    async fn try_out(&self, case: &Case) -> Told {
        let request = json!({ "spec": { "context": case.context, "work": { "do": "usual" } } });
        let asked = self.client.post(format!("{}/runs", self.base));
        let answer = asked
            .bearer_auth(&self.token)
            .json(&request)
            .send()
            .await
            .unwrap();
        let status = answer.status();
        let run: Value = answer.json().await.unwrap();
        if status.is_client_error() {
            return Told {
                came: false,
                said: run.to_string(),
            };
        }
        assert!(status.is_success(), "{}: {status}: {run:#}", case.name);
        let id = run["id"].as_str().unwrap();
        let begun = Instant::now();
        loop {
            let run: Value = serde_json::from_str(&self.get(&format!("/runs/{id}")).await).unwrap();
            let state = run["state"].as_str().unwrap();
            if !["queued", "leased", "running"].contains(&state) {
                // None of them has a task file that could succeed.
                assert_ne!(state, "succeeded", "{}: {run:#}", case.name);
                let log = self.get(&format!("/runs/{id}/log?format=json")).await;
                return Told {
                    came: log.contains("\"message\":\"fetched "),
                    said: format!("{}\n{log}", run["reason"]),
                };
            }
            assert!(begun.elapsed() < LIMIT, "{}: {run:#}", case.name);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
