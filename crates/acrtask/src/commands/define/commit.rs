//! From flags to a task's commit trigger. Pure.

use acrtask_api::task::{CommitEvent, CommitTrigger, Forks};

use crate::args::triggers::{CommitArgs, ForksArg};

/// What the flags make of a trigger.
pub(super) fn commit(before: Option<CommitTrigger>, args: &CommitArgs) -> Option<CommitTrigger> {
    if !args.given() {
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
            // `--commit-trigger-enabled false --pull-request-trigger-enabled true`: these alone.
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
    usual_events(&mut to);
    Some(to)
}

/// Pushes are meant where nothing is said, and tags too where some are named: what says no more is left out.
fn usual_events(trigger: &mut CommitTrigger) {
    let events = &mut trigger.events;
    if trigger.tags.is_empty() {
        events.retain(|event| *event != CommitEvent::Tag);
    } else if !events.is_empty() && !events.contains(&CommitEvent::Tag) {
        events.push(CommitEvent::Tag);
    }
    events.sort_unstable();
    let usual: &[CommitEvent] = if trigger.tags.is_empty() {
        &[CommitEvent::Push]
    } else {
        &[CommitEvent::Push, CommitEvent::Tag]
    };
    if events.as_slice() == usual {
        events.clear();
    }
}

/// What is given takes the place of what was there; an empty text stands for nothing.
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

    fn of(before: Option<CommitTrigger>, line: &str) -> serde_json::Value {
        let words = std::iter::once("x").chain(line.split_whitespace());
        let words = words.map(|word| if word == "''" { "" } else { word });
        let args = Line::try_parse_from(words).unwrap().commit;
        serde_json::to_value(commit(before, &args)).unwrap()
    }

    #[test]
    fn flags_say_which_commits_count() {
        use serde_json::json;
        assert_eq!(of(None, ""), json!(null));
        assert_eq!(
            of(None, "--commit-trigger-enabled true"),
            json!({ "enabled": true })
        );
        assert_eq!(
            of(
                None,
                "--branch main --branch release/* --path services/a/** --ignore-path docs/** --newest-wins"
            ),
            json!({
                "enabled": true, "branches": ["main", "release/*"], "newestWins": true,
                "paths": { "include": ["services/a/**"], "exclude": ["docs/**"] }
            })
        );
        assert_eq!(
            of(None, "--pull-request-trigger-enabled true --forks ignore"),
            json!({ "enabled": true, "events": ["push", "pullRequest"], "forks": "ignore" })
        );
        assert_eq!(
            of(
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
            of(
                Some(before.clone()),
                "--tag '' --pull-request-trigger-enabled false --newest-wins=false"
            ),
            json!({ "enabled": true, "branches": ["main"] })
        );
        assert_eq!(
            of(Some(before.clone()), ""),
            serde_json::to_value(&before).unwrap()
        );
        // An empty text: nothing keeps a run from starting.
        assert_eq!(
            of(None, "--skip-message ''"),
            json!({ "enabled": true, "skipMessages": [] })
        );
    }
}
