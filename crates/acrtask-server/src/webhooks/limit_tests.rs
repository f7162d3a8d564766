//! Webhooks that are limited to repositories: a body that names two starts nothing.

use serde_json::{Value, json};

use super::testing::{SECRET, Sent, World};

/// A sender, its own repository, where its body names that again, and how it spells the repository of a victim.
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

/// Sends a push in which `field` is `url`. A new id makes it a delivery of its own.
async fn push(world: &World, case: &Case, number: usize, field: &str, url: &str) -> Value {
    let mut sent = Sent::changed(case.provider, "push", |body| {
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
        sent.set(header, &format!("d{number}"));
    }
    let (status, answer) = world.send("forge", &sent).await;
    assert_eq!(status, 200, "{answer}");
    answer
}

#[tokio::test]
async fn a_body_that_names_another_repository_beside_the_allowed_one_starts_nothing() {
    for case in CASES {
        let world = World::new().await;
        let definition = json!({
            "provider": case.provider, "secrets": [SECRET], "repositories": [case.own],
        });
        world.put("/webhooks/forge", definition).await;
        let branches = json!({"branches": ["**"]});
        world.task("team/app", case.own, branches.clone()).await;
        world.task("prod/site", case.victim, branches).await;
        let mut number = 0;
        for field in case.fields {
            for spelling in case.spellings {
                number += 1;
                let answer = push(&world, &case, number, field, spelling).await;
                let note = answer["note"].as_str().unwrap_or_default();
                assert!(
                    note.starts_with("the webhook `forge` may not speak of "),
                    "{} {field} {spelling}: {answer}",
                    case.provider
                );
                assert_eq!(world.runs().await.len(), 0, "{answer}");
            }
        }
        // As the forge sends it, with its own ports and spellings, the task runs.
        let sent = Sent::fixture(case.provider, "push");
        let (_, answer) = world.send("forge", &sent).await;
        let runs = world.runs().await;
        assert_eq!(runs.len(), 1, "{}: {answer}", case.provider);
        assert_eq!(runs[0].task_name.as_deref(), Some("team/app"));
    }
}

/// The name alone is that of a repository at every host.
#[tokio::test]
async fn a_body_without_a_url_reaches_no_repository_of_another_host() {
    let world = World::new().await;
    let own = "https://git.example.com/scm/team/app.git";
    let definition = json!({
        "provider": "bitbucket-server", "secrets": [SECRET], "repositories": [own],
    });
    world.put("/webhooks/forge", definition).await;
    let branches = json!({"branches": ["**"]});
    world.task("team/app", own, branches.clone()).await;
    for (name, context) in [
        ("prod/host", "https://prod.example.com/scm/team/app.git"),
        ("prod/port", "https://git.example.com:8443/scm/team/app.git"),
        ("prod/path", "https://git.example.com/prod/team/app.git"),
    ] {
        world.task(name, context, branches.clone()).await;
    }
    let sent = Sent::fixture("bitbucket-server", "push_without_links");
    let (status, answer) = world.send("forge", &sent).await;
    assert_eq!(status, 200, "{answer}");
    let runs = world.runs().await;
    let tasks: Vec<_> = runs.iter().map(|run| run.task_name.as_deref()).collect();
    assert_eq!(tasks, [Some("team/app")]);
}
