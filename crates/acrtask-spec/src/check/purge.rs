//! Warnings about `acr purge` lines that delete something else than their author probably means,
//! or that fail.

use acrtask_purge::{Advice, AdviceKind, advise_on_purge};

use super::lines::LinePositions;
use crate::{
    cmd_line::{CmdLine, CommandKind, Word},
    code::Code,
    diagnostic::Diagnostic,
    plan::StepKind,
    read::{Int, Report},
};

/// Timeout in seconds below which a purge of a registry is probably stopped.
const SHORT_TIMEOUT: i64 = 600;
/// Maximum number of words of purges of a file that get warnings. Filters are compiled for them.
const MAX_WORDS: usize = 300;

/// Returns the words after each `acr purge` of a line. A word that gets its text when the step runs
/// is empty.
fn find_purges(line: &CmdLine) -> impl Iterator<Item = Vec<String>> {
    let pipelines =
        std::iter::once(&line.first).chain(line.rest.iter().map(|(_, pipeline)| pipeline));
    let commands = pipelines.flat_map(|pipeline| &pipeline.commands);
    commands.filter_map(|command| {
        let CommandKind::Acr(words) = &command.kind else {
            return None;
        };
        let mut words = words
            .iter()
            .map(|word| Word::literal(word).unwrap_or_default());
        (words.next()? == "purge").then(|| words.collect())
    })
}

/// Warns of filters and ages of the purges in a line.
pub(super) fn warn_of_purges(
    line: &CmdLine,
    positions: &LinePositions<'_>,
    report: &mut Report<'_>,
) {
    for words in find_purges(line) {
        report.purge_words += words.len();
        if report.purge_words > MAX_WORDS {
            return;
        }
        for advice in advise_on_purge(&words) {
            let at = positions.find_text(advice.word.as_deref().unwrap_or("purge"));
            let (code, label) = describe(&advice);
            report.push(
                Diagnostic::warning(code, advice.message)
                    .at(at, label)
                    .help(advice.help),
            );
        }
    }
}

/// Returns the code of a warning and its remark.
fn describe(advice: &Advice) -> (Code, &'static str) {
    match advice.kind {
        AdviceKind::Split => (Code::PurgeFilter, "expected REPOSITORY:TAG"),
        AdviceKind::Glob => (Code::PurgeFilter, "`*` repeats the character before it"),
        AdviceKind::Expression => (Code::PurgeFilter, "the purge fails"),
        AdviceKind::RepositoryAlternatives | AdviceKind::TagAlternatives => {
            (Code::PurgeFilter, "`|` has no brackets")
        }
        AdviceKind::OneTag | AdviceKind::Unanchored => {
            (Code::PurgeFilter, "`^` and `$` are missing")
        }
        AdviceKind::Age => (Code::PurgeAge, "expected an age"),
    }
}

/// Warns of a purge whose own timeout, or that of all steps, is short.
pub(super) fn warn_of_short_purge(
    kind: Option<&StepKind>,
    timeout: Option<&Int>,
    report: &mut Report<'_>,
) {
    let (Some(StepKind::Cmd(step)), Some(timeout)) = (kind, timeout) else {
        return;
    };
    let has_purge = || {
        let line = step.line.as_ref().ok();
        line.is_some_and(|line| find_purges(line).next().is_some())
    };
    if (1..SHORT_TIMEOUT).contains(&timeout.value) && has_purge() {
        report.push(
            Diagnostic::warning(
                Code::PurgeTimeout,
                format!(
                    "a purge of a large registry needs more than {} seconds",
                    timeout.value
                ),
            )
            .at(timeout.span.clone(), "the purge is stopped then")
            .help("write `timeout: 3600`; a stopped purge leaves the rest to its next run"),
        );
    }
}
