//! The volumes of a run.
//!
//! Invariant: a container mounts a volume only after [`OwnVolumes::ensure_volume`] has confirmed
//! that the volume has the labels of its run. A volume that existed before or that belongs to
//! another run is refused.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use bollard::{
    models::{HostConfig, Mount, MountType, MountVolumeOptions, VolumeCreateRequest},
    query_parameters::{ListVolumesOptionsBuilder, RemoveVolumeOptions},
};
use tokio::sync::OnceCell;

use super::{Engine, Labels, ignore_not_found, label_filter, networks::ListedObject};
use crate::{error::EngineError, output::lock};

/// The volumes that one run has created, each created and checked once.
#[derive(Debug)]
pub(crate) struct OwnVolumes {
    engine: Engine,
    labels: Labels,
    made: Mutex<HashMap<String, Arc<OnceCell<()>>>>,
}

impl OwnVolumes {
    pub(crate) fn new(engine: Engine, labels: Labels) -> Self {
        Self {
            engine,
            labels,
            made: Mutex::default(),
        }
    }

    /// Creates the volume `name` unless this run did before. Refuses a volume that does not belong
    /// to this run.
    pub(crate) async fn ensure_volume(&self, name: &str) -> Result<(), VolumeError> {
        let cell = Arc::clone(lock(&self.made).entry(name.to_owned()).or_default());
        cell.get_or_try_init(|| async {
            // For an existing name, the engine returns the existing volume with the labels of its
            // creator.
            let found = self.engine.create_volume(name, &self.labels).await?;
            if self.labels.match_object(&found) {
                Ok(())
            } else {
                Err(VolumeError::NotOwn(name.to_owned()))
            }
        })
        .await
        .copied()
    }

    /// Creates and checks every volume that a container with this configuration mounts by name.
    pub(crate) async fn ensure_mounted(&self, host: &HostConfig) -> Result<(), VolumeError> {
        let mounts = host.mounts.iter().flatten();
        let named = mounts.filter(|mount| mount.typ == Some(MountType::VOLUME));
        let names = named.filter_map(|mount| mount.source.as_deref());
        futures::future::try_join_all(names.map(|name| self.ensure_volume(name))).await?;
        Ok(())
    }
}

/// A volume that a container of the run cannot mount.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(
        "the engine has a volume {0} that this run did not make; a run mounts only its own volumes. Remove it with \
         `docker volume rm {0}`, or give the run another id"
    )]
    NotOwn(String),
}

/// Returns a mount of the volume `name`, which the engine creates if it does not exist.
pub(crate) fn volume_mount(
    name: &str,
    target: &str,
    read_only: bool,
    subpath: Option<&str>,
    labels: &Labels,
) -> Mount {
    Mount {
        typ: Some(MountType::VOLUME),
        source: Some(name.into()),
        target: Some(target.into()),
        read_only: Some(read_only),
        volume_options: Some(MountVolumeOptions {
            // Files of the image at this path must not appear in the workspace.
            no_copy: Some(true),
            labels: Some(labels.to_map()),
            subpath: subpath.map(str::to_owned),
            ..Default::default()
        }),
        ..Default::default()
    }
}

impl Engine {
    /// Creates a volume with the labels of a run. Returns the labels that the engine has for that
    /// name.
    async fn create_volume(
        &self,
        name: &str,
        labels: &Labels,
    ) -> Result<HashMap<String, String>, EngineError> {
        let request = VolumeCreateRequest {
            name: Some(name.into()),
            driver: Some("local".into()),
            labels: Some(labels.to_map()),
            ..Default::default()
        };
        let made = self.docker.create_volume(request).await;
        Ok(made
            .map_err(EngineError::could_not(format!("create volume {name}")))?
            .labels)
    }

    /// Removes a volume. Succeeds if it does not exist.
    pub(crate) async fn remove_volume(&self, name: &str) -> Result<(), EngineError> {
        ignore_not_found(
            self.docker
                .remove_volume(name, None::<RemoveVolumeOptions>)
                .await
                .map_err(EngineError::could_not(format!("remove volume {name}"))),
        )
    }

    /// Returns name and labels of every volume with `label`.
    pub(crate) async fn list_volumes(&self, label: &str) -> Result<Vec<ListedObject>, EngineError> {
        let options = ListVolumesOptionsBuilder::new()
            .filters(&label_filter(label))
            .build();
        let response = self
            .docker
            .list_volumes(Some(options))
            .await
            .map_err(EngineError::could_not("list volumes"))?;
        Ok(response
            .volumes
            .unwrap_or_default()
            .into_iter()
            .map(|volume| ListedObject {
                name: volume.name,
                labels: volume.labels,
            })
            .collect())
    }
}
