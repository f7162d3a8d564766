//! The control plane is killed at random points of a cascade, and started again: nothing is lost, nothing is built twice,
//! nothing is left behind.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use acrtask_tests::{World, service::Runner};
use serde_json::Value;

use crate::{
    common::{database, law_holds},
    fleet::{Fleet, member},
};

/// Longest time for all of a cascade to have come to its end, with its crashes.
const LIMIT: Duration = Duration::from_secs(90);

/// Numbers that look random and are the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}

const MIDDLE: [&str; 2] = ["left", "right"];
const APPS: [&str; 2] = ["app", "both"];

async fn killed_at(seeds: std::ops::Range<u64>) {
    let Some(world) = World::find() else { return };
    let mut fleet = Fleet::with(&world, &["--base-interval", "1s", "--no-runner"]).await;
    // It lives through all of this, as runners on other machines do.
    let runner = Runner::start(
        &fleet.server,
        "steady",
        &["--slots", "3", "--allow-private-addresses"],
    );
    fleet.settings(&serde_json::json!({"settleSecs": 0}));
    fleet.push("os", "none").await;
    let from = |base: &str| format!("FROM {}\n", fleet.image(base));
    let right = fleet.image("right");
    fleet.tasks(&[
        member("left", &from("os")),
        member("right", &from("os")),
        member("app", &from("left")),
        member(
            "both",
            &format!("{}COPY --from={right} /bin/true /copied\n", from("left")),
        )
        .all(),
    ]);
    fleet.build(&MIDDLE);
    fleet.build(&APPS);
    for seed in seeds {
        let mut dice = Dice(seed);
        let note = format!("seed-{seed}");
        let base = fleet.push("os", &note).await;
        for _ in 0..=dice.below(3) {
            thread::sleep(Duration::from_millis(dice.below(1_500)));
            fleet.server.kill();
            fleet.server.restart();
        }
        wait_fresh(&fleet, &base).await;
        for name in MIDDLE.iter().chain(&APPS) {
            assert_eq!(fleet.note(name).await, note, "seed {seed}: {name}");
        }
        once_each(&fleet, seed);
    }
    drop(runner);
    law_holds(&database(&fleet.server)).await;
}

/// Waits until every image stands on this base, each on what the others are now, and no cascade is open.
async fn wait_fresh(fleet: &Fleet, base: &str) {
    let begun = Instant::now();
    loop {
        let over = fleet.cascades().iter().all(|one| one["phase"] == "over");
        if over && stands(fleet, base).await {
            return;
        }
        assert!(
            begun.elapsed() < LIMIT,
            "{:#?}\n{:#?}",
            fleet.cascades(),
            fleet
                .cascades()
                .first()
                .map(|one| fleet.cascade(one["id"].as_u64().unwrap()))
        );
        thread::sleep(Duration::from_millis(100));
    }
}

async fn stands(fleet: &Fleet, base: &str) -> bool {
    let os = fleet.image("os");
    for (image, on) in [
        ("left", vec!["os"]),
        ("right", vec!["os"]),
        ("app", vec!["left"]),
        ("both", vec!["left", "right"]),
    ] {
        let used = fleet.built_from(&fleet.image(image));
        for name in on {
            let name_at = fleet.image(name);
            let now = if name_at == os {
                base.to_owned()
            } else {
                fleet.digest(name).await.unwrap()
            };
            if used[&name_at] != now {
                return false;
            }
        }
    }
    true
}

/// No task ran twice for the same digests, and each run of a cascade came to a good end at its first attempt.
fn once_each(fleet: &Fleet, seed: u64) {
    for task in MIDDLE.iter().chain(&APPS) {
        let mut seen: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for run in fleet.runs(task) {
            if run["trigger"] != "cascade" {
                continue;
            }
            assert_eq!(run["state"], "succeeded", "seed {seed}: {run:#}");
            let pins = run["spec"]["pins"].to_string();
            seen.entry(pins).or_default().push(run["id"].clone());
        }
        let twice: Vec<_> = seen.iter().filter(|(_, runs)| runs.len() > 1).collect();
        assert!(twice.is_empty(), "seed {seed}: {task}: {twice:#?}");
        assert!(!seen.is_empty(), "seed {seed}: {task} was not built");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_random_points_1() {
    killed_at(0..10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_random_points_2() {
    killed_at(10..20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_random_points_3() {
    killed_at(20..30).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_random_points_4() {
    killed_at(30..40).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_random_points_5() {
    killed_at(40..50).await;
}
