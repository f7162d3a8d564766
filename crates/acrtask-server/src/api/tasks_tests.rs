//! Tests of `tasks.rs`.

use acrtask_api::spec::SharedCache;
use acrtask_model::TrustDomain;
use axum::http::Method;
use serde_json::json;

use super::*;
use crate::{api::testing::Server, submit::lease_payload};

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
async fn a_task_is_made_changed_and_deleted() {
    let server = Server::start().await;
    let answer = server.post("/tasks", definition("team/app")).await;
    let task: Task = answer.json(StatusCode::CREATED);
    assert_eq!(answer.headers[header::LOCATION], "/api/v1/tasks/team%2Fapp");
    server
        .post("/tasks", definition("team/app"))
        .await
        .problem(StatusCode::CONFLICT);
    let shown: Task = server.get("/tasks/team%2Fapp").await.json(StatusCode::OK);
    assert_eq!(shown, task);
    // Changed, and renamed; the id stays.
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
    // With a generation that is past.
    let mut request = Server::request(
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
    // One that is not there is made.
    server
        .put("/tasks/new", definition("new"))
        .await
        .json::<Task>(StatusCode::CREATED);
    let answer = server.delete("/tasks/new").await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    server
        .delete("/tasks/new")
        .await
        .problem(StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_wrong_definition_is_refused_with_all_problems() {
    let server = Server::start().await;
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
    for answer in [
        server.post("/tasks", misplaced.clone()).await,
        server.put("/tasks/a", misplaced).await,
    ] {
        let problem = answer.problem(StatusCode::BAD_REQUEST);
        assert!(problem.message.contains("unknown field `concurrency`"));
        let help = problem.help.as_deref();
        assert_eq!(help, Some("write `concurrency` under `queue:`"));
    }
}

#[tokio::test]
async fn tasks_are_listed_by_name() {
    let server = Server::start().await;
    for name in ["b", "team/b", "a", "team/a"] {
        server
            .post("/tasks", definition(name))
            .await
            .json::<Task>(StatusCode::CREATED);
    }
    let names = async |path: &str, token: &str| -> (Vec<String>, Option<String>) {
        let page: Page<Task> = server
            .ask(Method::GET, path, token, None)
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
    let limited = server.token(&[Scope::Read], Some("team/*")).await;
    assert_eq!(names("/tasks", &limited).await.0, ["team/a", "team/b"]);
}

#[tokio::test]
async fn a_run_of_a_task_is_what_the_task_says() {
    let server = Server::start().await;
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
    assert_eq!(row.warm_key, domain.affinity_key("team/app"));
    // Without a body, and it takes its turn in the task's own group.
    let second: Run = server
        .ask(Method::POST, "/tasks/team%2Fapp/runs", &server.admin, None)
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
    let server = Server::start().await;
    server.post("/tasks", definition("team/app")).await;
    let body = json!({"set": {"greeting": "hi"}, "secrets": {"own": "a value"}});
    let scopes = [Scope::Read, Scope::Run, Scope::Write];
    for (scopes, expected) in [
        (&scopes[..2], vec!["greeting", "own"]),
        (&scopes[..], Vec::new()),
    ] {
        let token = server.token(scopes, Some("team/*")).await;
        let run: Run = server
            .ask(Method::POST, "/tasks/team%2Fapp/runs", &token, Some(&body))
            .await
            .json(StatusCode::CREATED);
        let untrusted: Vec<&str> = run
            .spec
            .untrusted_values
            .iter()
            .map(String::as_str)
            .collect();
        assert_eq!(untrusted, expected);
        // A rerun by an administrator has the same values.
        let rerun: Run = server
            .post(&format!("/runs/{}/rerun", run.id), json!({}))
            .await
            .json(StatusCode::CREATED);
        assert_eq!(rerun.spec.untrusted_values, run.spec.untrusted_values);
    }
}

#[tokio::test]
async fn a_key_stands_for_one_request() {
    let server = Server::start().await;
    for name in ["app", "other"] {
        server.post("/tasks", definition(name)).await;
    }
    let start = async |path: &str, body: serde_json::Value| {
        let mut request = Server::request(Method::POST, path, Some(&server.admin), Some(&body));
        let key = "k1".parse().unwrap();
        request.headers_mut().insert("idempotency-key", key);
        server.send(request).await
    };
    let hi = json!({"set": {"greeting": "hi"}});
    let first: Run = start("/tasks/app/runs", hi.clone())
        .await
        .json(StatusCode::CREATED);
    let again: Run = start("/tasks/app/runs", hi.clone())
        .await
        .json(StatusCode::OK);
    assert_eq!(again.id, first.id);
    // A request that would have to be another run is not answered with this one.
    let bye = json!({"set": {"greeting": "bye"}});
    let files = json!({"from": "url", "url": "https://git.example.com/other.git"});
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
async fn no_run_of_a_task_that_never_pushes_does() {
    let server = Server::start().await;
    let mut quiet = definition("app");
    quiet["noPush"] = json!(true);
    server
        .post("/tasks", quiet)
        .await
        .json::<Task>(StatusCode::CREATED);
    for asked in [json!({}), json!({"noPush": false})] {
        let run: Run = server
            .post("/tasks/app/runs", asked)
            .await
            .json(StatusCode::CREATED);
        assert!(run.spec.no_push);
    }
}

#[tokio::test]
async fn nothing_starts_a_run_of_a_disabled_task() {
    let server = Server::start().await;
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
async fn a_task_that_a_file_decides_is_not_changed_here() {
    let server = Server::start().await;
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
        "the task `app` is kept in the file tasks/app.yaml"
    );
    server
        .delete("/tasks/app")
        .await
        .problem(StatusCode::CONFLICT);
}

#[tokio::test]
async fn a_task_has_its_secrets_and_logins() {
    let server = Server::start().await;
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
        "there is no secret `git-token`, `npm-token`"
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
    let payload = lease_payload(&server.app, &row).await.unwrap();
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
    // Whoever may only run it cannot put other steps in front of its secrets.
    let token = server.token(&[Scope::Run], None).await;
    for start in [
        json!({"context": {"from": "none"}}),
        json!({"file": "evil.yaml"}),
    ] {
        server
            .ask(Method::POST, "/tasks/app/runs", &token, Some(&start))
            .await
            .problem(StatusCode::FORBIDDEN);
    }
    let start = json!({"secrets": {"git": "a value"}});
    server
        .ask(Method::POST, "/tasks/app/runs", &token, Some(&start))
        .await
        .json::<Run>(StatusCode::CREATED);
}

#[tokio::test]
async fn files_and_secrets_of_a_starter_who_may_not_write_get_a_domain_of_their_own() {
    let server = Server::start().await;
    let url = "https://git.example.com/task.git";
    let task = json!({"name": "app", "cmd": "alpine true", "context": url, "cache": true});
    let task: Task = server.post("/tasks", task).await.json(StatusCode::CREATED);
    let own = TrustDomain::Task { id: task.id };
    let starter = server.token(&[Scope::Read, Scope::Run], None).await;
    let other = server.token(&[Scope::Run], None).await;
    let writer = server.token(&[Scope::Run, Scope::Write], None).await;
    let start = async |token: &str, body: serde_json::Value| {
        let answer = server.ask(Method::POST, "/tasks/app/runs", token, Some(&body));
        let run: Run = answer.await.json(StatusCode::CREATED);
        server.app.store.run(&run.id).await.unwrap()
    };
    let files = json!({"context": {"from": "url", "url": "https://git.example.com/a.git"}});
    let file = json!({"file": "other.yaml"});
    // What the task itself says is the task's, whoever starts it.
    for (token, body) in [
        (&starter, json!({})),
        (&writer, files.clone()),
        (&writer, file.clone()),
    ] {
        let row = start(token, body).await;
        assert_eq!(row.trust_domain, own);
        assert!(matches!(row.spec.cache, SharedCache::ReadWrite { .. }));
    }
    let brought = start(&starter, files.clone()).await;
    assert_ne!(brought.trust_domain, own);
    assert_eq!(brought.trust_domain.owner(), &own);
    let shown: Run = server
        .get(&format!("/runs/{}", brought.id))
        .await
        .json(StatusCode::OK);
    assert_eq!(shown.domain, brought.trust_domain.to_string());
    assert!(matches!(brought.spec.cache, SharedCache::ReadOnly { .. }));
    // The vaults of the task are closed to them.
    let payload = lease_payload(&server.app, &brought).await.unwrap();
    assert_eq!(payload.vault_task, None);
    let again = start(&starter, file).await;
    assert_eq!(again.trust_domain, brought.trust_domain);
    // BuildKit leaves secrets out of the key of a layer.
    let secrets = json!({"secrets": {"npmrc": "registry=https://evil.example.com"}});
    let with_secrets = start(&starter, secrets.clone()).await;
    assert_eq!(with_secrets.trust_domain, brought.trust_domain);
    assert!(matches!(
        with_secrets.spec.cache,
        SharedCache::ReadOnly { .. }
    ));
    assert_eq!(start(&writer, secrets).await.trust_domain, own);
    let others = start(&other, files).await;
    assert_ne!(others.trust_domain, brought.trust_domain);
    // A rerun stays where the code came from, whoever asks for it.
    let path = format!("/runs/{}/rerun", brought.id);
    let rerun: Run = server
        .ask(Method::POST, &path, &writer, None)
        .await
        .json(StatusCode::CREATED);
    let rerun = server.app.store.run(&rerun.id).await.unwrap();
    assert_eq!(rerun.trust_domain, brought.trust_domain);
    assert_eq!(rerun.spec.cache, brought.spec.cache);
}

#[tokio::test]
async fn runs_of_a_task_that_was_renamed_or_deleted_get_nothing_of_its_successor() {
    let server = Server::start().await;
    let starter = server.token(&[Scope::Run], Some("a/*")).await;
    let task: Task = server
        .post("/tasks", definition("a/x"))
        .await
        .json(StatusCode::CREATED);
    let run: Run = server
        .ask(Method::POST, "/tasks/a%2Fx/runs", &starter, None)
        .await
        .json(StatusCode::CREATED);
    let row = server.app.store.run(&run.id).await.unwrap();
    let payload = lease_payload(&server.app, &row).await.unwrap();
    assert_eq!(payload.vault_task.as_deref(), Some("a/x"));
    let rerun = format!("/runs/{}/rerun", run.id);

    // Under another name, the task has the logins and caches of others.
    server
        .put("/tasks/a%2Fx", definition("b/x"))
        .await
        .json::<Task>(StatusCode::OK);
    let problem = server
        .ask(Method::POST, &rerun, &starter, None)
        .await
        .problem(StatusCode::CONFLICT);
    assert!(problem.message.contains("was renamed"), "{problem:?}");
    let error = lease_payload(&server.app, &row).await.unwrap_err();
    assert!(error.to_string().contains("was renamed"), "{error}");

    // Deleted, and made again with the name of the old one.
    let path = "/tasks/b%2Fx";
    let answer = server.ask(Method::DELETE, path, &server.admin, None).await;
    assert!(answer.status.is_success(), "{answer:?}");
    let successor: Task = server
        .post("/tasks", definition("a/x"))
        .await
        .json(StatusCode::CREATED);
    assert_ne!(successor.id, task.id);
    let payload = lease_payload(&server.app, &row).await.unwrap();
    assert_eq!(payload.vault_task, None);
}

#[tokio::test]
async fn a_rerun_without_write_uses_only_files_that_the_task_names() {
    let server = Server::start().await;
    let starter = server.token(&[Scope::Run], None).await;
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
            .ask(Method::POST, &format!("/tasks/{name}/runs"), &starter, None)
            .await
            .json(StatusCode::CREATED);
        server
            .put(&format!("/tasks/{name}"), task(new))
            .await
            .json::<Task>(StatusCode::OK);
        let rerun = format!("/runs/{}/rerun", run.id);
        let answer = server.ask(Method::POST, &rerun, &starter, None).await;
        assert_eq!(answer.status, expected, "{old} {new}");
        // The author of the task may repeat what it was.
        let answer = server.ask(Method::POST, &rerun, &server.admin, None).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{old} {new}");
    }
}
