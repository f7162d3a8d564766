//! Client for downloads from the batch API of Git LFS.
//!
//! Invariants:
//! - Every address, from the repository or from the server, must satisfy the policy of the context.
//! - The user's login is sent only to the endpoint and its origin. The headers that the server
//!   sends for a download go only to that address.
//! - No secret is sent to another machine without TLS.
//! - An object matches the digest and the size of its pointer.
//!
//! Source: git-lfs, `docs/api/batch.md`, `docs/api/authentication.md`.

use std::{collections::BTreeMap, path::Path, time::Duration};

use acrtask_model::Secret;
use acrtask_registry::net;
use futures::StreamExt as _;
use reqwest::{
    RequestBuilder, Response, StatusCode,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;
use tokio::io::AsyncWriteExt as _;
use url::Url;

use super::pointer::Pointer;
use crate::{
    Options,
    error::SourceError,
    git::{self, Git},
    http::check_policy,
    spec::redact_url,
};

/// Maximum size of a batch response, in bytes.
const MAX_RESPONSE: usize = 4 << 20;
/// Maximum number of attempts of a request.
const ATTEMPTS: u32 = 3;
const JSON: &str = "application/vnd.git-lfs+json";

/// Client for the server with a repository's objects.
pub(super) struct Client<'a> {
    /// HTTP client without redirects.
    strict: reqwest::Client,
    /// HTTP client that follows redirects, and drops a login for another host.
    following: reqwest::Client,
    endpoint: Url,
    login: Option<(String, Secret)>,
    /// Request headers that the server named by ssh.
    headers: HeaderMap,
    repository: &'a str,
    options: &'a Options,
}

#[derive(Serialize)]
struct BatchRequest<'p> {
    operation: &'static str,
    transfers: [&'static str; 1],
    hash_algo: &'static str,
    objects: Vec<RequestedObject<'p>>,
}

#[derive(Serialize)]
struct RequestedObject<'p> {
    oid: &'p str,
    size: u64,
}

#[derive(Deserialize)]
struct BatchResponse {
    #[serde(default)]
    transfer: Option<String>,
    objects: Vec<ObjectResponse>,
}

#[derive(Deserialize)]
struct ObjectResponse {
    oid: String,
    #[serde(default)]
    actions: Option<Actions>,
    #[serde(default)]
    authenticated: bool,
    #[serde(default)]
    error: Option<ObjectError>,
}

#[derive(Deserialize)]
struct Actions {
    #[serde(default)]
    download: Option<Link>,
}

/// Address and headers of a request.
#[derive(Deserialize)]
struct Link {
    href: String,
    #[serde(default)]
    header: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct ObjectError {
    #[serde(default)]
    code: u16,
    #[serde(default)]
    message: String,
}

/// Location of an object.
pub(super) struct Action {
    link: Link,
    authenticated: bool,
}

impl<'a> Client<'a> {
    /// Finds the server: from `.lfsconfig`, or else by ssh, or else at the default address.
    pub(super) async fn new(git: &'a Git, options: &'a Options) -> Result<Self, SourceError> {
        let repository = &git.url.url;
        let broken = |reason: String| lfs_error(repository, None, reason);
        let mut headers = HeaderMap::new();
        let named = git.read_configuration(".lfsconfig", r"^lfs\.url$").await?;
        let mut endpoint = match named.into_iter().next_back() {
            Some((_, text)) => Url::parse(&text)
                .map_err(|_| broken("`lfs.url` of .lfsconfig is not a URL".into()))?,
            None => match authenticate_by_ssh(git).await? {
                Some(link) => {
                    headers = link.headers().map_err(&broken)?;
                    let href = Url::parse(&link.href);
                    href.map_err(|_| {
                        broken("the server named an address that is not a URL".into())
                    })?
                }
                None => super::default_endpoint(&git.address).ok_or_else(|| {
                    broken("Git LFS requires a repository with an https:// or ssh:// URL".into())
                })?,
            },
        };
        let remote = Url::parse(&git.address.url).ok();
        let beside = remote.is_some_and(|remote| same_origin(&remote, &endpoint));
        let login = git::find_login(
            &endpoint,
            git.address.credential.as_ref().filter(|_| beside),
            options,
        );
        // A redirect to another origin drops the login.
        let login = login.filter(|_| git.keeps_login || !beside);
        // A file of the repository contains no secret worth keeping, and must not choose the login.
        let _ = endpoint.set_password(None);
        let _ = endpoint.set_username("");
        let client = |follow| {
            net::client(options.address_policy(), follow)
                .map_err(|error| broken(format!("cannot create a connection: {error}")))
        };
        let new = Self {
            strict: client(false)?,
            following: client(true)?,
            login,
            headers,
            repository,
            options,
            endpoint,
        };
        new.check_address(&new.endpoint, !new.headers.is_empty())?;
        Ok(new)
    }

    /// Checks the policy of the context for an address that a server or a file named.
    fn check_address(&self, url: &Url, has_secret: bool) -> Result<(), SourceError> {
        let shown = redact_url(url);
        let refuse = |reason: &str| {
            Err(SourceError::Refused {
                context: shown.clone(),
                reason: reason.into(),
                help: "configure the Git LFS server to use https:// addresses".into(),
            })
        };
        match url.scheme() {
            "https" => {}
            "http" if !has_secret || url.host_str().is_some_and(net::is_loopback) => {}
            "http" => return refuse("its login would be sent without encryption"),
            _ => return refuse("Git LFS downloads require https://"),
        }
        check_policy(url, self.options, &shown)
    }

    /// Requests the locations of the objects.
    pub(super) async fn request_batch(
        &self,
        pointers: &[&Pointer],
        named: impl Fn(&Pointer) -> Option<String>,
    ) -> Result<BTreeMap<String, Action>, SourceError> {
        let batch = BatchRequest {
            operation: "download",
            transfers: ["basic"],
            hash_algo: "sha256",
            objects: pointers
                .iter()
                .map(|pointer| RequestedObject {
                    oid: &pointer.oid,
                    size: pointer.size,
                })
                .collect(),
        };
        let fail = |reason: String| lfs_error(self.repository, None, reason);
        let body = serde_json::to_vec(&batch).map_err(|error| fail(error.to_string()))?;
        let address = format!(
            "{}/objects/batch",
            self.endpoint.as_str().trim_end_matches('/')
        );
        let request = || {
            let request = self
                .strict
                .post(&address)
                .header(ACCEPT, JSON)
                .header(CONTENT_TYPE, JSON)
                .headers(self.headers.clone())
                .body(body.clone());
            if self.headers.contains_key(AUTHORIZATION) {
                request
            } else {
                self.with_login(request)
            }
        };
        let mut response = self.send(request, None).await?;
        let mut text = Vec::new();
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| self.connection_error(None, error))?
        {
            text.extend_from_slice(&chunk);
            if text.len() > MAX_RESPONSE {
                return Err(fail("the server's response is too long".into()));
            }
        }
        let response: BatchResponse = serde_json::from_slice(&text)
            .map_err(|_| fail("the response is not from a Git LFS server".into()))?;
        if response
            .transfer
            .is_some_and(|transfer| transfer != "basic")
        {
            return Err(fail("the server uses another transfer than `basic`".into()));
        }
        let mut actions = BTreeMap::new();
        for object in response.objects {
            let Some(pointer) = pointers.iter().find(|pointer| pointer.oid == object.oid) else {
                continue;
            };
            if let Some(error) = object.error {
                let message: String = error.message.chars().filter(|c| !c.is_control()).collect();
                let reason = format!("the server responded with error {}: {message}", error.code);
                return Err(lfs_error(self.repository, named(pointer), reason));
            }
            if let Some(link) = object.actions.and_then(|actions| actions.download) {
                let authenticated = object.authenticated;
                actions.insert(
                    object.oid,
                    Action {
                        link,
                        authenticated,
                    },
                );
            }
        }
        Ok(actions)
    }

    /// Downloads an object to a file in `scratch`.
    pub(super) async fn download(
        &self,
        pointer: &Pointer,
        action: Option<Action>,
        path: &str,
        scratch: &Path,
    ) -> Result<NamedTempFile, SourceError> {
        let path = Some(path);
        let fail = |reason: String| lfs_error(self.repository, path.map(str::to_owned), reason);
        let action = action.ok_or_else(|| fail("the server named no location".into()))?;
        let url = Url::parse(&action.link.href)
            .map_err(|_| fail("the server named a location that is not a URL".into()))?;
        let headers = action.link.headers().map_err(fail)?;
        let own = !action.authenticated
            && !headers.contains_key(AUTHORIZATION)
            && same_origin(&url, &self.endpoint);
        self.check_address(&url, !headers.is_empty())?;
        // A redirect drops standard login headers only.
        let is_standard = |name: &HeaderName| name == AUTHORIZATION || name == ACCEPT;
        let client = match headers.keys().all(is_standard) {
            true => &self.following,
            false => &self.strict,
        };
        let request = || {
            let request = client.get(url.clone()).headers(headers.clone());
            if own {
                self.with_login(request)
            } else {
                request
            }
        };
        let response = self.send(request, path).await?;
        let failed = |source| SourceError::Io {
            attempt: format!("store a file of {}", self.repository),
            source,
        };
        let file = NamedTempFile::new_in(scratch).map_err(failed)?;
        let mut out = tokio::fs::File::from_std(file.reopen().map_err(failed)?);
        let mut hash = Sha256::new();
        let mut size = 0u64;
        let mut chunks = response.bytes_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| self.connection_error(path, error))?;
            size += chunk.len() as u64;
            if size > pointer.size {
                return Err(fail(format!(
                    "it has more than the {} bytes of its pointer",
                    pointer.size
                )));
            }
            hash.update(&chunk);
            out.write_all(&chunk).await.map_err(failed)?;
        }
        out.flush().await.map_err(failed)?;
        let found: String = hash
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        if size != pointer.size {
            return Err(fail(format!(
                "it has {size} bytes, but its pointer names {}",
                pointer.size
            )));
        }
        if found != pointer.oid {
            return Err(fail(format!(
                "its digest is sha256:{found}, but its pointer names sha256:{}",
                pointer.oid
            )));
        }
        Ok(file)
    }

    fn with_login(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.login {
            Some((username, password)) => request.basic_auth(username, Some(password.expose())),
            None => request,
        }
    }

    /// Sends a request, with retries for temporary errors. Returns a successful response.
    async fn send(
        &self,
        request: impl Fn() -> RequestBuilder,
        path: Option<&str>,
    ) -> Result<Response, SourceError> {
        let mut attempt = 1;
        loop {
            let result = request().send().await;
            let busy = match &result {
                Ok(response) => {
                    let status = response.status();
                    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
                }
                Err(error) => error.is_connect() || error.is_timeout(),
            };
            if !busy || attempt == ATTEMPTS {
                let response = result.map_err(|error| self.connection_error(path, error))?;
                return self.check_success(response, path);
            }
            tokio::time::sleep(Duration::from_millis(500) * attempt).await;
            attempt += 1;
        }
    }

    fn check_success(
        &self,
        response: Response,
        path: Option<&str>,
    ) -> Result<Response, SourceError> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let help = match status.as_u16() {
            401 | 403 => {
                Some("give a credential for the host of Git LFS that may read the repository")
            }
            404 | 410 => Some(
                "check that the repository has Git LFS, and that the credential for its host may read it",
            ),
            300..=399 => Some("name the address that it redirects to as `lfs.url` in .lfsconfig"),
            _ => None,
        };
        Err(SourceError::Lfs {
            url: self.repository.to_owned(),
            path: path.map(str::to_owned),
            reason: format!(
                "the server at {} responded with {status}",
                redact_url(response.url())
            ),
            unreachable: false,
            help: help.map(str::to_owned),
        })
    }

    /// Returns the error for a failed connection. Omits the URL, which may be signed.
    fn connection_error(&self, path: Option<&str>, error: reqwest::Error) -> SourceError {
        let error = error.without_url();
        let mut reason = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            reason = format!("{reason}: {error}");
            cause = error.source();
        }
        SourceError::Lfs {
            url: self.repository.to_owned(),
            path: path.map(str::to_owned),
            reason,
            unreachable: true,
            help: None,
        }
    }
}

impl Link {
    /// Returns the headers to send, without those of the connection itself.
    fn headers(&self) -> Result<HeaderMap, String> {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.header {
            let forbidden = ["host", "content-length", "transfer-encoding", "connection"];
            if forbidden.contains(&name.to_ascii_lowercase().as_str()) {
                continue;
            }
            let bad = || {
                format!(
                    "the server named the invalid header `{}`",
                    name.escape_debug()
                )
            };
            let name = HeaderName::try_from(name).map_err(|_| bad())?;
            let mut value = HeaderValue::try_from(value).map_err(|_| bad())?;
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        Ok(headers)
    }
}

/// Requests the server's address by ssh. `None` if the host does not support this.
async fn authenticate_by_ssh(git: &Git) -> Result<Option<Link>, SourceError> {
    let Some(path) = super::remote_path(&git.url) else {
        return Ok(None);
    };
    let response = git
        .run_by_ssh("git-lfs-authenticate", &path, "download")
        .await?;
    Ok(response.and_then(|text| serde_json::from_slice(&text).ok()))
}

fn same_origin(one: &Url, other: &Url) -> bool {
    one.origin().is_tuple() && one.origin() == other.origin()
}

fn lfs_error(repository: &str, path: Option<String>, reason: String) -> SourceError {
    SourceError::Lfs {
        url: repository.to_owned(),
        path,
        reason,
        unreachable: false,
        help: None,
    }
}
