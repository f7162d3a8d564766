//! Whether a registry is there, and whether a login for it holds: what `docker login` finds out.

use acrtask_model::reference::DOCKER_HUB;
use reqwest::{Method, StatusCode, header};
use url::Url;

use crate::{
    Registry,
    error::RegistryError,
    transport::{Body, Call, How},
};

/// How a registry answers somebody whom it does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting {
    /// It wants to know who asks, even if everybody may read some of it.
    pub asks: bool,
    /// The time that it says it has: the header `Date`, as it was sent.
    pub date: Option<String>,
}

impl Registry {
    /// Asks the registry `host` (as references name it) for nothing, without a login.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`] where something else than a registry is there; else [`RegistryError`].
    pub async fn greet(&self, host: &str) -> Result<Greeting, RegistryError> {
        let attempt = format!("ask {host} whether it is a registry");
        let url = self.root(host, &attempt)?;
        let response = self.transport.ask_plainly(&url, host, &attempt).await?;
        let header = |name| response.headers().get(name)?.to_str().ok();
        let date = header(header::DATE).map(str::to_owned);
        let no_registry = RegistryError::NotFound {
            attempt,
            host: host.to_owned(),
        };
        match response.status() {
            // Pages for people are answered with success too, at any path.
            StatusCode::OK if header(header::CONTENT_TYPE).is_some_and(is_page) => Err(no_registry),
            StatusCode::OK => Ok(Greeting { asks: false, date }),
            StatusCode::UNAUTHORIZED if header(header::WWW_AUTHENTICATE).is_some() => {
                Ok(Greeting { asks: true, date })
            }
            _ => Err(no_registry),
        }
    }

    /// Logs in at the registry `host`, where that asks for it.
    ///
    /// # Errors
    /// [`RegistryError::Denied`] where it, or its token server, does not take the login.
    pub async fn log_in(&self, host: &str) -> Result<(), RegistryError> {
        let attempt = format!("log in at {host}");
        let call = Call {
            url: self.root(host, &attempt)?,
            attempt,
            host,
            method: Method::GET,
            scopes: Vec::new(),
            accept: &["application/json"],
            body: Body::None,
        };
        let once = How {
            tries: 1,
            ..How::default()
        };
        self.transport.send_so(call, once).await.map(drop)
    }

    fn root(&self, host: &str, attempt: &str) -> Result<Url, RegistryError> {
        let text = format!("{}v2/", self.transport.base(host));
        let url = Url::parse(&text).ok().filter(|url| {
            // What somebody called a host may be more than that.
            host == DOCKER_HUB
                || (url.path() == "/v2/" && url.query().is_none() && url.username().is_empty())
        });
        url.ok_or_else(|| RegistryError::Invalid {
            attempt: attempt.to_owned(),
            reason: format!("`{host}` is no host"),
        })
    }
}

fn is_page(content_type: &str) -> bool {
    content_type
        .trim_start()
        .to_ascii_lowercase()
        .starts_with("text/html")
}
