//! The client: one connection, which any number of builds share.

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

/// A connection to a BuildKit. Cheap to clone.
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

/// What came of a successful build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildOutcome {
    /// The digest of what a registry or a store has under the image's name: a manifest, or an index when there are
    /// attestations or several platforms. On an engine's classic store it is the image's id. `None` when no image was exported.
    pub image_digest: Option<String>,
    /// The digest of the image's configuration, for one platform.
    pub config_digest: Option<String>,
    /// Everything that the exporters answered.
    pub metadata: BTreeMap<String, String>,
    /// What the build used, from its provenance; where the endpoint keeps none, from the names of its steps.
    pub provenance: Vec<UsedSource>,
    /// BuildKit's id of the build.
    pub build_ref: String,
}

impl Client {
    /// Connects and asks what the endpoint can do.
    pub async fn connect(endpoint: Endpoint) -> Result<Self, ConnectError> {
        let channel = transport::connect(&endpoint).await?;
        let capabilities = Capabilities::ask(&endpoint, &channel).await?;
        tracing::debug!(%endpoint, ?capabilities, "connected to BuildKit");
        Ok(Self {
            inner: Arc::new(Inner {
                endpoint,
                channel,
                capabilities,
            }),
        })
    }

    /// What the endpoint can do.
    pub fn capabilities(&self) -> &Capabilities {
        &self.inner.capabilities
    }

    /// The endpoint.
    pub fn endpoint(&self) -> &Endpoint {
        &self.inner.endpoint
    }

    /// Runs a build to its end. Events are sent as they come and all of them before this returns; a receiver that
    /// is dropped does not stop the build. Canceling `cancel` stops it.
    pub async fn build(
        &self,
        request: BuildRequest,
        events: mpsc::Sender<BuildEvent>,
        cancel: CancellationToken,
    ) -> Result<BuildOutcome, BuildError> {
        solve::build(&self.inner, request, events, cancel).await
    }
}
