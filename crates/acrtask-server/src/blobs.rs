//! Storage of data that is too large for the database: logs and contexts.
//!
//! The default is a folder. S3 and Azure are selected by URL and use their usual `AWS_*` and
//! `AZURE_*` variables.
//!
//! Invariants:
//!
//! - Data is on disk, or acknowledged by the service, before `put` returns.
//! - Streams need only a few MiB of memory.
//! - Keys consist of generated ids and numbers, never of user input.
//!
//! Left out: listing, because the database contains every key.

use std::{ops::Range, path::PathBuf, str::FromStr, sync::Arc};

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt, stream::BoxStream};
use object_store::{
    GetOptions, GetRange, GetResultPayload, ObjectStore, ObjectStoreExt, PutPayload,
    WriteMultipart, aws::AmazonS3Builder, azure::MicrosoftAzureBuilder, local::LocalFileSystem,
    path::Path, prefix::PrefixStore,
};
use url::Url;

/// Part size of a stream in bytes. The services require at least 5 MiB.
const PART_BYTES: usize = 8 << 20;
/// Maximum number of parts of one stream in progress.
const MAX_PARTS_IN_PROGRESS: usize = 2;

/// Error of the blob storage.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The blob does not exist.
    #[error("the blob `{0}` does not exist")]
    NotFound(String),
    /// The storage cannot be set up.
    #[error("cannot store blobs at `{url}`: {reason}")]
    Setup {
        /// URL or folder of the storage.
        url: String,
        /// Reason, and what to write instead.
        reason: String,
    },
    /// The blob is larger than what was stored.
    #[error("the blob `{key}` has {size} bytes; at most {limit} were stored")]
    TooLarge {
        /// Key of the blob.
        key: String,
        /// Size of the blob in bytes.
        size: u64,
        /// Maximum size in bytes.
        limit: u64,
    },
    /// The storage failed.
    #[error("cannot {attempt} the blob `{key}`")]
    Failed {
        /// Attempted operation: `write`, `read` or `delete`.
        attempt: &'static str,
        /// Key of the blob.
        key: String,
        /// Cause of the failure.
        source: object_store::Error,
    },
    /// The input stream failed.
    #[error("cannot read the data to store")]
    Input(#[source] std::io::Error),
}

impl BlobError {
    fn from_store(attempt: &'static str, key: &str, error: object_store::Error) -> Self {
        match error {
            object_store::Error::NotFound { .. } => Self::NotFound(key.to_owned()),
            source => Self::Failed {
                attempt,
                key: key.to_owned(),
                source,
            },
        }
    }
}

/// Blob storage.
#[derive(Debug, Clone)]
pub struct Blobs {
    store: Arc<dyn ObjectStore>,
}

impl Blobs {
    /// Opens a folder (created if missing), `file:///FOLDER`, `s3://BUCKET/PREFIX` or
    /// `az://CONTAINER/PREFIX`.
    ///
    /// # Errors
    /// [`BlobError::Setup`].
    #[allow(
        clippy::disallowed_methods,
        reason = "the variable belongs to a tool whose conventions apply here"
    )]
    pub fn open(url: &str) -> Result<Self, BlobError> {
        let settings: Vec<(String, String)> = std::env::vars_os()
            .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(key, _)| key.starts_with("AWS_") || key.starts_with("AZURE_"))
            .collect();
        Self::open_with(url, &settings)
    }

    /// Opens the storage with `settings` instead of environment variables.
    fn open_with(url: &str, settings: &[(String, String)]) -> Result<Self, BlobError> {
        let failed = |reason: String| BlobError::Setup {
            url: url.to_owned(),
            reason,
        };
        let parsed = match url.split_once("://") {
            Some(_) => Url::parse(url).map_err(|error| failed(error.to_string()))?,
            None => return Self::open_folder(PathBuf::from(url), url),
        };
        let prefix = Path::from_url_path(parsed.path().trim_matches('/'))
            .map_err(|error| failed(error.to_string()))?;
        // The object store crate builds its own HTTP client with the crypto provider of the
        // process.
        acrtask_registry::install_crypto_provider();
        let built = match parsed.scheme() {
            "file" => {
                let path = parsed
                    .to_file_path()
                    .map_err(|()| failed("write `file:///FOLDER`".into()))?;
                return Self::open_folder(path, url);
            }
            "s3" => {
                let builder = AmazonS3Builder::new().with_url(url);
                apply_settings(builder, settings, AmazonS3Builder::with_config)
                    .build()
                    .map(|store| with_prefix(store, prefix))
            }
            "az" | "azure" | "abfs" | "abfss" => {
                let builder = MicrosoftAzureBuilder::new().with_url(url);
                apply_settings(builder, settings, MicrosoftAzureBuilder::with_config)
                    .build()
                    .map(|store| with_prefix(store, prefix))
            }
            other => {
                return Err(failed(format!(
                    "unknown scheme `{other}`; give a folder, `s3://BUCKET/PREFIX` or `az://CONTAINER/PREFIX`"
                )));
            }
        };
        Ok(Self {
            store: built.map_err(|error| failed(error.to_string()))?,
        })
    }

    fn open_folder(path: PathBuf, url: &str) -> Result<Self, BlobError> {
        let failed = |reason: String| BlobError::Setup {
            url: url.to_owned(),
            reason,
        };
        make_private(&path).map_err(|error| failed(error.to_string()))?;
        let store = LocalFileSystem::new_with_prefix(&path)
            .map_err(|error| failed(error.to_string()))?
            .with_fsync(true)
            .with_automatic_cleanup(true);
        Ok(Self {
            store: Arc::new(store),
        })
    }

    /// Stores `data` under `key`. Replaces an existing blob.
    ///
    /// # Errors
    /// The storage failed.
    pub async fn put(&self, key: &str, data: Bytes) -> Result<(), BlobError> {
        self.store
            .put(&Path::from(key), PutPayload::from_bytes(data))
            .await
            .map_err(|error| BlobError::from_store("write", key, error))?;
        Ok(())
    }

    /// Stores a stream under `key` and returns its length in bytes. Stores nothing if the stream
    /// fails.
    ///
    /// # Errors
    /// [`BlobError::Input`] with the error of the stream, or the storage failed.
    pub async fn put_stream(
        &self,
        key: &str,
        data: impl Stream<Item = std::io::Result<Bytes>> + Send,
    ) -> Result<u64, BlobError> {
        let failed = |error| BlobError::from_store("write", key, error);
        let mut data = std::pin::pin!(data);
        let mut length = 0;
        // Small data is stored with one request.
        let mut head = Vec::new();
        let mut complete = false;
        while head.len() < PART_BYTES && !complete {
            match data.next().await {
                Some(chunk) => head.extend_from_slice(&chunk.map_err(BlobError::Input)?),
                None => complete = true,
            }
        }
        length += head.len() as u64;
        if complete {
            self.put(key, head.into()).await?;
            return Ok(length);
        }
        let upload = self
            .store
            .put_multipart(&Path::from(key))
            .await
            .map_err(failed)?;
        let mut upload = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
        upload.put(head.into());
        while let Some(chunk) = data.next().await {
            let chunk = match chunk {
                Ok(chunk) => chunk,
                Err(error) => {
                    let _ = upload.abort().await;
                    return Err(BlobError::Input(error));
                }
            };
            length += chunk.len() as u64;
            if let Err(error) = upload.wait_for_capacity(MAX_PARTS_IN_PROGRESS).await {
                let _ = upload.abort().await;
                return Err(failed(error));
            }
            upload.put(chunk);
        }
        upload.finish().await.map_err(failed)?;
        Ok(length)
    }

    /// Returns the blob `key`, which may have at most `limit` bytes.
    ///
    /// # Errors
    /// [`BlobError::NotFound`], [`BlobError::TooLarge`], or the storage failed.
    pub async fn get(&self, key: &str, limit: u64) -> Result<Bytes, BlobError> {
        let failed = |error| BlobError::from_store("read", key, error);
        let got = self.store.get(&Path::from(key)).await.map_err(failed)?;
        if got.meta.size > limit {
            return Err(BlobError::TooLarge {
                key: key.to_owned(),
                size: got.meta.size,
                limit,
            });
        }
        if matches!(got.payload, GetResultPayload::File(..)) {
            // As a stream, a file is read in many small parts.
            return got.bytes().await.map_err(failed);
        }
        let length = got.range.end.saturating_sub(got.range.start);
        let mut stream = check_length(got.into_stream(), length);
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.next().await {
            bytes.extend_from_slice(&chunk.map_err(failed)?);
        }
        Ok(bytes.into())
    }

    /// Streams the blob `key` or a range of it.
    ///
    /// # Errors
    /// [`BlobError::NotFound`], or the storage failed. The stream may fail too.
    pub async fn get_stream(
        &self,
        key: &str,
        range: Option<Range<u64>>,
    ) -> Result<BoxStream<'static, std::io::Result<Bytes>>, BlobError> {
        if range.as_ref().is_some_and(Range::is_empty) {
            return Ok(futures::stream::empty().boxed());
        }
        let options = GetOptions {
            range: range.map(GetRange::Bounded),
            ..GetOptions::default()
        };
        let got = self
            .store
            .get_opts(&Path::from(key), options)
            .await
            .map_err(|error| BlobError::from_store("read", key, error))?;
        let length = got.range.end.saturating_sub(got.range.start);
        let stream = check_length(got.into_stream(), length);
        Ok(stream.map_err(std::io::Error::other).boxed())
    }

    /// Removes blobs. A missing blob counts as removed.
    ///
    /// # Errors
    /// The first failure. All blobs were attempted.
    pub async fn delete(&self, keys: &[String]) -> Result<(), BlobError> {
        let Some(key) = keys.first() else {
            return Ok(());
        };
        let mut first = Ok(());
        // The service deletes in bulk if it can.
        let paths: Vec<_> = keys
            .iter()
            .map(|key| Ok(Path::from(key.as_str())))
            .collect();
        let mut results = self
            .store
            .delete_stream(futures::stream::iter(paths).boxed());
        while let Some(result) = results.next().await {
            match result {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) if first.is_ok() => {
                    first = Err(BlobError::from_store("delete", key, error))
                }
                Err(_) => {}
            }
        }
        first
    }
}

/// Ends a stream with an error if its length differs from `length`, which the service announced.
fn check_length(
    stream: BoxStream<'static, object_store::Result<Bytes>>,
    length: u64,
) -> BoxStream<'static, object_store::Result<Bytes>> {
    let wrong = move |seen: u64| object_store::Error::Generic {
        store: "the blob storage",
        source: format!("it announced {length} bytes and sent {seen} or more").into(),
    };
    futures::stream::try_unfold((stream, 0u64), move |(mut stream, seen)| async move {
        match stream.try_next().await? {
            Some(chunk) => {
                let seen = seen.saturating_add(chunk.len() as u64);
                match seen > length {
                    true => Err(wrong(seen)),
                    false => Ok(Some((chunk, (stream, seen)))),
                }
            }
            None if seen < length => Err(wrong(seen)),
            None => Ok(None),
        }
    })
    .boxed()
}

/// Applies the settings that the builder accepts.
fn apply_settings<B, K: FromStr>(
    builder: B,
    settings: &[(String, String)],
    with: impl Fn(B, K, String) -> B,
) -> B {
    settings.iter().fold(builder, |builder, (key, value)| {
        match key.to_ascii_lowercase().parse() {
            Ok(key) => with(builder, key, value.clone()),
            Err(_) => builder,
        }
    })
}

fn with_prefix(store: impl ObjectStore, prefix: Path) -> Arc<dyn ObjectStore> {
    if prefix.as_ref().is_empty() {
        Arc::new(store)
    } else {
        Arc::new(PrefixStore::new(store, prefix))
    }
}

/// Creates a folder that only its owner can enter. Restricts an existing folder that others can
/// enter.
fn make_private(folder: &std::path::Path) -> std::io::Result<()> {
    let mut make = std::fs::DirBuilder::new();
    make.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut make, 0o700);
    make.create(folder)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(folder)?.permissions().mode();
        if mode & 0o077 != 0 {
            tracing::warn!(
                folder = %folder.display(),
                mode = format!("{:o}", mode & 0o777),
                "restricting the folder of logs and contexts to its owner"
            );
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "blobs_tests.rs"]
mod tests;
