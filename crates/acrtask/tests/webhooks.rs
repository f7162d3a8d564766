//! The words about webhooks as a user sees them, and what is asked of forges' APIs.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    path::Path,
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use wiremock::{
    Mock, MockServer, Request, ResponseTemplate,
    matchers::{header, method, path},
};

/// A client of `server`, in an environment that is the same everywhere.
fn client(server: &MockServer, folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_acrtask"));
    command
        .args(args)
        .current_dir(folder)
        .env_clear()
        .env("HOME", folder)
        .env("COLUMNS", "100")
        .env("ACRTASK_SERVER", server.uri())
        .env("ACRTASK_TOKEN", "t0k3n")
        .stdin(Stdio::null());
    command
}

async fn seen(mut command: Command) -> String {
    let output = tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    format!(
        "exit code: {}\n----- stdout -----\n{}----- stderr -----\n{}",
        output.status.code().unwrap_or(-1),
        text(&output.stdout),
        text(&output.stderr)
    )
}

fn webhook(provider: &str) -> Value {
    json!({
        "name": "org-app", "provider": provider, "repositories": ["https://git.example.com/org/app.git"],
        "secrets": 1, "url": "https://ci.example.com/hooks/org-app",
        "createdAt": "2026-01-02T03:04:05Z", "updatedAt": "2026-01-02T03:04:05Z"
    })
}

/// A server with the task `app`, and a webhook that appears once it is put.
async fn server(provider: &str, there: bool) -> MockServer {
    let server = MockServer::start().await;
    let at = |verb: &str, below: &str| {
        Mock::given(method(verb))
            .and(path(format!("/api/v1/{below}")))
            .and(header("authorization", "Bearer t0k3n"))
    };
    let answer = |body: Value| ResponseTemplate::new(200).set_body_json(body);
    let task = json!({
        "id": "t", "name": "app", "context": "https://git.example.com/org/app.git#main", "generation": 1,
        "triggers": { "commit": { "events": ["push", "pullRequest"] } },
        "createdAt": "2026-01-02T03:04:05Z", "updatedAt": "2026-01-02T03:04:05Z"
    });
    at("GET", "tasks/app")
        .respond_with(answer(task))
        .mount(&server)
        .await;
    let all = if there {
        json!([webhook(provider)])
    } else {
        json!([])
    };
    at("GET", "webhooks")
        .respond_with(answer(all))
        .mount(&server)
        .await;
    if !there {
        let problem = json!({ "code": "not-found", "message": "there is no such webhook" });
        at("GET", "webhooks/org-app")
            .respond_with(ResponseTemplate::new(404).set_body_json(problem))
            .up_to_n_times(1)
            .mount(&server)
            .await;
    }
    at("GET", "webhooks/org-app")
        .respond_with(answer(webhook(provider)))
        .mount(&server)
        .await;
    at("PUT", "webhooks/org-app")
        .respond_with(answer(webhook(provider)))
        .mount(&server)
        .await;
    at("GET", "deliveries")
        .respond_with(answer(json!({ "items": [] })))
        .mount(&server)
        .await;
    server
}

/// The secret that the server was given.
async fn secret_of(server: &MockServer) -> String {
    let asked = server.received_requests().await.unwrap();
    let put = asked
        .iter()
        .find(|request| request.method.as_str() == "PUT")
        .unwrap();
    let body: Value = serde_json::from_slice(&put.body).unwrap();
    body["secrets"][0].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn what_to_enter_is_printed_with_a_secret_that_is_new() {
    let folder = tempfile::tempdir().unwrap();
    let mut text = String::new();
    for (args, there) in [
        (&["webhook", "setup", "app"][..], false),
        (
            &["webhook", "setup", "app", "--provider", "gitlab"][..],
            false,
        ),
        (
            &["webhook", "setup", "app", "--provider", "gitlab"][..],
            true,
        ),
        (
            &["webhook", "create", "org-app", "--provider", "nobody"][..],
            false,
        ),
        (
            &["webhook", "create", "org-app", "--provider", "gitlab"][..],
            true,
        ),
        (
            &["webhook", "create", "org-app", "--provider", "quay"][..],
            false,
        ),
    ] {
        let server = server("gitlab", there).await;
        let mut seen = seen(client(&server, folder.path(), args)).await;
        let puts = server.received_requests().await.unwrap();
        if puts.iter().any(|request| request.method.as_str() == "PUT") {
            let secret = secret_of(&server).await;
            assert_eq!(secret.len(), 64, "{secret}");
            seen = seen.replace(&secret, "SECRET");
        }
        text += &format!("$ acrtask {}\n{seen}\n", args.join(" "));
    }
    // How long ago depends on the day of the test.
    let text: Vec<String> = text
        .lines()
        .filter(|line| !line.starts_with("made  ") && !line.starts_with("changed  "))
        .map(str::to_owned)
        .collect();
    insta::assert_snapshot!(text.join("\n"));
}

/// One forge's API: a webhook of others is there, ours is not.
async fn forge(base: &str) -> MockServer {
    let forge = MockServer::start().await;
    let others = json!([{
        "id": 1, "url": "https://other.example.com/", "config": { "url": "https://other.example.com/" }
    }]);
    Mock::given(method("GET"))
        .and(path(base))
        .respond_with(ResponseTemplate::new(200).set_body_json(others))
        .mount(&forge)
        .await;
    Mock::given(method("POST"))
        .and(path(base))
        .respond_with(ResponseTemplate::new(201).set_body_json(json!({ "id": 7 })))
        .mount(&forge)
        .await;
    Mock::given(method("POST"))
        .and(path(format!("{base}/7/pings")))
        .respond_with(ResponseTemplate::new(204))
        .mount(&forge)
        .await;
    // Asked before the ping, and after it.
    for sent in [
        json!([]),
        json!([{ "id": 9, "event": "ping", "status_code": 200 }]),
    ] {
        Mock::given(method("GET"))
            .and(path(format!("{base}/7/deliveries")))
            .respond_with(ResponseTemplate::new(200).set_body_json(&sent))
            .up_to_n_times(if sent == json!([]) { 1 } else { 9 })
            .mount(&forge)
            .await;
    }
    forge
}

#[tokio::test]
async fn forges_are_asked_in_their_own_words() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("token"), "hunter2\n").unwrap();
    let mut all = Vec::new();
    for (provider, base) in [
        ("github", "/repos/org/app/hooks"),
        ("gitlab", "/projects/org%2Fapp/hooks"),
        ("gitea", "/repos/org/app/hooks"),
        ("forgejo", "/repos/org/app/hooks"),
    ] {
        let server = server(provider, false).await;
        let forge = forge(base).await;
        let uri = forge.uri();
        let args = [
            "webhook",
            "setup",
            "app",
            "--provider",
            provider,
            "--token-file",
            "token",
            "--api",
            &uri,
        ];
        let seen = seen(client(&server, folder.path(), &args)).await;
        assert!(seen.starts_with("exit code: 0\n"), "{seen}");
        let secret = secret_of(&server).await;
        assert!(
            !seen.contains(&secret) && !seen.contains("hunter2"),
            "{seen}"
        );
        let asked = forge.received_requests().await.unwrap();
        let shown: Vec<Value> = asked
            .iter()
            .map(|request: &Request| {
                let header = |name| {
                    let value = request.headers.get(name)?;
                    Some(value.to_str().unwrap().to_owned())
                };
                let body = String::from_utf8_lossy(&request.body).replace(&secret, "SECRET");
                let mut shown = json!({
                    "ask": format!("{} {}", request.method, request.url.path()),
                    "token": header("authorization").or_else(|| header("private-token")),
                });
                if let Ok(body) = serde_json::from_str::<Value>(&body) {
                    shown["body"] = body;
                }
                shown
            })
            .collect();
        all.push(json!({ "forge": provider, "said": seen.lines().skip(3).collect::<Vec<_>>(), "asked": shown }));
    }
    insta::assert_json_snapshot!(all);
}

#[tokio::test]
async fn a_token_goes_to_no_forge_in_clear_and_what_a_forge_refuses_is_told() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("token"), "hunter2\n").unwrap();
    let server = server("github", false).await;
    let mut args = vec!["webhook", "setup", "app", "--provider", "github"];
    args.extend(["--token-file", "token", "--api"]);
    let clear = seen(client(
        &server,
        folder.path(),
        &[&args[..], &["http://git.example.com/api/v3"]].concat(),
    ))
    .await;
    assert!(clear.contains("would get the token in clear"), "{clear}");
    // Nothing was made for it.
    let asked = server.received_requests().await.unwrap();
    assert!(asked.iter().all(|request| request.method.as_str() == "GET"));
    let forge = MockServer::start().await;
    Mock::given(method("GET"))
        .respond_with(ResponseTemplate::new(404).set_body_json(json!({ "message": "Not Found" })))
        .mount(&forge)
        .await;
    let uri = forge.uri();
    let refused = seen(client(
        &server,
        folder.path(),
        &[&args[..], &[uri.as_str()]].concat(),
    ))
    .await;
    assert!(!refused.contains("hunter2"), "{refused}");
    let asked = server.received_requests().await.unwrap();
    assert!(asked.iter().all(|request| request.method.as_str() == "GET"));
    insta::assert_snapshot!(refused.replace(&uri, "http://FORGE"));
}
