//! Checks of inline task files and commands before a run exists.
//!
//! Only files without templates are checked, because a template's output depends on the run. The
//! runner parses the file again and reports all its problems.

use acrtask_model::{ImageRef, Secret};
use acrtask_spec::{Diagnostic, Lookup, RunVariables, SecretDeclaration, TaskSource, resolve};

/// Most problems that are reported.
const MAX_PROBLEMS: usize = 10;
/// Codes of problems that depend on the environment of the parser, not on the file.
const ENVIRONMENT_CODES: [&str; 2] = ["secret-unresolved", "alias-source"];

/// A lookup without alias sources and secrets.
struct EmptyLookup;

impl Lookup for EmptyLookup {
    fn alias_source(&self, _: &str) -> Result<String, String> {
        Ok(String::new())
    }

    fn secret(&self, _: &SecretDeclaration) -> Result<Option<Secret>, String> {
        Ok(None)
    }
}

fn example_facts(registry: &str) -> RunVariables {
    RunVariables {
        id: "id".into(),
        registry: registry.into(),
        commit: "0123456789012345678901234567890123456789".into(),
        branch: "branch".into(),
        os: "linux".into(),
        architecture: "amd64".into(),
        ..RunVariables::default()
    }
}

/// Placeholder registry for a task without one.
const REGISTRY: &str = "registry.example.com";

/// Returns the errors of a file that would fail its run.
fn find_errors(text: &str) -> Vec<Diagnostic> {
    let source = TaskSource {
        name: "acr-task.yaml".into(),
        text: text.into(),
    };
    let resolution = resolve(&source, &example_facts(REGISTRY), &EmptyLookup);
    // Aliases of other files can complete a line.
    let found = if text.contains("src:") {
        resolution.diagnostics
    } else {
        resolution.for_run()
    };
    found
        .into_iter()
        .filter(|found| found.is_error() && !ENVIRONMENT_CODES.contains(&found.code.as_ref()))
        .take(MAX_PROBLEMS)
        .collect()
}

fn message_with_help(found: &Diagnostic) -> String {
    let help = found.help.as_deref().and_then(|help| help.lines().next());
    match help {
        Some(help) => format!("{} ({help})", found.message),
        None => found.message.clone(),
    }
}

/// Returns the problems of a file, each with its line.
pub(super) fn check_text(text: &str) -> Vec<String> {
    find_errors(text)
        .iter()
        .map(|found| {
            let start = found.labels.first().map_or(0, |label| label.span.start);
            let before = text.get(..start).unwrap_or(text);
            let line = 1 + before.matches('\n').count();
            format!("line {line}: {}", message_with_help(found))
        })
        .collect()
}

/// Returns the problems of a single command: an image and its arguments.
pub(super) fn check_cmd(line: &str) -> Vec<String> {
    // A JSON string is also a valid YAML string.
    let line = serde_json::Value::from(line);
    let text = format!("version: v1.1.0\nsteps:\n  - id: cmd\n    cmd: {line}\n");
    find_errors(&text).iter().map(message_with_help).collect()
}

/// Checks the name of an image that a build creates. A name without a registry belongs to
/// `registry`.
pub(super) fn check_image(name: &str, registry: Option<&str>) -> Result<(), String> {
    let registry = registry.unwrap_or(REGISTRY);
    let text = acrtask_spec::render_image(name, &example_facts(registry))
        .map_err(|found| message_with_help(&found))?;
    let own = text
        .split_once('/')
        .is_some_and(|(host, _)| host.contains(['.', ':']) || host == "localhost");
    let full = if own {
        text
    } else {
        format!("{registry}/{text}")
    };
    let image: Result<ImageRef, _> = full.parse();
    image.map(drop).map_err(|error| error.to_string())
}
