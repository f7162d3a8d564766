//! Diagnostics on their way from the machine that found them to the one that shows them.

use acrtask_model::events::{FileProblem, Place};
use acrtask_spec::{Diagnostic, Label, Severity};

/// What an event says of `diagnostics`.
pub fn file_problems(diagnostics: &[Diagnostic]) -> Vec<FileProblem> {
    diagnostics
        .iter()
        .map(|diagnostic| FileProblem {
            code: diagnostic.code.to_string(),
            error: diagnostic.is_error(),
            message: diagnostic.message.clone(),
            help: diagnostic.help.clone(),
            places: diagnostic
                .labels
                .iter()
                .map(|label| Place {
                    start: label.span.start,
                    end: label.span.end,
                    text: label.text.clone(),
                })
                .collect(),
        })
        .collect()
}

/// The diagnostics that an event tells of; they are shown as if they had been found here.
pub fn diagnostics_from(problems: &[FileProblem]) -> Vec<Diagnostic> {
    problems
        .iter()
        .map(|problem| Diagnostic {
            code: problem.code.clone().into(),
            severity: if problem.error {
                Severity::Error
            } else {
                Severity::Warning
            },
            message: problem.message.clone(),
            help: problem.help.clone(),
            labels: problem
                .places
                .iter()
                .map(|place| Label {
                    span: place.start..place.end,
                    text: place.text.clone(),
                })
                .collect(),
        })
        .collect()
}
