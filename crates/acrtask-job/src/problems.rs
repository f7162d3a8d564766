//! Conversion of diagnostics for transport to the machine that displays them.

use acrtask_model::events::{FileProblem, SourceSpan};
use acrtask_spec::{Diagnostic, Label, Severity};

/// Converts diagnostics to problems of an event.
pub fn file_problems(diagnostics: &[Diagnostic]) -> Vec<FileProblem> {
    diagnostics
        .iter()
        .map(|diagnostic| FileProblem {
            code: diagnostic.code.to_string(),
            error: diagnostic.is_error(),
            message: diagnostic.message.clone(),
            help: diagnostic.help.clone(),
            spans: diagnostic
                .labels
                .iter()
                .map(|label| SourceSpan {
                    start: label.span.start,
                    end: label.span.end,
                    text: label.text.clone(),
                })
                .collect(),
        })
        .collect()
}

/// Converts the problems of an event back to diagnostics, which are then displayed like local ones.
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
                .spans
                .iter()
                .map(|span| Label {
                    span: span.start..span.end,
                    text: span.text.clone(),
                })
                .collect(),
        })
        .collect()
}
