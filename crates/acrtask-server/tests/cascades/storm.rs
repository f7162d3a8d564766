//! Servers that are killed between any two steps, while bases move and runs end as they like.

use std::{pin::pin, task::Poll};

use acrtask_server::{App, cascades};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::json;

use crate::{
    BASE, diamond, each, on_both,
    place::Place,
    world::{SECOND, World, sha},
};

on_both!(
    a_server_is_killed_between_any_two_steps,
    a_storm_ends_with_everything_built_once,
);

/// Seeds of a storm.
const SEEDS: u64 = 12;

/// Lets a server take so many steps, and kills it. Says whether it came to the end.
async fn killed_after(app: &App, facts: bool, steps: usize) -> bool {
    let mut pass = pin!(cascades::pass(app, facts));
    let mut left = steps;
    std::future::poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(false);
        }
        left -= 1;
        pass.as_mut().poll(context).map(|done| done.is_ok())
    })
    .await
}

async fn a_server_is_killed_between_any_two_steps(place: Place) {
    let mut world = diamond(place, json!({})).await;
    let mut rounds = 0;
    // It is killed while a cascade begins, while it starts runs, and while it takes their ends.
    for stage in 0..3 {
        let mut steps = 0;
        loop {
            rounds += 1;
            world.moves(BASE, &format!("round {rounds}")).await;
            let mut ended = false;
            for now in 0..3 {
                if now == stage {
                    let doomed = world.server().await;
                    ended = killed_after(&doomed, now == 0, steps).await;
                    drop(doomed);
                }
                if now == 0 {
                    world.compare().await;
                } else {
                    world.tick().await;
                }
                world.wait(30 * SECOND);
                if now == 1 {
                    assert_eq!(world.take_runs().await, ["left", "right"], "{rounds}");
                    world.end_all(|_| true).await;
                }
            }
            assert_eq!(world.take_runs().await, ["bottom"], "{rounds}");
            world.end_all(|_| true).await;
            world.compare().await;
            world.assert_fresh();
            if ended {
                break;
            }
            steps += 1;
        }
        assert!(steps > 5, "{steps} steps are hardly all");
    }
    assert_eq!(
        world.counts().await,
        each(rounds, &["left", "right", "bottom"])
    );
    world.assert_once().await;
}

/// Tasks that stand on others and on bases, as a seed wants them.
async fn fleet(world: &mut World, rng: &mut StdRng) {
    for base in ["r.io/x:1", "r.io/y:1"] {
        world.registry.insert(base.into(), sha("first"));
    }
    let mut names: Vec<String> = vec!["r.io/x:1".into(), "r.io/y:1".into()];
    for number in 0..7 {
        let name = format!("task{number}");
        let mut bases: Vec<String> = Vec::new();
        for _ in 0..rng.random_range(1..=3) {
            let base = names[rng.random_range(0..names.len())].clone();
            if !bases.contains(&base) {
                bases.push(base);
            }
        }
        let bases: Vec<&str> = bases.iter().map(String::as_str).collect();
        world.built(&name, &bases).await;
        names.push(format!("r.io/{name}:1"));
    }
}

async fn a_storm_ends_with_everything_built_once(place: Place) {
    let seed: u64 = std::env::var("ACRTASK_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(rand::random);
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let settings = json!({"settleSecs": 5, "retries": 2, "retryDelaySecs": 3, "parallel": 2});
    let mut world = World::new(place, settings).await;
    fleet(&mut world, &mut rng).await;
    let mut other = world.server().await;
    for storm in 0..SEEDS {
        for step in 0..40 {
            world.wait(rng.random_range(0..3 * SECOND));
            other.clock.set(world.now());
            match rng.random_range(0..10) {
                0 => {
                    let base = ["r.io/x:1", "r.io/y:1"][rng.random_range(0..2)];
                    let to = format!("{storm} {step}");
                    world.moves(base, &to).await;
                }
                1 => world.restart().await,
                2 => other = world.server().await,
                3 | 4 => {
                    let steps = rng.random_range(0..80);
                    killed_after(&world.app, rng.random(), steps).await;
                }
                5 => {
                    let (one, two) = (rng.random_range(0..120), rng.random_range(0..120));
                    let (facts, also) = (rng.random(), rng.random());
                    tokio::join!(
                        killed_after(&world.app, facts, one),
                        killed_after(&other, also, two)
                    );
                }
                6 => {
                    world.take_runs().await;
                }
                _ if !world.held.is_empty() => {
                    let index = rng.random_range(0..world.held.len());
                    let well = rng.random_range(0..6) > 0;
                    world.end(index, well).await;
                }
                _ => world.tick().await,
            }
        }
        world.rest().await;
        // What failed for good stays until its base moves once more.
        for base in ["r.io/x:1", "r.io/y:1"] {
            let to = format!("calm {storm}");
            world.moves(base, &to).await;
        }
        world.rest().await;
        world.assert_fresh();
        world.assert_once().await;
    }
}
