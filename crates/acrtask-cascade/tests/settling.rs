//! Tests of the start of the settling time.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of a #[test]")]

use acrtask_cascade::{
    Cascades, GraphBuilder,
    cascade::{CascadeId, Phase, Settings},
    graph::{BaseFacts, Policy, TagFacts, TaskFacts},
};
use acrtask_model::{Digest, events::BaseRole};
use jiff::{SignedDuration, Timestamp};

fn sha(digit: char) -> Digest {
    let hex = String::from(digit).repeat(64);
    format!("sha256:{hex}").parse().unwrap()
}

/// Returns the settling time in seconds of a cascade whose bases moved the given numbers of seconds
/// ago.
fn settling_secs(moved: &[(&str, i64)]) -> i64 {
    let now: Timestamp = "2026-11-25T12:00:00Z".parse().unwrap();
    let mut facts = GraphBuilder::default();
    let mut bases = Vec::new();
    for (name, ago) in moved {
        let image = format!("docker.io/library/{name}:1").parse().unwrap();
        facts.set_digest(&image, &sha('9'));
        facts.record_move(&image, now - SignedDuration::from_secs(*ago));
        bases.push(BaseFacts {
            image,
            role: BaseRole::Runtime,
            digest: sha('1'),
        });
    }
    facts.add_task(&TaskFacts {
        name: "app".into(),
        policy: Policy::Runtime,
        images: vec![TagFacts {
            image: "r.io/app:1".parse().unwrap(),
            digest: sha('a'),
        }],
        bases,
        run_ms: None,
    });
    let mut cascades = Cascades::default();
    cascades.reconcile(&facts.finish(), &Settings::default(), now);
    match cascades.get(CascadeId(1)).unwrap().phase {
        Phase::Settling { until } => until.duration_since(now).as_secs(),
        Phase::Active => 0,
        ref phase => panic!("{phase:?}"),
    }
}

#[test]
fn settling_starts_when_the_last_base_moved() {
    assert_eq!(settling_secs(&[("one", 0)]), 30);
    assert_eq!(settling_secs(&[("one", 12)]), 18);
    assert_eq!(settling_secs(&[("one", 29), ("two", 4)]), 26);
}

#[test]
fn bases_that_moved_long_ago_need_no_settling() {
    assert_eq!(settling_secs(&[("one", 30)]), 0);
    assert_eq!(settling_secs(&[("one", 30_000), ("two", 86_400)]), 0);
}

#[test]
fn clock_skew_does_not_extend_settling() {
    assert_eq!(settling_secs(&[("one", -90)]), 30);
}
