//! Folder with OCI image layout: blobs by digest, and an index that names some of them.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const INDEX: &str = "index.json";
/// Maximum size of an index, in bytes.
const MAX_INDEX: u64 = 4 << 20;

/// Folder with OCI image layout.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    root: PathBuf,
}

/// Error of using the folder.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LayoutError {
    #[error("content {digest}: not found")]
    NotFound { digest: String },
    #[error("{digest:?} is not a SHA-256 digest")]
    Digest { digest: String },
    #[error("the content has the digest {got}, not {expected}")]
    Mismatch { expected: String, got: String },
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{} names no image {wanted}", path.display())]
    Index { path: PathBuf, wanted: String },
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LayoutError {
    move |source| LayoutError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

impl Layout {
    /// Opens an existing layout.
    pub(crate) fn open_existing(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// Creates the missing parts of a layout.
    pub(crate) fn create(root: &Path) -> Result<Self, LayoutError> {
        for folder in ["blobs/sha256", "ingest"] {
            let folder = root.join(folder);
            fs::create_dir_all(&folder).map_err(io_error("create", &folder))?;
        }
        let marker = root.join("oci-layout");
        fs::write(&marker, r#"{"imageLayoutVersion":"1.0.0"}"#)
            .map_err(io_error("write", &marker))?;
        Ok(Self {
            root: root.to_owned(),
        })
    }

    fn blob_path(&self, digest: &str) -> Result<PathBuf, LayoutError> {
        match digest.strip_prefix("sha256:") {
            Some(hex)
                if hex.len() == 64
                    && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) =>
            {
                Ok(self.root.join("blobs/sha256").join(hex))
            }
            _ => Err(LayoutError::Digest {
                digest: digest.to_owned(),
            }),
        }
    }

    /// Returns the file of a blob. Refuses a link that leads out of the folder, because it could
    /// lead to a private layer in the store of an engine.
    fn find_blob(&self, digest: &str) -> Result<PathBuf, LayoutError> {
        let path = self.blob_path(digest)?;
        match file_inside(&self.root, &path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(LayoutError::NotFound {
                digest: digest.to_owned(),
            }),
            file => file.map_err(io_error("read", &path)),
        }
    }

    pub(super) fn size(&self, digest: &str) -> Result<u64, LayoutError> {
        let path = self.find_blob(digest)?;
        let metadata = fs::metadata(&path).map_err(io_error("read", &path))?;
        Ok(metadata.len())
    }

    /// Opens a blob at `offset`. Returns it with the number of bytes to read: `size`, or all
    /// remaining bytes if `size` is 0.
    pub(super) fn open_blob(
        &self,
        digest: &str,
        offset: i64,
        size: i64,
    ) -> Result<(File, u64), LayoutError> {
        let length = self.size(digest)?;
        let path = self.find_blob(digest)?;
        let mut file = File::open(&path).map_err(io_error("open", &path))?;
        let offset = u64::try_from(offset).unwrap_or(0).min(length);
        file.seek(SeekFrom::Start(offset))
            .map_err(io_error("read", &path))?;
        let left = length - offset;
        Ok((
            file,
            u64::try_from(size)
                .ok()
                .filter(|size| *size > 0)
                .map_or(left, |size| size.min(left)),
        ))
    }

    pub(super) fn start_ingest(&self) -> Result<Ingest, LayoutError> {
        let path = self.root.join("ingest").join(crate::random_id());
        let file = File::create_new(&path).map_err(io_error("create", &path))?;
        Ok(Ingest {
            layout: self.clone(),
            path,
            file,
            hash: Sha256::new(),
            written: 0,
        })
    }

    /// Returns the digest of the tag in the index, or the only digest in the index.
    pub(crate) fn resolve(&self, tag: &str) -> Result<String, LayoutError> {
        let path = self.root.join(INDEX);
        let text = read_index(&self.root).map_err(io_error("read", &path))?;
        let index: Value = serde_json::from_slice(&text).map_err(|e| LayoutError::Io {
            action: "read",
            path: path.clone(),
            source: e.into(),
        })?;
        let manifests = index["manifests"].as_array().cloned().unwrap_or_default();
        let named = manifests
            .iter()
            .find(|m| m["annotations"][REF_NAME].as_str() == Some(tag));
        let only = if manifests.len() == 1 {
            manifests.first()
        } else {
            None
        };
        named
            .or(only)
            .and_then(|m| m["digest"].as_str())
            .map(str::to_owned)
            .ok_or_else(|| LayoutError::Index {
                path,
                wanted: tag.to_owned(),
            })
    }

    /// Adds the descriptor to the index under the tag. Replaces another one with this tag.
    pub(crate) fn set_tag(&self, mut descriptor: Value, tag: &str) -> Result<(), LayoutError> {
        let path = self.root.join(INDEX);
        let mut index = match read_index(&self.root) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or(Value::Null),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Value::Null,
            Err(source) => {
                return Err(LayoutError::Io {
                    action: "read",
                    path,
                    source,
                });
            }
        };
        if !index.is_object() {
            index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []});
        }
        descriptor["annotations"][REF_NAME] = tag.into();
        let mut manifests = index["manifests"].as_array().cloned().unwrap_or_default();
        manifests.retain(|m| m["annotations"][REF_NAME].as_str() != Some(tag));
        manifests.push(descriptor);
        index["manifests"] = manifests.into();
        let draft = self.root.join(format!("{INDEX}.{}", crate::random_id()));
        fs::write(&draft, index.to_string()).map_err(io_error("write", &draft))?;
        fs::rename(&draft, &path).map_err(io_error("replace", &path))
    }
}

/// Returns the path of a regular file below `root`, without links. A task may have written the
/// folder: a device may be endless, and a link may lead anywhere.
fn file_inside(root: &Path, path: &Path) -> io::Result<PathBuf> {
    let path = fs::canonicalize(path)?;
    if path.starts_with(fs::canonicalize(root)?) && fs::metadata(&path)?.is_file() {
        Ok(path)
    } else {
        let reason = "it is not a regular file of the folder";
        Err(io::Error::new(io::ErrorKind::InvalidData, reason))
    }
}

/// Reads the index of the folder `root`.
fn read_index(root: &Path) -> io::Result<Vec<u8>> {
    let path = file_inside(root, &root.join(INDEX))?;
    let mut text = Vec::new();
    File::open(path)?
        .take(MAX_INDEX + 1)
        .read_to_end(&mut text)?;
    if text.len() as u64 > MAX_INDEX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("it has more than {MAX_INDEX} bytes"),
        ));
    }
    Ok(text)
}

/// Unfinished blob. Removed if it is dropped before its commit.
pub(super) struct Ingest {
    layout: Layout,
    path: PathBuf,
    file: File,
    hash: Sha256,
    written: u64,
}

impl Ingest {
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    pub(super) fn write(&mut self, data: &[u8]) -> Result<(), LayoutError> {
        self.file
            .write_all(data)
            .map_err(io_error("write", &self.path))?;
        self.hash.update(data);
        self.written += data.len() as u64;
        Ok(())
    }

    /// Moves the blob to its final path. `expected` may be empty.
    pub(super) fn commit(mut self, expected: &str) -> Result<String, LayoutError> {
        let hash = std::mem::take(&mut self.hash).finalize();
        let mut got = String::from("sha256:");
        for byte in hash {
            got.push_str(&format!("{byte:02x}"));
        }
        if !expected.is_empty() && expected != got {
            return Err(LayoutError::Mismatch {
                expected: expected.to_owned(),
                got,
            });
        }
        let target = self.layout.blob_path(&got)?;
        fs::rename(&self.path, &target).map_err(io_error("create", &target))?;
        Ok(got)
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        // The file does not exist after a commit.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    #[test]
    fn layout_refuses_links_out_of_the_folder() {
        let (folder, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let layout = Layout::create(folder.path()).unwrap();
        let digest = |letter: &str| format!("sha256:{}", letter.repeat(64));
        let blobs = folder.path().join("blobs/sha256");
        let outside = other.path().join("layer");
        fs::write(&outside, "private").unwrap();
        fs::write(folder.path().join("inside"), "own").unwrap();
        for (letter, target) in [
            ("a", outside.as_path()),
            ("b", Path::new("/dev/zero")),
            ("c", Path::new("../../inside")),
        ] {
            symlink(target, blobs.join(letter.repeat(64))).unwrap();
        }
        assert!(layout.open_blob(&digest("a"), 0, 0).is_err());
        assert!(layout.open_blob(&digest("b"), 0, 0).is_err());
        assert_eq!(layout.open_blob(&digest("c"), 0, 0).unwrap().1, 3);
        assert!(matches!(
            layout.size(&digest("d")),
            Err(LayoutError::NotFound { .. })
        ));
        symlink(&outside, folder.path().join(INDEX)).unwrap();
        let refused = layout.resolve("latest").unwrap_err();
        assert!(matches!(refused, LayoutError::Io { .. }), "{refused}");
        // The folder of the blobs must not be a link either.
        fs::write(other.path().join("e".repeat(64)), "private").unwrap();
        fs::remove_dir_all(&blobs).unwrap();
        symlink(other.path(), &blobs).unwrap();
        assert!(layout.size(&digest("e")).is_err());
    }

    #[test]
    fn set_tag_replaces_earlier_tags() {
        let folder = TempDir::new().unwrap();
        let layout = Layout::create(folder.path()).unwrap();
        layout
            .set_tag(json!({"digest": "sha256:a"}), "latest")
            .unwrap();
        layout
            .set_tag(json!({"digest": "sha256:b"}), "other")
            .unwrap();
        layout
            .set_tag(json!({"digest": "sha256:c"}), "latest")
            .unwrap();
        assert_eq!(layout.resolve("latest").unwrap(), "sha256:c");
        assert_eq!(layout.resolve("other").unwrap(), "sha256:b");
        assert!(matches!(
            layout.resolve("absent"),
            Err(LayoutError::Index { .. })
        ));
    }
}
