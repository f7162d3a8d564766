//! What is wrong with a task file that came inside a task or a request, as far as it can be seen before it runs.
//!
//! Only for a file without templates: what these make of it depends on the run. The runner reads the file again, and tells
//! all that is wrong with it.

use acrtask_model::{ImageRef, Secret};
use acrtask_spec::{Diagnostic, Lookup, RunFacts, SecretDeclaration, TaskSource, resolve};

/// Mistakes that are told.
const MOST: usize = 10;
/// What is no mistake of the file, but of where it is read.
const ELSEWHERE: [&str; 2] = ["secret-unresolved", "alias-source"];

/// Reads nothing and knows no secret.
struct Nowhere;

impl Lookup for Nowhere {
    fn alias_source(&self, _: &str) -> Result<String, String> {
        Ok(String::new())
    }

    fn secret(&self, _: &SecretDeclaration) -> Result<Option<Secret>, String> {
        Ok(None)
    }
}

fn example_facts(registry: &str) -> RunFacts {
    RunFacts {
        id: "id".into(),
        registry: registry.into(),
        commit: "0123456789012345678901234567890123456789".into(),
        branch: "branch".into(),
        os: "linux".into(),
        architecture: "amd64".into(),
        ..RunFacts::default()
    }
}

/// Registry of a task that names none.
const REGISTRY: &str = "registry.example.com";

/// Returns the errors of a file for which a run would be refused.
fn errors(text: &str) -> Vec<Diagnostic> {
    let source = TaskSource {
        name: "acr-task.yaml".into(),
        text: text.into(),
    };
    let resolution = resolve(&source, &example_facts(REGISTRY), &Nowhere);
    // Aliases of other files may complete a line.
    let found = if text.contains("src:") {
        resolution.diagnostics
    } else {
        resolution.for_run()
    };
    found
        .into_iter()
        .filter(|found| found.is_error() && !ELSEWHERE.contains(&found.code.as_ref()))
        .take(MOST)
        .collect()
}

fn with_help(found: &Diagnostic) -> String {
    let help = found.help.as_deref().and_then(|help| help.lines().next());
    match help {
        Some(help) => format!("{} ({help})", found.message),
        None => found.message.clone(),
    }
}

/// The mistakes of a file, each with its line.
pub(super) fn mistakes(text: &str) -> Vec<String> {
    errors(text)
        .iter()
        .map(|found| {
            let start = found.labels.first().map_or(0, |label| label.span.start);
            let before = text.get(..start).unwrap_or(text);
            let line = 1 + before.matches('\n').count();
            format!("line {line}: {}", with_help(found))
        })
        .collect()
}

/// The mistakes of a single command: an image and its arguments.
pub(super) fn mistakes_of_cmd(line: &str) -> Vec<String> {
    // JSON's texts are YAML's as well.
    let line = serde_json::Value::from(line);
    let text = format!("version: v1.1.0\nsteps:\n  - id: cmd\n    cmd: {line}\n");
    errors(&text).iter().map(with_help).collect()
}

/// Checks the name of an image that a build makes. A name without a registry belongs to `registry`.
pub(super) fn check_image(name: &str, registry: Option<&str>) -> Result<(), String> {
    let registry = registry.unwrap_or(REGISTRY);
    let text = acrtask_spec::render_image(name, &example_facts(registry))
        .map_err(|found| with_help(&found))?;
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
