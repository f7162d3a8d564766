//! Which addresses a request may reach, by who named them; and where redirects lead.

use std::{net::SocketAddr, sync::OnceLock};

use reqwest::{Response, header};
use url::Url;

use crate::{
    error::RegistryError,
    net::{self, AddressPolicy},
};

/// Who named the address of a request. It decides which addresses the request may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NamedBy {
    /// The caller, through a reference: the settings' own policy applies.
    Caller,
    /// A server at this address, by a redirect, an upload location or a realm.
    Server(Option<SocketAddr>),
}

/// Connections under one policy. None of them follows redirects.
#[derive(Debug)]
pub(super) struct Clients {
    pub(super) policy: AddressPolicy,
    pub(super) direct: reqwest::Client,
    /// The same without a limit on the wait for an answer.
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

/// The connections under each policy. A server names addresses of its own kind only: one that is public names nothing
/// that is private, and none names a metadata service.
#[derive(Debug)]
pub(super) struct Routes {
    /// For addresses that the caller named, and for others of the same registry.
    pub(super) named: Clients,
    /// For addresses that a server named which is not at a public address itself.
    inner: OnceLock<Clients>,
    /// For addresses that a server at a public address named.
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

    /// Returns the connections for an address that is named by `named_by`.
    pub(super) fn to(&self, named_by: NamedBy) -> Result<&Clients, RegistryError> {
        let own = self.named.policy;
        let (clients, policy) = match (named_by, own) {
            (NamedBy::Caller, _) => return Ok(&self.named),
            (_, AddressPolicy::PublicOnly) => return Ok(&self.named),
            (NamedBy::Server(Some(peer)), _) if !net::is_public(peer.ip()) => match own {
                AddressPolicy::Any => (&self.inner, AddressPolicy::NoMetadata),
                _ => return Ok(&self.named),
            },
            (NamedBy::Server(_), _) => (&self.public, AddressPolicy::PublicByProxy),
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

/// Returns where a response redirects to. `None` if it does not.
pub(super) fn redirection(response: &Response) -> Option<Url> {
    let redirects = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    let location = response.headers().get(header::LOCATION)?.to_str().ok()?;
    response.url().join(location).ok().filter(|_| redirects)
}
