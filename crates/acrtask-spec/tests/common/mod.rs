//! What the tests of this crate share: the facts of the run that the corpus was resolved for.
#![allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests, outside of a #[test]"
)]

use std::path::{Path, PathBuf};

use acrtask_model::Secret;
use acrtask_spec::{Lookup, RunFacts, SecretDeclaration};

/// The run of the corpus.
pub fn facts() -> RunFacts {
    RunFacts {
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
        ..RunFacts::default()
    }
}

/// A world where the secret X has the value `secret-of-X`, and no file can be read.
pub struct World;

impl Lookup for World {
    fn alias_source(&self, location: &str) -> Result<String, String> {
        match location {
            "aliases.yaml" => Ok("registry: first.example.com\nfrom: file\n".into()),
            "later.yaml" => Ok("registry: later.example.com\n".into()),
            "broken.yaml" => Ok("a: [\n".into()),
            _ => Err("there is no such file".into()),
        }
    }

    fn secret(&self, declared: &SecretDeclaration) -> Result<Option<Secret>, String> {
        if declared.id.starts_with("unknown") {
            return Ok(None);
        }
        Ok(Some(Secret::new(format!("secret-of-{}", declared.id))))
    }
}

/// The folder of the corpus, where it is there.
pub fn corpus() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/corpus/tasks");
    if folder.is_dir() {
        return Some(folder);
    }
    println!("skipped: ../shared/corpus is not there");
    None
}

/// A case of the corpus.
pub struct Case {
    pub name: String,
    pub text: String,
    pub set: Vec<(String, String)>,
    pub expect: serde_json::Value,
}

/// All cases, in the order of their names.
pub fn cases(folder: &Path) -> Vec<Case> {
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
