//! Tests of the base resolution in `images.rs`. No I/O.

use acrtask_api::run::{BaseResult, BuiltResult, ImageResult};
use acrtask_model::StepId;

use super::*;

fn step(id: &str) -> StepId {
    StepId::new(id).unwrap()
}

fn sha(letter: char) -> Digest {
    format!("sha256:{}", letter.to_string().repeat(64))
        .parse()
        .unwrap()
}

fn base(of: &str, role: BaseRole, name: &str) -> BaseResult {
    BaseResult {
        step: step(of),
        role,
        name: name.into(),
        digest: sha('b'),
        evidence: Evidence::Provenance,
        platforms: Vec::new(),
    }
}

fn built(of: &str, names: &[&str], digest: Digest) -> BuiltResult {
    BuiltResult {
        step: step(of),
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        digest,
    }
}

fn pushed(name: &str, digest: Digest) -> ImageResult {
    ImageResult {
        step: step("push"),
        name: name.into(),
        digest,
        platforms: BTreeMap::new(),
        staged: false,
    }
}

fn shown(result: &RunResult, image: usize) -> Vec<String> {
    let mut found: Vec<String> = bases_of(result, &result.images[image])
        .into_iter()
        .map(|used| format!("{:?} {}", used.role, used.image))
        .collect();
    found.sort();
    found
}

#[test]
fn image_has_the_bases_of_its_own_step() {
    let result = RunResult {
        built: vec![
            built("one", &["r.io/one:1"], sha('1')),
            built("two", &["r.io/two:1"], sha('2')),
        ],
        images: vec![
            pushed("r.io/one:1", sha('1')),
            // A container tagged it, so only the digest identifies its step.
            pushed("r.io/other:1", sha('2')),
            pushed("r.io/unknown:1", sha('3')),
        ],
        bases: vec![
            base("one", BaseRole::Runtime, "alpine"),
            base("two", BaseRole::Runtime, "debian:12"),
            base("two", BaseRole::BuildTime, "golang:1"),
            base("two", BaseRole::Frontend, "docker/dockerfile:1"),
            base("test", BaseRole::Cmd, "r.io/one:1"),
            base("test", BaseRole::Cmd, "curl:8"),
        ],
        ..RunResult::default()
    };
    let ran = "Cmd docker.io/library/curl:8";
    assert_eq!(
        shown(&result, 0),
        [ran, "Runtime docker.io/library/alpine:latest"]
    );
    assert_eq!(
        shown(&result, 1),
        [
            "BuildTime docker.io/library/golang:1",
            ran,
            "Frontend docker.io/docker/dockerfile:1",
            "Runtime docker.io/library/debian:12"
        ]
    );
    assert_eq!(shown(&result, 2).len(), 5, "all bases of the run");
}

#[test]
fn base_from_the_same_run_is_replaced_by_its_own_bases() {
    let result = RunResult {
        built: vec![
            built("base", &["r.io/base:1"], sha('1')),
            built("tools", &["r.io/tools:1"], sha('2')),
            built("app", &["r.io/app:1"], sha('3')),
        ],
        images: vec![
            pushed("r.io/app:1", sha('3')),
            pushed("r.io/base:1", sha('1')),
        ],
        bases: vec![
            base("base", BaseRole::Runtime, "alpine:3"),
            base("tools", BaseRole::Runtime, "golang:1"),
            base("app", BaseRole::Runtime, "r.io/base:1"),
            base("app", BaseRole::BuildTime, "r.io/tools:1"),
            // The resolution terminates even if a step claims to be its own base.
            base("app", BaseRole::Runtime, "r.io/app:1"),
        ],
        ..RunResult::default()
    };
    assert_eq!(
        shown(&result, 0),
        [
            "BuildTime docker.io/library/golang:1",
            "Runtime docker.io/library/alpine:3"
        ]
    );
    assert_eq!(shown(&result, 1), ["Runtime docker.io/library/alpine:3"]);
}
