//! Server crashes at random points of a cascade. After each restart the cascade completes: every
//! node is built exactly once, and nothing is left over.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use acrtask_tests::{TestEnvironment, service::TestRunner};
use serde_json::Value;

use crate::{
    common::{assert_triggers_accounted, database_url},
    fleet::{TestFleet, new_member},
};

/// Longest time for a cascade to complete, including the crashes.
const LIMIT: Duration = Duration::from_secs(90);

/// Sequence of pseudorandom numbers that is the same for each seed.
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

async fn run_with_crashes(seeds: std::ops::Range<u64>) {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let mut fleet =
        TestFleet::start_with(&environment, &["--base-interval", "1s", "--no-runner"]).await;
    // The runner keeps running, as runners on other machines do.
    let runner = TestRunner::start(
        &fleet.server,
        "steady",
        &["--slots", "3", "--allow-private-addresses"],
    );
    fleet.apply_settings(&serde_json::json!({"settleSecs": 0}));
    fleet.push("os", "none").await;
    let from = |base: &str| format!("FROM {}\n", fleet.image_name(base));
    let right = fleet.image_name("right");
    fleet.create_tasks(&[
        new_member("left", &from("os")),
        new_member("right", &from("os")),
        new_member("app", &from("left")),
        new_member(
            "both",
            &format!("{}COPY --from={right} /bin/true /copied\n", from("left")),
        )
        .with_all_bases(),
    ]);
    fleet.run_tasks(&MIDDLE);
    fleet.run_tasks(&APPS);
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
            assert_eq!(fleet.base_note(name).await, note, "seed {seed}: {name}");
        }
        assert_built_once(&fleet, seed);
    }
    drop(runner);
    assert_triggers_accounted(&database_url(&fleet.server)).await;
}

/// Waits until every image is built from this base and from the current digests of the other
/// images, and no cascade is open.
async fn wait_fresh(fleet: &TestFleet, base: &str) {
    let begun = Instant::now();
    loop {
        let over = fleet
            .list_cascades()
            .iter()
            .all(|cascade| cascade["phase"] == "finished");
        if over && is_fresh(fleet, base).await {
            return;
        }
        assert!(
            begun.elapsed() < LIMIT,
            "{:#?}\n{:#?}",
            fleet.list_cascades(),
            fleet
                .list_cascades()
                .first()
                .map(|cascade| fleet.show_cascade(cascade["id"].as_u64().unwrap()))
        );
        thread::sleep(Duration::from_millis(100));
    }
}

async fn is_fresh(fleet: &TestFleet, base: &str) -> bool {
    let os = fleet.image_name("os");
    for (image, on) in [
        ("left", vec!["os"]),
        ("right", vec!["os"]),
        ("app", vec!["left"]),
        ("both", vec!["left", "right"]),
    ] {
        let used = fleet.built_from(&fleet.image_name(image));
        for name in on {
            let name_at = fleet.image_name(name);
            let now = if name_at == os {
                base.to_owned()
            } else {
                fleet.fetch_digest(name).await.unwrap()
            };
            if used[&name_at] != now {
                return false;
            }
        }
    }
    true
}

/// Asserts that no task ran twice for the same pins, and that each run of a cascade succeeded.
fn assert_built_once(fleet: &TestFleet, seed: u64) {
    for task in MIDDLE.iter().chain(&APPS) {
        let mut seen: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for run in fleet.list_runs(task) {
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
async fn cascade_survives_server_crashes_1() {
    run_with_crashes(0..10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cascade_survives_server_crashes_2() {
    run_with_crashes(10..20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cascade_survives_server_crashes_3() {
    run_with_crashes(20..30).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cascade_survives_server_crashes_4() {
    run_with_crashes(30..40).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cascade_survives_server_crashes_5() {
    run_with_crashes(40..50).await;
}
