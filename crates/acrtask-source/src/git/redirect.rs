//! Target of a repository's redirects.
//!
//! Git itself follows no redirects here. It would send a login to the new address, and connect to
//! an unchecked address. Every hop must satisfy the policy for the repository's own address. A
//! login stays with its origin, or follows a redirect from http to https on the same host.
//!
//! Source: git, `http.c` (`update_url_from_redirect`). The redirect must preserve the end of the
//! path.

use acrtask_registry::net;
use reqwest::header::{AUTHORIZATION, LOCATION};
use url::Url;

use super::access::basic_header;
use crate::{
    Options,
    error::SourceError,
    http::check_policy,
    spec::{GitTransport, GitUrl, redact_url},
};

/// Suffix of the URL of a discovery request.
const DISCOVERY: &str = "/info/refs?service=git-upload-pack";
/// Maximum number of redirects of one repository.
const MAX_HOPS: usize = 10;

/// Target of a redirected repository.
#[derive(Debug)]
pub(super) struct Redirected {
    pub(super) url: GitUrl,
    /// `true` if the repository's login may be sent to the target.
    pub(super) keeps_login: bool,
}

/// Returns `true` if git failed because of a redirect.
pub(super) fn is_redirect(error: &SourceError) -> bool {
    let SourceError::Git { message, .. } = error else {
        return false;
    };
    let code = message
        .rsplit_once("returned error: ")
        .map(|(_, code)| code);
    code.is_some_and(|code| ["301", "302", "303", "307", "308"].contains(&code.trim()))
}

/// Follows the redirects of `url`. `None` if there are none.
///
/// # Errors
/// A hop is refused, is unreachable, or does not lead to a repository.
pub(super) async fn follow(
    url: &GitUrl,
    options: &Options,
) -> Result<Option<Redirected>, SourceError> {
    if !matches!(url.transport, GitTransport::Https | GitTransport::Http) {
        return Ok(None);
    }
    let unexpected = |reason: String| SourceError::UnexpectedResponse {
        url: url.to_string(),
        reason,
    };
    let failed = |error: reqwest::Error| SourceError::Download {
        url: url.to_string(),
        source: Box::new(error.without_url()),
    };
    let client = net::client(options.address_policy(), false).map_err(failed)?;
    let start = format!("{}{DISCOVERY}", url.url.trim_end_matches('/'));
    let start = Url::parse(&start).map_err(|error| unexpected(error.to_string()))?;
    let mut at = start.clone();
    for hop in 1..=MAX_HOPS {
        check_policy(&at, options, &redact_url(&at))?;
        let mut request = client.get(at.clone()).header("Git-Protocol", "version=2");
        let login = super::access::find_credential(url, options);
        if let Some((username, password)) = login.filter(|_| keeps_login(&start, &at)) {
            request = request.header(AUTHORIZATION, basic_header(&username, &password));
        }
        let response = request.send().await.map_err(failed)?;
        let next = response.headers().get(LOCATION);
        let Some(next) = next.filter(|_| response.status().is_redirection()) else {
            break;
        };
        let next = next.to_str().ok().and_then(|text| at.join(text).ok());
        let next =
            next.ok_or_else(|| unexpected("it redirects to something that is not a URL".into()))?;
        net::check_hop(options.address_policy(), hop, &at, &next).map_err(unexpected)?;
        if !is_discovery(&next) || !next.username().is_empty() {
            return Err(unexpected(format!(
                "it redirects to {}, which is not a repository",
                redact_url(&next)
            )));
        }
        at = next;
    }
    if at == start {
        return Ok(None);
    }
    let keeps_login = keeps_login(&start, &at);
    let text = at.as_str().trim_end_matches(DISCOVERY);
    let mut moved = GitUrl::parse_remote_url(text).map_err(|(reason, _)| unexpected(reason))?;
    moved.credential = url.credential.clone().filter(|_| keeps_login);
    moved.reference.clone_from(&url.reference);
    moved.folder.clone_from(&url.folder);
    Ok(Some(Redirected {
        url: moved,
        keeps_login,
    }))
}

/// Returns `true` if `url` is a discovery request of git.
fn is_discovery(url: &Url) -> bool {
    DISCOVERY.split_once('?')
        == url.path().rfind("/info/refs").and_then(|at| {
            let end = &url.path()[at..];
            url.query().map(|query| (end, query))
        })
}

/// Returns `true` if a login for `from` may be sent to `to`.
fn keeps_login(from: &Url, to: &Url) -> bool {
    let is_upgrade = from.scheme() == "http"
        && to.scheme() == "https"
        && from.host() == to.host()
        && from.port().is_none()
        && to.port().is_none();
    from.origin() == to.origin() || is_upgrade
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_login_requires_the_same_origin_or_an_upgrade() {
        for (from, to, kept) in [
            ("https://h.example/a", "https://h.example/b", true),
            ("https://h.example/a", "https://h.example:443/b", true),
            ("http://h.example/a", "https://h.example/a", true),
            ("http://h.example:8080/a", "https://h.example/a", false),
            ("https://h.example/a", "https://h.example:8443/a", false),
            ("https://h.example/a", "https://x.example/a", false),
            ("https://h.example/a", "https://sub.h.example/a", false),
            ("https://h.example/a", "http://h.example/a", false),
        ] {
            let url = |text| Url::parse(text).unwrap();
            assert_eq!(keeps_login(&url(from), &url(to)), kept, "{from} {to}");
        }
    }

    #[test]
    fn is_discovery_requires_a_repository_url() {
        for (url, expected) in [
            ("https://h/a.git/info/refs?service=git-upload-pack", true),
            (
                "https://h/info/refs/a/info/refs?service=git-upload-pack",
                true,
            ),
            (
                "https://h/login?to=/info/refs?service=git-upload-pack",
                false,
            ),
            ("https://h/a.git/info/refs", false),
            ("https://h/a.git/info/refs/x?service=git-upload-pack", false),
        ] {
            assert_eq!(is_discovery(&Url::parse(url).unwrap()), expected, "{url}");
        }
    }

    #[test]
    fn is_redirect_detects_redirect_statuses() {
        for (message, expected) in [
            (
                "fatal: unable to access 'https://h/a/': The requested URL returned error: 301",
                true,
            ),
            (
                "fatal: unable to access 'https://h/a/': The requested URL returned error: 308",
                true,
            ),
            (
                "fatal: unable to access 'https://h/a/': The requested URL returned error: 403",
                false,
            ),
            ("fatal: repository 'https://h/a/' not found", false),
        ] {
            let error = SourceError::Git {
                attempt: "fetch".into(),
                message: message.into(),
                help: None,
                unreachable: false,
            };
            assert_eq!(is_redirect(&error), expected, "{message}");
        }
    }
}
