//! Snapshots of the events of all forge fixtures.

use acrtask_model::Secret;
use acrtask_trigger::{Event, MAX_BODY, Provider, Rejection, RepositoryUrl, verify_and_parse};

use crate::support::{SECRET, fixtures, hex, hmac, now, prove, send, sign_standard};

/// Formats the events and the id of each delivery.
fn events_of(provider: Provider) -> String {
    let mut text = String::new();
    for fixture in fixtures(provider.name()) {
        let delivery = send(provider, fixture.headers(), &fixture.bytes())
            .unwrap_or_else(|rejection| panic!("{}: {rejection}", fixture.name));
        text.push_str(&format!("## {} ({})\n", fixture.name, delivery.id));
        for event in delivery.events {
            text.push_str(&serde_json::to_string_pretty(&event).unwrap());
            text.push('\n');
        }
    }
    text
}

#[test]
fn github() {
    insta::assert_snapshot!(events_of(Provider::GitHub));
}

#[test]
fn gitlab() {
    insta::assert_snapshot!(events_of(Provider::GitLab));
}

#[test]
fn gitea() {
    insta::assert_snapshot!(events_of(Provider::Gitea));
}

#[test]
fn forgejo() {
    insta::assert_snapshot!(events_of(Provider::Forgejo));
}

#[test]
fn bitbucket_cloud() {
    insta::assert_snapshot!(events_of(Provider::BitbucketCloud));
}

#[test]
fn bitbucket_server() {
    insta::assert_snapshot!(events_of(Provider::BitbucketServer));
}

#[test]
fn azure_devops() {
    insta::assert_snapshot!(events_of(Provider::AzureDevops));
}

#[test]
fn generic() {
    insta::assert_snapshot!(events_of(Provider::Generic));
}

/// A context in any spelling matches the deliveries of its repository at each forge.
#[test]
fn context_matches_deliveries_of_its_repository() {
    let contexts = [
        (Provider::GitHub, "https://github.com/Team/App.git"),
        (
            Provider::GitLab,
            "ssh://git@gitlab.example.com/team/app.git",
        ),
        (
            Provider::Gitea,
            "ssh://git@gitea.example.com:2222/team/app.git",
        ),
        (Provider::Forgejo, "https://gitea.example.com/team/app"),
        (Provider::BitbucketCloud, "git@bitbucket.org:team/app.git"),
        (
            Provider::BitbucketServer,
            "https://git.example.com/scm/team/app.git",
        ),
        (
            Provider::AzureDevops,
            "https://fabrikam.visualstudio.com/Web/_git/app",
        ),
        (Provider::Generic, "git@git.example.com:team/app.git"),
    ];
    for (provider, context) in contexts {
        let url = RepositoryUrl::parse(context).unwrap();
        let mut found = 0;
        for fixture in fixtures(provider.name()) {
            let delivery = send(provider, fixture.headers(), &fixture.bytes()).unwrap();
            for repository in delivery.events.iter().filter_map(Event::repository) {
                assert!(repository.matches_url(&url), "{provider}: {}", fixture.name);
                found += 1;
            }
        }
        assert!(found > 3, "{provider}: {found}");
    }
}

#[test]
fn form_encoding_is_equal_to_json() {
    let fixture = fixtures("github")
        .into_iter()
        .find(|fixture| fixture.name == "push")
        .unwrap();
    let json = send(Provider::GitHub, fixture.headers(), &fixture.bytes()).unwrap();
    let mut headers = fixture.headers();
    headers.insert(
        "content-type",
        "application/x-www-form-urlencoded".parse().unwrap(),
    );
    let text = String::from_utf8(fixture.bytes()).unwrap();
    let body = url::form_urlencoded::Serializer::new(String::new())
        .append_pair("payload", &text)
        .finish();
    let form = send(Provider::GitHub, headers.clone(), body.as_bytes()).unwrap();
    assert_eq!(form.events, json.events);
    let rejection = send(Provider::GitHub, headers, b"x=y").unwrap_err();
    assert_eq!(
        (rejection.status(), rejection.to_string().as_str()),
        (
            422,
            "the body is not a delivery of this kind: the form has no field `payload`",
        )
    );
}

#[test]
fn any_one_of_several_secrets_suffices() {
    for provider in Provider::ALL {
        let fixture = &fixtures(provider.name())[0];
        let body = fixture.bytes();
        let mut headers = fixture.headers();
        prove(provider, &mut headers, &body, "the old one");
        let check = |secrets: &[&str]| {
            let secrets: Vec<_> = secrets.iter().map(|secret| Secret::new(*secret)).collect();
            verify_and_parse(provider, &headers, &body, &secrets, now())
        };
        assert!(check(&["the new one", "the old one"]).is_ok(), "{provider}");
        assert!(check(&["the old one", ""]).is_ok(), "{provider}");
        assert_eq!(
            check(&["the new one"]).unwrap_err().status(),
            403,
            "{provider}"
        );
        assert_eq!(check(&[]).unwrap_err(), Rejection::NoSecret, "{provider}");
    }
}

/// A delivery of GitLab with a signature is verified by the signature, not by the token.
#[test]
fn gitlab_signature_wins_over_token() {
    let fixture = &fixtures("gitlab")[0];
    let body = fixture.bytes();
    let mut headers = fixture.headers();
    headers.insert(
        "webhook-id",
        "f5e57ebd-9b01-4c6f-8f2d-000000000001".parse().unwrap(),
    );
    sign_standard(&mut headers, &body, SECRET, now());
    let secrets = [Secret::new(SECRET)];
    assert!(verify_and_parse(Provider::GitLab, &headers, &body, &secrets, now()).is_ok());
    headers.insert("webhook-id", "another".parse().unwrap());
    headers.insert("x-gitlab-token", SECRET.parse().unwrap());
    let rejection =
        verify_and_parse(Provider::GitLab, &headers, &body, &secrets, now()).unwrap_err();
    assert_eq!(rejection.status(), 403);
}

/// Repetitions of a delivery have the same id, even if the sender sends none.
#[test]
fn delivery_without_id_gets_a_digest() {
    let fixture = &fixtures("github")[0];
    let mut headers = fixture.headers();
    headers.remove("x-github-delivery");
    let id = |body: &[u8]| send(Provider::GitHub, headers.clone(), body).unwrap().id;
    let body = fixture.bytes();
    assert!(id(&body).starts_with("sha256:"));
    assert_eq!(id(&body), id(&body));
    let mut other = body.clone();
    other.push(b' ');
    assert_ne!(id(&body), id(&other));
    // Ids that are unsuitable for storage are ignored.
    headers.insert("x-github-delivery", "x".repeat(201).parse().unwrap());
    assert!(
        send(Provider::GitHub, headers.clone(), &body)
            .unwrap()
            .id
            .starts_with("sha256:")
    );
}

#[test]
fn rejections_suggest_a_correction() {
    let fixture = &fixtures("github")[0];
    let body = fixture.bytes();
    let mut text = String::new();
    let mut add_line = |what: &str, result: Result<_, Rejection>| {
        let rejection = result.map(|_: acrtask_trigger::Delivery| ()).unwrap_err();
        text.push_str(&format!("{what}: {} {rejection}\n", rejection.status()));
    };
    let secrets = [Secret::new(SECRET)];
    for provider in Provider::ALL {
        let headers = fixtures(provider.name())[0].headers();
        add_line(
            &format!("{provider} without proof"),
            verify_and_parse(provider, &headers, &body, &secrets, now()),
        );
    }
    for provider in Provider::ALL {
        let mut headers = fixtures(provider.name())[0].headers();
        prove(provider, &mut headers, &body, "wrong");
        add_line(
            &format!("{provider} with a wrong proof"),
            verify_and_parse(provider, &headers, &body, &secrets, now()),
        );
    }
    let mut headers = fixtures("generic")[0].headers();
    sign_standard(
        &mut headers,
        b"{}",
        SECRET,
        now() - jiff::SignedDuration::from_hours(1),
    );
    add_line(
        "an hour old",
        verify_and_parse(Provider::Generic, &headers, b"{}", &secrets, now()),
    );
    let headers = fixture.headers();
    add_line(
        "cut",
        send(Provider::GitHub, headers.clone(), &body[..body.len() / 2]),
    );
    add_line("empty", send(Provider::GitHub, headers.clone(), b""));
    add_line("a list", send(Provider::GitHub, headers.clone(), b"[]"));
    add_line(
        "a field is missing",
        send(
            Provider::GitHub,
            headers.clone(),
            br#"{"ref": "refs/heads/main"}"#,
        ),
    );
    add_line(
        "deep",
        send(
            Provider::GitHub,
            headers.clone(),
            "[".repeat(100_000).as_bytes(),
        ),
    );
    add_line(
        "too long",
        send(Provider::GitHub, headers.clone(), &vec![b' '; MAX_BODY + 1]),
    );
    let mut no_event = headers;
    no_event.remove("x-github-event");
    add_line("no event", send(Provider::GitHub, no_event, &body));
    // The server ignores GitHub's old signature.
    let mut sha1 = fixture.headers();
    sha1.insert(
        "x-hub-signature",
        format!("sha1={}", hex(&hmac(SECRET, &[&body])[..20]))
            .parse()
            .unwrap(),
    );
    add_line(
        "sha1",
        verify_and_parse(Provider::GitHub, &sha1, &body, &secrets, now()),
    );
    insta::assert_snapshot!(text);
}
