//! Hostile contexts at a real server with its runner, under a trace of its system calls.
//!
//! The trace proves three things. The only program started is git. No file outside the server's
//! folder is opened for writing. Connections go only to addresses that were checked.
//!
//! Everything runs in separate namespaces (network, mounts, processes). A name server there changes
//! its answers, and every private address is a trap. Nothing on this machine can be reached from
//! there or is changed.

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
    TestEnvironment,
    git_server::{HttpGit, Repositories},
    service::TestServer,
};
use reqwest::Client;
use serde_json::{Value, json};

use corpus::Case;
use trace::{Allowed, Call, Trace};

/// Folder of the process inside the namespaces. The variable is set only for this process.
const INSIDE: &str = "ACRTASK_TEST_HOSTILE_INSIDE";
/// Longest time that a run may take.
const LIMIT: Duration = Duration::from_secs(40);

#[test]
fn hostile_contexts_make_no_forbidden_system_calls() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
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
        program = environment.program().display(),
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    run_in_namespaces("hostile_inputs_in_namespaces", folder.path(), &program);
}

/// Runs the ignored test `name` of this test program in separate namespaces, with `program` as the
/// program under test.
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
async fn hostile_inputs_in_namespaces() {
    let (Some(environment), Some(folder)) = (TestEnvironment::find(), std::env::var_os(INSIDE))
    else {
        return;
    };
    let folder = PathBuf::from(folder);
    let (config, authority) = network::create_certificates();
    network::set_up(&folder, &authority);
    network::start_name_server();
    let trapped = network::start_traps();
    let repositories = Repositories::default();
    let mark = folder.join("command-was-run");
    let cases = corpus::list_cases(mark.to_str().unwrap(), &repositories);
    let git = HttpGit::start(&repositories.root(), None);
    front::start(
        network::public_address(),
        config,
        corpus::internet(git.address().parse().unwrap()),
    )
    .unwrap();

    let server = TestServer::start(&environment, &[]);
    let api = ApiClient {
        client: Client::new(),
        base: format!("{}/api/v1", server.url),
        token: server.token.clone(),
    };
    api.wait_for_runner().await;
    let allowed = allowed(&server);
    let mut trace = Trace::new(folder.join("trace"));
    // Calls during the start of the server are not checked.
    assert!(!trace.read_new_calls().is_empty(), "the trace is empty");
    let mut wrong = Vec::new();
    let mut reached = 0;
    for case in &cases {
        let outcome = api.run_case(case).await;
        let calls = trace.read_new_calls();
        for objection in calls
            .iter()
            .filter_map(|call| allowed.describe_forbidden(call))
        {
            wrong.push(format!("{}: {objection}", case.name));
        }
        reached += calls.iter().filter(is_public).count();
        if outcome.fetched != case.fetched || !outcome.output.contains(case.expected) {
            wrong.push(format!(
                "{}: fetched: {}\n{}",
                case.name, outcome.fetched, outcome.output
            ));
        }
        if mark.exists() {
            wrong.push(format!(
                "{}: a command of the context was executed",
                case.name
            ));
            std::fs::remove_file(&mark).unwrap();
        }
    }
    assert_eq!(
        trapped.load(Ordering::SeqCst),
        0,
        "a private address received a connection"
    );
    assert!(
        wrong.is_empty(),
        "{} are wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    // Every archive and repository from a permitted address.
    assert!(
        reached > 40,
        "the trace misses connections: {reached} of {} cases",
        cases.len()
    );
}

fn is_public(call: &&Call) -> bool {
    Allowed::is_connection(call, network::public_address())
}

/// Returns the permitted calls: start git and its helpers, write to the server's folder, and
/// connect to the engine, to the server itself and to public addresses.
fn allowed(server: &TestServer) -> Allowed {
    let own = server.url.trim_start_matches("http://").parse().unwrap();
    let engine = std::env::var("DOCKER_HOST").unwrap_or_default();
    let engine = engine
        .strip_prefix("unix://")
        .unwrap_or("/var/run/docker.sock");
    Allowed {
        programs: vec!["git", "git-remote-https"],
        folders: vec![server.data_dir()],
        addresses: vec![own, network::public_address()],
        // glibc tries to connect to a name cache that does not exist.
        sockets: vec![engine.into(), "/var/run/nscd/socket".into()],
    }
}

/// Client of a server.
struct ApiClient {
    client: Client,
    base: String,
    token: String,
}

/// Outcome of a case.
struct CaseOutcome {
    fetched: bool,
    output: String,
}

impl ApiClient {
    async fn get(&self, path: &str) -> String {
        let request = self.client.get(format!("{}{path}", self.base));
        let answer = request.bearer_auth(&self.token).send().await.unwrap();
        answer.text().await.unwrap()
    }

    async fn wait_for_runner(&self) {
        let begun = Instant::now();
        while !self.get("/runners").await.contains("\"state\":\"online\"") {
            assert!(begun.elapsed() < LIMIT, "the runner does not connect");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Starts a run with the context of the case and waits for its end.
    async fn run_case(&self, case: &Case) -> CaseOutcome {
        let request =
            json!({ "spec": { "context": case.context, "source": { "type": "defaultFile" } } });
        let request_builder = self.client.post(format!("{}/runs", self.base));
        let answer = request_builder
            .bearer_auth(&self.token)
            .json(&request)
            .send()
            .await
            .unwrap();
        let status = answer.status();
        let run: Value = answer.json().await.unwrap();
        if status.is_client_error() {
            return CaseOutcome {
                fetched: false,
                output: run.to_string(),
            };
        }
        assert!(status.is_success(), "{}: {status}: {run:#}", case.name);
        let id = run["id"].as_str().unwrap();
        let begun = Instant::now();
        loop {
            let run: Value = serde_json::from_str(&self.get(&format!("/runs/{id}")).await).unwrap();
            let state = run["state"].as_str().unwrap();
            if !["queued", "leased", "running"].contains(&state) {
                // No case has a task file that could succeed.
                assert_ne!(state, "succeeded", "{}: {run:#}", case.name);
                let log = self.get(&format!("/runs/{id}/log?format=json")).await;
                return CaseOutcome {
                    fetched: log.contains("\"message\":\"fetched "),
                    output: format!("{}\n{log}", run["reason"]),
                };
            }
            assert!(begun.elapsed() < LIMIT, "{}: {run:#}", case.name);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
