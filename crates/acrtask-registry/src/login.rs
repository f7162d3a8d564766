//! Check of a registry and of a login for it, as in `docker login`.

use acrtask_model::reference::DOCKER_HUB;
use reqwest::{Method, StatusCode, header};
use url::Url;

use crate::{
    Registry,
    error::RegistryError,
    transport::{Body, Call, RequestOptions},
};

/// Response of a registry to a request without a login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeResult {
    /// `true` if the registry requires a login, even if some of its content is public.
    pub requires_login: bool,
    /// Header `Date` of the response, unparsed.
    pub date: Option<String>,
}

impl Registry {
    /// Requests the base path of the registry `host` (as references name it) without a login.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`] if the server is not a registry; else [`RegistryError`].
    pub async fn probe(&self, host: &str) -> Result<ProbeResult, RegistryError> {
        let attempt = format!("check that {host} is a registry");
        let url = self.api_root(host, &attempt)?;
        let response = self.transport.get_anonymously(&url, host, &attempt).await?;
        let header = |name| response.headers().get(name)?.to_str().ok();
        let date = header(header::DATE).map(str::to_owned);
        let no_registry = RegistryError::NotFound {
            attempt,
            host: host.to_owned(),
        };
        match response.status() {
            // A web server may send a page with status 200 for any path.
            StatusCode::OK if header(header::CONTENT_TYPE).is_some_and(is_page) => Err(no_registry),
            StatusCode::OK => Ok(ProbeResult {
                requires_login: false,
                date,
            }),
            StatusCode::UNAUTHORIZED if header(header::WWW_AUTHENTICATE).is_some() => {
                Ok(ProbeResult {
                    requires_login: true,
                    date,
                })
            }
            _ => Err(no_registry),
        }
    }

    /// Logs in to the registry `host` if it requires a login.
    ///
    /// # Errors
    /// [`RegistryError::Denied`] if the registry or its token server refuses the login.
    pub async fn log_in(&self, host: &str) -> Result<(), RegistryError> {
        let attempt = format!("log in to {host}");
        let call = Call {
            url: self.api_root(host, &attempt)?,
            attempt,
            host,
            method: Method::GET,
            scopes: Vec::new(),
            accept: &["application/json"],
            body: Body::None,
        };
        let once = RequestOptions {
            tries: 1,
            ..RequestOptions::default()
        };
        self.transport.send_with(call, once).await.map(drop)
    }

    fn api_root(&self, host: &str, attempt: &str) -> Result<Url, RegistryError> {
        let text = format!("{}v2/", self.transport.base_url(host));
        let url = Url::parse(&text).ok().filter(|url| {
            // The user's text may contain more than a host.
            host == DOCKER_HUB
                || (url.path() == "/v2/" && url.query().is_none() && url.username().is_empty())
        });
        url.ok_or_else(|| RegistryError::Invalid {
            attempt: attempt.to_owned(),
            reason: format!("`{host}` is not a host"),
        })
    }
}

fn is_page(content_type: &str) -> bool {
    content_type
        .trim_start()
        .to_ascii_lowercase()
        .starts_with("text/html")
}
