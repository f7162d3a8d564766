//! Tests of `tasks.rs`.

use acrtask_api::spec::SharedCache;
use acrtask_model::TrustDomain;
use axum::http::Method;
use serde_json::json;

use super::*;
use crate::{api::testing::TestServer, scheduler::load_lease_payload};

fn definition(name: &str) -> serde_json::Value {
    json!({
        "name": name,
        "context": "https://git.example.com/app.git#main",
        "registry": "reg.example.com",
        "values": {"greeting": "hello"},
        "platform": "linux/amd64",
        "timeout": "10m",
        "queue": {"priority": 1, "concurrency": {"max": 1, "cancelSuperseded": true}},
    })
}

#[tokio::test]
async fn task_is_created_changed_and_deleted() {
    let server = TestServer::start().await;
    let response = server.post("/tasks", definition("team/app")).await;
    let task: Task = response.json(StatusCode::CREATED);
    assert_eq!(
        response.headers[header::LOCATION],
        "/api/v1/tasks/team%2Fapp"
    );
    server
        .post("/tasks", definition("team/app"))
        .await
        .problem(StatusCode::CONFLICT);
    let shown: Task = server.get("/tasks/team%2Fapp").await.json(StatusCode::OK);
    assert_eq!(shown, task);
    // Change and rename the task. Its id stays.
    let mut changed = definition("team/other");
    changed["description"] = json!("renamed");
    let renamed: Task = server
        .put("/tasks/team%2Fapp", changed)
        .await
        .json(StatusCode::OK);
    assert_eq!(renamed.id, task.id);
    assert!(renamed.generation > task.generation);
    server
        .get("/tasks/team%2Fapp")
        .await
        .problem(StatusCode::NOT_FOUND);
    // Update with an outdated generation.
    let mut request = TestServer::request(
        Method::PUT,
        "/tasks/team%2Fother",
        Some(&server.admin),
        Some(&definition("team/other")),
    );
    request.headers_mut().insert(
        "if-match",
        format!("\"{}\"", task.generation).parse().unwrap(),
    );
    server.send(request).await.problem(StatusCode::CONFLICT);
    // Replacing a missing task creates it.
    server
        .put("/tasks/new", definition("new"))
        .await
        .json::<Task>(StatusCode::CREATED);
    let response = server.delete("/tasks/new").await;
    assert_eq!(response.status, StatusCode::NO_CONTENT);
    server
        .delete("/tasks/new")
        .await
        .problem(StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn invalid_definition_is_refused_with_all_problems() {
    let server = TestServer::start().await;
    let mut wrong = definition("a b");
    wrong["text"] = json!("steps: []");
    wrong["cmd"] = json!("alpine");
    wrong["timeout"] = json!("soon");
    let problem = server
        .post("/tasks", wrong)
        .await
        .problem(StatusCode::BAD_REQUEST);
    insta::assert_snapshot!(problem.message.replace("; ", "\n"));
    let problem = server
        .post("/tasks", json!({"name": "a", "steps": []}))
        .await
        .problem(StatusCode::BAD_REQUEST);
    assert!(
        problem.message.contains("unknown field `steps`"),
        "{problem:?}"
    );
    let misplaced = json!({"name": "a", "cmd": "alpine", "concurrency": {"max": 1}});
    for response in [
        server.post("/tasks", misplaced.clone()).await,
        server.put("/tasks/a", misplaced).await,
    ] {
        let problem = response.problem(StatusCode::BAD_REQUEST);
        assert!(problem.message.contains("unknown field `concurrency`"));
        let help = problem.help.as_deref();
        assert_eq!(help, Some("write `concurrency` under `queue:`"));
    }
}

#[tokio::test]
async fn tasks_are_listed_by_name() {
    let server = TestServer::start().await;
    for name in ["b", "team/b", "a", "team/a"] {
        server
            .post("/tasks", definition(name))
            .await
            .json::<Task>(StatusCode::CREATED);
    }
    let names = async |path: &str, token: &str| -> (Vec<String>, Option<String>) {
        let page: Page<Task> = server
            .send_as(Method::GET, path, token, None)
            .await
            .json(StatusCode::OK);
        let names = page.items.into_iter().map(|task| task.definition.name);
        (names.collect(), page.next)
    };
    let (first, next) = names("/tasks?limit=3", &server.admin).await;
    assert_eq!(first, ["a", "b", "team/a"]);
    let (rest, end) = names(
        &format!(
            "/tasks?limit=3&cursor={}",
            next.unwrap().replace('/', "%2F")
        ),
        &server.admin,
    )
    .await;
    assert_eq!((rest, end), (vec!["team/b".to_owned()], None));
    let (team, _) = names("/tasks?prefix=team%2F", &server.admin).await;
    assert_eq!(team, ["team/a", "team/b"]);
    let limited = server.create_token(&[Scope::Read], Some("team/*")).await;
    assert_eq!(names("/tasks", &limited).await.0, ["team/a", "team/b"]);
}

#[tokio::test]
async fn run_of_a_task_has_the_settings_of_the_task() {
    let server = TestServer::start().await;
    let task: Task = server
        .post("/tasks", definition("team/app"))
        .await
        .json(StatusCode::CREATED);
    let run: Run = server
        .post(
            "/tasks/team%2Fapp/runs",
            json!({"set": {"greeting": "hi"}, "noPush": true, "priority": 5}),
        )
        .await
        .json(StatusCode::CREATED);
    assert_eq!(run.task.as_deref(), Some("team/app"));
    assert_eq!(run.trigger, "task");
    assert_eq!(run.queue.priority, 5);
    insta::assert_json_snapshot!(run.spec);
    let row = server.app.store.run(&run.id).await.unwrap();
    assert_eq!(row.task_id, Some(task.id));
    assert_eq!(row.timeout_secs, Some(600));
    assert_eq!(row.platform, "linux/amd64");
    let id = row.task_id.clone().unwrap();
    let domain = TrustDomain::Task { id };
    assert_eq!(row.trust_domain, domain);
    assert_eq!(row.affinity_key, domain.affinity_key("team/app"));
    // A request without a body. The run waits in the task's own group.
    let second: Run = server
        .send_as(Method::POST, "/tasks/team%2Fapp/runs", &server.admin, None)
        .await
        .json(StatusCode::CREATED);
    assert_eq!(
        second.queue.concurrency.unwrap().group.as_deref(),
        Some("team/app")
    );
    let first = server.app.store.run(&run.id).await.unwrap();
    assert_eq!(first.state, acrtask_model::RunState::Canceled, "superseded");
}

#[tokio::test]
async fn values_of_a_token_without_write_are_untrusted() {
    let server = TestServer::start().await;
    server.post("/tasks", definition("team/app")).await;
    let body = json!({"set": {"greeting": "hi"}, "secrets": {"own": "a value"}});
    let scopes = [Scope::Read, Scope::Run, Scope::Write];
    for (scopes, expected) in [
        (&scopes[..2], vec!["greeting", "own"]),
        (&scopes[..], Vec::new()),
    ] {
        let token = server.create_token(scopes, Some("team/*")).await;
        let run: Run = server
            .send_as(Method::POST, "/tasks/team%2Fapp/runs", &token, Some(&body))
            .await
            .json(StatusCode::CREATED);
        let untrusted: Vec<&str> = run
            .spec
            .untrusted_values
            .iter()
            .map(String::as_str)
            .collect();
        assert_eq!(untrusted, expected);
        // A rerun by an admin has the same untrusted values.
        let rerun: Run = server
            .post(&format!("/runs/{}/rerun", run.id), json!({}))
            .await
            .json(StatusCode::CREATED);
        assert_eq!(rerun.spec.untrusted_values, run.spec.untrusted_values);
    }
}

#[tokio::test]
async fn idempotency_key_belongs_to_one_request() {
    let server = TestServer::start().await;
    for name in ["app", "other"] {
        server.post("/tasks", definition(name)).await;
    }
    let start = async |path: &str, body: serde_json::Value| {
        let mut request = TestServer::request(Method::POST, path, Some(&server.admin), Some(&body));
        let key = "k1".parse().unwrap();
        request.headers_mut().insert("idempotency-key", key);
        server.send(request).await
    };
    let hi = json!({"set": {"greeting": "hi"}});
    let first: Run = start("/tasks/app/runs", hi.clone())
        .await
        .json(StatusCode::CREATED);
    let repeated: Run = start("/tasks/app/runs", hi.clone())
        .await
        .json(StatusCode::OK);
    assert_eq!(repeated.id, first.id);
    // A request for a different run does not return this one.
    let bye = json!({"set": {"greeting": "bye"}});
    let files = json!({"type": "url", "url": "https://git.example.com/other.git"});
    let files = json!({"set": {"greeting": "hi"}, "context": files});
    let with = |key: &str, value: serde_json::Value| {
        let mut body = hi.clone();
        body[key] = value;
        body
    };
    let rerun = format!("/runs/{}/rerun", first.id);
    for (path, body) in [
        ("/tasks/app/runs", bye),
        ("/tasks/app/runs", files),
        ("/tasks/app/runs", with("noPush", json!(true))),
        ("/tasks/app/runs", with("file", json!("other.yaml"))),
        ("/tasks/app/runs", with("priority", json!(7))),
        ("/tasks/app/runs", with("secrets", json!({"s": "value"}))),
        ("/tasks/other/runs", hi.clone()),
        (rerun.as_str(), json!({})),
    ] {
        start(path, body).await.problem(StatusCode::CONFLICT);
    }
}

#[tokio::test]
async fn runs_of_a_task_without_pushes_never_push() {
    let server = TestServer::start().await;
    let mut task = definition("app");
    task["noPush"] = json!(true);
    server
        .post("/tasks", task)
        .await
        .json::<Task>(StatusCode::CREATED);
    for input in [json!({}), json!({"noPush": false})] {
        let run: Run = server
            .post("/tasks/app/runs", input)
            .await
            .json(StatusCode::CREATED);
        assert!(run.spec.no_push);
    }
}

#[tokio::test]
async fn disabled_task_starts_no_runs() {
    let server = TestServer::start().await;
    server
        .post("/tasks", definition("app"))
        .await
        .json::<Task>(StatusCode::CREATED);
    let run: Run = server
        .post("/tasks/app/runs", json!({}))
        .await
        .json(StatusCode::CREATED);
    let task: Task = server
        .post("/tasks/app/disable", json!({}))
        .await
        .json(StatusCode::OK);
    assert!(!task.definition.enabled);
    let problem = server
        .post("/tasks/app/runs", json!({}))
        .await
        .problem(StatusCode::CONFLICT);
    assert_eq!(problem.message, "the task `app` is disabled");
    server
        .post(&format!("/runs/{}/rerun", run.id), json!({}))
        .await
        .problem(StatusCode::CONFLICT);
    server
        .post("/tasks/app/enable", json!({}))
        .await
        .json::<Task>(StatusCode::OK);
    server
        .post("/tasks/app/runs", json!({}))
        .await
        .json::<Run>(StatusCode::CREATED);
}

#[tokio::test]
async fn task_of_a_file_cannot_be_changed() {
    let server = TestServer::start().await;
    let definition: TaskDefinition = serde_json::from_value(definition("app")).unwrap();
    server
        .app
        .store
        .create_task("t1", &definition, Some("tasks/app.yaml"), 0)
        .await
        .unwrap();
    let body = serde_json::to_value(&definition).unwrap();
    let problem = server
        .put("/tasks/app", body)
        .await
        .problem(StatusCode::CONFLICT);
    assert_eq!(
        problem.message,
        "the task `app` is defined in the file tasks/app.yaml"
    );
    server
        .delete("/tasks/app")
        .await
        .problem(StatusCode::CONFLICT);
}

#[tokio::test]
async fn runs_get_the_secrets_and_logins_of_their_task() {
    let server = TestServer::start().await;
    let mut with_secrets = definition("app");
    with_secrets["secrets"] = json!({"npm": "npm-token", "git": "git-token"});
    server
        .post("/tasks", with_secrets)
        .await
        .json::<Task>(StatusCode::CREATED);
    let problem = server
        .post("/tasks/app/runs", json!({}))
        .await
        .problem(StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(
        problem.message,
        "the secrets `git-token`, `npm-token` are missing"
    );
    for (path, body) in [
        ("/secrets/npm-token", json!({"value": "of all"})),
        (
            "/secrets/npm-token",
            json!({"value": "of the task", "task": "app"}),
        ),
        ("/secrets/git-token", json!({"value": "of all"})),
        (
            "/credentials/Reg.Example.com",
            json!({"username": "all", "password": "password 1"}),
        ),
        (
            "/credentials/reg.example.com",
            json!({"username": "app", "password": "password 2", "task": "app"}),
        ),
        (
            "/credentials/other.example.com:5000",
            json!({"username": "all", "password": "password 3"}),
        ),
    ] {
        server
            .put(path, body)
            .await
            .json::<serde_json::Value>(StatusCode::OK);
    }
    let start = json!({"secrets": {"git": "of the run"}});
    let run: Run = server
        .post("/tasks/app/runs", start)
        .await
        .json(StatusCode::CREATED);
    let row = server.app.store.run(&run.id).await.unwrap();
    let payload = load_lease_payload(&server.app, &row).await.unwrap();
    assert_eq!(payload.secrets["npm"].expose(), "of the task");
    assert_eq!(payload.secrets["git"].expose(), "of the run");
    assert_eq!(payload.vault_task.as_deref(), Some("app"));
    let logins: Vec<(&str, &str, &str)> = payload
        .credentials
        .iter()
        .map(|login| {
            (
                login.host.as_str(),
                login.username.as_str(),
                login.password.0.as_str(),
            )
        })
        .collect();
    assert_eq!(
        logins,
        [
            ("reg.example.com", "app", "password 2"),
            ("other.example.com:5000", "all", "password 3")
        ]
    );
    // A caller that may only run the task cannot run other steps with its secrets.
    let token = server.create_token(&[Scope::Run], None).await;
    for start in [
        json!({"context": {"type": "none"}}),
        json!({"file": "evil.yaml"}),
    ] {
        server
            .send_as(Method::POST, "/tasks/app/runs", &token, Some(&start))
            .await
            .problem(StatusCode::FORBIDDEN);
    }
    let start = json!({"secrets": {"git": "a value"}});
    server
        .send_as(Method::POST, "/tasks/app/runs", &token, Some(&start))
        .await
        .json::<Run>(StatusCode::CREATED);
}

#[tokio::test]
async fn files_and_secrets_of_a_starter_without_write_get_their_own_domain() {
    let server = TestServer::start().await;
    let url = "https://git.example.com/task.git";
    let task = json!({"name": "app", "cmd": "alpine true", "context": url, "cache": true});
    let task: Task = server.post("/tasks", task).await.json(StatusCode::CREATED);
    let own = TrustDomain::Task { id: task.id };
    let starter = server.create_token(&[Scope::Read, Scope::Run], None).await;
    let other = server.create_token(&[Scope::Run], None).await;
    let writer = server.create_token(&[Scope::Run, Scope::Write], None).await;
    let start = async |token: &str, body: serde_json::Value| {
        let response = server.send_as(Method::POST, "/tasks/app/runs", token, Some(&body));
        let run: Run = response.await.json(StatusCode::CREATED);
        server.app.store.run(&run.id).await.unwrap()
    };
    let files = json!({"context": {"type": "url", "url": "https://git.example.com/a.git"}});
    let file = json!({"file": "other.yaml"});
    // A run with only the task's content is in the task's domain, regardless of the starter.
    for (token, body) in [
        (&starter, json!({})),
        (&writer, files.clone()),
        (&writer, file.clone()),
    ] {
        let row = start(token, body).await;
        assert_eq!(row.trust_domain, own);
        assert!(matches!(row.spec.cache, SharedCache::ReadWrite { .. }));
    }
    let contributed = start(&starter, files.clone()).await;
    assert_ne!(contributed.trust_domain, own);
    assert_eq!(contributed.trust_domain.owner(), &own);
    let shown: Run = server
        .get(&format!("/runs/{}", contributed.id))
        .await
        .json(StatusCode::OK);
    assert_eq!(shown.domain, contributed.trust_domain.to_string());
    assert!(matches!(
        contributed.spec.cache,
        SharedCache::ReadOnly { .. }
    ));
    // The run has no access to the vaults of the task.
    let payload = load_lease_payload(&server.app, &contributed).await.unwrap();
    assert_eq!(payload.vault_task, None);
    let second = start(&starter, file).await;
    assert_eq!(second.trust_domain, contributed.trust_domain);
    // BuildKit leaves secrets out of the keys of layers.
    let secrets = json!({"secrets": {"npmrc": "registry=https://evil.example.com"}});
    let with_secrets = start(&starter, secrets.clone()).await;
    assert_ne!(with_secrets.trust_domain, contributed.trust_domain);
    assert_ne!(with_secrets.trust_domain, own);
    assert!(matches!(
        with_secrets.spec.cache,
        SharedCache::ReadOnly { .. }
    ));
    assert_eq!(start(&writer, secrets).await.trust_domain, own);
    let others = start(&other, files).await;
    assert_ne!(others.trust_domain, contributed.trust_domain);
    // A rerun stays in the domain of its code, regardless of the requester.
    let path = format!("/runs/{}/rerun", contributed.id);
    let rerun: Run = server
        .send_as(Method::POST, &path, &writer, None)
        .await
        .json(StatusCode::CREATED);
    let rerun = server.app.store.run(&rerun.id).await.unwrap();
    assert_eq!(rerun.trust_domain, contributed.trust_domain);
    assert_eq!(rerun.spec.cache, contributed.spec.cache);
}

#[tokio::test]
async fn files_of_a_starter_get_no_login_that_the_task_got_later() {
    let server = TestServer::start().await;
    server
        .post("/tasks", json!({"name": "app", "cmd": "alpine true"}))
        .await
        .json::<Task>(StatusCode::CREATED);
    let starter = server.create_token(&[Scope::Read, Scope::Run], None).await;
    let start = async |body: serde_json::Value| {
        let response = server.send_as(Method::POST, "/tasks/app/runs", &starter, Some(&body));
        response.await.json::<Run>(StatusCode::CREATED).id
    };
    let with_files = start(json!({
        "context": {"type": "url", "url": "https://git.example.com/own.git"},
        "file": "own.yaml",
    }))
    .await;
    let with_secrets = start(json!({"secrets": {"npmrc": "a value"}})).await;
    let login = json!({"task": "app", "username": "app", "password": "password 1"});
    server
        .put("/credentials/reg.example.com", login)
        .await
        .json::<serde_json::Value>(StatusCode::OK);
    let login = json!({"username": "all", "password": "password 2"});
    server
        .put("/credentials/other.example.com", login)
        .await
        .json::<serde_json::Value>(StatusCode::OK);

    for (run, expected) in [
        (with_files, vec!["other.example.com"]),
        (with_secrets, vec!["reg.example.com", "other.example.com"]),
    ] {
        let path = format!("/runs/{run}/rerun");
        let rerun = server.send_as(Method::POST, &path, &starter, None).await;
        let rerun: Run = rerun.json(StatusCode::CREATED);
        for id in [&run, &rerun.id] {
            let row = server.app.store.run(id).await.unwrap();
            let payload = load_lease_payload(&server.app, &row).await.unwrap();
            let hosts: Vec<&str> = payload
                .credentials
                .iter()
                .map(|login| &*login.host)
                .collect();
            assert_eq!(hosts, expected);
        }
    }
}

#[tokio::test]
async fn runs_of_a_renamed_or_deleted_task_get_no_access_of_its_successor() {
    let server = TestServer::start().await;
    let starter = server.create_token(&[Scope::Run], Some("a/*")).await;
    let task: Task = server
        .post("/tasks", definition("a/x"))
        .await
        .json(StatusCode::CREATED);
    let run: Run = server
        .send_as(Method::POST, "/tasks/a%2Fx/runs", &starter, None)
        .await
        .json(StatusCode::CREATED);
    let row = server.app.store.run(&run.id).await.unwrap();
    let payload = load_lease_payload(&server.app, &row).await.unwrap();
    assert_eq!(payload.vault_task.as_deref(), Some("a/x"));
    let rerun = format!("/runs/{}/rerun", run.id);

    // Rename the task: under its new name it has other logins and caches.
    server
        .put("/tasks/a%2Fx", definition("b/x"))
        .await
        .json::<Task>(StatusCode::OK);
    let problem = server
        .send_as(Method::POST, &rerun, &starter, None)
        .await
        .problem(StatusCode::CONFLICT);
    assert!(problem.message.contains("was renamed"), "{problem:?}");
    let error = load_lease_payload(&server.app, &row).await.unwrap_err();
    assert!(error.to_string().contains("was renamed"), "{error}");

    // Delete the task and create another one with the old name.
    let path = "/tasks/b%2Fx";
    let response = server
        .send_as(Method::DELETE, path, &server.admin, None)
        .await;
    assert!(response.status.is_success(), "{response:?}");
    let successor: Task = server
        .post("/tasks", definition("a/x"))
        .await
        .json(StatusCode::CREATED);
    assert_ne!(successor.id, task.id);
    let payload = load_lease_payload(&server.app, &row).await.unwrap();
    assert_eq!(payload.vault_task, None);
}

#[tokio::test]
async fn rerun_without_write_uses_only_files_that_the_task_names() {
    let server = TestServer::start().await;
    let starter = server.create_token(&[Scope::Run], None).await;
    let commit = "c".repeat(40);
    for (number, (old, new, expected)) in [
        (
            "https://h.example.com/old.tar.gz",
            "https://h.example.com/new.tar.gz",
            StatusCode::CONFLICT,
        ),
        (
            "https://h.example.com/a.tar.gz",
            "https://h.example.com/a.tar.gz",
            StatusCode::CREATED,
        ),
        (
            "https://h.example.com/a.git#main",
            "https://h.example.com/b.git#main",
            StatusCode::CONFLICT,
        ),
        (
            &format!("https://h.example.com/a.git#{commit}:sub"),
            "https://h.example.com/b.git#main",
            StatusCode::CREATED,
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("task{number}");
        let task = |context: &str| json!({"name": name, "cmd": "alpine true", "context": context});
        server
            .post("/tasks", task(old))
            .await
            .json::<Task>(StatusCode::CREATED);
        let run: Run = server
            .send_as(Method::POST, &format!("/tasks/{name}/runs"), &starter, None)
            .await
            .json(StatusCode::CREATED);
        server
            .put(&format!("/tasks/{name}"), task(new))
            .await
            .json::<Task>(StatusCode::OK);
        let rerun = format!("/runs/{}/rerun", run.id);
        let response = server.send_as(Method::POST, &rerun, &starter, None).await;
        assert_eq!(response.status, expected, "{old} {new}");
        // The author of the task may repeat the old run.
        let response = server
            .send_as(Method::POST, &rerun, &server.admin, None)
            .await;
        assert_eq!(response.status, StatusCode::CREATED, "{old} {new}");
    }
}
