//! Promotion and rollback of tags, and the records of their images.

use acrtask_api::{
    registry_record::{Need, NeededManifest, RegistryRecord, TagRecord},
    run::RunResult,
};
use acrtask_model::RunState;
use acrtask_store::{CascadeChange, Ms, Report};

use crate::{
    cascades::{apply_change, cascade_row, cascade_with_run},
    images::{complete_run, create_task, run_result, sha},
    support::{NOW, TestDb, on_both},
};

on_both!(
    images_are_recorded_after_the_last_tag_is_promoted,
    rollback_restores_image_records,
    tag_change_in_progress_is_rolled_back,
    rollback_restores_digest_if_run_is_gone,
    promotion_is_leased_to_one_server,
    discarded_images_can_be_staged_again,
    newer_push_supersedes_staged_image,
    record_of_a_repository_names_times_and_needs,
);

const A: &str = "r.io/a:1";
const B: &str = "r.io/b:1";

/// Returns a result whose images are staged.
fn staged_result(images: &[(&str, char)], bases: &[(&str, char)]) -> RunResult {
    let mut result = run_result(images, bases);
    for image in &mut result.images {
        image.staged = true;
    }
    result
}

/// Creates a finished cascade whose run of the task `a` has this result.
async fn finish_cascade(db: &TestDb, id: u64, result: RunResult, at: Ms) {
    let stages_images = result.images.iter().any(|image| image.staged);
    assert!(apply_change(db, &cascade_with_run(id, "a", stages_images)).await);
    let run = db.claim("x", 1, at).await.remove(0);
    let end = Report::Finished {
        state: RunState::Succeeded,
        reason: None,
        result: Box::new(result),
        log_length: 0,
        log_sha256: "ab".repeat(32),
    };
    let all = vec![Report::Accepted, Report::Started, end];
    db.report_all("x", &run, at, all).await;
    let mut row = cascade_row(id, "finished", Some(at));
    row.stages_images = Some(stages_images);
    let finished = CascadeChange {
        next: id,
        cascades: vec![row],
        seen: vec![(id, "a".into(), 1)],
        ..CascadeChange::default()
    };
    assert!(apply_change(db, &finished).await);
}

/// Creates a run of the task, and a cascade that stages new images of it.
async fn stage_images(db: &TestDb) {
    create_task(db, "a").await;
    let before = run_result(&[(A, 'a'), (B, 'b')], &[("base:1", '1')]);
    complete_run(db, "before", Some("a"), before, NOW).await;
    let after = staged_result(&[(A, 'c'), (B, 'd')], &[("base:1", '2')]);
    finish_cascade(db, 1, after, NOW + 10_000).await;
}

async fn states(db: &TestDb) -> Vec<String> {
    let images = db.store.cascade_images(1).await.unwrap();
    images.into_iter().map(|image| image.state).collect()
}

/// Returns the letter of an image's digest, and the letters of its bases' digests.
async fn recorded_digests(db: &TestDb, name: &str) -> (char, String) {
    let (image, bases) = db.store.image(name).await.unwrap();
    let letter = |digest: &acrtask_model::Digest| digest.short().chars().next().unwrap();
    let bases = bases.iter().map(|base| letter(&base.digest)).collect();
    (letter(&image.digest), bases)
}

/// Promotes both tags.
async fn promote_both(db: &TestDb, now: Ms) {
    let store = &db.store;
    let from = ["none", "staged", "discarded", "rolledBack"];
    let set = store
        .decide_promotion(1, &from, "promoted", None, now)
        .await
        .unwrap();
    assert!(set);
    assert!(
        store
            .claim_promotion(1, "promoted", now + 60, now)
            .await
            .unwrap()
    );
    for (name, after) in [(A, 'c'), (B, 'd')] {
        store
            .record_promoted_tag(1, name, &sha(after), now)
            .await
            .unwrap();
    }
    store
        .release_promotion(1, "promoted", None, None, now)
        .await
        .unwrap();
}

async fn images_are_recorded_after_the_last_tag_is_promoted(db: &TestDb) {
    stage_images(db).await;
    let store = &db.store;
    let row = store.open_promotions().await.unwrap().remove(0);
    assert_eq!(
        (row.id, row.promotion.as_str(), row.next_at),
        (1, "none", None)
    );
    let now = NOW + 20_000;
    let set = store
        .decide_promotion(1, &["none"], "promoted", Some("ann"), now)
        .await
        .unwrap();
    assert!(set);
    assert!(
        store
            .claim_promotion(1, "promoted", now + 60, now)
            .await
            .unwrap()
    );
    // The previous digest is stored, or its absence.
    for (name, after, before) in [(A, 'c', Some(sha('e'))), (B, 'd', None)] {
        let before = Some(before.as_ref());
        let will = store
            .store_previous_digest(1, name, &sha(after), before, now + 60)
            .await
            .unwrap();
        assert!(will);
    }
    // The previous digest of a tag that is set already stays stored.
    let will = store
        .store_previous_digest(1, A, &sha('c'), None, now + 60)
        .await
        .unwrap();
    assert!(will);
    let will = store
        .store_previous_digest(1, A, &sha('9'), None, now + 60)
        .await
        .unwrap();
    assert!(!will, "the image does not exist");
    store
        .record_promoted_tag(1, A, &sha('c'), now)
        .await
        .unwrap();
    assert_eq!(states(db).await, ["promoted", "staged"]);
    assert_eq!(recorded_digests(db, A).await, ('a', "1".into()), "not yet");
    store
        .record_promoted_tag(1, B, &sha('d'), now)
        .await
        .unwrap();
    assert_eq!(recorded_digests(db, A).await, ('c', "2".into()));
    assert_eq!(recorded_digests(db, B).await, ('d', "2".into()));
    let image = store.image(A).await.unwrap().0;
    assert!(image.newest);
    assert_eq!(image.built_at, NOW + 10_000, "the end of its run");
    let images = store.cascade_images(1).await.unwrap();
    assert_eq!(
        (&images[0].before, &images[1].before),
        (&Some(sha('e')), &None)
    );
    store
        .release_promotion(1, "promoted", None, None, now)
        .await
        .unwrap();
    assert_eq!(store.open_promotions().await.unwrap(), []);
    let row = store.cascade(1).await.unwrap();
    assert_eq!(
        (row.promotion.as_str(), row.promotion_by.as_deref()),
        ("promoted", Some("ann"))
    );
}

async fn rollback_restores_image_records(db: &TestDb) {
    stage_images(db).await;
    let store = &db.store;
    // The tag is watched, and a poll is in progress.
    let watch = (A.to_owned(), String::new());
    store.set_watches(&[watch].into(), NOW).await.unwrap();
    let seen = acrtask_store::PollResult::Digest {
        digest: sha('a'),
        etag: None,
        platforms: None,
    };
    let due = store.claim_watches(NOW, 60, 9).await.unwrap().remove(0);
    let polls = [(due, seen.clone(), NOW + 50)];
    store.record_polls(&polls, NOW).await.unwrap();
    let leased = store
        .claim_watches(NOW + 50, 60_000, 9)
        .await
        .unwrap()
        .remove(0);
    promote_both(db, NOW + 20_000).await;
    assert_eq!(recorded_digests(db, A).await, ('c', "2".into()));
    // The digest of that poll is outdated.
    let polls = [(leased, seen, NOW + 90_000)];
    store.record_polls(&polls, NOW + 21_000).await.unwrap();
    assert_eq!(store.base_tags().await.unwrap()[0].digest, sha('c'));

    let now = NOW + 30_000;
    let set = store
        .decide_promotion(1, &["promoted"], "rolledBack", Some("ann"), now)
        .await
        .unwrap();
    assert!(set);
    assert!(
        store
            .claim_promotion(1, "rolledBack", now + 60, now)
            .await
            .unwrap()
    );
    for (name, before) in [(A, 'a'), (B, 'b')] {
        assert!(
            store
                .prepare_rollback(1, Some(name), now + 60)
                .await
                .unwrap()
        );
        store
            .record_restored_tag(1, name, &sha(before), now)
            .await
            .unwrap();
        // A repeated call changes nothing.
        store
            .record_restored_tag(1, name, &sha('9'), now)
            .await
            .unwrap();
    }
    assert_eq!(states(db).await, ["rolledBack", "rolledBack"]);
    assert_eq!(recorded_digests(db, A).await, ('a', "1".into()));
    assert_eq!(recorded_digests(db, B).await, ('b', "1".into()));
    let image = store.image(A).await.unwrap().0;
    assert!(image.newest);
    assert_eq!(image.run.as_str(), "before");
    assert_eq!(store.base_tags().await.unwrap()[0].digest, sha('a'));
    // Another promotion follows the rollback.
    promote_both(db, NOW + 40_000).await;
    assert_eq!(recorded_digests(db, A).await, ('c', "2".into()));
}

async fn tag_change_in_progress_is_rolled_back(db: &TestDb) {
    stage_images(db).await;
    let store = &db.store;
    let now = NOW + 20_000;
    let decide = async |from, to, now| {
        let set = store.decide_promotion(1, &[from], to, None, now).await;
        assert!(set.unwrap());
        assert!(store.claim_promotion(1, to, now + 60, now).await.unwrap());
    };
    decide("none", "promoted", now).await;
    let before = Some(sha('a'));
    let will = store
        .store_previous_digest(1, A, &sha('c'), Some(before.as_ref()), now + 60)
        .await;
    assert!(will.unwrap());
    // The server crashed or is still at work, so the position of the tag is unknown.
    decide("promoted", "rolledBack", now + 100).await;
    assert_eq!(states(db).await, ["promoted", "discarded"]);
    store
        .record_promoted_tag(1, A, &sha('c'), now + 101)
        .await
        .unwrap();
    assert_eq!(states(db).await, ["promoted", "discarded"]);
    assert_eq!(recorded_digests(db, A).await, ('a', "1".into()));
    // The same happens during a rollback.
    let will = store.prepare_rollback(1, Some(A), now + 160).await;
    assert!(will.unwrap());
    decide("rolledBack", "promoted", now + 200).await;
    assert_eq!(states(db).await, ["staged", "staged"]);
    store
        .record_restored_tag(1, A, &sha('a'), now + 201)
        .await
        .unwrap();
    assert_eq!(states(db).await, ["staged", "staged"]);
    for (name, after) in [(A, 'c'), (B, 'd')] {
        store
            .record_promoted_tag(1, name, &sha(after), now)
            .await
            .unwrap();
    }
    // A completed tag change counts as changed.
    let set = store
        .decide_promotion(1, &["promoted"], "rolledBack", None, now + 300)
        .await;
    assert!(set.unwrap());
    assert_eq!(states(db).await, ["promoted", "promoted"]);
}

async fn rollback_restores_digest_if_run_is_gone(db: &TestDb) {
    stage_images(db).await;
    promote_both(db, NOW + 20_000).await;
    db.execute("DELETE FROM runs WHERE id = 'before'").await;
    let now = NOW + 30_000;
    let set = db
        .store
        .decide_promotion(1, &["promoted"], "rolledBack", None, now)
        .await
        .unwrap();
    assert!(set);
    db.store
        .record_restored_tag(1, A, &sha('a'), now)
        .await
        .unwrap();
    assert_eq!(recorded_digests(db, A).await, ('a', String::new()));
}

async fn promotion_is_leased_to_one_server(db: &TestDb) {
    stage_images(db).await;
    let store = &db.store;
    let now = NOW + 20_000;
    let tries = (0..8).map(|_| store.decide_promotion(1, &["none"], "promoted", None, now));
    let won = futures::future::join_all(tries).await;
    assert_eq!(
        won.into_iter().filter(|won| *won.as_ref().unwrap()).count(),
        1
    );
    let tries = (0..8).map(|_| store.claim_promotion(1, "promoted", now + 60, now));
    let won = futures::future::join_all(tries).await;
    assert_eq!(
        won.into_iter().filter(|won| *won.as_ref().unwrap()).count(),
        1
    );
    // The wanted state changes: the current server stops, and no other server starts before that.
    let set = store
        .decide_promotion(1, &["promoted"], "rolledBack", Some("ann"), now + 1)
        .await
        .unwrap();
    assert!(set);
    let will = store
        .store_previous_digest(1, A, &sha('c'), None, now + 60)
        .await
        .unwrap();
    assert!(!will);
    assert!(
        !store
            .claim_promotion(1, "rolledBack", now + 99, now + 1)
            .await
            .unwrap()
    );
    store
        .release_promotion(1, "promoted", None, None, now + 2)
        .await
        .unwrap();
    assert!(
        store
            .claim_promotion(1, "rolledBack", now + 99, now + 2)
            .await
            .unwrap()
    );
    assert_eq!(
        states(db).await,
        ["discarded", "discarded"],
        "no tag had been promoted"
    );
    // The lease of a crashed server expires.
    assert!(
        !store
            .claim_promotion(1, "rolledBack", now + 200, now + 98)
            .await
            .unwrap()
    );
    assert!(
        store
            .claim_promotion(1, "rolledBack", now + 200, now + 99)
            .await
            .unwrap()
    );
    store
        .release_promotion(1, "rolledBack", Some("no answer"), Some(now + 300), now)
        .await
        .unwrap();
    let row = store.promotion(1).await.unwrap();
    assert_eq!(
        (row.next_at, row.error.as_deref()),
        (Some(now + 300), Some("no answer"))
    );
    assert!(store.promotion(2).await.is_err());
}

async fn discarded_images_can_be_staged_again(db: &TestDb) {
    stage_images(db).await;
    let store = &db.store;
    assert_eq!(store.unpromoted_images().await.unwrap().len(), 2);
    let drop = store
        .decide_promotion(1, &["none", "staged"], "discarded", None, NOW)
        .await
        .unwrap();
    assert!(drop);
    assert_eq!(states(db).await, ["discarded", "discarded"]);
    assert_eq!(store.staged_images().await.unwrap(), []);
    assert_eq!(store.open_promotions().await.unwrap(), []);
    let unpromoted = store.unpromoted_images().await.unwrap();
    assert_eq!(unpromoted[0], (A.into(), sha('c'), 1, true));
    // The cascade is retried.
    let mut row = cascade_row(1, "active", None);
    row.stages_images = Some(true);
    let again = CascadeChange {
        next: 1,
        cascades: vec![row],
        ..CascadeChange::default()
    };
    assert!(apply_change(db, &again).await);
    assert_eq!(store.open_promotions().await.unwrap().len(), 1);
    let staged = store
        .decide_promotion(1, &["discarded"], "staged", None, NOW)
        .await
        .unwrap();
    assert!(staged);
    assert_eq!(states(db).await, ["staged", "staged"]);
}

async fn newer_push_supersedes_staged_image(db: &TestDb) {
    stage_images(db).await;
    let store = &db.store;
    assert_eq!(
        store.superseded_images(1).await.unwrap(),
        Vec::<String>::new()
    );
    let newer = run_result(&[(A, 'e')], &[("base:1", '2')]);
    complete_run(db, "newer", Some("a"), newer, NOW + 30_000).await;
    assert_eq!(store.superseded_images(1).await.unwrap(), [A]);
    store.discard_staged_image(1, A, "newer").await.unwrap();
    store
        .record_promoted_tag(1, A, &sha('c'), NOW)
        .await
        .unwrap();
    assert_eq!(states(db).await, ["discarded", "staged"]);
    assert_eq!(recorded_digests(db, A).await.0, 'e');
}

async fn record_of_a_repository_names_times_and_needs(db: &TestDb) {
    stage_images(db).await;
    let read = async |repository: &str| db.store.registry_record(repository).await.unwrap();
    let record = async |repository: &str| read(repository).await.0;
    let needed = |letter: char, need: Need| NeededManifest {
        digest: sha(letter),
        need,
    };
    let found = record("r.io/a").await;
    let tag = |letter: char, at: Ms| TagRecord {
        tag: "1".into(),
        digest: sha(letter),
        since: jiff::Timestamp::from_millisecond(at).unwrap(),
    };
    assert_eq!(found.tags, [tag('a', found.tags[0].since.as_millisecond())]);
    assert_eq!(found.needed, [needed('c', Need::Staged)]);
    assert_eq!(read("r.io/a").await.1, ["a".to_owned()].into());
    // A promotion makes the previous digest the target of a rollback.
    let (store, now) = (&db.store, NOW + 20_000);
    let decided = store.decide_promotion(1, &["none"], "promoted", None, now);
    assert!(decided.await.unwrap());
    let claimed = store.claim_promotion(1, "promoted", now + 60, now);
    assert!(claimed.await.unwrap());
    for (name, after, before) in [(A, 'c', 'a'), (B, 'd', 'b')] {
        let (after, before) = (sha(after), sha(before));
        let stored = store.store_previous_digest(1, name, &after, Some(Some(&before)), now + 60);
        assert!(stored.await.unwrap());
        store
            .record_promoted_tag(1, name, &after, now)
            .await
            .unwrap();
    }
    let found = record("r.io/a").await;
    assert_eq!(found.needed, [needed('a', Need::Rollback)]);
    assert_eq!(found.tags.len(), 2);
    // The base is named without a registry, which means Docker Hub.
    assert_eq!(
        record("docker.io/library/base").await.needed,
        [needed('2', Need::Base)]
    );
    // Similar names are other repositories.
    for other in ["r.io", "r.io/", "r.io/ab", "r.io/a:1"] {
        assert_eq!(record(other).await, RegistryRecord::default(), "{other}");
    }
}
