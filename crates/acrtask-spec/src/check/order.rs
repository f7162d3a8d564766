//! Step ids, and the order that `when` defines.

use std::collections::HashMap;

use acrtask_model::StepId;

use super::first_byte;
use crate::{
    code::Code,
    diagnostic::{Diagnostic, find_nearest},
    graph::{self, AT_ONCE},
    read::{Report, Text},
    task::RawStep,
};

/// Maximum number of steps of a cycle that get a label. The message lists all of them.
const MAX_MARKED: usize = 20;

/// The id of a step.
pub(super) struct StepName {
    /// The id as written, or `acb_step_N`.
    pub(super) text: String,
    /// `None` if the written id is invalid, which is already reported.
    pub(super) step: Option<StepId>,
}

pub(super) fn step_ids(steps: &[RawStep], report: &mut Report<'_>) -> Vec<StepName> {
    let mut first: HashMap<&str, &Text> = HashMap::new();
    let mut ids = Vec::new();
    for (i, step) in steps.iter().enumerate() {
        let Some(id) = &step.id else {
            let id = StepId::default_at(i);
            ids.push(StepName {
                text: id.to_string(),
                step: Some(id),
            });
            continue;
        };
        let checked = StepId::new(id.value.clone());
        if checked.is_err() {
            let (why, instead) = if id.value == "acb_root" {
                ("the name is reserved", "root".to_owned())
            } else if id.value.len() > StepId::MAX_LEN {
                ("at most 128 bytes", format!("step-{}", i + 1))
            } else {
                let words: Vec<&str> = id.value.split_whitespace().collect();
                let instead = match words.join("-") {
                    joined if joined.is_empty() => format!("step-{}", i + 1),
                    joined => joined,
                };
                ("no white space", instead)
            };
            report.push(
                Diagnostic::error(
                    Code::StepId,
                    format!("`{}` cannot be the id of a step", id.value),
                )
                .at(id.span.clone(), why)
                .help(format!("write `id: {instead}`")),
            );
        }
        if let Some(earlier) = first.insert(&id.value, id) {
            report.push(
                Diagnostic::error(
                    Code::StepId,
                    format!("two steps have the id `{}`", id.value),
                )
                .at(id.span.clone(), "the second one")
                .at(earlier.span.clone(), "the first one")
                .help(format!(
                    "give one of them another id, for example `{}-2`",
                    id.value
                )),
            );
        }
        ids.push(StepName {
            text: id.value.clone(),
            step: checked.ok(),
        });
    }
    for (i, named) in ids.iter().enumerate() {
        if steps[i].id.is_none()
            && let Some(taken) = first.get(named.text.as_str())
        {
            report.push(
                Diagnostic::error(
                    Code::StepId,
                    format!(
                        "`{}` is the id of the step at position {i}, which has none of its own",
                        named.text
                    ),
                )
                .at(taken.span.clone(), "taken here")
                .at(first_byte(&steps[i].span), "meant here")
                .help("give this step another id"),
            );
        }
    }
    ids
}

pub(super) fn check_order(
    steps: &[RawStep],
    ids: &[StepName],
    report: &mut Report<'_>,
) -> Vec<Vec<usize>> {
    let positions: HashMap<&str, usize> = ids
        .iter()
        .enumerate()
        .rev()
        .map(|(i, id)| (id.text.as_str(), i))
        .collect();
    for (i, step) in steps.iter().enumerate() {
        if report.is_full() {
            break;
        }
        // A search for the nearest of many names is slow, so only the first errors get suggestions.
        let may_suggest = report.diagnostics.len() < 20;
        for name in &step.when {
            if name.value == AT_ONCE {
                if step.when.len() > 1 {
                    report.push(
                        Diagnostic::error(
                            Code::When,
                            "`-` means at once, and must be the only entry",
                        )
                        .at(name.span.clone(), "beside other entries it has no meaning")
                        .help("write `when: [\"-\"]`, or remove it"),
                    );
                }
            } else if name.value == ids[i].text {
                report.push(
                    Diagnostic::error(
                        Code::When,
                        format!("the step `{}` waits for itself", name.value),
                    )
                    .at(name.span.clone(), "this is the step's own id")
                    .help("name the steps before it, or write `when: [\"-\"]` to start at once"),
                );
            } else if !positions.contains_key(name.value.as_str()) {
                let candidates = ids.iter().map(|id| id.text.as_str()).take(if may_suggest {
                    ids.len()
                } else {
                    0
                });
                let help = match find_nearest(&name.value, candidates) {
                    Some(near) => format!("write `{near}`"),
                    None => {
                        let some: Vec<&str> =
                            ids.iter().take(12).map(|id| id.text.as_str()).collect();
                        let more = if ids.len() > some.len() { ", ..." } else { "" };
                        format!("the steps are: {}{more}", some.join(", "))
                    }
                };
                report.push(
                    Diagnostic::error(
                        Code::When,
                        format!("the step `{}` to wait for does not exist", name.value),
                    )
                    .at(name.span.clone(), "no step has this id")
                    .help(help),
                );
            }
        }
    }
    let edges = graph::collect_edges(steps, |id| positions.get(id).copied());
    if let Some(path) = graph::find_cycle(&edges).filter(|path| path.len() > 1) {
        let mut names: Vec<&str> = path.iter().map(|at| ids[*at].text.as_str()).collect();
        names.push(names[0]);
        let mut diagnostic = Diagnostic::error(
            Code::Cycle,
            format!("these steps wait for each other: {}", names.join(" -> ")),
        );
        let pairs = path.iter().zip(path.iter().cycle().skip(1));
        for (at, next) in pairs.take(MAX_MARKED) {
            let step = &steps[*at];
            let named = step.when.iter().find(|name| name.value == ids[*next].text);
            let (span, text) = match named {
                Some(name) => (
                    name.span.clone(),
                    format!("`{}` waits for `{}`", ids[*at].text, name.value),
                ),
                None => (
                    first_byte(&step.span),
                    format!(
                        "`{}` has no `when`, so it waits for `{}`",
                        ids[*at].text, ids[*next].text
                    ),
                ),
            };
            diagnostic = diagnostic.at(span, text);
        }
        report.push(diagnostic.help("remove one of these names from its `when`"));
    }
    edges
}
