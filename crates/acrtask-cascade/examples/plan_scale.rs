//! How long a plan over many images takes, and how much memory: `cargo run --release --example plan_scale`.
//!
//! For each size given as an argument (100000 and 1000000 where there is none) it builds a graph in which each image
//! has a task of its own and four edges, most of them to other images of the graph, moves the one base at the bottom,
//! and prints a line of JSON.

#![allow(clippy::print_stdout, reason = "what it prints is what it is for")]

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
    let before = resident();
    let begin = Instant::now();
    let graph = graph(images);
    let build = begin.elapsed();
    let held = resident().saturating_sub(before);
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
        "planMs": { "min": ms(times[0]), "median": ms(times[times.len() / 2]), "max": ms(times[times.len() - 1]) },
        "pinsMs": ms(pinning),
        "estimateMs": ms(estimating),
        "estimateTotalMs": estimate.total_ms,
        "graphBuildMs": ms(build),
        "graphBytes": graph.memory(),
        "graphBytesPerImage": graph.memory() / graph.image_count(),
        "planBytes": memory,
        "residentBytes": held,
    });
    println!("{line}");
}

fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e5).round() / 100.0
}

fn graph(images: u64) -> Graph {
    let mut random = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    let mut builder = GraphBuilder::default();
    for index in 0..images {
        // The first images stand on the bases; each later one on the first base or on what is far enough before it
        // that the graph has some tens of waves.
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
                (own(below), digest(1000 + below))
            };
            bases.push(BaseFacts {
                image,
                role: BaseRole::Runtime,
                digest: used,
            });
        }
        builder.task(&TaskFacts {
            name: format!("team-{}/service-{index}", index % 1000),
            policy: Policy::Runtime,
            images: vec![TagFacts {
                image: own(index),
                digest: digest(1000 + index),
            }],
            bases,
            run_ms: Some(30_000 + next(120_000)),
        });
    }
    for index in 0..BASES {
        builder.tag(&base(index), &digest(index));
    }
    builder.finish()
}

fn base(index: u64) -> ImageRef {
    reference(&format!("docker.io/library/base-{index}:1"))
}

fn own(index: u64) -> ImageRef {
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

/// Resident memory of this process, where the system says it.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
