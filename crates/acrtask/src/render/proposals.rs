//! Text output of newer base image tags. Pure.

use std::fmt::Write as _;

use acrtask_api::image::{BaseProposal, NewerTag, TagState};
use jiff::Timestamp;

use super::{
    run::format_age,
    style::Style,
    table::{render_list, write_section},
    text,
};

fn styled_state(state: TagState, style: Style) -> String {
    let name = state.as_str();
    match state {
        TagState::Current => style.good(name),
        TagState::Waiting => style.dim(name),
        TagState::Proposed | TagState::Building => style.warn(name),
        TagState::Blocked | TagState::Failed | TagState::Unused | TagState::Unlisted => {
            style.bad(name)
        }
    }
}

/// Renders the state of a newer tag and its run.
pub(crate) fn newer_tag(newer: &NewerTag, style: Style) -> String {
    let run = newer.run.as_ref();
    let run = run.map_or_else(String::new, |run| format!(" by {run}"));
    format!("{}{run}", styled_state(newer.state, style))
}

/// Renders newer tags of base images. `all` includes rules without a newer tag.
pub(crate) fn render_proposals(
    proposals: &[BaseProposal],
    all: bool,
    now: Timestamp,
    style: Style,
) -> String {
    let dash = || "-".to_owned();
    let rows = proposals.iter().map(|proposal| {
        let rule = proposal
            .rule
            .semver
            .as_ref()
            .or(proposal.rule.pattern.as_ref());
        let given = match (&proposal.rule.build_arg, &proposal.rule.value) {
            (Some(arg), _) => format!("--build-arg {arg}"),
            (None, Some(value)) => format!("--set {value}"),
            (None, None) => dash(),
        };
        vec![
            proposal.task.clone(),
            proposal.image.clone(),
            proposal.used.clone().unwrap_or_else(dash),
            proposal.newest.clone().unwrap_or_else(dash),
            styled_state(proposal.state, style),
            rule.cloned().unwrap_or_default(),
            given,
            proposal.run.as_ref().map_or_else(dash, ToString::to_string),
            proposal
                .found_at
                .map_or_else(dash, |at| format_age(at, now)),
        ]
    });
    let if_empty = if all {
        "no task has a rule for newer tags; `acrtask base proposals --help` shows one"
    } else {
        "no newer tags; --all shows every rule"
    };
    let mut out = render_list(
        &[
            "TASK", "IMAGE", "USED", "NEWEST", "STATE", "RULE", "GIVEN AS", "RUN", "FOUND",
        ],
        rows.collect(),
        if_empty,
        style,
    );
    let notes = proposals.iter().filter_map(|proposal| {
        let detail = proposal.detail.as_deref()?;
        Some(vec![
            proposal.task.clone(),
            proposal.image.clone(),
            text::plain_line(detail).into_owned(),
        ])
    });
    write_section("Why", notes.collect(), style, &mut out);
    let proposed = proposals
        .iter()
        .find(|proposal| proposal.state == TagState::Proposed)
        .map(|proposal| proposal.task.as_str());
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

    fn proposal(task: &str, state: TagState, newest: Option<&str>) -> BaseProposal {
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
    fn proposals_show_states_reasons_and_a_hint() {
        let now = "2026-03-01T12:00:00Z".parse().unwrap();
        let mut failed = proposal("built", TagState::Failed, Some("3.21"));
        failed.rule.build_arg = Some("ALPINE_TAG".into());
        failed.run = Some(acrtask_model::RunId::new("run-1").unwrap());
        failed.detail = Some("later runs use what was used before".into());
        let all = [
            proposal("app", TagState::Proposed, Some("3.21")),
            failed,
            proposal("old", TagState::Current, None),
        ];
        insta::assert_snapshot!(render_proposals(&all, true, now, Style::PLAIN));
        insta::assert_snapshot!(render_proposals(&[], false, now, Style::PLAIN));
    }
}
