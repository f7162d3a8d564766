//! Tests of rules: keeping wins, the newest are counted, and limits hold.

use acrtask_api::registry_record::Need;
use acrtask_model::Digest;
use proptest::prelude::*;

use super::*;

fn now() -> Timestamp {
    "2026-11-30T00:00:00Z".parse().unwrap()
}

fn days_ago(days: i64) -> Timestamp {
    now() - jiff::SignedDuration::from_hours(24 * days)
}

fn digest(n: usize) -> Digest {
    format!("sha256:{n:064x}").parse().unwrap()
}

/// Repository with one tag for each name and age.
fn repository(tags: &[(&str, i64)]) -> Repository {
    let tags = tags.iter().enumerate().map(|(n, (name, age))| Tag {
        name: (*name).into(),
        digest: digest(n),
        updated: (*age >= 0).then(|| days_ago(*age)),
        is_locked: false,
    });
    Repository {
        tags: tags.collect(),
        exists: true,
        ..Repository::default()
    }
}

fn rule(tags: &str, keep: &[&str], newest: usize, younger_than: Option<i64>) -> TagRule {
    let filter = |tag: &str| Filter::parse(&format!("app:{tag}")).unwrap();
    TagRule {
        filters: vec![filter(tags)],
        keep: keep.iter().map(|tag| filter(tag)).collect(),
        cutoff: younger_than.map_or(Timestamp::MAX, days_ago),
        newest,
        newest_of: NewestOf::Selected,
    }
}

fn rules(tags: Vec<TagRule>) -> Rules {
    Rules {
        tags,
        untagged: Untagged::Keep,
        cutoff: now(),
        newest: 0,
        include_locked: false,
        limit: None,
    }
}

fn reasons(repository: &Repository, rules: &Rules) -> Vec<String> {
    let lines = plan_tags(repository, rules).unwrap();
    let text = |line: &TagLine| format!("{} {}", line.tag, line.reason);
    lines.iter().map(text).collect()
}

fn deleted(repository: &Repository, rules: &Rules) -> Vec<String> {
    let lines = plan_tags(repository, rules).unwrap();
    let gone = lines.into_iter().filter(|line| line.delete);
    gone.map(|line| line.tag).collect()
}

#[test]
fn keeping_wins_over_deleting() {
    let content = repository(&[
        ("v1", 100),
        ("pr-1", 100),
        ("pr-2", 1),
        ("latest", 200),
        ("x", 90),
    ]);
    let one = rules(vec![rule(".*", &["^v", "latest"], 0, Some(30))]);
    assert_eq!(deleted(&content, &one), ["pr-1", "x"]);
    // The second rule deletes more, and the first still keeps.
    let two = rules(vec![
        rule(".*", &["^v", "latest"], 0, Some(30)),
        rule("^pr-|^v", &[], 0, None),
    ]);
    assert_eq!(deleted(&content, &two), ["pr-1", "x"]);
    assert_eq!(reasons(&content, &two)[0], "v1 a rule keeps `^v`: kept");
    let alone = rules(vec![rule("^pr-", &[], 0, None)]);
    assert_eq!(deleted(&content, &alone), ["pr-1", "pr-2"]);
}

#[test]
fn newest_are_counted_among_selected_tags() {
    let content = repository(&[
        ("a", 1),
        ("b", 2),
        ("c", 3),
        ("d", 4),
        ("latest", 0),
        ("u", -1),
    ]);
    let with = rules(vec![rule(".*", &["latest"], 2, None)]);
    assert_eq!(deleted(&content, &with), ["c", "d"]);
    let found = reasons(&content, &with);
    assert_eq!(found[0], "a one of the newest: kept");
    assert_eq!(found[5], "u unknown age: kept");
    // `acr purge --keep` counts only what would go.
    let mut purge = rule(".*", &["latest"], 1, Some(3));
    purge.newest_of = NewestOf::Deleted;
    assert_eq!(deleted(&content, &rules(vec![purge])), ["d"]);
}

#[test]
fn tags_that_images_need_stay() {
    let mut content = repository(&[("a", 100), ("b", 100), ("cache_app_build", 100)]);
    content.needed.insert(digest(0), Need::Rollback);
    content
        .needed_tags
        .insert("cache_app_build".into(), Need::Cache);
    let with = rules(vec![rule(".*", &[], 0, Some(1))]);
    assert_eq!(deleted(&content, &with), ["b"]);
    let found = reasons(&content, &with);
    assert_eq!(found[0], "a a rollback would restore it: kept");
    assert_eq!(found[2], "cache_app_build build cache of a task: kept");
}

#[test]
fn limit_lets_the_oldest_go_first() {
    let content = repository(&[("a", 10), ("b", 40), ("c", 20), ("d", 30)]);
    let mut with = rules(vec![rule(".*", &[], 0, Some(5))]);
    with.limit = Some(2);
    assert_eq!(deleted(&content, &with), ["b", "d"]);
    assert!(reasons(&content, &with)[0].contains("the limit of this run"));
    with.limit = Some(0);
    assert_eq!(deleted(&content, &with), [""; 0]);
}

proptest! {
    #[test]
    fn kept_names_and_limits_apply_to_any_repository(
        tags in proptest::collection::vec(("[a-c]{1,2}", 0i64..50), 0..12),
        newest in 0..4usize, limit in proptest::option::of(0..5usize), age in proptest::option::of(0i64..50)
    ) {
        let tags: Vec<(&str, i64)> = tags.iter().map(|(name, age)| (name.as_str(), *age)).collect();
        let content = repository(&tags);
        let mut with = rules(vec![rule(".*", &["^a"], newest, age), rule("b", &["^c"], 0, None)]);
        with.limit = limit;
        let gone = deleted(&content, &with);
        prop_assert!(gone.iter().all(|tag| !tag.starts_with('a') && !tag.starts_with('c')), "{gone:?}");
        prop_assert!(limit.is_none_or(|limit| gone.len() <= limit));
        // Without a limit, a later run with the same rules deletes nothing more.
        if limit.is_none() {
            let mut rest = content.clone();
            rest.tags.retain(|tag| !gone.contains(&tag.name));
            let again = deleted(&rest, &with);
            prop_assert!(newest > 0 || again.is_empty(), "{again:?}");
        }
    }
}
