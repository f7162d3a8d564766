//! Tests of every project in `examples/`, as the first lines of its task file describe it. Every
//! project there must have a test.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;

use acrtask_tests::{Outcome, TestEnvironment, checkout};

fn run_example(environment: &TestEnvironment, name: &str, more: &[&str]) -> Outcome {
    let folder = checkout().join("examples").join(name);
    environment.run_acrtask(&folder, &[&["run", "-o", "json"], more, &["."]].concat())
}

fn assert_succeeded(outcome: &Outcome) {
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    let finished = outcome.events_named("run_finished");
    assert_eq!(finished.len(), 1, "{}", outcome.transcript());
    assert_eq!(finished[0]["state"], "succeeded");
    assert!(
        finished[0]["remaining"].is_null(),
        "the run left resources: {}",
        finished[0]
    );
}

/// Asserts that the run reported the expected pushes, and that the registry has the same digests.
async fn assert_pushed(
    environment: &TestEnvironment,
    outcome: &Outcome,
    expected: &[(&str, &str)],
) {
    let pushed = outcome.events_named("image_pushed");
    let names: BTreeSet<String> = pushed
        .iter()
        .map(|event| event["name"].as_str().unwrap().to_owned())
        .collect();
    let wanted: BTreeSet<String> = expected
        .iter()
        .map(|(repository, tag)| format!("{}/{repository}:{tag}", environment.registry))
        .collect();
    assert_eq!(names, wanted, "{}", outcome.transcript());
    for (repository, tag) in expected {
        let name = format!("{}/{repository}:{tag}", environment.registry);
        let event = pushed
            .iter()
            .find(|event| event["name"] == name.as_str())
            .unwrap();
        assert_eq!(
            environment.fetch_digest(repository, tag).await.as_deref(),
            event["digest"].as_str(),
            "{name}"
        );
    }
}

fn step_output(outcome: &Outcome, step: &str) -> String {
    let of_step = outcome
        .events_named("output")
        .into_iter()
        .filter(|event| event["step"] == step);
    of_step
        .map(|event| event["text"].as_str().unwrap().to_owned())
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn every_example_has_a_test() {
    let source: String = include_str!("examples.rs").split_whitespace().collect();
    let steps = include_str!("steps.rs");
    for entry in std::fs::read_dir(checkout().join("examples")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(
            source.contains(&format!("run_example(&environment,\"{name}\""))
                || steps.contains(&format!("\"examples/{name}/")),
            "examples/{name} is not run by a test"
        );
    }
}

#[test]
fn hello_example_prints_its_greeting() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let outcome = run_example(&environment, "hello", &[]);
    assert_succeeded(&outcome);
    assert_eq!(
        step_output(&outcome, "hello"),
        format!("hello from run {}", outcome.run)
    );
}

#[tokio::test]
async fn build_test_push_example_pushes_the_tested_image() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let outcome = run_example(
        &environment,
        "build-test-push",
        &["--set", "greeting=Good day"],
    );
    assert_succeeded(&outcome);
    assert_pushed(
        &environment,
        &outcome,
        &[("demo/greeter", &outcome.run), ("demo/greeter", "latest")],
    )
    .await;
    let built = outcome.events_named("image_built");
    for pushed in outcome.events_named("image_pushed") {
        assert_eq!(
            pushed["digest"], built[0]["digest"],
            "the pushed image is not the tested image"
        );
    }
    let bases = outcome.events_named("base_used");
    assert!(
        bases.iter().any(|base| base["role"] == "runtime"
            && base["name"].as_str().unwrap().contains("base/busybox")),
        "{}",
        outcome.transcript()
    );
}

#[tokio::test]
async fn parallel_tests_example_runs_its_tests_in_parallel() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let outcome = run_example(&environment, "parallel-tests", &[]);
    assert_succeeded(&outcome);
    assert_pushed(&environment, &outcome, &[("examples/site", &outcome.run)]).await;
    // In parallel: the last of the tests began before the first of them finished.
    let times = |name: &str| -> Vec<String> {
        let of_tests = outcome.events_named(name).into_iter();
        let of_tests =
            of_tests.filter(|event| event["step"].as_str().unwrap().starts_with("test-"));
        of_tests
            .map(|event| event["time"].as_str().unwrap().to_owned())
            .collect()
    };
    let mut begun = BTreeSet::new();
    for event in outcome.events() {
        match event["event"].as_str().unwrap() {
            "step_started" if event["step"].as_str().unwrap().starts_with("test-") => {
                begun.insert(event["step"].to_string());
            }
            "step_finished" if event["step"].as_str().unwrap().starts_with("test-") => break,
            _ => {}
        }
    }
    assert_eq!(
        begun.len(),
        3,
        "{:?} {:?}",
        times("step_started"),
        times("step_finished")
    );
}

#[tokio::test]
async fn multi_stage_example_pushes_an_image_without_its_secret() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let outcome = run_example(
        &environment,
        "multi-stage",
        &[
            "--set",
            "version=1.2.3",
            "--set-secret",
            "token=a-very-secret-token",
        ],
    );
    assert_succeeded(&outcome);
    assert!(
        !outcome.transcript().contains("a-very-secret-token"),
        "{}",
        outcome.transcript()
    );
    assert_pushed(
        &environment,
        &outcome,
        &[("examples/report", &format!("1.2.3-{}", outcome.run))],
    )
    .await;
    assert_eq!(
        step_output(&outcome, "no-secret-inside"),
        "report, version 1.2.3"
    );
}

#[tokio::test]
async fn monorepo_example_pushes_an_image_for_each_service() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let outcome = run_example(&environment, "monorepo", &[]);
    assert_succeeded(&outcome);
    let run = outcome.run.clone();
    assert_pushed(
        &environment,
        &outcome,
        &[("examples/mono-api", &run), ("examples/mono-web", &run)],
    )
    .await;
    assert_eq!(step_output(&outcome, "test-api"), "the api");
    assert_eq!(step_output(&outcome, "test-web"), "the web site");
}

#[tokio::test]
async fn cache_example_reuses_layers_of_the_first_run() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let task = format!("cache-{}", acrtask_tests::new_run_id());
    let first = run_example(&environment, "cache", &["--task-name", &task]);
    assert_succeeded(&first);
    let tag = format!("cache_{task}_build");
    assert!(
        environment
            .fetch_digest("examples/cached", &tag)
            .await
            .is_some(),
        "no cache in the registry: {}",
        first.transcript()
    );
    let again = run_example(&environment, "cache", &["--task-name", &task]);
    assert_succeeded(&again);
    let vertices = again.events_named("vertex");
    let run = vertices
        .iter()
        .rev()
        .find(|vertex| vertex["name"].as_str().unwrap().contains("RUN i=0"));
    assert_eq!(
        run.expect("the build has the instruction")["cached"],
        true,
        "{}",
        again.transcript()
    );
}

#[tokio::test]
async fn failing_test_example_pushes_nothing() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let outcome = run_example(&environment, "failing-test", &[]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.transcript());
    assert_eq!(outcome.step_state("build"), "succeeded");
    assert_eq!(outcome.step_state("test"), "failed");
    assert_eq!(outcome.step_state("push"), "skipped");
    assert_eq!(
        environment
            .fetch_digest("examples/broken", &outcome.run)
            .await,
        None,
        "the image reached the registry"
    );
    let finished = outcome.events_named("step_finished");
    let test = finished
        .iter()
        .find(|event| event["step"] == "test")
        .unwrap();
    assert_eq!(test["exit_code"], 3);
    assert!(
        test["log_tail"]
            .to_string()
            .contains("not ok 2 - expected 42, got 48"),
        "{test}"
    );
    let push = finished
        .iter()
        .find(|event| event["step"] == "push")
        .unwrap();
    assert_eq!(push["cause"]["step"], "test");
}
