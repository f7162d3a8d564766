//! The BuildKit that builds for a run.

use acrtask_model::{Digest, ImageRef};

use crate::{context::StepContext, engine::DockerEndpoint, error::ConnectError, images::Built};

/// A connected builder.
#[derive(Debug, Clone)]
pub(crate) struct Builder {
    endpoint: String,
}

impl Builder {
    pub(crate) async fn connect(
        docker: &DockerEndpoint,
        endpoint: Option<&acrtask_buildkit::Endpoint>,
    ) -> Result<Self, ConnectError> {
        Ok(Self {
            endpoint: endpoint.map_or_else(|| docker.host.clone(), ToString::to_string),
        })
    }
    pub(crate) fn describe(&self) -> String {
        self.endpoint.clone()
    }
    pub(crate) async fn load_into_engine(
        &self,
        _ctx: &StepContext,
        _built: &Built,
    ) -> Result<(), String> {
        Err("not yet".into())
    }
    pub(crate) async fn push_from_cache(
        &self,
        _ctx: &StepContext,
        _built: &Built,
        _image: &ImageRef,
    ) -> Result<Digest, String> {
        Err("not yet".into())
    }
}
