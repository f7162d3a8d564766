//! Manifests and indexes, with the fields that this program reads.
//!
//! Source: OCI image specification 1.1 (manifest, image index, descriptor); Docker's image manifest
//! version 2, schema 2. Both have the same fields under different media types.

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

/// All supported media types. Some registries respond with 404 if the type of an image is missing
/// from `Accept`.
pub(crate) const ACCEPT: [&str; 4] = [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST];

/// Annotation in which BuildKit names the kind of an `unknown/unknown` entry of an index.
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";
/// Annotation with the digest of the entry that an attestation is about.
const REFERENCE_DIGEST: &str = "vnd.docker.reference.digest";

/// Keys that programs look up in manifests and indexes.
const KEYS: Keys = Keys {
    names: &[
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

/// Reference to a manifest or a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Media type of the content.
    pub media_type: String,
    /// Digest of the content.
    pub digest: Digest,
    /// Size of the content, in bytes.
    pub size: u64,
    /// Other addresses of the content. Engines request them before the registry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// Platform of the image, in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Annotations by key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Type of the referenced artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
}

impl Descriptor {
    /// Returns `true` if the descriptor refers to a manifest or an index, and not to a blob.
    pub fn is_manifest(&self) -> bool {
        ACCEPT.contains(&self.media_type.as_str())
    }

    /// Returns `true` if the media type is that of an image manifest. An index for another platform
    /// may contain an image for every platform.
    pub fn is_image_manifest(&self) -> bool {
        [OCI_MANIFEST, DOCKER_MANIFEST].contains(&self.media_type.as_str())
    }

    /// Refuses a manifest in the place of a blob. An engine would read it as the manifest of an
    /// image.
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

    /// Refuses a descriptor that sends engines and builders to other addresses than the registry.
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

    /// Returns the digest of the image that this index entry attests. `None` if the entry is not an
    /// attestation manifest.
    pub fn attested_image(&self) -> Option<Digest> {
        if self.annotations.get(REFERENCE_TYPE).map(String::as_str) != Some("attestation-manifest")
        {
            return None;
        }
        self.annotations.get(REFERENCE_DIGEST)?.parse().ok()
    }

    /// Returns `true` if the entry is an image for a platform, and not an attestation or another
    /// companion.
    pub fn is_image(&self) -> bool {
        let is_specific =
            |platform: &Platform| platform.os != "unknown" && platform.architecture != "unknown";
        self.platform.as_ref().is_some_and(is_specific)
            && !self.annotations.contains_key(REFERENCE_TYPE)
    }
}

/// Operating system and processor: `linux/arm64/v8`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// Operating system, as in `GOOS`.
    pub os: String,
    /// Processor architecture, as in `GOARCH`.
    pub architecture: String,
    /// Variant of the processor: `v7`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// Version of the operating system. Windows only.
    #[serde(
        default,
        rename = "os.version",
        skip_serializing_if = "Option::is_none"
    )]
    pub os_version: Option<String>,
    /// Features that the operating system must have. Windows only.
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

/// List of manifests, usually one for each platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u8,
    /// [`OCI_INDEX`] or [`DOCKER_INDEX`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// Entries of the index.
    pub manifests: Vec<Descriptor>,
    /// Annotations by key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// Manifest of one image for one platform, or of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    /// Always 2.
    pub schema_version: u8,
    /// [`OCI_MANIFEST`] or [`DOCKER_MANIFEST`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// Type of an artifact. `None` for an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Configuration of the image.
    pub config: Descriptor,
    /// Layers of an image, or files of an artifact.
    #[serde(default)]
    pub layers: Vec<Descriptor>,
    /// Annotations by key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Image {
    /// Returns the configuration and the layers, without layers that stay at their publisher.
    pub fn distributable_blobs(&self) -> impl Iterator<Item = &Descriptor> {
        let blobs = std::iter::once(&self.config).chain(&self.layers);
        blobs.filter(|blob| {
            !blob.media_type.contains("nondistributable") && !blob.media_type.contains("foreign")
        })
    }
}

/// Content of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManifestBody {
    /// Index of several images.
    Index(Index),
    /// Image or artifact.
    Image(Box<Image>),
}

/// Manifest as the registry stores it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Digest of [`Manifest::raw`].
    pub digest: Digest,
    /// Media type of the manifest.
    pub media_type: String,
    /// All bytes of the manifest. Signatures and copies depend on every byte.
    pub raw: Bytes,
    /// Parsed content of [`Manifest::raw`].
    pub body: ManifestBody,
}

impl Manifest {
    /// Parses `raw`. The media type comes from the document, or else from `content_type`.
    ///
    /// # Errors
    /// A sentence: the document is invalid, has an unsupported type, or different programs read it
    /// differently.
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
            return Err("the manifest uses Docker's schema 1, which has no reliable digests; push the image again with a newer tool".into());
        }
        let is_image = head.layers.is_some() || head.config.is_some();
        if is_image && head.manifests.is_some() || head.fs_layers.is_some() {
            return Err("the manifest has the fields of several types, and programs read it differently; push the image again".into());
        }
        let content_type = content_type
            .and_then(|text| text.split(';').next())
            .map(str::trim);
        let media_type = match (head.media_type, content_type) {
            (Some(own), _) => own,
            (None, Some(header)) if ACCEPT.contains(&header) => header.to_owned(),
            // The specification only recommends this field.
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

    /// Returns the digest of the manifest that this one refers to, such as the image of a
    /// signature. `None` if the manifest has no subject.
    ///
    /// # Errors
    /// The subject is not a descriptor.
    pub fn subject(&self) -> Result<Option<Digest>, serde_json::Error> {
        #[derive(Deserialize)]
        struct WithSubject {
            subject: Option<Subject>,
        }
        #[derive(Deserialize)]
        struct Subject {
            digest: Digest,
        }
        let found: WithSubject = serde_json::from_slice(&self.raw)?;
        Ok(found.subject.map(|subject| subject.digest))
    }

    /// Returns the entry of the manifest in a list of referrers: with the type of the artifact and
    /// the annotations.
    pub fn referrer_descriptor(&self) -> Descriptor {
        let (artifact_type, annotations) = match &self.body {
            ManifestBody::Index(index) => (None, index.annotations.clone()),
            ManifestBody::Image(image) => {
                let kind = image.artifact_type.clone();
                let kind = kind.unwrap_or_else(|| image.config.media_type.clone());
                (Some(kind), image.annotations.clone())
            }
        };
        Descriptor {
            artifact_type,
            annotations,
            ..self.descriptor()
        }
    }

    /// Returns a descriptor of the manifest, without a platform.
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

/// Returns the images of an index by platform, without attestations and other `unknown/unknown`
/// entries. The first of two entries for one platform counts, as in container runtimes.
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

/// Computes the SHA-256 digest of `bytes`.
pub fn sha256(bytes: &[u8]) -> Digest {
    let mut hasher = Hasher::Sha256(sha2::Digest::new());
    hasher.update(bytes);
    hasher.finish()
}

/// Incremental computation of a digest.
pub enum Hasher {
    /// Computation of a SHA-256 digest.
    Sha256(sha2::Sha256),
    /// Computation of a SHA-512 digest.
    Sha512(sha2::Sha512),
}

impl Hasher {
    /// Creates a hasher for the algorithm of `digest`.
    pub fn for_digest(digest: &Digest) -> Self {
        if digest.as_str().starts_with("sha512:") {
            Self::Sha512(sha2::Digest::new())
        } else {
            Self::sha256()
        }
    }

    /// Creates a hasher for SHA-256.
    pub fn sha256() -> Self {
        Self::Sha256(sha2::Digest::new())
    }

    /// Adds content.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => sha2::Digest::update(hasher, bytes),
            Self::Sha512(hasher) => sha2::Digest::update(hasher, bytes),
        }
    }

    /// Returns the digest of the content.
    pub fn finish(self) -> Digest {
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
    fn platforms_exclude_attestations() {
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
        assert_eq!(
            index.manifests[2].attested_image(),
            Some(A.parse().unwrap())
        );
        assert_eq!(index.manifests[0].attested_image(), None);
    }

    #[test]
    fn parse_detects_the_kind_without_a_media_type() {
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
    fn sha256_of_empty_input_matches_the_reference() {
        assert_eq!(
            sha256(b"").as_str(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }
}
