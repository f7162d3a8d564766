//! Deliveries as GitHub sends them: at a steady rate, and one at a time to measure the start of the
//! first step.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use acrtask_api::{
    run::{Run, SecretText},
    task::{CommitTrigger, PathFilter, TaskDefinition, Triggers},
    webhook::{PutWebhook, Receipt},
};
use acrtask_model::{Event, EventKind};
use acrtask_tests::{
    forge::signature,
    git_server::{HttpGit, Repositories},
};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::api::{Api, percentiles};

const SECRET: &str = "the secret of the benchmark's webhook";
/// Name of the webhook.
const HOOK: &str = "bench";
const REPOSITORIES: usize = 20;
/// Tasks of each repository. A push changes files of one of them.
const TASKS: usize = 5;

/// Sends `rate` deliveries a second. Reports how long each waited for its response, counted from
/// its scheduled time.
pub(crate) async fn send_steadily(server: &str, token: &str, rate: u32, seconds: u32) -> Value {
    let api = Api::new(server, token);
    let url = |repository: usize| format!("https://git.example.com/bench/repo-{repository}.git");
    for repository in 0..REPOSITORIES {
        for task in 0..TASKS {
            let definition = TaskDefinition {
                context: Some(format!("{}#main", url(repository))),
                cmd: Some("reg.example.com/app:1 true".into()),
                triggers: commit_trigger(vec![format!("services/{task}/**")]),
                ..definition(&format!("bench/{repository}-{task}"))
            };
            let _: Value = api.post("/tasks", &definition).await;
        }
    }
    put_webhook(&api).await;
    // Signed in advance, because a real sender signs on another machine.
    let deliveries: Vec<(String, String)> = (0..rate * seconds)
        .map(|n| {
            let index = n as usize;
            let repository = index % REPOSITORIES;
            let file = format!("services/{}/src/main.rs", (index / REPOSITORIES) % TASKS);
            let commits: Vec<String> = (0..6).map(|i| commit_id(n * 8 + i + 1)).collect();
            let body =
                push_event(&url(repository), &commit_id(n * 8 + 7), &commits, &file).to_string();
            let signed = signature(SECRET, body.as_bytes());
            (body, signed)
        })
        .collect();
    let bytes: usize = deliveries.iter().map(|(body, _)| body.len()).sum();
    let bytes = bytes / deliveries.len();
    let api = Arc::new(api);
    let begun = Instant::now();
    let mut sent = JoinSet::new();
    for (n, (body, signed)) in (0_u32..).zip(deliveries) {
        let due = begun + Duration::from_secs(1) * n / rate;
        tokio::time::sleep_until(due.into()).await;
        let api = api.clone();
        sent.spawn(async move {
            let receipt = send(&api, &format!("steady-{n}"), body, &signed).await;
            (due.elapsed().as_secs_f64() * 1000.0, receipt)
        });
    }
    let (mut waits, mut runs, mut refused) = (Vec::new(), 0, Vec::new());
    while let Some(answered) = sent.join_next().await {
        let (wait, receipt) = answered.unwrap();
        waits.push(wait);
        match receipt {
            Ok(receipt) => runs += receipt.runs.len(),
            Err(why) => refused.push(why),
        }
    }
    let taken = begun.elapsed().as_secs_f64();
    let mut report = percentiles(waits);
    report["runs"] = runs.into();
    report["refused"] = refused.len().into();
    report["why"] = json!(refused.first());
    report["bytes"] = bytes.into();
    report["per_second"] = json!(f64::from(rate * seconds) / taken);
    report
}

/// Pushes commits to a small repository on this machine, each after the run of the previous one has
/// finished.
///
/// Reports the time between the delivery and the first step without the checkout, and the checkout
/// time.
pub(crate) async fn measure_first_step(
    server: &str,
    token: &str,
    image: &str,
    runs: usize,
) -> Value {
    let api = Api::new(server, token);
    let repositories = Repositories::default();
    repositories.create("app");
    let file = format!("version: v1.1.0\nsteps:\n  - id: one\n    cmd: {image} true\n");
    let mut before = repositories.commit("app", &[("acr-task.yaml", &file)]);
    let git = HttpGit::start(&repositories.root(), None);
    let url = git.url("app");
    let definition = TaskDefinition {
        context: Some(format!("{url}#main")),
        triggers: commit_trigger(Vec::new()),
        ..definition("bench/first-step")
    };
    let _: Value = api.post("/tasks", &definition).await;
    put_webhook(&api).await;
    let (mut waits, mut checkouts) = (Vec::new(), Vec::new());
    // The first runs warm up connections, pages and the engine.
    for n in 0..runs + 5 {
        let commit = repositories.commit("app", &[("src/file", &format!("{n}\n"))]);
        let body = push_event(&url, &before, std::slice::from_ref(&commit), "src/file").to_string();
        let signed = signature(SECRET, body.as_bytes());
        before = commit;
        // Lets the system become idle: the cleanup of the last run must be finished.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let requested = Timestamp::now();
        let receipt = send(&api, &format!("first-{n}"), body, &signed).await;
        let receipt = receipt.unwrap_or_else(|why| panic!("the delivery was refused: {why}"));
        let id = receipt
            .runs
            .first()
            .expect("the delivery starts a run")
            .clone();
        loop {
            let run: Run =
                serde_json::from_str(&api.get_text(&format!("/runs/{id}")).await).unwrap();
            if run.state.is_final() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let log = api.get_text(&format!("/runs/{id}/log?format=json")).await;
        let events: Vec<Event> = log
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        let time_of = |name: &str, is: &dyn Fn(&EventKind) -> bool| {
            let found = events.iter().find(|event| is(&event.kind));
            found
                .unwrap_or_else(|| panic!("run {id} reported no event: {name}:\n{log}"))
                .time
        };
        let has_prefix = |kind: &EventKind, word: &str| matches!(kind, EventKind::Progress { message } if message.starts_with(word));
        let fetching = time_of("its checkout", &|kind| has_prefix(kind, "fetching "));
        let fetched = time_of("the end of its checkout", &|kind| {
            has_prefix(kind, "fetched ")
        });
        let began = time_of("a step", &|kind| {
            matches!(kind, EventKind::StepStarted { .. })
        });
        if n >= 5 {
            let checkout = fetched.duration_since(fetching).as_millis_f64();
            checkouts.push(checkout);
            waits.push(began.duration_since(requested).as_millis_f64() - checkout);
        }
    }
    json!({ "wait": percentiles(waits), "checkout": percentiles(checkouts) })
}

fn definition(name: &str) -> TaskDefinition {
    serde_json::from_value(json!({ "name": name, "cache": false })).unwrap()
}

fn commit_trigger(include: Vec<String>) -> Triggers {
    Triggers {
        commit: Some(CommitTrigger {
            paths: PathFilter {
                include,
                ..PathFilter::default()
            },
            ..CommitTrigger::default()
        }),
        ..Triggers::default()
    }
}

async fn put_webhook(api: &Api) {
    let webhook = PutWebhook {
        provider: "github".into(),
        secrets: vec![SecretText(SECRET.into())],
        ..PutWebhook::default()
    };
    let _: Value = api.put(&format!("/webhooks/{HOOK}"), &webhook).await;
}

async fn send(api: &Api, id: &str, body: String, signature: &str) -> Result<Receipt, String> {
    let request = api
        .client
        .post(format!("{}/hooks/{HOOK}", api.server))
        .header("content-type", "application/json")
        .header("user-agent", "GitHub-Hookshot/1")
        .header("x-github-event", "push")
        .header("x-github-delivery", id)
        .header("x-hub-signature-256", signature)
        .body(body);
    let answer = request.send().await.map_err(|error| error.to_string())?;
    let status = answer.status();
    let text = answer.text().await.map_err(|error| error.to_string())?;
    if !status.is_success() {
        return Err(format!("{status}: {text}"));
    }
    serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))
}

fn commit_id(n: u32) -> String {
    format!("{n:040x}")
}

/// Returns a push event of the size that GitHub sends: about 10 KB.
fn push_event(url: &str, before: &str, commits: &[String], file: &str) -> Value {
    let name = url.rsplit('/').next().unwrap_or_default();
    let name = name.trim_end_matches(".git");
    let web = format!("https://git.example.com/bench/{name}");
    let author = json!({ "name": "A Developer", "email": "a.developer@example.com", "username": "a-developer" });
    let commits: Vec<Value> = commits
        .iter()
        .map(|id| {
            json!({
                "id": id, "tree_id": id, "distinct": true,
                "message": "area: a change with a subject line of the usual length\n\nAnd a few words that say why, over two lines,\nas people write them.",
                "timestamp": "2026-01-02T03:04:05+01:00", "url": format!("{web}/commit/{id}"),
                "author": author, "committer": author,
                "added": [], "removed": [], "modified": [file, format!("{file}.md")]
            })
        })
        .collect();
    let mut repository = json!({
        "id": 123_456_789, "node_id": "R_kgDOAAAAAA", "name": name, "full_name": format!("bench/{name}"),
        "private": true, "html_url": web, "clone_url": url, "default_branch": "main", "master_branch": "main",
        "owner": owner("bench"), "description": "A repository of the benchmark, as large as others are",
        "created_at": 1_700_000_000, "updated_at": "2026-01-02T03:04:05Z", "pushed_at": 1_767_000_000,
        "size": 1234, "stargazers_count": 12, "language": "Rust", "visibility": "private", "topics": ["a", "b"]
    });
    for part in [
        "forks",
        "keys",
        "collaborators",
        "teams",
        "hooks",
        "issue_events",
        "events",
        "assignees",
        "branches",
        "tags",
        "blobs",
        "git_tags",
        "git_refs",
        "trees",
        "statuses",
        "languages",
        "stargazers",
        "contributors",
        "subscribers",
        "subscription",
        "commits",
        "git_commits",
        "comments",
        "issue_comment",
        "contents",
        "compare",
        "merges",
        "archive",
        "downloads",
        "issues",
        "pulls",
        "milestones",
        "notifications",
        "labels",
        "releases",
        "deployments",
    ] {
        repository[format!("{part}_url")] =
            format!("https://api.git.example.com/repos/bench/{name}/{part}{{/id}}").into();
    }
    json!({
        "ref": "refs/heads/main", "before": before, "after": commits.last().map(|commit| commit["id"].clone()),
        "created": false, "deleted": false, "forced": false, "base_ref": null,
        "compare": format!("{web}/compare/{before}...main"), "head_commit": commits.last(), "commits": commits,
        "repository": repository, "pusher": author, "sender": owner("a-developer")
    })
}

fn owner(name: &str) -> Value {
    let api = format!("https://api.git.example.com/users/{name}");
    json!({
        "login": name, "id": 1234567, "node_id": "MDQ6VXNlcjEyMzQ1Njc=", "type": "User", "site_admin": false,
        "avatar_url": "https://avatars.git.example.com/u/1234567?v=4", "url": api,
        "followers_url": format!("{api}/followers"), "gists_url": format!("{api}/gists{{/gist_id}}"),
        "starred_url": format!("{api}/starred{{/owner}}{{/repo}}"), "subscriptions_url": format!("{api}/subscriptions"),
        "organizations_url": format!("{api}/orgs"), "repos_url": format!("{api}/repos"), "events_url": format!("{api}/events{{/privacy}}")
    })
}
