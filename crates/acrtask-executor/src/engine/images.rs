//! Images of the engine: inspect, pull, tag, remove, save, load.

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
    /// The engine's id. It is the digest of the manifest or index in the containerd store, and that
    /// of the configuration in the classic store.
    pub(crate) id: String,
    pub(crate) details: ImageInspect,
}

impl StoredImage {
    /// Returns the platform of a container of the image: `linux/arm64/v8`.
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

/// Returns the credentials of a registry in the form of the engine's API.
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
    /// Returns the image `name`. `None` if the store does not have it.
    pub(crate) async fn find_image(&self, name: &str) -> Result<Option<StoredImage>, EngineError> {
        match self
            .docker
            .inspect_image(name)
            .await
            .map_err(EngineError::could_not(format!("look up image {name}")))
        {
            Ok(details) => Ok(Some(StoredImage {
                id: details.id.clone().unwrap_or_default(),
                details,
            })),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Pulls an image. Calls `status` with each status line of the engine.
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
            let line = line.map_err(EngineError::could_not(format!("pull {image}")))?;
            if let Some(text) = line.status
                && line.progress_detail.is_none()
            {
                status(&text);
            }
        }
        Ok(())
    }

    /// Adds a name to an image.
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
            .map_err(EngineError::could_not(format!("tag {source} as {target}")))
    }

    /// Returns the names that match a pattern such as `registry/team/*`.
    pub(crate) async fn image_names(&self, pattern: &str) -> Result<Vec<String>, EngineError> {
        let filters = HashMap::from([("reference", vec![pattern])]);
        let options = ListImagesOptionsBuilder::new().filters(&filters).build();
        let images = self.docker.list_images(Some(options)).await;
        let images = images.map_err(EngineError::could_not("list images"))?;
        Ok(images
            .into_iter()
            .flat_map(|image| image.repo_tags)
            .collect())
    }

    /// Removes a name from an image, and the image if it was its last name.
    pub(crate) async fn remove_image(&self, name: &str) -> Result<(), EngineError> {
        let options = RemoveImageOptionsBuilder::new().build();
        super::ignore_not_found(
            self.docker
                .remove_image(name, Some(options), None)
                .await
                .map(drop)
                .map_err(EngineError::could_not(format!("remove image {name}"))),
        )
    }

    /// Creates an image without any files, which needs no registry. Its container is never started
    /// and only gives access to the volumes that it mounts.
    pub(crate) async fn import_empty_image(
        &self,
        repository: &str,
        labels: &super::Labels,
    ) -> Result<String, EngineError> {
        // The end of a tar archive: two blocks of zeros.
        let empty = Bytes::from_static(&[0; 1024]);
        let changes: Vec<String> = labels
            .to_map()
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
        let attempted = "create an empty image";
        let mut id = None;
        while let Some(line) = lines.next().await {
            let line = line.map_err(EngineError::could_not(attempted))?;
            id = line.status.filter(|text| text.contains(':')).or(id);
        }
        id.ok_or_else(|| {
            EngineError::could_not(attempted)(Error::DockerStreamError {
                error: "the engine returned no image id".into(),
            })
        })
    }

    /// Returns an image as a tar stream, in the format of `docker save`. `name` may be its digest.
    pub(crate) fn save_image(
        &self,
        name: &str,
    ) -> impl Stream<Item = Result<Bytes, EngineError>> + Send {
        let attempted = format!("save image {name}");
        self.docker
            .export_image(name)
            .map(move |chunk| chunk.map_err(EngineError::could_not(attempted.clone())))
    }

    /// Loads images from a tar stream in the format of `docker save`.
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
            line.map_err(EngineError::could_not("load an image into the engine"))?;
        }
        Ok(())
    }
}
