//! Checks that `docs/events.md` documents every event and its keys.

use std::collections::BTreeSet;

use acrtask_model::{Event, EventKind};

/// Returns the name of an event. A new event does not compile until it has a name here, and the
/// test fails until the page documents it.
fn name(kind: &EventKind) -> &'static str {
    match kind {
        EventKind::TaskFile { .. } => "task_file",
        EventKind::RunStarted { .. } => "run_started",
        EventKind::Progress { .. } => "progress",
        EventKind::StepStarted { .. } => "step_started",
        EventKind::Output { .. } => "output",
        EventKind::Vertex { .. } => "vertex",
        EventKind::Transfer { .. } => "transfer",
        EventKind::StepRetrying { .. } => "step_retrying",
        EventKind::StepFinished { .. } => "step_finished",
        EventKind::ImageBuilt { .. } => "image_built",
        EventKind::ImagePushed { .. } => "image_pushed",
        EventKind::BaseUsed { .. } => "base_used",
        EventKind::Warning { .. } => "warning",
        EventKind::RunFinished { .. } => "run_finished",
    }
}
const EVENTS: usize = 14;

/// Returns the first column of the tables in `text`.
fn documented_keys(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` |"))
        .map(|(key, _)| key.to_owned())
        .collect()
}

#[test]
fn each_event_is_documented_with_exactly_its_keys() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/events.md");
    let page = std::fs::read_to_string(path).expect("docs/events.md is there");
    let mut sections = page.split("\n## ");
    let common: BTreeSet<String> = documented_keys(
        sections
            .next()
            .unwrap()
            .split("A *state* consists of")
            .next()
            .unwrap(),
    );
    assert_eq!(common.len(), 3, "{common:?}");
    let mut seen = BTreeSet::new();
    for section in sections {
        let (title, body) = section.split_once('\n').unwrap();
        let example = body
            .split("```json\n")
            .nth(1)
            .and_then(|rest| rest.split("\n```").next());
        let example = example.unwrap_or_else(|| panic!("{title}: no example"));
        let event: Event = serde_json::from_str(example).unwrap_or_else(|e| panic!("{title}: {e}"));
        assert_eq!(name(&event.kind), title);
        // The example must be the canonical serialization, with every key in order.
        assert_eq!(serde_json::to_string(&event).unwrap(), example, "{title}");
        let object: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(example).unwrap();
        let written: BTreeSet<String> = object.keys().cloned().collect();
        let documented: BTreeSet<String> = documented_keys(body).union(&common).cloned().collect();
        assert_eq!(written, documented, "{title}");
        seen.insert(title.to_owned());
    }
    assert_eq!(seen.len(), EVENTS, "{seen:?}");
}
