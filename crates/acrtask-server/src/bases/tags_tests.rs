//! Tests of rules for newer tags, with a mock registry and a fixed clock.

use acrtask_api::{
    image::{Base, BaseProposal, ImageDetail, TagState},
    run::{Page, Run, RunResult, RunSummary},
};
use acrtask_model::{RunId, RunState, events::BaseRole};
use axum::http::StatusCode;
use serde_json::{Value, json};
use wiremock::{
    Mock, MockServer, ResponseTemplate,
    matchers::{method, path, query_param},
};

use super::*;
use crate::{
    Config,
    api::testing::{TestServer, letter_digest, result_of_build},
};

async fn server() -> TestServer {
    acrtask_registry::install_crypto_provider();
    let server = TestServer::with(Config::default()).await;
    server.register_runner("mine").await;
    server
}

/// Sets the tags of the repository `base`.
async fn set_tags(registry: &MockServer, tags: &[&str]) {
    registry.reset().await;
    Mock::given(method("GET"))
        .and(path("/v2/base/tags/list"))
        .respond_with(
            ResponseTemplate::new(200).set_body_json(json!({"name": "base", "tags": tags})),
        )
        .mount(registry)
        .await;
}

/// Creates a task that builds an image, with one rule for `base`.
async fn create_task(server: &TestServer, name: &str, rule: Value) {
    let body = json!({
        "name": name,
        "context": "https://example.com/a.git",
        "build": {"images": [format!("r.io/{name}:1")]},
        "triggers": {"baseImage": {"tags": [rule]}},
    });
    server
        .post("/tasks", body)
        .await
        .json::<Value>(StatusCode::CREATED);
}

/// Finishes a run of `name` whose image depends on `base`.
async fn finish_run(server: &TestServer, name: &str, run: &RunId, state: RunState, base: &str) {
    let result = if state == RunState::Succeeded {
        let image = format!("r.io/{name}:1");
        result_of_build(
            (&image, 'f'),
            &[(base, letter_digest('0'), BaseRole::Runtime)],
        )
    } else {
        RunResult::default()
    };
    let attempt = server.lease_run(run, "nmine").await;
    server
        .finish_run(run, attempt, "nmine", state, "", result)
        .await;
}

/// Lists the tags and applies the rules.
async fn list_and_reconcile(server: &TestServer) {
    let app = &server.app;
    app.clock.set(app.clock.now_ms() + 1000);
    reconcile_rules(app).await.unwrap();
    mark_lists_due(app, None).await.unwrap();
    while list_due(app).await.unwrap() {}
    reconcile_rules(app).await.unwrap();
}

async fn proposals(server: &TestServer) -> Vec<BaseProposal> {
    let page: Page<BaseProposal> = server.get("/bases/proposals").await.json(StatusCode::OK);
    page.items
}

/// Returns the runs that newer tags started, the newest first.
async fn started_runs(server: &TestServer) -> Vec<RunSummary> {
    let page: Page<RunSummary> = server.get("/runs").await.json(StatusCode::OK);
    let all = page.items.into_iter();
    all.filter(|run| run.trigger == "baseTag").collect()
}

async fn build_arg(server: &TestServer, run: &RunId) -> Option<String> {
    let row = server.app.store.run(run).await.unwrap();
    match row.spec.source {
        RunSource::Build(build) => build.args.get("TAG").cloned(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn newer_tag_is_proposed_until_it_is_used() {
    let registry = MockServer::start().await;
    let server = server().await;
    let image = format!("{}/base", registry.address());
    let on = |tag: &str| format!("{image}:{tag}");
    create_task(&server, "app", json!({"image": &image, "semver": "^1"})).await;
    list_and_reconcile(&server).await;
    let waiting = proposals(&server).await;
    assert_eq!((waiting.len(), waiting[0].state), (1, TagState::Waiting));
    assert!(waiting[0].detail.is_some(), "{waiting:?}");
    server
        .complete_push(
            "app",
            ("r.io/app:1", 'f'),
            &[(&on("1.2"), '0', BaseRole::BuildTime)],
        )
        .await;
    set_tags(&registry, &["1.1", "1.2", "2.0", "1.3-slim", "latest"]).await;
    list_and_reconcile(&server).await;
    let current = proposals(&server).await;
    assert_eq!(current[0].state, TagState::Current);
    assert_eq!(current[0].used.as_deref(), Some("1.2"));
    set_tags(&registry, &["1.2", "1.3", "1.10"]).await;
    // The list becomes due again after an interval, not earlier.
    let asked = async || registry.received_requests().await.unwrap().len();
    assert!(!list_due(&server.app).await.unwrap());
    let usual = as_millis(server.app.config.tags_interval);
    server.app.clock.set(server.app.clock.now_ms() + usual * 2);
    assert!(list_due(&server.app).await.unwrap());
    assert_eq!(asked().await, 1);
    reconcile_rules(&server.app).await.unwrap();
    let found = proposals(&server).await;
    assert_eq!(found[0].state, TagState::Proposed);
    assert_eq!(found[0].newest.as_deref(), Some("1.10"));
    let why: ImageDetail = server
        .get("/images/r.io%2Fapp:1")
        .await
        .json(StatusCode::OK);
    let newer = why.bases[0].newer.as_ref().unwrap();
    assert_eq!((newer.tag.as_str(), newer.task.as_str()), ("1.10", "app"));
    assert_eq!(started_runs(&server).await, [], "a proposal starts nothing");
    // The time of discovery is kept.
    let first = found[0].found_at;
    list_and_reconcile(&server).await;
    assert_eq!(proposals(&server).await[0].found_at, first);
    // A deleted tag leaves the proposals, and so does a tag in use.
    set_tags(&registry, &["1.2"]).await;
    list_and_reconcile(&server).await;
    assert_eq!(proposals(&server).await[0].state, TagState::Current);
    set_tags(&registry, &["1.2", "1.4"]).await;
    list_and_reconcile(&server).await;
    server
        .complete_push(
            "app",
            ("r.io/app:1", 'e'),
            &[(&on("1.4"), '1', BaseRole::Runtime)],
        )
        .await;
    list_and_reconcile(&server).await;
    let taken = proposals(&server).await;
    assert_eq!((taken.len(), taken[0].state), (1, TagState::Current));
    assert_eq!(server.app.store.proposals().await.unwrap(), []);
    // A watched base shows its newer tag.
    set_tags(&registry, &["1.4", "1.5"]).await;
    list_and_reconcile(&server).await;
    super::super::update_watches(&server.app).await.unwrap();
    let base = on("1.4").replace('/', "%2F");
    let bases: Vec<Base> = server
        .get(&format!("/bases/{base}"))
        .await
        .json(StatusCode::OK);
    assert_eq!(bases[0].newer[0].tag, "1.5");
    // A disabled task has no rules.
    server
        .post("/tasks/app/disable", json!({}))
        .await
        .json::<Value>(StatusCode::OK);
    list_and_reconcile(&server).await;
    assert_eq!(proposals(&server).await, []);
    assert_eq!(server.app.store.proposals().await.unwrap(), []);
}

#[tokio::test]
async fn newer_tag_starts_one_run_and_later_runs_use_it() {
    let registry = MockServer::start().await;
    let server = server().await;
    let image = format!("{}/base", registry.address());
    let on = |tag: &str| format!("{image}:{tag}");
    let rule = json!({"image": &image, "semver": "^1", "buildArg": "TAG"});
    create_task(&server, "app", rule).await;
    server
        .complete_push(
            "app",
            ("r.io/app:1", 'f'),
            &[(&on("1.2"), '0', BaseRole::Runtime)],
        )
        .await;
    set_tags(&registry, &["1.2", "1.3"]).await;
    list_and_reconcile(&server).await;
    // Several servers may find the tag at once.
    let (one, two) = tokio::join!(reconcile_rules(&server.app), reconcile_rules(&server.app));
    one.and(two).unwrap();
    let runs = started_runs(&server).await;
    assert_eq!(runs.len(), 1);
    let first = runs[0].id.clone();
    assert_eq!(build_arg(&server, &first).await.as_deref(), Some("1.3"));
    let row = server.app.store.run(&first).await.unwrap();
    assert_eq!(
        row.spec.base_tags,
        BTreeMap::from([(image.clone(), "1.3".into())])
    );
    assert_eq!(proposals(&server).await[0].state, TagState::Building);
    // The failed run is shown and not repeated. Other runs use the previous tag.
    finish_run(&server, "app", &first, RunState::Failed, "").await;
    list_and_reconcile(&server).await;
    let failed = proposals(&server).await;
    assert_eq!(
        (failed[0].state, failed[0].run.clone()),
        (TagState::Failed, Some(first.clone()))
    );
    assert_eq!(started_runs(&server).await.len(), 1);
    let by_hand = async || -> RunId {
        let run: Run = server
            .post("/tasks/app/runs", json!({}))
            .await
            .json(StatusCode::CREATED);
        run.id
    };
    assert_eq!(build_arg(&server, &by_hand().await).await, None);
    // Deliveries use a cached index of tasks.
    let index = &server.app.tasks;
    index.current(&server.app.store).await.unwrap();
    // A tag that is deleted and pushed again is not new.
    set_tags(&registry, &["1.2"]).await;
    list_and_reconcile(&server).await;
    set_tags(&registry, &["1.2", "1.3"]).await;
    list_and_reconcile(&server).await;
    assert_eq!(started_runs(&server).await.len(), 1);
    assert_eq!(proposals(&server).await[0].run, Some(first));
    // The next run succeeds, and its tag stays in use.
    set_tags(&registry, &["1.2", "1.3", "1.4"]).await;
    list_and_reconcile(&server).await;
    let runs = started_runs(&server).await;
    assert_eq!(runs.len(), 2);
    finish_run(&server, "app", &runs[0].id, RunState::Succeeded, &on("1.4")).await;
    let task: Value = server.get("/tasks/app").await.json(StatusCode::OK);
    assert_eq!(task["baseTags"], json!({&image: "1.4"}));
    let delivered = index.current(&server.app.store).await.unwrap();
    let delivered = &delivered.find_by_name("app").unwrap().task;
    assert_eq!(
        delivered.base_tags,
        BTreeMap::from([(image.clone(), "1.4".into())])
    );
    list_and_reconcile(&server).await;
    assert_eq!(proposals(&server).await[0].state, TagState::Current);
    let later = by_hand().await;
    assert_eq!(build_arg(&server, &later).await.as_deref(), Some("1.4"));
    let row = server.app.store.run(&later).await.unwrap();
    assert_eq!(row.spec.base_tags, BTreeMap::new(), "it tries nothing");
    // The image does not use the argument. This is reported, and no further run starts.
    set_tags(&registry, &["1.4", "1.5"]).await;
    list_and_reconcile(&server).await;
    let runs = started_runs(&server).await;
    finish_run(&server, "app", &runs[0].id, RunState::Succeeded, &on("1.4")).await;
    list_and_reconcile(&server).await;
    let unused = proposals(&server).await;
    assert_eq!(unused[0].state, TagState::Unused);
    assert!(
        unused[0]
            .detail
            .as_ref()
            .unwrap()
            .contains("build argument TAG")
    );
    assert_eq!(started_runs(&server).await.len(), 3);
}

#[tokio::test]
async fn blocked_run_starts_once_it_can() {
    let registry = MockServer::start().await;
    let server = server().await;
    let image = format!("{}/base", registry.address());
    let on = format!("{image}:nightly-1");
    let body = json!({
        "name": "app",
        "text": "steps: [{cmd: alpine true}]",
        "values": {"base": "nightly-1"},
        "secrets": {"token": "missing"},
        "triggers": {"baseImage": {"tags": [
            {"image": &image, "pattern": r"nightly-(\d+)", "value": "base"}
        ]}},
    });
    server
        .post("/tasks", body)
        .await
        .json::<Value>(StatusCode::CREATED);
    server
        .put(
            "/secrets/missing",
            json!({"value": "hunter2", "task": "app"}),
        )
        .await;
    server
        .complete_push("app", ("r.io/app:1", 'f'), &[(&on, '0', BaseRole::Runtime)])
        .await;
    server.delete("/secrets/missing?task=app").await;
    set_tags(&registry, &["nightly-1", "nightly-9", "nightly-10"]).await;
    list_and_reconcile(&server).await;
    let blocked = proposals(&server).await;
    assert_eq!(blocked[0].state, TagState::Blocked, "{blocked:?}");
    let detail = blocked[0].detail.as_deref().unwrap();
    assert!(
        detail.contains("the secret `missing` is missing"),
        "{detail}"
    );
    server
        .put(
            "/secrets/missing",
            json!({"value": "hunter2", "task": "app"}),
        )
        .await;
    reconcile_rules(&server.app).await.unwrap();
    let runs = started_runs(&server).await;
    assert_eq!(runs.len(), 1);
    let row = server.app.store.run(&runs[0].id).await.unwrap();
    assert_eq!(row.spec.values["base"], "nightly-10");
    assert_eq!(proposals(&server).await[0].state, TagState::Building);
}

#[tokio::test]
async fn tag_lists_are_paged_and_respect_rate_limits() {
    let registry = MockServer::start().await;
    let server = server().await;
    let image = format!("{}/base", registry.address());
    create_task(&server, "app", json!({"image": &image, "semver": "*"})).await;
    let on = format!("{image}:1.0.0");
    server
        .complete_push("app", ("r.io/app:1", 'f'), &[(&on, '0', BaseRole::Runtime)])
        .await;
    let page = |tags: Value| ResponseTemplate::new(200).set_body_json(json!({"tags": tags}));
    let next = "</v2/base/tags/list?last=1.0.0&n=1>; rel=\"next\"";
    Mock::given(method("GET"))
        .and(query_param("n", "1000"))
        .respond_with(page(json!(["1.0.0"])).insert_header("link", next))
        .mount(&registry)
        .await;
    Mock::given(method("GET"))
        .and(query_param("last", "1.0.0"))
        .respond_with(page(json!(["1.0.1"])))
        .mount(&registry)
        .await;
    list_and_reconcile(&server).await;
    assert_eq!(proposals(&server).await[0].newest.as_deref(), Some("1.0.1"));
    registry.reset().await;
    let limited = ResponseTemplate::new(429).insert_header("retry-after", "600");
    Mock::given(method("GET"))
        .respond_with(limited)
        .mount(&registry)
        .await;
    list_and_reconcile(&server).await;
    let still = proposals(&server).await;
    assert_eq!(
        still[0].state,
        TagState::Proposed,
        "what is known stays known"
    );
    let wait = still[0].next_check_at.unwrap().as_millisecond() - server.app.clock.now_ms();
    assert!((599_000..=600_000).contains(&wait), "{wait}");
    list_and_reconcile(&server).await;
    assert_eq!(
        registry.received_requests().await.unwrap().len(),
        1,
        "it is left alone"
    );
}

#[tokio::test]
async fn failed_listing_is_recorded_as_a_status() {
    let registry = MockServer::start().await;
    let server = server().await;
    let image = format!("{}/base", registry.address());
    create_task(&server, "app", json!({"image": &image, "semver": "*"})).await;
    let on = format!("{image}:1.0.0");
    server
        .complete_push("app", ("r.io/app:1", 'f'), &[(&on, '0', BaseRole::Runtime)])
        .await;
    list_and_reconcile(&server).await;
    let unlisted = proposals(&server).await;
    assert_eq!(unlisted[0].state, TagState::Unlisted);
    let detail = unlisted[0].detail.as_deref().unwrap();
    assert!(detail.starts_with("vanished: "), "{detail}");
}

#[tokio::test]
async fn circular_pages_end_the_listing() {
    let registry = MockServer::start().await;
    let server = server().await;
    let image = format!("{}/base", registry.address());
    create_task(&server, "app", json!({"image": &image, "semver": "*"})).await;
    let on = format!("{image}:1.0.0");
    server
        .complete_push("app", ("r.io/app:1", 'f'), &[(&on, '0', BaseRole::Runtime)])
        .await;
    // The pages after the first one: a, b, a, b and so on.
    Mock::given(method("GET"))
        .respond_with(|request: &wiremock::Request| {
            let is_a = request.url.query() == Some("last=a");
            let next = if is_a {
                "<?last=b>; rel=next"
            } else {
                "<?last=a>; rel=next"
            };
            ResponseTemplate::new(200)
                .set_body_json(json!({"tags": ["1.0.0"]}))
                .insert_header("link", next)
        })
        .mount(&registry)
        .await;
    list_and_reconcile(&server).await;
    let shown = proposals(&server).await;
    assert_eq!(shown[0].state, TagState::Unlisted);
    let detail = shown[0].detail.as_deref().unwrap();
    assert!(detail.contains("links to an earlier page"), "{detail}");
    assert_eq!(registry.received_requests().await.unwrap().len(), 3);
}

#[test]
fn tag_is_applied_to_the_target_of_its_rule_and_never_downgrades() {
    let task = |rule: Value, args: Value| -> Task {
        serde_json::from_value(json!({
            "id": "t", "name": "app", "generation": 1,
            "createdAt": "2026-01-01T00:00:00Z", "updatedAt": "2026-01-01T00:00:00Z",
            "build": {"images": ["a"], "args": args}, "triggers": {"baseImage": {"tags": [rule]}},
        }))
        .unwrap()
    };
    let tags = BTreeMap::from([("docker.io/library/alpine".to_owned(), "3.21".to_owned())]);
    let given = |task: &Task| {
        let mut spec = RunSpec {
            source: RunSource::Build(task.definition.build.clone().unwrap()),
            ..RunSpec::default()
        };
        apply_tags(task, &tags, &mut spec);
        let RunSource::Build(build) = spec.source else {
            panic!("it builds");
        };
        build.args.get("TAG").cloned()
    };
    let some = |tag: &str| Some(tag.to_owned());
    let rule = json!({"image": "alpine", "semver": "^3", "buildArg": "TAG"});
    assert_eq!(given(&task(rule.clone(), json!({}))), some("3.21"));
    assert_eq!(
        given(&task(rule.clone(), json!({"TAG": "3.20"}))),
        some("3.21")
    );
    assert_eq!(
        given(&task(rule.clone(), json!({"TAG": "3.22"}))),
        some("3.22")
    );
    assert_eq!(given(&task(rule, json!({"TAG": "2.1"}))), some("3.21"));
    let narrow = json!({"image": "alpine", "semver": "<3.21", "buildArg": "TAG"});
    assert_eq!(given(&task(narrow, json!({"TAG": "3.20"}))), some("3.20"));
    let proposed = json!({"image": "alpine", "semver": "^3"});
    assert_eq!(given(&task(proposed, json!({}))), None);
}

#[test]
fn invalid_rules_are_reported_with_their_keys() {
    let definition: TaskDefinition = serde_json::from_value(json!({
        "name": "app",
        "build": {"images": ["a"], "secretArgs": ["TOKEN"]},
        "triggers": {"baseImage": {"tags": [
            {"image": "alpine:3.20", "semver": "newest"},
            {"image": "docker.io/library/alpine", "pattern": "("},
            {"image": "NO", "semver": "^1", "pattern": "x"},
            {"image": "a"},
            {"image": "b", "semver": "*", "buildArg": "TOKEN"},
            {"image": "c", "semver": "*", "buildArg": "A-B"},
            {"image": "d", "semver": "*", "buildArg": "A", "value": "b"},
            {"image": "e", "semver": "*", "value": "a b"},
            {"image": "f", "semver": "*", "buildArg": "F"},
            {"image": "g", "semver": "*", "buildArg": "F"},
        ]}},
    }))
    .unwrap();
    insta::assert_snapshot!(find_rule_problems(&definition).join("\n"));
    let file: TaskDefinition = serde_json::from_value(json!({
        "name": "app", "text": "steps: []",
        "triggers": {"baseImage": {"tags": [{"image": "a", "semver": "*", "buildArg": "A"}]}},
    }))
    .unwrap();
    insta::assert_snapshot!(find_rule_problems(&file).join("\n"));
}
