//! Tests of the JSON Schema of task files. It must contain the keys that the reader accepts, and
//! accept its files.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of a #[test]")]

mod common;

use std::{collections::BTreeSet, path::Path};

use acrtask_spec::{FILE_SCHEMA, Resolution, TaskSource, resolve};
use common::{TestLookup, corpus_folder, read_cases, run_variables};
use serde_json::Value;

fn load_schema() -> Value {
    serde_json::from_str(FILE_SCHEMA).unwrap()
}

fn resolve_text(text: &str) -> Resolution {
    let source = TaskSource {
        name: "acr-task.yaml".into(),
        text: text.into(),
    };
    resolve(&source, &run_variables(), &TestLookup)
}

/// Returns `true` if the reader accepts all keys of the file.
fn is_accepted(text: &str) -> bool {
    let resolution = resolve_text(text);
    !resolution
        .diagnostics
        .iter()
        .any(|diagnostic| diagnostic.code == "unknown-key")
}

fn keys(schema: &Value, at: &str) -> BTreeSet<String> {
    let properties = schema.pointer(at).unwrap()["properties"]
        .as_object()
        .unwrap();
    properties.keys().cloned().collect()
}

/// Returns a file with `key` at a place of the schema.
fn with_key(place: &str, key: &str) -> String {
    let step = "steps:\n  - cmd: alpine true\n";
    match place {
        "" if key == "steps" => step.into(),
        "" => format!("{key}:\n{step}"),
        "/$defs/step" if key == "cmd" => step.into(),
        "/$defs/step" => format!("{step}    {key}:\n"),
        "/$defs/alias" => format!("version: v1.1.0\nalias:\n  {key}:\n{step}"),
        "/$defs/secret" => format!("secrets:\n  - {key}: x\n{step}"),
        "/$defs/network" => format!("networks:\n  - {key}: x\n{step}"),
        "/$defs/volume" => format!("volumes:\n  - {key}: x\n{step}"),
        "/$defs/volumeMounts/items" => format!("{step}    volumeMounts:\n      - {key}: x\n"),
        other => panic!("{other}"),
    }
}

const PLACES: [&str; 7] = [
    "",
    "/$defs/step",
    "/$defs/alias",
    "/$defs/secret",
    "/$defs/network",
    "/$defs/volume",
    "/$defs/volumeMounts/items",
];

#[test]
fn schema_keys_are_accepted_by_the_reader() {
    let schema = load_schema();
    for place in PLACES {
        for key in keys(&schema, place) {
            let text = with_key(place, &key);
            assert!(is_accepted(&text), "{place} {key}:\n{text}");
        }
        assert!(!is_accepted(&with_key(place, "nonsense")), "{place}");
    }
}

#[test]
fn reader_keys_are_in_the_schema() {
    let schema = load_schema();
    let mut all: BTreeSet<String> = PLACES
        .iter()
        .flat_map(|place| keys(&schema, place))
        .collect();
    // All names in the reader's source, whether or not they are keys.
    for file in ["task.rs", "alias.rs", "read.rs"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(file);
        let source = std::fs::read_to_string(path).unwrap();
        all.extend(
            source
                .split('"')
                .skip(1)
                .step_by(2)
                .filter(|word| !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric()))
                .map(str::to_owned),
        );
    }
    for place in PLACES {
        let schema_keys = keys(&schema, place);
        for key in &all {
            if is_accepted(&with_key(place, key)) {
                assert!(
                    schema_keys.contains(key),
                    "{place}: `{key}` is not in the schema"
                );
            }
        }
    }
}

/// Returns the schema's errors for a file. `None` if the file is not YAML before its template is
/// rendered.
fn schema_errors(validator: &jsonschema::Validator, text: &str) -> Option<Vec<String>> {
    let value: Value = serde_yaml::from_str(text).ok()?;
    let problems = validator
        .iter_errors(&value)
        .map(|error| format!("{}: {error}", error.instance_path()));
    Some(problems.collect())
}

#[test]
fn examples_conform_to_the_schema() {
    let validator = jsonschema::validator_for(&load_schema()).unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path().join("acr-task.yaml");
        if !path.is_file() {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(
            schema_errors(&validator, &text),
            Some(Vec::new()),
            "{}",
            path.display()
        );
        seen += 1;
    }
    assert!(seen >= 5, "{seen}");
}

#[test]
fn mistakes_violate_the_schema() {
    let validator = jsonschema::validator_for(&load_schema()).unwrap();
    for text in [
        "steps:\n  - cmd: alpine\n    wen: [a]\n",
        "steps:\n  - cmd: alpine\n    build: .\n",
        "steps:\n  - id: a\n",
        "steps:\n  - push: reg/app\n",
        "steps:\n  - cmd: alpine\n    timeout: soon\n",
        "steps:\n  - cmd: alpine\n    detach: perhaps\n",
        "steps: {}\n",
        "version: v2\nsteps: []\n",
        "jobs: []\n",
    ] {
        let problems = schema_errors(&validator, text).unwrap();
        assert!(!problems.is_empty(), "{text}");
    }
}

/// Files of the corpus that are YAML before rendering. The schema must accept those without
/// diagnostics.
#[test]
fn corpus_files_conform_to_the_schema() {
    let Some(folder) = corpus_folder() else {
        return;
    };
    let validator = jsonschema::validator_for(&load_schema()).unwrap();
    let (mut taken, mut wrong) = (0, Vec::new());
    for case in read_cases(&folder) {
        let resolution = resolve_text(&case.text);
        if resolution.plan.is_none() || !resolution.diagnostics.is_empty() {
            continue;
        }
        match schema_errors(&validator, &case.text) {
            None => {}
            Some(problems) if problems.is_empty() => taken += 1,
            Some(problems) => wrong.push(format!("{}: {}", case.name, problems.join("; "))),
        }
    }
    assert!(taken > 100, "{taken}");
    assert!(
        wrong.is_empty(),
        "{} of {taken}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}
