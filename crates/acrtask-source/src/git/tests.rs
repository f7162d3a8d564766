//! Choosing among a server's references.

use acrtask_model::Secret;

use super::{
    access::{PASSED, credential},
    fetch::{Found, candidates, choose},
    *,
};
use crate::Origin;

#[test]
fn chooses_as_git_checkout_does() {
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
        // A server may list more than it was asked for.
        ("y", "1\trefs/heads/team/refs/heads/y\n", None),
        ("x", "", None),
        ("x", "nonsense", None),
    ] {
        let found = choose(&candidates(reference), listed);
        let expected = expected.map(|(name, branch, tag)| Found {
            name: name.into(),
            branch: branch.map(Into::into),
            tag: tag.map(Into::into),
        });
        assert_eq!(found, expected, "{reference} in {listed:?}");
    }
}

#[test]
fn passwords_go_to_their_host_alone_and_never_in_clear() {
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
        let got = credential(&git, &options).map(|(_, password)| password.expose().to_owned());
        assert_eq!(got.as_deref(), expected, "{url}");
    }
}

/// What git is started with, apart from what this machine's environment adds.
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
            && !PASSED.contains(&key.as_str())
            && key != "SSH_AUTH_SOCK"
    });
    config
        .chain(others.map(|(key, value)| format!("{key}={value}")))
        .collect()
}

/// A literal address stands for a name here: it is resolved without a network.
#[tokio::test]
async fn a_task_files_context_is_pinned_to_the_address_that_was_checked() {
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
