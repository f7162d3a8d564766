//! Capabilities of an endpoint, as its responses report them.
//!
//! A buildkitd supports everything that its version contains. The capabilities of the BuildKit
//! inside a Docker Engine depend on the image store. With containerd's image store, its worker has
//! the label of a snapshotter. Only then can it export more than local images. No request returns
//! the list of exporters; it follows from the other responses.

use std::collections::BTreeMap;

use bollard_buildkit_proto::moby::buildkit::v1::types::WorkerRecord;
use bollard_buildkit_proto::moby::buildkit::v1::{
    InfoRequest, ListWorkersRequest, control_client::ControlClient,
};
use serde::Deserialize;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::endpoint::Endpoint;
use crate::error::ConnectError;
use crate::transport;

const SNAPSHOTTER_LABEL: &str = "org.mobyproject.buildkit.worker.snapshotter";
const HOST_GATEWAY_LABEL: &str = "org.mobyproject.buildkit.worker.moby.host-gateway-ip";

/// Kind of a BuildKit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointKind {
    /// Separate buildkitd.
    Buildkitd,
    /// BuildKit inside a Docker Engine with containerd's image store.
    EngineContainerdStore,
    /// BuildKit inside a Docker Engine with the classic image store.
    EngineClassicStore,
}

/// Feature that not every endpoint supports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// Push to a registry as part of the build.
    Push,
    /// Push without a tag.
    PushByDigest,
    /// Archive in OCI or Docker layout.
    ImageArchive,
    /// Several platforms in one build.
    MultiPlatform,
    /// Provenance and SBOM in the index of the image.
    Attestations,
    /// Cache export of any kind except inline.
    CacheExport,
    /// More than one export of one build.
    SeveralExports,
    /// History of finished builds with their provenance.
    History,
}

/// Capabilities reported at the connection.
#[derive(Debug, Clone)]
pub struct Capabilities {
    /// Kind of the endpoint.
    pub kind: EndpointKind,
    /// Version of BuildKit. `None` if the endpoint does not report one.
    pub buildkit_version: Option<String>,
    /// Version of the Docker Engine.
    pub engine_version: Option<String>,
    /// Platforms of all workers, the native one first: `linux/amd64`, `linux/arm/v7`.
    pub platforms: Vec<String>,
    /// Names of the exporters.
    pub exporters: Vec<&'static str>,
    /// Workers of the endpoint.
    pub workers: Vec<Worker>,
    endpoint: String,
}

/// Worker of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    /// Id of the worker.
    pub id: String,
    /// Labels of the worker.
    pub labels: BTreeMap<String, String>,
}

impl Capabilities {
    pub(crate) async fn query(
        endpoint: &Endpoint,
        channel: &Channel,
    ) -> Result<Self, ConnectError> {
        let version = async {
            match endpoint {
                Endpoint::DockerEngine { socket } => {
                    read_engine_version(endpoint, socket).await.map(Some)
                }
                Endpoint::Unix(_) | Endpoint::Tcp { .. } => Ok(None),
            }
        };
        let mut control =
            ControlClient::new(channel.clone()).max_decoding_message_size(transport::MAX_MESSAGE);
        let mut control_too = control.clone();
        let workers = control.list_workers(ListWorkersRequest { filter: Vec::new() });
        let info = control_too.info(InfoRequest {});
        let (version, workers, info) = tokio::join!(version, workers, info);
        let engine_version = version?;
        let not_buildkit = |request: &'static str| {
            move |status: Status| ConnectError::NotBuildKit {
                endpoint: endpoint.to_string(),
                request,
                source: Box::new(status),
            }
        };
        let records = workers
            .map_err(not_buildkit("ListWorkers"))?
            .into_inner()
            .record;
        let own_version = match info {
            Ok(response) => response.into_inner().buildkit_version.map(|v| v.version),
            // Older endpoints do not implement the call.
            Err(status) if status.code() == Code::Unimplemented => None,
            Err(status) => return Err(not_buildkit("Info")(status)),
        };
        Ok(Self::from_responses(
            endpoint,
            engine_version,
            own_version,
            records,
        ))
    }

    fn from_responses(
        endpoint: &Endpoint,
        engine_version: Option<String>,
        own_version: Option<String>,
        records: Vec<WorkerRecord>,
    ) -> Self {
        let kind = match endpoint {
            Endpoint::Unix(_) | Endpoint::Tcp { .. } => EndpointKind::Buildkitd,
            Endpoint::DockerEngine { .. }
                if records
                    .iter()
                    .any(|w| w.labels.contains_key(SNAPSHOTTER_LABEL)) =>
            {
                EndpointKind::EngineContainerdStore
            }
            Endpoint::DockerEngine { .. } => EndpointKind::EngineClassicStore,
        };
        let mut platforms: Vec<String> = Vec::new();
        for platform in records.iter().flat_map(|worker| &worker.platforms) {
            let mut text = format!("{}/{}", platform.os, platform.architecture);
            if !platform.variant.is_empty() {
                text = format!("{text}/{}", platform.variant);
            }
            if !platforms.contains(&text) {
                platforms.push(text);
            }
        }
        let is_meaningful = |version: &String| !version.is_empty() && !version.contains("unknown");
        Self {
            kind,
            buildkit_version: own_version.filter(is_meaningful),
            engine_version,
            platforms,
            exporters: match kind {
                EndpointKind::Buildkitd => vec!["image", "docker", "oci", "local", "tar"],
                EndpointKind::EngineContainerdStore => {
                    vec!["moby", "image", "docker", "oci", "local", "tar"]
                }
                EndpointKind::EngineClassicStore => vec!["moby", "local", "tar"],
            },
            workers: records
                .into_iter()
                .map(|worker| Worker {
                    id: worker.id,
                    labels: worker.labels.into_iter().collect(),
                })
                .collect(),
            endpoint: endpoint.to_string(),
        }
    }

    /// Returns the address of the endpoint.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Returns `true` if built images are stored in an engine, where containers can use them.
    pub fn images_are_runnable(&self) -> bool {
        self.kind != EndpointKind::Buildkitd
    }

    /// Returns the address of the engine's host for builds. `None` if the engine does not report
    /// it.
    pub(crate) fn host_gateway(&self) -> Option<&str> {
        self.workers
            .iter()
            .find_map(|worker| worker.labels.get(HOST_GATEWAY_LABEL))
            .map(String::as_str)
    }

    /// Returns `true` for the BuildKit inside an engine, also if a proxy serves it as a buildkitd. It
    /// resolves tags before it applies policies.
    pub(crate) fn is_in_engine(&self) -> bool {
        self.kind != EndpointKind::Buildkitd || self.host_gateway().is_some()
    }

    /// Returns a message for the user about a missing feature. `None` if the endpoint supports it.
    pub fn missing(&self, feature: Feature) -> Option<String> {
        let lacking = match self.kind {
            EndpointKind::Buildkitd => false,
            EndpointKind::EngineContainerdStore => feature == Feature::PushByDigest,
            EndpointKind::EngineClassicStore => feature != Feature::History,
        };
        let (lacking, why) = match feature {
            Feature::SeveralExports => (
                lacking || self.older_than(0, 13),
                "it is older than BuildKit 0.13",
            ),
            Feature::History => (
                lacking || self.older_than(0, 11),
                "it is older than BuildKit 0.11",
            ),
            _ => (lacking, ""),
        };
        if !lacking {
            return None;
        }
        let why = match self.kind {
            EndpointKind::EngineClassicStore if feature != Feature::History => {
                "the Docker Engine stores its images in the classic store, not in containerd's"
            }
            EndpointKind::EngineContainerdStore if feature == Feature::PushByDigest => {
                "a Docker Engine's BuildKit pushes by name only"
            }
            _ => why,
        };
        Some(format!("{}: {why}", feature.description()))
    }

    /// Returns advice on a missing feature.
    pub(crate) fn help(&self) -> String {
        match self.kind {
            EndpointKind::EngineClassicStore => "turn on the containerd image store of the Docker Engine ({\"features\": \
                 {\"containerd-snapshotter\": true}} in daemon.json; needs Docker 26 or newer), or use a buildkitd"
                .to_owned(),
            EndpointKind::EngineContainerdStore => "use a buildkitd, or a newer Docker Engine".to_owned(),
            EndpointKind::Buildkitd => "use a newer buildkitd".to_owned(),
        }
    }

    /// Returns `true` if the version is lower. An unknown version counts as new, because
    /// development builds have none.
    fn older_than(&self, major: u32, minor: u32) -> bool {
        let Some(version) = &self.buildkit_version else {
            return false;
        };
        let mut parts = version
            .trim_start_matches('v')
            .split(['.', '-', '+'])
            .map(|part| part.parse::<u32>().ok());
        match (parts.next().flatten(), parts.next().flatten()) {
            (Some(a), Some(b)) => (a, b) < (major, minor),
            _ => false,
        }
    }
}

impl Feature {
    fn description(self) -> &'static str {
        match self {
            Self::Push => "pushing as part of a build",
            Self::PushByDigest => "pushing by digest",
            Self::ImageArchive => "writing an image archive (oci, docker)",
            Self::MultiPlatform => "building for several platforms at once",
            Self::Attestations => "provenance and SBOM attestations",
            Self::CacheExport => "exporting a cache to a registry or a folder",
            Self::SeveralExports => "several exports of one build",
            Self::History => "reading the sources of a build (build history)",
        }
    }
}

#[derive(Deserialize)]
struct EngineVersion {
    #[serde(rename = "Version")]
    version: String,
}

async fn read_engine_version(
    endpoint: &Endpoint,
    socket: &std::path::Path,
) -> Result<String, ConnectError> {
    let failed = |source| ConnectError::NotAnEngine {
        endpoint: endpoint.to_string(),
        request: "GET /version",
        source,
    };
    let body = transport::http_get(socket, "/version")
        .await
        .map_err(failed)?;
    let version: EngineVersion = serde_json::from_slice(&body).map_err(|e| failed(e.into()))?;
    Ok(version.version)
}

#[cfg(test)]
impl Capabilities {
    /// Creates the capabilities of an endpoint of this kind.
    pub(crate) fn for_kind(kind: EndpointKind, version: Option<&str>) -> Self {
        let (endpoint, labels) = match kind {
            EndpointKind::Buildkitd => ("unix:///b.sock", vec![]),
            EndpointKind::EngineContainerdStore => (
                "docker:///d.sock",
                vec![
                    (SNAPSHOTTER_LABEL.to_owned(), "overlayfs".to_owned()),
                    (HOST_GATEWAY_LABEL.to_owned(), "172.17.0.1".to_owned()),
                ],
            ),
            EndpointKind::EngineClassicStore => ("docker:///d.sock", vec![]),
        };
        let record = WorkerRecord {
            labels: labels.into_iter().collect(),
            ..WorkerRecord::default()
        };
        let endpoint = Endpoint::parse(endpoint).unwrap();
        let capabilities =
            Self::from_responses(&endpoint, None, version.map(str::to_owned), vec![record]);
        assert_eq!(capabilities.kind, kind);
        capabilities
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_features_depend_on_the_kind() {
        use EndpointKind::*;
        use Feature::*;
        let missing = |kind, version, feature| {
            Capabilities::for_kind(kind, version)
                .missing(feature)
                .is_some()
        };
        for feature in [
            Push,
            PushByDigest,
            ImageArchive,
            MultiPlatform,
            Attestations,
            CacheExport,
            SeveralExports,
            History,
        ] {
            assert!(!missing(Buildkitd, Some("v0.33.0"), feature), "{feature:?}");
            assert_eq!(
                missing(EngineContainerdStore, Some("v0.13.2"), feature),
                feature == PushByDigest,
                "{feature:?}"
            );
            assert_eq!(
                missing(EngineClassicStore, Some("v0.13.2"), feature),
                feature != History,
                "{feature:?}"
            );
        }
        assert!(missing(EngineClassicStore, Some("v0.10.6"), History));
        assert!(missing(Buildkitd, Some("v0.12.5"), SeveralExports));
        assert!(!missing(Buildkitd, Some("v0.33.0-dev"), SeveralExports));
    }
}
