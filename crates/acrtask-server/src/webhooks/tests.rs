//! Deliveries over real HTTP to a control plane with a real database.

use std::{collections::BTreeSet, time::Duration};

use acrtask_api::{
    quota::{QuotaKind, QuotaSubject},
    run::Page,
    spec::ContextSource,
    webhook::{Delivery, Receipt, Webhook},
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::testing::{GITHUB, SECRET, Sent, World, commit, github_push};
use crate::Config;

#[tokio::test]
async fn each_sender_proves_itself_in_its_own_way() {
    for (provider, context) in [
        ("github", GITHUB),
        ("gitlab", "git@gitlab.example.com:team/app.git"),
        ("gitea", "https://gitea.example.com/team/app.git"),
        ("forgejo", "https://gitea.example.com/team/app.git"),
        ("bitbucket-cloud", "https://bitbucket.org/team/app.git"),
        (
            "bitbucket-server",
            "https://git.example.com/scm/team/app.git",
        ),
        (
            "azure-devops",
            "https://dev.azure.com/fabrikam/Web/_git/app",
        ),
        ("generic", "https://git.example.com/team/app.git"),
    ] {
        // A server of its own: wrong signatures are counted for the address.
        let world = World::new().await;
        world.webhook(provider, provider).await;
        world
            .task("app", context, json!({"branches": ["main"]}))
            .await;
        let before = world.runs().await.len();
        let good = Sent::fixture(provider, "push");
        let mut forged = good.clone();
        forged.prove(provider, "another secret");
        let (status, answer) = world.send(provider, &forged).await;
        assert_eq!(
            (status, &answer["code"]),
            (401, &json!("unproved")),
            "{provider}: {answer}"
        );
        let bare = Sent {
            headers: good
                .headers
                .iter()
                .filter(|(name, _)| {
                    !name.contains("signature")
                        && !name.contains("token")
                        && name != "authorization"
                })
                .cloned()
                .collect(),
            ..good.clone()
        };
        let (status, answer) = world.send(provider, &bare).await;
        assert_eq!(status, 401, "{provider}: {answer}");
        if !matches!(provider, "gitlab" | "azure-devops") {
            // These sign what they send: not a byte may differ.
            let mut touched = good.clone();
            touched.body.push(b' ');
            assert_eq!(world.send(provider, &touched).await.0, 401, "{provider}");
        }
        assert_eq!(world.runs().await.len(), before, "{provider}");
        let page: Page<Delivery> = world.get(&format!("/deliveries?webhook={provider}")).await;
        assert_eq!(page.items, [], "{provider}: a refused delivery is not kept");
        let receipt = world.taken(provider, &good).await;
        assert_eq!(receipt.runs.len(), 1, "{provider}: {receipt:?}");
        let row = world.run(&receipt.runs[0]).await;
        let b2 = "b2".repeat(20);
        assert_eq!(row.spec.facts.commit, b2, "{provider}");
        assert_eq!(row.spec.facts.branch, "main", "{provider}");
        assert_eq!(row.spec.facts.repository, context, "{provider}");
        assert_eq!(row.spec.facts.triggered_by, "Commit", "{provider}");
        let ContextSource::Url { url, commit, .. } = &row.spec.context else {
            panic!("{provider}: {:?}", row.spec.context);
        };
        assert_eq!(
            (url, commit),
            (&format!("{context}#main"), &Some(b2)),
            "{provider}"
        );
        // The same once more, as forges do when an answer was lost.
        let again = world.taken(provider, &good).await;
        assert!(
            again.seen_before && again.runs.is_empty(),
            "{provider}: {again:?}"
        );
        assert_eq!(again.delivery, receipt.delivery, "{provider}");
        assert_eq!(world.runs().await.len(), before + 1, "{provider}");
        world
            .post(&format!("/runs/{}/cancel", receipt.runs[0]), json!({}))
            .await;
        let metrics = world.http.get(world.url("/metrics")).send().await.unwrap();
        let text = metrics.text().await.unwrap();
        assert!(
            text.contains("acrtask_webhook_deliveries_total{outcome=\"unproved\"}"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn secrets_are_changed_one_side_after_the_other() {
    let world = World::new().await;
    world.webhook("forge", "github").await;
    let set = async |secrets: Value| -> Webhook {
        let body = json!({"provider": "github", "secrets": secrets});
        serde_json::from_value(world.put("/webhooks/forge", body).await).unwrap()
    };
    let mut old = Sent::fixture("github", "ping");
    let mut new = old.clone();
    new.prove("github", "the secret of tomorrow");
    for (n, one) in [&mut old, &mut new].into_iter().enumerate() {
        one.set("x-github-delivery", &format!("ping{n}"));
    }
    assert_eq!(
        set(json!([SECRET, "the secret of tomorrow"])).await.secrets,
        2
    );
    assert_eq!(world.send("forge", &old).await.0, 200);
    assert_eq!(world.send("forge", &new).await.0, 200);
    // Without new ones it keeps those that it has.
    assert_eq!(set(json!([])).await.secrets, 2);
    assert_eq!(set(json!(["the secret of tomorrow"])).await.secrets, 1);
    assert_eq!(world.send("forge", &old).await.0, 401);
    assert_eq!(world.send("forge", &new).await.0, 200);
    let (_, shown) = world
        .api(reqwest::Method::GET, "/webhooks/forge", Value::Null)
        .await;
    assert!(!shown.to_string().contains("tomorrow"), "{shown}");
}

#[tokio::test]
async fn what_is_no_delivery_is_refused_with_the_right_words() {
    let world = World::new().await;
    world.webhook("forge", "github").await;
    world.task("app", GITHUB, json!({})).await;
    let good = Sent::fixture("github", "push");
    assert_eq!(world.send("nobody", &good).await.0, 404);
    let mut typed = good.clone();
    typed.set("content-type", "text/plain");
    let (status, answer) = world.send("forge", &typed).await;
    assert_eq!((status, &answer["code"]), (415, &json!("wrong-type")));
    let mut truncated = Sent {
        body: good.body[..good.body.len() / 2].to_vec(),
        ..good.clone()
    };
    truncated.prove("github", SECRET);
    assert_eq!(world.send("forge", &truncated).await.0, 400);
    let mut other = Sent {
        body: br#"{"ref": "refs/heads/main"}"#.to_vec(),
        ..good.clone()
    };
    other.prove("github", SECRET);
    assert_eq!(world.send("forge", &other).await.0, 422);
    let mut unnamed = good.clone();
    unnamed.headers.retain(|(name, _)| name != "x-github-event");
    assert_eq!(world.send("forge", &unnamed).await.0, 400);
    let get = world
        .http
        .get(world.url("/hooks/forge"))
        .send()
        .await
        .unwrap();
    assert_eq!(
        (get.status().as_u16(), &get.headers()["allow"]),
        (405, &"POST".parse().unwrap())
    );
    let page: Page<Delivery> = world.get("/deliveries").await;
    assert_eq!(page.items, []);
    assert_eq!(world.runs().await.len(), 0);
}

#[tokio::test]
async fn a_body_has_a_largest_size_and_a_longest_time() {
    let world = World::with(Config {
        webhook_timeout: Duration::from_millis(300),
        ..Config::default()
    })
    .await;
    world.webhook("forge", "github").await;
    let speak = async |head: &str, body: &[u8]| {
        let mut stream = tokio::net::TcpStream::connect(world.server.addr())
            .await
            .unwrap();
        let head = format!(
            "POST /hooks/forge HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n{head}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let _ = stream.write_all(body).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    };
    // Told beforehand, nothing of it is read.
    let told = speak(&format!("content-length: {}", (25 << 20) + 1), b"").await;
    assert!(told.starts_with("HTTP/1.1 413"), "{told}");
    assert!(told.contains("25 MiB"), "{told}");
    let slow = speak("content-length: 100", b"{").await;
    assert!(slow.starts_with("HTTP/1.1 408"), "{slow}");
    // Not told, it is read to the limit. That takes longer than a slow sender is given here.
    let patient = World::new().await;
    patient.webhook("forge", "github").await;
    let chunks = (0..26).map(|_| Ok::<_, std::io::Error>(vec![b' '; 1 << 20]));
    let answer = patient
        .http
        .post(patient.url("/hooks/forge"))
        .header("content-type", "application/json")
        .body(reqwest::Body::wrap_stream(futures::stream::iter(chunks)))
        .send()
        .await;
    // It may hang up before all was sent; what it says then may be lost.
    if let Ok(answer) = answer {
        assert_eq!(answer.status().as_u16(), 413);
    }
}

#[tokio::test]
async fn a_long_body_is_kept_too() {
    let world = World::new().await;
    world.webhook("forge", "github").await;
    world
        .task("app", GITHUB, json!({"branches": ["main"]}))
        .await;
    let mut long = Sent::changed("github", "push", |body| {
        body["padding"] = "x".repeat(2 << 20).into();
    });
    long.set("x-github-delivery", "long");
    let receipt = world.taken("forge", &long).await;
    assert_eq!(receipt.runs.len(), 1);
    let kept: Delivery = world
        .get(&format!("/deliveries/{}", receipt.delivery))
        .await;
    assert_eq!(kept.size, long.body.len() as u64);
    let again: Receipt = serde_json::from_value(
        world
            .post(
                &format!("/deliveries/{}/redeliver", receipt.delivery),
                json!({}),
            )
            .await,
    )
    .unwrap();
    assert_eq!(again.runs.len(), 1);
    assert_ne!(again.runs, receipt.runs);
}

#[tokio::test]
async fn a_delivery_says_why_for_each_task() {
    let world = World::new().await;
    world.webhook("forge", "github").await;
    world.task("a/main", GITHUB, json!({})).await;
    world
        .task("b/release", GITHUB, json!({"branches": ["release/*"]}))
        .await;
    world
        .task("c/docs", GITHUB, json!({"paths": {"include": ["docs/**"]}}))
        .await;
    world
        .task("d/tags", GITHUB, json!({"events": ["tag"]}))
        .await;
    world.task("e/off", GITHUB, json!({})).await;
    world.post("/tasks/e%2Foff/disable", json!({})).await;
    world
        .task("f/other", "https://github.com/team/other.git", json!({}))
        .await;
    let receipt = world.taken("forge", &Sent::fixture("github", "push")).await;
    let delivery: Delivery = world
        .get(&format!("/deliveries/{}", receipt.delivery))
        .await;
    let told: Vec<String> = delivery
        .outcomes
        .iter()
        .map(|one| format!("{}: {:?}: {}", one.task, one.what, one.reason))
        .collect();
    insta::assert_snapshot!(told.join("\n"), @r"
    a/main: Run: commit b2b2b2b2b2b2 was pushed to the branch `main`
    b/release: Suppressed: the branch `main` is none of the task's (`release/*`)
    c/docs: Suppressed: none of the 3 files that changed counts for the task (`docs/**`)
    d/tags: Suppressed: the task does not run for pushes to branches
    e/off: Suppressed: the task is disabled
    ");
    assert_eq!(delivery.repository.as_deref(), Some("github.com/team/app"));
    let mut skipped = Sent::changed("github", "push", |body| {
        body["head_commit"]["message"] = "Words [skip ci]".into();
    });
    skipped.set("x-github-delivery", "skipped");
    let receipt = world.taken("forge", &skipped).await;
    let delivery: Delivery = world
        .get(&format!("/deliveries/{}", receipt.delivery))
        .await;
    assert_eq!(
        delivery.outcomes[0].reason,
        "the message of commit b2b2b2b2b2b2 has `[skip ci]` in it"
    );
    let mut elsewhere = Sent::changed("github", "push", |body| {
        for key in ["clone_url", "ssh_url", "git_url", "html_url"] {
            body["repository"][key] = "https://github.com/nobody/knows.git".into();
        }
    });
    elsewhere.set("x-github-delivery", "elsewhere");
    let receipt = world.taken("forge", &elsewhere).await;
    assert_eq!(receipt.note.as_deref(), Some("no task has this repository"));
    // A webhook may be bound to repositories.
    let body = json!({"provider": "github", "repositories": ["https://github.com/team/other"]});
    world.put("/webhooks/forge", body).await;
    let receipt = world
        .taken("forge", &github_push(&commit(7), "bound"))
        .await;
    assert_eq!(
        receipt.note.as_deref(),
        Some("the webhook `forge` may not speak of github.com/team/app")
    );
    let ping = world.taken("forge", &Sent::fixture("github", "ping")).await;
    assert!(ping.note.is_some());
    // Every one of them is listed, the newest first.
    let page: Page<Delivery> = world.get("/deliveries?limit=2").await;
    assert_eq!(page.items.len(), 2);
    let next = page.next.unwrap();
    let page: Page<Delivery> = world.get(&format!("/deliveries?cursor={next}")).await;
    assert_eq!(page.items.len(), 3);
    let store = &world.server.app().store;
    let late = world.server.app().clock.now_ms() + 3_600_000;
    assert_eq!(store.unaccounted(late, 0).await.unwrap().len(), 0);
}

#[tokio::test]
async fn a_task_that_was_just_changed_is_what_counts() {
    let world = World::new().await;
    world.webhook("forge", "github").await;
    for n in 0..10_u32 {
        let on = n % 2 == 0;
        let branches = if on { "main" } else { "never" };
        world
            .task("app", GITHUB, json!({"branches": [branches]}))
            .await;
        let one = github_push(&commit(n + 1), &format!("d{n}"));
        let receipt = world.taken("forge", &one).await;
        assert_eq!(receipt.runs.len(), usize::from(on), "{n}");
    }
    world
        .api(reqwest::Method::DELETE, "/tasks/app", Value::Null)
        .await;
    let receipt = world.taken("forge", &github_push(&commit(99), "d99")).await;
    assert_eq!(receipt.note.as_deref(), Some("no task has this repository"));
}

#[tokio::test]
async fn tags_and_folders_reach_the_run() {
    let world = World::new().await;
    world.webhook("forge", "github").await;
    let context = "https://github.com/team/app.git#main:services/api";
    world
        .task("app", context, json!({"tags": ["v*"], "events": ["tag"]}))
        .await;
    let receipt = world
        .taken("forge", &Sent::fixture("github", "tag_annotated"))
        .await;
    let row = world.run(&receipt.runs[0]).await;
    assert_eq!(row.trigger, "tag");
    assert_eq!(row.spec.facts.triggered_by, "Tag");
    let tag = &row.spec.facts.git_tag;
    assert!(tag.starts_with('v'), "{tag}");
    let ContextSource::Url { url, .. } = &row.spec.context else {
        panic!();
    };
    assert_eq!(
        *url,
        format!("https://github.com/team/app.git#refs/tags/{tag}:services/api")
    );
}

#[tokio::test]
async fn pushed_images_start_runs_with_their_names() {
    let world = World::new().await;
    let body = json!({
        "name": "follow",
        "cmd": "alpine echo {{.Values.pushedImage}}",
        "triggers": {"registryPush": {"repositories": ["**/base/*", "**"], "tags": []}},
    });
    world.put("/tasks/follow", body).await;
    for source in [
        "distribution",
        "harbor",
        "docker-hub",
        "azure",
        "github-packages",
        "quay",
        "ecr",
    ] {
        world.webhook(source, source).await;
        let name = if source == "azure" {
            "webhook_push"
        } else {
            "push"
        };
        let one = Sent::fixture(&format!("registries/{source}"), name);
        let mut forged = one.clone();
        forged.prove(&format!("registries/{source}"), "another secret");
        assert_eq!(world.send(source, &forged).await.0, 401, "{source}");
        let receipt = world.taken(source, &one).await;
        assert!(!receipt.runs.is_empty(), "{source}: {receipt:?}");
        let row = world.run(&receipt.runs[0]).await;
        assert_eq!(row.trigger, "registry-push");
        let pushed = &row.spec.set["pushedImage"];
        assert!(
            pushed.contains(&row.spec.set["pushedRepository"]),
            "{source}: {pushed}"
        );
        assert!(world.taken(source, &one).await.seen_before, "{source}");
    }
    // Azure asks first.
    let mut asked = Sent::fixture("registries/azure", "grid_validation");
    asked.set("aeg-event-type", "SubscriptionValidation");
    let (status, answer) = world.send("azure", &asked).await;
    assert_eq!(status, 200);
    assert!(answer["validationResponse"].is_string(), "{answer}");
}

#[tokio::test]
async fn a_webhook_with_mistakes_is_refused_with_all_of_them() {
    let world = World::new().await;
    let body = json!({
        "provider": "svn",
        "secrets": ["short"],
        "repositories": ["here"],
        "statuses": {"api": "http://git.example.com/api", "token": "no name"},
    });
    let (status, answer) = world.api(reqwest::Method::PUT, "/webhooks/x", body).await;
    assert_eq!(status, 400);
    insta::assert_snapshot!(answer["message"].as_str().unwrap());
    let (status, _) = world
        .api(
            reqwest::Method::PUT,
            "/webhooks/x",
            json!({"provider": "github"}),
        )
        .await;
    assert_eq!(status, 422, "a webhook without a secret");
}

/// Sets quotas that no test reaches: a busy forge starts more runs of a task than a team does.
async fn lift_quotas_of_runs(world: &World) {
    let store = &world.server.app().store;
    for kind in [QuotaKind::RunsPerMinute, QuotaKind::QueuedRuns] {
        let limit = Some(1_000_000);
        store
            .set_quota(&QuotaSubject::EachTask, kind, limit)
            .await
            .unwrap();
    }
}

/// Each of many deliveries at once, some of them twice, leads to exactly one run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_deliveries_at_once() {
    const ALL: u32 = 2000;
    let world = std::sync::Arc::new(World::new().await);
    world.webhook("forge", "github").await;
    world.task("app", GITHUB, json!({})).await;
    lift_quotas_of_runs(&world).await;
    let begun = std::time::Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for worker in 0..40_u32 {
        let world = world.clone();
        tasks.spawn(async move {
            let mut times = Vec::new();
            for n in (worker..ALL).step_by(40) {
                let one = github_push(&commit(n + 1), &format!("d{n}"));
                let copies = if n % 10 == 0 { 2 } else { 1 };
                let sent = (0..copies).map(|_| async {
                    let begun = std::time::Instant::now();
                    let (status, answer) = world.send("forge", &one).await;
                    assert_eq!(status, 200, "{answer}");
                    begun.elapsed()
                });
                times.extend(futures::future::join_all(sent).await);
            }
            times
        });
    }
    let mut times: Vec<Duration> = tasks.join_all().await.into_iter().flatten().collect();
    times.sort();
    println!(
        "{} deliveries in {:?}: p50 {:?}, p99 {:?}",
        times.len(),
        begun.elapsed(),
        times[times.len() / 2],
        times[times.len() * 99 / 100]
    );
    let rows = world.runs().await;
    let commits: BTreeSet<String> = rows.iter().filter_map(|row| row.commit.clone()).collect();
    assert_eq!((rows.len(), commits.len()), (ALL as usize, ALL as usize));
    let store = &world.server.app().store;
    let late = world.server.app().clock.now_ms() + 3_600_000;
    assert_eq!(store.unaccounted(late, 0).await.unwrap(), []);
}

/// Deliveries that come at the rate of a busy forge are answered soon.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_deliveries_a_second() {
    let world = std::sync::Arc::new(World::new().await);
    world.webhook("forge", "github").await;
    lift_quotas_of_runs(&world).await;
    for n in 0..50 {
        let context = format!("https://github.com/team/other{n}.git");
        world.task(&format!("other{n}"), &context, json!({})).await;
    }
    world.task("app", GITHUB, json!({})).await;
    let sent: Vec<Sent> = (0..1000_u32)
        .map(|n| github_push(&commit(n + 1), &format!("d{n}")))
        .collect();
    let begun = tokio::time::Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for (n, one) in (0_u32..).zip(sent) {
        let world = world.clone();
        tasks.spawn(async move {
            tokio::time::sleep_until(begun + Duration::from_millis(5) * n).await;
            let begun = std::time::Instant::now();
            let receipt = world.taken("forge", &one).await;
            assert_eq!(receipt.runs.len(), 1);
            begun.elapsed()
        });
    }
    let mut times: Vec<Duration> = tasks.join_all().await;
    times.sort();
    let (median, late) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    println!("200 a second: p50 {median:?}, p99 {late:?}");
    // `cargo xtask bench` holds it to 100 ms; here others use the machine too.
    assert!(median < Duration::from_secs(5), "{median:?}");
}
