//! Tests of runs of one branch or pull request: forks, newer commits, repeated commits.

use acrtask_api::{
    run::{Approval, Run, Waiting},
    spec::{ContextSource, SharedCache},
    webhook::{DecisionAction, Delivery, Receipt},
};
use acrtask_model::{RunState, TrustDomain};
use serde_json::json;

use super::testing::{GITHUB, TestDelivery, TestServer, commit, github_pull_request, github_push};
use crate::scheduler;

#[tokio::test]
async fn approval_keeps_no_push_of_the_task() {
    let server = TestServer::new().await;
    server.add_webhook("forge", "github").await;
    server
        .put(
            "/tasks/app",
            json!({
                "name": "app", "context": GITHUB, "noPush": true,
                "triggers": {"commit": {"events": ["pullRequest"], "branches": ["main"]}},
            }),
        )
        .await;
    let sent = github_pull_request("pr_from_fork", &commit(1), "p1");
    let receipt = server.deliver("forge", &sent).await;
    let approve = format!("/runs/{}/approve", receipt.runs[0]);
    let approved: Run = serde_json::from_value(server.post(&approve, json!({})).await).unwrap();
    assert_eq!(approved.approval, Some(Approval::Approved));
    assert!(approved.spec.no_push);
}

#[tokio::test]
async fn fork_pull_request_waits_without_secrets() {
    let server = TestServer::new().await;
    server.add_webhook("forge", "github").await;
    server
        .put(
            "/credentials/github.com",
            json!({"username": "u", "password": "a password"}),
        )
        .await;
    let rules = json!({"events": ["pullRequest"], "branches": ["main"], "newestWins": true});
    server.add_task("app", GITHUB, rules).await;
    let first = github_pull_request("pr_from_fork", &commit(1), "p1");
    let receipt = server.deliver("forge", &first).await;
    let waiting_run = server.run(&receipt.runs[0]).await;
    assert_eq!(
        (waiting_run.state, waiting_run.blocked),
        (RunState::Queued, true)
    );
    assert_eq!(waiting_run.approval, Some(Approval::Pending));
    assert!(waiting_run.spec.no_push);
    assert!(matches!(
        waiting_run.spec.cache,
        SharedCache::ReadOnly { .. }
    ));
    let ContextSource::Url {
        url, commit: at, ..
    } = &waiting_run.spec.context
    else {
        panic!();
    };
    assert_eq!(url, "https://github.com/team/app.git#refs/pull/7/head");
    assert_eq!(at.as_deref(), Some(commit(1).as_str()));
    let waiting: Waiting = server.get(&format!("/runs/{}/why", waiting_run.id)).await;
    assert!(
        waiting
            .summary
            .starts_with("it waits for an approval of the commit 0000"),
        "{}",
        waiting.summary
    );
    assert_eq!(
        server.inner.app().store.ready_requirements().await.unwrap(),
        []
    );
    // A lease of the waiting run would contain no secrets and no credentials.
    let app = server.inner.app();
    let payload = scheduler::load_lease_payload(app, &waiting_run)
        .await
        .unwrap();
    assert!(payload.secrets.is_empty() && payload.credentials.is_empty());
    assert_eq!(payload.vault_task, None);
    assert!(payload.spec_json.contains("\"noPush\":true"));
    assert!(
        !payload.spec_json.contains("\"secrets\""),
        "{}",
        payload.spec_json
    );
    // A rerun of the run is not trusted either.
    let rerun: Run = serde_json::from_value(
        server
            .post(&format!("/runs/{}/rerun", waiting_run.id), json!({}))
            .await,
    )
    .unwrap();
    assert_eq!(rerun.approval, Some(Approval::Pending));
    // Only a token that may write tasks may approve.
    let weak = server
        .post(
            "/tokens",
            json!({"name": "weak", "scopes": ["read", "run"]}),
        )
        .await;
    let answer = server
        .http
        .post(server.url(&format!("/api/v1/runs/{}/approve", waiting_run.id)))
        .bearer_auth(weak["secret"].as_str().unwrap())
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status().as_u16(), 403);
    let approved: Run = serde_json::from_value(
        server
            .post(&format!("/runs/{}/approve", waiting_run.id), json!({}))
            .await,
    )
    .unwrap();
    assert_eq!(approved.approval, Some(Approval::Approved));
    assert_eq!(approved.approved_by.as_deref(), Some("admin"));
    assert!(!approved.spec.no_push);
    let ready = server.run(&waiting_run.id).await;
    assert!(!ready.blocked);
    // An approved commit is still foreign code: it shares no cache with the task.
    assert!(matches!(ready.spec.cache, SharedCache::ReadOnly { .. }));
    assert_eq!(
        ready.trust_domain.owner(),
        &TrustDomain::Task {
            id: ready.task_id.clone().unwrap()
        }
    );
    assert_ne!(ready.trust_domain.owner(), &ready.trust_domain);
    let payload = scheduler::load_lease_payload(app, &ready).await.unwrap();
    assert_eq!(payload.secrets["token"].expose(), "hush");
    assert_eq!(payload.credentials.len(), 1);
    assert_eq!(payload.vault_task, ready.task_name);
    let (status, answer) = server
        .request(
            reqwest::Method::POST,
            &format!("/runs/{}/approve", waiting_run.id),
            json!({}),
        )
        .await;
    assert_eq!(status, 409, "{answer}");
    // The next commit is not approved, so it cancels no approved run.
    let second = server
        .deliver(
            "forge",
            &github_pull_request("pr_from_fork", &commit(2), "p2"),
        )
        .await;
    let next = server.run(&second.runs[0]).await;
    assert_eq!(next.approval, Some(Approval::Pending));
    assert_eq!(server.run(&waiting_run.id).await.state, RunState::Queued);
    // A merge cancels all runs of the pull request.
    let closed = TestDelivery::modified_fixture("github", "pr_merged", |body| {
        body["number"] = 7.into();
        body["pull_request"]["number"] = 7.into();
    });
    let receipt = server.deliver("forge", &closed).await;
    assert_eq!(receipt.runs, []);
    assert_eq!(server.run(&next.id).await.state, RunState::Canceled);
    assert_eq!(server.run(&waiting_run.id).await.state, RunState::Canceled);
    let delivery: Delivery = server
        .get(&format!("/deliveries/{}", receipt.delivery))
        .await;
    assert_eq!(delivery.decisions[0].action, DecisionAction::Ignored);
    assert!(
        delivery.decisions[0].reason.contains("was merged"),
        "{delivery:?}"
    );
    // A task may ignore forks.
    let rules = json!({"events": ["pullRequest"], "branches": ["main"], "forks": "ignore"});
    server.add_task("app", GITHUB, rules).await;
    let third = github_pull_request("pr_from_fork", &commit(3), "p3");
    assert_eq!(server.deliver("forge", &third).await.runs, []);
}

#[tokio::test]
async fn newest_commit_supersedes_older_runs_with_newest_wins() {
    let server = TestServer::new().await;
    server.add_webhook("forge", "github").await;
    server
        .add_task("app", GITHUB, json!({"newestWins": true}))
        .await;
    let mut runs = Vec::new();
    for n in 1..=3 {
        let one = github_push(&commit(n), &format!("d{n}"));
        runs.push(server.deliver("forge", &one).await.runs[0].clone());
    }
    let mut states = Vec::new();
    for run in &runs {
        states.push(server.run(run).await.state);
    }
    assert_eq!(
        states,
        [RunState::Canceled, RunState::Canceled, RunState::Queued]
    );
    let row = server.run(&runs[0]).await;
    assert_eq!(row.reason, Some(format!("superseded by {}", runs[1])));
    let last = server.run(&runs[2]).await;
    assert!(last.group.is_some() && !last.blocked);
    // A second webhook reports the same commit: there is still one run.
    server.add_webhook("second", "github").await;
    let receipt = server
        .deliver("second", &github_push(&commit(3), "x3"))
        .await;
    assert_eq!(receipt.runs, [runs[2].clone()]);
    let delivery: Delivery = server
        .get(&format!("/deliveries/{}", receipt.delivery))
        .await;
    assert_eq!(delivery.decisions[0].action, DecisionAction::ExistingRun);
    assert_eq!(server.runs().await.len(), 3);
}

#[tokio::test]
async fn replayed_signed_body_starts_no_run() {
    let server = TestServer::new().await;
    server.add_webhook("forge", "github").await;
    server.add_task("app", GITHUB, json!({})).await;
    let first = server
        .deliver("forge", &github_push(&commit(1), "d1"))
        .await;
    let replayed = server
        .deliver("forge", &github_push(&commit(1), "forged"))
        .await;
    assert_eq!(replayed.runs, []);
    let delivery: Delivery = server
        .get(&format!("/deliveries/{}", replayed.delivery))
        .await;
    assert!(
        delivery.decisions[0].reason.contains(&first.delivery),
        "{delivery:?}"
    );
    let redelivered: Receipt = serde_json::from_value(
        server
            .post(
                &format!("/deliveries/{}/redeliver", first.delivery),
                json!({}),
            )
            .await,
    )
    .unwrap();
    assert_eq!(redelivered.runs.len(), 1);
    let delivery: Delivery = server
        .get(&format!("/deliveries/{}", redelivered.delivery))
        .await;
    assert_eq!(delivery.redelivery_of, Some(first.delivery));
}

#[tokio::test]
async fn repeated_tag_push_at_bitbucket_cloud_runs_again() {
    let server = TestServer::new().await;
    server.add_webhook("forge", "bitbucket-cloud").await;
    let context = "https://bitbucket.org/team/app.git";
    let rules = json!({"events": ["push", "tag"], "branches": ["feature/x"], "tags": ["*"]});
    server.add_task("app", context, rules).await;
    let send = async |id: &str| {
        let mut one = TestDelivery::from_fixture("bitbucket-cloud", "push_branch_and_tag");
        one.set_header("x-request-uuid", id);
        server.deliver("forge", &one).await
    };
    let first = send("one").await;
    assert!(!first.runs.is_empty(), "{first:?}");
    // A retry has the same id.
    let retried = send("one").await;
    assert!(retried.duplicate && retried.runs.is_empty(), "{retried:?}");
    for run in &first.runs {
        server.post(&format!("/runs/{run}/cancel"), json!({})).await;
    }
    let again = send("two").await;
    assert_eq!(again.runs.len(), first.runs.len(), "{again:?}");
    assert_ne!(again.runs, first.runs);
}

#[tokio::test]
async fn commit_pushed_again_after_another_runs_again() {
    let server = TestServer::new().await;
    server.add_webhook("forge", "github").await;
    server
        .put(
            "/tasks/app",
            json!({
                "name": "app", "context": GITHUB, "file": "acr-task.yaml",
                "queue": {"concurrency": {"max": 1}},
                "triggers": {"commit": {}},
            }),
        )
        .await;
    let mut runs = Vec::new();
    for (n, id) in [(1, "d1"), (2, "d2"), (1, "d3")] {
        let mut one = github_push(&commit(n), id);
        // Each push has its own body.
        let mut body: serde_json::Value = serde_json::from_slice(&one.body).unwrap();
        body["before"] = id.repeat(20).into();
        one.body = serde_json::to_vec(&body).unwrap();
        one.sign("github", super::testing::SECRET);
        runs.extend(server.deliver("forge", &one).await.runs);
    }
    assert_eq!(runs.len(), 3);
    let last = server.run(&runs[2]).await;
    assert_eq!(last.commit, Some(commit(1)));
    assert_ne!(runs[0], runs[2]);
}

#[tokio::test]
async fn fork_pull_request_cancels_no_trusted_run() {
    let server = TestServer::new().await;
    server.add_webhook("forge", "github").await;
    server
        .put(
            "/tasks/app",
            json!({
                "name": "app", "context": GITHUB, "file": "acr-task.yaml",
                "queue": {"concurrency": {"max": 1, "cancelSuperseded": true}},
                "triggers": {"commit": {"events": ["push", "pullRequest"], "branches": ["main"], "newestWins": true}},
            }),
        )
        .await;
    let trusted: Run =
        serde_json::from_value(server.post("/tasks/app/runs", json!({})).await).unwrap();
    let is_untouched = async |when: &str| {
        let row = server.run(&trusted.id).await;
        assert_eq!(
            (row.state, row.cancel_reason),
            (RunState::Queued, None),
            "{when}"
        );
        assert!(!row.blocked, "{when}: the run has its place");
    };
    let send = async |n: u32, action: &str, name: &str| {
        let mut sent = TestDelivery::modified_fixture("github", "pr_from_fork", |body| {
            body["pull_request"]["head"]["sha"] = commit(n).into();
            body["action"] = action.into();
        });
        sent.set_header("x-github-delivery", name);
        server.deliver("forge", &sent).await
    };
    let first = send(1, "opened", "p1").await.runs[0].clone();
    is_untouched("opened").await;
    let second = send(2, "synchronize", "p2").await.runs[0].clone();
    is_untouched("updated").await;
    // A newer commit of the fork replaces the waiting one.
    assert_eq!(server.run(&first).await.state, RunState::Canceled);
    server
        .post(&format!("/runs/{second}/approve"), json!({}))
        .await;
    is_untouched("approved").await;
    send(3, "synchronize", "p3").await;
    send(3, "closed", "p4").await;
    send(3, "reopened", "p5").await;
    is_untouched("closed and reopened").await;
    // The fork does not cancel the approved run either.
    let approved = server.run(&second).await;
    assert_eq!(
        (approved.state, approved.cancel_reason),
        (RunState::Queued, None)
    );
    assert!(approved.blocked, "it waits for its place in the group");
}
