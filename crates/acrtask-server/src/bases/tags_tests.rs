//! Rules for newer tags against a registry that lists what a test says, under a set clock.

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
    api::testing::{Server, built, sha},
};

async fn server() -> Server {
    acrtask_registry::install_crypto_provider();
    let server = Server::with(Config::default()).await;
    server.runner("mine").await;
    server
}

/// A registry whose repository `base` has these tags.
async fn tags(registry: &MockServer, tags: &[&str]) {
    registry.reset().await;
    Mock::given(method("GET"))
        .and(path("/v2/base/tags/list"))
        .respond_with(
            ResponseTemplate::new(200).set_body_json(json!({"name": "base", "tags": tags})),
        )
        .mount(registry)
        .await;
}

/// A task that builds an image, with one rule for `base`.
async fn task(server: &Server, name: &str, rule: Value) {
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

/// Ends a run of `name`, whose image stands on `base`.
async fn ends(server: &Server, name: &str, run: &RunId, state: RunState, base: &str) {
    let result = if state == RunState::Succeeded {
        let image = format!("r.io/{name}:1");
        built((&image, 'f'), &[(base, sha('0'), BaseRole::Runtime)])
    } else {
        RunResult::default()
    };
    let attempt = server.lease(run, "nmine").await;
    server
        .finish(run, attempt, "nmine", state, "", result)
        .await;
}

/// Lists the tags now, and does what rules say.
async fn look(server: &Server) {
    let app = &server.app;
    app.clock.set(app.clock.now_ms() + 1000);
    pass(app).await.unwrap();
    hurry(app, None).await.unwrap();
    while list_due(app).await.unwrap() {}
    pass(app).await.unwrap();
}

async fn shown(server: &Server) -> Vec<BaseProposal> {
    let page: Page<BaseProposal> = server.get("/bases/proposals").await.json(StatusCode::OK);
    page.items
}

/// Runs that newer tags started, the newest first.
async fn started(server: &Server) -> Vec<RunSummary> {
    let page: Page<RunSummary> = server.get("/runs").await.json(StatusCode::OK);
    let all = page.items.into_iter();
    all.filter(|run| run.trigger == "base-tag").collect()
}

async fn arg(server: &Server, run: &RunId) -> Option<String> {
    let row = server.app.store.run(run).await.unwrap();
    match row.spec.work {
        Work::Build(build) => build.args.get("TAG").cloned(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_newer_tag_is_proposed_until_it_is_in_use() {
    let registry = MockServer::start().await;
    let server = server().await;
    let image = format!("{}/base", registry.address());
    let on = |tag: &str| format!("{image}:{tag}");
    task(&server, "app", json!({"image": &image, "semver": "^1"})).await;
    look(&server).await;
    let waiting = shown(&server).await;
    assert_eq!((waiting.len(), waiting[0].state), (1, TagState::Waiting));
    assert!(waiting[0].detail.is_some(), "{waiting:?}");
    server
        .pushed(
            "app",
            ("r.io/app:1", 'f'),
            &[(&on("1.2"), '0', BaseRole::BuildTime)],
        )
        .await;
    tags(&registry, &["1.1", "1.2", "2.0", "1.3-slim", "latest"]).await;
    look(&server).await;
    let current = shown(&server).await;
    assert_eq!(current[0].state, TagState::Current);
    assert_eq!(current[0].used.as_deref(), Some("1.2"));
    tags(&registry, &["1.2", "1.3", "1.10"]).await;
    // It is due again after a while, and not before.
    let asked = async || registry.received_requests().await.unwrap().len();
    assert!(!list_due(&server.app).await.unwrap());
    let usual = millis(server.app.config.tags_interval);
    server.app.clock.set(server.app.clock.now_ms() + usual * 2);
    assert!(list_due(&server.app).await.unwrap());
    assert_eq!(asked().await, 1);
    pass(&server.app).await.unwrap();
    let found = shown(&server).await;
    assert_eq!(found[0].state, TagState::Proposed);
    assert_eq!(found[0].newest.as_deref(), Some("1.10"));
    let why: ImageDetail = server
        .get("/images/r.io%2Fapp:1")
        .await
        .json(StatusCode::OK);
    let newer = why.bases[0].newer.as_ref().unwrap();
    assert_eq!((newer.tag.as_str(), newer.task.as_str()), ("1.10", "app"));
    assert_eq!(started(&server).await, [], "a proposal starts nothing");
    // When it was found is kept.
    let first = found[0].found_at;
    look(&server).await;
    assert_eq!(shown(&server).await[0].found_at, first);
    // A tag that vanishes is proposed no more, and one that is in use neither.
    tags(&registry, &["1.2"]).await;
    look(&server).await;
    assert_eq!(shown(&server).await[0].state, TagState::Current);
    tags(&registry, &["1.2", "1.4"]).await;
    look(&server).await;
    server
        .pushed(
            "app",
            ("r.io/app:1", 'e'),
            &[(&on("1.4"), '1', BaseRole::Runtime)],
        )
        .await;
    look(&server).await;
    let taken = shown(&server).await;
    assert_eq!((taken.len(), taken[0].state), (1, TagState::Current));
    assert_eq!(server.app.store.proposals().await.unwrap(), []);
    // A base that is watched shows what may take its place.
    tags(&registry, &["1.4", "1.5"]).await;
    look(&server).await;
    super::super::compare(&server.app).await.unwrap();
    let base = on("1.4").replace('/', "%2F");
    let bases: Vec<Base> = server
        .get(&format!("/bases/{base}"))
        .await
        .json(StatusCode::OK);
    assert_eq!(bases[0].newer[0].tag, "1.5");
    // A task that is off has no rules.
    server
        .post("/tasks/app/disable", json!({}))
        .await
        .json::<Value>(StatusCode::OK);
    look(&server).await;
    assert_eq!(shown(&server).await, []);
    assert_eq!(server.app.store.proposals().await.unwrap(), []);
}

#[tokio::test]
async fn a_newer_tag_starts_one_run_and_later_ones_get_it() {
    let registry = MockServer::start().await;
    let server = server().await;
    let image = format!("{}/base", registry.address());
    let on = |tag: &str| format!("{image}:{tag}");
    let rule = json!({"image": &image, "semver": "^1", "buildArg": "TAG"});
    task(&server, "app", rule).await;
    server
        .pushed(
            "app",
            ("r.io/app:1", 'f'),
            &[(&on("1.2"), '0', BaseRole::Runtime)],
        )
        .await;
    tags(&registry, &["1.2", "1.3"]).await;
    look(&server).await;
    // Any number of servers finds it.
    let (one, two) = tokio::join!(pass(&server.app), pass(&server.app));
    one.and(two).unwrap();
    let runs = started(&server).await;
    assert_eq!(runs.len(), 1);
    let first = runs[0].id.clone();
    assert_eq!(arg(&server, &first).await.as_deref(), Some("1.3"));
    let row = server.app.store.run(&first).await.unwrap();
    assert_eq!(
        row.spec.base_tags,
        BTreeMap::from([(image.clone(), "1.3".into())])
    );
    assert_eq!(shown(&server).await[0].state, TagState::Building);
    // It fails: it is shown, and not repeated; others use what was used before.
    ends(&server, "app", &first, RunState::Failed, "").await;
    look(&server).await;
    let failed = shown(&server).await;
    assert_eq!(
        (failed[0].state, failed[0].run.clone()),
        (TagState::Failed, Some(first.clone()))
    );
    assert_eq!(started(&server).await.len(), 1);
    let by_hand = async || -> RunId {
        let run: Run = server
            .post("/tasks/app/runs", json!({}))
            .await
            .json(StatusCode::CREATED);
        run.id
    };
    assert_eq!(arg(&server, &by_hand().await).await, None);
    // Deliveries look at tasks that were read before.
    let index = &server.app.tasks;
    index.current(&server.app.store).await.unwrap();
    // The tag goes and comes again: that is no new one.
    tags(&registry, &["1.2"]).await;
    look(&server).await;
    tags(&registry, &["1.2", "1.3"]).await;
    look(&server).await;
    assert_eq!(started(&server).await.len(), 1);
    assert_eq!(shown(&server).await[0].run, Some(first));
    // The next one succeeds, and stays.
    tags(&registry, &["1.2", "1.3", "1.4"]).await;
    look(&server).await;
    let runs = started(&server).await;
    assert_eq!(runs.len(), 2);
    ends(&server, "app", &runs[0].id, RunState::Succeeded, &on("1.4")).await;
    let task: Value = server.get("/tasks/app").await.json(StatusCode::OK);
    assert_eq!(task["baseTags"], json!({&image: "1.4"}));
    let delivered = index.current(&server.app.store).await.unwrap();
    let delivered = &delivered.named("app").unwrap().task;
    assert_eq!(
        delivered.base_tags,
        BTreeMap::from([(image.clone(), "1.4".into())])
    );
    look(&server).await;
    assert_eq!(shown(&server).await[0].state, TagState::Current);
    let later = by_hand().await;
    assert_eq!(arg(&server, &later).await.as_deref(), Some("1.4"));
    let row = server.app.store.run(&later).await.unwrap();
    assert_eq!(row.spec.base_tags, BTreeMap::new(), "it tries nothing");
    // Its image does not use the argument: that is said, and starts nothing more.
    tags(&registry, &["1.4", "1.5"]).await;
    look(&server).await;
    let runs = started(&server).await;
    ends(&server, "app", &runs[0].id, RunState::Succeeded, &on("1.4")).await;
    look(&server).await;
    let unused = shown(&server).await;
    assert_eq!(unused[0].state, TagState::Unused);
    assert!(
        unused[0]
            .detail
            .as_ref()
            .unwrap()
            .contains("build argument TAG")
    );
    assert_eq!(started(&server).await.len(), 3);
}

#[tokio::test]
async fn a_run_that_cannot_be_started_is_started_when_it_can_be() {
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
        .pushed("app", ("r.io/app:1", 'f'), &[(&on, '0', BaseRole::Runtime)])
        .await;
    server.delete("/secrets/missing?task=app").await;
    tags(&registry, &["nightly-1", "nightly-9", "nightly-10"]).await;
    look(&server).await;
    let blocked = shown(&server).await;
    assert_eq!(blocked[0].state, TagState::Blocked, "{blocked:?}");
    let detail = blocked[0].detail.as_deref().unwrap();
    assert!(detail.contains("no secret `missing`"), "{detail}");
    server
        .put(
            "/secrets/missing",
            json!({"value": "hunter2", "task": "app"}),
        )
        .await;
    pass(&server.app).await.unwrap();
    let runs = started(&server).await;
    assert_eq!(runs.len(), 1);
    let row = server.app.store.run(&runs[0].id).await.unwrap();
    assert_eq!(row.spec.values["base"], "nightly-10");
    assert_eq!(shown(&server).await[0].state, TagState::Building);
}

#[tokio::test]
async fn lists_come_in_pages_and_keep_to_what_the_registry_allows() {
    let registry = MockServer::start().await;
    let server = server().await;
    let image = format!("{}/base", registry.address());
    task(&server, "app", json!({"image": &image, "semver": "*"})).await;
    let on = format!("{image}:1.0.0");
    server
        .pushed("app", ("r.io/app:1", 'f'), &[(&on, '0', BaseRole::Runtime)])
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
    look(&server).await;
    assert_eq!(shown(&server).await[0].newest.as_deref(), Some("1.0.1"));
    registry.reset().await;
    let limited = ResponseTemplate::new(429).insert_header("retry-after", "600");
    Mock::given(method("GET"))
        .respond_with(limited)
        .mount(&registry)
        .await;
    look(&server).await;
    let still = shown(&server).await;
    assert_eq!(
        still[0].state,
        TagState::Proposed,
        "what is known stays known"
    );
    let wait = still[0].next_check_at.unwrap().as_millisecond() - server.app.clock.now_ms();
    assert!((599_000..=600_000).contains(&wait), "{wait}");
    look(&server).await;
    assert_eq!(
        registry.received_requests().await.unwrap().len(),
        1,
        "it is left alone"
    );
}

#[tokio::test]
async fn a_list_that_cannot_be_had_is_a_state() {
    let registry = MockServer::start().await;
    let server = server().await;
    let image = format!("{}/base", registry.address());
    task(&server, "app", json!({"image": &image, "semver": "*"})).await;
    let on = format!("{image}:1.0.0");
    server
        .pushed("app", ("r.io/app:1", 'f'), &[(&on, '0', BaseRole::Runtime)])
        .await;
    look(&server).await;
    let unlisted = shown(&server).await;
    assert_eq!(unlisted[0].state, TagState::Unlisted);
    let detail = unlisted[0].detail.as_deref().unwrap();
    assert!(detail.starts_with("vanished: "), "{detail}");
}

#[tokio::test]
async fn pages_that_lead_in_a_circle_end_the_list() {
    let registry = MockServer::start().await;
    let server = server().await;
    let image = format!("{}/base", registry.address());
    task(&server, "app", json!({"image": &image, "semver": "*"})).await;
    let on = format!("{image}:1.0.0");
    server
        .pushed("app", ("r.io/app:1", 'f'), &[(&on, '0', BaseRole::Runtime)])
        .await;
    // The pages after the first one: a, b, a, b ...
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
    look(&server).await;
    let shown = shown(&server).await;
    assert_eq!(shown[0].state, TagState::Unlisted);
    let detail = shown[0].detail.as_deref().unwrap();
    assert!(detail.contains("names an earlier page"), "{detail}");
    assert_eq!(registry.received_requests().await.unwrap().len(), 3);
}

#[test]
fn a_tag_goes_where_the_rule_says_and_never_back() {
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
            work: Work::Build(task.definition.build.clone().unwrap()),
            ..RunSpec::default()
        };
        give(task, &tags, &mut spec);
        let Work::Build(build) = spec.work else {
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
fn rules_that_cannot_be_followed_are_told_with_their_keys() {
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
    insta::assert_snapshot!(problems(&definition).join("\n"));
    let file: TaskDefinition = serde_json::from_value(json!({
        "name": "app", "text": "steps: []",
        "triggers": {"baseImage": {"tags": [{"image": "a", "semver": "*", "buildArg": "A"}]}},
    }))
    .unwrap();
    insta::assert_snapshot!(problems(&file).join("\n"));
}
