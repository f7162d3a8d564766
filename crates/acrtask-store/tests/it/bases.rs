//! Base tags that are watched.

use std::collections::{BTreeMap, BTreeSet};

use acrtask_api::image::BaseStatus;
use acrtask_model::{Digest, events::BaseRole};
use acrtask_store::{Ms, Seen, WatchFilter, WatchRow};

use crate::{
    images::{ran, result, sha, task},
    support::{Fixture, NOW, on_both},
};

on_both!(
    each_tag_is_watched_once_for_each_login,
    a_tag_that_is_due_goes_to_one_server,
    moves_are_written_down,
    what_was_seen_without_a_lease_is_nothing,
    a_paused_tag_is_not_due,
    a_registry_that_asks_to_wait_is_left_alone,
    what_moves_while_it_is_looked_at_is_looked_at_again,
    images_are_stale_when_their_base_has_moved,
    a_base_that_was_used_for_another_platform_than_the_image_is_for,
    a_push_of_our_own_makes_its_tag_due,
);

const LEASE: i64 = 60_000;
const BASE: &str = "r.io/base:1";

fn wanted(list: &[(&str, &str)]) -> BTreeSet<(String, String)> {
    list.iter()
        .map(|(name, scope)| ((*name).to_owned(), (*scope).to_owned()))
        .collect()
}

fn all() -> WatchFilter {
    WatchFilter {
        limit: 100,
        ..WatchFilter::default()
    }
}

async fn watches(fixture: &Fixture) -> Vec<(String, String)> {
    let rows = fixture.store.watches(all()).await.unwrap();
    rows.into_iter().map(|row| (row.name, row.scope)).collect()
}

async fn claim(fixture: &Fixture, now: Ms) -> Vec<WatchRow> {
    fixture.store.claim_watches(now, LEASE, 100).await.unwrap()
}

fn index(amd64: char, arm64: char) -> Option<BTreeMap<String, Digest>> {
    let platforms = [("linux/amd64", amd64), ("linux/arm64", arm64)];
    Some(
        platforms
            .map(|(name, letter)| (name.to_owned(), sha(letter)))
            .into(),
    )
}

fn holds(letter: char, platforms: Option<BTreeMap<String, Digest>>) -> Seen {
    Seen::Digest {
        digest: sha(letter),
        etag: Some(format!("\"{letter}\"")),
        platforms,
    }
}

async fn each_tag_is_watched_once_for_each_login(fixture: &Fixture) {
    for name in ["one", "two", "gone"] {
        task(fixture, name).await;
        let image = format!("r.io/{name}:1");
        let made = result(&[(&image, '1')], &[(BASE, 'b'), ("busybox", 'c')]);
        ran(fixture, name, Some(name), made, NOW).await;
    }
    fixture.store.delete_task("gone").await.unwrap();
    fixture
        .store
        .put_credential("id-two", "r.io", "u", b"p", NOW)
        .await
        .unwrap();
    let mut found = fixture.store.wanted_bases().await.unwrap();
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
    let three = wanted(&[(busybox, ""), (BASE, ""), (BASE, "id-two")]);
    assert_eq!(fixture.store.set_watches(&three, NOW).await.unwrap(), 3);
    assert_eq!(fixture.store.set_watches(&three, NOW).await.unwrap(), 0);
    assert_eq!(watches(fixture).await.len(), 3);
    let rows = fixture.store.watches(all()).await.unwrap();
    assert_eq!(rows[0].registry, "docker.io");
    assert_eq!((rows[1].used_by, rows[1].status), (3, BaseStatus::New));
    let two = wanted(&[(BASE, ""), (BASE, "id-two")]);
    // A list that was read before the tag came removes nothing.
    fixture.store.set_watches(&two, NOW + 1000).await.unwrap();
    assert_eq!(watches(fixture).await.len(), 3);
    fixture.store.set_watches(&two, NOW + 61_000).await.unwrap();
    assert_eq!(
        watches(fixture).await,
        [
            (BASE.to_owned(), String::new()),
            (BASE.into(), "id-two".into())
        ]
    );
}

async fn a_tag_that_is_due_goes_to_one_server(fixture: &Fixture) {
    let names: Vec<String> = (0..20)
        .map(|number| format!("r.io/base:{number}"))
        .collect();
    let list = names
        .iter()
        .map(|name| (name.clone(), String::new()))
        .collect();
    fixture.store.set_watches(&list, NOW).await.unwrap();
    let claims = (0..4).map(|_| fixture.store.claim_watches(NOW, LEASE, 5));
    let mut claimed: Vec<String> = futures::future::join_all(claims)
        .await
        .into_iter()
        .flat_map(|rows| rows.unwrap())
        .map(|row| row.name)
        .collect();
    claimed.extend(claim(fixture, NOW).await.into_iter().map(|row| row.name));
    claimed.sort();
    let mut expected = names;
    expected.sort();
    assert_eq!(claimed, expected);
    assert_eq!(claim(fixture, NOW + LEASE).await, []);
    // Who took them is gone.
    assert_eq!(claim(fixture, NOW + LEASE + 1).await.len(), 20);
}

async fn moves_are_written_down(fixture: &Fixture) {
    fixture
        .store
        .set_watches(&wanted(&[(BASE, "")]), NOW)
        .await
        .unwrap();
    let mut now = NOW;
    let mut look = async |seen: Seen| {
        now += 10;
        let row = claim(fixture, now).await.remove(0);
        fixture.store.watched(&row, &seen, now, now).await.unwrap()
    };
    assert_eq!(look(holds('a', index('1', '2'))).await, None);
    assert_eq!(look(holds('a', index('1', '2'))).await, None);
    assert_eq!(look(Seen::Same).await, None);
    let moved = look(holds('b', index('1', '3'))).await.unwrap();
    assert_eq!((&moved.old, &moved.new), (&sha('a'), &sha('b')));
    assert_eq!(moved.platforms, ["linux/arm64"]);
    assert!(!moved.moved_back);
    for status in [
        BaseStatus::Vanished,
        BaseStatus::Denied,
        BaseStatus::Unreachable,
        BaseStatus::Limited,
    ] {
        let failed = Seen::Failed {
            status,
            detail: "no".into(),
        };
        assert_eq!(look(failed).await, None);
        let row = fixture.store.watches(all()).await.unwrap().remove(0);
        assert_eq!((row.status, row.detail.as_deref()), (status, Some("no")));
        assert_eq!(row.digest, Some(sha('b')), "what is known stays known");
    }
    let row = fixture.store.watches(all()).await.unwrap().remove(0);
    assert_eq!(row.failures, 4);
    // It vanished and is another one now: the move is one from what it was before.
    let back = look(holds('a', None)).await.unwrap();
    assert!(back.moved_back);
    assert_eq!(back.platforms, ["linux/arm64"], "known from before");
    let unknown = look(holds('c', None)).await.unwrap();
    assert_eq!(unknown.platforms, Vec::<String>::new());
    let row = fixture.store.watches(all()).await.unwrap().remove(0);
    assert_eq!((row.failures, row.status), (0, BaseStatus::Ok));
    assert_eq!(row.changed_at, row.checked_at);
    assert_eq!(row.etag.as_deref(), Some("\"c\""));
    let changes = fixture.store.base_changes(row.id, 10).await.unwrap();
    assert_eq!(changes, [unknown, back, moved]);
    assert_eq!(
        fixture.store.base_platforms(&row).await.unwrap(),
        BTreeMap::new()
    );
    fixture
        .store
        .put_platforms(&row, &sha('c'), index('4', '5').as_ref(), NOW)
        .await
        .unwrap();
    assert_eq!(
        Some(fixture.store.base_platforms(&row).await.unwrap()),
        index('4', '5')
    );
}

async fn what_was_seen_without_a_lease_is_nothing(fixture: &Fixture) {
    fixture
        .store
        .set_watches(&wanted(&[(BASE, "")]), NOW)
        .await
        .unwrap();
    let late = claim(fixture, NOW).await.remove(0);
    let next = claim(fixture, NOW + LEASE + 1).await.remove(0);
    fixture
        .store
        .watched(&late, &holds('a', None), NOW, NOW)
        .await
        .unwrap();
    fixture.store.unwatched(&late, NOW).await.unwrap();
    let row = fixture.store.watches(all()).await.unwrap().remove(0);
    assert_eq!((row.digest, row.lease_until), (None, next.lease_until));
    fixture.store.unwatched(&next, NOW + 5).await.unwrap();
    let row = fixture.store.watches(all()).await.unwrap().remove(0);
    assert_eq!((row.lease_until, row.next_check_at), (None, NOW + 5));
}

async fn a_paused_tag_is_not_due(fixture: &Fixture) {
    let two = wanted(&[(BASE, ""), (BASE, "id-x"), ("r.io/other:1", "")]);
    fixture.store.set_watches(&two, NOW).await.unwrap();
    let store = &fixture.store;
    assert_eq!(store.pause_watch(BASE, true, NOW).await.unwrap(), 2);
    let due = claim(fixture, NOW + 1).await;
    assert_eq!(due.len(), 1);
    assert_eq!(store.hurry_watches(None, NOW - 1).await.unwrap(), 1);
    assert_eq!(store.pause_watch(BASE, false, NOW + 5).await.unwrap(), 2);
    let paused = store.watches(all()).await.unwrap();
    assert!(paused.iter().all(|row| !row.paused));
    assert_eq!(claim(fixture, NOW + 5).await.len(), 3);
    assert_eq!(
        store.pause_watch("r.io/none:1", true, NOW).await.unwrap(),
        0
    );
}

async fn a_registry_that_asks_to_wait_is_left_alone(fixture: &Fixture) {
    let list = wanted(&[
        ("r.io/a:1", ""),
        ("r.io/a:2", ""),
        ("r.io/ab:1", ""),
        ("r.io/a:1", "id-x"),
        ("s.io/a:1", ""),
    ]);
    fixture.store.set_watches(&list, NOW).await.unwrap();
    let store = &fixture.store;
    store.postpone("r.io", "", NOW + 1000).await.unwrap();
    let due: Vec<(String, String)> = claim(fixture, NOW)
        .await
        .into_iter()
        .map(|row| (row.name, row.scope))
        .collect();
    assert_eq!(due.len(), 2, "{due:?}");
    assert_eq!(claim(fixture, NOW + 999).await, []);
    assert_eq!(store.hurry_repository("r.io/a", NOW).await.unwrap(), 3);
    let names = Some(vec!["r.io/ab:1".to_owned()]);
    assert_eq!(store.hurry_watches(names, NOW).await.unwrap(), 1);
    assert_eq!(claim(fixture, NOW).await.len(), 4);
}

async fn what_moves_while_it_is_looked_at_is_looked_at_again(fixture: &Fixture) {
    let store = &fixture.store;
    store
        .set_watches(&wanted(&[(BASE, "")]), NOW)
        .await
        .unwrap();
    for name in [Some(vec![BASE.to_owned()]), None] {
        let looking = claim(fixture, NOW + 1).await.remove(0);
        // The registry says that it was pushed; whether the look saw that, nobody knows.
        assert_eq!(store.hurry_watches(name, NOW + 1).await.unwrap(), 1);
        store
            .watched(&looking, &holds('a', None), NOW + 1, NOW + 900)
            .await
            .unwrap();
        let row = store.watches(all()).await.unwrap().remove(0);
        assert_eq!((row.digest, row.next_check_at), (None, NOW + 1));
    }
    let again = claim(fixture, NOW + 2).await.remove(0);
    store
        .watched(&again, &holds('b', None), NOW + 2, NOW + 900)
        .await
        .unwrap();
    assert_eq!(claim(fixture, NOW + 3).await, []);
}

async fn images_are_stale_when_their_base_has_moved(fixture: &Fixture) {
    for (name, used) in [("old", 'a'), ("new", 'b'), ("private", 'a')] {
        task(fixture, name).await;
        let image = format!("r.io/{name}:1");
        ran(
            fixture,
            name,
            Some(name),
            result(&[(&image, '1')], &[(BASE, used)]),
            NOW,
        )
        .await;
    }
    ran(
        fixture,
        "free",
        None,
        result(&[("r.io/free:1", '1')], &[(BASE, 'a')]),
        NOW,
    )
    .await;
    let store = &fixture.store;
    store
        .put_credential("id-private", "r.io", "u", b"p", NOW)
        .await
        .unwrap();
    store
        .set_watches(&wanted(&[(BASE, ""), (BASE, "id-private")]), NOW)
        .await
        .unwrap();
    assert_eq!(
        store.moved_bases().await.unwrap(),
        [],
        "nothing is known yet"
    );
    for row in claim(fixture, NOW).await {
        let letter = if row.scope.is_empty() { 'b' } else { 'c' };
        store
            .watched(&row, &holds(letter, index('1', '2')), NOW, NOW)
            .await
            .unwrap();
        let rows = [row];
        let unread = store.unread_digests(&rows, 10).await.unwrap();
        let digests: Vec<&Digest> = unread.iter().map(|(_, digest)| digest).collect();
        assert!(digests.contains(&&sha('a')), "{unread:?}");
    }
    let moved = store.moved_bases().await.unwrap();
    let shown: Vec<(&str, &Digest, &Digest, bool)> = moved
        .iter()
        .map(|one| (one.image.as_str(), &one.used, &one.now, one.touched))
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
    // What it was built from is read, and is the same for its platform.
    let rows = store.watches(all()).await.unwrap();
    let global = rows.iter().find(|row| row.scope.is_empty()).unwrap();
    store
        .put_platforms(global, &sha('a'), index('1', '9').as_ref(), NOW)
        .await
        .unwrap();
    let moved = store.moved_bases().await.unwrap();
    assert!(!moved[0].touched && moved[1].touched, "{moved:?}");
    let rows = [global.clone()];
    assert_eq!(store.unread_digests(&rows, 10).await.unwrap(), []);
    // Nobody becomes stale because of what is not there.
    for row in claim(fixture, NOW + 1).await {
        let gone = Seen::Failed {
            status: BaseStatus::Vanished,
            detail: "gone".into(),
        };
        store.watched(&row, &gone, NOW, NOW).await.unwrap();
    }
    assert_eq!(store.moved_bases().await.unwrap(), []);
}

async fn a_base_that_was_used_for_another_platform_than_the_image_is_for(fixture: &Fixture) {
    let store = &fixture.store;
    // Both are images for linux/amd64.
    for (name, platforms) in [("cross", &["linux/arm64"][..]), ("plain", &[])] {
        task(fixture, name).await;
        let image = format!("r.io/{name}:1");
        let mut made = result(&[(&image, '1')], &[(BASE, 'a')]);
        made.bases[0].platforms = platforms.iter().map(|name| (*name).to_owned()).collect();
        ran(fixture, name, Some(name), made, NOW).await;
        let bases = store.image(&image).await.unwrap().1;
        assert_eq!(bases[0].platforms, platforms);
    }
    store
        .set_watches(&wanted(&[(BASE, "")]), NOW)
        .await
        .unwrap();
    let mut at = NOW;
    for (digest, platforms, expected) in [
        (
            'b',
            index('1', '9'),
            [("r.io/cross:1", true), ("r.io/plain:1", false)],
        ),
        (
            'c',
            index('8', '2'),
            [("r.io/cross:1", false), ("r.io/plain:1", true)],
        ),
        (
            'd',
            index('8', '9'),
            [("r.io/cross:1", true), ("r.io/plain:1", true)],
        ),
    ] {
        let row = claim(fixture, at).await.remove(0);
        at += 1;
        store
            .watched(&row, &holds(digest, platforms), at, at)
            .await
            .unwrap();
        let row = store.watches(all()).await.unwrap().remove(0);
        store
            .put_platforms(&row, &sha('a'), index('1', '2').as_ref(), at)
            .await
            .unwrap();
        let moved = store.moved_bases().await.unwrap();
        let moved = moved.iter().map(|one| (one.image.as_str(), one.touched));
        assert_eq!(moved.collect::<Vec<_>>(), expected, "{digest}");
    }
}

async fn a_push_of_our_own_makes_its_tag_due(fixture: &Fixture) {
    fixture
        .store
        .set_watches(&wanted(&[(BASE, "")]), NOW)
        .await
        .unwrap();
    let row = claim(fixture, NOW).await.remove(0);
    fixture
        .store
        .watched(&row, &holds('a', None), NOW, NOW + 300_000)
        .await
        .unwrap();
    ran(fixture, "base", None, result(&[(BASE, 'b')], &[]), NOW + 10).await;
    let due = claim(fixture, NOW + 10).await;
    assert_eq!(due.len(), 1);
}
