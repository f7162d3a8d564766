//! An approved pull request of a fork shares no cache with the task: it is foreign code all the same.

use acrtask_tests::{World, new_run_id};

use crate::place::{Place, only_run};

/// A Dockerfile that shows what a cache mount holds, and puts `mark` there.
fn dockerfile(id: &str, mark: &str) -> String {
    format!(
        "ARG BASE\nFROM ${{BASE}}\nCOPY src/file /file\nRUN --mount=type=cache,id={id},target=/c \
         echo found-$(cat /c/mark 2>/dev/null || echo nothing)-before-{mark} && echo {mark} > /c/mark\n"
    )
}

/// Runs a push of this Dockerfile to the main branch, and returns its log.
fn log_of_push(place: &Place, delivery: &str, dockerfile: &str) -> String {
    let before = place.head("main");
    let commit = place
        .repositories
        .commit("app", &[("Dockerfile", dockerfile)]);
    let push = place.push(&before, &commit, &["Dockerfile"]);
    let (status, receipt) = place.deliver("push", delivery, &push);
    assert_eq!(status, 200, "{receipt:#}");
    let id = only_run(&receipt);
    place.finished(&id, "succeeded");
    place.ok(&["runs", "logs", &id]).all()
}

/// Runs an approved commit of a fork's pull request with this Dockerfile, and returns its log.
fn log_of_fork(place: &Place, number: u64, delivery: &str, dockerfile: &str) -> String {
    let commit = place.commit_of_pull_request(number, &[("Dockerfile", dockerfile)]);
    let opened = place.pull_request("opened", number, "stranger/app", &commit);
    let (_, receipt) = place.deliver("pull_request", delivery, &opened);
    let id = only_run(&receipt);
    place.ok(&["runs", "approve", &id]);
    place.finished(&id, "succeeded");
    place.ok(&["runs", "logs", &id]).all()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approved_fork_shares_no_cache_with_the_task() {
    let Some(world) = World::find() else { return };
    let place = Place::new(&world);
    place.task("app", &["--pull-request-trigger-enabled", "true"]);
    let id = format!("fork-{}", new_run_id());
    let log = log_of_push(&place, "delivery-1", &dockerfile(&id, "main1"));
    assert!(log.contains("found-nothing-before-main1"), "{log}");
    let log = log_of_fork(&place, 7, "delivery-2", &dockerfile(&id, "fork7"));
    assert!(log.contains("found-nothing-before-fork7"), "{log}");
    // Another fork's pull request gets nothing of that one.
    let log = log_of_fork(&place, 8, "delivery-3", &dockerfile(&id, "fork8"));
    assert!(log.contains("found-nothing-before-fork8"), "{log}");
    let log = log_of_push(&place, "delivery-4", &dockerfile(&id, "main2"));
    assert!(log.contains("found-main1-before-main2"), "{log}");
}
