//! Tests of `acrtask webhook`, and of its requests to the APIs of forges.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};
use wiremock::{
    Mock, MockServer, Request, ResponseTemplate,
    matchers::{header, method, path, query_param},
};

/// Returns the program as a client of `server`, with a fixed environment.
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

async fn output_of(mut command: Command) -> String {
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

/// Starts a server with the task `app`, and a webhook that exists if `exists` is set or after a
/// PUT.
async fn server(provider: &str, exists: bool) -> MockServer {
    let server = MockServer::start().await;
    let at = |verb: &str, below: &str| {
        Mock::given(method(verb))
            .and(path(format!("/api/v1/{below}")))
            .and(header("authorization", "Bearer t0k3n"))
    };
    let response = |body: Value| ResponseTemplate::new(200).set_body_json(body);
    let context = match provider {
        "azure-devops" => "https://dev.azure.com/fabrikam/Web%20Site/_git/Shop#main",
        _ => "https://git.example.com/org/app.git#main",
    };
    let task = json!({
        "id": "t", "name": "app", "context": context, "generation": 1,
        "triggers": { "commit": { "events": ["push", "pullRequest"] } },
        "createdAt": "2026-01-02T03:04:05Z", "updatedAt": "2026-01-02T03:04:05Z"
    });
    at("GET", "tasks/app")
        .respond_with(response(task))
        .mount(&server)
        .await;
    let all = if exists {
        json!([webhook(provider)])
    } else {
        json!([])
    };
    at("GET", "webhooks")
        .respond_with(response(all))
        .mount(&server)
        .await;
    if !exists {
        let problem = json!({ "code": "not-found", "message": "the webhook does not exist" });
        at("GET", "webhooks/org-app")
            .respond_with(ResponseTemplate::new(404).set_body_json(problem))
            // With an explicit name, the program asks twice.
            .up_to_n_times(match provider {
                "bitbucket-cloud" | "azure-devops" => 2,
                _ => 1,
            })
            .mount(&server)
            .await;
    }
    at("GET", "webhooks/org-app")
        .respond_with(response(webhook(provider)))
        .mount(&server)
        .await;
    at("PUT", "webhooks/org-app")
        .respond_with(response(webhook(provider)))
        .mount(&server)
        .await;
    at("GET", "deliveries")
        .respond_with(response(json!({ "items": [] })))
        .mount(&server)
        .await;
    server
}

/// Returns the secret that the server received.
async fn received_secret(server: &MockServer) -> String {
    let requests = server.received_requests().await.unwrap();
    let put = requests
        .iter()
        .find(|request| request.method.as_str() == "PUT")
        .unwrap();
    let body: Value = serde_json::from_slice(&put.body).unwrap();
    body["secrets"][0].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn setup_prints_the_settings_and_a_new_secret() {
    let folder = tempfile::tempdir().unwrap();
    let mut text = String::new();
    for (args, exists) in [
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
            &["webhook", "create", "org-app", "--provider", "unknown"][..],
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
        let server = server("gitlab", exists).await;
        let mut output = output_of(client(&server, folder.path(), args)).await;
        let puts = server.received_requests().await.unwrap();
        if puts.iter().any(|request| request.method.as_str() == "PUT") {
            let secret = received_secret(&server).await;
            assert_eq!(secret.len(), 64, "{secret}");
            output = output.replace(&secret, "SECRET");
        }
        text += &format!("$ acrtask {}\n{output}\n", args.join(" "));
    }
    // The ages depend on the current date.
    let text: Vec<String> = text
        .lines()
        .filter(|line| !line.starts_with("created  ") && !line.starts_with("changed  "))
        .map(str::to_owned)
        .collect();
    insta::assert_snapshot!(text.join("\n"));
}

/// Starts the API of a forge that has a foreign webhook, but not the one of this server.
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
    // The first response is for the request before the ping, the second one for those after it.
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

/// Returns the requests to a forge with `secret` masked.
async fn received_requests(forge: &MockServer, secret: &str) -> Vec<Value> {
    let requests = forge.received_requests().await.unwrap();
    let shown = requests.iter().map(|request: &Request| {
        let header = |name| {
            let value = request.headers.get(name)?;
            Some(value.to_str().unwrap().to_owned())
        };
        let body = String::from_utf8_lossy(&request.body).replace(secret, "SECRET");
        let mut shown = json!({
            "ask": format!("{} {}", request.method, request.url.path()),
            "token": header("authorization").or_else(|| header("private-token")),
        });
        if let Ok(body) = serde_json::from_str::<Value>(&body) {
            shown["body"] = body;
        }
        shown
    });
    shown.collect()
}

#[tokio::test]
async fn each_forge_gets_requests_in_its_own_format() {
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
        let output = output_of(client(&server, folder.path(), &args)).await;
        assert!(output.starts_with("exit code: 0\n"), "{output}");
        let secret = received_secret(&server).await;
        assert!(
            !output.contains(&secret) && !output.contains("hunter2"),
            "{output}"
        );
        let shown = received_requests(&forge, &secret).await;
        all.push(json!({ "forge": provider, "said": output.lines().skip(3).collect::<Vec<_>>(), "asked": shown }));
    }
    insta::assert_json_snapshot!(all);
}

#[tokio::test]
async fn token_is_never_sent_unencrypted_and_rejections_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("token"), "hunter2\n").unwrap();
    let server = server("github", false).await;
    let mut args = vec!["webhook", "setup", "app", "--provider", "github"];
    args.extend(["--token-file", "token", "--api"]);
    let clear = output_of(client(
        &server,
        folder.path(),
        &[&args[..], &["http://git.example.com/api/v3"]].concat(),
    ))
    .await;
    assert!(
        clear.contains("would receive the token unencrypted"),
        "{clear}"
    );
    // No webhook was created on the server.
    let requests = server.received_requests().await.unwrap();
    assert!(
        requests
            .iter()
            .all(|request| request.method.as_str() == "GET")
    );
    let forge = MockServer::start().await;
    Mock::given(method("GET"))
        .respond_with(ResponseTemplate::new(404).set_body_json(json!({ "message": "Not Found" })))
        .mount(&forge)
        .await;
    let uri = forge.uri();
    let refused = output_of(client(
        &server,
        folder.path(),
        &[&args[..], &[uri.as_str()]].concat(),
    ))
    .await;
    assert!(!refused.contains("hunter2"), "{refused}");
    let requests = server.received_requests().await.unwrap();
    assert!(
        requests
            .iter()
            .all(|request| request.method.as_str() == "GET")
    );
    insta::assert_snapshot!(refused.replace(&uri, "http://FORGE"));
}

/// Webhooks of a mock forge: POST adds one, PUT replaces one.
#[derive(Clone, Default)]
struct ForgeState(Arc<Mutex<Vec<Value>>>);

impl ForgeState {
    fn all(&self) -> Vec<Value> {
        self.0.lock().unwrap().clone()
    }

    /// Mounts the API below `base`. `name` is the field with a webhook's id, `list` the one with
    /// all webhooks.
    async fn serve(&self, forge: &MockServer, base: &str, name: &'static str, list: &'static str) {
        let state = self.clone();
        Mock::given(method("GET"))
            .and(path(base))
            .respond_with(move |_: &Request| {
                // A forge never returns a secret.
                let mut all = state.all();
                for webhook in &mut all {
                    webhook.as_object_mut().unwrap().remove("secret");
                    if let Some(inputs) = webhook["consumerInputs"].as_object_mut() {
                        inputs.insert("basicAuthPassword".into(), "********".into());
                    }
                }
                ResponseTemplate::new(200).set_body_json(json!({ list: all }))
            })
            .mount(forge)
            .await;
        let state = self.clone();
        Mock::given(method("POST"))
            .and(path(base))
            .respond_with(move |request: &Request| {
                let mut all = state.0.lock().unwrap();
                let mut webhook: Value = serde_json::from_slice(&request.body).unwrap();
                webhook[name] = format!("{{{}}}", all.len()).into();
                all.push(webhook.clone());
                ResponseTemplate::new(201).set_body_json(webhook)
            })
            .mount(forge)
            .await;
        let state = self.clone();
        Mock::given(method("PUT"))
            .respond_with(move |request: &Request| {
                let mut all = state.0.lock().unwrap();
                let new: Value = serde_json::from_slice(&request.body).unwrap();
                let named = |webhook: &&mut Value| {
                    let name = webhook[name].as_str().unwrap();
                    let name = name.replace('{', "%7B").replace('}', "%7D");
                    request.url.path().ends_with(&name)
                };
                let old = all.iter_mut().find(named).unwrap();
                for (key, value) in new.as_object().unwrap() {
                    old[key] = value.clone();
                }
                ResponseTemplate::new(200).set_body_json(old.clone())
            })
            .mount(forge)
            .await;
    }
}

/// Sets up a webhook with the additional arguments `more`; returns the output and the requests to
/// the forge.
async fn run_setup(
    provider: &str,
    forge: &MockServer,
    token: &str,
    exists: bool,
    more: &[&str],
) -> (String, Vec<Value>) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("token"), token).unwrap();
    let server = server(provider, exists).await;
    let uri = forge.uri();
    let mut args = vec!["webhook", "setup", "app", "--provider", provider];
    args.extend(["--webhook", "org-app", "--token-file", "token"]);
    args.extend(["--api", &uri]);
    args.extend(more);
    let output = output_of(client(&server, folder.path(), &args)).await;
    let puts = server.received_requests().await.unwrap();
    let put = puts.iter().find(|request| request.method.as_str() == "PUT");
    let body: Value = put.map_or(Value::Null, |put| {
        serde_json::from_slice(&put.body).unwrap()
    });
    let secret = body["secrets"][0].as_str().unwrap_or("no secret");
    assert!(
        !output.contains(secret) && !output.contains(token.trim()),
        "{output}"
    );
    let requests = received_requests(forge, secret).await;
    (output.replace(&uri, "http://FORGE"), requests)
}

#[tokio::test]
async fn bitbucket_webhook_is_created_once_and_then_updated() {
    let state = ForgeState::default();
    let base = "/repositories/org/app/hooks";
    let mut all = Vec::new();
    for (exists, more) in [(false, &[][..]), (true, &[]), (true, &["--new-secret"])] {
        let forge = MockServer::start().await;
        state.serve(&forge, base, "uuid", "values").await;
        let before = state.all();
        // A repository token has no user name; a personal token follows its user's name.
        let token = if exists {
            "me@example.com:hunter2\n"
        } else {
            "hunter2\n"
        };
        let (output, requests) = run_setup("bitbucket-cloud", &forge, token, exists, more).await;
        assert!(output.starts_with("exit code: 0\n"), "{output}");
        all.push(json!({ "said": output.lines().skip(3).collect::<Vec<_>>(), "asked": requests }));
        let now = state.all();
        assert_eq!(now.len(), 1);
        assert_eq!(
            before.first().map(|webhook| &webhook["secret"]) == Some(&now[0]["secret"]),
            exists && more.is_empty(),
            "the secret changes only with --new-secret"
        );
    }
    insta::assert_json_snapshot!(all);
}

/// Starts an organization of Azure DevOps with one project.
async fn azure_forge(state: &ForgeState) -> MockServer {
    let forge = MockServer::start().await;
    let repository = json!({
        "id": "5febef5a", "name": "Shop", "project": { "id": "6ce954b1", "name": "Web Site" }
    });
    Mock::given(method("GET"))
        .and(path("/Web%20Site/_apis/git/repositories/Shop"))
        .and(query_param("api-version", "7.1"))
        .respond_with(ResponseTemplate::new(200).set_body_json(repository))
        .mount(&forge)
        .await;
    let base = "/_apis/hooks/subscriptions";
    state.serve(&forge, base, "id", "value").await;
    forge
}

#[tokio::test]
async fn azure_devops_has_one_subscription_for_each_event() {
    let state = ForgeState::default();
    // A subscription with the same address and event, for another repository.
    state.0.lock().unwrap().push(json!({
        "id": "others", "eventType": "git.push", "status": "enabled",
        "publisherInputs": { "repository": "another" },
        "consumerInputs": { "url": "https://ci.example.com/hooks/org-app" }
    }));
    let mut all = Vec::new();
    for (exists, more) in [(false, &[][..]), (true, &[]), (true, &["--new-secret"])] {
        let forge = azure_forge(&state).await;
        let (output, requests) = run_setup("azure-devops", &forge, "hunter2\n", exists, more).await;
        assert!(output.starts_with("exit code: 0\n"), "{output}");
        all.push(json!({ "said": output.lines().skip(3).collect::<Vec<_>>(), "asked": requests }));
        let events: Vec<Value> = state
            .all()
            .iter()
            .map(|subscription| subscription["eventType"].clone())
            .collect();
        let [push, created, updated] = [
            "git.push",
            "git.pullrequest.created",
            "git.pullrequest.updated",
        ];
        assert_eq!(events, [push, push, created, updated]);
    }
    insta::assert_json_snapshot!(all);
    // Disabled subscriptions and missing ones without a known secret are errors.
    state.0.lock().unwrap()[2]["status"] = "disabledBySystem".into();
    let forge = azure_forge(&state).await;
    let (disabled, _) = run_setup("azure-devops", &forge, "hunter2\n", true, &[]).await;
    state.0.lock().unwrap().remove(2);
    let (gone, _) = run_setup("azure-devops", &forge, "hunter2\n", true, &[]).await;
    assert_eq!(state.all().len(), 3);
    insta::assert_snapshot!(format!("{disabled}\n{gone}"));
}

#[tokio::test]
async fn rejected_token_is_reported_with_the_required_scope() {
    let mut text = String::new();
    for (provider, status) in [
        ("bitbucket-cloud", 401),
        ("bitbucket-cloud", 403),
        ("bitbucket-cloud", 404),
        ("azure-devops", 203),
        ("azure-devops", 302),
        ("azure-devops", 401),
        ("azure-devops", 403),
        ("azure-devops", 404),
    ] {
        let forge = MockServer::start().await;
        let body = match (provider, status) {
            ("bitbucket-cloud", _) => {
                json!({ "type": "error", "error": { "message": "no such luck" } })
            }
            (_, 203 | 302) => json!("<html>Sign in</html>"),
            _ => json!({ "message": "TF401019: it is not there, or not for you" }),
        };
        let response = ResponseTemplate::new(status)
            .insert_header("location", "/_signin")
            .set_body_json(body);
        Mock::given(method("GET"))
            .respond_with(response)
            .mount(&forge)
            .await;
        let (output, requests) = run_setup(provider, &forge, "hunter2\n", false, &[]).await;
        assert_eq!(requests.len(), 1, "no requests follow: {requests:#?}");
        text += &format!("== {provider} {status}\n{output}\n");
    }
    insta::assert_snapshot!(text);
}
