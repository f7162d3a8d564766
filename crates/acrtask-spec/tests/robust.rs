//! Whatever the text: an answer, never a panic, and places that are in the text.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of a #[test]")]

mod common;

use acrtask_spec::{
    RunFacts, TaskSource, build_line, cmd_line, plan_json, plan_text, render_diagnostics, resolve,
    values_from_yaml,
};
use common::{World, cases, corpus, facts};
use proptest::prelude::*;

fn survives(text: String, facts: &RunFacts) {
    let source = TaskSource {
        name: "task.yaml".into(),
        text,
    };
    let resolution = resolve(&source, facts, &World);
    let diagnostics = resolution.for_run();
    for diagnostic in &diagnostics {
        for label in &diagnostic.labels {
            assert!(
                source.text.get(label.span.clone()).is_some(),
                "{diagnostic:?}"
            );
        }
        diagnostic.to_json(&source);
    }
    let shown = render_diagnostics(&source, &diagnostics, false, 80);
    assert_eq!(shown.is_empty(), diagnostics.is_empty());
    let errors = resolution
        .diagnostics
        .iter()
        .any(acrtask_spec::Diagnostic::is_error);
    assert_eq!(
        resolution.plan.is_none(),
        errors,
        "{:?}",
        resolution.diagnostics
    );
    if let Some(plan) = &resolution.plan {
        plan_json(plan);
        plan_text(plan, true, 80);
        assert!(plan.refusals().count() <= resolution.refusals.len());
    }
}

/// Pieces that files are made of, and that break them.
fn piece() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => prop::sample::select(vec![
            "version: v1.1.0\n", "version: v1.0.0\n", "steps:\n", "  - ", "- ", "cmd: ", "build: ", "push: ", "id: a",
            "when: [", "-", "]", "\n", "    ", "\t", "\r\n", "{{", "}}", ".Run.ID", "$ID", "$", "$$", "alias:\n", "values:\n",
            "'", "\"", "\\", "&a ", "*a", "<<: ", "|\n", ">\n", "#", ": ", ", ", "{", "}", "[", "$(date +%F)", "&&", "2>&1",
            "secrets:\n", "volumes:\n", "networks:\n", "env: [A=1]", "\u{feff}", "ä", "\u{0}", "---\n", "...\n", "!!str ",
            "-t app .", "docker rmi", "alpine echo", "> /dev/null", "%", "? ", "timeout: 5", "\u{2028}",
        ]).prop_map(str::to_owned),
        1 => any::<String>(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text(text in any::<String>()) {
        survives(text, &facts());
    }

    #[test]
    fn pieces_of_task_files(pieces in prop::collection::vec(piece(), 0..40)) {
        survives(pieces.concat(), &facts());
    }

    #[test]
    fn any_line(pieces in prop::collection::vec(piece(), 0..12)) {
        let line = pieces.concat();
        if let Err(refused) = cmd_line::parse(&line, &|_| None) {
            prop_assert!(line.get(refused.span.clone()).is_some(), "{refused:?}");
        }
        if let Err(refused) = build_line::parse(&line) {
            prop_assert!(line.get(refused.span.clone()).is_some(), "{refused:?}");
        }
        let _ = values_from_yaml(&line);
    }
}

/// Each file of the corpus with a byte taken out, a character put in, or its end cut off.
#[test]
fn mutated_corpus() {
    let Some(folder) = corpus() else { return };
    let mut state = 1u64;
    let mut random = move |below: usize| {
        // An xorshift: the same mutations every time.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below.max(1) as u64).unwrap()
    };
    let odd = [
        "\"", "'", "{{", "}}", "[", "]", "\t", "\n", ":", "- ", "$", "&a ", "*a ", "\u{feff}", "ä",
        "#",
    ];
    for case in cases(&folder) {
        let facts = RunFacts {
            set: case.set.clone(),
            ..facts()
        };
        for _ in 0..8 {
            let mut text = case.text.clone();
            let at = text.floor_char_boundary(random(text.len() + 1));
            match random(4) {
                0 => text.truncate(at),
                1 => text.insert_str(at, odd[random(odd.len())]),
                2 if at < text.len() => {
                    text.remove(at);
                }
                _ => {
                    let end = text.floor_char_boundary(at + random(40));
                    if end > at {
                        text.replace_range(at..end, "");
                    }
                }
            }
            survives(text, &facts);
        }
    }
}
