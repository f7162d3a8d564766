//! How rules for newer tags stand, as people see it.

use acrtask_api::{
    image::{BaseProposal, BaseStatus, NewerTag, TagState},
    task::Task,
};
use acrtask_model::{ImageRef, RunState};
use acrtask_store::{ProposalKey, ProposalRow, StoreError, TagListRow, timestamp};

use super::{InUse, rules, stored};
use crate::App;

/// How all rules for newer tags stand, of the tasks that `sees` lets through.
pub(crate) async fn proposals(
    app: &App,
    sees: impl Fn(Option<&str>) -> bool,
) -> Result<Vec<BaseProposal>, StoreError> {
    let in_use = InUse::read(app).await?;
    let (lists, mut rows) = stored(app).await?;
    let mut all = Vec::new();
    for task in &in_use.tasks {
        if !sees(Some(&task.definition.name)) {
            continue;
        }
        for (repository, _, rule) in rules(&task.definition) {
            let place = in_use.of(task, &repository);
            let list = place.and_then(|(scope, _)| lists.get(&(repository.clone(), scope.clone())));
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
            let Some((_, used)) = place else {
                all.push(BaseProposal {
                    detail: Some(
                        "no image that the task's last run pushed stands on it, as far as is known"
                            .into(),
                    ),
                    ..blank
                });
                continue;
            };
            let mut here: Vec<BaseProposal> = Vec::new();
            for tag in used {
                let key = ProposalKey {
                    task_id: task.id.clone(),
                    repository: repository.clone(),
                    used: tag.clone(),
                };
                here.extend(rows.remove(&key).map(|row| newer(task, &blank, row)));
            }
            if here.is_empty() || !rule.starts_runs() {
                let quiet = used
                    .iter()
                    .filter(|tag| !here.iter().any(|one| one.used.as_ref() == Some(tag)))
                    .map(|tag| none_newer(&blank, tag, list));
                let quiet: Vec<BaseProposal> = quiet.collect();
                here.extend(quiet);
            }
            here.sort_by(|a, b| a.used.cmp(&b.used));
            all.extend(here);
        }
    }
    Ok(all)
}

/// Nothing newer is known of a tag in use.
fn none_newer(blank: &BaseProposal, used: &str, list: Option<&TagListRow>) -> BaseProposal {
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

/// A newer tag that is known.
fn newer(task: &Task, blank: &BaseProposal, row: ProposalRow) -> BaseProposal {
    let took = task.base_tags.get(&row.key.repository) == Some(&row.newest);
    let (state, detail) = if !blank.rule.starts_runs() {
        (TagState::Proposed, None)
    } else if let Some(reason) = row.blocked {
        (TagState::Blocked, Some(reason))
    } else {
        match &row.run {
            None => (TagState::Waiting, None),
            Some((_, Some(state))) if !state.is_final() => (TagState::Building, None),
            Some((_, Some(RunState::Succeeded))) => (TagState::Unused, Some(unused(blank, &row))),
            Some(_) if took => (TagState::Unused, Some(unused(blank, &row))),
            Some((run, _)) => (
                TagState::Failed,
                Some(format!(
                    "later runs use what was used before; `acrtask runs rerun {run}` tries it again"
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

fn unused(blank: &BaseProposal, row: &ProposalRow) -> String {
    let place = match (&blank.rule.build_arg, &blank.rule.value) {
        (Some(arg), _) => format!("the build argument {arg}"),
        (None, Some(value)) => format!("the value {value}"),
        (None, None) => "its tag".to_owned(),
    };
    format!(
        "a run had it in {place} and succeeded, and the image stands on {} still: use {place} in FROM",
        row.key.used
    )
}

/// Newer tags in place of a base, as rules of the tasks allow them.
pub(crate) fn newer_than(proposals: &[BaseProposal], base: &str) -> Vec<NewerTag> {
    let Ok(reference) = base.parse::<ImageRef>() else {
        return Vec::new();
    };
    let name = reference.name();
    let here = proposals
        .iter()
        .filter(|one| one.image == name && one.used.as_deref() == reference.tag());
    here.filter_map(|one| {
        Some(NewerTag {
            task: one.task.clone(),
            tag: one.newest.clone()?,
            state: one.state,
            run: one.run.clone(),
        })
    })
    .collect()
}
