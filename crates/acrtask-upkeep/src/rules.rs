//! Rules of purges and of retention: which tags of a repository go, with the reason of each. Pure.
//!
//! Each rule decides about each tag. A tag goes if a rule deletes it and no rule keeps it.

use std::cmp::Reverse;

use jiff::Timestamp;

use crate::{
    filter::Filter,
    plan::{Reason, Repository, Tag, TagLine, companion_subject},
};

/// Treatment of manifests without a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Untagged {
    /// They stay.
    #[default]
    Keep,
    /// They go with the selected tags.
    Delete,
    /// Only they go, and no tag.
    Only,
}

/// Tags among which a rule counts the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NewestOf {
    /// Tags that would go, as `acr purge --keep` counts.
    #[default]
    Deleted,
    /// All tags that the rule selects, but those that it keeps by name.
    Selected,
}

/// Rule about the tags of a repository.
#[derive(Debug, Clone)]
pub struct TagRule {
    /// Filters of this repository. The rule selects tags that match one of them.
    pub filters: Vec<Filter>,
    /// Filters of tags that stay.
    pub keep: Vec<Filter>,
    /// Time of the last change from which on a tag stays.
    pub cutoff: Timestamp,
    /// Number of the newest tags that stay.
    pub newest: usize,
    /// Tags among which the newest are counted.
    pub newest_of: NewestOf,
}

/// Rules for one repository.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Rules about tags.
    pub tags: Vec<TagRule>,
    /// Treatment of manifests without a tag.
    pub untagged: Untagged,
    /// Time of the last change from which on a manifest without a tag stays.
    pub cutoff: Timestamp,
    /// Number of the newest manifests without a tag that stay, if the registry lists them.
    pub newest: usize,
    /// `true` if locked tags and manifests go too.
    pub include_locked: bool,
    /// Maximum number of deleted tags, and of deleted manifests that had no tag. The oldest go
    /// first. `None`: no limit.
    pub limit: Option<usize>,
}

/// Decision of one rule about one tag.
enum Decision {
    NotSelected,
    Keep(Reason),
    Delete(Timestamp),
}

/// Decides which tags go.
///
/// # Errors
/// An expression of a filter needs too many steps.
pub(crate) fn plan_tags(repository: &Repository, rules: &Rules) -> Result<Vec<TagLine>, String> {
    let mut reasons: Vec<Option<Reason>> = Vec::with_capacity(repository.tags.len());
    for tag in &repository.tags {
        reasons.push(find_own_reason(repository, rules, tag));
    }
    for rule in rules
        .tags
        .iter()
        .filter(|_| rules.untagged != Untagged::Only)
    {
        let decisions = decide(repository, rule, &reasons)?;
        for (reason, decision) in reasons.iter_mut().zip(decisions) {
            let is_kept = reason.as_ref().is_some_and(|reason| !is_deletion(reason));
            match decision {
                Decision::Keep(new) if !is_kept => *reason = Some(new),
                Decision::Delete(time) if reason.is_none() => *reason = Some(Reason::Old(time)),
                _ => {}
            }
        }
    }
    apply_limit(rules.limit, &mut reasons);
    let tags = repository.tags.iter().zip(reasons);
    let lines = tags.map(|(tag, reason)| {
        let reason = reason.unwrap_or(Reason::NotSelected);
        let delete = is_deletion(&reason);
        TagLine {
            tag: tag.name.clone(),
            digest: tag.digest.clone(),
            delete,
            unlock: tag.is_locked && delete,
            reason,
        }
    });
    Ok(lines.collect())
}

fn is_deletion(reason: &Reason) -> bool {
    matches!(reason, Reason::Old(_))
}

/// Returns the reason why a tag stays whatever the rules decide.
fn find_own_reason(repository: &Repository, rules: &Rules, tag: &Tag) -> Option<Reason> {
    if let Some(subject) = companion_subject(&tag.name) {
        return Some(Reason::CompanionOf(subject));
    }
    if tag.is_locked && !rules.include_locked {
        let is_selected = rules.tags.iter().any(|rule| {
            let mut filters = rule.filters.iter();
            filters.any(|filter| filter.matches_tag(&tag.name).unwrap_or(true))
        });
        return is_selected.then_some(Reason::Locked);
    }
    let need = repository.needed_tags.get(&tag.name);
    let need = need.or_else(|| repository.needed.get(&tag.digest));
    need.map(|need| Reason::Needed(*need))
}

/// Decides about each tag by one rule.
fn decide(
    repository: &Repository,
    rule: &TagRule,
    own: &[Option<Reason>],
) -> Result<Vec<Decision>, String> {
    let mut decisions = Vec::with_capacity(repository.tags.len());
    // Time, index and if the tag would go.
    let mut candidates: Vec<(Timestamp, usize, bool)> = Vec::new();
    for (at, tag) in repository.tags.iter().enumerate() {
        let is_companion = matches!(own[at], Some(Reason::CompanionOf(_)));
        let mut keep = None;
        for filter in rule.keep.iter().filter(|_| !is_companion) {
            if keep.is_none() && filter.matches_tag(&tag.name)? {
                keep = Some(Reason::Pattern(filter.tag_text().to_owned()));
            }
        }
        let mut is_selected = false;
        for filter in rule.filters.iter().filter(|_| !is_companion) {
            is_selected = is_selected || filter.matches_tag(&tag.name)?;
        }
        decisions.push(match (keep, is_selected, tag.updated) {
            (Some(reason), ..) => Decision::Keep(reason),
            (None, false, _) => Decision::NotSelected,
            (None, true, None) => Decision::Keep(Reason::UnknownAge),
            (None, true, Some(updated)) => {
                let is_old = updated <= rule.cutoff;
                let goes = is_old && own[at].as_ref().is_none_or(is_deletion);
                candidates.push((updated, at, goes));
                match is_old {
                    true => Decision::Delete(updated),
                    false => Decision::Keep(Reason::Young(updated)),
                }
            }
        });
    }
    if rule.newest_of == NewestOf::Deleted {
        candidates.retain(|(_, _, goes)| *goes);
    }
    candidates.sort_by_key(|(updated, at, _)| (Reverse(*updated), *at));
    for (_, at, _) in candidates.into_iter().take(rule.newest) {
        decisions[at] = Decision::Keep(Reason::Newest);
    }
    Ok(decisions)
}

/// Keeps all but the oldest `limit` tags that would go.
fn apply_limit(limit: Option<usize>, reasons: &mut [Option<Reason>]) {
    let Some(limit) = limit else {
        return;
    };
    let mut going: Vec<(Timestamp, usize)> = reasons
        .iter()
        .enumerate()
        .filter_map(|(at, reason)| match reason {
            Some(Reason::Old(time)) => Some((*time, at)),
            _ => None,
        })
        .collect();
    going.sort();
    for (_, at) in going.into_iter().skip(limit) {
        reasons[at] = Some(Reason::Limit);
    }
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
