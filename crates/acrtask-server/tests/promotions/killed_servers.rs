//! Promotions with servers that are killed at any time, and with several servers for one cascade.

use std::time::Duration;

use acrtask_api::cascade::{CascadeImageState, CascadePromotion};
use acrtask_server::cascades::{self, promote};

use crate::{
    registry_fleet::{NAMES, RegistryFleet},
    test_db::TestDb,
    test_fleet::SECOND,
};

pub(crate) async fn promotion_of_a_killed_server_is_finished_by_another(
    db: TestDb,
    registry: String,
) {
    let (mut fleet, before) = RegistryFleet::with_staged_images(db, &registry).await;
    let kill_until = async |fleet: &mut RegistryFleet, done: CascadePromotion| {
        for round in 0_u64.. {
            assert!(round < 300, "the promotion does not finish");
            // Drops the pass at a random time.
            let lifetime =
                Duration::from_micros(rand::random_range(0..15_000) + round * round * 100);
            let _ = tokio::time::timeout(lifetime, promote::run_pass(&fleet.inner.app)).await;
            fleet.inner.restart_server().await;
            if fleet.newest_cascade().await.summary.promotion == done {
                return;
            }
            // The lease of the killed server expires after a minute.
            fleet.inner.advance_clock(61 * SECOND);
        }
    };
    kill_until(&mut fleet, CascadePromotion::Promoted).await;
    let after = fleet.resolve_tags().await;
    for (index, name) in NAMES.iter().enumerate() {
        let image = fleet.cascade_image(name).await;
        assert_eq!(image.state, CascadeImageState::Promoted, "{name}");
        assert_eq!(image.before, before[index], "{name}");
        assert_eq!(Some(image.after), after[index], "{name}");
        assert_eq!(
            Some(fleet.recorded_digests(name).await.0),
            after[index],
            "{name}"
        );
    }
    // A rollback command can be interrupted as well.
    let lifetime = Duration::from_micros(rand::random_range(0..5_000));
    let _ = tokio::time::timeout(lifetime, promote::rollback(&fleet.inner.app, 1, "ann")).await;
    fleet.inner.restart_server().await;
    fleet.inner.advance_clock(61 * SECOND);
    if fleet.newest_cascade().await.summary.promotion != CascadePromotion::RolledBack {
        promote::rollback(&fleet.inner.app, 1, "ann").await.unwrap();
        kill_until(&mut fleet, CascadePromotion::RolledBack).await;
    }
    assert_eq!(fleet.resolve_tags().await, before);
    for (index, name) in NAMES.iter().enumerate() {
        assert_eq!(
            Some(fleet.recorded_digests(name).await.0),
            before[index],
            "{name}"
        );
    }
    fleet.assert_idle_after(1).await;
}

pub(crate) async fn cascade_is_promoted_by_one_server_at_a_time(db: TestDb, registry: String) {
    let (fleet, before) = RegistryFleet::with_staged_images(db, &registry).await;
    let others = [fleet.inner.open_app().await, fleet.inner.open_app().await];
    let (a, b, c) = tokio::join!(
        promote::run_pass(&fleet.inner.app),
        promote::run_pass(&others[0]),
        promote::run_pass(&others[1])
    );
    for one in [a, b, c] {
        one.unwrap();
    }
    let finished = fleet.newest_cascade().await;
    assert_eq!(finished.summary.promotion, CascadePromotion::Promoted);
    for (index, name) in NAMES.iter().enumerate() {
        assert_eq!(fleet.cascade_image(name).await.before, before[index]);
    }
    // One server promotes while another rolls back. The last command wins.
    promote::rollback(&others[0], 1, "ann").await.unwrap();
    let (a, b) = tokio::join!(
        promote::promote(&fleet.inner.app, 1, "ann"),
        promote::rollback(&others[1], 1, "bob")
    );
    let _ = (a, b);
    for _ in 0..3 {
        fleet.inner.advance_clock(61 * SECOND);
        others[0].clock.set(fleet.inner.now());
        promote::run_pass(&fleet.inner.app).await.unwrap();
        promote::run_pass(&others[0]).await.unwrap();
    }
    let tags = fleet.resolve_tags().await;
    let cascade = cascades::show(&fleet.inner.app, 1).await.unwrap();
    match cascade.summary.promotion {
        CascadePromotion::RolledBack => assert_eq!(tags, before),
        CascadePromotion::Promoted => assert!(tags[0] != before[0] && tags[1] != before[1]),
        other => panic!("{other:?}: {:?}", cascade.summary.promotion_note),
    }
}

pub(crate) async fn unrecorded_tag_move_is_rolled_back(db: TestDb, registry: String) {
    let (mut fleet, before) = RegistryFleet::with_staged_images(db, &registry).await;
    // A server moves one tag and is killed before it records the move.
    let (image, now) = (fleet.cascade_image("app").await, fleet.inner.now());
    let (store, until) = (&fleet.inner.app.store, now + 60 * SECOND);
    let from = ["none", "staged"];
    let set = store
        .decide_promotion(1, &from, "promoted", None, now)
        .await;
    assert!(set.unwrap());
    let claimed = store.claim_promotion(1, "promoted", until, now).await;
    assert!(claimed.unwrap());
    let previous = Some(before[1].as_ref());
    let stored = store
        .store_previous_digest(1, &image.name, &image.after, previous, until)
        .await;
    assert!(stored.unwrap());
    fleet.move_tag("app", &image.after).await;
    fleet.inner.restart_server().await;
    promote::rollback(&fleet.inner.app, 1, "ann").await.unwrap();
    fleet.inner.advance_clock(61 * SECOND);
    promote::run_pass(&fleet.inner.app).await.unwrap();
    assert_eq!(fleet.resolve_tags().await, before);
    let finished = fleet.newest_cascade().await;
    assert_eq!(finished.summary.promotion, CascadePromotion::RolledBack);
    let states = [CascadeImageState::Discarded, CascadeImageState::RolledBack];
    for (name, state) in NAMES.iter().zip(states) {
        assert_eq!(fleet.cascade_image(name).await.state, state, "{name}");
    }
}

pub(crate) async fn last_command_wins_after_servers_are_killed(db: TestDb, registry: String) {
    let (mut fleet, before) = RegistryFleet::with_staged_images(db, &registry).await;
    let lifetime = || Duration::from_micros(rand::random_range(0..25_000));
    for _ in 0..12 {
        let _ =
            tokio::time::timeout(lifetime(), promote::promote(&fleet.inner.app, 1, "ann")).await;
        fleet.inner.restart_server().await;
        if rand::random() {
            fleet.inner.advance_clock(61 * SECOND);
            let _ = tokio::time::timeout(lifetime(), promote::rollback(&fleet.inner.app, 1, "ann"))
                .await;
            fleet.inner.restart_server().await;
        }
        // Requests of the killed server can still arrive.
        while let Err(refused) = promote::rollback(&fleet.inner.app, 1, "bob").await {
            if refused.to_string().contains("nothing to roll back") {
                break;
            }
            assert!(
                refused.to_string().contains("has just changed"),
                "{refused}"
            );
        }
        for _ in 0..3 {
            fleet.inner.advance_clock(61 * SECOND);
            promote::run_pass(&fleet.inner.app).await.unwrap();
        }
        assert_eq!(fleet.resolve_tags().await, before);
        for name in NAMES {
            let image = fleet.cascade_image(name).await;
            assert_ne!(image.state, CascadeImageState::Promoted, "{name}");
        }
    }
    promote::promote(&fleet.inner.app, 1, "ann").await.unwrap();
    let after = fleet.resolve_tags().await;
    for (index, name) in NAMES.iter().enumerate() {
        let image = fleet.cascade_image(name).await;
        assert_eq!(image.state, CascadeImageState::Promoted, "{name}");
        assert_eq!(Some(image.after), after[index], "{name}");
    }
}
