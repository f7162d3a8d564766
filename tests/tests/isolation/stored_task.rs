//! Stored tasks of the tests.

use acrtask_tests::{Outcome, TestEnvironment, project::create_folder, service::TestServer};
use serde_json::json;

/// Stores a task with one step: `build: .` or another build line.
pub(crate) fn store_task(
    environment: &TestEnvironment,
    server: &TestServer,
    name: &str,
    step: &str,
    secret: Option<&str>,
) {
    let definition = json!({
        "name": name,
        "registry": environment.registry,
        "secrets": secret.map(|secret| json!({"s": secret})).unwrap_or_else(|| json!({})),
        "text": format!("version: v1.1.0\nsteps:\n  - id: image\n    {step}\n"),
    });
    let files = create_folder(&[("task.yaml", &definition.to_string())]);
    let applied = server.start_client(files.path(), &["task", "apply", "-f", "task.yaml"]);
    let applied = applied.wait();
    assert_eq!(applied.code, Some(0), "{}", applied.transcript());
}

/// Runs a stored task with these files. The run must succeed.
pub(crate) fn run_task(server: &TestServer, name: &str, files: &[(&str, &str)]) -> Outcome {
    let files = create_folder(files);
    let args = ["task", "run", name, "--context", ".", "-o", "json"];
    let outcome = server.start_client(files.path(), &args).wait();
    assert_eq!(outcome.code, Some(0), "{name}: {}", outcome.transcript());
    outcome
}
