//! Tests of secrets and logins that are scoped by a prefix of tasks, as a team uses them.

use acrtask_api::{
    admin::{Credential, Scope, Secret},
    run::Run,
    task::Task,
};
use axum::http::{Method, StatusCode};
use serde_json::{Value, json};

use super::testing::TestServer;
use crate::scheduler::{LeasePayload, load_lease_payload};

const TEAM: &[Scope] = &[Scope::Write];

async fn add_task(server: &TestServer, name: &str, secrets: Value) {
    let body = json!({"name": name, "cmd": "alpine true", "secrets": secrets});
    server
        .post("/tasks", body)
        .await
        .json::<Task>(StatusCode::CREATED);
}

async fn lease(server: &TestServer, task: &str, token: &str, body: Value) -> LeasePayload {
    let path = format!("/tasks/{}/runs", task.replace('/', "%2F"));
    let started = server
        .send_as(Method::POST, &path, token, Some(&body))
        .await;
    let run: Run = started.json(StatusCode::CREATED);
    let row = server.app.store.run(&run.id).await.unwrap();
    load_lease_payload(&server.app, &row).await.unwrap()
}

fn logins(payload: &LeasePayload) -> String {
    let logins = payload.credentials.iter();
    let logins: Vec<_> = logins
        .map(|login| format!("{} {}", login.host, login.username))
        .collect();
    logins.join(", ")
}

#[tokio::test]
async fn team_manages_the_secrets_and_logins_of_its_prefix() {
    let server = TestServer::start().await;
    let team = server.create_token(TEAM, Some("team/*")).await;
    let other = server.create_token(TEAM, Some("other/*")).await;
    let put = async |token: &str, path: &str, body: Value| {
        server.send_as(Method::PUT, path, token, Some(&body)).await
    };
    let secret = |tasks: &str| json!({"value": "a secret", "tasks": tasks});
    let login = |tasks: &str| json!({"username": "u", "password": "password", "tasks": tasks});
    for tasks in ["team/*", "team/web/*", "team/web*"] {
        let set: Secret = put(&team, "/secrets/npm", secret(tasks))
            .await
            .json(StatusCode::OK);
        assert_eq!((set.task, set.tasks.as_deref()), (None, Some(tasks)));
        let set: Credential = put(&team, "/credentials/r.io", login(tasks))
            .await
            .json(StatusCode::OK);
        assert_eq!(set.tasks.as_deref(), Some(tasks));
    }
    // No pattern reaches a task outside the limit.
    for tasks in ["team*", "te*", "t*", "other/*", "Team/*", "/team/*"] {
        for (path, body) in [
            ("/secrets/npm", secret(tasks)),
            ("/credentials/r.io", login(tasks)),
        ] {
            let refused = put(&team, path, body).await;
            refused.problem(StatusCode::FORBIDDEN);
            let path = format!("{path}?tasks={tasks}");
            let refused = server.send_as(Method::DELETE, &path, &team, None).await;
            refused.problem(StatusCode::FORBIDDEN);
        }
    }
    for tasks in ["*", "team/", "te*am/*", "team/**", "", "team/ *", "../*/*"] {
        let refused = put(&team, "/secrets/npm", secret(tasks)).await;
        let problem = refused.problem(StatusCode::BAD_REQUEST);
        assert!(problem.message.contains("`tasks`"), "{problem:?}");
    }
    let both = json!({"value": "a secret", "tasks": "team/*", "task": "team/a"});
    put(&team, "/secrets/npm", both)
        .await
        .problem(StatusCode::UNPROCESSABLE_ENTITY);
    let all = json!({"value": "a secret"});
    let refused = put(&team, "/secrets/npm", all.clone()).await;
    let help = refused.problem(StatusCode::FORBIDDEN).help.unwrap();
    assert!(help.contains("--prefix"), "{help}");
    server
        .put("/secrets/npm", all)
        .await
        .json::<Secret>(StatusCode::OK);
    // A token of one task has no prefix.
    let one = server.create_token(TEAM, Some("team/a")).await;
    put(&one, "/secrets/npm", secret("team/a*"))
        .await
        .problem(StatusCode::FORBIDDEN);

    let listed = async |token: &str, path: &str| {
        let response = server.send_as(Method::GET, path, token, None).await;
        response.json::<Vec<Secret>>(StatusCode::OK).len()
    };
    assert_eq!(listed(&server.admin, "/secrets").await, 4);
    assert_eq!(listed(&team, "/secrets").await, 3);
    assert_eq!(listed(&team, "/secrets?tasks=team/*").await, 1);
    assert_eq!(listed(&other, "/secrets").await, 0);
    assert_eq!(listed(&other, "/secrets?tasks=team/*").await, 0);
    let seen = server
        .send_as(Method::GET, "/credentials", &other, None)
        .await;
    assert_eq!(seen.json::<Vec<Credential>>(StatusCode::OK), []);
    let path = "/secrets/npm?tasks=team/web/*";
    let deleted = server.send_as(Method::DELETE, path, &team, None).await;
    assert_eq!(deleted.status, StatusCode::NO_CONTENT);
    assert_eq!(listed(&team, "/secrets").await, 2);
}

#[tokio::test]
async fn run_gets_the_narrowest_secret_and_login() {
    let server = TestServer::start().await;
    let secrets = || json!({"npm": "npm"});
    for name in ["team/web/app", "team/db", "teams/db", "team/own"] {
        add_task(&server, name, secrets()).await;
    }
    for (scope, value) in [
        (json!({}), "of all tasks"),
        (json!({"tasks": "team/*"}), "of the team"),
        (json!({"tasks": "team/web/*"}), "of the web"),
        (json!({"task": "team/own"}), "of the task"),
    ] {
        let mut secret = scope.clone();
        secret["value"] = value.into();
        server
            .put("/secrets/npm", secret)
            .await
            .json::<Secret>(StatusCode::OK);
        let mut login = scope;
        login["username"] = value.into();
        login["password"] = "a password".into();
        server
            .put("/credentials/r.io", login)
            .await
            .json::<Credential>(StatusCode::OK);
    }
    for (task, expected) in [
        ("team/web/app", "of the web"),
        ("team/db", "of the team"),
        ("teams/db", "of all tasks"),
        ("team/own", "of the task"),
    ] {
        let payload = lease(&server, task, &server.admin, json!({})).await;
        assert_eq!(payload.secrets["npm"].expose(), expected, "{task}");
        assert_eq!(logins(&payload), format!("r.io {expected}"), "{task}");
    }
    // A run without a task gets what all tasks get.
    let run = server.start_run().await;
    let row = server.app.store.run(&run.id).await.unwrap();
    let payload = load_lease_payload(&server.app, &row).await.unwrap();
    assert_eq!(logins(&payload), "r.io of all tasks");
    // The stored values cannot be moved to another scope.
    let chain = acrtask_model::ScopeChain::of_task("id", "team/x");
    let (scope, sealed) = server
        .app
        .store
        .secret(&chain, "npm")
        .await
        .unwrap()
        .unwrap();
    assert_eq!(scope, "team/*");
    for other in ["", "team/web/*"] {
        let aad = crate::run_factory::secret_aad(other, "npm");
        server.app.vault.open(&aad, &sealed).unwrap_err();
    }
}

#[tokio::test]
async fn files_of_a_starter_get_no_login_of_a_prefix() {
    let server = TestServer::start().await;
    add_task(&server, "team/app", json!({})).await;
    let starter = server.create_token(&[Scope::Run], Some("team/*")).await;
    let files = || {
        json!({
            "context": {"type": "url", "url": "https://git.example.com/own.git"},
            "file": "own.yaml",
        })
    };
    let path = "/tasks/team%2Fapp/runs";
    let before = server
        .send_as(Method::POST, path, &starter, Some(&files()))
        .await;
    let before: Run = before.json(StatusCode::CREATED);
    for (host, tasks) in [("r.io", Some("team/*")), ("s.io", None)] {
        let login = json!({"username": "u", "password": "a password", "tasks": tasks});
        server
            .put(&format!("/credentials/{host}"), login)
            .await
            .json::<Credential>(StatusCode::OK);
    }
    let row = server.app.store.run(&before.id).await.unwrap();
    let payload = load_lease_payload(&server.app, &row).await.unwrap();
    assert_eq!(logins(&payload), "s.io u");
    // Without files of its own, a starter runs the code of the task.
    let payload = lease(&server, "team/app", &starter, json!({})).await;
    assert_eq!(logins(&payload), "r.io u, s.io u");
    server
        .send_as(Method::POST, path, &starter, Some(&files()))
        .await
        .problem(StatusCode::FORBIDDEN);
}
