//! Manifests and indexes, as far as they are looked into.
//!
//! Source: OCI image specification 1.1 (manifest, image index, descriptor); Docker's image manifest
//! version 2, schema 2, which has the same fields under other media types.

use std::{collections::BTreeMap, fmt};

use acrtask_model::Digest;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::json_keys::{self, Keys};

/// Media type of an OCI index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of an OCI image or artifact manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of Docker's manifest list.
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Media type of Docker's image manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// All that is understood. Left out of `Accept`, a type makes some registries say 404 for images that
/// have it.
pub(crate) const ACCEPT: [&str; 4] = [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST];

/// Where BuildKit says what kind of manifest an `unknown/unknown` entry of an index is.
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";
/// Which entry of the index it is about.
const REFERENCE_DIGEST: &str = "vnd.docker.reference.digest";

/// The keys that programs look up in manifests and indexes.
const KEYS: Keys = Keys {
    known: &[
        "annotations",
        "architecture",
        "artifactType",
        "config",
        "data",
        "digest",
        "fsLayers",
        "history",
        "layers",
        "manifests",
        "mediaType",
        "os",
        "os.features",
        "os.version",
        "platform",
        "schemaVersion",
        "signatures",
        "size",
        "subject",
        "urls",
        "variant",
    ],
    is_free: |key| key == "annotations",
};

/// Points at a manifest or a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What is there.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Other addresses of the content, which engines ask before the registry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// For which platform it is; in indexes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The type of the artifact that it leads to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
}

impl Descriptor {
    /// Returns `true` if it points at a manifest or an index, and not at a blob.
    pub fn is_manifest(&self) -> bool {
        ACCEPT.contains(&self.media_type.as_str())
    }

    /// Returns `true` if its type is that of an image manifest. An index of another platform may have an image for every
    /// platform.
    pub fn is_image_manifest(&self) -> bool {
        [OCI_MANIFEST, DOCKER_MANIFEST].contains(&self.media_type.as_str())
    }

    /// Refuses a manifest in the place of a blob. An engine would read it as one of an image.
    ///
    /// # Errors
    /// A sentence that names the digest.
    pub fn check_blob(&self) -> Result<(), String> {
        if self.is_manifest() {
            return Err(format!(
                "{} is a manifest in the place of a layer",
                self.digest
            ));
        }
        Ok(())
    }

    /// Refuses a descriptor that leads engines and builders to other addresses than the registry.
    ///
    /// # Errors
    /// A sentence that names the address.
    pub fn check_urls(&self) -> Result<(), String> {
        match self.urls.first() {
            None => Ok(()),
            Some(url) => Err(format!(
                "{} is at another address, {}: copy the image with all its content",
                self.digest,
                url.escape_debug()
            )),
        }
    }

    /// The digest of the image that this entry of an index attests, if it is an attestation manifest.
    pub fn attests(&self) -> Option<Digest> {
        if self.annotations.get(REFERENCE_TYPE).map(String::as_str) != Some("attestation-manifest")
        {
            return None;
        }
        self.annotations.get(REFERENCE_DIGEST)?.parse().ok()
    }

    /// Whether it is an image for a platform, and not an attestation or another companion.
    pub fn is_image(&self) -> bool {
        let known =
            |platform: &Platform| platform.os != "unknown" && platform.architecture != "unknown";
        self.platform.as_ref().is_some_and(known) && !self.annotations.contains_key(REFERENCE_TYPE)
    }
}

/// Operating system and processor: `linux/arm64/v8`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// GOOS.
    pub os: String,
    /// GOARCH.
    pub architecture: String,
    /// The processor's variant: `v7`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// The version of the operating system; Windows.
    #[serde(
        default,
        rename = "os.version",
        skip_serializing_if = "Option::is_none"
    )]
    pub os_version: Option<String>,
    /// Features that the operating system must have; Windows.
    #[serde(default, rename = "os.features", skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match self.variant.as_deref() {
            Some(variant) if !variant.is_empty() => write!(f, "/{variant}"),
            _ => Ok(()),
        }
    }
}

/// A list of manifests, as a rule one for each platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// 2.
    pub schema_version: u8,
    /// [`OCI_INDEX`] or [`DOCKER_INDEX`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The entries.
    pub manifests: Vec<Descriptor>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// One image for one platform, or an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    /// 2.
    pub schema_version: u8,
    /// [`OCI_MANIFEST`] or [`DOCKER_MANIFEST`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The type of an artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The image's configuration.
    pub config: Descriptor,
    /// The layers, or an artifact's files.
    #[serde(default)]
    pub layers: Vec<Descriptor>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// What a manifest says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManifestBody {
    /// Several images.
    Index(Index),
    /// One image or artifact.
    Image(Box<Image>),
}

/// A manifest as the registry has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The digest of [`Manifest::raw`].
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Every byte: what was signed, and what a copy must consist of.
    pub raw: Bytes,
    /// The same, read.
    pub body: ManifestBody,
}

impl Manifest {
    /// Reads `raw`. The type is the one in the document, else `content_type`.
    ///
    /// # Errors
    /// A sentence: the document is not valid, is of an unknown type, or is one that programs read differently.
    pub fn parse(raw: Bytes, content_type: Option<&str>) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Head {
            schema_version: Option<u8>,
            media_type: Option<String>,
            manifests: Option<serde::de::IgnoredAny>,
            layers: Option<serde::de::IgnoredAny>,
            config: Option<serde::de::IgnoredAny>,
            fs_layers: Option<serde::de::IgnoredAny>,
        }
        json_keys::check(&raw, KEYS).map_err(|why| format!("the manifest is not valid: {why}"))?;
        let head: Head = serde_json::from_slice(&raw)
            .map_err(|error| format!("the manifest is not valid: {error}"))?;
        if head.schema_version != Some(2) {
            return Err("the manifest is of Docker's schema 1, which has no digests to rely on; push the image again with a newer tool".into());
        }
        let is_image = head.layers.is_some() || head.config.is_some();
        if is_image && head.manifests.is_some() || head.fs_layers.is_some() {
            return Err("the manifest has the fields of several types, so programs read it differently; push the image again".into());
        }
        let content_type = content_type
            .and_then(|text| text.split(';').next())
            .map(str::trim);
        let media_type = match (head.media_type, content_type) {
            (Some(own), _) => own,
            (None, Some(header)) if ACCEPT.contains(&header) => header.to_owned(),
            // The specification recommends the field and does not demand it.
            (None, _) if head.manifests.is_some() => OCI_INDEX.to_owned(),
            (None, _) => OCI_MANIFEST.to_owned(),
        };
        let invalid =
            |error: serde_json::Error| format!("the manifest is not a valid {media_type}: {error}");
        let body = match media_type.as_str() {
            OCI_INDEX | DOCKER_INDEX => {
                ManifestBody::Index(serde_json::from_slice(&raw).map_err(invalid)?)
            }
            OCI_MANIFEST | DOCKER_MANIFEST => {
                ManifestBody::Image(serde_json::from_slice(&raw).map_err(invalid)?)
            }
            other => {
                return Err(format!(
                    "`{other}` is neither an index nor an image manifest"
                ));
            }
        };
        Ok(Self {
            digest: sha256(&raw),
            media_type,
            raw,
            body,
        })
    }

    /// What points at it, without a platform.
    pub fn descriptor(&self) -> Descriptor {
        Descriptor {
            media_type: self.media_type.clone(),
            digest: self.digest.clone(),
            size: self.raw.len() as u64,
            urls: Vec::new(),
            platform: None,
            annotations: BTreeMap::new(),
            artifact_type: None,
        }
    }
}

/// The images of an index by platform. Attestations and other `unknown/unknown` entries are left out; of
/// two entries for one platform the first counts, as runtimes choose.
pub fn platforms(index: &Index) -> BTreeMap<Platform, Digest> {
    let mut found = BTreeMap::new();
    for entry in index.manifests.iter().filter(|entry| entry.is_image()) {
        if let Some(platform) = &entry.platform {
            found
                .entry(platform.clone())
                .or_insert_with(|| entry.digest.clone());
        }
    }
    found
}

/// The SHA-256 digest of `bytes`.
pub fn sha256(bytes: &[u8]) -> Digest {
    let mut hasher = Hasher::Sha256(sha2::Digest::new());
    hasher.update(bytes);
    hasher.finish()
}

/// Computes a digest piece by piece.
pub(crate) enum Hasher {
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

impl Hasher {
    /// One of the algorithm that `digest` has.
    pub(crate) fn like(digest: &Digest) -> Self {
        if digest.as_str().starts_with("sha512:") {
            Self::Sha512(sha2::Digest::new())
        } else {
            Self::sha256()
        }
    }

    pub(crate) fn sha256() -> Self {
        Self::Sha256(sha2::Digest::new())
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => sha2::Digest::update(hasher, bytes),
            Self::Sha512(hasher) => sha2::Digest::update(hasher, bytes),
        }
    }

    pub(crate) fn finish(self) -> Digest {
        let text = match self {
            Self::Sha256(hasher) => format!("sha256:{:x}", sha2::Digest::finalize(hasher)),
            Self::Sha512(hasher) => format!("sha512:{:x}", sha2::Digest::finalize(hasher)),
        };
        text.parse()
            .expect("an algorithm and its hexadecimal digits are a digest")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
    const C: &str = "sha256:cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc";

    fn index_json() -> String {
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[
            {{"mediaType":"{OCI_MANIFEST}","digest":"{A}","size":1,"platform":{{"os":"linux","architecture":"amd64"}}}},
            {{"mediaType":"{OCI_MANIFEST}","digest":"{B}","size":1,"platform":{{"os":"linux","architecture":"arm","variant":"v7"}}}},
            {{"mediaType":"{OCI_MANIFEST}","digest":"{C}","size":1,"platform":{{"os":"unknown","architecture":"unknown"}},
              "annotations":{{"vnd.docker.reference.type":"attestation-manifest","vnd.docker.reference.digest":"{A}"}}}}]}}"#
        )
    }

    #[test]
    fn attestations_are_no_platform() {
        let manifest = Manifest::parse(index_json().into(), None).unwrap();
        let ManifestBody::Index(index) = &manifest.body else {
            panic!("an index")
        };
        let found: Vec<String> = platforms(index)
            .iter()
            .map(|(p, d)| format!("{p} {}", d.short()))
            .collect();
        assert_eq!(
            found,
            ["linux/amd64 aaaaaaaaaaaa", "linux/arm/v7 bbbbbbbbbbbb"]
        );
        assert_eq!(index.manifests[2].attests(), Some(A.parse().unwrap()));
        assert_eq!(index.manifests[0].attests(), None);
    }

    #[test]
    fn tells_kinds_apart_also_without_a_media_type() {
        let bare_index = r#"{"schemaVersion":2,"manifests":[]}"#;
        let bare_image = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"x","digest":"{A}","size":1}},"layers":[]}}"#
        );
        for (json, header, expected) in [
            (bare_index, None, OCI_INDEX),
            (
                bare_index,
                Some("application/vnd.docker.distribution.manifest.list.v2+json; charset=utf-8"),
                DOCKER_INDEX,
            ),
            (bare_image.as_str(), None, OCI_MANIFEST),
            (bare_image.as_str(), Some("application/json"), OCI_MANIFEST),
            (bare_image.as_str(), Some(DOCKER_MANIFEST), DOCKER_MANIFEST),
        ] {
            let manifest =
                Manifest::parse(Bytes::copy_from_slice(json.as_bytes()), header).unwrap();
            assert_eq!(manifest.media_type, expected, "{json} {header:?}");
        }
        for bad in [
            r#"{"schemaVersion":1,"name":"x"}"#,
            "{}",
            "<html>",
            r#"{"schemaVersion":2,"mediaType":"text/plain"}"#,
            r#"{"schemaVersion":2,"manifests":[{"mediaType":"x","digest":"sha256:short","size":1}]}"#,
            r#"{"schemaVersion":2,"manifests":[],"Manifests":[]}"#,
            r#"{"schemaVersion":2,"manifests":[],"manifests":[]}"#,
            r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#,
            r#"{"schemaVersion":2,"manifests":[],"config":{}}"#,
            r#"{"schemaVersion":2,"manifests":[],"fsLayers":[]}"#,
        ] {
            assert!(
                Manifest::parse(Bytes::copy_from_slice(bad.as_bytes()), None).is_err(),
                "{bad}"
            );
        }
    }

    #[test]
    fn digests() {
        assert_eq!(
            sha256(b"").as_str(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }
}
