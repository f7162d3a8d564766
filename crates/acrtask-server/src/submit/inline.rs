//! What is wrong with a task file that came inside a task or a request, as far as it can be seen before it runs.
//!
//! Only for a file without templates: what these make of it depends on the run. The runner reads the file again, and tells
//! all that is wrong with it.

use acrtask_model::Secret;
use acrtask_spec::{Lookup, RunFacts, SecretDeclaration, TaskSource, resolve};

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

/// The mistakes of a file, each with its line.
pub(super) fn mistakes(text: &str) -> Vec<String> {
    let source = TaskSource {
        name: "acr-task.yaml".into(),
        text: text.into(),
    };
    let facts = RunFacts {
        id: "id".into(),
        registry: "registry.example.com".into(),
        commit: "0123456789012345678901234567890123456789".into(),
        branch: "branch".into(),
        os: "linux".into(),
        architecture: "amd64".into(),
        ..RunFacts::default()
    };
    resolve(&source, &facts, &Nowhere)
        .diagnostics
        .iter()
        .filter(|found| found.is_error() && !ELSEWHERE.contains(&found.code.as_ref()))
        .take(MOST)
        .map(|found| {
            let start = found.labels.first().map_or(0, |label| label.span.start);
            let before = text.get(..start).unwrap_or(text);
            let line = 1 + before.matches('\n').count();
            let help = found.help.as_deref().and_then(|help| help.lines().next());
            match help {
                Some(help) => format!("line {line}: {} ({help})", found.message),
                None => format!("line {line}: {}", found.message),
            }
        })
        .collect()
}
