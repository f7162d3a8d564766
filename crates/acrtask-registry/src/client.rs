//! Read operations of the registry client.

use std::{collections::BTreeMap, pin::Pin, sync::Arc, time::Duration};

use acrtask_model::{Digest, ImageRef};
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use reqwest::{Method, Response, header};
use tokio::time::Instant;

use crate::{
    credentials::Credentials,
    error::RegistryError,
    manifest::{ACCEPT, Hasher, Manifest, ManifestBody, Platform, platforms},
    net::AddressPolicy,
    transport::{Body, Call, MEMORY_TIME, RequestOptions, Transport, read_limited, timeout_error},
};

/// Maximum size of a manifest, in bytes. The distribution specification lets a registry refuse
/// larger ones.
const MAX_MANIFEST: u64 = 4 << 20;
/// Maximum size of an image configuration, in bytes.
const MAX_CONFIG: u64 = 8 << 20;

/// Connection settings of the client.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Hosts to contact without TLS, in addition to loopback.
    pub insecure: Vec<String>,
    /// Addresses that the client may connect to.
    pub addresses: AddressPolicy,
}

/// Client for all registries. Clones share connections and tokens.
#[derive(Debug, Clone)]
pub struct Registry {
    pub(crate) transport: Arc<Transport>,
}

/// Manifest that a reference currently resolves to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedManifest {
    /// Digest of the index or manifest.
    pub digest: Digest,
    /// Media type of the index or manifest.
    pub media_type: String,
    /// Size in bytes.
    pub size: u64,
}

/// Content of a blob as it arrives. The last item is an error if the blob has another digest or
/// exceeds the limit.
pub type BlobStream = Pin<Box<dyn Stream<Item = Result<Bytes, RegistryError>> + Send>>;

impl Registry {
    /// Creates a client that uses `credentials`.
    ///
    /// # Errors
    /// [`RegistryError::Setup`].
    pub fn new(credentials: Credentials, settings: Settings) -> Result<Self, RegistryError> {
        Ok(Self {
            transport: Arc::new(Transport::new(credentials, settings)?),
        })
    }

    /// Resolves `reference` to a manifest. Checks that the manifest exists if the reference has a
    /// digest. A reference without a tag and a digest means `latest`.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn resolve(&self, reference: &ImageRef) -> Result<ResolvedManifest, RegistryError> {
        let attempt = format!("resolve {reference}");
        let response = match self
            .request_manifest(reference, Method::HEAD, attempt.clone())
            .await
        {
            Ok(response) => response,
            // Some registries and some proxies support only GET.
            Err(RegistryError::Refused {
                status: 400 | 405 | 501,
                ..
            }) => return self.resolve_by_get(reference).await,
            Err(error) => return Err(error),
        };
        match parse_head_response(&response, &attempt, reference)? {
            Some(resolved) => Ok(resolved),
            None => self.resolve_by_get(reference).await,
        }
    }

    pub(crate) async fn resolve_by_get(
        &self,
        reference: &ImageRef,
    ) -> Result<ResolvedManifest, RegistryError> {
        let manifest = self.manifest(reference).await?;
        Ok(ResolvedManifest {
            digest: manifest.digest,
            media_type: manifest.media_type,
            size: manifest.raw.len() as u64,
        })
    }

    /// Reads the index or manifest of `reference`, and checks it against its digest.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn manifest(&self, reference: &ImageRef) -> Result<Manifest, RegistryError> {
        let attempt = format!("read the manifest of {reference}");
        let response = self
            .request_manifest(reference, Method::GET, attempt.clone())
            .await?;
        let header = |name: &str| {
            let value = response.headers().get(name)?;
            Some(value.to_str().ok()?.to_owned())
        };
        let content_type = header(header::CONTENT_TYPE.as_str());
        let announced = header("docker-content-digest").and_then(|text| text.parse().ok());
        let raw = read_limited(response, MAX_MANIFEST, &attempt, reference.registry()).await?;
        let mut manifest = Manifest::parse(raw, content_type.as_deref()).map_err(|reason| {
            RegistryError::Invalid {
                attempt: attempt.clone(),
                reason,
            }
        })?;
        if let Some(wanted) = reference.digest().or(announced.as_ref()) {
            let mut hasher = Hasher::for_digest(wanted);
            hasher.update(&manifest.raw);
            manifest.digest = hasher.finish();
            check_digest(&attempt, Some(wanted), &manifest.digest)?;
        }
        Ok(manifest)
    }

    async fn request_manifest(
        &self,
        reference: &ImageRef,
        method: Method,
        attempt: String,
    ) -> Result<Response, RegistryError> {
        self.request_manifest_with(reference, method, attempt, RequestOptions::default())
            .await
    }

    pub(crate) async fn request_manifest_with(
        &self,
        reference: &ImageRef,
        method: Method,
        attempt: String,
        options: RequestOptions<'_>,
    ) -> Result<Response, RegistryError> {
        let name = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => digest.as_str(),
            (None, tag) => tag.unwrap_or("latest"),
        };
        let call = Call {
            attempt,
            host: reference.registry(),
            method,
            url: self
                .transport
                .url(reference, &format!("manifests/{name}"))?,
            scopes: vec![pull_scope(reference)],
            accept: &ACCEPT,
            body: Body::None,
        };
        self.transport.send_with(call, options).await
    }

    /// Returns the images of `reference` by platform, without attestations. The platform of a
    /// single image comes from its configuration.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn platforms(
        &self,
        reference: &ImageRef,
    ) -> Result<BTreeMap<Platform, Digest>, RegistryError> {
        let manifest = self.manifest(reference).await?;
        match &manifest.body {
            ManifestBody::Index(index) => Ok(platforms(index)),
            ManifestBody::Image(image) => {
                let platform = self
                    .config_platform(reference, &image.config.digest)
                    .await?;
                Ok(platform
                    .map(|platform| (platform, manifest.digest))
                    .into_iter()
                    .collect())
            }
        }
    }

    /// Returns the platform of an image configuration. `None` if the blob is not an image
    /// configuration.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn config_platform(
        &self,
        reference: &ImageRef,
        config: &Digest,
    ) -> Result<Option<Platform>, RegistryError> {
        let config = self.blob_bytes(reference, config, MAX_CONFIG).await?;
        Ok(serde_json::from_slice(&config).ok())
    }

    /// Reads a blob of the repository of `reference`, at most `limit` bytes.
    ///
    /// # Errors
    /// [`RegistryError`]. An error after the first byte is an item of the stream.
    pub async fn blob(
        &self,
        reference: &ImageRef,
        digest: &Digest,
        limit: u64,
    ) -> Result<BlobStream, RegistryError> {
        let attempt = format!("read the blob {digest} of {}", reference.name());
        let call = self.blob_call(reference, digest, &attempt)?;
        let response = self.transport.send(call).await?;
        Ok(verify_stream(
            response,
            digest.clone(),
            limit,
            attempt,
            reference.registry().into(),
        ))
    }

    /// Builds the call that reads a blob.
    pub(crate) fn blob_call<'r>(
        &self,
        reference: &'r ImageRef,
        digest: &Digest,
        attempt: &str,
    ) -> Result<Call<'r>, RegistryError> {
        Ok(Call {
            attempt: attempt.to_owned(),
            host: reference.registry(),
            method: Method::GET,
            url: self.transport.url(reference, &format!("blobs/{digest}"))?,
            scopes: vec![pull_scope(reference)],
            accept: &["*/*"],
            body: Body::None,
        })
    }

    /// Reads a whole blob into memory.
    ///
    /// # Errors
    /// [`RegistryError`]. [`RegistryError::TooLarge`] if the blob has more than `limit` bytes.
    pub async fn blob_bytes(
        &self,
        reference: &ImageRef,
        digest: &Digest,
        limit: u64,
    ) -> Result<Bytes, RegistryError> {
        let mut stream = self.blob(reference, digest, limit).await?;
        let reading = async {
            let mut bytes = Vec::new();
            while let Some(chunk) = stream.next().await {
                bytes.extend_from_slice(&chunk?);
            }
            Ok(bytes.into())
        };
        match tokio::time::timeout(MEMORY_TIME, reading).await {
            Ok(bytes) => bytes,
            Err(_) => {
                let attempt = format!("read the blob {digest} of {}", reference.name());
                Err(timeout_error(&attempt, reference.registry()))
            }
        }
    }
}

/// Parses the headers of a response to HEAD. `None` if a header is missing or has an unsupported
/// value.
pub(crate) fn parse_head_response(
    response: &Response,
    attempt: &str,
    reference: &ImageRef,
) -> Result<Option<ResolvedManifest>, RegistryError> {
    let text = |name: &str| {
        response
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
    };
    let digest = text("docker-content-digest").and_then(|text| text.parse::<Digest>().ok());
    let media_type = text("content-type")
        .and_then(|text| text.split(';').next())
        .map(str::trim);
    let size = text("content-length").and_then(|text| text.parse().ok());
    match (digest, media_type, size) {
        (Some(digest), Some(media_type), Some(size)) if ACCEPT.contains(&media_type) => {
            check_digest(attempt, reference.digest(), &digest)?;
            Ok(Some(ResolvedManifest {
                digest,
                media_type: media_type.into(),
                size,
            }))
        }
        _ => Ok(None),
    }
}

/// Waiting time after which the client checks the transfer rate of a blob.
const RATE_TIME: Duration = Duration::from_secs(60);
/// Minimum number of bytes that arrive within [`RATE_TIME`]. A slower server counts as dead, as for
/// git.
const RATE_BYTES: u64 = 60_000;

/// Returns the body of a response as a stream. The stream ends with an error if the body has
/// another digest than `digest`.
pub(crate) fn verify_stream(
    response: Response,
    digest: Digest,
    limit: u64,
    attempt: String,
    host: String,
) -> BlobStream {
    struct State {
        response: Response,
        hasher: Hasher,
        seen: u64,
        /// Time spent waiting for the server since the last check of the rate.
        /// Bytes that arrived since the last check of the rate.
        waited: Duration,
        arrived: u64,
    }
    let state = State {
        response,
        hasher: Hasher::for_digest(&digest),
        seen: 0,
        waited: Duration::ZERO,
        arrived: 0,
    };
    let context = Arc::new((digest, limit, attempt, host));
    Box::pin(futures::stream::try_unfold(Some(state), move |state| {
        let context = context.clone();
        async move {
            let (digest, limit, attempt, host) = &*context;
            let Some(mut state) = state else {
                return Ok(None);
            };
            let begun = Instant::now();
            let chunk = state.response.chunk().await;
            state.waited += begun.elapsed();
            match chunk {
                Ok(Some(chunk)) => {
                    state.seen += chunk.len() as u64;
                    state.arrived += chunk.len() as u64;
                    if state.waited >= RATE_TIME {
                        if state.arrived < RATE_BYTES {
                            return Err(RegistryError::Unreachable {
                                attempt: attempt.clone(),
                                host: host.clone(),
                                source: format!(
                                    "fewer than {RATE_BYTES} bytes arrived within {} s",
                                    RATE_TIME.as_secs()
                                )
                                .into(),
                            });
                        }
                        (state.waited, state.arrived) = (Duration::ZERO, 0);
                    }
                    if state.seen > *limit {
                        return Err(RegistryError::TooLarge {
                            attempt: attempt.clone(),
                            limit: *limit,
                        });
                    }
                    state.hasher.update(&chunk);
                    Ok(Some((chunk, Some(state))))
                }
                Ok(None) => {
                    check_digest(attempt, Some(digest), &state.hasher.finish())?;
                    Ok(None)
                }
                Err(error) => Err(RegistryError::Unreachable {
                    attempt: attempt.clone(),
                    host: host.clone(),
                    source: Box::new(error.without_url()),
                }),
            }
        }
    }))
}

fn check_digest(attempt: &str, wanted: Option<&Digest>, got: &Digest) -> Result<(), RegistryError> {
    match wanted {
        Some(wanted) if wanted != got => Err(RegistryError::Invalid {
            attempt: attempt.to_owned(),
            reason: format!("its digest should be {wanted} and is {got}"),
        }),
        _ => Ok(()),
    }
}

/// Returns the scope that grants read access to the repository.
pub(crate) fn pull_scope(reference: &ImageRef) -> String {
    format!("repository:{}:pull", reference.repository())
}

/// Returns the scope that grants write access to the repository.
pub(crate) fn push_scope(reference: &ImageRef) -> String {
    format!("repository:{}:pull,push", reference.repository())
}
