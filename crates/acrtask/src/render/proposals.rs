//! Newer tags of base images, as text. Pure.

use std::fmt::Write as _;

use acrtask_api::image::{BaseProposal, NewerTag, TagState};
use jiff::Timestamp;

use super::{
    run::ago,
    style::Style,
    table::{list, titled},
    text,
};

fn state(state: TagState, style: Style) -> String {
    let word = state.as_str();
    match state {
        TagState::Current => style.good(word),
        TagState::Waiting => style.dim(word),
        TagState::Proposed | TagState::Building => style.warn(word),
        TagState::Blocked | TagState::Failed | TagState::Unused | TagState::Unlisted => {
            style.bad(word)
        }
    }
}

/// What became of a newer tag.
pub(crate) fn newer(newer: &NewerTag, style: Style) -> String {
    let run = newer.run.as_ref();
    let run = run.map_or_else(String::new, |run| format!(" by {run}"));
    format!("{}{run}", state(newer.state, style))
}

/// Newer tags of base images. `all`: rules that have found nothing newer are there too.
pub(crate) fn proposals(
    proposals: &[BaseProposal],
    all: bool,
    now: Timestamp,
    style: Style,
) -> String {
    let dash = || "-".to_owned();
    let rows = proposals.iter().map(|one| {
        let rule = one.rule.semver.as_ref().or(one.rule.pattern.as_ref());
        let given = match (&one.rule.build_arg, &one.rule.value) {
            (Some(arg), _) => format!("--build-arg {arg}"),
            (None, Some(value)) => format!("--set {value}"),
            (None, None) => dash(),
        };
        vec![
            one.task.clone(),
            one.image.clone(),
            one.used.clone().unwrap_or_else(dash),
            one.newest.clone().unwrap_or_else(dash),
            state(one.state, style),
            rule.cloned().unwrap_or_default(),
            given,
            one.run.as_ref().map_or_else(dash, ToString::to_string),
            one.found_at.map_or_else(dash, |at| ago(at, now)),
        ]
    });
    let nothing = if all {
        "no task has a rule for newer tags; `acrtask base proposals --help` shows one"
    } else {
        "no newer tag is known; --all shows every rule"
    };
    let mut out = list(
        &[
            "TASK", "IMAGE", "USED", "NEWEST", "STATE", "RULE", "GIVEN AS", "RUN", "FOUND",
        ],
        rows.collect(),
        nothing,
        style,
    );
    let notes = proposals.iter().filter_map(|one| {
        let detail = one.detail.as_deref()?;
        Some(vec![
            one.task.clone(),
            one.image.clone(),
            text::plain(detail).into_owned(),
        ])
    });
    titled("Why", notes.collect(), style, &mut out);
    let proposed = proposals
        .iter()
        .find(|one| one.state == TagState::Proposed)
        .map(|one| one.task.as_str());
    if let Some(task) = proposed {
        let hint =
            format!("in the sources of {task}: acrtask base proposals --diff {task} | git apply");
        let _ = writeln!(out, "\n{}", style.dim(&hint));
    }
    out
}

#[cfg(test)]
mod tests {
    use acrtask_api::task::BaseTagRule;

    use super::*;

    fn one(task: &str, state: TagState, newest: Option<&str>) -> BaseProposal {
        BaseProposal {
            task: task.into(),
            image: "docker.io/library/alpine".into(),
            used: Some("3.20".into()),
            newest: newest.map(str::to_owned),
            rule: BaseTagRule {
                image: "alpine".into(),
                semver: Some("^3.20".into()),
                pattern: None,
                build_arg: None,
                value: None,
            },
            state,
            detail: None,
            run: None,
            found_at: newest.map(|_| "2026-03-01T11:00:00Z".parse().unwrap()),
            checked_at: None,
            next_check_at: None,
        }
    }

    #[test]
    fn proposals_say_what_to_do() {
        let now = "2026-03-01T12:00:00Z".parse().unwrap();
        let mut failed = one("built", TagState::Failed, Some("3.21"));
        failed.rule.build_arg = Some("ALPINE_TAG".into());
        failed.run = Some(acrtask_model::RunId::new("run-1").unwrap());
        failed.detail = Some("later runs use what was used before".into());
        let all = [
            one("app", TagState::Proposed, Some("3.21")),
            failed,
            one("old", TagState::Current, None),
        ];
        insta::assert_snapshot!(proposals(&all, true, now, Style::PLAIN));
        insta::assert_snapshot!(proposals(&[], false, now, Style::PLAIN));
    }
}
