//! Folder with OCI image layout, as source and destination of copies.
//!
//! Source: OCI image layout specification 1.1. An entry of `index.json` names a manifest and, in an
//! annotation, its tag. A folder has no list of referrers, so all entries are searched for them.
//!
//! Invariant: a file in `blobs/` is complete and has its digest. A write goes to `ingest/` first.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use acrtask_model::Digest;
use acrtask_registry::{Descriptor, Manifest, manifest::Hasher};
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use serde_json::{Map, Value, json};
use tokio::{fs, io::AsyncWriteExt as _};

/// Annotation of an entry with its tag.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Maximum size of an index or manifest, in bytes.
const MAX_DOCUMENT: u64 = 32 << 20;

/// Folder with OCI image layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    folder: PathBuf,
}

/// Entry of the folder's index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayoutEntry {
    /// Digest of the manifest.
    pub digest: Digest,
    /// Tag of the manifest. `None` if the entry has none.
    pub tag: Option<String>,
}

impl Layout {
    /// Names a folder, which may be missing.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
        }
    }

    /// Returns the folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Creates the missing parts of the folder.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub async fn create(&self) -> Result<(), String> {
        for part in ["blobs/sha256", "blobs/sha512", "ingest"] {
            let path = self.folder.join(part);
            let created = fs::create_dir_all(&path).await;
            created.map_err(|error| describe("create", &path, &error))?;
        }
        let marker = self.folder.join("oci-layout");
        let written = fs::write(&marker, r#"{"imageLayoutVersion":"1.0.0"}"#).await;
        written.map_err(|error| describe("write", &marker, &error))
    }

    /// Lists the entries of the index. Empty if the folder has no index.
    ///
    /// # Errors
    /// The index cannot be read, or is not valid.
    pub async fn entries(&self) -> Result<Vec<LayoutEntry>, String> {
        let index = self.read_index().await?;
        let entries = index["manifests"].as_array().into_iter().flatten();
        entries
            .map(|entry| {
                let digest = entry["digest"].as_str().unwrap_or_default();
                let digest = digest.parse::<Digest>().map_err(|error| {
                    format!("{} is not valid: {error}", self.index_path().display())
                })?;
                let tag = entry["annotations"][REF_NAME].as_str();
                Ok(LayoutEntry {
                    digest,
                    tag: tag.map(|tag| tag_of(tag).to_owned()),
                })
            })
            .collect()
    }

    /// Reads a manifest and checks its digest. `None` if the folder does not have it.
    ///
    /// # Errors
    /// The file cannot be read, has another digest, or is not a manifest.
    pub async fn manifest(&self, digest: &Digest) -> Result<Option<Manifest>, String> {
        let path = self.blob_path(digest);
        let Some(raw) = read_limited(&path).await? else {
            return Ok(None);
        };
        check(&path, digest, &raw)?;
        let manifest = Manifest::parse(raw.into(), None);
        let mut manifest = manifest.map_err(|why| format!("{}: {why}", path.display()))?;
        manifest.digest = digest.clone();
        Ok(Some(manifest))
    }

    /// Returns `true` if the folder has the blob with this size.
    pub async fn has_blob(&self, digest: &Digest, size: u64) -> bool {
        let found = fs::metadata(self.blob_path(digest)).await;
        found.is_ok_and(|found| found.is_file() && found.len() == size)
    }

    /// Opens a blob for reading. The reader has to check the digest.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub async fn open_blob(&self, digest: &Digest) -> Result<fs::File, String> {
        let path = self.blob_path(digest);
        let opened = fs::File::open(&path).await;
        opened.map_err(|error| describe("read", &path, &error))
    }

    /// Stores a blob as it arrives, and checks its digest.
    ///
    /// # Errors
    /// The content has another digest, cannot be read, or cannot be written.
    pub async fn put_stream<E: std::error::Error>(
        &self,
        digest: &Digest,
        mut content: impl Stream<Item = Result<Bytes, E>> + Unpin,
    ) -> Result<(), String> {
        let partial = self.partial_path(digest);
        let file = fs::File::create(&partial).await;
        let mut file = file.map_err(|error| describe("write", &partial, &error))?;
        let mut hasher = Hasher::for_digest(digest);
        while let Some(chunk) = content.next().await {
            let chunk = chunk.map_err(|error| acrtask_model::error_chain(&error))?;
            hasher.update(&chunk);
            let written = file.write_all(&chunk).await;
            written.map_err(|error| describe("write", &partial, &error))?;
        }
        let synced = async {
            file.flush().await?;
            file.sync_all().await
        };
        let synced = synced.await;
        synced.map_err(|error| describe("write", &partial, &error))?;
        let got = hasher.finish();
        if got != *digest {
            return Err(format!("the content of {digest} has the digest {got}"));
        }
        let path = self.blob_path(digest);
        let renamed = fs::rename(&partial, &path).await;
        renamed.map_err(|error| describe("write", &path, &error))
    }

    /// Stores a manifest without naming it in the index.
    ///
    /// # Errors
    /// The manifest cannot be written.
    pub async fn put_manifest(&self, manifest: &Manifest) -> Result<(), String> {
        let content = futures::stream::iter([Ok::<_, io::Error>(manifest.raw.clone())]);
        self.put_stream(&manifest.digest, content).await
    }

    /// Adds entries to the index. A tag moves to its new manifest. A manifest without a tag has
    /// one entry.
    ///
    /// # Errors
    /// The index cannot be read or written.
    pub async fn add_entries(
        &self,
        entries: &[(Descriptor, Option<String>)],
    ) -> Result<(), String> {
        let mut index = self.read_index().await?;
        let Some(manifests) = index["manifests"].as_array_mut() else {
            return Err(format!(
                "{} is not valid: it has no list of manifests",
                self.index_path().display()
            ));
        };
        for (descriptor, tag) in entries {
            let mut entry = serde_json::to_value(descriptor)
                .map_err(|error| format!("cannot write {}: {error}", descriptor.digest))?;
            match tag {
                Some(tag) => {
                    manifests.retain(|have| have["annotations"][REF_NAME].as_str() != Some(tag));
                    let mut annotations = match entry["annotations"].take() {
                        Value::Object(annotations) => annotations,
                        _ => Map::new(),
                    };
                    annotations.insert(REF_NAME.into(), json!(tag));
                    entry["annotations"] = Value::Object(annotations);
                }
                None => {
                    let digest = Some(descriptor.digest.as_str());
                    if manifests
                        .iter()
                        .any(|have| have["digest"].as_str() == digest)
                    {
                        continue;
                    }
                }
            }
            manifests.push(entry);
        }
        let partial = self.folder.join("ingest/index.json");
        let written = fs::write(&partial, index.to_string()).await;
        written.map_err(|error| describe("write", &partial, &error))?;
        let path = self.index_path();
        let renamed = fs::rename(&partial, &path).await;
        renamed.map_err(|error| describe("write", &path, &error))?;
        // Other programs do not expect this folder. A concurrent copy may still use it.
        let _ = fs::remove_dir(self.folder.join("ingest")).await;
        Ok(())
    }

    /// Returns the manifests of the index, with those that have a subject, by digest.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub async fn subjects(&self) -> Result<BTreeMap<Digest, Vec<Digest>>, String> {
        let mut found: BTreeMap<Digest, Vec<Digest>> = BTreeMap::new();
        for entry in self.entries().await? {
            let Some(manifest) = self.manifest(&entry.digest).await? else {
                continue;
            };
            if let Ok(Some(subject)) = manifest.subject() {
                let referrers = found.entry(subject).or_default();
                if !referrers.contains(&entry.digest) {
                    referrers.push(entry.digest);
                }
            }
        }
        Ok(found)
    }

    async fn read_index(&self) -> Result<Value, String> {
        let path = self.index_path();
        let Some(raw) = read_limited(&path).await? else {
            return Ok(json!({
                "schemaVersion": 2,
                "mediaType": acrtask_registry::manifest::OCI_INDEX,
                "manifests": [],
            }));
        };
        serde_json::from_slice(&raw).map_err(|error| format!("{}: {error}", path.display()))
    }

    fn index_path(&self) -> PathBuf {
        self.folder.join("index.json")
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        // A digest has one colon, and otherwise letters and digits.
        let name = digest.as_str().replace(':', "/");
        self.folder.join("blobs").join(name)
    }

    fn partial_path(&self, digest: &Digest) -> PathBuf {
        let name = digest.as_str().replace(':', "-");
        self.folder.join("ingest").join(name)
    }
}

/// Returns the tag in the name of an entry. Some programs write whole references.
fn tag_of(name: &str) -> &str {
    match name.rsplit_once(':') {
        Some((_, tag)) if !tag.contains('/') => tag,
        _ => name,
    }
}

async fn read_limited(path: &Path) -> Result<Option<Vec<u8>>, String> {
    let size = match fs::metadata(path).await {
        Ok(found) => found.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(describe("read", path, &error)),
    };
    if size > MAX_DOCUMENT {
        return Err(format!(
            "{} is larger than {MAX_DOCUMENT} bytes",
            path.display()
        ));
    }
    let read = fs::read(path).await;
    read.map(Some)
        .map_err(|error| describe("read", path, &error))
}

fn check(path: &Path, digest: &Digest, raw: &[u8]) -> Result<(), String> {
    let mut hasher = Hasher::for_digest(digest);
    hasher.update(raw);
    match hasher.finish() {
        got if got == *digest => Ok(()),
        got => Err(format!("{} has the digest {got}", path.display())),
    }
}

fn describe(action: &str, path: &Path, error: &io::Error) -> String {
    format!("cannot {action} {}: {error}", path.display())
}
