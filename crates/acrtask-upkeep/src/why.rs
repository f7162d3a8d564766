//! Reasons why an image stays: tags, indexes, subjects, locks, and images of a server. Pure.

use acrtask_model::Digest;
use serde::Serialize;

use crate::{
    plan::{Reason, Repository, RepositoryPlan, companion_subject},
    rules::Rules,
};

/// Explanation why an image stays or goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Digest of the image.
    pub digest: Digest,
    /// Facts that keep the image. Empty if a purge that selects all tags deletes it.
    pub reasons: Vec<Reason>,
    /// Decision of the rules about each tag of the image. Empty without rules.
    pub decisions: Vec<TagDecision>,
    /// `true` if the rules delete the image. `None` without rules.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goes: Option<bool>,
}

/// Decision of rules about a tag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TagDecision {
    /// Name of the tag.
    pub tag: String,
    /// `true` if the tag goes.
    pub delete: bool,
    /// Reason of the decision.
    pub reason: Reason,
}

/// Explains why the manifest `digest` stays, with the decisions of `rules`.
///
/// # Errors
/// An expression of a rule needs too many steps.
pub fn explain(
    repository: &Repository,
    digest: &Digest,
    rules: Option<&Rules>,
) -> Result<Explanation, String> {
    let mut reasons = Vec::new();
    for tag in repository.tags.iter().filter(|tag| tag.digest == *digest) {
        reasons.push(match companion_subject(&tag.name) {
            Some(subject) => Reason::CompanionOf(subject),
            None => Reason::HasTag(tag.name.clone()),
        });
        let need = repository.needed_tags.get(&tag.name);
        reasons.extend(need.map(|need| Reason::Needed(*need)));
        if tag.is_locked {
            reasons.push(Reason::Locked);
        }
    }
    let need = repository.needed.get(digest);
    reasons.extend(need.map(|need| Reason::Needed(*need)));
    if let Some(facts) = repository.manifests.get(digest) {
        let subject = facts.subject.clone();
        reasons.extend(subject.map(Reason::ReferrerOfKept));
        if facts.is_locked {
            reasons.push(Reason::Locked);
        }
        if facts.is_unreadable {
            reasons.push(Reason::Unreadable);
        }
    }
    for (index, facts) in &repository.manifests {
        if facts.children.contains(digest) {
            reasons.push(Reason::ChildOfKept(index.clone()));
        }
    }
    reasons.dedup();
    let plan = match rules {
        Some(rules) => Some(crate::plan::plan_repository(repository, rules)?),
        None => None,
    };
    Ok(Explanation {
        digest: digest.clone(),
        reasons,
        decisions: plan
            .as_ref()
            .map(|plan| decisions_of(plan, digest))
            .unwrap_or_default(),
        goes: plan.map(|plan| plan.deleted_manifests().any(|line| line.digest == *digest)),
    })
}

fn decisions_of(plan: &RepositoryPlan, digest: &Digest) -> Vec<TagDecision> {
    let lines = plan.tags.iter().filter(|line| line.digest == *digest);
    let decisions = lines.map(|line| TagDecision {
        tag: line.tag.clone(),
        delete: line.delete,
        reason: line.reason.clone(),
    });
    decisions.collect()
}

#[cfg(test)]
mod tests {
    use acrtask_api::registry_record::Need;

    use super::*;
    use crate::plan::{ManifestFacts, Tag};

    #[test]
    fn reasons_name_tags_indexes_subjects_and_needs() {
        let digest = |n: u8| -> Digest { format!("sha256:{n:064x}").parse().unwrap() };
        let mut repository = Repository::default();
        repository.tags.push(Tag {
            name: "v1".into(),
            digest: digest(1),
            updated: None,
            is_locked: true,
        });
        let facts = |children: Vec<Digest>, subject| ManifestFacts {
            children,
            subject,
            ..ManifestFacts::default()
        };
        repository.manifests = [
            (digest(1), facts(vec![digest(2)], None)),
            (digest(2), facts(Vec::new(), None)),
            (digest(3), facts(Vec::new(), Some(digest(2)))),
        ]
        .into();
        repository.needed.insert(digest(2), Need::Base);
        let reasons = |n| explain(&repository, &digest(n), None).unwrap().reasons;
        assert_eq!(reasons(1), [Reason::HasTag("v1".into()), Reason::Locked]);
        assert_eq!(
            reasons(2),
            [Reason::Needed(Need::Base), Reason::ChildOfKept(digest(1))]
        );
        assert_eq!(reasons(3), [Reason::ReferrerOfKept(digest(2))]);
        assert_eq!(reasons(4), []);
    }
}
