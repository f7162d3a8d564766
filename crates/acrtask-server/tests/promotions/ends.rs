//! Servers that end anywhere, and several that work on one cascade.

use std::time::Duration;

use acrtask_api::cascade::{CascadeImageState, CascadePromotion};
use acrtask_server::cascades::{self, promote as gate};

use crate::{
    place::Place,
    tags::{Fleet, NAMES},
    world::SECOND,
};

pub(crate) async fn a_server_that_ends_anywhere_leaves_what_another_can_finish(
    place: Place,
    registry: String,
) {
    let (mut fleet, before) = Fleet::holding(place, &registry).await;
    let kill_until = async |fleet: &mut Fleet, done: CascadePromotion| {
        for round in 0_u64.. {
            assert!(round < 300, "it does not come to an end");
            // Ends in the middle of whatever it does.
            let life = Duration::from_micros(rand::random_range(0..15_000) + round * round * 100);
            let _ = tokio::time::timeout(life, gate::pass(&fleet.world.app)).await;
            fleet.world.restart().await;
            if fleet.show().await.summary.promotion == done {
                return;
            }
            // The time that the one that has ended had.
            fleet.world.wait(61 * SECOND);
        }
    };
    kill_until(&mut fleet, CascadePromotion::Promoted).await;
    let after = fleet.tags().await;
    for (index, name) in NAMES.iter().enumerate() {
        let image = fleet.shown(name).await;
        assert_eq!(image.state, CascadeImageState::Moved, "{name}");
        assert_eq!(image.before, before[index], "{name}");
        assert_eq!(Some(image.after), after[index], "{name}");
        assert_eq!(Some(fleet.recorded(name).await.0), after[index], "{name}");
    }
    // What somebody asks for may be cut off as well.
    let life = Duration::from_micros(rand::random_range(0..5_000));
    let _ = tokio::time::timeout(life, gate::rollback(&fleet.world.app, 1, "ann")).await;
    fleet.world.restart().await;
    fleet.world.wait(61 * SECOND);
    if fleet.show().await.summary.promotion != CascadePromotion::RolledBack {
        gate::rollback(&fleet.world.app, 1, "ann").await.unwrap();
        kill_until(&mut fleet, CascadePromotion::RolledBack).await;
    }
    assert_eq!(fleet.tags().await, before);
    for (index, name) in NAMES.iter().enumerate() {
        assert_eq!(Some(fleet.recorded(name).await.0), before[index], "{name}");
    }
    fleet.rests_after(1).await;
}

pub(crate) async fn one_server_works_on_a_cascade(place: Place, registry: String) {
    let (fleet, before) = Fleet::holding(place, &registry).await;
    let others = [fleet.world.server().await, fleet.world.server().await];
    let (a, b, c) = tokio::join!(
        gate::pass(&fleet.world.app),
        gate::pass(&others[0]),
        gate::pass(&others[1])
    );
    for one in [a, b, c] {
        one.unwrap();
    }
    let over = fleet.show().await;
    assert_eq!(over.summary.promotion, CascadePromotion::Promoted);
    for (index, name) in NAMES.iter().enumerate() {
        assert_eq!(fleet.shown(name).await.before, before[index]);
    }
    // One goes forward while another goes back: what was said last is what comes of it.
    gate::rollback(&others[0], 1, "ann").await.unwrap();
    let (a, b) = tokio::join!(
        gate::promote(&fleet.world.app, 1, "ann"),
        gate::rollback(&others[1], 1, "bob")
    );
    let _ = (a, b);
    for _ in 0..3 {
        fleet.world.wait(61 * SECOND);
        others[0].clock.set(fleet.world.now());
        gate::pass(&fleet.world.app).await.unwrap();
        gate::pass(&others[0]).await.unwrap();
    }
    let tags = fleet.tags().await;
    let said = cascades::show(&fleet.world.app, 1).await.unwrap();
    match said.summary.promotion {
        CascadePromotion::RolledBack => assert_eq!(tags, before),
        CascadePromotion::Promoted => assert!(tags[0] != before[0] && tags[1] != before[1]),
        other => panic!("{other:?}: {:?}", said.summary.promotion_note),
    }
}

pub(crate) async fn a_tag_that_was_on_its_way_goes_back(place: Place, registry: String) {
    let (mut fleet, before) = Fleet::holding(place, &registry).await;
    // A server moves one tag, and ends before it has written that down.
    let (image, now) = (fleet.shown("app").await, fleet.world.now());
    let (store, until) = (&fleet.world.app.store, now + 60 * SECOND);
    let from = ["none", "held"];
    let set = store
        .decide_promotion(1, &from, "promoted", None, now)
        .await;
    assert!(set.unwrap());
    let claimed = store.claim_promotion(1, "promoted", until, now).await;
    assert!(claimed.unwrap());
    let was = Some(before[1].as_ref());
    let will = store
        .will_move(1, &image.name, &image.after, was, until)
        .await;
    assert!(will.unwrap());
    fleet.put("app", &image.after).await;
    fleet.world.restart().await;
    gate::rollback(&fleet.world.app, 1, "ann").await.unwrap();
    fleet.world.wait(61 * SECOND);
    gate::pass(&fleet.world.app).await.unwrap();
    assert_eq!(fleet.tags().await, before);
    let over = fleet.show().await;
    assert_eq!(over.summary.promotion, CascadePromotion::RolledBack);
    let states = [CascadeImageState::Dropped, CascadeImageState::RolledBack];
    for (name, state) in NAMES.iter().zip(states) {
        assert_eq!(fleet.shown(name).await.state, state, "{name}");
    }
}

pub(crate) async fn what_was_said_last_holds_wherever_a_server_has_ended(
    place: Place,
    registry: String,
) {
    let (mut fleet, before) = Fleet::holding(place, &registry).await;
    let life = || Duration::from_micros(rand::random_range(0..25_000));
    for _ in 0..12 {
        let _ = tokio::time::timeout(life(), gate::promote(&fleet.world.app, 1, "ann")).await;
        fleet.world.restart().await;
        if rand::random() {
            fleet.world.wait(61 * SECOND);
            let _ = tokio::time::timeout(life(), gate::rollback(&fleet.world.app, 1, "ann")).await;
            fleet.world.restart().await;
        }
        // What the one that has ended had sent may still arrive.
        while let Err(refused) = gate::rollback(&fleet.world.app, 1, "bob").await {
            if refused.to_string().contains("nothing to put back") {
                break;
            }
            assert!(refused.to_string().contains("just now"), "{refused}");
        }
        for _ in 0..3 {
            fleet.world.wait(61 * SECOND);
            gate::pass(&fleet.world.app).await.unwrap();
        }
        assert_eq!(fleet.tags().await, before);
        for name in NAMES {
            let image = fleet.shown(name).await;
            assert_ne!(image.state, CascadeImageState::Moved, "{name}");
        }
    }
    gate::promote(&fleet.world.app, 1, "ann").await.unwrap();
    let after = fleet.tags().await;
    for (index, name) in NAMES.iter().enumerate() {
        let image = fleet.shown(name).await;
        assert_eq!(image.state, CascadeImageState::Moved, "{name}");
        assert_eq!(Some(image.after), after[index], "{name}");
    }
}
