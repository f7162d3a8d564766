//! Tests of deliveries over HTTP to a control plane with a real database.

use std::{collections::BTreeSet, time::Duration};

use acrtask_api::{
    quota::{QuotaKind, QuotaSubject},
    run::Page,
    spec::ContextSource,
    webhook::{Delivery, Receipt, Webhook},
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::testing::{GITHUB, SECRET, TestDelivery, TestServer, commit, github_push};
use crate::Config;

#[tokio::test]
async fn each_provider_verifies_its_own_proof() {
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
        // Each case uses its own server, because wrong signatures count against the address.
        let server = TestServer::new().await;
        server.add_webhook(provider, provider).await;
        server
            .add_task("app", context, json!({"branches": ["main"]}))
            .await;
        let before = server.runs().await.len();
        let good = TestDelivery::from_fixture(provider, "push");
        let mut forged = good.clone();
        forged.sign(provider, "another secret");
        let (status, answer) = server.send(provider, &forged).await;
        assert_eq!(
            (status, &answer["code"]),
            (401, &json!("unproved")),
            "{provider}: {answer}"
        );
        let bare = TestDelivery {
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
        let (status, answer) = server.send(provider, &bare).await;
        assert_eq!(status, 401, "{provider}: {answer}");
        if !matches!(provider, "gitlab" | "azure-devops") {
            // These providers sign the body: a change of one byte invalidates the signature.
            let mut touched = good.clone();
            touched.body.push(b' ');
            assert_eq!(server.send(provider, &touched).await.0, 401, "{provider}");
        }
        assert_eq!(server.runs().await.len(), before, "{provider}");
        let page: Page<Delivery> = server.get(&format!("/deliveries?webhook={provider}")).await;
        assert_eq!(page.items, [], "{provider}: a refused delivery is not kept");
        let receipt = server.deliver(provider, &good).await;
        assert_eq!(receipt.runs.len(), 1, "{provider}: {receipt:?}");
        let row = server.run(&receipt.runs[0]).await;
        let b2 = "b2".repeat(20);
        assert_eq!(row.spec.variables.commit, b2, "{provider}");
        assert_eq!(row.spec.variables.branch, "main", "{provider}");
        assert_eq!(row.spec.variables.repository, context, "{provider}");
        assert_eq!(row.spec.variables.triggered_by, "Commit", "{provider}");
        let ContextSource::Url { url, commit, .. } = &row.spec.context else {
            panic!("{provider}: {:?}", row.spec.context);
        };
        assert_eq!(
            (url, commit),
            (&format!("{context}#main"), &Some(b2)),
            "{provider}"
        );
        // Forges repeat a delivery whose response was lost.
        let again = server.deliver(provider, &good).await;
        assert!(
            again.duplicate && again.runs.is_empty(),
            "{provider}: {again:?}"
        );
        assert_eq!(again.delivery, receipt.delivery, "{provider}");
        assert_eq!(server.runs().await.len(), before + 1, "{provider}");
        server
            .post(&format!("/runs/{}/cancel", receipt.runs[0]), json!({}))
            .await;
        let metrics = server
            .http
            .get(server.url("/metrics"))
            .send()
            .await
            .unwrap();
        let text = metrics.text().await.unwrap();
        assert!(
            text.contains("acrtask_webhook_deliveries_total{outcome=\"unproved\"}"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn secrets_rotate_without_lost_deliveries() {
    let server = TestServer::new().await;
    server.add_webhook("forge", "github").await;
    let set = async |secrets: Value| -> Webhook {
        let body = json!({"provider": "github", "secrets": secrets});
        serde_json::from_value(server.put("/webhooks/forge", body).await).unwrap()
    };
    let mut old = TestDelivery::from_fixture("github", "ping");
    let mut new = old.clone();
    new.sign("github", "the secret of tomorrow");
    for (n, one) in [&mut old, &mut new].into_iter().enumerate() {
        one.set_header("x-github-delivery", &format!("ping{n}"));
    }
    assert_eq!(
        set(json!([SECRET, "the secret of tomorrow"])).await.secrets,
        2
    );
    assert_eq!(server.send("forge", &old).await.0, 200);
    assert_eq!(server.send("forge", &new).await.0, 200);
    // An update without secrets keeps the stored ones.
    assert_eq!(set(json!([])).await.secrets, 2);
    assert_eq!(set(json!(["the secret of tomorrow"])).await.secrets, 1);
    assert_eq!(server.send("forge", &old).await.0, 401);
    assert_eq!(server.send("forge", &new).await.0, 200);
    let (_, shown) = server
        .request(reqwest::Method::GET, "/webhooks/forge", Value::Null)
        .await;
    assert!(!shown.to_string().contains("tomorrow"), "{shown}");
}

#[tokio::test]
async fn invalid_deliveries_are_refused_with_their_status() {
    let server = TestServer::new().await;
    server.add_webhook("forge", "github").await;
    server.add_task("app", GITHUB, json!({})).await;
    let good = TestDelivery::from_fixture("github", "push");
    assert_eq!(server.send("unknown", &good).await.0, 404);
    let mut typed = good.clone();
    typed.set_header("content-type", "text/plain");
    let (status, answer) = server.send("forge", &typed).await;
    assert_eq!((status, &answer["code"]), (415, &json!("wrong-type")));
    let mut truncated = TestDelivery {
        body: good.body[..good.body.len() / 2].to_vec(),
        ..good.clone()
    };
    truncated.sign("github", SECRET);
    assert_eq!(server.send("forge", &truncated).await.0, 400);
    let mut other = TestDelivery {
        body: br#"{"ref": "refs/heads/main"}"#.to_vec(),
        ..good.clone()
    };
    other.sign("github", SECRET);
    assert_eq!(server.send("forge", &other).await.0, 422);
    let mut unnamed = good.clone();
    unnamed.headers.retain(|(name, _)| name != "x-github-event");
    assert_eq!(server.send("forge", &unnamed).await.0, 400);
    let get = server
        .http
        .get(server.url("/hooks/forge"))
        .send()
        .await
        .unwrap();
    assert_eq!(
        (get.status().as_u16(), &get.headers()["allow"]),
        (405, &"POST".parse().unwrap())
    );
    let page: Page<Delivery> = server.get("/deliveries").await;
    assert_eq!(page.items, []);
    assert_eq!(server.runs().await.len(), 0);
}

#[tokio::test]
async fn body_is_limited_in_size_and_time() {
    let server = TestServer::with_config(Config {
        webhook_timeout: Duration::from_millis(300),
        ..Config::default()
    })
    .await;
    server.add_webhook("forge", "github").await;
    let send_raw = async |head: &str, body: &[u8]| {
        let mut stream = tokio::net::TcpStream::connect(server.inner.addr())
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
    // The server refuses an announced excess without reading the body.
    let response = send_raw(&format!("content-length: {}", (25 << 20) + 1), b"").await;
    assert!(response.starts_with("HTTP/1.1 413"), "{response}");
    assert!(response.contains("25 MiB"), "{response}");
    let slow = send_raw("content-length: 100", b"{").await;
    assert!(slow.starts_with("HTTP/1.1 408"), "{slow}");
    // Without an announced length the server reads up to the limit, which takes longer than 300 ms.
    let slow_server = TestServer::new().await;
    slow_server.add_webhook("forge", "github").await;
    let chunks = (0..26).map(|_| Ok::<_, std::io::Error>(vec![b' '; 1 << 20]));
    let answer = slow_server
        .http
        .post(slow_server.url("/hooks/forge"))
        .header("content-type", "application/json")
        .body(reqwest::Body::wrap_stream(futures::stream::iter(chunks)))
        .send()
        .await;
    // The server may close the connection early, and its response may be lost then.
    if let Ok(answer) = answer {
        assert_eq!(answer.status().as_u16(), 413);
    }
}

#[tokio::test]
async fn long_body_is_stored_and_can_be_redelivered() {
    let server = TestServer::new().await;
    server.add_webhook("forge", "github").await;
    server
        .add_task("app", GITHUB, json!({"branches": ["main"]}))
        .await;
    let mut long = TestDelivery::modified_fixture("github", "push", |body| {
        body["padding"] = "x".repeat(2 << 20).into();
    });
    long.set_header("x-github-delivery", "long");
    let receipt = server.deliver("forge", &long).await;
    assert_eq!(receipt.runs.len(), 1);
    let kept: Delivery = server
        .get(&format!("/deliveries/{}", receipt.delivery))
        .await;
    assert_eq!(kept.size, long.body.len() as u64);
    let again: Receipt = serde_json::from_value(
        server
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
async fn delivery_records_a_reason_for_each_task() {
    let server = TestServer::new().await;
    server.add_webhook("forge", "github").await;
    server.add_task("a/main", GITHUB, json!({})).await;
    server
        .add_task("b/release", GITHUB, json!({"branches": ["release/*"]}))
        .await;
    server
        .add_task("c/docs", GITHUB, json!({"paths": {"include": ["docs/**"]}}))
        .await;
    server
        .add_task("d/tags", GITHUB, json!({"events": ["tag"]}))
        .await;
    server.add_task("e/off", GITHUB, json!({})).await;
    server.post("/tasks/e%2Foff/disable", json!({})).await;
    server
        .add_task("f/other", "https://github.com/team/other.git", json!({}))
        .await;
    let receipt = server
        .deliver("forge", &TestDelivery::from_fixture("github", "push"))
        .await;
    let delivery: Delivery = server
        .get(&format!("/deliveries/{}", receipt.delivery))
        .await;
    let reasons: Vec<String> = delivery
        .decisions
        .iter()
        .map(|one| format!("{}: {:?}: {}", one.task, one.action, one.reason))
        .collect();
    insta::assert_snapshot!(reasons.join("\n"), @r"
    a/main: RunStarted: commit b2b2b2b2b2b2 was pushed to the branch `main`
    b/release: Ignored: the branch `main` does not match the task's branches (`release/*`)
    c/docs: Ignored: none of the 3 changed files matches the task's paths (`docs/**`)
    d/tags: Ignored: the task ignores pushes to branches
    e/off: Ignored: the task is disabled
    ");
    assert_eq!(delivery.repository.as_deref(), Some("github.com/team/app"));
    let mut skipped = TestDelivery::modified_fixture("github", "push", |body| {
        body["head_commit"]["message"] = "Words [skip ci]".into();
    });
    skipped.set_header("x-github-delivery", "skipped");
    let receipt = server.deliver("forge", &skipped).await;
    let delivery: Delivery = server
        .get(&format!("/deliveries/{}", receipt.delivery))
        .await;
    assert_eq!(
        delivery.decisions[0].reason,
        "the message of commit b2b2b2b2b2b2 contains `[skip ci]`"
    );
    let mut elsewhere = TestDelivery::modified_fixture("github", "push", |body| {
        for key in ["clone_url", "ssh_url", "git_url", "html_url"] {
            body["repository"][key] = "https://github.com/unknown/repository.git".into();
        }
    });
    elsewhere.set_header("x-github-delivery", "elsewhere");
    let receipt = server.deliver("forge", &elsewhere).await;
    assert_eq!(receipt.note.as_deref(), Some("no task has this repository"));
    // A webhook may be limited to repositories.
    let body = json!({"provider": "github", "repositories": ["https://github.com/team/other"]});
    server.put("/webhooks/forge", body).await;
    let receipt = server
        .deliver("forge", &github_push(&commit(7), "bound"))
        .await;
    assert_eq!(
        receipt.note.as_deref(),
        Some("the webhook `forge` is not allowed to report events of github.com/team/app")
    );
    let ping = server
        .deliver("forge", &TestDelivery::from_fixture("github", "ping"))
        .await;
    assert!(ping.note.is_some());
    // The list contains every delivery, the newest first.
    let page: Page<Delivery> = server.get("/deliveries?limit=2").await;
    assert_eq!(page.items.len(), 2);
    let next = page.next.unwrap();
    let page: Page<Delivery> = server.get(&format!("/deliveries?cursor={next}")).await;
    assert_eq!(page.items.len(), 3);
    let store = &server.inner.app().store;
    let late = server.inner.app().clock.now_ms() + 3_600_000;
    assert_eq!(store.unaccounted_triggers(late, 0).await.unwrap().len(), 0);
}

#[tokio::test]
async fn changed_task_applies_to_the_next_delivery() {
    let server = TestServer::new().await;
    server.add_webhook("forge", "github").await;
    for n in 0..10_u32 {
        let on = n % 2 == 0;
        let branches = if on { "main" } else { "never" };
        server
            .add_task("app", GITHUB, json!({"branches": [branches]}))
            .await;
        let one = github_push(&commit(n + 1), &format!("d{n}"));
        let receipt = server.deliver("forge", &one).await;
        assert_eq!(receipt.runs.len(), usize::from(on), "{n}");
    }
    server
        .request(reqwest::Method::DELETE, "/tasks/app", Value::Null)
        .await;
    let receipt = server
        .deliver("forge", &github_push(&commit(99), "d99"))
        .await;
    assert_eq!(receipt.note.as_deref(), Some("no task has this repository"));
}

#[tokio::test]
async fn tag_and_folder_reach_the_run_context() {
    let server = TestServer::new().await;
    server.add_webhook("forge", "github").await;
    let context = "https://github.com/team/app.git#main:services/api";
    server
        .add_task("app", context, json!({"tags": ["v*"], "events": ["tag"]}))
        .await;
    let receipt = server
        .deliver(
            "forge",
            &TestDelivery::from_fixture("github", "tag_annotated"),
        )
        .await;
    let row = server.run(&receipt.runs[0]).await;
    assert_eq!(row.trigger, "tag");
    assert_eq!(row.spec.variables.triggered_by, "Tag");
    let tag = &row.spec.variables.git_tag;
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
async fn pushed_images_start_runs_with_image_values() {
    let server = TestServer::new().await;
    let body = json!({
        "name": "follow",
        "cmd": "alpine echo {{.Values.pushedImage}}",
        "triggers": {"registryPush": {"repositories": ["**/base/*", "**"], "tags": []}},
    });
    server.put("/tasks/follow", body).await;
    for source in [
        "distribution",
        "harbor",
        "docker-hub",
        "azure",
        "github-packages",
        "quay",
        "ecr",
    ] {
        server.add_webhook(source, source).await;
        let name = if source == "azure" {
            "webhook_push"
        } else {
            "push"
        };
        let one = TestDelivery::from_fixture(&format!("registries/{source}"), name);
        let mut forged = one.clone();
        forged.sign(&format!("registries/{source}"), "another secret");
        assert_eq!(server.send(source, &forged).await.0, 401, "{source}");
        let receipt = server.deliver(source, &one).await;
        assert!(!receipt.runs.is_empty(), "{source}: {receipt:?}");
        let row = server.run(&receipt.runs[0]).await;
        assert_eq!(row.trigger, "registryPush");
        let pushed = &row.spec.set["pushedImage"];
        assert!(
            pushed.contains(&row.spec.set["pushedRepository"]),
            "{source}: {pushed}"
        );
        assert!(server.deliver(source, &one).await.duplicate, "{source}");
    }
    // Event Grid validates the endpoint first.
    let mut validation = TestDelivery::from_fixture("registries/azure", "grid_validation");
    validation.set_header("aeg-event-type", "SubscriptionValidation");
    let (status, answer) = server.send("azure", &validation).await;
    assert_eq!(status, 200);
    assert!(answer["validationResponse"].is_string(), "{answer}");
}

#[tokio::test]
async fn invalid_webhook_is_refused_with_all_its_mistakes() {
    let server = TestServer::new().await;
    let body = json!({
        "provider": "svn",
        "secrets": ["short"],
        "repositories": ["here"],
        "statuses": {"api": "http://git.example.com/api", "token": "no name"},
    });
    let (status, answer) = server
        .request(reqwest::Method::PUT, "/webhooks/x", body)
        .await;
    assert_eq!(status, 400);
    insta::assert_snapshot!(answer["message"].as_str().unwrap());
    let (status, _) = server
        .request(
            reqwest::Method::PUT,
            "/webhooks/x",
            json!({"provider": "github"}),
        )
        .await;
    assert_eq!(status, 422, "a webhook without a secret");
}

/// Sets quotas out of reach: a busy forge starts more runs of a task than a team does.
async fn lift_run_quotas(server: &TestServer) {
    let store = &server.inner.app().store;
    for kind in [QuotaKind::RunsPerMinute, QuotaKind::QueuedRuns] {
        let limit = Some(1_000_000);
        store
            .set_quota(&QuotaSubject::EachTask, kind, limit)
            .await
            .unwrap();
    }
}

/// Many concurrent deliveries, some of them sent twice, lead to exactly one run each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_deliveries_start_exactly_one_run_each() {
    const ALL: u32 = 2000;
    let server = std::sync::Arc::new(TestServer::new().await);
    server.add_webhook("forge", "github").await;
    server.add_task("app", GITHUB, json!({})).await;
    lift_run_quotas(&server).await;
    let begun = std::time::Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for worker in 0..40_u32 {
        let server = server.clone();
        tasks.spawn(async move {
            let mut times = Vec::new();
            for n in (worker..ALL).step_by(40) {
                let one = github_push(&commit(n + 1), &format!("d{n}"));
                let copies = if n % 10 == 0 { 2 } else { 1 };
                let sent = (0..copies).map(|_| async {
                    let begun = std::time::Instant::now();
                    let (status, answer) = server.send("forge", &one).await;
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
    let rows = server.runs().await;
    let commits: BTreeSet<String> = rows.iter().filter_map(|row| row.commit.clone()).collect();
    assert_eq!((rows.len(), commits.len()), (ALL as usize, ALL as usize));
    let store = &server.inner.app().store;
    let late = server.inner.app().clock.now_ms() + 3_600_000;
    assert_eq!(store.unaccounted_triggers(late, 0).await.unwrap(), []);
}

/// Deliveries at the rate of a busy forge are answered quickly.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deliveries_at_forge_rate_are_answered_quickly() {
    let server = std::sync::Arc::new(TestServer::new().await);
    server.add_webhook("forge", "github").await;
    lift_run_quotas(&server).await;
    for n in 0..50 {
        let context = format!("https://github.com/team/other{n}.git");
        server
            .add_task(&format!("other{n}"), &context, json!({}))
            .await;
    }
    server.add_task("app", GITHUB, json!({})).await;
    let sent: Vec<TestDelivery> = (0..1000_u32)
        .map(|n| github_push(&commit(n + 1), &format!("d{n}")))
        .collect();
    let begun = tokio::time::Instant::now();
    // A slow machine must not exceed the server's limit of connections of one address.
    let connections = std::sync::Arc::new(tokio::sync::Semaphore::new(50));
    let mut tasks = tokio::task::JoinSet::new();
    for (n, one) in (0_u32..).zip(sent) {
        let server = server.clone();
        let connections = connections.clone();
        tasks.spawn(async move {
            tokio::time::sleep_until(begun + Duration::from_millis(5) * n).await;
            let _connection = connections.acquire_owned().await.unwrap();
            let begun = std::time::Instant::now();
            let receipt = server.deliver("forge", &one).await;
            assert_eq!(receipt.runs.len(), 1);
            begun.elapsed()
        });
    }
    let mut times: Vec<Duration> = tasks.join_all().await;
    times.sort();
    let (median, late) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    println!("200 a second: p50 {median:?}, p99 {late:?}");
    // `cargo xtask bench` checks a limit of 100 ms; here other programs share the machine.
    assert!(median < Duration::from_secs(5), "{median:?}");
}
