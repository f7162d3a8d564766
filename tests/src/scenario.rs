//! Scenarios: a small project and its expected result, as one data file.
//!
//! In every text `$ID` is the id of the scenario and of its run, `$REG` the registry, and `$BASE`
//! the base image with a shell. The run prints events (`-o json`).

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde::Deserialize;
use serde_json::Value;

use crate::{TestEnvironment, engine, new_run_id};

/// Scenario as its file defines it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Scenario {
    /// Sentence that describes the scenario.
    about: String,
    /// Files of the project: path to content.
    #[serde(default)]
    files: BTreeMap<String, String>,
    /// Arguments after `acrtask run -o json -r $REG --id $ID`.
    #[serde(default)]
    args: Vec<String>,
    /// Environment variables of the program.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Expected exit code.
    exit: i32,
    /// Expected events, in this order. Each line of output counts as an event. Every given key must
    /// be equal. A text that begins with `~` must be contained.
    #[serde(default)]
    events: Vec<Value>,
    /// Patterns that no event may match.
    #[serde(default)]
    never: Vec<Value>,
    /// Texts that standard error must contain.
    #[serde(default)]
    stderr: Vec<String>,
    /// Texts that the output must not contain.
    #[serde(default)]
    hidden: Vec<String>,
    /// `REPOSITORY:TAG` that the registry has afterwards.
    #[serde(default)]
    pushed: Vec<String>,
    /// `REPOSITORY:TAG` that the registry does not have afterwards.
    #[serde(default)]
    not_pushed: Vec<String>,
    /// Files of the project folder after the run: path to content.
    #[serde(default)]
    after: BTreeMap<String, String>,
}

/// Runs the scenario in `file`. A failure shows everything that the program printed.
pub fn check_scenario(file: &Path) {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let id = new_run_id();
    let base = format!("{}/base/bash:5.2", environment.registry);
    let fill = |text: &str| {
        text.replace("$ID", &id)
            .replace("$BASE", &base)
            .replace("$REG", &environment.registry)
    };
    let text = std::fs::read_to_string(file).expect("a scenario can be read");
    let scenario: Scenario =
        serde_yaml::from_str(&fill(&text)).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let folder = tempfile::tempdir().expect("a folder can be created");
    for (path, content) in &scenario.files {
        let path = folder.path().join(path);
        let parent = path.parent().expect("a file has a parent folder");
        std::fs::create_dir_all(parent).expect("a folder can be created");
        std::fs::write(&path, content).expect("a file can be written");
    }
    let mut args = vec!["run", "-o", "json"];
    args.extend(scenario.args.iter().map(String::as_str));
    let variables: Vec<(&str, &str)> = scenario
        .env
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let finished = environment
        .start_with_id(&id, folder.path(), &args, &variables, "")
        .wait();

    let mut wrong = Vec::new();
    if finished.code != Some(scenario.exit) {
        wrong.push(format!(
            "exit code {:?}, not {}",
            finished.code, scenario.exit
        ));
    }
    let events: Vec<Value> = finished.events().iter().flat_map(split_lines).collect();
    let mut rest = events.iter();
    for wanted in &scenario.events {
        if !rest.any(|event| matches(wanted, event)) {
            wrong.push(format!(
                "no event (after the ones before it) matches {wanted}"
            ));
            break;
        }
    }
    for unwanted in &scenario.never {
        if let Some(event) = events.iter().find(|event| matches(unwanted, event)) {
            wrong.push(format!("an unexpected event: {event}"));
        }
    }
    for part in &scenario.stderr {
        if !finished.stderr.contains(part) {
            wrong.push(format!("standard error lacks: {part}"));
        }
    }
    for hidden in &scenario.hidden {
        if finished.stdout.contains(hidden) || finished.stderr.contains(hidden) {
            wrong.push(format!("the output shows: {hidden}"));
        }
    }
    for name in &scenario.pushed {
        if find_digest(&environment, name).is_none() {
            wrong.push(format!("the registry lacks {name}"));
        }
    }
    for name in &scenario.not_pushed {
        if find_digest(&environment, name).is_some() {
            wrong.push(format!("the registry has {name}"));
        }
    }
    for (path, content) in &scenario.after {
        let found = std::fs::read_to_string(folder.path().join(path)).unwrap_or_default();
        if found != *content {
            wrong.push(format!("{path} contains {found:?}, not {content:?}"));
        }
    }
    for thing in engine::list_resources(&id) {
        wrong.push(format!("the run left {thing}"));
    }
    assert!(
        wrong.is_empty(),
        "{}: {}\n- {}\n--- stdout\n{}\n--- stderr\n{}",
        file.display(),
        scenario.about,
        wrong.join("\n- "),
        finished.stdout,
        finished.stderr
    );
}

fn find_digest(environment: &TestEnvironment, name: &str) -> Option<String> {
    let (repository, tag) = name.rsplit_once(':').expect("REPOSITORY:TAG");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be created");
    runtime.block_on(environment.fetch_digest(repository, tag))
}

/// Splits an output event into one event for each line. Returns any other event unchanged.
fn split_lines(event: &Value) -> Vec<Value> {
    match event.get("text").and_then(Value::as_str) {
        Some(text) if event["event"] == "output" => text
            .lines()
            .map(|line| {
                let mut part = event.clone();
                part["text"] = line.into();
                part
            })
            .collect(),
        _ => vec![event.clone()],
    }
}

/// Returns `true` if `event` has every key and value of `wanted`.
fn matches(wanted: &Value, event: &Value) -> bool {
    match (wanted, event) {
        (Value::Object(wanted), Value::Object(event)) => wanted
            .iter()
            .all(|(key, value)| event.get(key).is_some_and(|found| matches(value, found))),
        (Value::Array(wanted), Value::Array(event)) => {
            wanted.len() == event.len() && wanted.iter().zip(event).all(|(w, e)| matches(w, e))
        }
        (Value::String(wanted), Value::String(event)) => match wanted.strip_prefix('~') {
            Some(part) => event.contains(part),
            None => wanted == event,
        },
        _ => wanted == event,
    }
}

/// Returns the names of the scenario files, for the test that requires a test for each.
pub fn list_names(folder: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).expect("the folder of scenarios can be read");
    entries
        .map(|entry| entry.expect("an entry can be read").path())
        .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::matches;

    #[test]
    fn event_matches_if_all_given_keys_are_equal() {
        let event = json!({"event": "output", "step": "a", "text": "hello world", "after": ["x"]});
        assert!(matches(
            &json!({"event": "output", "text": "~world"}),
            &event
        ));
        assert!(matches(&json!({"after": ["x"]}), &event));
        assert!(!matches(&json!({"text": "world"}), &event));
        assert!(!matches(&json!({"exit": 1}), &event));
        assert!(!matches(&json!({"after": []}), &event));
    }
}
