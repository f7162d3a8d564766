use std::fmt::Write as _;

use super::*;

fn describe(context: &str, provider: Option<Provider>) -> String {
    match Repository::from_context(Some(context), provider) {
        Ok(it) => format!(
            "{} {} {} {}",
            it.provider,
            it.web.as_str().trim_end_matches('/'),
            it.path,
            it.webhook_name()
        ),
        Err(error) => error.to_string(),
    }
}

#[test]
fn repository_is_derived_from_the_context() {
    let mut text = String::new();
    for context in [
        "https://github.com/Org/App.git#main:service",
        "git@github.com:org/app.git",
        "ssh://git@ssh.github.com:443/org/app.git",
        "https://github.example.com/org/app.git",
        "https://gitlab.com/group/sub/app.git",
        "https://codeberg.org/org/app.git",
        "https://git.example.com:8443/org/app.git",
        "https://dev.azure.com/fabrikam/Web/_git/Site",
        "https://bitbucket.org/team/app.git",
        "https://example.com/context.tar.gz",
        "oci://reg.example.com/a:1",
        "file:///srv/a.git",
    ] {
        let _ = writeln!(text, "{context}: {}", describe(context, None));
    }
    insta::assert_snapshot!(text);
    assert_eq!(
        describe("http://127.0.0.1:3000/o/r.git", Some(Provider::Gitea)),
        "gitea http://127.0.0.1:3000 o/r o-r"
    );
    assert!(Repository::from_context(None, None).is_err());
    let app = Repository::from_context(Some("https://github.com/Org/App.git#main"), None).unwrap();
    assert!(app.matches_url("git@github.com:org/app.git"));
    assert!(!app.matches_url("git@github.com:org/other.git"));
}

#[test]
fn setup_guide_lists_the_settings_of_each_forge() {
    let mut text = String::new();
    let all = WebhookEvents {
        tags: true,
        pull_requests: true,
    };
    for provider in Provider::ALL {
        let context = match provider {
            Provider::AzureDevops => "https://dev.azure.com/fabrikam/Web/_git/Site",
            _ => "https://git.example.com/org/app.git",
        };
        let repository = Repository::from_context(Some(context), Some(provider)).unwrap();
        let guide = setup_guide(
            &repository,
            "https://ci.example.com/hooks/org-app",
            Some("s3cret"),
            all,
        );
        let _ = writeln!(text, "{provider}: {}\n  {}", guide.page, guide.way);
        for (name, value) in guide.fields {
            let _ = writeln!(text, "  {name}: {value}");
        }
    }
    insta::assert_snapshot!(text);
}
