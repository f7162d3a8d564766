//! Sources of a build, from SLSA provenance.
//!
//! The parser accepts both generations (v0.2 with `materials`, v1 with `resolvedDependencies`), as
//! a complete in-toto statement or as the predicate alone. BuildKit's history contains the
//! predicate alone.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::{definition, frontend};

/// Source of a build.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct UsedSource {
    /// Image as `name:tag`, or the URL of another source.
    pub reference: String,
    /// `sha256:…` (images, files) or `sha1:…` (git commits). Empty if the provenance has none.
    pub digest: String,
    /// Platform of an image: `linux/amd64`.
    pub platform: Option<String>,
    /// URI from the provenance. For images a package URL.
    pub purl: String,
    /// `true` if the result of the build is based on this image. `None` if the provenance does not
    /// contain this information.
    pub is_base: Option<bool>,
}

impl UsedSource {
    /// Returns `true` if the source is a container image.
    pub fn is_image(&self) -> bool {
        self.purl.starts_with("pkg:docker/") || self.purl.starts_with("pkg:oci/")
    }

    /// Parses a reference with a digest, as in the names of a build's steps.
    pub(crate) fn from_pinned(pinned: &str) -> Option<Self> {
        let (reference, digest) = pinned.split_once('@')?;
        Some(Self {
            reference: reference.to_owned(),
            digest: digest.to_owned(),
            platform: None,
            purl: format!("pkg:docker/{reference}@{digest}"),
            is_base: None,
        })
    }
}

/// Error for a text that is not provenance.
#[derive(Debug, thiserror::Error)]
pub enum ProvenanceError {
    /// The text is not JSON.
    #[error("the provenance is not JSON")]
    Json(#[from] serde_json::Error),
    /// The JSON has no list of sources.
    #[error("the provenance has neither `materials` (SLSA v0.2) nor `buildDefinition` (SLSA v1)")]
    Unknown,
}

/// Parses an in-toto statement or its predicate. The result is sorted, without duplicates.
pub fn parse_provenance(json: &[u8]) -> Result<Vec<UsedSource>, ProvenanceError> {
    let value: Value = serde_json::from_slice(json)?;
    let predicate = value.get("predicate").unwrap_or(&value);
    let empty = Vec::new();
    let dependencies = match (predicate.get("buildDefinition"), predicate.get("materials")) {
        (Some(definition), _) => definition
            .get("resolvedDependencies")
            .and_then(Value::as_array)
            .unwrap_or(&empty),
        (None, Some(materials)) => materials.as_array().unwrap_or(&empty),
        // A build from scratch has no materials and may omit the key.
        (None, None) if predicate.get("buildType").is_some() => &empty,
        (None, None) => return Err(ProvenanceError::Unknown),
    };
    let mut sources: Vec<UsedSource> = dependencies.iter().filter_map(parse_source).collect();
    if let Some(bases) = definition::find_bases(predicate) {
        mark_bases(&mut sources, &bases);
    }
    sources.sort();
    sources.dedup();
    Ok(sources)
}

/// Sets `is_base` of all images. Changes nothing if one of the `bases` is not among the sources.
///
/// Two names may have the same digest. A name therefore takes precedence if it is among the
/// sources.
fn mark_bases(sources: &mut [UsedSource], bases: &BTreeSet<String>) {
    let mut is_base = vec![false; sources.len()];
    for base in bases {
        let (name, digest) = base.split_once('@').unwrap_or((base, ""));
        let of_digest = |source: &UsedSource| {
            source.is_image() && (digest.is_empty() || digest == source.digest)
        };
        let of_name = |source: &UsedSource| {
            of_digest(source)
                && frontend::familiar_name(name) == frontend::familiar_name(&source.reference)
        };
        let is_named = sources.iter().any(of_name);
        if !is_named && (digest.is_empty() || !sources.iter().any(of_digest)) {
            return;
        }
        for (source, is_base) in sources.iter().zip(&mut is_base) {
            *is_base |= if is_named {
                of_name(source)
            } else {
                of_digest(source)
            };
        }
    }
    for (source, is_base) in sources.iter_mut().zip(is_base) {
        source.is_base = source.is_image().then_some(is_base);
    }
}

fn parse_source(dependency: &Value) -> Option<UsedSource> {
    let uri = dependency.get("uri")?.as_str()?;
    let digest = dependency
        .get("digest")
        .and_then(Value::as_object)
        .and_then(|digests| {
            let of = |algorithm: &str| {
                Some(format!("{algorithm}:{}", digests.get(algorithm)?.as_str()?))
            };
            of("sha256")
                .or_else(|| of("sha1"))
                .or_else(|| of("gitCommit").map(|d| d.replace("gitCommit:", "sha1:")))
        })
        .unwrap_or_default();
    let Some(package) = uri
        .strip_prefix("pkg:docker/")
        .or_else(|| uri.strip_prefix("pkg:oci/"))
    else {
        return Some(UsedSource {
            reference: uri.to_owned(),
            digest,
            platform: None,
            purl: uri.to_owned(),
            is_base: None,
        });
    };
    let (path, query) = package.split_once('?').unwrap_or((package, ""));
    let (name, version) = path.rsplit_once('@').unwrap_or((path, ""));
    let parameter = |key: &str| {
        query
            .split('&')
            .find_map(|pair| pair.split_once('=').filter(|(k, _)| *k == key))
            .map(|(_, value)| percent_decode(value))
    };
    let name = percent_decode(name);
    let version = percent_decode(version);
    let reference = match version.as_str() {
        "" => name,
        digest if digest.starts_with("sha256:") => name,
        tag => format!("{name}:{tag}"),
    };
    let digest = if digest.is_empty() {
        parameter("digest").unwrap_or_default()
    } else {
        digest
    };
    Some(UsedSource {
        reference,
        digest,
        platform: parameter("platform"),
        purl: uri.to_owned(),
        is_base: None,
    })
}

fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |i: usize| bytes.get(at + i).and_then(|b| char::from(*b).to_digit(16));
        if let (b'%', Some(high), Some(low)) = (bytes[at], hex(1), hex(2)) {
            // Two hexadecimal digits are a byte.
            out.push((high * 16 + low) as u8);
            at += 3;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(value: &Value) -> Vec<UsedSource> {
        parse_provenance(value.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn both_generations_have_the_same_result() {
        let dependencies = json!([
            {"uri": "pkg:docker/127.0.0.1:5000/base/busybox@1.36?platform=linux%2Famd64", "digest": {"sha256": "aa"}},
            {"uri": "pkg:docker/alpine@3.20?digest=sha256:bb&platform=linux%2Farm64", "digest": {"sha256": "bb"}},
            {"uri": "https://example.com/r.git#main", "digest": {"sha1": "cc"}},
            {"uri": "pkg:docker/alpine@3.20?digest=sha256:bb&platform=linux%2Farm64", "digest": {"sha256": "bb"}},
        ]);
        let old = parse(
            &json!({"predicateType": "https://slsa.dev/provenance/v0.2", "predicate": {"materials": dependencies}}),
        );
        let new = parse(&json!({"buildDefinition": {"resolvedDependencies": dependencies}}));
        assert_eq!(old, new);
        let short: Vec<_> = old
            .iter()
            .map(|s| {
                (
                    s.reference.as_str(),
                    s.digest.as_str(),
                    s.platform.as_deref(),
                    s.is_image(),
                )
            })
            .collect();
        assert_eq!(
            short,
            [
                (
                    "127.0.0.1:5000/base/busybox:1.36",
                    "sha256:aa",
                    Some("linux/amd64"),
                    true
                ),
                ("alpine:3.20", "sha256:bb", Some("linux/arm64"), true),
                ("https://example.com/r.git#main", "sha1:cc", None, false),
            ]
        );
    }

    #[test]
    fn parse_provenance_marks_bases() {
        let materials = json!([
            {"uri": "pkg:docker/r.io/base@1?digest=sha256:aa", "digest": {"sha256": "aa"}},
            {"uri": "pkg:docker/r.io/tools@1?digest=sha256:bb", "digest": {"sha256": "bb"}},
            {"uri": "https://example.com/r.git#main", "digest": {"sha1": "cc"}},
        ]);
        let marked = |identifier: &str| {
            let steps = json!([
                {"id": "a", "op": {"Op": {"source": {"identifier": identifier}}}},
                {"id": "b", "op": {"Op": null}, "inputs": ["a:0"]},
            ]);
            let predicate =
                json!({"materials": materials, "buildConfig": {"llbDefinition": steps}});
            let marks = parse(&predicate).into_iter().map(|source| source.is_base);
            marks.collect::<Vec<_>>()
        };
        // Sorted: the repository, base and tools.
        let base = [None, Some(true), Some(false)];
        assert_eq!(marked("docker-image://r.io/base:1@sha256:aa"), base);
        assert_eq!(marked("docker-image://r.io/base:1"), base);
        let tools = [None, Some(false), Some(true)];
        assert_eq!(marked("docker-image://r.io/named@sha256:bb"), tools);
        assert_eq!(marked("docker-image://r.io/tools:1@sha256:bb"), tools);
        assert_eq!(marked("local://context"), [None, Some(false), Some(false)]);
        assert_eq!(marked("docker-image://r.io/other:1@sha256:dd"), [None; 3]);
        assert_eq!(marked("docker-image://r.io/other:1"), [None; 3]);
    }

    #[test]
    fn two_names_of_one_digest_are_distinguished() {
        let materials = json!([
            {"uri": "pkg:docker/r.io/base@1?digest=sha256:aa", "digest": {"sha256": "aa"}},
            {"uri": "pkg:docker/r.io/tools@1?digest=sha256:aa", "digest": {"sha256": "aa"}},
        ]);
        let steps = json!([
            {"id": "a", "op": {"Op": {"source": {"identifier": "docker-image://r.io/tools:1@sha256:aa"}}}},
            {"id": "b", "op": {"Op": null}, "inputs": ["a:0"]},
        ]);
        let predicate = json!({"materials": materials, "buildConfig": {"llbDefinition": steps}});
        let marks: Vec<_> = parse(&predicate)
            .into_iter()
            .map(|source| source.is_base)
            .collect();
        assert_eq!(marks, [Some(false), Some(true)]);
    }

    #[test]
    fn build_from_scratch_has_no_sources() {
        assert_eq!(
            parse(&json!({"buildType": "https://mobyproject.org/buildkit@v1"})),
            []
        );
        assert_eq!(parse(&json!({"buildDefinition": {}})), []);
    }

    #[test]
    fn parse_provenance_refuses_other_documents() {
        assert!(matches!(
            parse_provenance(b"{"),
            Err(ProvenanceError::Json(_))
        ));
        assert!(matches!(
            parse_provenance(b"{\"predicate\": {}}"),
            Err(ProvenanceError::Unknown)
        ));
    }
}
