//! Approved pull requests of forks: they share no cache with the task, because their code is not
//! trusted.

use acrtask_tests::{TestEnvironment, new_run_id};

use crate::fixture::{WebhookFixture, only_run};

/// Returns a Dockerfile that prints the content of a cache mount and writes `mark` to it.
fn dockerfile(id: &str, mark: &str) -> String {
    format!(
        "ARG BASE\nFROM ${{BASE}}\nCOPY src/file /file\nRUN --mount=type=cache,id={id},target=/c \
         echo found-$(cat /c/mark 2>/dev/null || echo nothing)-before-{mark} && echo {mark} > /c/mark\n"
    )
}

/// Pushes this Dockerfile to the main branch and returns the log of the run.
fn run_push(fixture: &WebhookFixture, delivery: &str, dockerfile: &str) -> String {
    let before = fixture.resolve_reference("main");
    let commit = fixture
        .repositories
        .commit("app", &[("Dockerfile", dockerfile)]);
    let push = fixture.push_event(&before, &commit, &["Dockerfile"]);
    let (status, receipt) = fixture.deliver("push", delivery, &push);
    assert_eq!(status, 200, "{receipt:#}");
    let id = only_run(&receipt);
    fixture.wait_finished(&id, "succeeded");
    fixture.run_ok(&["runs", "logs", &id]).transcript()
}

/// Runs an approved commit with this Dockerfile from the pull request of a fork. Returns the log.
fn run_fork(fixture: &WebhookFixture, number: u64, delivery: &str, dockerfile: &str) -> String {
    let commit = fixture.commit_pull_request(number, &[("Dockerfile", dockerfile)]);
    let opened = fixture.pull_request_event("opened", number, "fork/app", &commit);
    let (_, receipt) = fixture.deliver("pull_request", delivery, &opened);
    let id = only_run(&receipt);
    fixture.run_ok(&["runs", "approve", &id]);
    fixture.wait_finished(&id, "succeeded");
    fixture.run_ok(&["runs", "logs", &id]).transcript()
}

#[tokio::test(flavor = "multi_thread")]
async fn approved_fork_shares_no_cache_with_the_task() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let fixture = WebhookFixture::new(&environment);
    fixture.create_task("app", &["--pull-request-trigger-enabled", "true"]);
    let id = format!("fork-{}", new_run_id());
    let log = run_push(&fixture, "delivery-1", &dockerfile(&id, "main1"));
    assert!(log.contains("found-nothing-before-main1"), "{log}");
    let log = run_fork(&fixture, 7, "delivery-2", &dockerfile(&id, "fork7"));
    assert!(log.contains("found-nothing-before-fork7"), "{log}");
    // The pull request of another fork gets no entry of the first.
    let log = run_fork(&fixture, 8, "delivery-3", &dockerfile(&id, "fork8"));
    assert!(log.contains("found-nothing-before-fork8"), "{log}");
    let log = run_push(&fixture, "delivery-4", &dockerfile(&id, "main2"));
    assert!(log.contains("found-main1-before-main2"), "{log}");
}
