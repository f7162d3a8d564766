//! Where bytes are kept that are too many for the database: logs and contexts.
//!
//! A folder by default; S3 and Azure by URL, with their usual `AWS_*` and `AZURE_*` variables. Invariants: what was put is
//! on disk (or answered for by the service) before `put` returns; streams are held in memory only a few MiB at a time;
//! keys are made of ids and numbers of ours, never of what a user wrote. Left out: listing, since the database knows
//! every key.

use std::{ops::Range, path::PathBuf, str::FromStr, sync::Arc};

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt, stream::BoxStream};
use object_store::{
    GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutPayload, WriteMultipart,
    aws::AmazonS3Builder, azure::MicrosoftAzureBuilder, local::LocalFileSystem, path::Path,
    prefix::PrefixStore,
};
use url::Url;

/// Bytes of a stream that are sent at once; the services want at least 5 MiB.
const PART: usize = 8 << 20;
/// Parts of one stream that may be under way at once.
const PARTS_UNDER_WAY: usize = 2;

/// Why bytes could not be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// There is nothing under the key.
    #[error("there is no blob `{0}`")]
    NotFound(String),
    /// The place for blobs cannot be used.
    #[error("cannot keep blobs at `{url}`: {reason}")]
    Setup {
        /// The place.
        url: String,
        /// Why, and what to write instead.
        reason: String,
    },
    /// There is more under the key than was kept there.
    #[error("the blob `{key}` has {size} bytes, and at most {limit} were kept there")]
    TooLarge {
        /// Its key.
        key: String,
        /// What it has.
        size: u64,
        /// What it may have.
        limit: u64,
    },
    /// The place for blobs failed.
    #[error("cannot {attempt} the blob `{key}`")]
    Failed {
        /// `write`, `read`, `delete`.
        attempt: &'static str,
        /// Its key.
        key: String,
        /// Why.
        source: object_store::Error,
    },
    /// The stream that was to be kept broke off.
    #[error("what was to be written broke off")]
    Input(#[source] std::io::Error),
}

impl BlobError {
    fn of(attempt: &'static str, key: &str, error: object_store::Error) -> Self {
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

/// The place for blobs.
#[derive(Debug, Clone)]
pub struct Blobs {
    store: Arc<dyn ObjectStore>,
}

impl Blobs {
    /// A folder (made where it is missing), `file:///FOLDER`, `s3://BUCKET/PREFIX` or `az://CONTAINER/PREFIX`.
    ///
    /// # Errors
    /// [`BlobError::Setup`].
    pub fn open(url: &str) -> Result<Self, BlobError> {
        let settings: Vec<(String, String)> = std::env::vars_os()
            .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(key, _)| key.starts_with("AWS_") || key.starts_with("AZURE_"))
            .collect();
        Self::with(url, &settings)
    }

    /// The same with settings in place of variables.
    fn with(url: &str, settings: &[(String, String)]) -> Result<Self, BlobError> {
        let failed = |reason: String| BlobError::Setup {
            url: url.to_owned(),
            reason,
        };
        let parsed = match url.split_once("://") {
            Some(_) => Url::parse(url).map_err(|error| failed(error.to_string()))?,
            None => return Self::folder(PathBuf::from(url), url),
        };
        let prefix = Path::from_url_path(parsed.path().trim_matches('/'))
            .map_err(|error| failed(error.to_string()))?;
        // The client for the services is built inside their crate, with the provider of the process.
        acrtask_registry::install_crypto_provider();
        let built = match parsed.scheme() {
            "file" => {
                let path = parsed
                    .to_file_path()
                    .map_err(|()| failed("write `file:///FOLDER`".into()))?;
                return Self::folder(path, url);
            }
            "s3" => {
                let builder = AmazonS3Builder::new().with_url(url);
                set(builder, settings, AmazonS3Builder::with_config)
                    .build()
                    .map(|store| prefixed(store, prefix))
            }
            "az" | "azure" | "abfs" | "abfss" => {
                let builder = MicrosoftAzureBuilder::new().with_url(url);
                set(builder, settings, MicrosoftAzureBuilder::with_config)
                    .build()
                    .map(|store| prefixed(store, prefix))
            }
            other => {
                return Err(failed(format!(
                    "`{other}` is not known; give a folder, `s3://BUCKET/PREFIX` or `az://CONTAINER/PREFIX`"
                )));
            }
        };
        Ok(Self {
            store: built.map_err(|error| failed(error.to_string()))?,
        })
    }

    fn folder(path: PathBuf, url: &str) -> Result<Self, BlobError> {
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

    /// Keeps `data` under `key`, in place of what was there.
    ///
    /// # Errors
    /// When the place for blobs fails.
    pub async fn put(&self, key: &str, data: Bytes) -> Result<(), BlobError> {
        self.store
            .put(&Path::from(key), PutPayload::from_bytes(data))
            .await
            .map_err(|error| BlobError::of("write", key, error))?;
        Ok(())
    }

    /// Keeps all of `data` under `key`, and tells how many bytes that were. Nothing is kept where the stream breaks off.
    ///
    /// # Errors
    /// [`BlobError::Input`] with the stream's own error, or when the place for blobs fails.
    pub async fn put_stream(
        &self,
        key: &str,
        data: impl Stream<Item = std::io::Result<Bytes>> + Send,
    ) -> Result<u64, BlobError> {
        let failed = |error| BlobError::of("write", key, error);
        let mut data = std::pin::pin!(data);
        let mut length = 0;
        // What is small goes in one request.
        let mut head = Vec::new();
        let mut over = false;
        while head.len() < PART && !over {
            match data.next().await {
                Some(chunk) => head.extend_from_slice(&chunk.map_err(BlobError::Input)?),
                None => over = true,
            }
        }
        length += head.len() as u64;
        if over {
            self.put(key, head.into()).await?;
            return Ok(length);
        }
        let upload = self
            .store
            .put_multipart(&Path::from(key))
            .await
            .map_err(failed)?;
        let mut upload = WriteMultipart::new_with_chunk_size(upload, PART);
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
            if let Err(error) = upload.wait_for_capacity(PARTS_UNDER_WAY).await {
                let _ = upload.abort().await;
                return Err(failed(error));
            }
            upload.put(chunk);
        }
        upload.finish().await.map_err(failed)?;
        Ok(length)
    }

    /// All that is under `key`, at most `limit` bytes.
    ///
    /// # Errors
    /// [`BlobError::NotFound`], [`BlobError::TooLarge`], or when the place for blobs fails.
    pub async fn get(&self, key: &str, limit: u64) -> Result<Bytes, BlobError> {
        let failed = |error| BlobError::of("read", key, error);
        let got = self.store.get(&Path::from(key)).await.map_err(failed)?;
        if got.meta.size > limit {
            return Err(BlobError::TooLarge {
                key: key.to_owned(),
                size: got.meta.size,
                limit,
            });
        }
        let length = got.range.end.saturating_sub(got.range.start);
        let mut stream = exactly(got.into_stream(), length);
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.next().await {
            bytes.extend_from_slice(&chunk.map_err(failed)?);
        }
        Ok(bytes.into())
    }

    /// What is under `key`, or a part of it, a little at a time.
    ///
    /// # Errors
    /// [`BlobError::NotFound`], or when the place for blobs fails; the stream may fail too.
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
            .map_err(|error| BlobError::of("read", key, error))?;
        let length = got.range.end.saturating_sub(got.range.start);
        let stream = exactly(got.into_stream(), length);
        Ok(stream.map_err(std::io::Error::other).boxed())
    }

    /// Removes blobs; one that is not there is as good as removed.
    ///
    /// # Errors
    /// The first failure; the others were tried all the same.
    pub async fn delete(&self, keys: &[String]) -> Result<(), BlobError> {
        let Some(key) = keys.first() else {
            return Ok(());
        };
        let mut first = Ok(());
        // In bulk where the service can do that.
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
                Err(error) if first.is_ok() => first = Err(BlobError::of("delete", key, error)),
                Err(_) => {}
            }
        }
        first
    }
}

/// Ends a stream with an error where it has more or fewer bytes than `length`, which the service itself named.
fn exactly(
    stream: BoxStream<'static, object_store::Result<Bytes>>,
    length: u64,
) -> BoxStream<'static, object_store::Result<Bytes>> {
    let wrong = move |seen: u64| object_store::Error::Generic {
        store: "the place for blobs",
        source: format!("it named {length} bytes and sent {seen} or more").into(),
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

/// Gives a builder the settings that it knows.
fn set<B, K: FromStr>(
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

fn prefixed(store: impl ObjectStore, prefix: Path) -> Arc<dyn ObjectStore> {
    if prefix.as_ref().is_empty() {
        Arc::new(store)
    } else {
        Arc::new(PrefixStore::new(store, prefix))
    }
}

/// Makes a folder that its owner alone can enter, and closes one that others can.
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
                "closing the folder of logs and contexts to other users of the machine"
            );
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "blobs_tests.rs"]
mod tests;
