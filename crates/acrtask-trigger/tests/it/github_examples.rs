//! GitHub's published example deliveries: each is parsed, or declined with a reason.

use std::collections::BTreeMap;
use std::path::PathBuf;

use acrtask_trigger::{Event, Provider};
use http::HeaderMap;
use serde::Deserialize;
use serde_json::Value;

use crate::support::send;

#[derive(Deserialize)]
struct Kind {
    name: String,
    examples: Vec<Value>,
}

/// Returns the package's folder. `None` only if the environment asks to skip the test.
fn examples() -> Option<PathBuf> {
    const NAME: &str = "ACRTASK_TEST_GITHUB_EXAMPLES";
    match std::env::var_os(NAME).filter(|folder| !folder.is_empty()) {
        Some(folder) => Some(folder.into()),
        None => {
            assert!(
                std::env::var_os("ACRTASK_TEST_SKIP_ENGINE").is_some(),
                "{NAME} is not set: run the tests with `cargo xtask test`, or `eval \"$(cargo xtask env)\"` before \
                 this, or name a folder with the npm package @octokit/webhooks-examples; ACRTASK_TEST_SKIP_ENGINE=1 \
                 skips this test"
            );
            None
        }
    }
}

fn outcome(event: &Event) -> String {
    match event {
        Event::Push(push) if push.after.is_none() => "push: a branch was deleted".into(),
        Event::Push(push) if push.before.is_none() => "push: a new branch".into(),
        Event::Push(_) => "push".into(),
        Event::Tag(tag) if tag.after.is_none() => "tag: deleted".into(),
        Event::Tag(_) => "tag".into(),
        Event::PullRequest(request) => format!("pull request: {:?}", request.action),
        Event::Ping => "ping".into(),
        Event::Declined { reason } => format!("declined: {reason}"),
    }
}

#[test]
fn published_examples_are_parsed_or_declined() {
    let Some(folder) = examples() else { return };
    let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
    let mut files = 0;
    for entry in
        std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
    {
        let path = entry.unwrap().path().join("index.json");
        let Ok(text) = std::fs::read(&path) else {
            continue;
        };
        files += 1;
        let kinds: Vec<Kind> = serde_json::from_slice(&text).unwrap();
        for Kind { name, examples } in kinds {
            for example in examples {
                let mut headers = HeaderMap::new();
                headers.insert("x-github-event", name.parse().unwrap());
                let body = serde_json::to_vec(&example).unwrap();
                let delivery = send(Provider::GitHub, headers, &body).unwrap_or_else(|rejection| {
                    panic!("{} {name}: {rejection}\n{example}", path.display())
                });
                assert_eq!(delivery.events.len(), 1);
                let action = example
                    .get("action")
                    .and_then(Value::as_str)
                    .unwrap_or_default();
                let key = format!("{name} {action} -> {}", outcome(&delivery.events[0]));
                *outcomes.entry(key).or_default() += 1;
            }
        }
    }
    assert!(
        files >= 5,
        "{} has {files} files `*/index.json`",
        folder.display()
    );
    assert!(outcomes.values().sum::<usize>() > 300);
    // The snapshot lists parsed events. A declined one needs a reason that names the event.
    let (declined, read): (Vec<_>, Vec<_>) = outcomes
        .into_keys()
        .partition(|key| key.contains("-> declined"));
    for key in &declined {
        let event = key.split(' ').next().unwrap_or_default();
        assert!(
            key.contains(&format!("declined: `{event}`")) || event == "pull_request",
            "{key}"
        );
    }
    insta::assert_snapshot!(read.join("\n"));
}
