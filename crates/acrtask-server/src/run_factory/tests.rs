//! Tests of reruns and cache names.

use proptest::prelude::*;

use super::{
    cache_name::{MAX_CACHE_NAME, cache_name},
    rerun::pin_to_commit,
};

#[test]
fn rerun_is_pinned_to_the_commit() {
    let commit = "0123456789012345678901234567890123456789";
    for (url, pinned) in [
        ("https://h/a.git", Some("https://h/a.git#C")),
        ("https://h/a.git#main", Some("https://h/a.git#C")),
        (
            "https://h/a.git#main:sub/x",
            Some("https://h/a.git#C:sub/x"),
        ),
        ("https://h/a.git#:sub", Some("https://h/a.git#C:sub")),
        ("oci://h/a:1", None),
    ] {
        assert_eq!(
            pin_to_commit(url, commit),
            pinned.map(|pinned| pinned.replace('C', commit)),
            "{url}"
        );
    }
    assert_eq!(pin_to_commit("https://h/a.tar.gz", ""), None);
    assert_eq!(pin_to_commit("https://h/a.git", "--upload-pack"), None);
}

proptest! {
    #[test]
    fn cache_name_is_a_valid_tag_part(task in "[a-zA-Z0-9/._-]{1,100}") {
        let name = cache_name(&task);
        prop_assert!(name.len() <= MAX_CACHE_NAME);
        prop_assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)));
    }

    #[test]
    fn cache_names_of_different_tasks_differ(task in "[a-zA-Z0-9/._-]{1,100}", other in "[a-zA-Z0-9/._-]{1,100}") {
        // Task names that an author could choose to get the cache of `task`.
        let own = cache_name(&task);
        for other in [other, own.clone(), cache_name(&own), task.replace('/', "-"), format!("{task}-")] {
            prop_assert_eq!(cache_name(&other) == own, other == task);
        }
    }
}

#[test]
fn similar_task_names_have_different_cache_names() {
    assert_eq!(
        cache_name("team/app"),
        "team-app-e46f7d74783804faa2021a16921c53e9"
    );
    assert_ne!(cache_name("team/app"), cache_name("team-app"));
    assert_ne!(cache_name("team/app"), cache_name("team//app"));
}
