//! When the time to settle begins.

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

/// Until when a cascade settles that is taken up so many seconds after its bases moved, in seconds from then.
fn settles(moved: &[(&str, i64)]) -> i64 {
    let now: Timestamp = "2026-11-25T12:00:00Z".parse().unwrap();
    let mut facts = GraphBuilder::default();
    let mut bases = Vec::new();
    for (name, ago) in moved {
        let image = format!("docker.io/library/{name}:1").parse().unwrap();
        facts.tag(&image, &sha('9'));
        facts.moved(&image, now - SignedDuration::from_secs(*ago));
        bases.push(BaseFacts {
            image,
            role: BaseRole::Runtime,
            digest: sha('1'),
        });
    }
    facts.task(&TaskFacts {
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
fn it_begins_when_the_last_of_the_bases_moved() {
    assert_eq!(settles(&[("one", 0)]), 30);
    assert_eq!(settles(&[("one", 12)]), 18);
    assert_eq!(settles(&[("one", 29), ("two", 4)]), 26);
}

#[test]
fn what_moved_long_ago_has_settled() {
    assert_eq!(settles(&[("one", 30)]), 0);
    assert_eq!(settles(&[("one", 30_000), ("two", 86_400)]), 0);
}

#[test]
fn a_clock_that_is_ahead_makes_it_no_longer() {
    assert_eq!(settles(&[("one", -90)]), 30);
}
