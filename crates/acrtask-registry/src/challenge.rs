//! Challenges of registries (`WWW-Authenticate`), and the trust in the token servers that they
//! name.
//!
//! Source: distribution specification, "Token Authentication"; RFC 9110, section 11.

use url::Url;

use crate::net;

/// Supported challenge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// The registry requires a token of a token server.
    Bearer {
        /// URL of the token server.
        realm: String,
        /// Name of the registry at the token server.
        service: Option<String>,
        /// Permission that the token must grant: `repository:library/alpine:pull`.
        scope: Option<String>,
    },
    /// The registry requires the user name and the password.
    Basic,
}

impl Challenge {
    /// Parses one value of the header. Prefers `Bearer` if the header offers several schemes.
    pub fn parse(header: &str) -> Option<Self> {
        let mut basic = None;
        for (scheme, params) in schemes(header) {
            let param = |name: &str| {
                params
                    .iter()
                    .find(|(key, _)| key.eq_ignore_ascii_case(name))
                    .map(|(_, value)| value.clone())
            };
            if scheme.eq_ignore_ascii_case("bearer")
                && let Some(realm) = param("realm")
            {
                return Some(Self::Bearer {
                    realm,
                    service: param("service"),
                    scope: param("scope").filter(|scope| !scope.is_empty()),
                });
            }
            if scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Self::Basic);
            }
        }
        basic
    }
}

type Params = Vec<(String, String)>;

/// Splits `Scheme key="value", key=value, Scheme2 ...`.
fn schemes(header: &str) -> Vec<(String, Params)> {
    let mut found: Vec<(String, Params)> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            // Also the end of a text that is not a token, such as a stray `=`.
            return found;
        }
        let Some(value) = after.trim_start().strip_prefix('=') else {
            found.push((word.to_owned(), Vec::new()));
            rest = after;
            continue;
        };
        let (value, after) = parse_value(value.trim_start());
        if let Some((_, params)) = found.last_mut() {
            params.push((word.to_owned(), value));
        }
        rest = after;
    }
}

/// Splits a text after its first value: a token or a quoted string.
fn parse_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

/// Trusted pairs of a registry and its token server on another host.
const TRUSTED_REALMS: [(&str, &str); 2] = [
    ("registry-1.docker.io", "auth.docker.io"),
    ("registry.gitlab.com", "gitlab.com"),
];

/// Credential that a client may send to a token server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RealmTrust {
    /// The token server belongs to the registry and may receive the registry's credential.
    Registry,
    /// The token server is on another host, with TLS. It may receive a credential only if the user
    /// gave the same one for both hosts.
    SameLoginOnly,
    /// The connection has no TLS. The client requests a token without a credential.
    Untrusted,
}

/// Decides the trust in the token server `realm` that the registry at `registry` names.
pub fn realm_trust(registry: &Url, realm: &Url) -> RealmTrust {
    let (Some(registry_host), Some(realm_host)) = (registry.host_str(), realm.host_str()) else {
        return RealmTrust::Untrusted;
    };
    let both_here = net::is_loopback(registry_host) && net::is_loopback(realm_host);
    match realm.scheme() {
        "https" | "http" if both_here => RealmTrust::Registry,
        "https"
            if registry_host == realm_host
                || TRUSTED_REALMS.contains(&(registry_host, realm_host)) =>
        {
            RealmTrust::Registry
        }
        "https" => RealmTrust::SameLoginOnly,
        _ => RealmTrust::Untrusted,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parse_reads_real_headers() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            Some(Challenge::Bearer {
                realm: realm.into(),
                service: service.map(Into::into),
                scope: scope.map(Into::into),
            })
        };
        for (header, expected) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/alpine:pull""#,
                bearer(
                    "https://auth.docker.io/token",
                    Some("registry.docker.io"),
                    Some("repository:library/alpine:pull"),
                ),
            ),
            (
                r#"bearer  realm="https://a/b,c" , scope="repository:a:pull,push", error="insufficient_scope""#,
                bearer("https://a/b,c", None, Some("repository:a:pull,push")),
            ),
            (
                "Bearer realm=https://a/t,service=s",
                bearer("https://a/t", Some("s"), None),
            ),
            (r#"Basic realm="a \"b\" c""#, Some(Challenge::Basic)),
            (
                r#"Basic realm="x", Bearer realm="https://t""#,
                bearer("https://t", None, None),
            ),
            ("BASIC", Some(Challenge::Basic)),
            ("Bearer service=x", None),
            ("Negotiate", None),
            ("", None),
            ("= , =", None),
        ] {
            assert_eq!(Challenge::parse(header), expected, "{header}");
        }
    }

    #[test]
    fn realm_trust_depends_on_host_and_scheme() {
        use RealmTrust::{Registry, SameLoginOnly, Untrusted};
        for (registry, realm, expected) in [
            ("https://r.example", "https://r.example/token", Registry),
            (
                "https://r.example",
                "https://r.example:8443/token",
                Registry,
            ),
            ("https://r.example", "http://r.example/token", Untrusted),
            (
                "https://r.example",
                "https://evil.example/token",
                SameLoginOnly,
            ),
            (
                "https://r.example",
                "https://r.example.evil.example/token",
                SameLoginOnly,
            ),
            (
                "https://r.example",
                "https://r.example@evil.example/token",
                SameLoginOnly,
            ),
            ("https://r.example", "http://127.0.0.1/token", Untrusted),
            (
                "https://registry-1.docker.io",
                "https://auth.docker.io/token",
                Registry,
            ),
            (
                "https://registry-1.docker.io",
                "http://auth.docker.io/token",
                Untrusted,
            ),
            (
                "https://r.example",
                "https://auth.docker.io/token",
                SameLoginOnly,
            ),
            (
                "http://127.0.0.1:5000",
                "http://127.0.0.1:5001/token",
                Registry,
            ),
            ("http://localhost:5000", "http://[::1]:5001/token", Registry),
            (
                "http://127.0.0.1:5000",
                "https://evil.example/token",
                SameLoginOnly,
            ),
            (
                "http://insecure.example",
                "http://insecure.example/token",
                Untrusted,
            ),
            ("https://r.example", "file:///token", Untrusted),
        ] {
            let url = |text: &str| Url::parse(text).unwrap();
            assert_eq!(
                realm_trust(&url(registry), &url(realm)),
                expected,
                "{registry} {realm}"
            );
        }
    }

    proptest! {
        #[test]
        fn parse_accepts_any_header(header in "[ -~]{0,80}") {
            let _ = Challenge::parse(&header);
        }
    }
}
