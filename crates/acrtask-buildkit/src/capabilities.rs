//! What an endpoint can do, found out by asking it.
//!
//! A buildkitd can do everything that its version has. The BuildKit inside a Docker Engine depends on the
//! image store: its worker is labelled with a snapshotter when that is containerd's, and only then can it
//! export anything but local images. What cannot be asked for directly (a list of exporters) follows from these answers.

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

/// What kind of BuildKit answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointKind {
    /// A buildkitd of its own.
    Buildkitd,
    /// Inside a Docker Engine whose images are in containerd's store.
    EngineContainerdStore,
    /// Inside a Docker Engine with its classic image store.
    EngineClassicStore,
}

/// A thing that not every endpoint can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// Push to a registry as part of the build.
    Push,
    /// Push without a tag.
    PushByDigest,
    /// An archive in OCI or Docker layout.
    ImageArchive,
    /// Several platforms in one build.
    MultiPlatform,
    /// Provenance and SBOM in the image's index.
    Attestations,
    /// Cache export of any kind but inline.
    CacheExport,
    /// More than one export of one build.
    SeveralExports,
    /// A record of finished builds, from which provenance can be read.
    History,
}

/// What was learnt at connecting.
#[derive(Debug, Clone)]
pub struct Capabilities {
    /// Who answers.
    pub kind: EndpointKind,
    /// BuildKit's version, where it tells one.
    pub buildkit_version: Option<String>,
    /// The Docker Engine's version.
    pub engine_version: Option<String>,
    /// Platforms of all workers, the native one first: `linux/amd64`, `linux/arm/v7`.
    pub platforms: Vec<String>,
    /// Names of the exporters.
    pub exporters: Vec<&'static str>,
    /// The workers.
    pub workers: Vec<Worker>,
    endpoint: String,
}

/// One worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    /// Its id.
    pub id: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl Capabilities {
    pub(crate) async fn ask(endpoint: &Endpoint, channel: &Channel) -> Result<Self, ConnectError> {
        let version = async {
            match endpoint {
                Endpoint::DockerEngine { socket } => {
                    engine_version(endpoint, socket).await.map(Some)
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
        let not_buildkit = |question: &'static str| {
            move |status: Status| ConnectError::NotBuildKit {
                endpoint: endpoint.to_string(),
                question,
                source: Box::new(status),
            }
        };
        let records = workers
            .map_err(not_buildkit("ListWorkers"))?
            .into_inner()
            .record;
        let own_version = match info {
            Ok(answer) => answer.into_inner().buildkit_version.map(|v| v.version),
            // Older than the call itself.
            Err(status) if status.code() == Code::Unimplemented => None,
            Err(status) => return Err(not_buildkit("Info")(status)),
        };
        Ok(Self::from_answers(
            endpoint,
            engine_version,
            own_version,
            records,
        ))
    }

    fn from_answers(
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
        let known = |version: &String| !version.is_empty() && !version.contains("unknown");
        Self {
            kind,
            buildkit_version: own_version.filter(known),
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

    /// The endpoint's address.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Whether an image that this endpoint builds is in an engine's store, where containers can be made of it.
    pub fn images_are_runnable(&self) -> bool {
        self.kind != EndpointKind::Buildkitd
    }

    /// The address by which a build reaches the engine's host, where the engine tells it.
    pub(crate) fn host_gateway(&self) -> Option<&str> {
        self.workers
            .iter()
            .find_map(|worker| worker.labels.get(HOST_GATEWAY_LABEL))
            .map(String::as_str)
    }

    /// `None` when the endpoint has the feature, otherwise what it lacks and why, for the user.
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
                "the Docker Engine keeps its images in the classic store, not in containerd's"
            }
            EndpointKind::EngineContainerdStore if feature == Feature::PushByDigest => {
                "a Docker Engine's BuildKit pushes by name only"
            }
            _ => why,
        };
        Some(format!("{}: {why}", feature.describe()))
    }

    /// What a user can do about a missing feature.
    pub(crate) fn help(&self) -> String {
        match self.kind {
            EndpointKind::EngineClassicStore => "turn on the containerd image store of the Docker Engine ({\"features\": \
                 {\"containerd-snapshotter\": true}} in daemon.json; needs Docker 26 or newer), or use a buildkitd"
                .to_owned(),
            EndpointKind::EngineContainerdStore => "use a buildkitd, or a newer Docker Engine".to_owned(),
            EndpointKind::Buildkitd => "use a newer buildkitd".to_owned(),
        }
    }

    /// A version that is not known counts as new: development builds have none.
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
    fn describe(self) -> &'static str {
        match self {
            Self::Push => "pushing as part of a build",
            Self::PushByDigest => "pushing by digest",
            Self::ImageArchive => "writing an image archive (oci, docker)",
            Self::MultiPlatform => "building for several platforms at once",
            Self::Attestations => "provenance and SBOM attestations",
            Self::CacheExport => "exporting a cache to a registry or a folder",
            Self::SeveralExports => "several exports of one build",
            Self::History => "telling what a build used (build history)",
        }
    }
}

#[derive(Deserialize)]
struct EngineVersion {
    #[serde(rename = "Version")]
    version: String,
}

async fn engine_version(
    endpoint: &Endpoint,
    socket: &std::path::Path,
) -> Result<String, ConnectError> {
    let failed = |source| ConnectError::NotAnEngine {
        endpoint: endpoint.to_string(),
        question: "GET /version",
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
    /// As if an endpoint of this kind had answered.
    pub(crate) fn of(kind: EndpointKind, version: Option<&str>) -> Self {
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
            Self::from_answers(&endpoint, None, version.map(str::to_owned), vec![record]);
        assert_eq!(capabilities.kind, kind);
        capabilities
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_depends_on_the_kind() {
        use EndpointKind::*;
        use Feature::*;
        let missing =
            |kind, version, feature| Capabilities::of(kind, version).missing(feature).is_some();
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
