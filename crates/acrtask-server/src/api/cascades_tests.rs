//! Tests of `cascades.rs`: responses, visibility and commands.

use acrtask_api::{
    admin::Scope,
    cascade::{
        CascadeDetail, CascadeNodeState, CascadeOfRun, CascadePhase, CascadeSettings,
        CascadeSummary, DigestChange, QuietHours,
    },
    image::ImageDetail,
    run::{Page, Run, RunSummary},
};
use acrtask_cascade::show::PlanView;
use acrtask_model::events::BaseRole;
use axum::http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::api::testing::{NOW, TestServer, letter_digest};

const BASE: &str = "docker.io/library/base:1";

/// Starts a server with a changed base, `lib` that depends on it, and `app` that depends on `lib`.
async fn server_with_stale_images() -> TestServer {
    let server = TestServer::start().await;
    server.register_runner("mine").await;
    for task in ["lib", "app"] {
        let body = json!({"name": task, "cmd": "alpine true"});
        server
            .post("/tasks", body)
            .await
            .json::<Value>(StatusCode::CREATED);
    }
    let on = |base, letter| [(base, letter, BaseRole::Runtime)];
    let lib = ("r.io/lib:1", 'a');
    server.complete_push("lib", lib, &on(BASE, '1')).await;
    server
        .complete_push("app", ("r.io/app:1", 'b'), &on("r.io/lib:1", 'a'))
        .await;
    server.record_digest(BASE, '2').await;
    server
}

async fn show(server: &TestServer, id: u64) -> CascadeDetail {
    let path = format!("/cascades/{id}");
    server.get(&path).await.json(StatusCode::OK)
}

fn states(detail: &CascadeDetail) -> Vec<(&str, CascadeNodeState)> {
    let nodes = detail.nodes.iter();
    nodes.map(|node| (node.task.as_str(), node.state)).collect()
}

#[tokio::test]
async fn cascade_is_listed_and_shown() {
    let server = server_with_stale_images().await;
    let none: Page<CascadeSummary> = server.get("/cascades").await.json(StatusCode::OK);
    assert_eq!(none.items, []);
    server
        .get("/cascades/1")
        .await
        .problem(StatusCode::NOT_FOUND);
    server.wait_for_cascade(1).await;
    let all: Page<CascadeSummary> = server.get("/cascades").await.json(StatusCode::OK);
    assert_eq!((all.items.len(), &all.next), (1, &None));
    let detail = show(&server, 1).await;
    assert_eq!(detail.summary, all.items[0]);
    assert_eq!(detail.summary.phase, CascadePhase::Settling);
    assert!(detail.summary.settles_at.is_some());
    assert_eq!(detail.summary.changes[BASE], letter_digest('2'));
    assert_eq!(detail.summary.counts.total(), 2);
    let lib = &detail.nodes[1];
    assert_eq!(
        (lib.task.as_str(), lib.state),
        ("lib", CascadeNodeState::Ready)
    );
    assert_eq!(lib.pins[BASE], letter_digest('2'));
    let app = &detail.nodes[0];
    assert_eq!(
        (app.state, &app.after[..]),
        (CascadeNodeState::Pending, &["lib".to_owned()][..])
    );
    assert!(detail.nodes.iter().all(|node| node.reason.is_some()));
    let active: Page<CascadeSummary> = server
        .get("/cascades?active=true&limit=1")
        .await
        .json(StatusCode::OK);
    assert_eq!(active, all);
    for (task, found) in [("lib", 1), ("ap*", 1), ("other", 0), ("l", 0)] {
        let path = format!("/cascades?task={task}");
        let of: Page<CascadeSummary> = server.get(&path).await.json(StatusCode::OK);
        assert_eq!(of.items.len(), found, "{task}");
    }
    let before: Page<CascadeSummary> = server.get("/cascades?cursor=1").await.json(StatusCode::OK);
    assert_eq!(before.items, []);
    let problem = server
        .get("/cascades?cursor=x")
        .await
        .problem(StatusCode::UNPROCESSABLE_ENTITY);
    assert!(problem.help.is_some());
}

#[tokio::test]
async fn limited_token_sees_only_its_nodes_of_a_cascade() {
    let server = server_with_stale_images().await;
    server.wait_for_cascade(1).await;
    let token = server
        .create_token(&[Scope::Read, Scope::Write], Some("app"))
        .await;
    let own: CascadeDetail = server
        .send_as(Method::GET, "/cascades/1", &token, None)
        .await
        .json(StatusCode::OK);
    assert_eq!(states(&own), [("app", CascadeNodeState::Pending)]);
    let app = &own.nodes[0];
    assert_eq!(app.after, [""; 0]);
    assert!(!app.reason.as_ref().unwrap().contains("lib"), "{app:?}");
    assert_eq!(own.summary.counts.total(), 1);
    assert!(
        own.summary.changes.is_empty(),
        "app does not depend on it directly"
    );
    let all: Page<CascadeSummary> = server
        .send_as(Method::GET, "/cascades", &token, None)
        .await
        .json(StatusCode::OK);
    assert_eq!(all.items, [own.summary]);
    let hidden: Page<CascadeSummary> = server
        .send_as(Method::GET, "/cascades?task=lib", &token, None)
        .await
        .json(StatusCode::OK);
    assert_eq!(hidden.items, [], "a filter reveals no other tasks");
    let other = server
        .create_token(&[Scope::Read, Scope::Write], Some("other"))
        .await;
    server
        .send_as(Method::GET, "/cascades/1", &other, None)
        .await
        .problem(StatusCode::NOT_FOUND);
    for word in ["pause", "cancel"] {
        let path = format!("/cascades/1/{word}");
        server
            .send_as(Method::POST, &path, &token, Some(&json!({})))
            .await
            .problem(StatusCode::FORBIDDEN);
    }
}

#[tokio::test]
async fn commands_change_the_state_of_a_cascade() {
    let server = server_with_stale_images().await;
    server.wait_for_cascade(1).await;
    let command = async |word: &str| server.post(&format!("/cascades/1/{word}"), json!({})).await;
    let paused: CascadeDetail = command("pause").await.json(StatusCode::OK);
    assert!(paused.summary.paused);
    let resumed: CascadeDetail = command("resume").await.json(StatusCode::OK);
    assert!(!resumed.summary.paused);
    let approved: CascadeDetail = command("approve").await.json(StatusCode::OK);
    assert!(approved.summary.approved);
    let canceled: CascadeDetail = command("cancel").await.json(StatusCode::OK);
    assert_eq!(canceled.summary.phase, CascadePhase::Finished);
    let gone = CascadeNodeState::Canceled;
    assert_eq!(states(&canceled), [("app", gone), ("lib", gone)]);
    let problem = command("pause").await.problem(StatusCode::CONFLICT);
    assert!(problem.message.contains("retry 1"), "{problem:?}");
    let retried: CascadeDetail = command("retry").await.json(StatusCode::OK);
    assert_eq!(retried.summary.phase, CascadePhase::Active);
    for word in ["pause", "retry"] {
        let path = format!("/cascades/9/{word}");
        let problem = server.post(&path, json!({})).await;
        problem.problem(StatusCode::NOT_FOUND);
    }
}

#[tokio::test]
async fn stale_image_shows_its_rebuild() {
    let server = server_with_stale_images().await;
    let rebuild = async |image: &str| {
        let path = format!("/images/{}", image.replace('/', "%2F"));
        let image: ImageDetail = server.get(&path).await.json(StatusCode::OK);
        image.rebuild
    };
    assert_eq!(
        rebuild("r.io/lib:1").await,
        None,
        "no cascade has handled it yet"
    );
    server.wait_for_cascade(1).await;
    let found = rebuild("r.io/lib:1").await.unwrap();
    assert_eq!(
        (found.cascade, found.state),
        (Some(1), Some(CascadeNodeState::Ready))
    );
    assert!(found.reason.is_some());
    assert_eq!(rebuild("r.io/app:1").await, None, "it is not stale yet");
    let canceled = server.post("/cascades/1/cancel", json!({})).await;
    canceled.json::<CascadeDetail>(StatusCode::OK);
    let found = rebuild("r.io/lib:1").await.unwrap();
    assert_eq!(found.state, Some(CascadeNodeState::Canceled));
}

#[tokio::test]
async fn stale_image_in_a_build_loop_shows_the_reason() {
    let server = TestServer::start().await;
    server.register_runner("mine").await;
    for task in ["a", "b"] {
        let body = json!({"name": task, "cmd": "alpine true"});
        server
            .post("/tasks", body)
            .await
            .json::<Value>(StatusCode::CREATED);
    }
    let (a, b) = ("r.io/a:1", "r.io/b:1");
    let on = |base, letter| [(base, letter, BaseRole::Runtime)];
    server.complete_push("a", (a, 'a'), &on(b, '1')).await;
    server.complete_push("b", (b, 'b'), &on(a, 'a')).await;
    server.record_digest(b, 'b').await;
    let image: ImageDetail = server.get("/images/r.io%2Fa:1").await.json(StatusCode::OK);
    assert!(!image.image.stale.is_empty());
    let rebuild = image.rebuild.unwrap();
    assert_eq!(rebuild.cascade, None);
    let why = rebuild.reason.unwrap();
    assert!(why.contains("would be rebuilt forever"), "{why}");
}

#[tokio::test]
async fn plan_starts_nothing() {
    let server = server_with_stale_images().await;
    let plan = async |body: Value| server.post("/cascades/plan", body).await;
    let names = |plan: &PlanView| -> Vec<String> {
        plan.nodes.iter().map(|node| node.task.clone()).collect()
    };
    let stale: PlanView = plan(json!({"all": true})).await.json(StatusCode::OK);
    assert_eq!(names(&stale), ["lib", "app"]);
    assert_eq!(stale.changes[0].to, letter_digest('2'));
    let default: PlanView = server
        .send_as(Method::POST, "/cascades/plan", &server.admin, None)
        .await
        .json(StatusCode::OK);
    assert_eq!(default, stale);
    let other = json!({"reference": "r.io/lib:1", "digest": letter_digest('9')});
    let other: PlanView = plan(other).await.json(StatusCode::OK);
    assert_eq!(names(&other), ["app"]);
    let unknown = json!({"reference": "unused/image:1", "digest": letter_digest('9')});
    let unknown: PlanView = plan(unknown).await.json(StatusCode::OK);
    assert_eq!(unknown.unknown, ["docker.io/unused/image:1"]);
    for wrong in [
        json!({"digest": letter_digest('9')}),
        json!({"reference": "Base"}),
        json!({"reference": format!("base@{}", letter_digest('9'))}),
        json!({"ref": "base"}),
    ] {
        let text = wrong.to_string();
        plan(wrong).await.refused(&text);
    }
    assert_eq!(server.app.store.cascade_version().await.unwrap(), 0);
}

#[tokio::test]
async fn settings_are_kept_and_checked() {
    let server = TestServer::start().await;
    let path = "/cascades/settings";
    let found: CascadeSettings = server.get(path).await.json(StatusCode::OK);
    assert_eq!(found, CascadeSettings::default());
    let new = json!({"parallel": 2, "timezone": "Europe/Berlin", "quietHours": [{"from": "22:00", "to": "06:00"}]});
    let set: CascadeSettings = server.put(path, new).await.json(StatusCode::OK);
    assert_eq!((set.parallel, set.settle_secs), (2, 30));
    let quiet = QuietHours {
        from: "22:00".parse().unwrap(),
        to: "06:00".parse().unwrap(),
    };
    assert_eq!(set.quiet_hours, [quiet]);
    let found: CascadeSettings = server.get(path).await.json(StatusCode::OK);
    assert_eq!(found, set);
    let wrong = json!({"parallel": 0, "timezone": "Mars/Olympus"});
    let problem = server
        .put(path, wrong)
        .await
        .problem(StatusCode::BAD_REQUEST);
    for word in ["parallel", "Mars/Olympus"] {
        assert!(problem.message.contains(word), "{problem:?}");
    }
    let wrong = json!({"parallell": 3});
    server
        .put(path, wrong)
        .await
        .problem(StatusCode::BAD_REQUEST);
    let found: CascadeSettings = server.get(path).await.json(StatusCode::OK);
    assert_eq!(found, set);
}

#[tokio::test]
async fn cascade_shows_that_it_awaits_an_approval() {
    let server = server_with_stale_images().await;
    let rules = json!({"rules": [{"tasks": "", "mode": "approval"}]});
    server
        .put("/cascades/settings", rules)
        .await
        .json::<Value>(StatusCode::OK);
    server.wait_for_cascade(1).await;
    server.app.clock.set(NOW + 31_000);
    server
        .drive_cascades(async || show(&server, 1).await.summary.awaiting_approval)
        .await;
    let path = "/cascades/1/approve";
    let approved: CascadeDetail = server.post(path, json!({})).await.json(StatusCode::OK);
    assert_eq!(approved.nodes[1].state, CascadeNodeState::Running);
    assert!(approved.nodes[1].run.is_some());
    let id = approved.nodes[1].run.clone().unwrap();
    let run: Run = server
        .get(&format!("/runs/{id}"))
        .await
        .json(StatusCode::OK);
    assert_eq!(run.trigger, "cascade");
    let moved = DigestChange {
        reference: BASE.into(),
        from: letter_digest('1'),
        to: letter_digest('2'),
    };
    let of = CascadeOfRun {
        id: 1,
        attempt: 1,
        changes: vec![moved],
    };
    assert_eq!(run.cascade, Some(of));
    // Lists have the same cascade, and none for a manual run.
    let all: Page<RunSummary> = server.get("/runs?task=lib").await.json(StatusCode::OK);
    assert_eq!(all.items.len(), 2);
    for listed in all.items {
        let expected = run.cascade.clone().filter(|_| listed.id == id);
        assert_eq!(listed.cascade, expected, "{}", listed.trigger);
    }
}

#[tokio::test]
async fn promotion_note_hides_tasks_that_a_token_may_not_see() {
    let server = server_with_stale_images().await;
    server.wait_for_cascade(1).await;
    let error = Some("r.io: PUT /v2/lib/manifests/1");
    let store = &server.app.store;
    let noted = store.release_promotion(1, "none", error, None, NOW);
    noted.await.unwrap();
    let token = server.create_token(&[Scope::Read], Some("app")).await;
    let seen = server
        .send_as(Method::GET, "/cascades/1", &token, None)
        .await;
    let seen: CascadeDetail = seen.json(StatusCode::OK);
    assert_eq!(states(&seen), [("app", CascadeNodeState::Pending)]);
    let note = seen.summary.promotion_note.unwrap();
    assert_eq!(note, "it concerns tasks that this token may not see");
    let all = show(&server, 1).await.summary.promotion_note.unwrap();
    assert!(all.contains("/v2/lib/"), "{all}");
}

#[tokio::test]
async fn settings_hide_tasks_that_a_token_may_not_see() {
    let server = TestServer::start().await;
    let rules = json!({
        "rules": [
            {"tasks": "", "mode": {"canary": {"first": ["prod/small", "team/small"]}}},
            {"tasks": "team/web", "mode": "approval"},
            {"tasks": "prod/", "mode": "approval"},
        ],
        "promotion": {"tasks": "", "tests": ["prod/e2e", "team/e2e", "team/e2e/smoke"]},
    });
    server
        .put("/cascades/settings", rules)
        .await
        .json::<serde_json::Value>(StatusCode::OK);
    let seen = async |tasks: &str| {
        let token = server.create_token(&[Scope::Read], Some(tasks)).await;
        let response = server
            .send_as(Method::GET, "/cascades/settings", &token, None)
            .await;
        response.json::<serde_json::Value>(StatusCode::OK)
    };
    let team = seen("team/*").await;
    assert!(!team.to_string().contains("prod"), "{team}");
    let first = &team["rules"][0]["mode"]["canary"]["first"];
    assert_eq!(*first, json!(["team/small"]));
    assert_eq!(
        team["promotion"]["tests"],
        json!(["team/e2e", "team/e2e/smoke"])
    );
    let one = seen("team/e2e").await;
    assert_eq!(
        one["promotion"]["tests"],
        json!(["team/e2e", "team/e2e/smoke"])
    );
    assert_eq!(one["rules"].as_array().unwrap().len(), 1, "{one}");
}
