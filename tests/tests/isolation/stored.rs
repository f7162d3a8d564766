//! Stored tasks of the tests.

use acrtask_tests::{Outcome, World, project::folder, service::Server};
use serde_json::json;

/// Stores a task of one step: `build: .`, or another line that builds its context.
pub(crate) fn store_task(
    world: &World,
    server: &Server,
    name: &str,
    step: &str,
    secret: Option<&str>,
) {
    let definition = json!({
        "name": name,
        "registry": world.registry,
        "secrets": secret.map(|secret| json!({"s": secret})).unwrap_or_else(|| json!({})),
        "text": format!("version: v1.1.0\nsteps:\n  - id: image\n    {step}\n"),
    });
    let files = folder(&[("task.yaml", &definition.to_string())]);
    let applied = server.client(files.path(), &["task", "apply", "-f", "task.yaml"]);
    let applied = applied.wait();
    assert_eq!(applied.code, Some(0), "{}", applied.all());
}

/// Runs a stored task with these files, and expects its success.
pub(crate) fn run_task(server: &Server, name: &str, files: &[(&str, &str)]) -> Outcome {
    let files = folder(files);
    let args = ["task", "run", name, "--context", ".", "-o", "json"];
    let outcome = server.client(files.path(), &args).wait();
    assert_eq!(outcome.code, Some(0), "{name}: {}", outcome.all());
    outcome
}
