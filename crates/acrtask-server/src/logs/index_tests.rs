//! Properties of the index: any log, cut into any parts, read through any window.

use std::ops::ControlFlow;

use proptest::{collection::vec, prelude::*};
use serde_json::json;

use super::*;
use crate::logs::reader::{Numbering, PlacedLine};

/// Line with its step, its number within the step, and its position in the selection.
type Line = (String, u64, u64, String);

fn event(kind: &serde_json::Value) -> String {
    let mut event = json!({"time": "2026-01-02T03:04:05Z", "run": "r1"});
    event
        .as_object_mut()
        .unwrap()
        .extend(kind.as_object().unwrap().clone());
    format!("{event}\n")
}

/// Returns a strategy for events of few steps, and for lines that are not events.
fn any_event() -> impl Strategy<Value = String> {
    let step = prop_oneof![Just("a"), Just("b"), Just("rare")];
    let text = prop_oneof![
        4 => "[xy]{0,3}(\n[xy\r]{0,4}){0,6}",
        1 => "\n{0,3}",
        1 => Just("é\u{1b}[31m\"\\ red".to_owned()),
    ];
    let time = "2026-01-02T03:04:05Z";
    (step, text, 0usize..12).prop_map(move |(step, text, kind)| match kind {
        0 => event(&json!({"event": "step_started", "step": step, "attempt": 1})),
        1 => event(&json!({
            "event": "vertex", "step": step, "vertex": "v1", "name": text, "started": time,
            "completed": null, "cached": false,
        })),
        2 => event(&json!({
            "event": "vertex", "step": step, "vertex": "v1", "name": "two", "started": time,
            "completed": time, "cached": true, "error": text,
        })),
        3 => event(&json!({"event": "warning", "message": text})),
        4 => event(&json!({"event": "transfer", "step": step, "vertex": "v1", "id": "x", "current": 1, "total": 2, "done": false})),
        5 => event(&json!({"event": "from_the_future", "step": step})),
        6 => format!("not JSON {}\n", text.replace('\n', " ")),
        7 => event(&json!({
            "event": "step_finished", "step": step, "state": "succeeded", "elapsed_ms": 7,
        })),
        _ => event(&json!({
            "event": "output", "step": step, "stream": "stdout", "text": text,
        })),
    })
}

/// Returns a strategy for a log and the positions of its cuts.
fn any_log() -> impl Strategy<Value = (Vec<u8>, Vec<usize>)> {
    (vec(any_event(), 0..60), vec(0.0..1.0, 0..8), any::<bool>()).prop_map(
        |(events, cuts, is_open)| {
            let mut log = events.concat().into_bytes();
            if is_open {
                // A lost runner leaves a last event without a line end.
                log.pop();
            }
            let at = |cut: f64| (cut * log.len() as f64) as usize;
            let mut cuts: Vec<usize> = cuts.into_iter().map(at).collect();
            cuts.sort_unstable();
            (log, cuts)
        },
    )
}

fn small_index() -> LogIndex {
    let mut index = LogIndex::new(1, 1);
    index.limits = Limits {
        lines: 4,
        gap: 150,
        extents: 1000,
    };
    index
}

fn index_of(log: &[u8], cuts: &[usize], mut index: LogIndex) -> LogIndex {
    let mut at = 0;
    for &cut in cuts {
        index.push(&log[at..cut]);
        at = cut;
        // Readers between the parts change nothing.
        index.outline();
    }
    index.push(&log[at..]);
    index.finish();
    index
}

fn collect(numbering: &mut Numbering, log: &[u8], offset: u64) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut each = |line: &PlacedLine<'_>| {
        lines.push((
            line.step.to_owned(),
            line.number,
            line.position,
            line.text.to_owned(),
        ));
        ControlFlow::Continue(())
    };
    let mut splitter = Splitter::at(offset);
    splitter.push(log, |raw| {
        let _ = numbering.read(raw, &mut each);
    });
    splitter.finish(|raw| {
        let _ = numbering.read(raw, &mut each);
    });
    lines
}

/// Reads everything from the start, and numbers the lines of a selection.
fn read_all(log: &[u8], selection: &Selection) -> Vec<Line> {
    let all = collect(&mut Numbering::of_whole_log(), log, 0);
    let selected = all.into_iter().filter(|line| match selection {
        Selection::All => true,
        Selection::Step(step) => line.0 == *step,
    });
    selected
        .zip(1..)
        .map(|((step, number, _, text), position)| (step, number, position, text))
        .collect()
}

fn read_plan(log: &[u8], plan: &Plan) -> Vec<Line> {
    let mut numbering = Numbering::of(plan);
    let ranges = plan.ranges.iter();
    ranges
        .flat_map(|range| {
            let bytes = &log[range.start as usize..range.end as usize];
            collect(&mut numbering, bytes, range.start)
        })
        .collect()
}

fn selections() -> [Selection; 5] {
    let step = |step: &str| Selection::Step(step.to_owned());
    [Selection::All, step("a"), step("b"), step("rare"), step("")]
}

fn value_of(index: &LogIndex) -> serde_json::Value {
    serde_json::to_value(index).unwrap()
}

proptest! {
    #[test]
    fn windows_have_the_lines_of_the_whole_log((log, cuts) in any_log(), extents in 1usize..40) {
        let mut empty = small_index();
        empty.limits.extents = extents + 5;
        let index = index_of(&log, &cuts, empty);
        prop_assert!(index.extents <= extents + 5 || index.all.parts.len() <= 1);
        for selection in selections() {
            let all = read_all(&log, &selection);
            let lines = index.count_lines(&selection).unwrap_or(0);
            prop_assert_eq!(lines, all.len() as u64, "{:?}", selection);
            for (from, count) in [(1, 3), (2, 1), (all.len() as u64 / 2, 5), (1, 1000)] {
                let from = from.max(1);
                let plan = index.plan(selection.clone(), from, count);
                let window: Vec<Line> = read_plan(&log, &plan)
                    .into_iter()
                    .filter(|line| (from..from + count).contains(&line.2))
                    .collect();
                let expected: Vec<Line> = all
                    .iter()
                    .filter(|line| (from..from + count).contains(&line.2))
                    .cloned()
                    .collect();
                prop_assert_eq!(window, expected, "{:?} {} {}", selection, from, count);
            }
        }
    }

    #[test]
    fn every_line_is_found_by_its_address((log, cuts) in any_log()) {
        let index = index_of(&log, &cuts, small_index());
        for line in read_all(&log, &Selection::All) {
            let plan = index.plan_around(&line.0, line.1).unwrap();
            prop_assert!(read_plan(&log, &plan).contains(&line), "{:?}", line);
        }
        prop_assert!(index.plan_around("a", 0).is_none());
        prop_assert!(index.plan_around("a", 1 << 40).is_none());
        prop_assert!(index.plan_around("missing", 1).is_none());
    }

    #[test]
    fn live_and_final_index_agree((log, cuts) in any_log()) {
        let live = index_of(&log, &cuts, small_index());
        let whole = index_of(&log, &[], small_index());
        prop_assert_eq!(value_of(&live), value_of(&whole));
        let stored: LogIndex = serde_json::from_value(value_of(&live)).unwrap();
        prop_assert_eq!(value_of(&stored), value_of(&live));
        prop_assert_eq!(
            serde_json::to_value(stored.outline()).unwrap(),
            serde_json::to_value(live.outline()).unwrap()
        );
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..300)) {
        let mut index = small_index();
        index.push(&bytes);
        index.finish();
    }
}

#[test]
fn outline_has_times_lines_and_vertices() {
    let mut index = LogIndex::new(1, 2);
    let time = "2026-01-02T03:04:05Z";
    for kind in [
        json!({
            "event": "run_started", "engine": "e", "builder": "b",
            "steps": [{"id": "a", "type": "build", "line": "-t x .", "after": []}],
        }),
        json!({"event": "step_started", "step": "a", "attempt": 1}),
        json!({
            "event": "vertex", "step": "a", "vertex": "v2", "name": "RUN x", "inputs": ["v1"],
            "started": time, "completed": time, "cached": true,
        }),
        json!({"event": "output", "step": "a", "stream": "stdout", "text": "one\ntwo"}),
    ] {
        index.push(event(&kind).as_bytes());
    }
    insta::assert_json_snapshot!(index.outline());
}

#[test]
fn endless_events_need_bounded_memory() {
    let mut index = LogIndex::new(1, 1);
    for number in 0..30_000 {
        let kind = json!({
            "event": "vertex", "step": format!("s{}", number % 15_000), "vertex": format!("v{number}"),
            "name": "x".repeat(100), "started": "2026-01-02T03:04:05Z", "completed": null, "cached": false,
        });
        index.push(event(&kind).as_bytes());
    }
    index.finish();
    let outline = index.outline().outline;
    assert!(outline.is_truncated);
    let vertices: usize = outline.steps.iter().map(|step| step.vertices.len()).sum();
    assert_eq!((outline.steps.len(), vertices), (10_000, 5_000));
    assert!(index.extents <= MAX_EXTENTS, "{}", index.extents);
    assert!(index.memory() < 20 << 20, "{}", index.memory());
}
