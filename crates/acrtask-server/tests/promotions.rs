//! Tags that move together and go back, at a real registry, with a clock that the tests set. Each test runs on SQLite, and
//! on PostgreSQL where `ACRTASK_TEST_POSTGRES` names one.

#![allow(clippy::unwrap_used, reason = "a test")]
#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a test that is left out, or fails from a seed, says so"
)]

#[path = "promotions/ends.rs"]
mod ends;
#[path = "queue/place.rs"]
#[allow(dead_code, reason = "the tests of the queue use all of it")]
mod place;
#[path = "promotions/tags.rs"]
mod tags;
#[path = "cascades/world.rs"]
#[allow(dead_code, reason = "the tests of cascades use all of it")]
mod world;

use acrtask_api::cascade::{CascadeImageState, CascadePhase, CascadePromotion};
use acrtask_cascade::cascade::{CascadeId, Event};
use acrtask_server::cascades::{self, CommandError, promote as gate};
use ends::{
    a_server_that_ends_anywhere_leaves_what_another_can_finish,
    a_tag_that_was_on_its_way_goes_back, one_server_works_on_a_cascade,
    what_was_said_last_holds_wherever_a_server_has_ended,
};
use place::Place;
use serde_json::json;
use tags::{Fleet, NAMES};
use world::{SECOND, sha};

/// Runs the same test on both databases.
macro_rules! on_both {
    ($($name:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                if let Some(registry) = crate::tags::registry() {
                    super::$name(crate::place::Place::sqlite(), registry).await;
                }
            })+
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                if let (Some(place), Some(registry)) = (crate::place::Place::postgres(), crate::tags::registry()) {
                    super::$name(place, registry).await;
                }
            })+
        }
    };
}

on_both!(
    all_tags_move_when_everything_was_built_and_go_back_at_a_word,
    a_chosen_test_that_fails_holds_back_until_somebody_decides,
    a_chosen_test_that_passes_after_a_retry_lets_go,
    what_a_later_cascade_shows_lets_an_earlier_one_go,
    what_stands_on_held_images_is_held_until_these_have_tags,
    what_stands_on_held_images_is_given_up_with_them,
    what_nobody_retries_is_given_up,
    what_is_canceled_is_given_up_and_not_built_again,
    a_tag_that_cannot_move_keeps_no_other_and_is_tried_again,
    a_server_that_ends_anywhere_leaves_what_another_can_finish,
    what_an_ordinary_cascade_moved_goes_back_too,
    something_newer_is_not_overwritten,
    one_server_works_on_a_cascade,
    a_tag_that_was_on_its_way_goes_back,
    what_was_said_last_holds_wherever_a_server_has_ended,
);

async fn all_tags_move_when_everything_was_built_and_go_back_at_a_word(
    place: Place,
    registry: String,
) {
    let mut fleet = Fleet::new(place, &registry, json!({"promotion": {"tasks": "app"}})).await;
    let before = fleet.tags().await;
    fleet.base_moves("new").await;
    fleet.build("mid", true).await;
    // While it builds, nothing is decided.
    gate::pass(&fleet.world.app).await.unwrap();
    assert_eq!(fleet.show().await.summary.promotion, CascadePromotion::Held);
    let refused = gate::promote(&fleet.world.app, 1, "ann").await.unwrap_err();
    assert!(
        matches!(&refused, CommandError::Invalid(why) if why.contains("still building")),
        "{refused}"
    );
    fleet.build("app", true).await;
    assert_eq!(fleet.tags().await, before, "no tag has moved yet");

    gate::pass(&fleet.world.app).await.unwrap();
    let over = fleet.show().await;
    assert_eq!(over.summary.promotion, CascadePromotion::Promoted);
    assert_eq!(over.summary.promotion_note, None);
    let after = fleet.tags().await;
    for (index, name) in NAMES.iter().enumerate() {
        let image = fleet.shown(name).await;
        assert_eq!(image.state, CascadeImageState::Moved);
        assert_eq!(
            (image.before, Some(image.after)),
            (before[index].clone(), after[index].clone())
        );
        let recorded = fleet.recorded(name).await;
        assert_eq!(Some(recorded.0), after[index]);
    }
    assert_eq!(fleet.recorded("mid").await.1, [sha("new")]);
    fleet.rests_after(1).await;

    gate::rollback(&fleet.world.app, 1, "ann").await.unwrap();
    let over = fleet.show().await;
    assert_eq!(over.summary.promotion, CascadePromotion::RolledBack);
    assert_eq!(fleet.tags().await, before);
    for (index, name) in NAMES.iter().enumerate() {
        assert_eq!(fleet.shown(name).await.state, CascadeImageState::RolledBack);
        assert_eq!(Some(fleet.recorded(name).await.0), before[index]);
    }
    assert_eq!(fleet.recorded("mid").await.1, [sha("old")]);
    // It is stale again, and nothing builds it from the same digests a second time.
    fleet.rests_after(1).await;
    assert_eq!(fleet.tags().await, before);

    // Forward again, and the next base is built as ever.
    gate::promote(&fleet.world.app, 1, "ann").await.unwrap();
    assert_eq!(fleet.tags().await, after);
    fleet.rests_after(1).await;
    fleet.base_moves("newer").await;
    fleet.build("mid", true).await;
    fleet.build("app", true).await;
    gate::pass(&fleet.world.app).await.unwrap();
    let last = fleet.tags().await;
    assert!(last[0] != after[0] && last[1] != after[1]);
    fleet.rests_after(2).await;
}

async fn a_chosen_test_that_fails_holds_back_until_somebody_decides(
    place: Place,
    registry: String,
) {
    let settings =
        json!({"retries": 0, "promotion": {"tasks": "mid", "tests": ["app", "another/step"]}});
    let mut fleet = Fleet::new(place, &registry, settings).await;
    let before = fleet.tags().await;
    fleet.base_moves("new").await;
    fleet.build("mid", true).await;
    fleet.build("app", false).await;
    gate::pass(&fleet.world.app).await.unwrap();
    let held = fleet.show().await;
    assert_eq!(held.summary.phase, CascadePhase::Over);
    assert_eq!(held.summary.promotion, CascadePromotion::Held);
    let note = held.summary.promotion_note.unwrap();
    assert_eq!(note, "app failed: a step failed");
    assert_eq!(fleet.tags().await, before);
    gate::promote(&fleet.world.app, 1, "ann").await.unwrap();
    let after = fleet.tags().await;
    assert_ne!(after[0], before[0], "what there is has moved");
    assert_eq!(after[1], before[1]);
    assert_eq!(
        fleet.show().await.summary.promotion,
        CascadePromotion::Promoted
    );
    fleet.rests_after(1).await;
}

async fn a_chosen_test_that_passes_after_a_retry_lets_go(place: Place, registry: String) {
    let settings = json!({"retries": 0, "promotion": {"tasks": "", "tests": ["app"]}});
    let mut fleet = Fleet::new(place, &registry, settings).await;
    let before = fleet.tags().await;
    fleet.base_moves("new").await;
    fleet.build("mid", true).await;
    fleet.build("app", false).await;
    gate::pass(&fleet.world.app).await.unwrap();
    assert_eq!(fleet.tags().await, before);
    let retry = Event::Retry {
        cascade: CascadeId(1),
    };
    fleet.world.tell(retry).await.unwrap();
    fleet.begins().await;
    let held = fleet.shown("mid").await;
    let pins = fleet.build("app", true).await;
    assert_eq!(
        pins.get(&held.name),
        Some(&held.after),
        "it stands on what is held back"
    );
    assert_eq!(fleet.tags().await, before);
    gate::pass(&fleet.world.app).await.unwrap();
    assert_eq!(
        fleet.show().await.summary.promotion,
        CascadePromotion::Promoted
    );
    let after = fleet.tags().await;
    assert!(after[0] == Some(held.after) && after[1] != before[1]);
    fleet.rests_after(1).await;
}

async fn what_a_later_cascade_shows_lets_an_earlier_one_go(place: Place, registry: String) {
    let settings = json!({"retries": 0, "promotion": {"tasks": "", "tests": ["app"]}});
    let mut fleet = Fleet::new(place, &registry, settings).await;
    fleet.base_moves("new").await;
    fleet.build("mid", true).await;
    fleet.build("app", false).await;
    gate::pass(&fleet.world.app).await.unwrap();
    let before = fleet.tags().await;
    fleet.base_moves("newer").await;
    fleet.build("mid", true).await;
    fleet.build("app", true).await;
    assert_eq!(fleet.tags().await, before);
    gate::pass(&fleet.world.app).await.unwrap();
    for id in [1, 2] {
        let promotion = fleet.world.show(id).await.summary.promotion;
        assert_eq!(promotion, CascadePromotion::Promoted, "{id}");
    }
    let first = fleet.world.show(1).await.images.remove(0);
    let mid = fleet.shown("mid").await;
    assert_eq!(mid.before, Some(first.after), "the one after the other");
    assert_eq!(fleet.tags().await[0], Some(mid.after));
    fleet.rests_after(2).await;
}

/// Another base of the application.
const OTHER: &str = "r.io/other:1";

/// Cascade 1 holds the middle and the application back, because a test of the middle has failed. Cascade 2 builds the
/// application alone, because its other base has moved: no task of it is to be held back for its own sake.
async fn on_what_is_held(place: Place, registry: &str) -> Fleet {
    let settings =
        json!({"retries": 0, "parallel": 1, "promotion": {"tasks": "mid", "tests": ["test"]}});
    let mut fleet = Fleet::new(place, registry, settings).await;
    let mid = fleet.world.models["mid"].image.clone();
    fleet.world.task("test", &[&mid], json!({})).await;
    let image = mid.replace("/mid:", "/test:");
    fleet.world.models.get_mut("test").unwrap().image = image;
    let app = fleet.world.models.get_mut("app").unwrap();
    app.bases.push(OTHER.to_owned());
    fleet.world.registry.insert(OTHER.into(), sha("old"));
    for name in ["test", "app"] {
        fleet.world.by_hand(name).await;
        fleet.build(name, true).await;
    }
    fleet.base_moves("new").await;
    fleet.build("mid", true).await;
    fleet.build("app", true).await;
    fleet.build("test", false).await;
    gate::pass(&fleet.world.app).await.unwrap();
    assert_eq!(fleet.show().await.summary.promotion, CascadePromotion::Held);
    let held = fleet.shown("mid").await;
    // Whoever sets that nothing is held back from now on does not let go of what is.
    let none = serde_json::from_value(json!({"retries": 0, "parallel": 1})).unwrap();
    cascades::put_settings(&fleet.world.app, none)
        .await
        .unwrap();

    fleet.world.moves(OTHER, "new").await;
    fleet.begins().await;
    let pins = fleet.build("app", true).await;
    assert_eq!(pins[&held.name], held.after);
    assert_eq!(pins[OTHER], sha("new"));
    let detail = fleet.world.show(2).await;
    assert_eq!(detail.nodes.len(), 1, "{detail:?}");
    assert!(detail.summary.holds);
    fleet
}

async fn what_stands_on_held_images_is_held_until_these_have_tags(place: Place, registry: String) {
    let mut fleet = on_what_is_held(place, &registry).await;
    let before = fleet.tags().await;
    gate::pass(&fleet.world.app).await.unwrap();
    let waits = fleet.world.show(2).await.summary;
    assert_eq!(waits.promotion, CascadePromotion::Held);
    assert_eq!(
        waits.promotion_note.as_deref(),
        Some("it stands on images that cascade 1 holds back")
    );
    let refused = gate::promote(&fleet.world.app, 2, "ann").await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "cascade 2 cannot be promoted: it stands on images that cascade 1 holds back; `acrtask cascade promote 1` lets \
         these go first"
    );
    assert_eq!(fleet.tags().await, before);
    gate::promote(&fleet.world.app, 1, "ann").await.unwrap();
    gate::pass(&fleet.world.app).await.unwrap();
    let last = fleet.world.show(2).await;
    assert_eq!(last.summary.promotion, CascadePromotion::Promoted);
    let tags = fleet.tags().await;
    assert_ne!(tags[0], before[0]);
    assert_eq!(tags[1].as_ref(), Some(&last.images[0].after));
    fleet.rests_after(2).await;
}

async fn what_stands_on_held_images_is_given_up_with_them(place: Place, registry: String) {
    let mut fleet = on_what_is_held(place, &registry).await;
    let before = fleet.tags().await;
    gate::rollback(&fleet.world.app, 1, "ann").await.unwrap();
    let refused = gate::promote(&fleet.world.app, 2, "ann").await.unwrap_err();
    assert!(
        refused
            .to_string()
            .ends_with("of cascade 1, which was given up, and so is what stands on it"),
        "{refused}"
    );
    gate::pass(&fleet.world.app).await.unwrap();
    let last = fleet.world.show(2).await.summary;
    assert_eq!(last.promotion, CascadePromotion::Dropped);
    assert_eq!(fleet.tags().await, before);
    // Neither is built again from the same digests, and the next base builds all of it.
    fleet.rests_after(2).await;
    fleet.base_moves("newer").await;
    for name in ["mid", "app", "test"] {
        fleet.build(name, true).await;
    }
    let after = fleet.tags().await;
    assert!(after[0] != before[0] && after[1] != before[1]);
    fleet.rests_after(3).await;
}

async fn what_nobody_retries_is_given_up(place: Place, registry: String) {
    let settings =
        json!({"retries": 0, "healSecs": 0, "promotion": {"tasks": "", "tests": ["app"]}});
    let mut fleet = Fleet::new(place, &registry, settings).await;
    let before = fleet.tags().await;
    fleet.base_moves("new").await;
    fleet.build("mid", true).await;
    fleet.build("app", false).await;
    gate::pass(&fleet.world.app).await.unwrap();
    assert_eq!(fleet.show().await.summary.promotion, CascadePromotion::Held);
    fleet.world.wait(25 * 3600 * SECOND);
    fleet.settle().await;
    gate::pass(&fleet.world.app).await.unwrap();
    assert_eq!(
        fleet.show().await.summary.promotion,
        CascadePromotion::Dropped
    );
    let why = fleet.shown("mid").await.why;
    assert_eq!(why.as_deref(), Some("app failed: a step failed"));
    fleet.rests_after(1).await;
    assert_eq!(fleet.tags().await, before);
}

async fn what_is_canceled_is_given_up_and_not_built_again(place: Place, registry: String) {
    let mut fleet = Fleet::new(place, &registry, json!({"promotion": {"tasks": "app"}})).await;
    let before = fleet.tags().await;
    fleet.base_moves("new").await;
    fleet.build("mid", true).await;
    let cancel = Event::Cancel {
        cascade: CascadeId(1),
        by: "ann".into(),
    };
    fleet.world.tell(cancel).await.unwrap();
    fleet.settle().await;
    gate::pass(&fleet.world.app).await.unwrap();
    let over = fleet.show().await;
    assert_eq!(over.summary.promotion, CascadePromotion::Dropped);
    let image = fleet.shown("mid").await;
    assert_eq!(image.state, CascadeImageState::Dropped);
    assert_eq!(
        image.why.as_deref(),
        Some("its cascade was canceled by ann")
    );
    fleet.rests_after(1).await;
    assert_eq!(fleet.tags().await, before);
    assert_eq!(Some(fleet.recorded("mid").await.0), before[0]);
    let refused = gate::rollback(&fleet.world.app, 1, "ann")
        .await
        .unwrap_err();
    assert!(
        refused.to_string().contains("nothing to put back"),
        "{refused}"
    );
    let unknown = gate::rollback(&fleet.world.app, 7, "ann")
        .await
        .unwrap_err();
    assert!(matches!(unknown, CommandError::Unknown(7)));
}

async fn a_tag_that_cannot_move_keeps_no_other_and_is_tried_again(place: Place, registry: String) {
    let mut fleet = Fleet::new(place, &registry, json!({"promotion": {"tasks": "app"}})).await;
    let before = fleet.tags().await;
    fleet.base_moves("new").await;
    // The registry has not got what the first run says that it pushed.
    fleet.lose = true;
    fleet.build("mid", true).await;
    fleet.lose = false;
    fleet.build("app", true).await;
    let next = gate::pass(&fleet.world.app).await.unwrap();
    assert_eq!(next, Some(fleet.world.now() + 5 * SECOND));
    let part = fleet.show().await;
    assert_eq!(part.summary.promotion, CascadePromotion::Held);
    let note = part.summary.promotion_note.unwrap();
    assert!(
        note.starts_with("its tags are being moved, which has to be tried again: ")
            && note.contains("does not have it"),
        "{note}"
    );
    let tags = fleet.tags().await;
    assert_eq!(tags[0], before[0]);
    assert_ne!(tags[1], before[1]);
    let mid = fleet.shown("mid").await;
    assert_eq!(mid.state, CascadeImageState::Held);
    assert!(mid.why.unwrap().contains("does not have it"));
    // Not before its time.
    fleet.push_lost().await;
    gate::pass(&fleet.world.app).await.unwrap();
    assert_eq!(fleet.tags().await[0], before[0]);
    fleet.world.wait(5 * SECOND);
    assert_eq!(gate::pass(&fleet.world.app).await.unwrap(), None);
    assert_ne!(fleet.tags().await[0], before[0]);
    assert_eq!(fleet.shown("mid").await.why, None);
    assert_eq!(
        fleet.show().await.summary.promotion,
        CascadePromotion::Promoted
    );
}

async fn what_an_ordinary_cascade_moved_goes_back_too(place: Place, registry: String) {
    let mut fleet = Fleet::new(place, &registry, json!({})).await;
    let before = fleet.tags().await;
    fleet.base_moves("new").await;
    fleet.build("mid", true).await;
    let refused = gate::rollback(&fleet.world.app, 1, "ann")
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("still building"), "{refused}");
    fleet.build("app", true).await;
    let after = fleet.tags().await;
    assert!(after[0] != before[0] && after[1] != before[1]);
    let refused = gate::promote(&fleet.world.app, 1, "ann").await.unwrap_err();
    assert!(
        refused.to_string().contains("holds nothing back"),
        "{refused}"
    );
    // Of one image nobody knows what was there before, and the tag of the other has moved on.
    let foreign = fleet.foreign("app").await;
    gate::rollback(&fleet.world.app, 1, "ann").await.unwrap();
    let app = fleet.shown("app").await;
    assert_eq!(app.state, CascadeImageState::Moved);
    assert!(app.why.unwrap().contains("somebody else has pushed"));
    assert_eq!(
        fleet.shown("mid").await.state,
        CascadeImageState::RolledBack
    );
    let tags = fleet.tags().await;
    assert_eq!(tags, [before[0].clone(), Some(foreign)]);
    assert_eq!(
        fleet.show().await.summary.promotion,
        CascadePromotion::RolledBack
    );
    fleet.rests_after(1).await;
}

async fn something_newer_is_not_overwritten(place: Place, registry: String) {
    let settings = json!({"retries": 0, "promotion": {"tasks": "", "tests": ["app"]}});
    let mut fleet = Fleet::new(place, &registry, settings).await;
    fleet.base_moves("new").await;
    fleet.build("mid", true).await;
    fleet.build("app", false).await;
    gate::pass(&fleet.world.app).await.unwrap();
    // Somebody builds the image meanwhile, and that is not held back.
    fleet.world.wait(SECOND);
    fleet.salt = "by hand".into();
    fleet.world.by_hand("mid").await;
    fleet.build("mid", true).await;
    let own = fleet.tags().await[0].clone();
    gate::pass(&fleet.world.app).await.unwrap();
    let mid = fleet.shown("mid").await;
    assert_eq!(mid.state, CascadeImageState::Dropped);
    assert_eq!(
        mid.why.as_deref(),
        Some("something newer was pushed meanwhile")
    );
    assert_eq!(
        fleet.show().await.summary.promotion,
        CascadePromotion::Dropped
    );
    assert_eq!(fleet.tags().await[0], own);
}
