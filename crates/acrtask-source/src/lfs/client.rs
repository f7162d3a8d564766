//! The batch API of Git LFS, as far as a download needs it.
//!
//! Invariants: each address, the one that the repository names and each that the server names, is checked as that of the
//! context is; our login goes to the endpoint and to its origin alone, and what the server gives us for a download goes
//! to that address alone; nothing of either goes in clear to another machine; an object is what its pointer says.
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
    spec::shown_url,
};

/// Longest answer to a batch, in bytes.
const MAX_ANSWER: usize = 4 << 20;
/// How often a request is made before it is given up.
const ATTEMPTS: u32 = 3;
const JSON: &str = "application/vnd.git-lfs+json";

/// The server that has a repository's objects.
pub(super) struct Client<'a> {
    /// Does not follow redirects.
    strict: reqwest::Client,
    /// Follows them; a login is left behind where they lead to another host.
    following: reqwest::Client,
    endpoint: Url,
    login: Option<(String, Secret)>,
    /// What the server wants to be sent, where it told by ssh.
    headers: HeaderMap,
    repository: &'a str,
    options: &'a Options,
}

#[derive(Serialize)]
struct Ask<'p> {
    operation: &'static str,
    transfers: [&'static str; 1],
    hash_algo: &'static str,
    objects: Vec<Wanted<'p>>,
}

#[derive(Serialize)]
struct Wanted<'p> {
    oid: &'p str,
    size: u64,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    transfer: Option<String>,
    objects: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    oid: String,
    #[serde(default)]
    actions: Option<Actions>,
    #[serde(default)]
    authenticated: bool,
    #[serde(default)]
    error: Option<Problem>,
}

#[derive(Deserialize)]
struct Actions {
    #[serde(default)]
    download: Option<Link>,
}

/// Where to go, with what.
#[derive(Deserialize)]
struct Link {
    href: String,
    #[serde(default)]
    header: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Problem {
    #[serde(default)]
    code: u16,
    #[serde(default)]
    message: String,
}

/// Where an object can be had.
pub(super) struct Action {
    link: Link,
    authenticated: bool,
}

impl<'a> Client<'a> {
    /// Finds the server: the one that `.lfsconfig` names, else the one that is told over ssh, else the usual one.
    pub(super) async fn new(git: &'a Git, options: &'a Options) -> Result<Self, SourceError> {
        let repository = &git.url.url;
        let broken = |reason: String| failure(repository, None, reason);
        let mut headers = HeaderMap::new();
        let named = git.configuration(".lfsconfig", r"^lfs\.url$").await?;
        let mut endpoint = match named.into_iter().next_back() {
            Some((_, text)) => Url::parse(&text)
                .map_err(|_| broken("`lfs.url` of .lfsconfig is not a URL".into()))?,
            None => match told_by_ssh(git).await? {
                Some(link) => {
                    headers = link.headers().map_err(&broken)?;
                    let href = Url::parse(&link.href);
                    href.map_err(|_| broken("what the server names is not a URL".into()))?
                }
                None => super::endpoint(&git.address).ok_or_else(|| {
                    broken("only repositories behind https:// or ssh:// have Git LFS".into())
                })?,
            },
        };
        let remote = Url::parse(&git.address.url).ok();
        let beside = remote.is_some_and(|remote| same_origin(&remote, &endpoint));
        let login = git::login(
            &endpoint,
            git.address.credential.as_ref().filter(|_| beside),
            options,
        );
        // A redirect to another origin leaves the login behind.
        let login = login.filter(|_| git.keeps_login || !beside);
        // Nothing that stands in a repository's own file is a secret to be kept, nor one to be sent.
        let _ = endpoint.set_password(None);
        let _ = endpoint.set_username("");
        let client = |follow| {
            net::client(options.addresses(), follow)
                .map_err(|error| broken(format!("no connection can be made: {error}")))
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
        new.check(&new.endpoint, !new.headers.is_empty())?;
        Ok(new)
    }

    /// The context's own rules, for an address that somebody else named.
    fn check(&self, url: &Url, has_secret: bool) -> Result<(), SourceError> {
        let shown = shown_url(url);
        let refuse = |reason: &str| {
            Err(SourceError::Refused {
                context: shown.clone(),
                reason: reason.into(),
                help: "let the Git LFS server give https:// addresses".into(),
            })
        };
        match url.scheme() {
            "https" => {}
            "http" if !has_secret || url.host_str().is_some_and(net::is_loopback) => {}
            "http" => return refuse("its login would go over the network in clear"),
            _ => return refuse("files of Git LFS come over https:// only"),
        }
        check_policy(url, self.options, &shown)
    }

    /// Asks where the objects are.
    pub(super) async fn ask(
        &self,
        pointers: &[&Pointer],
        named: impl Fn(&Pointer) -> Option<String>,
    ) -> Result<BTreeMap<String, Action>, SourceError> {
        let ask = Ask {
            operation: "download",
            transfers: ["basic"],
            hash_algo: "sha256",
            objects: pointers
                .iter()
                .map(|pointer| Wanted {
                    oid: &pointer.oid,
                    size: pointer.size,
                })
                .collect(),
        };
        let fail = |reason: String| failure(self.repository, None, reason);
        let body = serde_json::to_vec(&ask).map_err(|error| fail(error.to_string()))?;
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
            .map_err(|error| self.lost(None, error))?
        {
            text.extend_from_slice(&chunk);
            if text.len() > MAX_ANSWER {
                return Err(fail("the server's answer is too long".into()));
            }
        }
        let answer: Answer = serde_json::from_slice(&text)
            .map_err(|_| fail("the server's answer is not that of a Git LFS server".into()))?;
        if answer.transfer.is_some_and(|transfer| transfer != "basic") {
            return Err(fail(
                "the server gives files by another transfer than `basic`".into(),
            ));
        }
        let mut actions = BTreeMap::new();
        for object in answer.objects {
            let Some(pointer) = pointers.iter().find(|pointer| pointer.oid == object.oid) else {
                continue;
            };
            if let Some(problem) = object.error {
                let message: String = problem
                    .message
                    .chars()
                    .filter(|c| !c.is_control())
                    .collect();
                let reason = format!("the server says: {} {message}", problem.code);
                return Err(failure(self.repository, named(pointer), reason));
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
        let fail = |reason: String| failure(self.repository, path.map(str::to_owned), reason);
        let action = action.ok_or_else(|| fail("the server does not say where it is".into()))?;
        let url = Url::parse(&action.link.href)
            .map_err(|_| fail("the server names what is not a URL".into()))?;
        let headers = action.link.headers().map_err(fail)?;
        let own = !action.authenticated
            && !headers.contains_key(AUTHORIZATION)
            && same_origin(&url, &self.endpoint);
        self.check(&url, !headers.is_empty())?;
        // A redirect takes away what is known to be a login, and nothing else.
        let known = |name: &HeaderName| name == AUTHORIZATION || name == ACCEPT;
        let client = match headers.keys().all(known) {
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
            attempt: format!("keep a file of {}", self.repository),
            source,
        };
        let file = NamedTempFile::new_in(scratch).map_err(failed)?;
        let mut out = tokio::fs::File::from_std(file.reopen().map_err(failed)?);
        let mut hash = Sha256::new();
        let mut size = 0u64;
        let mut chunks = response.bytes_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| self.lost(path, error))?;
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
                "it has {size} bytes, and its pointer says {}",
                pointer.size
            )));
        }
        if found != pointer.oid {
            return Err(fail(format!(
                "it came as sha256:{found}, and its pointer says sha256:{}",
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

    /// Sends, again where that can help; gives a success.
    async fn send(
        &self,
        request: impl Fn() -> RequestBuilder,
        path: Option<&str>,
    ) -> Result<Response, SourceError> {
        let mut attempt = 1;
        loop {
            let answered = request().send().await;
            let busy = match &answered {
                Ok(response) => {
                    let status = response.status();
                    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
                }
                Err(error) => error.is_connect() || error.is_timeout(),
            };
            if !busy || attempt == ATTEMPTS {
                let response = answered.map_err(|error| self.lost(path, error))?;
                return self.success(response, path);
            }
            tokio::time::sleep(Duration::from_millis(500) * attempt).await;
            attempt += 1;
        }
    }

    fn success(&self, response: Response, path: Option<&str>) -> Result<Response, SourceError> {
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
                "the server at {} answers {status}",
                shown_url(response.url())
            ),
            unreachable: false,
            help: help.map(str::to_owned),
        })
    }

    /// A request that came to nothing. Its URL may be signed and is left out.
    fn lost(&self, path: Option<&str>, error: reqwest::Error) -> SourceError {
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
    /// What is to be sent along; never what belongs to the connection itself.
    fn headers(&self) -> Result<HeaderMap, String> {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.header {
            let forbidden = ["host", "content-length", "transfer-encoding", "connection"];
            if forbidden.contains(&name.to_ascii_lowercase().as_str()) {
                continue;
            }
            let bad = || {
                format!(
                    "the server names the header `{}`, which is none",
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

/// What a host that is reached by ssh says about its Git LFS; nothing where it says nothing.
async fn told_by_ssh(git: &Git) -> Result<Option<Link>, SourceError> {
    let Some(path) = super::remote_path(&git.url) else {
        return Ok(None);
    };
    let answer = git
        .ask_by_ssh("git-lfs-authenticate", &path, "download")
        .await?;
    Ok(answer.and_then(|text| serde_json::from_slice(&text).ok()))
}

fn same_origin(one: &Url, other: &Url) -> bool {
    one.origin().is_tuple() && one.origin() == other.origin()
}

fn failure(repository: &str, path: Option<String>, reason: String) -> SourceError {
    SourceError::Lfs {
        url: repository.to_owned(),
        path,
        reason,
        unreachable: false,
        help: None,
    }
}
