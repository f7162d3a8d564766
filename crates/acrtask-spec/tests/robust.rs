//! Property tests: any text leads to a result without a panic, with spans inside the text.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of a #[test]")]

mod common;

use acrtask_spec::{
    RunVariables, TaskSource, build_line, cmd_line, plan_json, plan_text, render_diagnostics,
    resolve, values_from_yaml,
};
use common::{TestLookup, corpus_folder, read_cases, run_variables};
use proptest::prelude::*;

fn assert_resolves_without_panic(text: String, variables: &RunVariables) {
    let source = TaskSource {
        name: "task.yaml".into(),
        text,
    };
    let resolution = resolve(&source, variables, &TestLookup);
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

/// Pieces of task files, valid and malformed.
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
    fn any_text_resolves_without_panic(text in any::<String>()) {
        assert_resolves_without_panic(text, &run_variables());
    }

    #[test]
    fn pieces_of_task_files_resolve_without_panic(pieces in prop::collection::vec(piece(), 0..40)) {
        assert_resolves_without_panic(pieces.concat(), &run_variables());
    }

    #[test]
    fn any_line_parses_without_panic(pieces in prop::collection::vec(piece(), 0..12)) {
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

/// Mutates each corpus file: removes a range, inserts a character, or cuts the end off.
#[test]
fn mutated_corpus_files_resolve_without_panic() {
    let Some(folder) = corpus_folder() else {
        return;
    };
    let mut state = 1u64;
    let mut random = move |below: usize| {
        // An xorshift generator, so that the mutations are the same every time.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below.max(1) as u64).unwrap()
    };
    let odd = [
        "\"", "'", "{{", "}}", "[", "]", "\t", "\n", ":", "- ", "$", "&a ", "*a ", "\u{feff}", "ä",
        "#",
    ];
    for case in read_cases(&folder) {
        let variables = RunVariables {
            set: case.set.clone(),
            ..run_variables()
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
            assert_resolves_without_panic(text, &variables);
        }
    }
}
