//! Base watches.

use std::collections::{BTreeMap, BTreeSet};

use acrtask_api::image::BaseStatus;
use acrtask_model::{Digest, events::BaseRole};
use acrtask_store::{Ms, PollResult, WatchFilter, WatchRow};

use crate::{
    images::{complete_run, create_task, run_result, sha},
    support::{NOW, TestDb, on_both},
};

on_both!(
    tags_have_one_watch_per_login,
    due_tags_are_leased_to_one_server,
    digest_changes_are_recorded,
    poll_without_lease_is_ignored,
    paused_tag_is_not_due,
    postponed_registry_is_not_polled,
    marking_due_revokes_polls_in_progress,
    images_are_stale_after_digest_change_of_base,
    staleness_uses_platforms_of_the_base,
    push_of_a_run_marks_its_tag_due,
);

const LEASE: i64 = 60_000;
const BASE: &str = "r.io/base:1";

fn tag_set(list: &[(&str, &str)]) -> BTreeSet<(String, String)> {
    list.iter()
        .map(|(name, scope)| ((*name).to_owned(), (*scope).to_owned()))
        .collect()
}

fn all_watches() -> WatchFilter {
    WatchFilter {
        limit: 100,
        ..WatchFilter::default()
    }
}

async fn watch_names(db: &TestDb) -> Vec<(String, String)> {
    let rows = db.store.watches(all_watches()).await.unwrap();
    rows.into_iter().map(|row| (row.name, row.scope)).collect()
}

async fn claim_watches(db: &TestDb, now: Ms) -> Vec<WatchRow> {
    db.store.claim_watches(now, LEASE, 100).await.unwrap()
}

fn platform_index(amd64: char, arm64: char) -> Option<BTreeMap<String, Digest>> {
    let platforms = [("linux/amd64", amd64), ("linux/arm64", arm64)];
    Some(
        platforms
            .map(|(name, letter)| (name.to_owned(), sha(letter)))
            .into(),
    )
}

fn digest_result(letter: char, platforms: Option<BTreeMap<String, Digest>>) -> PollResult {
    PollResult::Digest {
        digest: sha(letter),
        etag: Some(format!("\"{letter}\"")),
        platforms,
    }
}

async fn tags_have_one_watch_per_login(db: &TestDb) {
    for name in ["one", "two", "gone"] {
        create_task(db, name).await;
        let image = format!("r.io/{name}:1");
        let made = run_result(&[(&image, '1')], &[(BASE, 'b'), ("busybox", 'c')]);
        complete_run(db, name, Some(name), made, NOW).await;
    }
    db.store.delete_task("gone").await.unwrap();
    db.store
        .put_credential("id-two", "r.io", ("u", b"p"), None, NOW)
        .await
        .unwrap();
    let mut found = db.store.wanted_bases().await.unwrap();
    found.sort_by(|a, b| (&a.0, &a.1, &a.2).cmp(&(&b.0, &b.1, &b.2)));
    let busybox = "docker.io/library/busybox:latest";
    let row = |name: &str, scope: &str, task: &str| {
        (name.into(), scope.into(), task.into(), BaseRole::Runtime)
    };
    assert_eq!(
        found,
        [
            row(busybox, "", "id-one"),
            row(busybox, "", "id-two"),
            row(BASE, "", "id-one"),
            row(BASE, "id-two", "id-two"),
        ]
    );
    // A login of a prefix polls for its tasks without a login of their own.
    for scope in ["o*", "on*", "tw*", "x*"] {
        db.store
            .put_credential(scope, "r.io", ("u", b"p"), None, NOW)
            .await
            .unwrap();
    }
    let mut of_prefix = db.store.wanted_bases().await.unwrap();
    of_prefix.retain(|(name, ..)| name == BASE);
    of_prefix.sort_by(|a, b| a.1.cmp(&b.1));
    let expected = [row(BASE, "id-two", "id-two"), row(BASE, "on*", "id-one")];
    assert_eq!(of_prefix, expected);
    for scope in ["o*", "on*", "tw*", "x*"] {
        db.store.delete_credential(scope, "r.io").await.unwrap();
    }
    let three = tag_set(&[(busybox, ""), (BASE, ""), (BASE, "id-two")]);
    assert_eq!(db.store.set_watches(&three, NOW).await.unwrap(), 3);
    assert_eq!(db.store.set_watches(&three, NOW).await.unwrap(), 0);
    assert_eq!(watch_names(db).await.len(), 3);
    let rows = db.store.watches(all_watches()).await.unwrap();
    assert_eq!(rows[0].registry, "docker.io");
    assert_eq!((rows[1].used_by, rows[1].status), (3, BaseStatus::New));
    let two = tag_set(&[(BASE, ""), (BASE, "id-two")]);
    // A list that was read before the watch was created does not remove it.
    db.store.set_watches(&two, NOW + 1000).await.unwrap();
    assert_eq!(watch_names(db).await.len(), 3);
    db.store.set_watches(&two, NOW + 61_000).await.unwrap();
    assert_eq!(
        watch_names(db).await,
        [
            (BASE.to_owned(), String::new()),
            (BASE.into(), "id-two".into())
        ]
    );
}

async fn due_tags_are_leased_to_one_server(db: &TestDb) {
    let names: Vec<String> = (0..20)
        .map(|number| format!("r.io/base:{number}"))
        .collect();
    let list = names
        .iter()
        .map(|name| (name.clone(), String::new()))
        .collect();
    db.store.set_watches(&list, NOW).await.unwrap();
    let claims = (0..4).map(|_| db.store.claim_watches(NOW, LEASE, 5));
    let mut claimed: Vec<String> = futures::future::join_all(claims)
        .await
        .into_iter()
        .flat_map(|rows| rows.unwrap())
        .map(|row| row.name)
        .collect();
    claimed.extend(claim_watches(db, NOW).await.into_iter().map(|row| row.name));
    claimed.sort();
    let mut expected = names;
    expected.sort();
    assert_eq!(claimed, expected);
    assert_eq!(claim_watches(db, NOW + LEASE).await, []);
    // The server that leased them crashed.
    assert_eq!(claim_watches(db, NOW + LEASE + 1).await.len(), 20);
}

async fn digest_changes_are_recorded(db: &TestDb) {
    db.store
        .set_watches(&tag_set(&[(BASE, "")]), NOW)
        .await
        .unwrap();
    let mut now = NOW;
    let mut poll = async |seen: PollResult| {
        now += 10;
        let row = claim_watches(db, now).await.remove(0);
        db.store.record_poll(&row, &seen, now, now).await.unwrap()
    };
    assert_eq!(
        poll(digest_result('a', platform_index('1', '2'))).await,
        None
    );
    assert_eq!(
        poll(digest_result('a', platform_index('1', '2'))).await,
        None
    );
    assert_eq!(poll(PollResult::Unchanged).await, None);
    let moved = poll(digest_result('b', platform_index('1', '3')))
        .await
        .unwrap();
    assert_eq!((&moved.from, &moved.to), (&sha('a'), &sha('b')));
    assert_eq!(moved.platforms, ["linux/arm64"]);
    assert!(!moved.moved_back);
    for status in [
        BaseStatus::Vanished,
        BaseStatus::Denied,
        BaseStatus::Unreachable,
        BaseStatus::Limited,
    ] {
        let failed = PollResult::Failed {
            status,
            detail: "no".into(),
        };
        assert_eq!(poll(failed).await, None);
        let row = db.store.watches(all_watches()).await.unwrap().remove(0);
        assert_eq!((row.status, row.detail.as_deref()), (status, Some("no")));
        assert_eq!(row.digest, Some(sha('b')), "a known digest stays known");
    }
    let row = db.store.watches(all_watches()).await.unwrap().remove(0);
    assert_eq!(row.failures, 4);
    // The tag vanished and has another digest now: the change starts at the digest before.
    let back = poll(digest_result('a', None)).await.unwrap();
    assert!(back.moved_back);
    assert_eq!(
        back.platforms,
        ["linux/arm64"],
        "the platforms are known already"
    );
    let unknown = poll(digest_result('c', None)).await.unwrap();
    assert_eq!(unknown.platforms, Vec::<String>::new());
    let row = db.store.watches(all_watches()).await.unwrap().remove(0);
    assert_eq!((row.failures, row.status), (0, BaseStatus::Ok));
    assert_eq!(row.changed_at, row.checked_at);
    assert_eq!(row.etag.as_deref(), Some("\"c\""));
    let changes = db.store.base_changes(row.id, 10).await.unwrap();
    assert_eq!(changes, [unknown, back, moved]);
    assert_eq!(
        db.store.base_platforms(&row).await.unwrap(),
        BTreeMap::new()
    );
    db.store
        .put_base_platforms(&row, &sha('c'), platform_index('4', '5').as_ref(), NOW)
        .await
        .unwrap();
    assert_eq!(
        Some(db.store.base_platforms(&row).await.unwrap()),
        platform_index('4', '5')
    );
}

async fn poll_without_lease_is_ignored(db: &TestDb) {
    db.store
        .set_watches(&tag_set(&[(BASE, "")]), NOW)
        .await
        .unwrap();
    let late = claim_watches(db, NOW).await.remove(0);
    let next = claim_watches(db, NOW + LEASE + 1).await.remove(0);
    db.store
        .record_poll(&late, &digest_result('a', None), NOW, NOW)
        .await
        .unwrap();
    db.store.release_watch(&late, NOW).await.unwrap();
    let row = db.store.watches(all_watches()).await.unwrap().remove(0);
    assert_eq!((row.digest, row.lease_until), (None, next.lease_until));
    db.store.release_watch(&next, NOW + 5).await.unwrap();
    let row = db.store.watches(all_watches()).await.unwrap().remove(0);
    assert_eq!((row.lease_until, row.next_check_at), (None, NOW + 5));
}

async fn paused_tag_is_not_due(db: &TestDb) {
    let two = tag_set(&[(BASE, ""), (BASE, "id-x"), ("r.io/other:1", "")]);
    db.store.set_watches(&two, NOW).await.unwrap();
    let store = &db.store;
    assert_eq!(store.set_watch_paused(BASE, true, NOW).await.unwrap(), 2);
    let due = claim_watches(db, NOW + 1).await;
    assert_eq!(due.len(), 1);
    assert_eq!(store.mark_watches_due(None, NOW - 1).await.unwrap(), 1);
    assert_eq!(
        store.set_watch_paused(BASE, false, NOW + 5).await.unwrap(),
        2
    );
    let paused = store.watches(all_watches()).await.unwrap();
    assert!(paused.iter().all(|row| !row.paused));
    assert_eq!(claim_watches(db, NOW + 5).await.len(), 3);
    assert_eq!(
        store
            .set_watch_paused("r.io/none:1", true, NOW)
            .await
            .unwrap(),
        0
    );
}

async fn postponed_registry_is_not_polled(db: &TestDb) {
    let list = tag_set(&[
        ("r.io/a:1", ""),
        ("r.io/a:2", ""),
        ("r.io/ab:1", ""),
        ("r.io/a:1", "id-x"),
        ("s.io/a:1", ""),
    ]);
    db.store.set_watches(&list, NOW).await.unwrap();
    let store = &db.store;
    store
        .postpone_registry("r.io", "", NOW + 1000)
        .await
        .unwrap();
    let due: Vec<(String, String)> = claim_watches(db, NOW)
        .await
        .into_iter()
        .map(|row| (row.name, row.scope))
        .collect();
    assert_eq!(due.len(), 2, "{due:?}");
    assert_eq!(claim_watches(db, NOW + 999).await, []);
    assert_eq!(store.mark_repository_due("r.io/a", NOW).await.unwrap(), 3);
    let names = Some(vec!["r.io/ab:1".to_owned()]);
    assert_eq!(store.mark_watches_due(names, NOW).await.unwrap(), 1);
    assert_eq!(claim_watches(db, NOW).await.len(), 4);
}

async fn marking_due_revokes_polls_in_progress(db: &TestDb) {
    let store = &db.store;
    store
        .set_watches(&tag_set(&[(BASE, "")]), NOW)
        .await
        .unwrap();
    for name in [Some(vec![BASE.to_owned()]), None] {
        let leased = claim_watches(db, NOW + 1).await.remove(0);
        // The registry reports a push, and the poll in progress may have read the previous digest.
        assert_eq!(store.mark_watches_due(name, NOW + 1).await.unwrap(), 1);
        store
            .record_poll(&leased, &digest_result('a', None), NOW + 1, NOW + 900)
            .await
            .unwrap();
        let row = store.watches(all_watches()).await.unwrap().remove(0);
        assert_eq!((row.digest, row.next_check_at), (None, NOW + 1));
    }
    let again = claim_watches(db, NOW + 2).await.remove(0);
    store
        .record_poll(&again, &digest_result('b', None), NOW + 2, NOW + 900)
        .await
        .unwrap();
    assert_eq!(claim_watches(db, NOW + 3).await, []);
}

async fn images_are_stale_after_digest_change_of_base(db: &TestDb) {
    for (name, used) in [("old", 'a'), ("new", 'b'), ("private", 'a')] {
        create_task(db, name).await;
        let image = format!("r.io/{name}:1");
        complete_run(
            db,
            name,
            Some(name),
            run_result(&[(&image, '1')], &[(BASE, used)]),
            NOW,
        )
        .await;
    }
    complete_run(
        db,
        "free",
        None,
        run_result(&[("r.io/free:1", '1')], &[(BASE, 'a')]),
        NOW,
    )
    .await;
    let store = &db.store;
    store
        .put_credential("id-private", "r.io", ("u", b"p"), None, NOW)
        .await
        .unwrap();
    store
        .set_watches(&tag_set(&[(BASE, ""), (BASE, "id-private")]), NOW)
        .await
        .unwrap();
    assert_eq!(
        store.stale_bases().await.unwrap(),
        [],
        "no digest is known yet"
    );
    for row in claim_watches(db, NOW).await {
        let letter = if row.scope.is_empty() { 'b' } else { 'c' };
        store
            .record_poll(
                &row,
                &digest_result(letter, platform_index('1', '2')),
                NOW,
                NOW,
            )
            .await
            .unwrap();
        let rows = [row];
        let unread = store.digests_without_platforms(&rows, 10).await.unwrap();
        let digests: Vec<&Digest> = unread.iter().map(|(_, digest)| digest).collect();
        assert!(digests.contains(&&sha('a')), "{unread:?}");
    }
    let moved = store.stale_bases().await.unwrap();
    let shown: Vec<(&str, &Digest, &Digest, bool)> = moved
        .iter()
        .map(|one| {
            (
                one.image.as_str(),
                &one.used,
                &one.now,
                one.affects_platforms,
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            ("r.io/old:1", &sha('a'), &sha('b'), true),
            ("r.io/private:1", &sha('a'), &sha('c'), true)
        ]
    );
    assert_eq!(
        (moved[0].task_id.as_str(), moved[0].role),
        ("id-old", BaseRole::Runtime)
    );
    // The platforms of the previous digest are known now, and the used one has not changed.
    let rows = store.watches(all_watches()).await.unwrap();
    let global = rows.iter().find(|row| row.scope.is_empty()).unwrap();
    store
        .put_base_platforms(global, &sha('a'), platform_index('1', '9').as_ref(), NOW)
        .await
        .unwrap();
    let moved = store.stale_bases().await.unwrap();
    assert!(
        !moved[0].affects_platforms && moved[1].affects_platforms,
        "{moved:?}"
    );
    let rows = [global.clone()];
    assert_eq!(
        store.digests_without_platforms(&rows, 10).await.unwrap(),
        []
    );
    // A vanished tag makes no image stale.
    for row in claim_watches(db, NOW + 1).await {
        let gone = PollResult::Failed {
            status: BaseStatus::Vanished,
            detail: "gone".into(),
        };
        store.record_poll(&row, &gone, NOW, NOW).await.unwrap();
    }
    assert_eq!(store.stale_bases().await.unwrap(), []);
}

async fn staleness_uses_platforms_of_the_base(db: &TestDb) {
    let store = &db.store;
    // Both images are for linux/amd64.
    for (name, platforms) in [("cross", &["linux/arm64"][..]), ("plain", &[])] {
        create_task(db, name).await;
        let image = format!("r.io/{name}:1");
        let mut made = run_result(&[(&image, '1')], &[(BASE, 'a')]);
        made.bases[0].platforms = platforms.iter().map(|name| (*name).to_owned()).collect();
        complete_run(db, name, Some(name), made, NOW).await;
        let bases = store.image(&image).await.unwrap().1;
        assert_eq!(bases[0].platforms, platforms);
    }
    store
        .set_watches(&tag_set(&[(BASE, "")]), NOW)
        .await
        .unwrap();
    let mut at = NOW;
    for (digest, platforms, expected) in [
        (
            'b',
            platform_index('1', '9'),
            [("r.io/cross:1", true), ("r.io/plain:1", false)],
        ),
        (
            'c',
            platform_index('8', '2'),
            [("r.io/cross:1", false), ("r.io/plain:1", true)],
        ),
        (
            'd',
            platform_index('8', '9'),
            [("r.io/cross:1", true), ("r.io/plain:1", true)],
        ),
    ] {
        let row = claim_watches(db, at).await.remove(0);
        at += 1;
        store
            .record_poll(&row, &digest_result(digest, platforms), at, at)
            .await
            .unwrap();
        let row = store.watches(all_watches()).await.unwrap().remove(0);
        store
            .put_base_platforms(&row, &sha('a'), platform_index('1', '2').as_ref(), at)
            .await
            .unwrap();
        let moved = store.stale_bases().await.unwrap();
        let moved = moved
            .iter()
            .map(|one| (one.image.as_str(), one.affects_platforms));
        assert_eq!(moved.collect::<Vec<_>>(), expected, "{digest}");
    }
}

async fn push_of_a_run_marks_its_tag_due(db: &TestDb) {
    db.store
        .set_watches(&tag_set(&[(BASE, "")]), NOW)
        .await
        .unwrap();
    let row = claim_watches(db, NOW).await.remove(0);
    db.store
        .record_poll(&row, &digest_result('a', None), NOW, NOW + 300_000)
        .await
        .unwrap();
    complete_run(db, "base", None, run_result(&[(BASE, 'b')], &[]), NOW + 10).await;
    let due = claim_watches(db, NOW + 10).await;
    assert_eq!(due.len(), 1);
}
