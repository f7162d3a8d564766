//! Comparison of every corpus file with the plan of the reference executor.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of a #[test]")]

mod common;

use acrtask_spec::{TaskSource, plan_json, render_diagnostics, resolve};
use common::{TestLookup, corpus_folder, read_cases, run_variables};
use serde_json::Value;

/// Keys in which `docker build` is right and the naive splitter behind `expect` is not.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    (
        "e-unknown-repo__id55258685993",
        "context",
        "the file is for Windows; a shell on Linux takes the backslash of `C:\\build` away",
    ),
    ("e-unknown-repo__id55258685993", "dockerfile", "as above"),
    (
        "f-chzbrgr71__image-classification__acr-task-flask",
        "env",
        "the reference keeps the quotes of an entry, which its shell takes away when the step runs",
    ),
    (
        "f-chzbrgr71__image-classification__acr-task-training",
        "env",
        "as above",
    ),
];

fn find_differences(name: &str, expected: &Value, got: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for key in ["version", "networks"] {
        if expected[key] != got[key] {
            found.push(format!(
                "{name}: {key}: expected {}, got {}",
                expected[key], got[key]
            ));
        }
    }
    let empty = Vec::new();
    let expected = expected["steps"].as_array().unwrap_or(&empty);
    let got = got["steps"].as_array().unwrap_or(&empty);
    if expected.len() != got.len() {
        found.push(format!(
            "{name}: expected {} steps, got {}",
            expected.len(),
            got.len()
        ));
    }
    for (expected, got) in expected.iter().zip(got) {
        let (expected, got) = (expected.as_object().unwrap(), got.as_object().unwrap());
        let mut keys: Vec<&String> = expected.keys().chain(got.keys()).collect();
        keys.sort();
        keys.dedup();
        for key in keys {
            if expected.get(key) == got.get(key) {
                continue;
            }
            if EXCEPTIONS
                .iter()
                .any(|(file, excepted, _)| *file == name && excepted == key)
            {
                continue;
            }
            found.push(format!(
                "{name}: {}: {key}: expected {:?}, got {:?}",
                got["id"],
                expected.get(key),
                got.get(key)
            ));
        }
    }
    found
}

#[test]
fn corpus_plans_equal_those_of_the_reference_executor() {
    let Some(folder) = corpus_folder() else {
        return;
    };
    let cases = read_cases(&folder);
    assert_eq!(cases.len(), 299);
    let mut found = Vec::new();
    for case in &cases {
        let variables = acrtask_spec::RunVariables {
            set: case.set.clone(),
            ..run_variables()
        };
        let source = TaskSource {
            name: format!("{}.yaml", case.name),
            text: case.text.clone(),
        };
        let resolution = resolve(&source, &variables, &TestLookup);
        let shown = || render_diagnostics(&source, &resolution.for_plan(), false, 100);
        match (&resolution.plan, case.expect["ok"].as_bool().unwrap()) {
            (Some(plan), true) => {
                found.extend(find_differences(&case.name, &case.expect, &plan_json(plan)))
            }
            (None, false) => {
                for diagnostic in resolution.diagnostics.iter().filter(|d| d.is_error()) {
                    if diagnostic.labels.is_empty() || diagnostic.help.is_none() {
                        found.push(format!(
                            "{}: an error without a place or help:\n{}",
                            case.name,
                            shown()
                        ));
                    }
                }
            }
            (Some(_), false) => found.push(format!(
                "{}: should be refused: {}",
                case.name, case.expect["error"]
            )),
            (None, true) => found.push(format!("{}: should be accepted:\n{}", case.name, shown())),
        }
    }
    assert!(
        found.is_empty(),
        "{} differences:\n{}",
        found.len(),
        found.join("\n")
    );
}
