//! Address policies of requests by the source of their URL, and targets of redirects.

use std::{net::SocketAddr, sync::OnceLock};

use reqwest::{Response, header};
use url::Url;

use crate::{
    error::RegistryError,
    net::{self, AddressPolicy},
};

/// Source of the URL of a request. It decides the addresses that the request may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UrlSource {
    /// The caller named it through a reference. The policy of the settings applies.
    Caller,
    /// A server at this address named it by a redirect, an upload location or a realm.
    Server(Option<SocketAddr>),
}

/// HTTP clients under one policy. None of them follows redirects.
#[derive(Debug)]
pub(super) struct Clients {
    pub(super) policy: AddressPolicy,
    pub(super) direct: reqwest::Client,
    /// Client without a limit on the wait for a response.
    pub(super) uploading: reqwest::Client,
}

impl Clients {
    fn new(policy: AddressPolicy) -> Result<Self, RegistryError> {
        Ok(Self {
            policy,
            direct: net::client(policy, false).map_err(RegistryError::Setup)?,
            uploading: net::uploading_client(policy).map_err(RegistryError::Setup)?,
        })
    }
}

/// HTTP clients under each policy. A server at a public address may not name a private address. No
/// server may name a metadata service.
#[derive(Debug)]
pub(super) struct Routes {
    /// Clients for addresses that the caller named, and for others of the same registry.
    pub(super) named: Clients,
    /// Clients for addresses that a server at a private address named.
    inner: OnceLock<Clients>,
    /// Clients for addresses that a server at a public address named.
    public: OnceLock<Clients>,
}

impl Routes {
    pub(super) fn new(policy: AddressPolicy) -> Result<Self, RegistryError> {
        Ok(Self {
            named: Clients::new(policy)?,
            inner: OnceLock::new(),
            public: OnceLock::new(),
        })
    }

    /// Returns the clients for an address with this source.
    pub(super) fn clients_for(&self, url_source: UrlSource) -> Result<&Clients, RegistryError> {
        let own = self.named.policy;
        let (clients, policy) = match (url_source, own) {
            (UrlSource::Caller, _) => return Ok(&self.named),
            (_, AddressPolicy::PublicOnly) => return Ok(&self.named),
            (UrlSource::Server(Some(peer)), _) if !net::is_public(peer.ip()) => match own {
                AddressPolicy::Any => (&self.inner, AddressPolicy::NoMetadata),
                _ => return Ok(&self.named),
            },
            (UrlSource::Server(_), _) => (&self.public, AddressPolicy::PublicByProxy),
        };
        match clients.get() {
            Some(clients) => Ok(clients),
            None => {
                let made = Clients::new(policy)?;
                Ok(clients.get_or_init(|| made))
            }
        }
    }
}

/// Returns the target of a redirect. `None` if the response does not redirect.
pub(super) fn redirect_target(response: &Response) -> Option<Url> {
    let redirects = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    let location = response.headers().get(header::LOCATION)?.to_str().ok()?;
    response.url().join(location).ok().filter(|_| redirects)
}
