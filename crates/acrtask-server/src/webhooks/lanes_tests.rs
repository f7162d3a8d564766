//! Runs of the same branch or pull request: strangers, newer commits, the same commit twice.

use acrtask_api::{
    run::{Approval, Run, Waiting},
    spec::{ContextSource, SharedCache},
    webhook::{Delivery, OutcomeKind, Receipt},
};
use acrtask_model::{RunState, TrustDomain};
use serde_json::json;

use super::testing::{GITHUB, Sent, World, commit, github_pull_request, github_push};
use crate::submit;

#[tokio::test]
async fn an_approval_lets_no_task_push_that_never_does() {
    let world = World::new().await;
    world.webhook("forge", "github").await;
    world
        .put(
            "/tasks/app",
            json!({
                "name": "app", "context": GITHUB, "noPush": true,
                "triggers": {"commit": {"events": ["pullRequest"], "branches": ["main"]}},
            }),
        )
        .await;
    let sent = github_pull_request("pr_from_fork", &commit(1), "p1");
    let receipt = world.taken("forge", &sent).await;
    let approve = format!("/runs/{}/approve", receipt.runs[0]);
    let approved: Run = serde_json::from_value(world.post(&approve, json!({})).await).unwrap();
    assert_eq!(approved.approval, Some(Approval::Approved));
    assert!(approved.spec.no_push);
}

#[tokio::test]
async fn a_strangers_pull_request_waits_and_gets_nothing() {
    let world = World::new().await;
    world.webhook("forge", "github").await;
    world
        .put(
            "/credentials/github.com",
            json!({"username": "u", "password": "a password"}),
        )
        .await;
    let rules = json!({"events": ["pullRequest"], "branches": ["main"], "newestWins": true});
    world.task("app", GITHUB, rules).await;
    let first = github_pull_request("pr_from_fork", &commit(1), "p1");
    let receipt = world.taken("forge", &first).await;
    let held = world.run(&receipt.runs[0]).await;
    assert_eq!((held.state, held.held), (RunState::Queued, true));
    assert_eq!(held.approval, Some(Approval::Pending));
    assert!(held.spec.no_push);
    assert!(matches!(held.spec.cache, SharedCache::ReadOnly { .. }));
    let ContextSource::Url {
        url, commit: at, ..
    } = &held.spec.context
    else {
        panic!();
    };
    assert_eq!(url, "https://github.com/team/app.git#refs/pull/7/head");
    assert_eq!(at.as_deref(), Some(commit(1).as_str()));
    let waiting: Waiting = world.get(&format!("/runs/{}/why", held.id)).await;
    assert!(
        waiting
            .summary
            .starts_with("it waits for somebody to approve the commit 0000"),
        "{}",
        waiting.summary
    );
    assert_eq!(world.server.app().store.ready_classes().await.unwrap(), []);
    // Should it ever be handed out, nothing goes with it.
    let app = world.server.app();
    let payload = submit::lease_payload(app, &held).await.unwrap();
    assert!(payload.secrets.is_empty() && payload.credentials.is_empty());
    assert_eq!(payload.vault_task, None);
    assert!(payload.spec_json.contains("\"noPush\":true"));
    assert!(
        !payload.spec_json.contains("\"secrets\""),
        "{}",
        payload.spec_json
    );
    // A rerun of it is not trusted either.
    let rerun: Run = serde_json::from_value(
        world
            .post(&format!("/runs/{}/rerun", held.id), json!({}))
            .await,
    )
    .unwrap();
    assert_eq!(rerun.approval, Some(Approval::Pending));
    // Only who may write tasks approves.
    let weak = world
        .post(
            "/tokens",
            json!({"name": "weak", "scopes": ["read", "run"]}),
        )
        .await;
    let answer = world
        .http
        .post(world.url(&format!("/api/v1/runs/{}/approve", held.id)))
        .bearer_auth(weak["secret"].as_str().unwrap())
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status().as_u16(), 403);
    let approved: Run = serde_json::from_value(
        world
            .post(&format!("/runs/{}/approve", held.id), json!({}))
            .await,
    )
    .unwrap();
    assert_eq!(approved.approval, Some(Approval::Approved));
    assert_eq!(approved.approved_by.as_deref(), Some("admin"));
    assert!(!approved.spec.no_push);
    let ready = world.run(&held.id).await;
    assert!(!ready.held);
    // An approved commit is still foreign code: it shares no cache with the task.
    assert!(matches!(ready.spec.cache, SharedCache::ReadOnly { .. }));
    assert_eq!(
        ready.trust_domain.owner(),
        &TrustDomain::Task {
            id: ready.task_id.clone().unwrap()
        }
    );
    assert_ne!(ready.trust_domain.owner(), &ready.trust_domain);
    let payload = submit::lease_payload(app, &ready).await.unwrap();
    assert_eq!(payload.secrets["token"].expose(), "hush");
    assert_eq!(payload.credentials.len(), 1);
    assert_eq!(payload.vault_task, ready.task_name);
    let (status, answer) = world
        .api(
            reqwest::Method::POST,
            &format!("/runs/{}/approve", held.id),
            json!({}),
        )
        .await;
    assert_eq!(status, 409, "{answer}");
    // The next commit was not approved: it ends no run that was.
    let second = world
        .taken(
            "forge",
            &github_pull_request("pr_from_fork", &commit(2), "p2"),
        )
        .await;
    let next = world.run(&second.runs[0]).await;
    assert_eq!(next.approval, Some(Approval::Pending));
    assert_eq!(world.run(&held.id).await.state, RunState::Queued);
    // Whoever may merge it ends all of its runs.
    let closed = Sent::changed("github", "pr_merged", |body| {
        body["number"] = 7.into();
        body["pull_request"]["number"] = 7.into();
    });
    let receipt = world.taken("forge", &closed).await;
    assert_eq!(receipt.runs, []);
    assert_eq!(world.run(&next.id).await.state, RunState::Canceled);
    assert_eq!(world.run(&held.id).await.state, RunState::Canceled);
    let delivery: Delivery = world
        .get(&format!("/deliveries/{}", receipt.delivery))
        .await;
    assert_eq!(delivery.outcomes[0].what, OutcomeKind::Suppressed);
    assert!(
        delivery.outcomes[0].reason.contains("was merged"),
        "{delivery:?}"
    );
    // A task may want nothing of strangers.
    let rules = json!({"events": ["pullRequest"], "branches": ["main"], "forks": "ignore"});
    world.task("app", GITHUB, rules).await;
    let third = github_pull_request("pr_from_fork", &commit(3), "p3");
    assert_eq!(world.taken("forge", &third).await.runs, []);
}

#[tokio::test]
async fn the_newest_commit_wins_where_the_task_says_so() {
    let world = World::new().await;
    world.webhook("forge", "github").await;
    world.task("app", GITHUB, json!({"newestWins": true})).await;
    let mut runs = Vec::new();
    for n in 1..=3 {
        let one = github_push(&commit(n), &format!("d{n}"));
        runs.push(world.taken("forge", &one).await.runs[0].clone());
    }
    let mut states = Vec::new();
    for run in &runs {
        states.push(world.run(run).await.state);
    }
    assert_eq!(
        states,
        [RunState::Canceled, RunState::Canceled, RunState::Queued]
    );
    let row = world.run(&runs[0]).await;
    assert_eq!(row.reason, Some(format!("superseded by {}", runs[1])));
    let last = world.run(&runs[2]).await;
    assert!(last.group.is_some() && !last.held);
    // A second webhook of the same repository tells of the same commit: one run.
    world.webhook("second", "github").await;
    let receipt = world.taken("second", &github_push(&commit(3), "x3")).await;
    assert_eq!(receipt.runs, [runs[2].clone()]);
    let delivery: Delivery = world
        .get(&format!("/deliveries/{}", receipt.delivery))
        .await;
    assert_eq!(delivery.outcomes[0].what, OutcomeKind::Joined);
    assert_eq!(world.runs().await.len(), 3);
}

#[tokio::test]
async fn a_signed_body_that_comes_again_under_another_id_starts_nothing() {
    let world = World::new().await;
    world.webhook("forge", "github").await;
    world.task("app", GITHUB, json!({})).await;
    let first = world.taken("forge", &github_push(&commit(1), "d1")).await;
    let replayed = world
        .taken("forge", &github_push(&commit(1), "forged"))
        .await;
    assert_eq!(replayed.runs, []);
    let delivery: Delivery = world
        .get(&format!("/deliveries/{}", replayed.delivery))
        .await;
    assert!(
        delivery.outcomes[0].reason.contains(&first.delivery),
        "{delivery:?}"
    );
    let redelivered: Receipt = serde_json::from_value(
        world
            .post(
                &format!("/deliveries/{}/redeliver", first.delivery),
                json!({}),
            )
            .await,
    )
    .unwrap();
    assert_eq!(redelivered.runs.len(), 1);
    let delivery: Delivery = world
        .get(&format!("/deliveries/{}", redelivered.delivery))
        .await;
    assert_eq!(delivery.redelivery_of, Some(first.delivery));
}

#[tokio::test]
async fn tag_pushed_again_at_bitbucket_cloud_runs_again() {
    let world = World::new().await;
    world.webhook("forge", "bitbucket-cloud").await;
    let context = "https://bitbucket.org/team/app.git";
    let rules = json!({"events": ["push", "tag"], "branches": ["feature/x"], "tags": ["*"]});
    world.task("app", context, rules).await;
    let send = async |id: &str| {
        let mut one = Sent::fixture("bitbucket-cloud", "push_branch_and_tag");
        one.set("x-request-uuid", id);
        world.taken("forge", &one).await
    };
    let first = send("one").await;
    assert!(!first.runs.is_empty(), "{first:?}");
    // A retry has the same id.
    let retried = send("one").await;
    assert!(
        retried.seen_before && retried.runs.is_empty(),
        "{retried:?}"
    );
    for run in &first.runs {
        world.post(&format!("/runs/{run}/cancel"), json!({})).await;
    }
    let again = send("two").await;
    assert_eq!(again.runs.len(), first.runs.len(), "{again:?}");
    assert_ne!(again.runs, first.runs);
}

#[tokio::test]
async fn commit_that_comes_back_runs_after_the_one_between() {
    let world = World::new().await;
    world.webhook("forge", "github").await;
    world
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
        // Each push has a body of its own.
        let mut body: serde_json::Value = serde_json::from_slice(&one.body).unwrap();
        body["before"] = id.repeat(20).into();
        one.body = serde_json::to_vec(&body).unwrap();
        one.prove("github", super::testing::SECRET);
        runs.extend(world.taken("forge", &one).await.runs);
    }
    assert_eq!(runs.len(), 3);
    let last = world.run(&runs[2]).await;
    assert_eq!(last.commit, Some(commit(1)));
    assert_ne!(runs[0], runs[2]);
}

#[tokio::test]
async fn a_strangers_pull_request_cancels_no_run() {
    let world = World::new().await;
    world.webhook("forge", "github").await;
    world
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
        serde_json::from_value(world.post("/tasks/app/runs", json!({})).await).unwrap();
    let is_untouched = async |when: &str| {
        let row = world.run(&trusted.id).await;
        assert_eq!(
            (row.state, row.cancel_reason),
            (RunState::Queued, None),
            "{when}"
        );
        assert!(!row.held, "{when}: the run has its place");
    };
    let send = async |n: u32, action: &str, name: &str| {
        let mut sent = Sent::changed("github", "pr_from_fork", |body| {
            body["pull_request"]["head"]["sha"] = commit(n).into();
            body["action"] = action.into();
        });
        sent.set("x-github-delivery", name);
        world.taken("forge", &sent).await
    };
    let first = send(1, "opened", "p1").await.runs[0].clone();
    is_untouched("opened").await;
    let second = send(2, "synchronize", "p2").await.runs[0].clone();
    is_untouched("updated").await;
    // A newer commit of the stranger replaces the one that waits.
    assert_eq!(world.run(&first).await.state, RunState::Canceled);
    world
        .post(&format!("/runs/{second}/approve"), json!({}))
        .await;
    is_untouched("approved").await;
    send(3, "synchronize", "p3").await;
    send(3, "closed", "p4").await;
    send(3, "reopened", "p5").await;
    is_untouched("closed and reopened").await;
    // Nor does the stranger end what a maintainer approved.
    let approved = world.run(&second).await;
    assert_eq!(
        (approved.state, approved.cancel_reason),
        (RunState::Queued, None)
    );
    assert!(approved.held, "it waits for its place in the group");
}
