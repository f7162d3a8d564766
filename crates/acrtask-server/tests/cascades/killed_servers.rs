//! Cascades with servers that are killed between any two steps, moving bases and failing runs.

use std::{pin::pin, task::Poll};

use acrtask_server::{App, cascades};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::json;

use crate::{
    BASE, build_diamond, counts_of, on_both,
    test_db::TestDb,
    test_fleet::{SECOND, TestFleet, digest_of},
};

on_both!(
    server_killed_at_any_step_repeats_no_build,
    random_crashes_end_with_everything_built_once,
);

/// Rounds of random events.
const ROUNDS: u64 = 12;

/// Polls a pass `steps` times and drops it. Returns `true` if the pass completed before that.
async fn run_partial_pass(app: &App, full: bool, steps: usize) -> bool {
    let mut pass = pin!(cascades::run_pass(app, full));
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

async fn server_killed_at_any_step_repeats_no_build(db: TestDb) {
    let mut fleet = build_diamond(db, json!({})).await;
    let mut rounds = 0;
    // Each stage kills the server at another time: at the start of a cascade, at the start of its
    // runs, and after their end.
    for stage in 0..3 {
        let mut steps = 0;
        loop {
            rounds += 1;
            fleet.move_base(BASE, &format!("round {rounds}")).await;
            let mut completed = false;
            for now in 0..3 {
                if now == stage {
                    let killed = fleet.open_app().await;
                    completed = run_partial_pass(&killed, now == 0, steps).await;
                    drop(killed);
                }
                if now == 0 {
                    fleet.run_full_pass().await;
                } else {
                    fleet.run_pass().await;
                }
                fleet.advance_clock(30 * SECOND);
                if now == 1 {
                    assert_eq!(fleet.lease_runs().await, ["left", "right"], "{rounds}");
                    fleet.finish_all(|_| true).await;
                }
            }
            assert_eq!(fleet.lease_runs().await, ["bottom"], "{rounds}");
            fleet.finish_all(|_| true).await;
            fleet.run_full_pass().await;
            fleet.assert_all_fresh();
            if completed {
                break;
            }
            steps += 1;
        }
        assert!(steps > 5, "a pass has more than {steps} steps");
    }
    assert_eq!(
        fleet.run_counts().await,
        counts_of(rounds, &["left", "right", "bottom"])
    );
    fleet.assert_built_once().await;
}

/// Creates tasks with random bases among two base images and the tasks before them.
async fn create_random_tasks(fleet: &mut TestFleet, rng: &mut StdRng) {
    for base in ["r.io/x:1", "r.io/y:1"] {
        fleet.registry.insert(base.into(), digest_of("first"));
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
        fleet.create_built_task(&name, &bases).await;
        names.push(format!("r.io/{name}:1"));
    }
}

async fn random_crashes_end_with_everything_built_once(db: TestDb) {
    let seed: u64 = std::env::var("ACRTASK_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(rand::random);
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let settings = json!({"settleSecs": 5, "retries": 2, "retryDelaySecs": 3, "parallel": 2});
    let mut fleet = TestFleet::new(db, settings).await;
    create_random_tasks(&mut fleet, &mut rng).await;
    let mut other = fleet.open_app().await;
    for round in 0..ROUNDS {
        for step in 0..40 {
            fleet.advance_clock(rng.random_range(0..3 * SECOND));
            other.clock.set(fleet.now());
            match rng.random_range(0..10) {
                0 => {
                    let base = ["r.io/x:1", "r.io/y:1"][rng.random_range(0..2)];
                    let to = format!("{round} {step}");
                    fleet.move_base(base, &to).await;
                }
                1 => fleet.restart_server().await,
                2 => other = fleet.open_app().await,
                3 | 4 => {
                    let steps = rng.random_range(0..80);
                    run_partial_pass(&fleet.app, rng.random(), steps).await;
                }
                5 => {
                    let (one, two) = (rng.random_range(0..120), rng.random_range(0..120));
                    let (full, other_full) = (rng.random(), rng.random());
                    tokio::join!(
                        run_partial_pass(&fleet.app, full, one),
                        run_partial_pass(&other, other_full, two)
                    );
                }
                6 => {
                    fleet.lease_runs().await;
                }
                _ if !fleet.leased.is_empty() => {
                    let index = rng.random_range(0..fleet.leased.len());
                    let succeeds = rng.random_range(0..6) > 0;
                    fleet.finish_run(index, succeeds).await;
                }
                _ => fleet.run_pass().await,
            }
        }
        fleet.run_until_idle().await;
        // Nodes that failed for the last time stay stale until their base moves again.
        for base in ["r.io/x:1", "r.io/y:1"] {
            let to = format!("calm {round}");
            fleet.move_base(base, &to).await;
        }
        fleet.run_until_idle().await;
        fleet.assert_all_fresh();
        fleet.assert_built_once().await;
    }
}
