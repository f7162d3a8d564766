//! Images of the engine: looked at, pulled, tagged, pushed, loaded.

use std::collections::HashMap;

use acrtask_model::ImageRef;
use acrtask_registry::{Credential, Credentials};
use bollard::{
    auth::DockerCredentials,
    body_full, body_try_stream,
    errors::Error,
    models::ImageInspect,
    query_parameters::{
        CreateImageOptionsBuilder, ImportImageOptionsBuilder, ListImagesOptionsBuilder,
        RemoveImageOptionsBuilder, TagImageOptionsBuilder,
    },
};
use bytes::Bytes;
use futures::{Stream, StreamExt};

use super::Engine;
use crate::error::EngineError;

/// An image in the engine's store.
#[derive(Debug, Clone)]
pub(crate) struct StoredImage {
    /// The engine's id: with the containerd store the digest of the manifest or index, with the
    /// classic one that of the configuration.
    pub(crate) id: String,
    pub(crate) details: ImageInspect,
}

impl StoredImage {
    /// What a container of it runs on: `linux/arm64/v8`.
    pub(crate) fn platform(&self) -> Option<String> {
        let parts = [
            self.details.os.as_deref(),
            self.details.architecture.as_deref(),
            self.details.variant.as_deref(),
        ];
        let [Some(os), Some(architecture), variant] =
            parts.map(|part| part.filter(|text| !text.is_empty()))
        else {
            return None;
        };
        let variant = variant.map_or(String::new(), |variant| format!("/{variant}"));
        Some(format!("{os}/{architecture}{variant}"))
    }
}

/// A problem with the credentials for a registry, or with the engine.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransferError {
    #[error(transparent)]
    Credential(#[from] acrtask_registry::CredentialError),
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// What the engine is told for a registry.
async fn docker_credentials(
    credentials: &Credentials,
    registry: &str,
) -> Result<Option<DockerCredentials>, TransferError> {
    let server = if registry == acrtask_model::reference::DOCKER_HUB {
        "https://index.docker.io/v1/".to_owned()
    } else {
        registry.to_owned()
    };
    Ok(credentials.for_host(registry).await?.map(|credential| {
        let mut out = DockerCredentials {
            serveraddress: Some(server),
            ..Default::default()
        };
        match credential {
            Credential::Password { username, password } => {
                out.username = Some(username);
                out.password = Some(password.expose().to_owned());
            }
            Credential::IdentityToken(token) => {
                out.identitytoken = Some(token.expose().to_owned());
            }
        }
        out
    }))
}

impl Engine {
    /// The image `name`, or nothing where the store does not have it.
    pub(crate) async fn image(&self, name: &str) -> Result<Option<StoredImage>, EngineError> {
        match self
            .docker
            .inspect_image(name)
            .await
            .map_err(EngineError::on(format!("look up image {name}")))
        {
            Ok(details) => Ok(Some(StoredImage {
                id: details.id.clone().unwrap_or_default(),
                details,
            })),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Pulls an image; `status` is told each line that the engine says about it.
    pub(crate) async fn pull_image(
        &self,
        image: &ImageRef,
        platform: Option<&str>,
        credentials: &Credentials,
        mut status: impl FnMut(&str),
    ) -> Result<(), TransferError> {
        let auth = docker_credentials(credentials, image.registry()).await?;
        let name = image.to_string();
        let mut options = CreateImageOptionsBuilder::new().from_image(&name);
        if let Some(platform) = platform {
            options = options.platform(platform);
        }
        let mut lines = std::pin::pin!(self.docker.create_image(Some(options.build()), None, auth));
        while let Some(line) = lines.next().await {
            let line = line.map_err(EngineError::on(format!("pull {image}")))?;
            if let Some(text) = line.status
                && line.progress_detail.is_none()
            {
                status(&text);
            }
        }
        Ok(())
    }

    /// Gives an image another name.
    pub(crate) async fn tag_image(
        &self,
        source: &str,
        target: &ImageRef,
    ) -> Result<(), EngineError> {
        let mut options = TagImageOptionsBuilder::new().repo(&target.name());
        if let Some(tag) = target.tag() {
            options = options.tag(tag);
        }
        self.docker
            .tag_image(source, Some(options.build()))
            .await
            .map_err(EngineError::on(format!("tag {source} as {target}")))
    }

    /// Returns the names that match a pattern, as `registry/team/*`.
    pub(crate) async fn image_names(&self, pattern: &str) -> Result<Vec<String>, EngineError> {
        let filters = HashMap::from([("reference", vec![pattern])]);
        let options = ListImagesOptionsBuilder::new().filters(&filters).build();
        let images = self.docker.list_images(Some(options)).await;
        let images = images.map_err(EngineError::on("list images"))?;
        Ok(images
            .into_iter()
            .flat_map(|image| image.repo_tags)
            .collect())
    }

    /// Takes a name away from an image, and the image where it was the last one.
    pub(crate) async fn remove_image(&self, name: &str) -> Result<(), EngineError> {
        let options = RemoveImageOptionsBuilder::new().build();
        super::gone_is_fine(
            self.docker
                .remove_image(name, Some(options), None)
                .await
                .map(drop)
                .map_err(EngineError::on(format!("remove image {name}"))),
        )
    }

    /// Makes an image without any file in it, which needs no registry. A container of it is never
    /// started: it is there to reach the volumes that it mounts.
    pub(crate) async fn import_empty_image(
        &self,
        repository: &str,
        labels: &super::Labels,
    ) -> Result<String, EngineError> {
        // The end of a tar archive: two blocks of zeros.
        let empty = Bytes::from_static(&[0; 1024]);
        let changes: Vec<String> = labels
            .map()
            .iter()
            .map(|(key, value)| format!("LABEL {key}={value}"))
            .collect();
        let options = CreateImageOptionsBuilder::new()
            .from_src("-")
            .repo(repository)
            .tag("latest")
            .changes(changes)
            .build();
        let mut lines = std::pin::pin!(self.docker.create_image(
            Some(options),
            Some(body_full(empty)),
            None
        ));
        let attempted = "make an empty image";
        let mut id = None;
        while let Some(line) = lines.next().await {
            let line = line.map_err(EngineError::on(attempted))?;
            id = line.status.filter(|text| text.contains(':')).or(id);
        }
        id.ok_or_else(|| {
            EngineError::on(attempted)(Error::DockerStreamError {
                error: "the engine named no image".into(),
            })
        })
    }

    /// An image as a tar stream, as `docker save` writes it. `name` may be its digest.
    pub(crate) fn save_image(
        &self,
        name: &str,
    ) -> impl Stream<Item = Result<Bytes, EngineError>> + Send {
        let attempted = format!("take {name} out of the engine");
        self.docker
            .export_image(name)
            .map(move |chunk| chunk.map_err(EngineError::on(attempted.clone())))
    }

    /// Loads images from a tar stream as `docker save` writes it.
    pub(crate) async fn load_images(
        &self,
        tar: impl Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static,
    ) -> Result<(), EngineError> {
        let options = ImportImageOptionsBuilder::new().quiet(true).build();
        let mut lines = std::pin::pin!(self.docker.import_image(
            options,
            body_try_stream(tar),
            None
        ));
        while let Some(line) = lines.next().await {
            line.map_err(EngineError::on("load an image into the engine"))?;
        }
        Ok(())
    }
}
