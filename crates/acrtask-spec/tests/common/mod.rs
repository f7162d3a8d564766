//! Helpers of the tests: the corpus, and the variables it was resolved with.
#![allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests, outside of a #[test]"
)]

use std::path::{Path, PathBuf};

use acrtask_model::Secret;
use acrtask_spec::{Lookup, RunVariables, SecretDeclaration};

/// Returns the variables that the corpus was resolved with.
pub fn run_variables() -> RunVariables {
    RunVariables {
        id: "ca7".into(),
        registry: "reg.example.com".into(),
        commit: "0123456789abcdef0123456789abcdef01234567".into(),
        branch: "main".into(),
        git_tag: "v9".into(),
        repository: "https://example.com/org/repo.git".into(),
        date: "2026-01-02T03:04:05Z".parse().unwrap(),
        shared_volume: "VOL".into(),
        os: "linux".into(),
        architecture: "amd64".into(),
        triggered_by: "Manual".into(),
        task_name: "corpus".into(),
        ..RunVariables::default()
    }
}

/// A lookup in which the secret X has the value `secret-of-X`. It has a few alias sources.
pub struct TestLookup;

impl Lookup for TestLookup {
    fn alias_source(&self, location: &str) -> Result<String, String> {
        match location {
            "aliases.yaml" => Ok("registry: first.example.com\nfrom: file\n".into()),
            "later.yaml" => Ok("registry: later.example.com\n".into()),
            "broken.yaml" => Ok("a: [\n".into()),
            _ => Err("the file does not exist".into()),
        }
    }

    fn secret(&self, declared: &SecretDeclaration) -> Result<Option<Secret>, String> {
        if declared.id.starts_with("unknown") {
            return Ok(None);
        }
        Ok(Some(Secret::new(format!("secret-of-{}", declared.id))))
    }
}

/// Returns the folder of the corpus. `None` if it is missing.
pub fn corpus_folder() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/corpus/tasks");
    if folder.is_dir() {
        return Some(folder);
    }
    println!("skipped: ../shared/corpus is missing");
    None
}

/// A case of the corpus.
pub struct Case {
    pub name: String,
    pub text: String,
    pub set: Vec<(String, String)>,
    pub expect: serde_json::Value,
}

/// Returns all cases in alphabetical order.
pub fn read_cases(folder: &Path) -> Vec<Case> {
    let mut names: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "yaml")
        })
        .collect();
    names.sort();
    names
        .into_iter()
        .map(|path| {
            let expect = std::fs::read_to_string(path.with_extension("expect.json")).unwrap();
            let mut expect: serde_json::Value = serde_json::from_str(&expect).unwrap();
            let set = expect["set"]
                .as_array()
                .unwrap()
                .iter()
                .map(|pair| {
                    let (name, value) = pair.as_str().unwrap().split_once('=').unwrap();
                    (name.to_owned(), value.to_owned())
                })
                .collect();
            Case {
                name: path.file_stem().unwrap().to_string_lossy().into_owned(),
                text: std::fs::read_to_string(&path).unwrap(),
                set,
                expect: expect["expect"].take(),
            }
        })
        .collect()
}
