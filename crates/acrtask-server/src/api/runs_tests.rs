//! Tests of `runs.rs`.

use std::collections::BTreeMap;

use acrtask_api::run::{BaseResult, RunResult};
use acrtask_model::{
    Principal,
    events::{BaseRole, Evidence},
};
use axum::http::Method;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{api::testing::TestServer, scheduler::load_lease_payload};

fn cmd() -> serde_json::Value {
    json!({"spec": {"source": {"type": "cmd", "line": "alpine true"}, "variables": {"registry": "reg.example.com"}}})
}

#[tokio::test]
async fn run_is_created_and_shown() {
    let server = TestServer::start().await;
    let response = server.post("/runs", cmd()).await;
    let run: Run = response.json(StatusCode::CREATED);
    assert_eq!(run.state, RunState::Queued);
    assert_eq!(run.trigger, "manual");
    assert_eq!(run.requested_by.as_deref(), Some("admin"));
    assert_eq!(run.spec.variables.triggered_by, "Manual");
    let location = response.headers[header::LOCATION].to_str().unwrap();
    assert_eq!(location, format!("/api/v1/runs/{}", run.id));
    let shown: Run = server
        .get(&format!("/runs/{}", run.id))
        .await
        .json(StatusCode::OK);
    assert_eq!(shown, run);
    // A run without a timeout gets the default of the server.
    let row = server.app.store.run(&run.id).await.unwrap();
    assert_eq!(row.timeout_secs, Some(8 * 3600));
    assert_eq!(
        row.affinity_key,
        row.trust_domain.affinity_key("reg.example.com alpine true")
    );
    for path in ["/runs/rnothere", "/runs/NO-ID", "/runs/a%2Fb"] {
        let problem = server.get(path).await.problem(StatusCode::NOT_FOUND);
        assert_eq!(problem.code, "not-found");
    }
}

#[tokio::test]
async fn caller_may_choose_the_id() {
    let server = TestServer::start().await;
    let mut body = cmd();
    body["id"] = json!("ca7");
    let run: Run = server
        .post("/runs", body.clone())
        .await
        .json(StatusCode::CREATED);
    assert_eq!(run.id.as_str(), "ca7");
    let problem = server
        .post("/runs", body)
        .await
        .problem(StatusCode::CONFLICT);
    assert_eq!(problem.code, "conflict");
}

#[tokio::test]
async fn all_problems_of_a_request_are_reported_at_once() {
    let server = TestServer::start().await;
    let wrong = json!({
        "spec": {
            "source": {"type": "file", "path": "/etc/passwd"},
            "platforms": ["amd64"],
            "buildSecrets": ["missing"],
            "timeoutSecs": 0,
            "cache": {"mode": "readWrite", "name": "app"},
        },
        "queue": {"priority": 99},
        "credentials": [{"host": "https://x", "username": "u", "password": "hunter2"}],
    });
    let problem = server
        .post("/runs", wrong)
        .await
        .problem(StatusCode::BAD_REQUEST);
    insta::assert_snapshot!(problem.message.replace("; ", "\n"));
    let problem = server
        .post("/runs", json!({"spec": {"wrok": {}}}))
        .await
        .problem(StatusCode::BAD_REQUEST);
    assert!(
        problem.message.contains("unknown field `wrok`"),
        "{problem:?}"
    );
    let upload = json!({"spec": {"context": {"type": "upload", "id": "c1"}}});
    let problem = server
        .post("/runs", upload)
        .await
        .problem(StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(
        problem.message,
        "the context `c1` is not complete or does not exist"
    );
    let large = json!({"spec": {"source": {"type": "cmd", "line": "x".repeat(5 << 20)}}});
    let problem = server
        .post("/runs", large)
        .await
        .problem(StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(problem.code, "too-large");
}

fn request_with_key(
    server: &TestServer,
    path: &str,
    key: &str,
    body: &serde_json::Value,
) -> axum::http::Request<axum::body::Body> {
    let mut request = TestServer::request(Method::POST, path, Some(&server.admin), Some(body));
    request
        .headers_mut()
        .insert("idempotency-key", key.parse().unwrap());
    request
}

#[tokio::test]
async fn same_key_returns_the_same_run() {
    let server = TestServer::start().await;
    let first: Run = server
        .send(request_with_key(&server, "/runs", "k1", &cmd()))
        .await
        .json(StatusCode::CREATED);
    let repeated: Run = server
        .send(request_with_key(&server, "/runs", "k1", &cmd()))
        .await
        .json(StatusCode::OK);
    assert_eq!(repeated.id, first.id);
    let mut other = cmd();
    other["spec"]["source"]["line"] = json!("alpine false");
    let problem = server
        .send(request_with_key(&server, "/runs", "k1", &other))
        .await
        .problem(StatusCode::CONFLICT);
    assert!(problem.message.contains(first.id.as_str()));
    let second: Run = server
        .send(request_with_key(&server, "/runs", "k2", &other))
        .await
        .json(StatusCode::CREATED);
    assert_ne!(second.id, first.id);
    // Keys of different callers are distinct.
    let token = server.create_token(&[Scope::Run], None).await;
    let mut request = TestServer::request(Method::POST, "/runs", Some(&token), Some(&cmd()));
    request
        .headers_mut()
        .insert("idempotency-key", "k1".parse().unwrap());
    server.send(request).await.json::<Run>(StatusCode::CREATED);
}

#[tokio::test]
async fn lists_are_filtered_and_paged() {
    let server = TestServer::start().await;
    for at in 0..5_i64 {
        server.app.clock.set(crate::api::testing::NOW + at);
        server.start_run().await;
    }
    let page: Page<RunSummary> = server.get("/runs?limit=2").await.json(StatusCode::OK);
    assert_eq!(page.items.len(), 2);
    assert!(page.items[0].created_at > page.items[1].created_at);
    let mut seen = page.items.len();
    let mut next = page.next;
    while let Some(cursor) = next {
        let page: Page<RunSummary> = server
            .get(&format!("/runs?limit=2&cursor={cursor}"))
            .await
            .json(StatusCode::OK);
        seen += page.items.len();
        next = page.next;
    }
    assert_eq!(seen, 5);
    let page: Page<RunSummary> = server
        .get("/runs?state=queued,running&limit=200")
        .await
        .json(StatusCode::OK);
    assert_eq!(page.items.len(), 5);
    let page: Page<RunSummary> = server
        .get("/runs?state=succeeded")
        .await
        .json(StatusCode::OK);
    assert!(page.items.is_empty());
    for wrong in [
        "state=done",
        "limit=0",
        "limit=201",
        "limit=x",
        "cursor=%00",
        "nothing=1",
    ] {
        let response = server.get(&format!("/runs?{wrong}")).await;
        response.refused(wrong);
    }
}

#[tokio::test]
async fn queued_run_is_canceled_at_once() {
    let server = TestServer::start().await;
    let run = server.start_run().await;
    let path = format!("/runs/{}/cancel", run.id);
    let canceled: Run = server
        .post(&path, json!({"reason": "a mistake"}))
        .await
        .json(StatusCode::OK);
    assert_eq!(canceled.state, RunState::Canceled);
    assert_eq!(canceled.reason.as_deref(), Some("a mistake"));
    let again: Run = server.post(&path, json!({})).await.json(StatusCode::OK);
    assert_eq!(again, canceled);
    // Cancel without a body.
    let run = server.start_run().await;
    let path = format!("/runs/{}/cancel", run.id);
    let canceled: Run = server
        .send_as(Method::POST, &path, &server.admin, None)
        .await
        .json(StatusCode::OK);
    assert_eq!(canceled.reason.as_deref(), Some("canceled by admin"));
}

#[tokio::test]
async fn running_run_gets_a_cancel_request() {
    let server = TestServer::start().await;
    let runner = server.register_runner("one").await;
    let run = server.start_run().await;
    server.lease_run(&run.id, &runner).await;
    let path = format!("/runs/{}", run.id);
    let input: Run = server
        .post(&format!("{path}/cancel"), json!({}))
        .await
        .json(StatusCode::OK);
    assert_eq!(input.state, RunState::Running);
    assert!(input.cancel_requested);
    let cancels = server.app.store.cancel_requests().await.unwrap();
    assert_eq!(cancels.len(), 1);
    assert_eq!(cancels[0].reason, "canceled by admin");
}

#[tokio::test]
async fn rerun_has_the_same_inputs_and_bases() {
    let server = TestServer::start().await;
    let runner = server.register_runner("one").await;
    let body = json!({
        "spec": {"context": {"type": "url", "url": "https://git.example.com/a.git#main:sub"}},
        "queue": {"priority": 2},
        "secrets": {"token": "hunter2"},
        "credentials": [{"host": "reg.example.com", "username": "u", "password": "hunter3"}],
    });
    let first: Run = server.post("/runs", body).await.json(StatusCode::CREATED);
    assert_eq!(first.spec.secrets, ["token"]);
    let attempt = server.lease_run(&first.id, &runner).await;
    let digest: acrtask_model::Digest = format!("sha256:{}", "a".repeat(64)).parse().unwrap();
    let commit = "0123456789012345678901234567890123456789";
    let result = RunResult {
        bases: vec![BaseResult {
            step: acrtask_model::StepId::new("build").unwrap(),
            role: BaseRole::Runtime,
            name: "alpine:3".into(),
            digest: digest.clone(),
            evidence: Evidence::Provenance,
            platforms: Vec::new(),
        }],
        variables: acrtask_api::spec::Variables {
            commit: commit.into(),
            branch: "main".into(),
            ..Default::default()
        },
        ..RunResult::default()
    };
    server
        .finish_run(&first.id, attempt, &runner, RunState::Failed, "", result)
        .await;
    let path = format!("/runs/{}/rerun", first.id);
    let again: Run = server
        .send_as(Method::POST, &path, &server.admin, None)
        .await
        .json(StatusCode::CREATED);
    assert_ne!(again.id, first.id);
    assert_eq!(again.rerun_of.as_ref(), Some(&first.id));
    assert_eq!(again.trigger, "rerun");
    assert_eq!(again.queue, first.queue);
    assert_eq!(
        again.spec.pins,
        BTreeMap::from([("alpine:3".to_owned(), digest)])
    );
    assert_eq!(again.spec.variables.branch, "main");
    let url = format!("https://git.example.com/a.git#{commit}:sub");
    assert_eq!(
        again.spec.context,
        acrtask_api::spec::ContextSource::url(url)
    );
    // The rerun also has the secret values, which its API representation hides.
    let row = server.app.store.run(&again.id).await.unwrap();
    assert!(!format!("{row:?}").contains("hunter"));
    let payload = load_lease_payload(&server.app, &row).await.unwrap();
    assert_eq!(payload.secrets["token"].expose(), "hunter2");
    assert_eq!(payload.credentials[0].password.0, "hunter3");
    assert!(!format!("{payload:?}").contains("hunter"));
}

#[tokio::test]
async fn attempts_are_listed() {
    let server = TestServer::start().await;
    let runner = server.register_runner("one").await;
    let run = server.start_run().await;
    let path = format!("/runs/{}/attempts", run.id);
    let none: Vec<Attempt> = server.get(&path).await.json(StatusCode::OK);
    assert!(none.is_empty());
    let attempt = server.lease_run(&run.id, &runner).await;
    server
        .finish_run(
            &run.id,
            attempt,
            &runner,
            RunState::Succeeded,
            "",
            RunResult::default(),
        )
        .await;
    let attempts: Vec<Attempt> = server.get(&path).await.json(StatusCode::OK);
    assert_eq!(attempts.len(), 1);
    assert_eq!(attempts[0].runner, "one");
    assert_eq!(attempts[0].outcome.as_deref(), Some("succeeded"));
}

#[tokio::test]
async fn stored_secrets_need_the_scope_write() {
    let server = TestServer::start().await;
    let body =
        json!({"spec": {"source": {"type": "cmd", "line": "alpine true"}, "secrets": ["key"]}});
    let problem = server
        .post("/runs", body.clone())
        .await
        .problem(StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(problem.message, "the secret `key` is missing");
    server
        .put("/secrets/key", json!({"value": "hunter2"}))
        .await
        .json::<serde_json::Value>(StatusCode::OK);
    let run: Run = server
        .post("/runs", body.clone())
        .await
        .json(StatusCode::CREATED);
    let row = server.app.store.run(&run.id).await.unwrap();
    let payload = load_lease_payload(&server.app, &row).await.unwrap();
    assert_eq!(payload.secrets["key"].expose(), "hunter2");
    assert_eq!(payload.vault_task, None);
    let token = server.create_token(&[Scope::Run], None).await;
    let problem = server
        .send_as(Method::POST, "/runs", &token, Some(&body))
        .await
        .problem(StatusCode::FORBIDDEN);
    assert_eq!(problem.code, "forbidden");
    // The secret is deleted between the request and the lease.
    server.delete("/secrets/key").await;
    let error = load_lease_payload(&server.app, &row).await.unwrap_err();
    insta::assert_snapshot!(error.to_string());
}

#[test]
fn only_a_valid_traceparent_is_accepted() {
    assert!(is_traceparent(
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    ));
    for wrong in [
        "",
        "00",
        "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "a-b-c-d",
    ] {
        assert!(!is_traceparent(wrong), "{wrong}");
    }
}

fn limits() -> impl Strategy<Value = TaskLimit> {
    prop_oneof![
        Just(TaskLimit::All),
        "[ab/]{0,4}".prop_map(TaskLimit::Exact),
        "[ab/]{0,4}".prop_map(TaskLimit::Prefix),
    ]
}

proptest! {
    /// The filter of a list shows exactly the runs that the limit of the token allows.
    #[test]
    fn intersection_allows_what_both_limits_allow(one in limits(), other in limits(), task in proptest::option::of("[ab/]{0,5}")) {
        let task = task.as_deref();
        let expected = one.allows(task) && other.allows(task);
        let got = intersect(&one, other).is_some_and(|limit| limit.allows(task));
        prop_assert_eq!(got, expected);
    }
}

/// Arbitrary text in a cursor or filter does not cause a server error.
#[tokio::test]
async fn arbitrary_cursors_are_handled() {
    use proptest::{strategy::ValueTree as _, test_runner::TestRunner};
    let server = TestServer::start().await;
    server.start_run().await;
    let mut runner = TestRunner::default();
    let texts = ("\\PC{0,40}|[0-9]{0,20}:[a-z]{0,12}|.{0,8}", "\\PC{0,20}");
    for _ in 0..200 {
        let (cursor, task) = texts.new_tree(&mut runner).unwrap().current();
        let query = form(&[("cursor", &cursor), ("task", &task)]);
        let status = server.get(&format!("/runs?{query}")).await.status;
        let expected = [StatusCode::OK, StatusCode::UNPROCESSABLE_ENTITY];
        assert!(expected.contains(&status), "{status}: {cursor:?} {task:?}");
        server.app.clock.set(server.app.clock.now_ms() + 10);
    }
}

fn form(pairs: &[(&str, &str)]) -> String {
    url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs(pairs)
        .finish()
}

#[tokio::test]
async fn specs_above_256_kib_are_refused_and_lists_omit_specs() {
    let server = TestServer::start().await;
    let run = |bytes: usize| {
        json!({"spec": {
            "source": {"type": "cmd", "line": "alpine true"},
            "set": {"text": "x".repeat(bytes)},
        }})
    };
    let refused = server.post("/runs", run(256 << 10)).await;
    let problem = refused.problem(StatusCode::PAYLOAD_TOO_LARGE);
    assert!(
        problem.message.contains("the limit is 256 KiB"),
        "{problem:?}"
    );
    server.start_run().await;
    let begun = std::time::Instant::now();
    for _ in 0..10 {
        server
            .get("/runs?limit=40")
            .await
            .json::<Page<RunSummary>>(StatusCode::OK);
    }
    let few = begun.elapsed();
    let principal = Principal::Token { id: "x".into() };
    for _ in 0..40 {
        let input = serde_json::from_value(run(200 << 10)).unwrap();
        let draft = run_factory::create_from_request(
            &server.app,
            input,
            &principal,
            RequestContext::default(),
        )
        .unwrap();
        let new = draft.seal(&server.app).unwrap();
        let now = crate::api::testing::NOW + 1;
        server.app.store.enqueue(new, now).await.unwrap();
    }
    let begun = std::time::Instant::now();
    for _ in 0..10 {
        let listed = server.get("/runs?limit=40").await;
        assert!(listed.body.len() < 40 * 1024, "{} bytes", listed.body.len());
        let page: Page<RunSummary> = listed.json(StatusCode::OK);
        assert_eq!(page.items.len(), 40);
    }
    let many = begun.elapsed();
    let allowed = few * 20 + std::time::Duration::from_millis(500);
    assert!(
        many < allowed,
        "{few:?} without large specs, {many:?} with them"
    );
}

#[tokio::test]
async fn idempotency_keys_of_tokens_with_the_same_name_are_distinct() {
    let server = TestServer::start().await;
    let mut runs = Vec::new();
    for _ in 0..2 {
        let body = json!({"name": "ci", "scopes": ["run"]});
        let made: serde_json::Value = server.post("/tokens", body).await.json(StatusCode::CREATED);
        let token = made["secret"].as_str().unwrap();
        let body = json!({"spec": {"source": {"type": "cmd", "line": "alpine true"}}});
        let mut request = TestServer::request(Method::POST, "/runs", Some(token), Some(&body));
        let key = "k1".parse().unwrap();
        request.headers_mut().insert("idempotency-key", key);
        let run: Run = server.send(request).await.json(StatusCode::CREATED);
        runs.push(run.id);
        let id = made["id"].as_str().unwrap();
        server.delete(&format!("/tokens/{id}")).await;
    }
    assert_ne!(runs[0], runs[1]);
}

#[tokio::test]
async fn rerun_does_not_restore_settings_removed_from_its_task() {
    let server = TestServer::start().await;
    let secret = json!({"value": "long enough"});
    server.put("/secrets/shared", secret).await;
    let set = async |more: serde_json::Value| {
        let mut task = json!({"name": "app", "cmd": "alpine true"});
        for (key, value) in more.as_object().unwrap() {
            task[key] = value.clone();
        }
        let response = server.put("/tasks/app", task).await;
        assert!(response.status.is_success(), "{}", response.status);
    };
    let start = async || -> Run {
        let response = server.post("/tasks/app/runs", json!({})).await;
        response.json(StatusCode::CREATED)
    };
    let rerun = async |run: &Run| {
        let path = format!("/runs/{}/rerun", run.id);
        server
            .send_as(Method::POST, &path, &server.admin, None)
            .await
    };
    let group = json!({"max": 1, "group": "shared", "cancelSuperseded": true});
    set(json!({"queue": {"pool": "gpu", "concurrency": group}})).await;
    let queued = start().await;
    assert_eq!(queued.queue.pool.as_deref(), Some("gpu"));
    set(json!({"secrets": {"token": "shared"}})).await;
    let with_secret = start().await;
    rerun(&with_secret).await.json::<Run>(StatusCode::CREATED);
    set(json!({"noPush": true})).await;
    let again: Run = rerun(&queued).await.json(StatusCode::CREATED);
    assert_eq!((again.queue.pool, again.queue.concurrency), (None, None));
    assert!(again.spec.no_push);
    let refused = rerun(&with_secret).await.problem(StatusCode::CONFLICT);
    assert!(refused.message.contains("`shared`"), "{refused:?}");
    server.delete("/tasks/app").await;
    let again: Run = rerun(&queued).await.json(StatusCode::CREATED);
    assert_eq!((again.queue.pool, again.queue.concurrency), (None, None));
    rerun(&with_secret).await.problem(StatusCode::CONFLICT);
}
