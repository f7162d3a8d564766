//! Examples on the pages of diagnostic codes: the first one has the problem, the second one has not.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of a #[test]")]

mod common;

use acrtask_spec::{Code, Diagnostic, TaskSource, resolve, values_from_yaml};
use common::{TestLookup, run_variables};

/// Codes that another part of the program reports. Their pages have examples for people only.
const REPORTED_ELSEWHERE: &[Code] = &[
    Code::DuplicateTask,
    Code::EmptyContext,
    Code::NotAllowed,
    Code::NotPinned,
    Code::Refused,
    Code::Settings,
    Code::Task,
];

/// Codes without an example: a limit, and values of strangers.
const WITHOUT_EXAMPLE: &[Code] = &[Code::TooLarge, Code::UntrustedValue];

fn diagnostics_of(code: Code, text: &str) -> Vec<Diagnostic> {
    if code == Code::Values {
        return match values_from_yaml(text) {
            Ok(file) => file.warnings,
            Err(diagnostic) => vec![diagnostic],
        };
    }
    let source = TaskSource {
        name: "acr-task.yaml".into(),
        text: text.into(),
    };
    resolve(&source, &run_variables(), &TestLookup).for_run()
}

fn examples(page: &str) -> Vec<&str> {
    page.split("```yaml\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap())
        .collect()
}

#[test]
fn examples_of_each_page_have_the_code_and_then_no_problem() {
    for code in Code::ALL {
        let page = code.page();
        assert!(page.starts_with(&format!("# `{code}`\n")), "{page}");
        if REPORTED_ELSEWHERE.contains(code) {
            continue;
        }
        let mut examples = examples(page).into_iter();
        let Some(bad) = examples.next() else {
            assert!(WITHOUT_EXAMPLE.contains(code), "`{code}` has no example");
            continue;
        };
        let found = diagnostics_of(*code, bad);
        assert!(
            found.iter().any(|found| found.code == code.as_str()),
            "the first example of `{code}` has other problems: {found:#?}"
        );
        for good in examples {
            let found = diagnostics_of(*code, good);
            assert!(found.is_empty(), "the remedy of `{code}`: {found:#?}");
        }
    }
}

#[test]
fn index_of_the_pages_lists_every_code() {
    let index = include_str!("../../../docs/diagnostics/README.md");
    let listed: Vec<&str> = index
        .lines()
        .filter(|line| line.starts_with("| [`"))
        .collect();
    let expected: Vec<String> = Code::ALL
        .iter()
        .map(|code| format!("| [`{code}`]({code}.md) | {} |", code.summary()))
        .collect();
    assert_eq!(listed, expected);
}
