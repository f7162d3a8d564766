//! Scenarios: a small project and what must come of it, as one file of data.
//!
//! In every text `$ID` is an id of the scenario's own (also the run's id), `$REG` the registry, and
//! `$BASE` the base image with a shell. The run is told to print events (`-o json`); `show` runs are
//! compared as text instead.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde::Deserialize;
use serde_json::Value;

use crate::{World, engine, new_run_id};

/// One scenario, as its file has it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Scenario {
    /// What it shows, in a sentence.
    about: String,
    /// Path to content.
    #[serde(default)]
    files: BTreeMap<String, String>,
    /// Words after `acrtask run -o json -r $REG --id $ID`.
    #[serde(default)]
    args: Vec<String>,
    /// Variables of the program.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// The exit code.
    exit: i32,
    /// Each must match an event, one after the other; a line of output counts as an event: every key that is given must be equal, and a text
    /// that begins with `~` must be contained.
    #[serde(default)]
    events: Vec<Value>,
    /// None of these may match any event.
    #[serde(default)]
    never: Vec<Value>,
    /// Parts of standard error.
    #[serde(default)]
    stderr: Vec<String>,
    /// Texts that may stand nowhere in the output.
    #[serde(default)]
    hidden: Vec<String>,
    /// `REPOSITORY:TAG` that the registry has afterwards.
    #[serde(default)]
    pushed: Vec<String>,
    /// `REPOSITORY:TAG` that the registry does not have afterwards.
    #[serde(default)]
    not_pushed: Vec<String>,
    /// Files of the context's folder after the run: path to content.
    #[serde(default)]
    after: BTreeMap<String, String>,
}

/// Runs the scenario in `file`, and fails with everything that the program printed.
pub fn check(file: &Path) {
    let Some(world) = World::find() else { return };
    let id = new_run_id();
    let base = format!("{}/base/bash:5.2", world.registry);
    let fill = |text: &str| {
        text.replace("$ID", &id)
            .replace("$BASE", &base)
            .replace("$REG", &world.registry)
    };
    let text = std::fs::read_to_string(file).expect("a scenario can be read");
    let scenario: Scenario =
        serde_yaml::from_str(&fill(&text)).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let folder = tempfile::tempdir().expect("a folder can be made");
    for (path, content) in &scenario.files {
        let path = folder.path().join(path);
        let parent = path.parent().expect("a file lies in a folder");
        std::fs::create_dir_all(parent).expect("a folder can be made");
        std::fs::write(&path, content).expect("a file can be written");
    }
    let mut args = vec!["run", "-o", "json"];
    args.extend(scenario.args.iter().map(String::as_str));
    let variables: Vec<(&str, &str)> = scenario
        .env
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let finished = world
        .start_as(&id, folder.path(), &args, &variables, "")
        .wait();

    let mut wrong = Vec::new();
    if finished.code != Some(scenario.exit) {
        wrong.push(format!(
            "exit code {:?}, not {}",
            finished.code, scenario.exit
        ));
    }
    let events: Vec<Value> = finished.events().iter().flat_map(by_line).collect();
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
            wrong.push(format!("there should be no such event: {event}"));
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
        if in_registry(&world, name).is_none() {
            wrong.push(format!("the registry lacks {name}"));
        }
    }
    for name in &scenario.not_pushed {
        if in_registry(&world, name).is_some() {
            wrong.push(format!("the registry has {name}"));
        }
    }
    for (path, content) in &scenario.after {
        let found = std::fs::read_to_string(folder.path().join(path)).unwrap_or_default();
        if found != *content {
            wrong.push(format!("{path} holds {found:?}, not {content:?}"));
        }
    }
    for thing in engine::things_of(&id) {
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

fn in_registry(world: &World, name: &str) -> Option<String> {
    let (repository, tag) = name.rsplit_once(':').expect("REPOSITORY:TAG");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be made");
    runtime.block_on(world.digest(repository, tag))
}

/// An event of output as one for each of its lines; any other as it is.
fn by_line(event: &Value) -> Vec<Value> {
    match event.get("text").and_then(Value::as_str) {
        Some(text) if event["event"] == "output" => text
            .lines()
            .map(|line| {
                let mut one = event.clone();
                one["text"] = line.into();
                one
            })
            .collect(),
        _ => vec![event.clone()],
    }
}

/// Whether `event` has everything that `wanted` names.
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

/// The names of the scenario files, for the test that says that each has a test.
pub fn names(folder: &Path) -> BTreeSet<String> {
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
    fn an_event_matches_by_the_keys_that_are_named() {
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
