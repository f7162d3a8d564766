//! Tests of webhooks that are limited to repositories: a body with two repositories starts no run.

use serde_json::{Value, json};

use super::testing::{SECRET, TestDelivery, TestServer};

/// A provider, its own repository, the body fields with a URL, and spellings of a victim's URL.
struct Case {
    provider: &'static str,
    own: &'static str,
    fields: &'static [&'static str],
    victim: &'static str,
    spellings: &'static [&'static str],
}

const CASES: [Case; 6] = [
    Case {
        provider: "github",
        own: "https://github.com/team/app.git",
        fields: &["/repository/clone_url", "/repository/ssh_url"],
        victim: "https://github.com/prod/site.git",
        spellings: &[
            "https://github.com/prod/site.git",
            "git@github.com:prod/site.git",
            "ssh://git@ssh.github.com:443/PROD/Site",
        ],
    },
    Case {
        provider: "gitlab",
        own: "git@gitlab.example.com:team/app.git",
        fields: &["/project/git_http_url", "/project/git_ssh_url"],
        victim: "https://gitlab.example.com/prod/site.git",
        spellings: &[
            "https://user:pass@GITLAB.example.com:443/prod/site",
            "git@gitlab.example.com:prod/site.git",
        ],
    },
    Case {
        provider: "gitea",
        own: "https://gitea.example.com/team/app.git",
        fields: &["/repository/clone_url", "/repository/ssh_url"],
        victim: "ssh://git@gitea.example.com:2222/prod/site.git",
        spellings: &["ssh://git@gitea.example.com:2222/prod/site.git"],
    },
    Case {
        provider: "forgejo",
        own: "https://gitea.example.com/team/app.git",
        fields: &["/repository/clone_url", "/repository/ssh_url"],
        victim: "https://gitea.example.com:3000/prod/site.git",
        spellings: &["https://gitea.example.com:3000/prod/site.git"],
    },
    Case {
        provider: "bitbucket-server",
        own: "https://git.example.com/scm/team/app.git",
        fields: &[
            "/repository/links/clone/0/href",
            "/repository/links/clone/1/href",
        ],
        victim: "https://git.example.com/scm/prod/site.git",
        spellings: &[
            "https://git.example.com/scm/prod/site.git",
            "https://git.example.com/scm/team/../prod/site.git",
        ],
    },
    Case {
        provider: "azure-devops",
        own: "https://dev.azure.com/fabrikam/Web/_git/app",
        fields: &[
            "/resource/repository/remoteUrl",
            "/resource/repository/sshUrl",
        ],
        victim: "https://dev.azure.com/fabrikam/Web/_git/site",
        spellings: &[
            "https://fabrikam.visualstudio.com/Web/_git/site",
            "git@ssh.dev.azure.com:v3/fabrikam/Web/site",
        ],
    },
];

/// Sends a push in which `field` is `url`. A new id distinguishes each delivery.
async fn send_push(
    server: &TestServer,
    case: &Case,
    number: usize,
    field: &str,
    url: &str,
) -> Value {
    let mut sent = TestDelivery::modified_fixture(case.provider, "push", |body| {
        body["number"] = number.into();
        if case.provider == "azure-devops" {
            body["id"] = format!("delivery {number}").replace(' ', "-").into();
        }
        *body.pointer_mut(field).unwrap() = url.into();
    });
    for header in [
        "x-github-delivery",
        "x-gitea-delivery",
        "x-forgejo-delivery",
        "x-gitlab-event-uuid",
        "x-request-id",
        "x-request-uuid",
        "idempotency-key",
        "webhook-id",
    ] {
        sent.set_header(header, &format!("d{number}"));
    }
    let (status, answer) = server.send("forge", &sent).await;
    assert_eq!(status, 200, "{answer}");
    answer
}

#[tokio::test]
async fn body_naming_a_second_repository_starts_no_run() {
    for case in CASES {
        let server = TestServer::new().await;
        let definition = json!({
            "provider": case.provider, "secrets": [SECRET], "repositories": [case.own],
        });
        server.put("/webhooks/forge", definition).await;
        let branches = json!({"branches": ["**"]});
        server
            .add_task("team/app", case.own, branches.clone())
            .await;
        server.add_task("prod/site", case.victim, branches).await;
        let mut number = 0;
        for field in case.fields {
            for spelling in case.spellings {
                number += 1;
                let answer = send_push(&server, &case, number, field, spelling).await;
                let note = answer["note"].as_str().unwrap_or_default();
                assert!(
                    note.starts_with("the webhook `forge` is not allowed to report events of "),
                    "{} {field} {spelling}: {answer}",
                    case.provider
                );
                assert_eq!(server.runs().await.len(), 0, "{answer}");
            }
        }
        // The unchanged body, with the ports and spellings of the forge, starts the task.
        let sent = TestDelivery::from_fixture(case.provider, "push");
        let (_, answer) = server.send("forge", &sent).await;
        let runs = server.runs().await;
        assert_eq!(runs.len(), 1, "{}: {answer}", case.provider);
        assert_eq!(runs[0].task_name.as_deref(), Some("team/app"));
    }
}

/// A name without a URL may belong to a repository of any host.
#[tokio::test]
async fn body_without_url_matches_no_repository_of_another_host() {
    let server = TestServer::new().await;
    let own = "https://git.example.com/scm/team/app.git";
    let definition = json!({
        "provider": "bitbucket-server", "secrets": [SECRET], "repositories": [own],
    });
    server.put("/webhooks/forge", definition).await;
    let branches = json!({"branches": ["**"]});
    server.add_task("team/app", own, branches.clone()).await;
    for (name, context) in [
        ("prod/host", "https://prod.example.com/scm/team/app.git"),
        ("prod/port", "https://git.example.com:8443/scm/team/app.git"),
        ("prod/path", "https://git.example.com/prod/team/app.git"),
    ] {
        server.add_task(name, context, branches.clone()).await;
    }
    let sent = TestDelivery::from_fixture("bitbucket-server", "push_without_links");
    let (status, answer) = server.send("forge", &sent).await;
    assert_eq!(status, 200, "{answer}");
    let runs = server.runs().await;
    let tasks: Vec<_> = runs.iter().map(|run| run.task_name.as_deref()).collect();
    assert_eq!(tasks, [Some("team/app")]);
}
