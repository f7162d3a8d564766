//! Time and memory for planning many images: `cargo run --release --example plan_scale`.
//!
//! Arguments are graph sizes; the defaults are 100000 and 1000000. In each graph, every image has
//! its own task and four edges, most of them to other images of the graph. The program moves the
//! base at the bottom and prints one line of JSON per size.

#![allow(clippy::print_stdout, reason = "the program prints its result")]

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use acrtask_cascade::{
    Graph, GraphBuilder, PlanOptions,
    graph::{BaseFacts, Policy, TagFacts, TaskFacts},
    plan,
};
use acrtask_model::{Digest, ImageRef, events::BaseRole};

const BASES: u64 = 10;
const ROUNDS: u32 = 7;

fn main() {
    let sizes: Vec<u64> = std::env::args()
        .skip(1)
        .filter_map(|size| size.parse().ok())
        .collect();
    let sizes = if sizes.is_empty() {
        vec![100_000, 1_000_000]
    } else {
        sizes
    };
    for size in sizes {
        measure(size);
    }
}

fn measure(images: u64) {
    let before = resident_bytes();
    let begin = Instant::now();
    let graph = random_graph(images);
    let build = begin.elapsed();
    let grown = resident_bytes().saturating_sub(before);
    let changes = BTreeMap::from([(base(0), digest(u64::MAX))]);
    let options = PlanOptions::default();
    let mut times = Vec::new();
    let mut nodes = 0;
    let mut waves = 0;
    let mut memory = 0;
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        let plan = plan(&graph, &changes, &options);
        times.push(begin.elapsed());
        nodes = plan.len();
        waves = plan.wave_count();
        memory = plan.memory();
    }
    times.sort();
    let plan = plan(&graph, &changes, &options);
    let begin = Instant::now();
    let pins: usize = plan.nodes().map(|node| plan.pins(node).count()).sum();
    let pinning = begin.elapsed();
    let begin = Instant::now();
    let estimate = plan.estimate(50);
    let estimating = begin.elapsed();
    let line = serde_json::json!({
        "images": graph.image_count(),
        "edges": graph.edge_count(),
        "planned": nodes,
        "waves": waves,
        "pins": pins,
        "planMs": { "min": to_ms(times[0]), "median": to_ms(times[times.len() / 2]), "max": to_ms(times[times.len() - 1]) },
        "pinsMs": to_ms(pinning),
        "estimateMs": to_ms(estimating),
        "estimateTotalMs": estimate.total_ms,
        "graphBuildMs": to_ms(build),
        "graphBytes": graph.memory(),
        "graphBytesPerImage": graph.memory() / graph.image_count(),
        "planBytes": memory,
        "residentBytes": grown,
    });
    println!("{line}");
}

fn to_ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e5).round() / 100.0
}

fn random_graph(images: u64) -> Graph {
    let mut random = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    let mut builder = GraphBuilder::default();
    for index in 0..images {
        // The first images depend on the bases only. Each later one depends on a base or on a far
        // earlier image, so the graph has some tens of waves.
        let mut bases = Vec::with_capacity(4);
        for _ in 0..4 {
            let far = index / 2;
            let (image, used) = if index < BASES {
                (base(0), digest(0))
            } else if next(8) == 0 || far == 0 {
                let base_index = next(BASES);
                (base(base_index), digest(base_index))
            } else {
                let below = next(far);
                (task_image(below), digest(1000 + below))
            };
            bases.push(BaseFacts {
                image,
                role: BaseRole::Runtime,
                digest: used,
            });
        }
        builder.add_task(&TaskFacts {
            name: format!("team-{}/service-{index}", index % 1000),
            policy: Policy::Runtime,
            images: vec![TagFacts {
                image: task_image(index),
                digest: digest(1000 + index),
            }],
            bases,
            run_ms: Some(30_000 + next(120_000)),
        });
    }
    for index in 0..BASES {
        builder.set_digest(&base(index), &digest(index));
    }
    builder.finish()
}

fn base(index: u64) -> ImageRef {
    reference(&format!("docker.io/library/base-{index}:1"))
}

fn task_image(index: u64) -> ImageRef {
    reference(&format!(
        "registry.example.com/team-{}/service-{index}:latest",
        index % 1000
    ))
}

#[allow(clippy::expect_used, reason = "the texts are made above")]
fn reference(text: &str) -> ImageRef {
    text.parse().expect("a reference")
}

#[allow(clippy::expect_used, reason = "the text is made here")]
fn digest(number: u64) -> Digest {
    format!("sha256:{number:064x}").parse().expect("a digest")
}

/// Returns the resident memory of this process in bytes; 0 if the system does not report it.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
