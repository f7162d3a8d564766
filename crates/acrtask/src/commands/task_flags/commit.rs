//! Converts flags into a task's commit trigger. Pure functions.

use acrtask_api::task::{CommitEvent, CommitTrigger, Forks};

use crate::args::commit_trigger::{CommitArgs, ForksArg};

/// Applies the flags to a trigger.
pub(super) fn apply_flags(
    before: Option<CommitTrigger>,
    args: &CommitArgs,
) -> Option<CommitTrigger> {
    if !args.any_given() {
        return before;
    }
    let mut to = before.unwrap_or_default();
    to.enabled = args.commit_trigger_enabled.unwrap_or(to.enabled);
    if let Some(wanted) = args.pull_request_trigger_enabled {
        let mut events = if to.events.is_empty() {
            vec![CommitEvent::Push]
        } else {
            to.events.clone()
        };
        events.retain(|event| *event != CommitEvent::PullRequest);
        if wanted {
            events.push(CommitEvent::PullRequest);
            // `--commit-trigger-enabled false --pull-request-trigger-enabled true`: pull requests
            // alone.
            if args.commit_trigger_enabled == Some(false) {
                events = vec![CommitEvent::PullRequest];
            }
            to.enabled = true;
        }
        to.events = events;
    } else if args.commit_trigger_enabled == Some(true)
        && !to.events.is_empty()
        && !to.events.contains(&CommitEvent::Push)
    {
        to.events.insert(0, CommitEvent::Push);
    }
    replace(&mut to.branches, &args.branch);
    replace(&mut to.tags, &args.tag);
    replace(&mut to.paths.include, &args.path);
    replace(&mut to.paths.exclude, &args.ignore_path);
    if !args.skip_message.is_empty() {
        let mut texts = Vec::new();
        replace(&mut texts, &args.skip_message);
        to.skip_messages = Some(texts);
    }
    to.newest_wins = args.newest_wins.unwrap_or(to.newest_wins);
    to.forks = match args.forks {
        Some(ForksArg::Approve) => Forks::Approve,
        Some(ForksArg::Ignore) => Forks::Ignore,
        None => to.forks,
    };
    normalize_events(&mut to);
    Some(to)
}

/// Removes events that equal the default: pushes, and tags if the trigger names tags.
fn normalize_events(trigger: &mut CommitTrigger) {
    let events = &mut trigger.events;
    if trigger.tags.is_empty() {
        events.retain(|event| *event != CommitEvent::Tag);
    } else if !events.is_empty() && !events.contains(&CommitEvent::Tag) {
        events.push(CommitEvent::Tag);
    }
    events.sort_unstable();
    let default: &[CommitEvent] = if trigger.tags.is_empty() {
        &[CommitEvent::Push]
    } else {
        &[CommitEvent::Push, CommitEvent::Tag]
    };
    if events.as_slice() == default {
        events.clear();
    }
}

/// Replaces `to` with the given texts, if any; an empty text is dropped, so that '' clears the
/// list.
fn replace(to: &mut Vec<String>, given: &[String]) {
    if !given.is_empty() {
        *to = given
            .iter()
            .filter(|text| !text.is_empty())
            .cloned()
            .collect();
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        commit: CommitArgs,
    }

    fn trigger_json(before: Option<CommitTrigger>, line: &str) -> serde_json::Value {
        let words = std::iter::once("x").chain(line.split_whitespace());
        let words = words.map(|word| if word == "''" { "" } else { word });
        let args = Line::try_parse_from(words).unwrap().commit;
        serde_json::to_value(apply_flags(before, &args)).unwrap()
    }

    #[test]
    fn flags_change_the_commit_trigger() {
        use serde_json::json;
        assert_eq!(trigger_json(None, ""), json!(null));
        assert_eq!(
            trigger_json(None, "--commit-trigger-enabled true"),
            json!({ "enabled": true })
        );
        assert_eq!(
            trigger_json(
                None,
                "--branch main --branch release/* --path services/a/** --ignore-path docs/** --newest-wins"
            ),
            json!({
                "enabled": true, "branches": ["main", "release/*"], "newestWins": true,
                "paths": { "include": ["services/a/**"], "exclude": ["docs/**"] }
            })
        );
        assert_eq!(
            trigger_json(None, "--pull-request-trigger-enabled true --forks ignore"),
            json!({ "enabled": true, "events": ["push", "pullRequest"], "forks": "ignore" })
        );
        assert_eq!(
            trigger_json(
                None,
                "--commit-trigger-enabled false --pull-request-trigger-enabled true --tag v*"
            ),
            json!({ "enabled": true, "events": ["tag", "pullRequest"], "tags": ["v*"] })
        );
        let before = CommitTrigger {
            branches: vec!["main".into()],
            tags: vec!["v*".into()],
            events: vec![
                CommitEvent::Push,
                CommitEvent::Tag,
                CommitEvent::PullRequest,
            ],
            newest_wins: true,
            ..CommitTrigger::default()
        };
        assert_eq!(
            trigger_json(
                Some(before.clone()),
                "--tag '' --pull-request-trigger-enabled false --newest-wins=false"
            ),
            json!({ "enabled": true, "branches": ["main"] })
        );
        assert_eq!(
            trigger_json(Some(before.clone()), ""),
            serde_json::to_value(&before).unwrap()
        );
        // An empty text clears the list, so no message prevents a run.
        assert_eq!(
            trigger_json(None, "--skip-message ''"),
            json!({ "enabled": true, "skipMessages": [] })
        );
    }
}
