//! Rules that prevent a builder from fetching files at non-public addresses.
//!
//! A builder applies them to every source of a build, including those that a user's frontend
//! invents.
//!
//! Invariant: an address in an unusual form is refused, so that no other form of a private address
//! is accepted.
//!
//! Left out: the addresses of names, and redirects, because only the builder sees them. Also the
//! registries of images.

use bollard_buildkit_proto::moby::buildkit::v1::sourcepolicy::{
    AttrConstraint, AttrMatch, MatchType, PolicyAction, Rule, Selector,
};

/// Addresses of files that the builder may fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SourceAddresses {
    /// All addresses that the builder can reach.
    #[default]
    Any,
    /// Only public addresses, as far as the build contains them.
    PublicOnly,
}

/// Images that a build may use.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum SourceImages {
    /// Every image that the builder finds.
    #[default]
    Any,
    /// Only these images. The builder refuses all others, including those that only its frontend
    /// knows.
    Only(Vec<AllowedImage>),
}

/// Image that a build may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedImage {
    /// Registry and repository: `docker.io/library/busybox`.
    pub name: String,
    /// Digest: `sha256:…`. `None`: every image of the repository.
    pub digest: Option<String>,
}

/// Returns the rules for images. They precede those of [`address_rules`], which may still refuse an
/// allowed image.
pub(crate) fn image_rules(images: &SourceImages) -> Vec<Rule> {
    let SourceImages::Only(images) = images else {
        return Vec::new();
    };
    let allowed = images.iter().map(|image| {
        let end = match &image.digest {
            Some(digest) => format!("@{}$", regex::escape(digest)),
            None => "(@|$)".to_owned(),
        };
        let name = regex::escape(&image.name);
        let pattern = format!("^docker-image://{name}(:[^@/]*)?{end}");
        build_rule(PolicyAction::Allow, &pattern, None)
    });
    std::iter::once(build_rule(PolicyAction::Deny, "^docker-image://", None))
        .chain(allowed)
        .collect()
}

/// Git repositories and files that the builder may fetch.
///
/// A builder finds a fetched repository by its commit, and a file with a checksum by its name and
/// checksum. It then contacts no host, so a build receives files that another build has fetched or
/// stored.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum SourceFiles {
    /// All repositories and files.
    #[default]
    Any,
    /// No repositories. Of files with a checksum, only these.
    Verified(Vec<VerifiedFile>),
}

/// File that was fetched from its URL to verify its checksum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedFile {
    /// URL, as the builder names it.
    pub url: String,
    /// Digest: `sha256:…`.
    pub digest: String,
}

/// Attribute of an HTTP source with the digest of `ADD --checksum`.
const CHECKSUM: &str = "http.checksum";

/// Returns the rules for repositories and files with a checksum. They follow those of
/// [`address_rules`], which allow public addresses.
pub(crate) fn file_rules(files: &SourceFiles) -> Vec<Rule> {
    let SourceFiles::Verified(files) = files else {
        return Vec::new();
    };
    let with_checksum = AttrConstraint {
        key: CHECKSUM.to_owned(),
        value: ".".to_owned(),
        condition: AttrMatch::Matches.into(),
    };
    let verified = files.iter().map(|file| Rule {
        action: PolicyAction::Allow.into(),
        selector: Some(Selector {
            identifier: file.url.clone(),
            match_type: MatchType::Exact.into(),
            constraints: vec![AttrConstraint {
                key: CHECKSUM.to_owned(),
                value: file.digest.clone(),
                condition: AttrMatch::Equal.into(),
            }],
        }),
        updates: None,
    });
    [
        build_rule(PolicyAction::Deny, "^git://", None),
        build_rule(PolicyAction::Deny, "^https?://", Some(with_checksum)),
    ]
    .into_iter()
    .chain(verified)
    .collect()
}

/// Attribute of a git source with its complete URL. The identifier may differ.
const GIT_URL: &str = "git.fullurl";

/// User and optional password before the host.
const USER: &str = r"([^/?#@\\\s]*@)?";
/// Text after the host in a URL.
const REST: &str = r"(:[0-9]{1,5})?([/?#]|$)";
/// Name with at least two labels. The last label begins with a letter, unlike that of an address.
const NAME: &str = r"([a-z0-9_]([a-z0-9_-]*[a-z0-9_])?\.)+[a-z]([a-z0-9-]*[a-z0-9])?\.?";
/// Four decimal numbers without leading zeros.
const V4: &str = r"((25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])(\.(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])){3})";
/// Assigned part of IPv6.
const V6: &str = r"\[[23][0-9a-f]{3}:[0-9a-f:]*\]";

/// Non-public IPv4 addresses, in the form of [`V4`]. The last one is the metadata service of Azure.
const PRIVATE_V4: &str = r"((0|10|127|22[4-9]|2[3-5][0-9])\.[0-9.]+|100\.(6[4-9]|[7-9][0-9]|1[01][0-9]|12[0-7])\.[0-9.]+|169\.254\.[0-9.]+|172\.(1[6-9]|2[0-9]|3[01])\.[0-9.]+|192\.168\.[0-9.]+|192\.0\.[02]\.[0-9]+|192\.88\.99\.[0-9]+|198\.(1[89]\.[0-9.]+|51\.100\.[0-9]+)|203\.0\.113\.[0-9]+|168\.63\.129\.16)";
/// IPv6 addresses of [`V6`] that are special, or contain an IPv4 address.
const PRIVATE_V6: &str =
    r"\[(2002:|2001:(0{0,3}[0-9a-f]?|0{0,2}[0-9a-f]{2}|0?1[0-9a-f]{2}|0?db8):|3fff:)[0-9a-f:]*\]";
/// Names that only this machine or its own network resolves.
const PRIVATE_NAME: &str = r"([a-z0-9_.-]*\.)?(localhost|localdomain|local|internal|intranet|private|corp|home|lan|arpa)\.?";

/// Returns the rules for `addresses`, in the builder's order. The last matching rule decides.
pub(crate) fn address_rules(addresses: SourceAddresses) -> Vec<Rule> {
    if addresses == SourceAddresses::Any {
        return Vec::new();
    }
    let public = format!("({NAME}|{V4}|{V6})");
    let private = format!("({PRIVATE_NAME}|{PRIVATE_V4}|{PRIVATE_V6})");
    let url = |host: &str| format!("(https?|ssh|git)://{USER}{host}{REST}");
    // The form `git@host:path`. An address in it is in an unusual form.
    let short = |host: &str| format!("([a-z0-9_.-]+@)?{host}:");
    let deny = PolicyAction::Deny;
    let allow = PolicyAction::Allow;
    vec![
        build_rule(deny, "^(https?|git)://", None),
        build_rule(allow, &format!("^https?://{USER}{public}{REST}"), None),
        build_rule(
            allow,
            &format!("^git://{USER}{public}{REST}"),
            Some(match_git_url(&format!(
                "^($|{}|{})",
                url(&public),
                short(NAME)
            ))),
        ),
        build_rule(
            deny,
            &format!("^(https?|git)://{USER}{private}{REST}"),
            None,
        ),
        build_rule(
            deny,
            "^git://",
            Some(match_git_url(&format!(
                "^({}|{})",
                url(&private),
                short(&private)
            ))),
        ),
        // Registries may be private, but must not be metadata services.
        build_rule(
            deny,
            r"^docker-image://(169\.254\.|\[fe80:|\[fd00:ec2:)",
            None,
        ),
    ]
}

fn build_rule(action: PolicyAction, identifier: &str, constraint: Option<AttrConstraint>) -> Rule {
    Rule {
        action: action.into(),
        selector: Some(Selector {
            identifier: ignore_case(identifier),
            match_type: MatchType::Regex.into(),
            constraints: constraint.into_iter().collect(),
        }),
        updates: None,
    }
}

fn match_git_url(pattern: &str) -> AttrConstraint {
    AttrConstraint {
        key: GIT_URL.to_owned(),
        value: ignore_case(pattern),
        condition: AttrMatch::Matches.into(),
    }
}

fn ignore_case(pattern: &str) -> String {
    format!("(?i){pattern}")
}

#[cfg(test)]
mod tests {
    use regex::Regex;

    use super::*;

    /// Applies the rules like a builder.
    fn is_allowed(identifier: &str, git_url: &str) -> bool {
        let mut allowed = true;
        for rule in address_rules(SourceAddresses::PublicOnly) {
            let selector = rule.selector.unwrap();
            let constraints = selector.constraints.iter();
            let matched = Regex::new(&selector.identifier)
                .unwrap()
                .is_match(identifier)
                && constraints
                    .map(|constraint| Regex::new(&constraint.value).unwrap())
                    .all(|pattern| pattern.is_match(git_url));
            if matched {
                allowed = rule.action == i32::from(PolicyAction::Allow);
            }
        }
        allowed
    }

    #[test]
    fn address_rules_allow_public_sources() {
        for url in [
            "https://example.com/a.tar.gz",
            "http://example.com:8080/a?b=c",
            "https://user:secret@sub.example.co.uk/a",
            "https://EXAMPLE.com.",
            "https://1.1.1.1/a",
            "http://172.32.0.1",
            "http://192.169.0.1#x",
            "https://[2606:4700:4700::1111]:443/",
            "https://10.example.com/",
            "https://xn--bcher-kva.example/",
            "docker-image://127.0.0.1:5000/a:1",
            "local://context",
        ] {
            assert!(is_allowed(url, ""), "{url}");
        }
        for (identifier, url) in [
            ("git://github.com/a/b.git#main", ""),
            ("git://github.com/a/b.git", "https://github.com/a/b.git"),
            ("git://github.com/a/b.git", "git@github.com:a/b.git"),
            ("git://github.com/a/b.git", "ssh://git@github.com/a/b.git"),
        ] {
            assert!(is_allowed(identifier, url), "{identifier} {url}");
        }
    }

    #[test]
    fn address_rules_refuse_private_addresses_in_every_form() {
        for host in [
            "localhost",
            "LOCALHOST",
            "localhost.",
            "a.localhost",
            "metadata.google.internal",
            "router.lan",
            "metadata",
            "registry",
            "127.0.0.1",
            "127.0.0.1.",
            "127.1",
            "127.0.1",
            "2130706433",
            "0x7f000001",
            "0x7f.0.0.1",
            "017700000001",
            "0177.0.0.1",
            "127.0.0.01",
            "127.000.000.001",
            "0.0.0.0",
            "0",
            "10.1.2.3",
            "100.64.0.1",
            "100.100.100.200",
            "168.63.129.16",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "192.0.0.192",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "256.256.256.256",
            "[::1]",
            "[::]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[fe80::1]",
            "[fe80::1%25eth0]",
            "[fd00:ec2::254]",
            "[fc00::1]",
            "[64:ff9b::7f00:1]",
            "[2002:7f00:1::]",
            "[2001::1]",
            "[2001:0:7f00:1::]",
            "[2001:db8::1]",
            "[2606:4700::127.0.0.1]",
            "user@127.0.0.1",
            "example.com@127.0.0.1",
            "a@b@127.0.0.1",
            r"example.com\@127.0.0.1",
            "example.com%2f@127.0.0.1",
            "127%2e0%2e0%2e1",
            "１２７.0.0.1",
            "127。0。0。1",
            "ⓛocalhost",
            "",
        ] {
            for port in ["", ":80"] {
                for url in [
                    format!("http://{host}{port}/x"),
                    format!("https://{host}{port}"),
                    format!("HTTP://{host}{port}?x"),
                    format!("git://{host}{port}/a/b.git#main"),
                ] {
                    assert!(!is_allowed(&url, ""), "{url}");
                }
                // A frontend may send different values in the identifier and the attribute.
                for url in [
                    format!("http://{host}{port}/a.git"),
                    format!("ssh://git@{host}{port}/a.git"),
                    format!("git://{host}{port}/a.git"),
                    format!("git@{host}:a.git"),
                ] {
                    assert!(!is_allowed("git://github.com/a/b.git", &url), "{url}");
                }
            }
        }
        for image in ["169.254.169.254/latest/meta-data", "[fe80::1]:80/a"] {
            assert!(!is_allowed(&format!("docker-image://{image}"), ""));
        }
        for other in [
            "file:///etc/passwd",
            "ext::sh -c id",
            "/srv/repo.git",
            "http:127.0.0.1",
        ] {
            assert!(!is_allowed("git://github.com/a/b.git", other), "{other}");
        }
    }

    #[test]
    fn file_rules_refuse_unverified_checksums() {
        let digest = |c: &str| format!("sha256:{}", c.repeat(64));
        let url = "https://example.com/a.tgz?sig=1";
        let files = SourceFiles::Verified(vec![VerifiedFile {
            url: url.into(),
            digest: digest("a"),
        }]);
        let rules = file_rules(&files);
        let is_allowed = |identifier: &str, checksum: &str| {
            let matching = rules.iter().rfind(|rule| {
                let selector = rule.selector.as_ref().unwrap();
                let named = if selector.match_type == i32::from(MatchType::Exact) {
                    selector.identifier == identifier
                } else {
                    let pattern = Regex::new(&selector.identifier).unwrap();
                    pattern.is_match(identifier)
                };
                named
                    && selector.constraints.iter().all(|constraint| {
                        if constraint.condition == i32::from(AttrMatch::Equal) {
                            constraint.value == checksum
                        } else {
                            Regex::new(&constraint.value).unwrap().is_match(checksum)
                        }
                    })
            });
            matching.is_none_or(|rule| rule.action == i32::from(PolicyAction::Allow))
        };
        for (identifier, checksum, allowed) in [
            (url, digest("a"), true),
            (url, digest("b"), false),
            (url, String::new(), true),
            ("https://example.com/a.tgz", digest("a"), false),
            ("HTTPS://example.com/A.tgz", digest("a"), false),
            ("git://example.com/a.git#main", String::new(), false),
            ("GIT://example.com/a.git", String::new(), false),
            ("docker-image://example.com/a", String::new(), true),
        ] {
            assert_eq!(
                is_allowed(identifier, &checksum),
                allowed,
                "{identifier} {checksum}"
            );
        }
        assert!(file_rules(&SourceFiles::Any).is_empty());
    }

    #[test]
    fn image_rules_refuse_unlisted_images() {
        let digest = |c: &str| format!("sha256:{}", c.repeat(64));
        let images = SourceImages::Only(vec![
            AllowedImage {
                name: "r.io/a.b/x".into(),
                digest: Some(digest("a")),
            },
            AllowedImage {
                name: "127.0.0.1:0/run/r1-00".into(),
                digest: None,
            },
        ]);
        let rules = image_rules(&images);
        let is_allowed = |identifier: &str| {
            let matching = rules.iter().rfind(|rule| {
                let selector = rule.selector.as_ref().unwrap();
                let pattern = Regex::new(&selector.identifier).unwrap();
                pattern.is_match(identifier)
            });
            matching.is_none_or(|rule| rule.action == i32::from(PolicyAction::Allow))
        };
        for (image, allowed) in [
            (format!("r.io/a.b/x@{}", digest("a")), true),
            (format!("r.io/a.b/x:1@{}", digest("a")), true),
            ("127.0.0.1:0/run/r1-00:3".to_owned(), true),
            (format!("127.0.0.1:0/run/r1-00:3@{}", digest("b")), true),
            (format!("r.io/a.b/x:1@{}", digest("b")), false),
            ("r.io/a.b/x:1".to_owned(), false),
            (format!("r.io/aXb/x@{}", digest("a")), false),
            (format!("evil.io/r.io/a.b/x@{}", digest("a")), false),
            (format!("r.io/a.b/x/y@{}", digest("a")), false),
            ("127.0.0.1:0/run/r1-001:3".to_owned(), false),
        ] {
            let identifier = format!("docker-image://{image}");
            assert_eq!(is_allowed(&identifier), allowed, "{image}");
        }
        assert!(is_allowed("https://example.com/a"));
        assert!(image_rules(&SourceImages::Any).is_empty());
    }

    #[test]
    fn address_rules_are_empty_without_restrictions() {
        assert!(address_rules(SourceAddresses::Any).is_empty());
    }
}
