//! The words about webhooks as a user sees them, and what is asked of forges' APIs.

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
            // Asked twice where the name is given.
            .up_to_n_times(match provider {
                "bitbucket-cloud" | "azure-devops" => 2,
                _ => 1,
            })
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

/// What a forge was asked, with its query and the body; `secret` is not written down.
async fn asked_of(forge: &MockServer, secret: &str) -> Vec<Value> {
    let asked = forge.received_requests().await.unwrap();
    let shown = asked.iter().map(|request: &Request| {
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
        let shown = asked_of(&forge, &secret).await;
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

/// The webhooks that a stand-in of a forge has: what is posted is kept, what is put takes the old one's place.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<Value>>>);

impl Kept {
    fn all(&self) -> Vec<Value> {
        self.0.lock().unwrap().clone()
    }

    /// How it answers below `base`; `name` is the field with a webhook's name, `list` the one with all of them.
    async fn serve(&self, forge: &MockServer, base: &str, name: &'static str, list: &'static str) {
        let kept = self.clone();
        Mock::given(method("GET"))
            .and(path(base))
            .respond_with(move |_: &Request| {
                // Nobody is told a secret again.
                let mut all = kept.all();
                for one in &mut all {
                    one.as_object_mut().unwrap().remove("secret");
                    if let Some(inputs) = one["consumerInputs"].as_object_mut() {
                        inputs.insert("basicAuthPassword".into(), "********".into());
                    }
                }
                ResponseTemplate::new(200).set_body_json(json!({ list: all }))
            })
            .mount(forge)
            .await;
        let kept = self.clone();
        Mock::given(method("POST"))
            .and(path(base))
            .respond_with(move |request: &Request| {
                let mut all = kept.0.lock().unwrap();
                let mut one: Value = serde_json::from_slice(&request.body).unwrap();
                one[name] = format!("{{{}}}", all.len()).into();
                all.push(one.clone());
                ResponseTemplate::new(201).set_body_json(one)
            })
            .mount(forge)
            .await;
        let kept = self.clone();
        Mock::given(method("PUT"))
            .respond_with(move |request: &Request| {
                let mut all = kept.0.lock().unwrap();
                let new: Value = serde_json::from_slice(&request.body).unwrap();
                let named = |one: &&mut Value| {
                    let name = one[name].as_str().unwrap();
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

/// Sets a webhook up, with what more is to be said; what was seen, and what the forge was asked.
async fn set_up(
    provider: &str,
    forge: &MockServer,
    token: &str,
    there: bool,
    more: &[&str],
) -> (String, Vec<Value>) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("token"), token).unwrap();
    let server = server(provider, there).await;
    let uri = forge.uri();
    let mut args = vec!["webhook", "setup", "app", "--provider", provider];
    args.extend(["--webhook", "org-app", "--token-file", "token"]);
    args.extend(["--api", &uri]);
    args.extend(more);
    let seen = seen(client(&server, folder.path(), &args)).await;
    let puts = server.received_requests().await.unwrap();
    let put = puts.iter().find(|one| one.method.as_str() == "PUT");
    let body: Value = put.map_or(Value::Null, |put| {
        serde_json::from_slice(&put.body).unwrap()
    });
    let secret = body["secrets"][0].as_str().unwrap_or("no secret");
    assert!(
        !seen.contains(secret) && !seen.contains(token.trim()),
        "{seen}"
    );
    let asked = asked_of(forge, secret).await;
    (seen.replace(&uri, "http://FORGE"), asked)
}

#[tokio::test]
async fn a_webhook_of_bitbucket_is_entered_once_and_changed_after_that() {
    let kept = Kept::default();
    let base = "/repositories/org/app/hooks";
    let mut all = Vec::new();
    for (there, more) in [(false, &[][..]), (true, &[]), (true, &["--new-secret"])] {
        let forge = MockServer::start().await;
        kept.serve(&forge, base, "uuid", "values").await;
        let before = kept.all();
        // A token of a repository stands alone, one of a person behind the person's name.
        let token = if there {
            "me@example.com:hunter2\n"
        } else {
            "hunter2\n"
        };
        let (seen, asked) = set_up("bitbucket-cloud", &forge, token, there, more).await;
        assert!(seen.starts_with("exit code: 0\n"), "{seen}");
        all.push(json!({ "said": seen.lines().skip(3).collect::<Vec<_>>(), "asked": asked }));
        let now = kept.all();
        assert_eq!(now.len(), 1);
        assert_eq!(
            before.first().map(|one| &one["secret"]) == Some(&now[0]["secret"]),
            there && more.is_empty(),
            "the secret changes where it is to"
        );
    }
    insta::assert_json_snapshot!(all);
}

/// An organization of Azure DevOps with one project.
async fn azure(kept: &Kept) -> MockServer {
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
    kept.serve(&forge, base, "id", "value").await;
    forge
}

#[tokio::test]
async fn azure_devops_has_one_subscription_for_each_event() {
    let kept = Kept::default();
    // The same address and event, for a repository of somebody else.
    kept.0.lock().unwrap().push(json!({
        "id": "others", "eventType": "git.push", "status": "enabled",
        "publisherInputs": { "repository": "another" },
        "consumerInputs": { "url": "https://ci.example.com/hooks/org-app" }
    }));
    let mut all = Vec::new();
    for (there, more) in [(false, &[][..]), (true, &[]), (true, &["--new-secret"])] {
        let forge = azure(&kept).await;
        let (seen, asked) = set_up("azure-devops", &forge, "hunter2\n", there, more).await;
        assert!(seen.starts_with("exit code: 0\n"), "{seen}");
        all.push(json!({ "said": seen.lines().skip(3).collect::<Vec<_>>(), "asked": asked }));
        let events: Vec<Value> = kept
            .all()
            .iter()
            .map(|one| one["eventType"].clone())
            .collect();
        let [push, created, updated] = [
            "git.push",
            "git.pullrequest.created",
            "git.pullrequest.updated",
        ];
        assert_eq!(events, [push, push, created, updated]);
    }
    insta::assert_json_snapshot!(all);
    // What Azure DevOps has disabled, and what is gone while its secret is forgotten, is told.
    kept.0.lock().unwrap()[2]["status"] = "disabledBySystem".into();
    let forge = azure(&kept).await;
    let (disabled, _) = set_up("azure-devops", &forge, "hunter2\n", true, &[]).await;
    kept.0.lock().unwrap().remove(2);
    let (gone, _) = set_up("azure-devops", &forge, "hunter2\n", true, &[]).await;
    assert_eq!(kept.all().len(), 3);
    insta::assert_snapshot!(format!("{disabled}\n{gone}"));
}

#[tokio::test]
async fn a_token_that_may_not_is_told_what_it_needs() {
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
        let answer = match (provider, status) {
            ("bitbucket-cloud", _) => {
                json!({ "type": "error", "error": { "message": "no such luck" } })
            }
            (_, 203 | 302) => json!("<html>Sign in</html>"),
            _ => json!({ "message": "TF401019: it is not there, or not for you" }),
        };
        let answer = ResponseTemplate::new(status)
            .insert_header("location", "/_signin")
            .set_body_json(answer);
        Mock::given(method("GET"))
            .respond_with(answer)
            .mount(&forge)
            .await;
        let (seen, asked) = set_up(provider, &forge, "hunter2\n", false, &[]).await;
        assert_eq!(asked.len(), 1, "nothing is tried after that: {asked:#?}");
        text += &format!("== {provider} {status}\n{seen}\n");
    }
    insta::assert_snapshot!(text);
}
