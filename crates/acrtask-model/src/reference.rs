//! Image references and digests.
//!
//! The grammar is that of the distribution project's `reference` package. Familiar names are
//! completed as in Docker (`alpine` is `docker.io/library/alpine:latest`).

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// An error for a text that is not a reference or digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an image reference: {reason}")]
pub struct ReferenceError {
    /// The invalid text.
    pub text: String,
    /// The problem with the text.
    pub reason: String,
}

/// The digest of a manifest, an index or a blob: `sha256:` and 64 hexadecimal digits, or `sha512:`
/// and 128.
///
/// Source: OCI image specification, descriptor, "Digests".
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// Returns the digest as text, including the algorithm.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the first 12 hexadecimal digits, for display.
    pub fn short(&self) -> &str {
        let hex = self
            .0
            .split_once(':')
            .map_or(self.0.as_str(), |(_, hex)| hex);
        &hex[..12]
    }
}

impl FromStr for Digest {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let fail = |reason: &str| {
            Err(ReferenceError {
                text: text.into(),
                reason: reason.into(),
            })
        };
        let Some((algorithm, hex)) = text.split_once(':') else {
            return fail("a digest is `sha256:` and 64 hexadecimal digits");
        };
        let len = match algorithm {
            "sha256" => 64,
            "sha512" => 128,
            _ => return fail("the digest's algorithm must be sha256 or sha512"),
        };
        if hex.len() != len || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return fail("the digest has the wrong length, or is not lower-case hexadecimal");
        }
        Ok(Self(text.into()))
    }
}

impl TryFrom<String> for Digest {
    type Error = ReferenceError;
    fn try_from(text: String) -> Result<Self, ReferenceError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Returns the start of the tags of a task's build caches: `cache_TASK`. `_` and the step follow.
/// Characters of the task name that a tag cannot contain, such as `/`, become `-`.
pub fn cache_tag_start(task: &str) -> String {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let name: String = task
        .chars()
        .map(|c| if is_allowed(c) { c } else { '-' })
        .collect();
    format!("cache_{name}")
}

/// Docker Hub's name in references.
pub const DOCKER_HUB: &str = "docker.io";

/// A reference to an image, with an explicit registry.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageRef {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl ImageRef {
    /// Returns the host and port of the registry: `docker.io`, `127.0.0.1:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Returns the path inside the registry: `library/alpine`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Returns the tag, if the reference has one.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Returns the digest, if the reference has one.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Returns registry and repository without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// Adds `:latest` if the reference has neither tag nor digest.
    #[must_use]
    pub fn or_latest(mut self) -> Self {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some("latest".into());
        }
        self
    }

    /// Returns the same repository with `digest` and without a tag.
    #[must_use]
    pub fn at(&self, digest: Digest) -> Self {
        Self {
            tag: None,
            digest: Some(digest),
            ..self.clone()
        }
    }

    /// Returns the repository without tag and digest.
    #[must_use]
    pub fn untagged(&self) -> Self {
        Self {
            tag: None,
            digest: None,
            ..self.clone()
        }
    }

    /// Returns the same repository with another tag and without a digest.
    pub fn with_tag(&self, tag: &str) -> Result<Self, ReferenceError> {
        check_tag(tag).map_err(|reason| ReferenceError {
            text: format!("{}:{tag}", self.name()),
            reason,
        })?;
        Ok(Self {
            tag: Some(tag.into()),
            digest: None,
            ..self.clone()
        })
    }
}

impl FromStr for ImageRef {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        parse_reference(text).map_err(|reason| ReferenceError {
            text: text.into(),
            reason,
        })
    }
}

fn parse_reference(text: &str) -> Result<ImageRef, String> {
    if text.is_empty() {
        return Err("it is empty".into());
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.parse::<Digest>().map_err(|e| e.reason)?)),
        None => (text, None),
    };
    // A colon before the last slash belongs to the registry's port.
    let slash = rest.rfind('/').map_or(0, |i| i + 1);
    let (name, tag) = match rest[slash..].rfind(':') {
        Some(colon) => (
            &rest[..slash + colon],
            Some(rest[slash + colon + 1..].to_owned()),
        ),
        None => (rest, None),
    };
    if let Some(tag) = &tag {
        check_tag(tag)?;
    }
    let (registry, path) = match name.split_once('/') {
        Some((host, path))
            if host.contains(['.', ':']) || host == "localhost" || host != host.to_lowercase() =>
        {
            (host, path.to_owned())
        }
        _ => (DOCKER_HUB, name.to_owned()),
    };
    let registry = if registry == "index.docker.io" {
        DOCKER_HUB
    } else {
        registry
    };
    check_registry(registry)?;
    let repository = if registry == DOCKER_HUB && !path.contains('/') {
        format!("library/{path}")
    } else {
        path
    };
    check_repository(&repository)?;
    Ok(ImageRef {
        registry: registry.into(),
        repository,
        tag,
        digest,
    })
}

fn check_registry(host: &str) -> Result<(), String> {
    let (name, port) = match host.rfind(':') {
        Some(colon) if !host.ends_with(']') => (&host[..colon], Some(&host[colon + 1..])),
        _ => (host, None),
    };
    let bracketed = name.starts_with('[')
        && name.ends_with(']')
        && name[1..name.len() - 1]
            .bytes()
            .all(|b| b.is_ascii_hexdigit() || b == b':');
    let labels = name.split('.').all(|label| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    });
    if !bracketed && !labels {
        return Err(format!("`{name}` is not a host name"));
    }
    match port {
        Some(port) if port.parse::<u16>().is_err() => Err(format!("`{port}` is not a port")),
        _ => Ok(()),
    }
}

fn check_repository(path: &str) -> Result<(), String> {
    if path.len() > 255 {
        return Err("the repository's name is longer than 255 characters".into());
    }
    for part in path.split('/') {
        if !is_valid_component(part) {
            return Err(if part.chars().any(|c| c.is_ascii_uppercase()) {
                format!("`{part}` has upper-case letters; repository names are lower-case")
            } else if part.is_empty() {
                "a part of the repository's name is empty".into()
            } else {
                format!(
                    "`{part}`: letters and digits, separated by single `.`, `_`, `__` or any number of `-`"
                )
            });
        }
    }
    Ok(())
}

/// Checks for `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`.
fn is_valid_component(part: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    alnum(*first)
        && alnum(*last)
        && bytes
            .split(|b| alnum(*b))
            .all(|sep| matches!(sep, b"" | b"." | b"_" | b"__") || sep.iter().all(|b| *b == b'-'))
}

/// Checks the name of a tag.
///
/// # Errors
/// A sentence that names the tag and the allowed characters.
pub fn check_tag(tag: &str) -> Result<(), String> {
    let ok = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let bytes = tag.as_bytes();
    if bytes.is_empty()
        || bytes.len() > 128
        || !ok(bytes[0])
        || !bytes.iter().all(|b| ok(*b) || matches!(b, b'.' | b'-'))
    {
        return Err(format!(
            "the tag `{tag}` must be 1 to 128 letters, digits, `_`, `.` or `-`, and not begin with `.` or `-`"
        ));
    }
    Ok(())
}

impl TryFrom<String> for ImageRef {
    type Error = ReferenceError;
    fn try_from(text: String) -> Result<Self, ReferenceError> {
        text.parse()
    }
}

impl From<ImageRef> for String {
    fn from(reference: ImageRef) -> Self {
        reference.to_string()
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_as_in_docker() {
        let d = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        for (given, full) in [
            ("alpine", "docker.io/library/alpine"),
            ("alpine:3", "docker.io/library/alpine:3"),
            ("bitnami/redis", "docker.io/bitnami/redis"),
            ("index.docker.io/library/a", "docker.io/library/a"),
            ("localhost/a", "localhost/a"),
            ("localhost:5000/a:1", "localhost:5000/a:1"),
            ("127.0.0.1:5000/x/y_z/a--b", "127.0.0.1:5000/x/y_z/a--b"),
            ("reg.example.com/a/b:t", "reg.example.com/a/b:t"),
            ("[::1]:5000/a", "[::1]:5000/a"),
            (&format!("a@{d}"), &format!("docker.io/library/a@{d}")),
            (&format!("r.io/a:1@{d}"), &format!("r.io/a:1@{d}")),
        ] {
            assert_eq!(
                given.parse::<ImageRef>().unwrap().to_string(),
                full,
                "{given}"
            );
        }
    }

    #[test]
    fn invalid_references_are_refused() {
        for bad in [
            "",
            "A",
            "a b",
            "a:",
            "a:-x",
            "a/",
            "/a",
            "a//b",
            "r.io/A",
            "a@sha256:12",
            "a@x",
            "a___b",
            "r.io:x/a",
            "-a.io/b",
            "a..b",
            "$x",
            "a/../b",
        ] {
            assert!(bad.parse::<ImageRef>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn derived_references_have_the_expected_tag() {
        let r: ImageRef = "r.io/a".parse().unwrap();
        assert_eq!(r.clone().or_latest().to_string(), "r.io/a:latest");
        assert_eq!(r.with_tag("t").unwrap().to_string(), "r.io/a:t");
        assert!(r.with_tag("t t").is_err());
    }
}
