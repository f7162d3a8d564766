//! API view of the rules for newer tags.

use acrtask_api::{
    image::{BaseProposal, BaseStatus, NewerTag, TagState},
    task::Task,
};
use acrtask_model::{ImageRef, RunState};
use acrtask_store::{ProposalKey, ProposalRow, StoreError, TagListRow, timestamp};

use super::{UsedTags, parse_rules, read_stored};
use crate::App;

/// Returns the state of all rules for newer tags, of the tasks that `is_visible` accepts.
pub(crate) async fn list_proposals(
    app: &App,
    is_visible: impl Fn(Option<&str>) -> bool,
) -> Result<Vec<BaseProposal>, StoreError> {
    let used_tags = UsedTags::read(app).await?;
    let (lists, mut rows) = read_stored(app).await?;
    let mut all = Vec::new();
    for task in &used_tags.tasks {
        if !is_visible(Some(&task.definition.name)) {
            continue;
        }
        for (repository, _, rule) in parse_rules(&task.definition) {
            let found = used_tags.get(task, &repository);
            let list = found.and_then(|(scope, _)| lists.get(&(repository.clone(), scope.clone())));
            let blank = BaseProposal {
                task: task.definition.name.clone(),
                image: repository.clone(),
                used: None,
                newest: None,
                rule: rule.clone(),
                state: TagState::Waiting,
                detail: None,
                run: None,
                found_at: None,
                checked_at: list.and_then(|list| list.checked_at).map(timestamp),
                next_check_at: list.map(|list| timestamp(list.next_check_at)),
            };
            let Some((_, used)) = found else {
                all.push(BaseProposal {
                    detail: Some(
                        "no image from the task's last run is known to be built from it".into(),
                    ),
                    ..blank
                });
                continue;
            };
            let mut shown: Vec<BaseProposal> = Vec::new();
            for tag in used {
                let key = ProposalKey {
                    task_id: task.id.clone(),
                    repository: repository.clone(),
                    used: tag.clone(),
                };
                shown.extend(
                    rows.remove(&key)
                        .map(|row| proposal_with_newer(task, &blank, row)),
                );
            }
            if shown.is_empty() || !rule.starts_runs() {
                let current = used
                    .iter()
                    .filter(|tag| !shown.iter().any(|one| one.used.as_ref() == Some(tag)))
                    .map(|tag| proposal_without_newer(&blank, tag, list));
                let current: Vec<BaseProposal> = current.collect();
                shown.extend(current);
            }
            shown.sort_by(|a, b| a.used.cmp(&b.used));
            all.extend(shown);
        }
    }
    Ok(all)
}

/// Returns the proposal for a used tag without a newer one.
fn proposal_without_newer(
    blank: &BaseProposal,
    used: &str,
    list: Option<&TagListRow>,
) -> BaseProposal {
    let (state, detail) = match list {
        None => (TagState::Waiting, None),
        Some(list) => match list.status {
            BaseStatus::New => (TagState::Waiting, None),
            BaseStatus::Ok => (TagState::Current, None),
            status => (
                TagState::Unlisted,
                Some(match &list.detail {
                    Some(detail) => format!("{}: {detail}", status.as_str()),
                    None => status.as_str().to_owned(),
                }),
            ),
        },
    };
    BaseProposal {
        used: Some(used.to_owned()),
        state,
        detail,
        ..blank.clone()
    }
}

/// Returns the proposal for a newer tag.
fn proposal_with_newer(task: &Task, blank: &BaseProposal, row: ProposalRow) -> BaseProposal {
    let accepted = task.base_tags.get(&row.key.repository) == Some(&row.newest);
    let (state, detail) = if !blank.rule.starts_runs() {
        (TagState::Proposed, None)
    } else if let Some(reason) = row.blocked {
        (TagState::Blocked, Some(reason))
    } else {
        match &row.run {
            None => (TagState::Waiting, None),
            Some((_, Some(state))) if !state.is_final() => (TagState::Building, None),
            Some((_, Some(RunState::Succeeded))) => {
                (TagState::Unused, Some(unused_detail(blank, &row)))
            }
            Some(_) if accepted => (TagState::Unused, Some(unused_detail(blank, &row))),
            Some((run, _)) => (
                TagState::Failed,
                Some(format!(
                    "later runs use the previous tag; `acrtask runs rerun {run}` retries this one"
                )),
            ),
        }
    };
    BaseProposal {
        used: Some(row.key.used),
        newest: Some(row.newest),
        state,
        detail,
        run: row.run.map(|(run, _)| run),
        found_at: Some(timestamp(row.found_at)),
        ..blank.clone()
    }
}

fn unused_detail(blank: &BaseProposal, row: &ProposalRow) -> String {
    let place = match (&blank.rule.build_arg, &blank.rule.value) {
        (Some(arg), _) => format!("the build argument {arg}"),
        (None, Some(value)) => format!("the value {value}"),
        (None, None) => "its tag".to_owned(),
    };
    format!(
        "a run with the newer tag in {place} succeeded, but the image still uses {}: use {place} in FROM",
        row.key.used
    )
}

/// Returns the newer tags that the rules of tasks allow instead of `base`.
pub(crate) fn newer_tags(proposals: &[BaseProposal], base: &str) -> Vec<NewerTag> {
    let Ok(reference) = base.parse::<ImageRef>() else {
        return Vec::new();
    };
    let name = reference.name();
    let matching = proposals
        .iter()
        .filter(|one| one.image == name && one.used.as_deref() == reference.tag());
    matching
        .filter_map(|one| {
            Some(NewerTag {
                task: one.task.clone(),
                tag: one.newest.clone()?,
                state: one.state,
                run: one.run.clone(),
            })
        })
        .collect()
}
