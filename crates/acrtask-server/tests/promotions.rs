//! Tests of promotion and rollback at a real registry, with a simulated clock.
//!
//! Each test runs on SQLite, and on PostgreSQL if `ACRTASK_TEST_POSTGRES` names a server.

#![allow(clippy::unwrap_used, reason = "a test")]
#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "skipped tests and failing seeds are printed"
)]

#[path = "promotions/killed_servers.rs"]
mod killed_servers;
#[path = "promotions/registry_fleet.rs"]
mod registry_fleet;
#[path = "queue/test_db.rs"]
#[allow(dead_code, reason = "only the tests of the queue use all of it")]
mod test_db;
#[path = "cascades/test_fleet.rs"]
#[allow(dead_code, reason = "only the tests of cascades use all of it")]
mod test_fleet;

use acrtask_api::cascade::{CascadeImageState, CascadePhase, CascadePromotion};
use acrtask_cascade::cascade::{CascadeId, Event};
use acrtask_server::cascades::{self, CommandError, promote};
use killed_servers::{
    cascade_is_promoted_by_one_server_at_a_time, last_command_wins_after_servers_are_killed,
    promotion_of_a_killed_server_is_finished_by_another, unrecorded_tag_move_is_rolled_back,
};
use registry_fleet::{NAMES, RegistryFleet};
use serde_json::json;
use test_db::TestDb;
use test_fleet::{SECOND, digest_of};

/// Creates one test per database from a function that takes a [`TestDb`] and a registry address.
macro_rules! on_both {
    ($($name:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                if let Some(registry) = crate::registry_fleet::registry_address() {
                    super::$name(crate::test_db::TestDb::sqlite(), registry).await;
                }
            })+
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                if let (Some(db), Some(registry)) = (crate::test_db::TestDb::postgres(), crate::registry_fleet::registry_address()) {
                    super::$name(db, registry).await;
                }
            })+
        }
    };
}

on_both!(
    all_tags_move_after_the_last_build_and_roll_back_on_request,
    failed_promotion_test_keeps_images_staged_until_promoted_manually,
    promotion_test_that_passes_on_retry_promotes,
    later_cascade_that_passes_promotes_the_earlier_one,
    dependents_of_staged_images_wait_for_their_promotion,
    dependents_of_staged_images_are_discarded_with_them,
    failed_cascade_without_a_retry_is_discarded,
    canceled_cascade_is_discarded_and_not_rebuilt,
    tag_that_cannot_move_is_retried_and_blocks_no_other,
    promotion_of_a_killed_server_is_finished_by_another,
    cascade_without_staging_can_be_rolled_back,
    newer_image_is_not_overwritten,
    cascade_is_promoted_by_one_server_at_a_time,
    unrecorded_tag_move_is_rolled_back,
    last_command_wins_after_servers_are_killed,
);

async fn all_tags_move_after_the_last_build_and_roll_back_on_request(db: TestDb, registry: String) {
    let mut fleet = RegistryFleet::new(db, &registry, json!({"promotion": {"tasks": "app"}})).await;
    let before = fleet.resolve_tags().await;
    fleet.move_base("new").await;
    fleet.build_task("mid", true).await;
    // No promotion is decided while the cascade still builds.
    promote::run_pass(&fleet.inner.app).await.unwrap();
    assert_eq!(
        fleet.newest_cascade().await.summary.promotion,
        CascadePromotion::Staged
    );
    let refused = promote::promote(&fleet.inner.app, 1, "ann")
        .await
        .unwrap_err();
    assert!(
        matches!(&refused, CommandError::Invalid(why) if why.contains("still building")),
        "{refused}"
    );
    fleet.build_task("app", true).await;
    assert_eq!(fleet.resolve_tags().await, before, "no tag has moved yet");

    promote::run_pass(&fleet.inner.app).await.unwrap();
    let finished = fleet.newest_cascade().await;
    assert_eq!(finished.summary.promotion, CascadePromotion::Promoted);
    assert_eq!(finished.summary.promotion_note, None);
    let after = fleet.resolve_tags().await;
    for (index, name) in NAMES.iter().enumerate() {
        let image = fleet.cascade_image(name).await;
        assert_eq!(image.state, CascadeImageState::Promoted);
        assert_eq!(
            (image.before, Some(image.after)),
            (before[index].clone(), after[index].clone())
        );
        let recorded = fleet.recorded_digests(name).await;
        assert_eq!(Some(recorded.0), after[index]);
    }
    assert_eq!(fleet.recorded_digests("mid").await.1, [digest_of("new")]);
    fleet.assert_idle_after(1).await;

    promote::rollback(&fleet.inner.app, 1, "ann").await.unwrap();
    let finished = fleet.newest_cascade().await;
    assert_eq!(finished.summary.promotion, CascadePromotion::RolledBack);
    assert_eq!(fleet.resolve_tags().await, before);
    for (index, name) in NAMES.iter().enumerate() {
        assert_eq!(
            fleet.cascade_image(name).await.state,
            CascadeImageState::RolledBack
        );
        assert_eq!(Some(fleet.recorded_digests(name).await.0), before[index]);
    }
    assert_eq!(fleet.recorded_digests("mid").await.1, [digest_of("old")]);
    // The images are stale again, but no task is built from the same digests a second time.
    fleet.assert_idle_after(1).await;
    assert_eq!(fleet.resolve_tags().await, before);

    // A second promotion sets the tags again. The next base digest starts a cascade as usual.
    promote::promote(&fleet.inner.app, 1, "ann").await.unwrap();
    assert_eq!(fleet.resolve_tags().await, after);
    fleet.assert_idle_after(1).await;
    fleet.move_base("newer").await;
    fleet.build_task("mid", true).await;
    fleet.build_task("app", true).await;
    promote::run_pass(&fleet.inner.app).await.unwrap();
    let last = fleet.resolve_tags().await;
    assert!(last[0] != after[0] && last[1] != after[1]);
    fleet.assert_idle_after(2).await;
}

async fn failed_promotion_test_keeps_images_staged_until_promoted_manually(
    db: TestDb,
    registry: String,
) {
    let settings =
        json!({"retries": 0, "promotion": {"tasks": "mid", "tests": ["app", "another/step"]}});
    let mut fleet = RegistryFleet::new(db, &registry, settings).await;
    let before = fleet.resolve_tags().await;
    fleet.move_base("new").await;
    fleet.build_task("mid", true).await;
    fleet.build_task("app", false).await;
    promote::run_pass(&fleet.inner.app).await.unwrap();
    let staged = fleet.newest_cascade().await;
    assert_eq!(staged.summary.phase, CascadePhase::Finished);
    assert_eq!(staged.summary.promotion, CascadePromotion::Staged);
    let note = staged.summary.promotion_note.unwrap();
    assert_eq!(note, "app failed: a step failed");
    assert_eq!(fleet.resolve_tags().await, before);
    promote::promote(&fleet.inner.app, 1, "ann").await.unwrap();
    let after = fleet.resolve_tags().await;
    assert_ne!(after[0], before[0], "the finished image has moved");
    assert_eq!(after[1], before[1]);
    assert_eq!(
        fleet.newest_cascade().await.summary.promotion,
        CascadePromotion::Promoted
    );
    fleet.assert_idle_after(1).await;
}

async fn promotion_test_that_passes_on_retry_promotes(db: TestDb, registry: String) {
    let settings = json!({"retries": 0, "promotion": {"tasks": "", "tests": ["app"]}});
    let mut fleet = RegistryFleet::new(db, &registry, settings).await;
    let before = fleet.resolve_tags().await;
    fleet.move_base("new").await;
    fleet.build_task("mid", true).await;
    fleet.build_task("app", false).await;
    promote::run_pass(&fleet.inner.app).await.unwrap();
    assert_eq!(fleet.resolve_tags().await, before);
    let retry = Event::Retry {
        cascade: CascadeId(1),
    };
    fleet.inner.apply_command(retry).await.unwrap();
    fleet.start_cascade().await;
    let staged = fleet.cascade_image("mid").await;
    let pins = fleet.build_task("app", true).await;
    assert_eq!(
        pins.get(&staged.name),
        Some(&staged.after),
        "it is pinned to the staged image"
    );
    assert_eq!(fleet.resolve_tags().await, before);
    promote::run_pass(&fleet.inner.app).await.unwrap();
    assert_eq!(
        fleet.newest_cascade().await.summary.promotion,
        CascadePromotion::Promoted
    );
    let after = fleet.resolve_tags().await;
    assert!(after[0] == Some(staged.after) && after[1] != before[1]);
    fleet.assert_idle_after(1).await;
}

async fn later_cascade_that_passes_promotes_the_earlier_one(db: TestDb, registry: String) {
    let settings = json!({"retries": 0, "promotion": {"tasks": "", "tests": ["app"]}});
    let mut fleet = RegistryFleet::new(db, &registry, settings).await;
    fleet.move_base("new").await;
    fleet.build_task("mid", true).await;
    fleet.build_task("app", false).await;
    promote::run_pass(&fleet.inner.app).await.unwrap();
    let before = fleet.resolve_tags().await;
    fleet.move_base("newer").await;
    fleet.build_task("mid", true).await;
    fleet.build_task("app", true).await;
    assert_eq!(fleet.resolve_tags().await, before);
    promote::run_pass(&fleet.inner.app).await.unwrap();
    for id in [1, 2] {
        let promotion = fleet.inner.cascade(id).await.summary.promotion;
        assert_eq!(promotion, CascadePromotion::Promoted, "{id}");
    }
    let first = fleet.inner.cascade(1).await.images.remove(0);
    let mid = fleet.cascade_image("mid").await;
    assert_eq!(mid.before, Some(first.after), "promoted in order");
    assert_eq!(fleet.resolve_tags().await[0], Some(mid.after));
    fleet.assert_idle_after(2).await;
}

/// The second base of the task `app`.
const OTHER: &str = "r.io/other:1";

/// Creates two cascades. Cascade 1 stages `mid` and `app`, because the task `test` failed.
/// Cascade 2 builds only `app`, because its other base has moved. No setting stages the
/// tasks of cascade 2.
async fn cascade_on_staged_images(db: TestDb, registry: &str) -> RegistryFleet {
    let settings =
        json!({"retries": 0, "parallel": 1, "promotion": {"tasks": "mid", "tests": ["test"]}});
    let mut fleet = RegistryFleet::new(db, registry, settings).await;
    let mid = fleet.inner.tasks["mid"].image.clone();
    fleet.inner.create_task("test", &[&mid], json!({})).await;
    let image = mid.replace("/mid:", "/test:");
    fleet.inner.tasks.get_mut("test").unwrap().image = image;
    let app = fleet.inner.tasks.get_mut("app").unwrap();
    app.bases.push(OTHER.to_owned());
    fleet.inner.registry.insert(OTHER.into(), digest_of("old"));
    for name in ["test", "app"] {
        fleet.inner.enqueue_run(name).await;
        fleet.build_task(name, true).await;
    }
    fleet.move_base("new").await;
    fleet.build_task("mid", true).await;
    fleet.build_task("app", true).await;
    fleet.build_task("test", false).await;
    promote::run_pass(&fleet.inner.app).await.unwrap();
    assert_eq!(
        fleet.newest_cascade().await.summary.promotion,
        CascadePromotion::Staged
    );
    let staged = fleet.cascade_image("mid").await;
    // Removing the promotion setting does not promote images that are already staged.
    let none = serde_json::from_value(json!({"retries": 0, "parallel": 1})).unwrap();
    cascades::put_settings(&fleet.inner.app, none)
        .await
        .unwrap();

    fleet.inner.move_base(OTHER, "new").await;
    fleet.start_cascade().await;
    let pins = fleet.build_task("app", true).await;
    assert_eq!(pins[&staged.name], staged.after);
    assert_eq!(pins[OTHER], digest_of("new"));
    let detail = fleet.inner.cascade(2).await;
    assert_eq!(detail.nodes.len(), 1, "{detail:?}");
    assert!(detail.summary.stages_images);
    fleet
}

async fn dependents_of_staged_images_wait_for_their_promotion(db: TestDb, registry: String) {
    let mut fleet = cascade_on_staged_images(db, &registry).await;
    let before = fleet.resolve_tags().await;
    promote::run_pass(&fleet.inner.app).await.unwrap();
    let waits = fleet.inner.cascade(2).await.summary;
    assert_eq!(waits.promotion, CascadePromotion::Staged);
    assert_eq!(
        waits.promotion_note.as_deref(),
        Some("it depends on staged images of cascade 1")
    );
    let refused = promote::promote(&fleet.inner.app, 2, "ann")
        .await
        .unwrap_err();
    assert_eq!(
        refused.to_string(),
        "cascade 2 cannot be promoted: it depends on staged images of cascade 1; promote that one first: \
         `acrtask cascade promote 1`"
    );
    assert_eq!(fleet.resolve_tags().await, before);
    promote::promote(&fleet.inner.app, 1, "ann").await.unwrap();
    promote::run_pass(&fleet.inner.app).await.unwrap();
    let last = fleet.inner.cascade(2).await;
    assert_eq!(last.summary.promotion, CascadePromotion::Promoted);
    let tags = fleet.resolve_tags().await;
    assert_ne!(tags[0], before[0]);
    assert_eq!(tags[1].as_ref(), Some(&last.images[0].after));
    fleet.assert_idle_after(2).await;
}

async fn dependents_of_staged_images_are_discarded_with_them(db: TestDb, registry: String) {
    let mut fleet = cascade_on_staged_images(db, &registry).await;
    let before = fleet.resolve_tags().await;
    promote::rollback(&fleet.inner.app, 1, "ann").await.unwrap();
    let refused = promote::promote(&fleet.inner.app, 2, "ann")
        .await
        .unwrap_err();
    assert!(
        refused
            .to_string()
            .ends_with("of cascade 1, which was discarded together with its dependents"),
        "{refused}"
    );
    promote::run_pass(&fleet.inner.app).await.unwrap();
    let last = fleet.inner.cascade(2).await.summary;
    assert_eq!(last.promotion, CascadePromotion::Discarded);
    assert_eq!(fleet.resolve_tags().await, before);
    // Neither cascade is built again from the same digests. The next base digest rebuilds all
    // tasks.
    fleet.assert_idle_after(2).await;
    fleet.move_base("newer").await;
    for name in ["mid", "app", "test"] {
        fleet.build_task(name, true).await;
    }
    let after = fleet.resolve_tags().await;
    assert!(after[0] != before[0] && after[1] != before[1]);
    fleet.assert_idle_after(3).await;
}

async fn failed_cascade_without_a_retry_is_discarded(db: TestDb, registry: String) {
    let settings = json!({"retries": 0, "retryFailedAfterSecs": 0, "promotion": {"tasks": "", "tests": ["app"]}});
    let mut fleet = RegistryFleet::new(db, &registry, settings).await;
    let before = fleet.resolve_tags().await;
    fleet.move_base("new").await;
    fleet.build_task("mid", true).await;
    fleet.build_task("app", false).await;
    promote::run_pass(&fleet.inner.app).await.unwrap();
    assert_eq!(
        fleet.newest_cascade().await.summary.promotion,
        CascadePromotion::Staged
    );
    fleet.inner.advance_clock(25 * 3600 * SECOND);
    fleet.poll_and_run_pass().await;
    promote::run_pass(&fleet.inner.app).await.unwrap();
    assert_eq!(
        fleet.newest_cascade().await.summary.promotion,
        CascadePromotion::Discarded
    );
    let why = fleet.cascade_image("mid").await.reason;
    assert_eq!(why.as_deref(), Some("app failed: a step failed"));
    fleet.assert_idle_after(1).await;
    assert_eq!(fleet.resolve_tags().await, before);
}

async fn canceled_cascade_is_discarded_and_not_rebuilt(db: TestDb, registry: String) {
    let mut fleet = RegistryFleet::new(db, &registry, json!({"promotion": {"tasks": "app"}})).await;
    let before = fleet.resolve_tags().await;
    fleet.move_base("new").await;
    fleet.build_task("mid", true).await;
    let cancel = Event::Cancel {
        cascade: CascadeId(1),
        by: "ann".into(),
    };
    fleet.inner.apply_command(cancel).await.unwrap();
    fleet.poll_and_run_pass().await;
    promote::run_pass(&fleet.inner.app).await.unwrap();
    let finished = fleet.newest_cascade().await;
    assert_eq!(finished.summary.promotion, CascadePromotion::Discarded);
    let image = fleet.cascade_image("mid").await;
    assert_eq!(image.state, CascadeImageState::Discarded);
    assert_eq!(
        image.reason.as_deref(),
        Some("its cascade was canceled by ann")
    );
    fleet.assert_idle_after(1).await;
    assert_eq!(fleet.resolve_tags().await, before);
    assert_eq!(Some(fleet.recorded_digests("mid").await.0), before[0]);
    let refused = promote::rollback(&fleet.inner.app, 1, "ann")
        .await
        .unwrap_err();
    assert!(
        refused.to_string().contains("nothing to roll back"),
        "{refused}"
    );
    let unknown = promote::rollback(&fleet.inner.app, 7, "ann")
        .await
        .unwrap_err();
    assert!(matches!(unknown, CommandError::Unknown(7)));
}

async fn tag_that_cannot_move_is_retried_and_blocks_no_other(db: TestDb, registry: String) {
    let mut fleet = RegistryFleet::new(db, &registry, json!({"promotion": {"tasks": "app"}})).await;
    let before = fleet.resolve_tags().await;
    fleet.move_base("new").await;
    // The registry does not receive the image that the first run reports as pushed.
    fleet.loses_pushes = true;
    fleet.build_task("mid", true).await;
    fleet.loses_pushes = false;
    fleet.build_task("app", true).await;
    let next = promote::run_pass(&fleet.inner.app).await.unwrap();
    assert_eq!(next, Some(fleet.inner.now() + 5 * SECOND));
    let partial = fleet.newest_cascade().await;
    assert_eq!(partial.summary.promotion, CascadePromotion::Staged);
    let note = partial.summary.promotion_note.unwrap();
    assert!(
        note.starts_with("moving its tags; retrying after an error: ")
            && note.contains("does not have it"),
        "{note}"
    );
    let tags = fleet.resolve_tags().await;
    assert_eq!(tags[0], before[0]);
    assert_ne!(tags[1], before[1]);
    let mid = fleet.cascade_image("mid").await;
    assert_eq!(mid.state, CascadeImageState::Staged);
    assert!(mid.reason.unwrap().contains("does not have it"));
    // The retry waits for its backoff of 5 seconds.
    fleet.push_lost_images().await;
    promote::run_pass(&fleet.inner.app).await.unwrap();
    assert_eq!(fleet.resolve_tags().await[0], before[0]);
    fleet.inner.advance_clock(5 * SECOND);
    assert_eq!(promote::run_pass(&fleet.inner.app).await.unwrap(), None);
    assert_ne!(fleet.resolve_tags().await[0], before[0]);
    assert_eq!(fleet.cascade_image("mid").await.reason, None);
    assert_eq!(
        fleet.newest_cascade().await.summary.promotion,
        CascadePromotion::Promoted
    );
}

async fn cascade_without_staging_can_be_rolled_back(db: TestDb, registry: String) {
    let mut fleet = RegistryFleet::new(db, &registry, json!({})).await;
    let before = fleet.resolve_tags().await;
    fleet.move_base("new").await;
    fleet.build_task("mid", true).await;
    let refused = promote::rollback(&fleet.inner.app, 1, "ann")
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("still building"), "{refused}");
    fleet.build_task("app", true).await;
    let after = fleet.resolve_tags().await;
    assert!(after[0] != before[0] && after[1] != before[1]);
    let refused = promote::promote(&fleet.inner.app, 1, "ann")
        .await
        .unwrap_err();
    assert!(
        refused.to_string().contains("has staged no images"),
        "{refused}"
    );
    // Another push moves the tag of `app` before the rollback.
    let foreign = fleet.push_foreign_image("app").await;
    promote::rollback(&fleet.inner.app, 1, "ann").await.unwrap();
    let app = fleet.cascade_image("app").await;
    assert_eq!(app.state, CascadeImageState::Promoted);
    assert!(app.reason.unwrap().contains("from another push"));
    assert_eq!(
        fleet.cascade_image("mid").await.state,
        CascadeImageState::RolledBack
    );
    let tags = fleet.resolve_tags().await;
    assert_eq!(tags, [before[0].clone(), Some(foreign)]);
    assert_eq!(
        fleet.newest_cascade().await.summary.promotion,
        CascadePromotion::RolledBack
    );
    fleet.assert_idle_after(1).await;
}

async fn newer_image_is_not_overwritten(db: TestDb, registry: String) {
    let settings = json!({"retries": 0, "promotion": {"tasks": "", "tests": ["app"]}});
    let mut fleet = RegistryFleet::new(db, &registry, settings).await;
    fleet.move_base("new").await;
    fleet.build_task("mid", true).await;
    fleet.build_task("app", false).await;
    promote::run_pass(&fleet.inner.app).await.unwrap();
    // A manual run builds the image in the meantime, without staging it.
    fleet.inner.advance_clock(SECOND);
    fleet.salt = "by hand".into();
    fleet.inner.enqueue_run("mid").await;
    fleet.build_task("mid", true).await;
    let own = fleet.resolve_tags().await[0].clone();
    promote::run_pass(&fleet.inner.app).await.unwrap();
    let mid = fleet.cascade_image("mid").await;
    assert_eq!(mid.state, CascadeImageState::Discarded);
    assert_eq!(
        mid.reason.as_deref(),
        Some("a newer image was pushed in the meantime")
    );
    assert_eq!(
        fleet.newest_cascade().await.summary.promotion,
        CascadePromotion::Discarded
    );
    assert_eq!(fleet.resolve_tags().await[0], own);
}
