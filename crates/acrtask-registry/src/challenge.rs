//! What a registry asks for (`WWW-Authenticate`), and who may be given a password for it.
//!
//! Source: distribution specification, "Token Authentication"; RFC 9110, section 11.

use url::Url;

use crate::net;

/// A challenge that can be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// A token of a token server.
    Bearer {
        /// The token server.
        realm: String,
        /// The service's name, as the token server knows it.
        service: Option<String>,
        /// What the token has to allow: `repository:library/alpine:pull`.
        scope: Option<String>,
    },
    /// The password itself.
    Basic,
}

impl Challenge {
    /// Reads one value of the header. `Bearer` is preferred where several schemes are offered.
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
            // Also ends at text that is no token, such as a stray `=`.
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

/// A token or a quoted string, and what follows it.
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

/// Token servers on another host than their registry's, which everybody knows to belong together.
const KNOWN_REALMS: [(&str, &str); 2] = [
    ("registry-1.docker.io", "auth.docker.io"),
    ("registry.gitlab.com", "gitlab.com"),
];

/// Whose credential a token server may be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RealmTrust {
    /// It belongs to the registry: the registry's credential.
    Registry,
    /// It is another host's, reached over TLS: only a credential that was given for both hosts alike.
    SameLoginOnly,
    /// It is reached in clear: none. (A token is asked for without one.)
    Nobody,
}

/// Decides over the token server `realm` that the registry at `registry` named.
pub fn realm_trust(registry: &Url, realm: &Url) -> RealmTrust {
    let (Some(registry_host), Some(realm_host)) = (registry.host_str(), realm.host_str()) else {
        return RealmTrust::Nobody;
    };
    let both_here = net::is_loopback(registry_host) && net::is_loopback(realm_host);
    match realm.scheme() {
        "https" | "http" if both_here => RealmTrust::Registry,
        "https"
            if registry_host == realm_host
                || KNOWN_REALMS.contains(&(registry_host, realm_host)) =>
        {
            RealmTrust::Registry
        }
        "https" => RealmTrust::SameLoginOnly,
        _ => RealmTrust::Nobody,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_headers() {
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
    fn decides_over_token_servers() {
        use RealmTrust::{Nobody, Registry, SameLoginOnly};
        for (registry, realm, expected) in [
            ("https://r.example", "https://r.example/token", Registry),
            (
                "https://r.example",
                "https://r.example:8443/token",
                Registry,
            ),
            ("https://r.example", "http://r.example/token", Nobody),
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
            ("https://r.example", "http://127.0.0.1/token", Nobody),
            (
                "https://registry-1.docker.io",
                "https://auth.docker.io/token",
                Registry,
            ),
            (
                "https://registry-1.docker.io",
                "http://auth.docker.io/token",
                Nobody,
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
                Nobody,
            ),
            ("https://r.example", "file:///token", Nobody),
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
        fn any_header_is_read_to_its_end(header in "[ -~]{0,80}") {
            let _ = Challenge::parse(&header);
        }
    }
}
