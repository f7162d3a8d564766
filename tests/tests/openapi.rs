//! Conformance of the server to its OpenAPI document. Schemathesis sends requests that the document
//! allows and requests that it forbids.
//!
//! The server uses SQLite and has no runner. `tests/fixtures/openapi/schemathesis.toml` lists the
//! excluded operations with reasons.

use std::{
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use acrtask_tests::{TestEnvironment, service::TestServer};

/// Longest time that the test may take.
const LIMIT: Duration = Duration::from_secs(170);

#[test]
fn server_and_openapi_document_agree() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let program = std::env::var_os("ACRTASK_TEST_SCHEMATHESIS")
        .expect("ACRTASK_TEST_SCHEMATHESIS is not set: run `cargo xtask test`");
    let server = TestServer::start(&environment, &["--no-runner"]);
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/openapi");
    let folder = tempfile::tempdir().expect("a folder can be created");
    let output = folder.path().join("output");
    let file = std::fs::File::create(&output).expect("a file can be created");
    let mut child = Command::new(program)
        .arg("--config-file")
        .arg(fixtures.join("schemathesis.toml"))
        .arg("run")
        .arg(format!("{}/api/v1/openapi.json", server.url))
        .arg("--header")
        .arg(format!("Authorization: Bearer {}", server.token))
        .args(["--phases", "examples,coverage,fuzzing"])
        .args(["--seed", "1", "--max-examples", "4"])
        .args(["--continue-on-failure", "--no-color"])
        .env("PYTHONPATH", &fixtures)
        .env("SCHEMATHESIS_HOOKS", "openapi_hooks")
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(file.try_clone().expect("a file can be shared"))
        .stderr(file)
        .spawn()
        .expect("schemathesis can be started");
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("the process is a child") {
            break Some(status);
        }
        if begun.elapsed() > LIMIT {
            let _ = child.kill();
            let _ = child.wait();
            break None;
        }
        thread::sleep(Duration::from_millis(100));
    };
    let text = std::fs::read_to_string(&output).unwrap_or_default();
    assert!(
        status.is_some_and(|status| status.success()),
        "schemathesis ended with {status:?} (`None`: it took longer than {LIMIT:?}):\n{text}"
    );
    // Every operation was tested or is excluded in `schemathesis.toml`.
    assert!(text.contains("Tested: 85"), "{text}");
}
