//! Client with one connection, shared by any number of builds.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::capabilities::Capabilities;
use crate::endpoint::Endpoint;
use crate::error::{BuildError, ConnectError};
use crate::provenance::UsedSource;
use crate::request::BuildRequest;
use crate::status::BuildEvent;
use crate::{solve, transport};

/// Connection to a BuildKit. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) endpoint: Endpoint,
    pub(crate) channel: Channel,
    pub(crate) capabilities: Capabilities,
}

/// Result of a successful build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildOutcome {
    /// Digest of the image in the registry or store: of a manifest, or of an index with
    /// attestations or several platforms. In the classic store of an engine, the id of the image.
    /// `None` if the build exported no image.
    pub image_digest: Option<String>,
    /// Digest of the image's configuration, for one platform.
    pub config_digest: Option<String>,
    /// All metadata from the exporters.
    pub metadata: BTreeMap<String, String>,
    /// Sources of the build, from its provenance. If the endpoint stores none, from the names of
    /// its steps.
    pub provenance: Vec<UsedSource>,
    /// Id of the build in BuildKit.
    pub build_ref: String,
}

impl Client {
    /// Connects to the endpoint and queries its capabilities.
    pub async fn connect(endpoint: Endpoint) -> Result<Self, ConnectError> {
        let channel = transport::connect(&endpoint).await?;
        let capabilities = Capabilities::query(&endpoint, &channel).await?;
        tracing::debug!(%endpoint, ?capabilities, "connected to BuildKit");
        Ok(Self {
            inner: Arc::new(Inner {
                endpoint,
                channel,
                capabilities,
            }),
        })
    }

    /// Returns the capabilities of the endpoint.
    pub fn capabilities(&self) -> &Capabilities {
        &self.inner.capabilities
    }

    /// Returns the endpoint.
    pub fn endpoint(&self) -> &Endpoint {
        &self.inner.endpoint
    }

    /// Runs a build to its end. Sends events as they arrive, and all of them before it returns. A
    /// dropped receiver does not stop the build. Canceling `cancel` stops it.
    pub async fn build(
        &self,
        request: BuildRequest,
        events: mpsc::Sender<BuildEvent>,
        cancel: CancellationToken,
    ) -> Result<BuildOutcome, BuildError> {
        solve::build(&self.inner, request, events, cancel).await
    }
}
