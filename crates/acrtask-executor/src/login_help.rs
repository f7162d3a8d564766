//! Help for refusals of registries: how to configure a login.

use acrtask_model::ImageRef;
use acrtask_registry::{RegistryError, net::ForbiddenAddress};

use crate::error::error_chain;

/// Messages of engines and builders for a registry that requires a login or refuses one.
const DENIED: [&str; 8] = [
    "authorization failed",
    "failed to authorize",
    "no basic auth credentials",
    "insufficient_scope",
    "pull access denied",
    "requested access to the resource is denied",
    "401 unauthorized",
    "403 forbidden",
];

/// Formats an error of a registry with its causes and its help in one line.
pub(crate) fn error_chain_with_help(error: &RegistryError) -> String {
    let why = error_chain(error);
    match error {
        RegistryError::Denied { host, help, .. } => {
            format!("{why}; {help}; {}", server_login_help(host))
        }
        other if is_private_address(other) => format!(
            "{why}; an operator who trusts the task allows private addresses: `acrtask runner start \
             --allow-private-addresses`"
        ),
        other => match other.help() {
            Some(help) => format!("{why}; {help}"),
            None => why,
        },
    }
}

/// Returns the help for a message of an engine or a builder. `None` if no registry refused the
/// request.
pub(crate) fn login_help(message: &str) -> Option<String> {
    let lower = message.to_lowercase();
    if !DENIED.iter().any(|text| lower.contains(text)) {
        return None;
    }
    let host = message.split_whitespace().find_map(registry_in)?;
    Some(format!(
        "log in with `docker login {host}`, or give `--credential {host}=USER:@FILE`; {}",
        server_login_help(&host)
    ))
}

/// Adds the help to a message of an engine or a builder.
pub(crate) fn with_login_help(message: String) -> String {
    match login_help(&message) {
        Some(help) => format!("{message}; {help}"),
        None => message,
    }
}

fn is_private_address(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source())
        .any(|error| error.is::<ForbiddenAddress>())
}

fn server_login_help(host: &str) -> String {
    format!("for runs at a server, `acrtask credential set {host} --username USER`")
}

/// Returns the registry of an image or of an address of the registry's API.
fn registry_in(word: &str) -> Option<String> {
    let word = word.trim_matches(|c: char| !c.is_ascii_alphanumeric() && c != '[');
    if let Some((_, address)) = word.split_once("://") {
        let (host, path) = address.split_once('/')?;
        return path.starts_with("v2/").then(|| host.to_owned());
    }
    let (host, _) = word.split_once('/')?;
    let is_host = host == "localhost" || host.contains(['.', ':']);
    let image: ImageRef = word.parse().ok().filter(|_| is_host)?;
    Some(image.registry().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_names_the_refusing_registry() {
        for (message, host) in [
            (
                "127.0.0.1:38093/a/b:1: failed to resolve source metadata for 127.0.0.1:38093/a/b:1: pull access denied, \
                 repository does not exist or may require authorization: authorization failed: no basic auth credentials",
                Some("127.0.0.1:38093"),
            ),
            (
                "failed to push reg.example.com/app:1: failed to authorize: failed to fetch anonymous token: unexpected \
                 status from GET request to https://auth.example.com/token?scope=x: 401 Unauthorized",
                Some("reg.example.com"),
            ),
            (
                "Head \"https://reg.example.com:5000/v2/app/manifests/1\": no basic auth credentials",
                Some("reg.example.com:5000"),
            ),
            (
                "failed to configure registry cache importer: pull access denied for docker.io/me/cache",
                Some("docker.io"),
            ),
            (
                "process \"/bin/sh -c exit 1\" did not complete successfully: exit code: 1",
                None,
            ),
            (
                "invalid response status 401 for https://example.com/file",
                None,
            ),
            ("reg.example.com/app:1: not found", None),
            ("authorization failed", None),
        ] {
            let help = login_help(message);
            match host {
                Some(host) => {
                    let help = help.unwrap();
                    for part in [
                        format!("`docker login {host}`"),
                        format!("`--credential {host}=USER:@FILE`"),
                        format!("`acrtask credential set {host} --username USER`"),
                    ] {
                        assert!(help.contains(&part), "{help}");
                    }
                }
                None => assert_eq!(help, None, "{message}"),
            }
        }
    }

    #[test]
    fn registry_error_keeps_its_help() {
        let error = RegistryError::Denied {
            attempt: "push the manifest of reg.io/app:1".into(),
            host: "reg.io".into(),
            message: String::new(),
            help: "log in with `docker login reg.io`".into(),
        };
        assert_eq!(
            error_chain_with_help(&error),
            "cannot push the manifest of reg.io/app:1: reg.io denied access; log in with `docker login reg.io`; \
             for runs at a server, `acrtask credential set reg.io --username USER`"
        );
    }
}
