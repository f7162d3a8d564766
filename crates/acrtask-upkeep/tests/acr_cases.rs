//! Cases of the original program as data: its command lines and outputs at a stand-in for the API
//! of ACR with the same content. `differences.txt` has the outputs that differ on purpose.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of a #[test]")]

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use acrtask_registry::{Credentials, Registry, Settings};
use acrtask_upkeep::{AcrLine, Always, Context, Line, NoRecords, run_command};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use wiremock::{Mock, MockServer, Request, Respond, ResponseTemplate, matchers::any};

#[derive(Debug, Clone, Deserialize)]
struct Content {
    repositories: Vec<RepositoryContent>,
}

#[derive(Debug, Clone, Deserialize)]
struct RepositoryContent {
    name: String,
    tags: Vec<TagContent>,
    manifests: Vec<ManifestContent>,
}

#[derive(Debug, Clone, Deserialize)]
struct TagContent {
    name: String,
    digest: String,
    /// Days since the last update.
    age: i64,
    locked: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ManifestContent {
    digest: String,
    media_type: String,
    age: i64,
    locked: bool,
    raw: String,
}

/// Stand-in for ACR.
#[derive(Clone)]
struct FakeAcr(Arc<Mutex<Content>>);

fn time(age: i64) -> String {
    // Rounding lets manifests of one age have one time.
    let now = Timestamp::now().as_second() / 3600 * 3600;
    Timestamp::from_second(now - age * 24 * 3600)
        .unwrap()
        .to_string()
}

fn attributes(locked: bool) -> Value {
    json!({"deleteEnabled": !locked, "writeEnabled": true})
}

impl Respond for FakeAcr {
    fn respond(&self, request: &Request) -> ResponseTemplate {
        let mut content = self.0.lock().unwrap();
        let path = request
            .url
            .path()
            .trim_start_matches('/')
            .replace("%3A", ":");
        let is_first = !request.url.query_pairs().any(|(name, _)| name == "last");
        let ok = |body: Value| ResponseTemplate::new(200).set_body_json(body);
        if path.ends_with("_catalog") {
            let names = content
                .repositories
                .iter()
                .filter(|_| is_first)
                .map(|one| &one.name);
            return ok(json!({"repositories": names.collect::<Vec<_>>()}));
        }
        let path = path.trim_start_matches("acr/v1/").trim_start_matches("v2/");
        let repositories = content.repositories.iter_mut();
        let mut found = repositories.filter(|one| path.starts_with(&format!("{}/", one.name)));
        let Some(repository) = found.next() else {
            return ResponseTemplate::new(404);
        };
        let rest = &path[repository.name.len() + 1..];
        let (kind, name) = rest.split_once('/').unwrap_or((rest, ""));
        match (request.method.as_str(), kind) {
            ("GET", "_tags") => {
                let mut tags = repository.tags.clone();
                tags.sort_by_key(|tag| tag.age);
                let tags = tags.iter().filter(|_| is_first).map(|tag| {
                    json!({"name": tag.name, "digest": tag.digest, "lastUpdateTime": time(tag.age),
                           "changeableAttributes": attributes(tag.locked)})
                });
                ok(json!({"tags": tags.collect::<Vec<_>>()}))
            }
            ("GET", "_manifests") => {
                let manifests = repository.manifests.iter().filter(|_| is_first).map(|one| {
                    json!({"digest": one.digest, "mediaType": one.media_type, "lastUpdateTime": time(one.age),
                           "changeableAttributes": attributes(one.locked)})
                });
                ok(json!({"manifests": manifests.collect::<Vec<_>>()}))
            }
            ("DELETE", "_tags") => {
                if repository
                    .tags
                    .iter()
                    .any(|tag| tag.name == name && tag.locked)
                {
                    return ResponseTemplate::new(405);
                }
                repository.tags.retain(|tag| tag.name != name);
                ResponseTemplate::new(202)
            }
            ("PATCH", _) => {
                let tags = repository.tags.iter_mut();
                tags.filter(|tag| kind == "_tags" && tag.name == name)
                    .for_each(|tag| tag.locked = false);
                let manifests = repository.manifests.iter_mut();
                manifests
                    .filter(|one| one.digest == name)
                    .for_each(|one| one.locked = false);
                ok(json!({}))
            }
            ("DELETE", "manifests") => {
                if repository
                    .manifests
                    .iter()
                    .any(|one| one.digest == name && one.locked)
                {
                    return ResponseTemplate::new(405);
                }
                repository.manifests.retain(|one| one.digest != name);
                repository.tags.retain(|tag| tag.digest != name);
                ResponseTemplate::new(202)
            }
            ("GET", "manifests") => {
                match repository.manifests.iter().find(|one| one.digest == name) {
                    Some(one) => {
                        ResponseTemplate::new(200).set_body_raw(one.raw.clone(), &one.media_type)
                    }
                    None => ResponseTemplate::new(404),
                }
            }
            _ => ResponseTemplate::new(404),
        }
    }
}

/// Parses cases: `$ acr ...`, lines of output, and `[exit N]`.
fn parse_cases(text: &str) -> BTreeMap<String, (String, u8)> {
    let mut cases = BTreeMap::new();
    let (mut line, mut output) = (String::new(), String::new());
    for text in text.lines() {
        if let Some(command) = text.strip_prefix("$ acr ") {
            (line, output) = (command.to_owned(), String::new());
        } else if let Some(code) = text.strip_prefix("[exit ") {
            let code = code.trim_end_matches(']').parse().unwrap();
            cases.insert(line.clone(), (output.clone(), code));
        } else if !text.starts_with('#') {
            output += &format!("{}\n", text.trim_end());
        }
    }
    cases
}

/// Runs a line at a fresh stand-in. Returns its output and its exit code.
async fn run(line: &str, content: &Content) -> (String, u8) {
    let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
    let line = match AcrLine::parse(&words) {
        Ok(line) => line,
        Err(error) => return (format!("Error: {error}\n"), 1),
    };
    let server = MockServer::start().await;
    let fake = FakeAcr(Arc::new(Mutex::new(content.clone())));
    Mock::given(any()).respond_with(fake).mount(&server).await;
    let host = server.address().to_string();
    let registry = Registry::new(Credentials::new(), Settings::default()).unwrap();
    let (lines, mut received) = tokio::sync::mpsc::unbounded_channel();
    let context = Context {
        registry: &registry,
        host: &host,
        now: Timestamp::now(),
        permission: &Always,
        records: &NoRecords,
        lines: &lines,
    };
    let code = run_command(context, &line.command).await;
    let mut text = String::new();
    while let Ok(Line::Out(line) | Line::Err(line)) = received.try_recv() {
        text += &format!("{}\n", line.trim_end());
    }
    (text.replace(&host, "HOST"), code)
}

/// Sorts lines about objects, because the original's order of manifests is that of its requests.
fn normalize(text: &str) -> Vec<String> {
    let shorten = |line: &str| match line.split_once("@sha256:") {
        Some((start, digest)) => format!("{start}@{}", &digest[..8]),
        None => line.to_owned(),
    };
    let mut lines: Vec<String> = text.lines().map(shorten).collect();
    let mut start = 0;
    for end in 0..=lines.len() {
        let is_manifest = lines.get(end).is_some_and(|line| line.contains('@'));
        if !is_manifest {
            lines[start..end].sort();
            start = end + 1;
        }
    }
    lines
}

#[tokio::test]
async fn outputs_are_those_of_the_original() {
    acrtask_registry::install_crypto_provider();
    let content: Content = serde_json::from_str(include_str!("acr/registry.json")).unwrap();
    let mut cases = parse_cases(include_str!("acr/cases.txt"));
    assert_eq!(cases.len(), 22);
    let differences = parse_cases(include_str!("acr/differences.txt"));
    for (line, expected) in &differences {
        assert_ne!(cases.get(line), Some(expected), "{line} does not differ");
    }
    cases.extend(differences);
    let mut failures = Vec::new();
    for (line, (expected, code)) in &cases {
        let (output, got) = run(line, &content).await;
        if (normalize(&output), got) != (normalize(expected), *code) {
            failures.push(format!(
                "$ acr {line}\n{output}[exit {got}]\nexpected:\n{expected}[exit {code}]"
            ));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}
