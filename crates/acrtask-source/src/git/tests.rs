//! Tests of references, logins and the environment of git.

use acrtask_model::Secret;

use super::{
    access::{PASSED_VARIABLES, find_credential},
    fetch::{RemoteReference, find_listed, full_names},
    *,
};
use crate::Origin;

#[test]
fn find_listed_chooses_like_git_checkout() {
    let both = "1111111\trefs/heads/x\n2222222\trefs/tags/x\n2222223\trefs/tags/x^{}\n3333333\trefs/pull/1/head\n";
    let head = "ref: refs/heads/main\tHEAD\n4444444\tHEAD\n";
    for (reference, listed, expected) in [
        ("x", both, Some(("refs/heads/x", Some("x"), None))),
        ("refs/tags/x", both, Some(("refs/tags/x", None, Some("x")))),
        ("tags/x", both, Some(("refs/tags/x", None, Some("x")))),
        ("heads/x", both, Some(("refs/heads/x", Some("x"), None))),
        (
            "x",
            "1\trefs/tags/x\n",
            Some(("refs/tags/x", None, Some("x"))),
        ),
        ("pull/1/head", both, Some(("refs/pull/1/head", None, None))),
        (
            "refs/pull/1/head",
            both,
            Some(("refs/pull/1/head", None, None)),
        ),
        ("HEAD", head, Some(("HEAD", Some("main"), None))),
        ("HEAD", "4444444\tHEAD\n", Some(("HEAD", None, None))),
        // A server may list more references than requested.
        ("y", "1\trefs/heads/team/refs/heads/y\n", None),
        ("x", "", None),
        ("x", "nonsense", None),
    ] {
        let found = find_listed(&full_names(reference), listed);
        let expected = expected.map(|(name, branch, tag)| RemoteReference {
            name: name.into(),
            branch: branch.map(Into::into),
            tag: tag.map(Into::into),
        });
        assert_eq!(found, expected, "{reference} in {listed:?}");
    }
}

#[test]
fn find_credential_requires_the_exact_host_and_tls() {
    let mut options = Options::default();
    options.git_credentials.push(crate::GitCredential {
        host: "example.com".into(),
        username: "u".into(),
        password: Secret::new("given"),
    });
    options.credentials = options
        .credentials
        .with("both.example", "u", Secret::new("both"))
        .with("both.example:8443", "u", Secret::new("port"))
        .with("key.example", "u", Secret::new("-----BEGIN KEY-----"));
    for (url, expected) in [
        ("https://both.example/a.git", Some("both")),
        ("https://both.example:8443/a.git", Some("port")),
        ("https://both.example:9443/a.git", None),
        ("http://both.example/a.git", None),
        ("https://key.example/a.git", None),
        ("https://example.com/a.git", Some("given")),
        ("https://EXAMPLE.com/a.git", Some("given")),
        ("https://example.com.evil.example/a.git", None),
        ("https://sub.example.com/a.git", None),
        ("https://me:own@example.com/a.git", Some("own")),
        ("http://example.com/a.git", None),
        ("http://me:own@example.com/a.git", None),
        ("http://me:own@127.0.0.1:8080/a.git", Some("own")),
        ("ssh://git@example.com/a.git", None),
    ] {
        let Ok(crate::ContextSpec::Git(git)) = crate::ContextSpec::parse(url) else {
            panic!("{url}")
        };
        let got = find_credential(&git, &options).map(|(_, password)| password.expose().to_owned());
        assert_eq!(got.as_deref(), expected, "{url}");
    }
}

/// Returns the environment of git, without the values of this machine.
async fn shown_environment(url: &str, options: &Options) -> Vec<String> {
    let Ok(crate::ContextSpec::Git(url)) = crate::ContextSpec::parse(url) else {
        panic!("{url}")
    };
    let scratch = tempfile::tempdir().unwrap();
    let tree = scratch.path().to_owned();
    let git = Git::new(&url, tree, scratch.path(), options).await.unwrap();
    let variable = |name: &str| {
        git.access
            .environment
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.clone())
    };
    let config = (0..).map_while(|n| {
        let (key, value) = (
            variable(&format!("GIT_CONFIG_KEY_{n}"))?,
            variable(&format!("GIT_CONFIG_VALUE_{n}"))?,
        );
        Some(format!("{key}={value}"))
    });
    let others = git.access.environment.iter().filter(|(key, _)| {
        !key.starts_with("GIT_CONFIG_KEY")
            && !key.starts_with("GIT_CONFIG_VALUE")
            && key != "HOME"
            && !PASSED_VARIABLES.contains(&key.as_str())
            && key != "SSH_AUTH_SOCK"
    });
    config
        .chain(others.map(|(key, value)| format!("{key}={value}")))
        .collect()
}

/// Uses a literal address instead of a name, because it resolves without a network.
#[tokio::test]
async fn context_of_a_task_file_is_pinned_to_its_checked_address() {
    let mut options = Options {
        origin: Origin::TaskFile,
        ssh_agent: Some("/agent".into()),
        ..Options::default()
    };
    options.git_credentials.push(crate::GitCredential {
        host: "8.8.8.8".into(),
        username: "u".into(),
        password: Secret::new("p"),
    });
    let https = shown_environment("https://8.8.8.8:8443/a.git", &options).await;
    let ssh = shown_environment("ssh://git@8.8.8.8/a.git", &options).await;
    insta::assert_snapshot!(format!("{}\n\n{}", https.join("\n"), ssh.join("\n")));
}
