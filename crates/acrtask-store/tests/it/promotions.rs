//! What is decided of the tags of a cascade, and what is recorded when they have moved.

use acrtask_api::run::RunResult;
use acrtask_model::RunState;
use acrtask_store::{CascadeChange, Ms, Report};

use crate::{
    cascades::{begun, cascade, change},
    images::{ran, result, sha, task},
    support::{Fixture, NOW, on_both},
};

on_both!(
    a_run_is_recorded_when_its_last_tag_has_moved,
    an_image_gets_back_what_was_recorded_before,
    what_is_on_its_way_is_fetched_back,
    of_a_run_that_is_gone_the_digest_comes_back,
    one_works_at_a_time_on_what_is_wanted_last,
    what_was_given_up_can_be_wanted_again,
    something_newer_takes_the_place_of_what_is_held,
);

const A: &str = "r.io/a:1";
const B: &str = "r.io/b:1";

/// A result whose images have no tags.
fn held(images: &[(&str, char)], bases: &[(&str, char)]) -> RunResult {
    let mut result = result(images, bases);
    for image in &mut result.images {
        image.held = true;
    }
    result
}

/// A cascade that is over, whose run of the task `a` has come to this.
async fn over(fixture: &Fixture, id: u64, result: RunResult, at: Ms) {
    let holds = result.images.iter().any(|image| image.held);
    assert!(change(fixture, &begun(id, "a", holds)).await);
    let run = fixture.claim("x", 1, at).await.remove(0);
    let end = Report::Finished {
        state: RunState::Succeeded,
        reason: None,
        result: Box::new(result),
        log_length: 0,
        log_sha256: "ab".repeat(32),
    };
    let all = vec![Report::Accepted, Report::Started, end];
    fixture.say_all("x", &run, at, all).await;
    let mut row = cascade(id, "over", Some(at));
    row.holds = Some(holds);
    let over = CascadeChange {
        next: id,
        cascades: vec![row],
        seen: vec![(id, "a".into(), 1)],
        ..CascadeChange::default()
    };
    assert!(change(fixture, &over).await);
}

/// The task has run, and a cascade holds back what it pushed anew.
async fn prepared(fixture: &Fixture) {
    task(fixture, "a").await;
    let before = result(&[(A, 'a'), (B, 'b')], &[("base:1", '1')]);
    ran(fixture, "before", Some("a"), before, NOW).await;
    let after = held(&[(A, 'c'), (B, 'd')], &[("base:1", '2')]);
    over(fixture, 1, after, NOW + 10_000).await;
}

async fn states(fixture: &Fixture) -> Vec<String> {
    let images = fixture.store.cascade_images(1).await.unwrap();
    images.into_iter().map(|image| image.state).collect()
}

/// Digest of an image, and letters of its bases'.
async fn recorded(fixture: &Fixture, name: &str) -> (char, String) {
    let (image, bases) = fixture.store.image(name).await.unwrap();
    let letter = |digest: &acrtask_model::Digest| digest.short().chars().next().unwrap();
    let bases = bases.iter().map(|base| letter(&base.digest)).collect();
    (letter(&image.digest), bases)
}

/// Moves both tags.
async fn promoted(fixture: &Fixture, now: Ms) {
    let store = &fixture.store;
    let from = ["none", "held", "dropped", "rolledBack"];
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
        store.tag_moved(1, name, &sha(after), now).await.unwrap();
    }
    store
        .release_promotion(1, "promoted", None, None, now)
        .await
        .unwrap();
}

async fn a_run_is_recorded_when_its_last_tag_has_moved(fixture: &Fixture) {
    prepared(fixture).await;
    let store = &fixture.store;
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
    // What the tag held is written down, also that there was none.
    for (name, after, before) in [(A, 'c', Some(sha('e'))), (B, 'd', None)] {
        let before = Some(before.as_ref());
        let will = store
            .will_move(1, name, &sha(after), before, now + 60)
            .await
            .unwrap();
        assert!(will);
    }
    // Of one that has moved already, it stays.
    let will = store
        .will_move(1, A, &sha('c'), None, now + 60)
        .await
        .unwrap();
    assert!(will);
    let will = store
        .will_move(1, A, &sha('9'), None, now + 60)
        .await
        .unwrap();
    assert!(!will, "there is no such image");
    store.tag_moved(1, A, &sha('c'), now).await.unwrap();
    assert_eq!(states(fixture).await, ["moved", "held"]);
    assert_eq!(recorded(fixture, A).await, ('a', "1".into()), "not yet");
    store.tag_moved(1, B, &sha('d'), now).await.unwrap();
    assert_eq!(recorded(fixture, A).await, ('c', "2".into()));
    assert_eq!(recorded(fixture, B).await, ('d', "2".into()));
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

async fn an_image_gets_back_what_was_recorded_before(fixture: &Fixture) {
    prepared(fixture).await;
    let store = &fixture.store;
    // The tag is watched, and somebody is looking at it.
    let watch = (A.to_owned(), String::new());
    store.set_watches(&[watch].into(), NOW).await.unwrap();
    let seen = acrtask_store::Seen::Digest {
        digest: sha('a'),
        etag: None,
        platforms: None,
    };
    let due = store.claim_watches(NOW, 60, 9).await.unwrap().remove(0);
    let all = [(due, seen.clone(), NOW + 50)];
    store.watched_all(&all, NOW).await.unwrap();
    let looking = store
        .claim_watches(NOW + 50, 60_000, 9)
        .await
        .unwrap()
        .remove(0);
    promoted(fixture, NOW + 20_000).await;
    assert_eq!(recorded(fixture, A).await, ('c', "2".into()));
    // What that one has seen is not so any more.
    let all = [(looking, seen, NOW + 90_000)];
    store.watched_all(&all, NOW + 21_000).await.unwrap();
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
        assert!(store.will_go_back(1, Some(name), now + 60).await.unwrap());
        store
            .tag_went_back(1, name, &sha(before), now)
            .await
            .unwrap();
        // Said again, it changes nothing.
        store.tag_went_back(1, name, &sha('9'), now).await.unwrap();
    }
    assert_eq!(states(fixture).await, ["rolledBack", "rolledBack"]);
    assert_eq!(recorded(fixture, A).await, ('a', "1".into()));
    assert_eq!(recorded(fixture, B).await, ('b', "1".into()));
    let image = store.image(A).await.unwrap().0;
    assert!(image.newest);
    assert_eq!(image.run.as_str(), "before");
    assert_eq!(store.base_tags().await.unwrap()[0].digest, sha('a'));
    // And forward again.
    promoted(fixture, NOW + 40_000).await;
    assert_eq!(recorded(fixture, A).await, ('c', "2".into()));
}

async fn what_is_on_its_way_is_fetched_back(fixture: &Fixture) {
    prepared(fixture).await;
    let store = &fixture.store;
    let now = NOW + 20_000;
    let decide = async |from, to, now| {
        let set = store.decide_promotion(1, &[from], to, None, now).await;
        assert!(set.unwrap());
        assert!(store.claim_promotion(1, to, now + 60, now).await.unwrap());
    };
    decide("none", "promoted", now).await;
    let before = Some(sha('a'));
    let will = store
        .will_move(1, A, &sha('c'), Some(before.as_ref()), now + 60)
        .await;
    assert!(will.unwrap());
    // Whoever moves it has ended, or is not done yet: nobody can tell where the tag is.
    decide("promoted", "rolledBack", now + 100).await;
    assert_eq!(states(fixture).await, ["moved", "dropped"]);
    store.tag_moved(1, A, &sha('c'), now + 101).await.unwrap();
    assert_eq!(states(fixture).await, ["moved", "dropped"]);
    assert_eq!(recorded(fixture, A).await, ('a', "1".into()));
    // The same on the way back.
    let will = store.will_go_back(1, Some(A), now + 160).await;
    assert!(will.unwrap());
    decide("rolledBack", "promoted", now + 200).await;
    assert_eq!(states(fixture).await, ["held", "held"]);
    store
        .tag_went_back(1, A, &sha('a'), now + 201)
        .await
        .unwrap();
    assert_eq!(states(fixture).await, ["held", "held"]);
    for (name, after) in [(A, 'c'), (B, 'd')] {
        store.tag_moved(1, name, &sha(after), now).await.unwrap();
    }
    // What has arrived is where it is.
    let set = store
        .decide_promotion(1, &["promoted"], "rolledBack", None, now + 300)
        .await;
    assert!(set.unwrap());
    assert_eq!(states(fixture).await, ["moved", "moved"]);
}

async fn of_a_run_that_is_gone_the_digest_comes_back(fixture: &Fixture) {
    prepared(fixture).await;
    promoted(fixture, NOW + 20_000).await;
    fixture.raw("DELETE FROM runs WHERE id = 'before'").await;
    let now = NOW + 30_000;
    let set = fixture
        .store
        .decide_promotion(1, &["promoted"], "rolledBack", None, now)
        .await
        .unwrap();
    assert!(set);
    fixture
        .store
        .tag_went_back(1, A, &sha('a'), now)
        .await
        .unwrap();
    assert_eq!(recorded(fixture, A).await, ('a', String::new()));
}

async fn one_works_at_a_time_on_what_is_wanted_last(fixture: &Fixture) {
    prepared(fixture).await;
    let store = &fixture.store;
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
    // Something else is wanted: whoever works stops, and until then nobody begins.
    let set = store
        .decide_promotion(1, &["promoted"], "rolledBack", Some("ann"), now + 1)
        .await
        .unwrap();
    assert!(set);
    let will = store
        .will_move(1, A, &sha('c'), None, now + 60)
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
        states(fixture).await,
        ["dropped", "dropped"],
        "nothing had moved"
    );
    // One that has ended is followed when its time is over.
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

async fn what_was_given_up_can_be_wanted_again(fixture: &Fixture) {
    prepared(fixture).await;
    let store = &fixture.store;
    assert_eq!(store.unpromoted_images().await.unwrap().len(), 2);
    let drop = store
        .decide_promotion(1, &["none", "held"], "dropped", None, NOW)
        .await
        .unwrap();
    assert!(drop);
    assert_eq!(states(fixture).await, ["dropped", "dropped"]);
    assert_eq!(store.held_images().await.unwrap(), []);
    assert_eq!(store.open_promotions().await.unwrap(), []);
    let unpromoted = store.unpromoted_images().await.unwrap();
    assert_eq!(unpromoted[0], (A.into(), sha('c'), 1, true));
    // The cascade is tried again.
    let mut row = cascade(1, "active", None);
    row.holds = Some(true);
    let again = CascadeChange {
        next: 1,
        cascades: vec![row],
        ..CascadeChange::default()
    };
    assert!(change(fixture, &again).await);
    assert_eq!(store.open_promotions().await.unwrap().len(), 1);
    let hold = store
        .decide_promotion(1, &["dropped"], "held", None, NOW)
        .await
        .unwrap();
    assert!(hold);
    assert_eq!(states(fixture).await, ["held", "held"]);
}

async fn something_newer_takes_the_place_of_what_is_held(fixture: &Fixture) {
    prepared(fixture).await;
    let store = &fixture.store;
    assert_eq!(
        store.superseded_images(1).await.unwrap(),
        Vec::<String>::new()
    );
    let newer = result(&[(A, 'e')], &[("base:1", '2')]);
    ran(fixture, "newer", Some("a"), newer, NOW + 30_000).await;
    assert_eq!(store.superseded_images(1).await.unwrap(), [A]);
    store.drop_held(1, A, "newer").await.unwrap();
    store.tag_moved(1, A, &sha('c'), NOW).await.unwrap();
    assert_eq!(states(fixture).await, ["dropped", "held"]);
    assert_eq!(recorded(fixture, A).await.0, 'e');
}
