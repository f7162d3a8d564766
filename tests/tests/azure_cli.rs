//! The Azure CLI, unmodified, on a server with a registry of the ARM API. It builds and runs with
//! the real engine and registry.
//!
//! All traffic of the CLI stays on loopback: a proxy that does not exist refuses everything else.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use acrtask_tests::{
    TestEnvironment, new_run_id,
    project::{create_folder, write_file},
    service::TestServer,
};
use serde_json::Value;
use tempfile::TempDir;

const TENANT: &str = "22222222-2222-2222-2222-222222222222";

/// The Azure CLI with its own settings, signed in at a server.
struct AzureCli {
    folder: TempDir,
    server: TestServer,
    program: PathBuf,
}

/// Outcome of a command of the CLI.
struct Finished {
    text: String,
    stdout: String,
    code: Option<i32>,
}

impl AzureCli {
    /// Starts a server with the registry of the tests as `myreg`, and signs in.
    fn start(environment: &TestEnvironment) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(path("cert.pem"), made.cert.pem()).unwrap();
        std::fs::write(path("key.pem"), made.signing_key.serialize_pem()).unwrap();
        let registry = format!("myreg={}", environment.registry);
        let (certificate, key) = (path("cert.pem"), path("key.pem"));
        let flags = [
            "--tls-cert",
            &certificate,
            "--tls-key",
            &key,
            "--arm",
            &registry,
        ];
        let server = TestServer::start(environment, &flags);
        let program = std::env::var_os("ACRTASK_TEST_AZ")
            .expect("ACRTASK_TEST_AZ is not set: run `cargo xtask test`");
        let cli = Self {
            folder,
            program: program.into(),
            server,
        };
        let greeting = cli.server.log();
        let (url, token) = (&cli.server.url, &cli.server.token);
        for line in [
            format!("cloud register -n acrtask --endpoint-resource-manager {url}"),
            "cloud set -n acrtask".to_owned(),
        ] {
            let named = line.replace("localhost", "127.0.0.1");
            assert!(greeting.contains(&named), "{named}: {greeting}");
            cli.succeed(Path::new("/"), &line);
        }
        let login = format!("login --service-principal -u acrtask -p {token} --tenant {TENANT}");
        let found = cli.query(&login);
        assert_eq!(found[0]["state"], "Enabled");
        cli
    }

    /// Runs a command. `~` is a blank within an argument.
    fn run(&self, folder: &Path, line: &str) -> Finished {
        let Output {
            status,
            stdout,
            stderr,
        } = Command::new(&self.program)
            .args(line.split_whitespace().map(|word| word.replace('~', " ")))
            .current_dir(folder)
            .env("AZURE_CONFIG_DIR", self.folder.path().join("azure"))
            .env("AZURE_CORE_COLLECT_TELEMETRY", "false")
            .env("AZURE_CORE_NO_COLOR", "true")
            .env("REQUESTS_CA_BUNDLE", self.folder.path().join("cert.pem"))
            .env("HTTPS_PROXY", "http://127.0.0.1:9")
            .env("NO_PROXY", "localhost")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let stdout = String::from_utf8_lossy(&stdout).into_owned();
        Finished {
            text: format!("az {line}\n{stdout}\n{}", String::from_utf8_lossy(&stderr)),
            stdout,
            code: status.code(),
        }
    }

    /// Runs a command that must succeed, and parses its output.
    #[track_caller]
    fn query(&self, line: &str) -> Value {
        let finished = self.succeed(self.folder.path(), &format!("{line} -o json"));
        serde_json::from_str(&finished.stdout).unwrap_or_else(|e| panic!("{e}: {}", finished.text))
    }

    #[track_caller]
    fn succeed(&self, folder: &Path, line: &str) -> Finished {
        let finished = self.run(folder, line);
        assert_eq!(finished.code, Some(0), "{}", finished.text);
        finished
    }
}

#[tokio::test]
async fn azure_cli_builds_and_runs_at_a_server() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let cli = AzureCli::start(&environment);
    let id = new_run_id();
    let files = create_folder(&[
        (
            "Dockerfile",
            &format!(
                "FROM {}\nARG who\nARG word\nCOPY data /data\nRUN echo \"hello $who\" && test \"$word\" = opensesame\n",
                environment.busybox()
            ),
        ),
        ("data", "x"),
    ]);
    let build = format!(
        "acr build -r myreg -t azure/build:{id} --build-arg who=azure --secret-build-arg word=opensesame ."
    );
    let built = cli.succeed(files.path(), &build);
    assert!(built.text.contains("hello azure"), "{}", built.text);
    assert!(
        built.text.contains("was successful after"),
        "{}",
        built.text
    );
    assert!(!built.text.contains("echo opensesame"), "{}", built.text);
    let digest = environment.fetch_digest("azure/build", &id).await;
    let listed = cli.query("acr task list-runs -r myreg --top 1");
    assert_eq!(listed[0]["status"], "Succeeded", "{listed:#}");
    assert_eq!(
        listed[0]["outputImages"][0]["digest"].as_str(),
        digest.as_deref()
    );

    write_file(
        files.path(),
        "acr-task.yaml",
        "version: v1.1.0\nsteps:\n  - cmd: $Registry/azure/build:{{.Values.tag}} cat /data /made\n    ignoreErrors: true\n  \
         - cmd: $Registry/azure/build:{{.Values.tag}} sh -c 'echo the answer is {{.Values.answer}}'\n",
    );
    let run = format!("acr run -r myreg -f acr-task.yaml --set answer=42 --set tag={id} .");
    let ran = cli.succeed(files.path(), &run);
    assert!(ran.text.contains("the answer is 42"), "{}", ran.text);

    write_file(
        files.path(),
        "Dockerfile",
        &format!(
            "FROM {}\nRUN echo no luck && false\n",
            environment.busybox()
        ),
    );
    let failed = cli.run(files.path(), "acr build -r myreg -t azure/failed:1 .");
    assert_eq!(failed.code, Some(1), "{}", failed.text);
    assert!(failed.text.contains("no luck"), "{}", failed.text);
    assert!(failed.text.contains("Run failed"), "{}", failed.text);

    manage_task(&cli, &id);
}

/// Creates, changes, runs and deletes a task with the image of the build.
#[track_caller]
fn manage_task(cli: &AzureCli, id: &str) {
    let create = format!(
        "acr task create -r myreg -n nightly -c /dev/null --cmd $Registry/azure/build:{id}~cat~/data --schedule daily:0~4~*~*~* \
         --set-secret word=opensesame"
    );
    let task = cli.query(&create);
    assert_eq!(task["step"]["type"], "EncodedTask", "{task:#}");
    assert_eq!(task["trigger"]["timerTriggers"][0]["name"], "daily");
    cli.query("acr task timer add -r myreg -n nightly --timer-name weekly --schedule 0~5~*~*~1");
    cli.query("acr task timer remove -r myreg -n nightly --timer-name daily");
    let shown = cli.query("acr task show -r myreg -n nightly --with-secure-properties");
    let timers = shown["trigger"]["timerTriggers"].as_array().unwrap();
    assert_eq!(timers.len(), 1, "{shown:#}");
    assert_eq!(timers[0]["name"], "weekly");
    assert!(!shown.to_string().contains("opensesame"), "{shown:#}");
    let ran = cli.succeed(cli.folder.path(), "acr task run -r myreg -n nightly");
    assert!(ran.text.contains("was successful after"), "{}", ran.text);
    cli.succeed(cli.folder.path(), "acr task delete -r myreg -n nightly -y");
    let missing = cli.run(cli.folder.path(), "acr task show -r myreg -n nightly");
    assert_eq!(missing.code, Some(3), "{}", missing.text);
}
