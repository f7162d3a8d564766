//! The volumes of a run. They come into being with the first container that mounts them.

use bollard::{
    models::{Mount, MountType, MountVolumeOptions},
    query_parameters::{ListVolumesOptionsBuilder, RemoveVolumeOptions},
};

use super::{Engine, Labels, gone_is_fine, label_filter, networks::Listed};
use crate::error::EngineError;

/// A mount of the volume `name`, which the engine makes where it does not exist.
pub(crate) fn mount(
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
            // What the image has at this path is not the workspace's.
            no_copy: Some(true),
            labels: Some(labels.map()),
            subpath: subpath.map(str::to_owned),
            ..Default::default()
        }),
        ..Default::default()
    }
}

impl Engine {
    /// Removes a volume; one that is gone already is fine.
    pub(crate) async fn remove_volume(&self, name: &str) -> Result<(), EngineError> {
        gone_is_fine(
            self.docker
                .remove_volume(name, None::<RemoveVolumeOptions>)
                .await
                .map_err(EngineError::on(format!("remove volume {name}"))),
        )
    }

    /// Name and labels of every volume with `label`.
    pub(crate) async fn list_volumes(&self, label: &str) -> Result<Vec<Listed>, EngineError> {
        let options = ListVolumesOptionsBuilder::new()
            .filters(&label_filter(label))
            .build();
        let answer = self
            .docker
            .list_volumes(Some(options))
            .await
            .map_err(EngineError::on("list volumes"))?;
        Ok(answer
            .volumes
            .unwrap_or_default()
            .into_iter()
            .map(|volume| Listed {
                name: volume.name,
                labels: volume.labels,
            })
            .collect())
    }
}
