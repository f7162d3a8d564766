//! Cascades under a clock that the tests set: order and pins, failures, bases that move on, people who intervene, servers
//! that are killed between any two steps, and several of them. Each test runs on SQLite, and on PostgreSQL where
//! `ACRTASK_TEST_POSTGRES` names one.

#![allow(clippy::unwrap_used, reason = "a test")]
#![allow(
    clippy::print_stdout,
    reason = "a test that fails says from which seed"
)]

#[path = "cascades/groups.rs"]
mod groups;
#[path = "queue/place.rs"]
#[allow(dead_code, reason = "the tests of the queue use all of it")]
mod place;
#[path = "cascades/storm.rs"]
mod storm;
#[path = "cascades/world.rs"]
mod world;

use std::{collections::BTreeMap, time::Instant};

use acrtask_api::cascade::{CascadeNodeState, CascadePhase};
use acrtask_cascade::cascade::{CascadeId, Event};
use acrtask_server::cascades::{self, CommandError};
use place::Place;
use serde_json::{Value, json};
use world::{SECOND, World, sha};

/// Runs the same test on both databases.
macro_rules! on_both {
    ($($name:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(crate::place::Place::sqlite()).await;
            })+
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                if let Some(place) = crate::place::Place::postgres() {
                    super::$name(place).await;
                }
            })+
        }
    };
}
pub(crate) use on_both;

on_both!(
    a_diamond_is_built_once_in_order_on_the_same_digests,
    a_failure_stops_what_is_below_and_nothing_else,
    a_base_that_moves_on_is_joined_and_followed,
    a_person_cancels_pauses_and_approves,
    a_task_that_cannot_run_fails_with_the_reason,
    what_was_tried_of_a_task_goes_with_the_task,
    what_is_held_back_is_stood_on_and_moves_no_tag,
    a_push_of_our_own_is_not_undone_by_an_old_look,
    a_cascade_that_is_kept_for_people_is_retried_by_another,
    two_servers_do_it_once,
    a_large_fleet_is_looked_at_in_a_few_statements,
    a_server_wakes_for_what_it_waits_for,
);

pub(crate) const BASE: &str = "r.io/base:1";

/// base -> left, right -> bottom; all built once from `old`.
pub(crate) async fn diamond(place: Place, settings: Value) -> World {
    let mut world = World::new(place, settings).await;
    world.registry.insert(BASE.into(), sha("old"));
    world.built("left", &[BASE]).await;
    world.built("right", &[BASE]).await;
    world
        .built("bottom", &["r.io/left:1", "r.io/right:1"])
        .await;
    world.moves(BASE, "old").await;
    world.compare().await;
    assert_eq!(cascades::list(&world.app, all()).await.unwrap(), []);
    world
}

fn all() -> cascades::ListFilter {
    cascades::ListFilter {
        limit: 100,
        ..cascades::ListFilter::default()
    }
}

pub(crate) fn each(count: usize, names: &[&str]) -> BTreeMap<String, usize> {
    names
        .iter()
        .map(|name| ((*name).to_owned(), count))
        .collect()
}

async fn a_diamond_is_built_once_in_order_on_the_same_digests(place: Place) {
    let mut world = diamond(place, json!({})).await;
    let old = world.registry.clone();
    world.moves(BASE, "new").await;
    world.compare().await;
    assert_eq!(world.take_runs().await, [""; 0], "it settles");
    let settling = world.show(1).await;
    assert_eq!(settling.summary.phase, CascadePhase::Settling);
    assert_eq!(
        settling.summary.changes,
        [(BASE.to_owned(), sha("new"))].into()
    );
    world.wait(29 * SECOND);
    world.tick().await;
    assert_eq!(world.take_runs().await, [""; 0]);
    world.wait(SECOND);
    world.tick().await;
    assert_eq!(world.take_runs().await, ["left", "right"]);
    world.compare().await;
    let run = world.held[0].clone();
    assert_eq!(run.spec.pins, [(BASE.to_owned(), sha("new"))].into());
    assert_eq!(run.spec.facts.triggered_by, "Image Update");
    assert_eq!(run.queue.priority, -5);
    world.end(0, true).await;
    world.tick().await;
    assert_eq!(world.take_runs().await, [""; 0], "every side is waited for");
    world.end_all(|_| true).await;
    world.tick().await;
    assert_eq!(world.take_runs().await, ["bottom"]);
    let pins = world.held[0].spec.pins.clone();
    assert_eq!(pins["r.io/left:1"], world.registry["r.io/left:1"]);
    assert_eq!(pins["r.io/right:1"], world.registry["r.io/right:1"]);
    // Why it runs is written down as it was at its start: every base with its old digest and its new one.
    let id = world.held[0].id.clone();
    let ids = [id.clone(), run.id];
    let of = world.app.store.cascades_of_runs(&ids).await.unwrap();
    let moved = &of[&id].moved;
    let names: Vec<&str> = moved.iter().map(|base| base.name.as_str()).collect();
    assert_eq!(names, ["r.io/left:1", "r.io/right:1"]);
    for base in moved {
        assert_eq!(base.from, old[&base.name]);
        assert_eq!(base.to, pins[&base.name]);
    }
    assert_eq!(of.len(), 2);
    world.end_all(|_| true).await;
    world.tick().await;
    let over = world.show(1).await;
    assert_eq!(over.summary.phase, CascadePhase::Over);
    assert_eq!(over.summary.counts.succeeded, 3);
    let bottom = &over.nodes[0];
    assert_eq!(bottom.after, ["left", "right"]);
    assert_eq!(
        (bottom.attempts, bottom.images.len(), bottom.pins.len()),
        (1, 1, 2)
    );
    assert!(bottom.run.is_some() && bottom.ended_at.is_some());
    assert_eq!(over.images.len(), 3);
    assert!(over.images.iter().all(|image| image.before.is_some()));
    world.compare().await;
    world.rest().await;
    assert_eq!(world.counts().await, each(1, &["left", "right", "bottom"]));
    assert_eq!(cascades::list(&world.app, all()).await.unwrap().len(), 1);
    world.assert_fresh();
    world.assert_once().await;
    let triggers = world
        .app
        .store
        .triggers_of_task("left", None, 1)
        .await
        .unwrap()
        .0;
    assert_eq!(
        triggers[0].detail.as_deref(),
        Some("cascade 1: r.io/base:1 has a new digest")
    );
}

/// A cascade whose first runs are under way.
pub(crate) async fn begun(world: &mut World, digest: &str) {
    world.moves(BASE, digest).await;
    world.compare().await;
    world.wait(30 * SECOND);
    world.tick().await;
    world.take_runs().await;
}

async fn a_failure_stops_what_is_below_and_nothing_else(place: Place) {
    let mut world = diamond(place, json!({"retries": 1, "retryDelaySecs": 60})).await;
    begun(&mut world, "new").await;
    world.end_all(|name| name != "left").await;
    world.tick().await;
    let states = world.states(1).await;
    assert!(
        states[1].starts_with("left ready: tried again at "),
        "{states:?}"
    );
    assert!(states[1].ends_with(", after: a step failed"), "{states:?}");
    world.wait(59 * SECOND);
    world.tick().await;
    assert_eq!(world.take_runs().await, [""; 0]);
    world.wait(SECOND);
    world.tick().await;
    assert_eq!(world.take_runs().await, ["left"]);
    world.end_all(|_| false).await;
    world.compare().await;
    let states = world.states(1).await;
    assert_eq!(
        states[0],
        "bottom stale: left, which it stands on, was not built"
    );
    assert!(
        states[1].starts_with("left failed: a step failed; tried again at "),
        "{states:?}"
    );
    assert_eq!(states[2], "right succeeded");
    assert_eq!(world.show(1).await.summary.phase, CascadePhase::Over);
    // Not at once.
    world.rest().await;
    assert_eq!(world.counts().await["left"], 2);
    world.wait(60 * 60 * SECOND);
    world.compare().await;
    world.wait(30 * SECOND);
    world.tick().await;
    assert_eq!(world.take_runs().await, ["left"]);
    world.end_all(|_| false).await;
    world.tick().await;
    world.wait(60 * SECOND);
    world.tick().await;
    assert_eq!(world.take_runs().await, ["left"]);
    world.end_all(|_| false).await;
    world.compare().await;
    assert_eq!(world.show(2).await.summary.phase, CascadePhase::Over);
    world
        .tell(Event::Retry {
            cascade: CascadeId(2),
        })
        .await
        .unwrap();
    world.compare().await;
    assert_eq!(world.take_runs().await, ["left"]);
    world.end_all(|_| true).await;
    world.rest().await;
    world.assert_fresh();
    assert_eq!(world.state(2, "bottom").await, CascadeNodeState::Succeeded);
    let counts = [("left", 5), ("right", 1), ("bottom", 1)];
    let counts: BTreeMap<String, usize> = counts.map(|(name, count)| (name.into(), count)).into();
    assert_eq!(world.counts().await, counts);
}

async fn a_base_that_moves_on_is_joined_and_followed(place: Place) {
    let mut world = diamond(place, json!({"parallel": 1})).await;
    begun(&mut world, "second").await;
    assert_eq!(world.held.len(), 1);
    let first = world.held[0].task_name.clone().unwrap();
    let other = if first == "left" { "right" } else { "left" };
    world.moves(BASE, "third").await;
    world.compare().await;
    // What has not begun takes the new digest; what runs is built again in a cascade that follows.
    assert_eq!(world.show(2).await.summary.follows, Some(1));
    world.end_all(|_| true).await;
    world.tick().await;
    assert_eq!(world.take_runs().await, [other]);
    assert_eq!(world.held[0].spec.pins[BASE], sha("third"));
    world.rest().await;
    world.assert_fresh();
    world.assert_once().await;
    let counts = world.counts().await;
    assert_eq!(
        (counts[&first], counts[other], counts["bottom"]),
        (2, 1, 1),
        "{counts:?}"
    );
    let bottom = world.states(1).await.remove(0);
    assert_eq!(bottom, "bottom skipped: it is built in cascade 2");
}

async fn a_person_cancels_pauses_and_approves(place: Place) {
    let rules = json!({"rules": [{"tasks": "bottom", "mode": "approval"}]});
    let mut world = diamond(place, rules).await;
    let id = CascadeId(1);
    begun(&mut world, "new").await;
    world.tell(Event::Pause { cascade: id }).await.unwrap();
    world.end_all(|_| true).await;
    world.tick().await;
    assert_eq!(
        world.states(1).await[0],
        "bottom ready: the cascade is paused; `acrtask cascade resume 1` lets it go on"
    );
    world.tell(Event::Resume { cascade: id }).await.unwrap();
    world.compare().await;
    assert_eq!(world.take_runs().await, [""; 0]);
    let waits = world.show(1).await;
    assert!(waits.summary.waits_for_approval);
    assert_eq!(
        waits.nodes[0].why.as_deref(),
        Some("waits until somebody approves: `acrtask cascade approve 1`")
    );
    world.tell(Event::Approve { cascade: id }).await.unwrap();
    assert_eq!(world.take_runs().await, ["bottom"]);
    let by = "ann".to_owned();
    world.tell(Event::Cancel { cascade: id, by }).await.unwrap();
    let run = world.app.store.run(&world.held[0].id).await.unwrap();
    assert_eq!(
        run.cancel_reason.as_deref(),
        Some("cascade 1 was canceled by ann")
    );
    assert_eq!(world.show(1).await.summary.phase, CascadePhase::Canceling);
    world.end_all(|_| false).await;
    world.tick().await;
    assert_eq!(world.states(1).await[0], "bottom canceled: canceled by ann");
    world.rest().await;
    assert_eq!(
        world.counts().await["bottom"],
        1,
        "what was canceled stays stale"
    );
    let refused = world.tell(Event::Pause { cascade: id }).await.unwrap_err();
    assert!(matches!(refused, CommandError::Over(1)), "{refused}");
    let unknown = world
        .tell(Event::Pause {
            cascade: CascadeId(9),
        })
        .await
        .unwrap_err();
    assert!(matches!(unknown, CommandError::Unknown(9)), "{unknown}");
    // Another digest takes it up again.
    world.moves(BASE, "newer").await;
    world.compare().await;
    world
        .tell(Event::Approve {
            cascade: CascadeId(2),
        })
        .await
        .unwrap();
    world.rest().await;
    world.assert_fresh();
}

async fn a_task_that_cannot_run_fails_with_the_reason(place: Place) {
    let mut world = diamond(place, json!({"healSecs": 0})).await;
    world
        .change_task("left", |task| {
            task.secrets.insert("token".into(), "not-there".into());
        })
        .await;
    world.moves(BASE, "new").await;
    world.compare().await;
    world.app.store.delete_task("right").await.unwrap();
    world.wait(30 * SECOND);
    world.tick().await;
    assert_eq!(
        world.states(1).await,
        [
            "bottom stale: left, which it stands on, was not built",
            "left failed: there is no secret `not-there`; set it with `acrtask secret set not-there --task left`",
            "right failed: the task is gone"
        ]
    );
    assert_eq!(world.runs().await.len(), 0);
    assert_eq!(world.show(1).await.summary.phase, CascadePhase::Over);
    // A task that is off is none of a cascade's.
    world
        .change_task("bottom", |task| task.enabled = false)
        .await;
    world.moves(BASE, "newer").await;
    world.compare().await;
    let states = world.states(2).await;
    assert_eq!(states.len(), 1, "{states:?}");
}

async fn what_was_tried_of_a_task_goes_with_the_task(place: Place) {
    let mut world = diamond(place, json!({"retries": 0, "healSecs": 0})).await;
    begun(&mut world, "new").await;
    world.end_all(|_| false).await;
    world.compare().await;
    let tried = async |world: &World| {
        let loaded = world.app.store.load_cascades().await.unwrap();
        let mut tasks: Vec<String> = loaded.attempts.into_iter().map(|(task, _)| task).collect();
        tasks.sort();
        tasks
    };
    assert_eq!(tried(&world).await, ["left", "right"]);
    world.app.store.delete_task("left").await.unwrap();
    world.compare().await;
    assert_eq!(tried(&world).await, ["right"]);
    // What is known of the others stays, whoever carries it on: none is run twice for the same digests.
    world.restart().await;
    world.rest().await;
    assert_eq!(tried(&world).await, ["right"]);
    assert_eq!(world.counts().await, each(1, &["left", "right"]));
}

async fn what_is_held_back_is_stood_on_and_moves_no_tag(place: Place) {
    let mut world = diamond(place, json!({"promotion": {"tasks": "bott"}})).await;
    let before = world.registry.clone();
    begun(&mut world, "new").await;
    world.end_all(|_| true).await;
    world.tick().await;
    world.take_runs().await;
    let pins = world.held[0].spec.pins.clone();
    assert_ne!(
        pins["r.io/left:1"], before["r.io/left:1"],
        "it stands on what is held back"
    );
    world.end_all(|_| true).await;
    world.compare().await;
    let over = world.show(1).await;
    assert!(over.summary.holds);
    assert_eq!(over.summary.phase, CascadePhase::Over);
    assert_eq!(over.summary.counts.succeeded, 3);
    assert_eq!(over.images.len(), 3);
    for (name, digest) in &before {
        if name != BASE {
            assert_eq!(world.registry[name], *digest, "{name}");
            let image = world.app.store.image(name).await.unwrap().0;
            assert_eq!(image.digest, *digest, "{name}");
        }
    }
    let left = over
        .images
        .iter()
        .find(|image| image.name == "r.io/left:1")
        .unwrap();
    assert_eq!(left.before.as_ref(), Some(&before["r.io/left:1"]));
    // It is as good as pushed: nothing is stale.
    world.rest().await;
    assert_eq!(world.counts().await, each(1, &["left", "right", "bottom"]));
}

async fn a_push_of_our_own_is_not_undone_by_an_old_look(place: Place) {
    let mut world = diamond(place, json!({})).await;
    // The tag of our own image is watched, too, because another one stands on it.
    world.looked("r.io/left:1").await;
    begun(&mut world, "new").await;
    let old = world.registry["r.io/left:1"].clone();
    world.end_all(|_| true).await;
    // A look that had begun before the push ends after it.
    let new = world.registry.insert("r.io/left:1".into(), old).unwrap();
    world.wait(5 * SECOND);
    world.looked("r.io/left:1").await;
    world.registry.insert("r.io/left:1".into(), new);
    world.compare().await;
    assert_eq!(world.take_runs().await, ["bottom"]);
    world.end_all(|_| true).await;
    world.compare().await;
    world.wait(60 * SECOND);
    world.looked("r.io/left:1").await;
    world.rest().await;
    assert_eq!(world.counts().await, each(1, &["left", "right", "bottom"]));
    world.assert_fresh();
    // Somebody else's push to it is a move as any other.
    world.moves("r.io/left:1", "by hand").await;
    world.compare().await;
    world.wait(30 * SECOND);
    world.tick().await;
    assert_eq!(world.take_runs().await, ["bottom"]);
    assert_eq!(world.held[0].spec.pins["r.io/left:1"], sha("by hand"));
}

async fn a_cascade_that_is_kept_for_people_is_retried_by_another(place: Place) {
    let mut world = diamond(place, json!({"retries": 0})).await;
    begun(&mut world, "new").await;
    world.end_all(|name| name != "left").await;
    world.compare().await;
    world.wait(25 * 3600 * SECOND);
    world.compare().await;
    assert!(!world.app.store.cascade(1).await.unwrap().active);
    assert_eq!(world.states(1).await[1], "left failed: a step failed");
    world.restart().await;
    let refused = world
        .tell(Event::Pause {
            cascade: CascadeId(1),
        })
        .await
        .unwrap_err();
    assert!(matches!(refused, CommandError::Over(1)), "{refused}");
    world
        .tell(Event::Retry {
            cascade: CascadeId(1),
        })
        .await
        .unwrap();
    world.rest().await;
    world.assert_fresh();
    assert_eq!(world.state(2, "bottom").await, CascadeNodeState::Succeeded);
}

async fn two_servers_do_it_once(place: Place) {
    let mut world = diamond(place, json!({})).await;
    let other = world.server().await;
    for round in 0..4 {
        world.moves(BASE, &format!("round {round}")).await;
        for _ in 0..12 {
            world.wait(10 * SECOND);
            other.clock.set(world.now());
            let (one, two) = tokio::join!(
                cascades::pass(&world.app, true),
                cascades::pass(&other, true)
            );
            one.unwrap();
            two.unwrap();
            world.take_runs().await;
            world.end_all(|_| true).await;
        }
        world.assert_fresh();
    }
    assert_eq!(world.counts().await, each(4, &["left", "right", "bottom"]));
    world.assert_once().await;
    assert_eq!(cascades::list(&world.app, all()).await.unwrap().len(), 4);
}

/// `ACRTASK_TEST_FLEET` tasks, or a few hundred; what each look takes is printed.
async fn a_large_fleet_is_looked_at_in_a_few_statements(place: Place) {
    let count = std::env::var("ACRTASK_TEST_FLEET").ok();
    let count = count.and_then(|count| count.parse().ok()).unwrap_or(300);
    let mut world = World::new(place, json!({"settleSecs": 1, "parallel": 8})).await;
    world.many(count, BASE).await;
    let begun = std::cell::Cell::new(Instant::now());
    let told = |what: &str| {
        println!("{count} tasks, {what}: {:?}", begun.get().elapsed());
        begun.set(Instant::now());
    };
    world.moves(BASE, "old").await;
    told("filled");
    world.compare().await;
    told("nothing is stale");
    world.compare().await;
    told("nothing is stale, once more");
    world.moves(BASE, "new").await;
    told("a base moves");
    world.compare().await;
    told("a cascade begins");
    world.compare().await;
    told("nothing is new");
    world.wait(SECOND);
    begun.set(Instant::now());
    world.tick().await;
    told("it starts runs");
    // The first of each fifty stands on nothing but the base.
    assert_eq!(world.take_runs().await.len(), count.div_ceil(50).min(8));
    world.end(0, true).await;
    begun.set(Instant::now());
    world.tick().await;
    told("it takes an end and starts the next run");
    world.compare().await;
    told("it compares everything meanwhile");
    assert_eq!(world.show(1).await.nodes.len(), count);
    told("it is shown");
    assert_eq!(cascades::list(&world.app, all()).await.unwrap().len(), 1);
    told("it is listed");
    let base = Some(BASE.parse().unwrap());
    let plan = cascades::plan(&world.app, base, None, true).await.unwrap();
    told("it is planned");
    assert_eq!(plan.nodes.len(), count - 1);
    world.restart().await;
    begun.set(Instant::now());
    world.tick().await;
    told("a server that begins loads it");
}

/// The loops of a real server: the end of settling starts runs at once, and ends of runs start the next ones.
async fn a_server_wakes_for_what_it_waits_for(place: Place) {
    let mut world = diamond(place, json!({"settleSecs": 1})).await;
    world.clock_is_real().await;
    // Before the server begins, which would look at the tag itself.
    world.moves(BASE, "new").await;
    let begun = Instant::now();
    let server = world.serve().await;
    let mut ran = Vec::new();
    while ran.len() < 3 {
        assert!(begun.elapsed().as_secs() < 20, "{ran:?}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        let taken = world.take_runs().await;
        if !taken.is_empty() {
            println!("{taken:?} after {:?}", begun.elapsed());
        }
        ran.extend(taken);
        world.end_all(|_| true).await;
    }
    assert!(begun.elapsed().as_millis() >= 1000, "it settles");
    ran.sort();
    assert_eq!(ran, ["bottom", "left", "right"]);
    world.assert_fresh();
    server.shutdown().await;
}
