//! Tests of the plan: the repositories of the original's cases, and properties of any repository.

use proptest::prelude::*;

use super::*;
use crate::{
    Filter,
    rules::{NewestOf, TagRule},
};

/// Time of the tests.
fn now() -> Timestamp {
    "2026-11-30T00:00:00Z".parse().unwrap()
}

fn days_ago(days: i64) -> Timestamp {
    now() - jiff::SignedDuration::from_hours(24 * days)
}

fn digest(n: usize) -> Digest {
    format!("sha256:{n:064x}").parse().unwrap()
}

fn tag(name: &str, n: usize, age: i64) -> Tag {
    Tag {
        name: name.into(),
        digest: digest(n),
        updated: Some(days_ago(age)),
        is_locked: false,
    }
}

fn facts(age: i64, children: &[usize], subject: Option<usize>) -> ManifestFacts {
    ManifestFacts {
        updated: Some(days_ago(age)),
        children: children.iter().map(|n| digest(*n)).collect(),
        subject: subject.map(digest),
        ..ManifestFacts::default()
    }
}

fn repository(tags: Vec<Tag>, manifests: Vec<(usize, ManifestFacts)>, own_api: bool) -> Repository {
    Repository {
        name: "app".into(),
        tags,
        manifests: manifests
            .into_iter()
            .map(|(n, facts)| (digest(n), facts))
            .collect(),
        exists: true,
        has_own_api: own_api,
        ..Repository::default()
    }
}

fn rules(tag: &str, age: i64, untagged: Untagged) -> Rules {
    let rule = TagRule {
        filters: vec![Filter::parse(&format!("app:{tag}")).unwrap()],
        keep: Vec::new(),
        cutoff: days_ago(age),
        newest: 0,
        newest_of: NewestOf::Deleted,
    };
    Rules {
        tags: vec![rule],
        untagged,
        cutoff: days_ago(age),
        newest: 0,
        include_locked: false,
        limit: None,
    }
}

fn deleted(plan: &RepositoryPlan) -> (Vec<&str>, Vec<usize>) {
    let number = |line: &ManifestLine| {
        let hex = line.digest.as_str().trim_start_matches("sha256:");
        usize::from_str_radix(hex, 16).unwrap()
    };
    (
        plan.deleted_tags().map(|line| line.tag.as_str()).collect(),
        plan.deleted_manifests().map(number).collect(),
    )
}

/// The repository `platform/api` of the original's cases.
fn platform_api() -> Repository {
    repository(
        vec![
            tag("v3", 3, 10),
            tag("v2", 2, 100),
            tag("v2-alias", 2, 100),
            tag("v1", 1, 200),
        ],
        vec![
            (1, facts(200, &[], None)),
            (2, facts(100, &[], None)),
            (3, facts(10, &[], None)),
            (4, facts(150, &[], None)),
            (5, facts(5, &[], None)),
            (6, facts(150, &[], None)),
        ],
        true,
    )
}

#[test]
fn old_tags_and_untagged_manifests_go_as_in_the_original() {
    let plan = |rules| plan_repository(&platform_api(), &rules).unwrap();
    let found = plan(rules(".*", 90, Untagged::Delete));
    let expected = (vec!["v2", "v2-alias", "v1"], vec![1, 2, 4, 6]);
    assert_eq!(deleted(&found), expected);
    let found = plan(rules(".*", 90, Untagged::Keep));
    assert_eq!(deleted(&found).1, Vec::<usize>::new());
    let found = plan(rules(".*", 90, Untagged::Only));
    assert_eq!(deleted(&found), (vec![], vec![4, 6]));
    let found = plan(rules("v(?!3)", 0, Untagged::Keep));
    assert_eq!(deleted(&found).0, ["v2", "v2-alias", "v1"]);
    let found = plan(rules(".*", -1, Untagged::Keep));
    assert_eq!(deleted(&found).0.len(), 4);
}

#[test]
fn platforms_and_signatures_of_a_kept_index_stay() {
    let multi = repository(
        vec![tag("latest", 3, 1)],
        vec![
            (1, facts(120, &[], None)),
            (2, facts(120, &[], None)),
            (3, facts(120, &[1, 2], None)),
            (4, facts(120, &[], Some(3))),
            (5, facts(120, &[], Some(99))),
            (6, facts(120, &[], None)),
            (7, facts(120, &[6], None)),
        ],
        true,
    );
    let plan = plan_repository(&multi, &rules(".*", 90, Untagged::Delete)).unwrap();
    assert_eq!(deleted(&plan), (vec![], vec![7, 6]));
    let kept: Vec<String> = plan
        .manifests
        .iter()
        .filter(|line| !line.delete)
        .map(|line| line.reason.to_string())
        .collect();
    assert_eq!(kept.len(), 4, "{kept:?}");
    assert!(kept[0].starts_with("part of the index"), "{kept:?}");
    assert!(kept[3].ends_with("which is missing: kept"), "{kept:?}");
}

/// The original deletes the platforms of a locked index.
#[test]
fn platforms_of_a_locked_index_stay() {
    let mut locked = repository(
        vec![tag("prod", 3, 120)],
        vec![
            (1, facts(120, &[], None)),
            (2, facts(120, &[], None)),
            (3, facts(120, &[1, 2], None)),
        ],
        true,
    );
    locked.tags[0].is_locked = true;
    if let Some(facts) = locked.manifests.get_mut(&digest(3)) {
        facts.is_locked = true;
    }
    let mut with = rules(".*", 90, Untagged::Delete);
    let plan = plan_repository(&locked, &with).unwrap();
    assert_eq!(deleted(&plan), (vec![], vec![]));
    assert_eq!(plan.tags[0].reason, Reason::Locked);
    with.include_locked = true;
    let plan = plan_repository(&locked, &with).unwrap();
    assert_eq!(deleted(&plan), (vec!["prod"], vec![3, 1, 2]));
    assert!(plan.tags[0].unlock && plan.manifests[0].unlock);
}

/// The original deletes an index that is itself a referrer, and its children.
#[test]
fn index_that_refers_to_a_kept_manifest_stays() {
    let content = repository(
        vec![tag("t", 1, 120)],
        vec![
            (1, facts(120, &[], None)),
            (2, facts(120, &[], None)),
            (3, facts(120, &[2], Some(1))),
        ],
        true,
    );
    let plan = plan_repository(&content, &rules("other", 1, Untagged::Delete)).unwrap();
    assert_eq!(deleted(&plan), (vec![], vec![]));
}

#[test]
fn companion_tags_follow_their_subject() {
    let sig = |n: usize| format!("{}.sig", digest(n).as_str().replace(':', "-"));
    let content = repository(
        vec![
            tag("old", 1, 100),
            tag("new", 2, 1),
            tag(&sig(1), 11, 100),
            tag(&sig(2), 12, 100),
            tag(&sig(7), 17, 100),
        ],
        vec![
            (1, facts(100, &[3], None)),
            (2, facts(1, &[], None)),
            (3, facts(100, &[], None)),
            (4, facts(100, &[], Some(1))),
            (11, facts(100, &[], None)),
            (12, facts(100, &[], None)),
            (17, facts(100, &[], None)),
        ],
        false,
    );
    let plan = plan_repository(&content, &rules(".*", 30, Untagged::Delete)).unwrap();
    let (tags, manifests) = deleted(&plan);
    assert_eq!(tags, ["old", &sig(1)]);
    assert_eq!(manifests, [4, 1, 3, 11]);
    let plan = plan_repository(&content, &rules(".*", 30, Untagged::Keep)).unwrap();
    assert_eq!(deleted(&plan), (vec!["old"], vec![]));
}

#[test]
fn newest_and_unknown_tags_stay() {
    let mut content = platform_api();
    content.tags[2].updated = None;
    let mut with = rules(".*", 0, Untagged::Keep);
    with.tags[0].newest = 1;
    with.newest = 1;
    let plan = plan_repository(&content, &with).unwrap();
    assert_eq!(deleted(&plan).0, ["v2", "v1"]);
    assert_eq!(plan.tags[0].reason, Reason::Newest);
    assert_eq!(plan.tags[2].reason.to_string(), "unknown age: kept");
}

#[test]
fn companion_subject_is_parsed_from_the_tag() {
    let hex = "a".repeat(64);
    let subject = Some(format!("sha256:{hex}").parse().unwrap());
    for suffix in ["", ".sig", ".att", ".sbom"] {
        assert_eq!(companion_subject(&format!("sha256-{hex}{suffix}")), subject);
    }
    for other in ["latest", "sha256-1", &format!("sha256-{hex}.txt"), "1.sig"] {
        assert_eq!(companion_subject(other), None, "{other}");
    }
}

/// Number of manifests in a generated repository.
const COUNT: usize = 12;

fn any_repository() -> impl Strategy<Value = Repository> {
    let manifest = (
        // Manifests only refer to ones with lower numbers, as digests admit no cycle.
        proptest::collection::vec(0..COUNT, 0..3),
        proptest::option::weighted(0.3, 0..COUNT),
        0i64..200,
        proptest::bool::weighted(0.1),
    );
    let manifests = proptest::collection::vec(manifest, COUNT);
    let any_tag = (0..COUNT, 0i64..200, proptest::bool::weighted(0.1), 0..4u8);
    let tags = proptest::collection::vec(any_tag, 0..8);
    (manifests, tags, any::<bool>()).prop_map(|(manifests, tags, own_api)| {
        let manifests = manifests.into_iter().enumerate();
        let manifests = manifests.map(|(n, (children, subject, age, locked))| {
            let lower = |m: &usize| *m < n;
            let children: Vec<usize> = children.into_iter().filter(lower).collect();
            let mut facts = facts(age, &children, subject.filter(lower));
            facts.is_locked = locked && own_api;
            (n, facts)
        });
        let tags = tags.into_iter().enumerate();
        let tags = tags.map(|(i, (n, age, locked, kind))| {
            let name = match kind {
                0 => format!(
                    "{}.sig",
                    digest(age as usize % COUNT).as_str().replace(':', "-")
                ),
                1 => format!("keep-{i}"),
                _ => format!("v{i}"),
            };
            let mut tag = tag(&name, n, age);
            tag.is_locked = locked && own_api;
            tag
        });
        repository(tags.collect(), manifests.collect(), own_api)
    })
}

proptest! {
    #[test]
    fn kept_tag_loses_neither_manifest_nor_child_nor_referrer(
        content in any_repository(), keep in 0..3usize, only in any::<bool>()
    ) {
        let untagged = if only { Untagged::Only } else { Untagged::Delete };
        let mut with = rules("^v", 60, untagged);
        with.tags[0].newest = keep;
        with.newest = keep;
        let plan = plan_repository(&content, &with).unwrap();
        let gone: BTreeSet<Digest> =
            plan.deleted_manifests().map(|line| line.digest.clone()).collect();
        let mut needed: Vec<Digest> = plan
            .tags
            .iter()
            .filter(|line| !line.delete)
            .map(|line| line.digest.clone())
            .collect();
        needed.extend(
            content.manifests.iter().filter(|(_, f)| f.is_locked).map(|(d, _)| d.clone()),
        );
        let mut seen = BTreeSet::new();
        while let Some(one) = needed.pop() {
            prop_assert!(!gone.contains(&one), "{one} is needed: {plan:?}");
            if !seen.insert(one.clone()) {
                continue;
            }
            needed.extend(content.manifests.get(&one).iter().flat_map(|f| f.children.clone()));
            let referrers = content.manifests.iter().filter(|(_, f)| f.subject.as_ref() == Some(&one));
            needed.extend(referrers.map(|(d, _)| d.clone()));
        }
        // Each manifest has one line, and a deleted manifest has no kept tag.
        let lines: BTreeSet<&Digest> = plan.manifests.iter().map(|line| &line.digest).collect();
        prop_assert_eq!(lines.len(), plan.manifests.len());
        // Referrers are deleted before their subjects, and indexes before their children.
        let order: Vec<&Digest> = plan.deleted_manifests().map(|line| &line.digest).collect();
        for (at, one) in order.iter().enumerate() {
            let facts = &content.manifests[*one];
            for later in facts.children.iter().chain(&facts.subject) {
                let found = order.iter().position(|other| *other == later);
                prop_assert!(found.is_none_or(|found| found > at));
            }
        }
    }

    #[test]
    fn selected_tags_match_a_filter(content in any_repository()) {
        let plan = plan_repository(&content, &rules("^v", 60, Untagged::Keep)).unwrap();
        for line in plan.deleted_tags() {
            prop_assert!(line.tag.starts_with('v'), "{line:?}");
        }
        prop_assert!(plan.manifests.is_empty());
    }
}
