//! The JSON Schema of task files: it knows the keys that the reader knows, and takes the files that the reader takes.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of a #[test]")]

mod common;

use std::{collections::BTreeSet, path::Path};

use acrtask_spec::{FILE_SCHEMA, Resolution, TaskSource, resolve};
use common::{World, cases, corpus, facts};
use serde_json::Value;

fn schema() -> Value {
    serde_json::from_str(FILE_SCHEMA).unwrap()
}

fn read(text: &str) -> Resolution {
    let source = TaskSource {
        name: "acr-task.yaml".into(),
        text: text.into(),
    };
    resolve(&source, &facts(), &World)
}

/// The keys that the reader suggests or refuses to know at one place of a file.
fn is_known(text: &str) -> bool {
    let resolution = read(text);
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

/// A file that has `key` at a place.
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
fn every_key_of_the_schema_is_one_of_the_reader() {
    let schema = schema();
    for place in PLACES {
        for key in keys(&schema, place) {
            let text = with_key(place, &key);
            assert!(is_known(&text), "{place} {key}:\n{text}");
        }
        assert!(!is_known(&with_key(place, "nonsense")), "{place}");
    }
}

#[test]
fn every_key_that_anybody_uses_and_the_reader_knows_is_in_the_schema() {
    let schema = schema();
    let mut all: BTreeSet<String> = PLACES
        .iter()
        .flat_map(|place| keys(&schema, place))
        .collect();
    // Names of the reader's source, whether or not they are keys somewhere.
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
        let known = keys(&schema, place);
        for key in &all {
            if is_known(&with_key(place, key)) {
                assert!(known.contains(key), "{place}: `{key}` is not in the schema");
            }
        }
    }
}

/// What the schema says against a file; nothing for one that is no YAML before its template is rendered.
fn refused(validator: &jsonschema::Validator, text: &str) -> Option<Vec<String>> {
    let value: Value = serde_yaml::from_str(text).ok()?;
    let problems = validator
        .iter_errors(&value)
        .map(|error| format!("{}: {error}", error.instance_path()));
    Some(problems.collect())
}

#[test]
fn the_examples_conform() {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path().join("acr-task.yaml");
        if !path.is_file() {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(
            refused(&validator, &text),
            Some(Vec::new()),
            "{}",
            path.display()
        );
        seen += 1;
    }
    assert!(seen >= 5, "{seen}");
}

#[test]
fn mistakes_do_not_conform() {
    let validator = jsonschema::validator_for(&schema()).unwrap();
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
        let problems = refused(&validator, text).unwrap();
        assert!(!problems.is_empty(), "{text}");
    }
}

/// Real files that are YAML as they stand: what the reader finds nothing to say about, the schema takes.
#[test]
fn real_files_conform() {
    let Some(folder) = corpus() else { return };
    let validator = jsonschema::validator_for(&schema()).unwrap();
    let (mut taken, mut wrong) = (0, Vec::new());
    for case in cases(&folder) {
        let resolution = read(&case.text);
        if resolution.plan.is_none() || !resolution.diagnostics.is_empty() {
            continue;
        }
        match refused(&validator, &case.text) {
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
