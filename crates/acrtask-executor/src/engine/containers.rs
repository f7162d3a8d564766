//! Containers: create, attach, start, wait, stop, remove, copy files.

use std::{collections::HashMap, time::Duration};

use bollard::{
    body_try_stream,
    container::AttachContainerResults,
    errors::Error,
    models::{ContainerCreateBody, ContainerInspectResponse, ContainerSummary},
    query_parameters::{
        AttachContainerOptionsBuilder, CreateContainerOptionsBuilder,
        DownloadFromContainerOptionsBuilder, InspectContainerOptions, KillContainerOptionsBuilder,
        ListContainersOptionsBuilder, LogsOptionsBuilder, RemoveContainerOptionsBuilder,
        StopContainerOptionsBuilder, UploadToContainerOptionsBuilder, WaitContainerOptionsBuilder,
    },
};
use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};

use super::{Engine, ignore_not_found};
use crate::error::EngineError;

impl Engine {
    /// Creates a container and returns its id. A missing image is an error with status 404.
    pub(crate) async fn create_container(
        &self,
        name: &str,
        platform: Option<&str>,
        body: ContainerCreateBody,
    ) -> Result<String, EngineError> {
        let mut options = CreateContainerOptionsBuilder::new().name(name);
        if let Some(platform) = platform {
            options = options.platform(platform);
        }
        self.docker
            .create_container(Some(options.build()), body)
            .await
            .map(|made| made.id)
            .map_err(EngineError::could_not(format!("create container {name}")))
    }

    /// Attaches to a container that has not started, so that no output is lost.
    pub(crate) async fn attach(
        &self,
        id: &str,
        stdin: bool,
    ) -> Result<AttachContainerResults, EngineError> {
        let options = AttachContainerOptionsBuilder::new()
            .stream(true)
            .stdin(stdin)
            .stdout(true)
            .stderr(true)
            .build();
        self.docker
            .attach_container(id, Some(options))
            .await
            .map_err(EngineError::could_not(format!("attach to container {id}")))
    }

    pub(crate) async fn start_container(&self, id: &str) -> Result<(), EngineError> {
        self.docker
            .start_container(id, None)
            .await
            .map_err(EngineError::could_not("start the container"))
    }

    /// Waits until a started container has ended, and returns its exit code.
    pub(crate) async fn wait_container(&self, id: &str) -> Result<i64, EngineError> {
        let options = WaitContainerOptionsBuilder::new()
            .condition("not-running")
            .build();
        let mut responses = std::pin::pin!(self.docker.wait_container(id, Some(options)));
        match responses.next().await {
            Some(Ok(response)) => Ok(response.status_code),
            // The library turns an exit code other than 0 into an error.
            Some(Err(Error::DockerContainerWaitError { error, code })) if error.is_empty() => {
                Ok(code)
            }
            Some(Err(source)) => Err(EngineError::could_not("wait for the container")(source)),
            None => Err(EngineError::could_not("wait for the container")(
                Error::DockerStreamError {
                    error: "the engine ended its response without an exit code".into(),
                },
            )),
        }
    }

    /// Sends a stop signal to a container, and kills it after `grace`.
    pub(crate) async fn stop_container(
        &self,
        id: &str,
        grace: Duration,
    ) -> Result<(), EngineError> {
        let seconds = i32::try_from(grace.as_secs()).unwrap_or(i32::MAX);
        let options = StopContainerOptionsBuilder::new().t(seconds).build();
        ignore_not_found(
            self.docker
                .stop_container(id, Some(options))
                .await
                .map_err(EngineError::could_not(format!("stop container {id}"))),
        )
    }

    /// Kills a container without a grace period.
    pub(crate) async fn kill_container(&self, id: &str) -> Result<(), EngineError> {
        let options = KillContainerOptionsBuilder::new().signal("KILL").build();
        match self
            .docker
            .kill_container(id, Some(options))
            .await
            .map_err(EngineError::could_not(format!("kill container {id}")))
        {
            // 409: the container does not run.
            Err(error) if matches!(error.status(), Some(404 | 409)) => Ok(()),
            other => other,
        }
    }

    /// Kills and removes a container with its anonymous volumes.
    pub(crate) async fn remove_container(&self, id: &str) -> Result<(), EngineError> {
        let options = RemoveContainerOptionsBuilder::new()
            .force(true)
            .v(true)
            .build();
        match self
            .docker
            .remove_container(id, Some(options))
            .await
            .map_err(EngineError::could_not(format!("remove container {id}")))
        {
            // 409: another removal is in progress.
            Err(error)
                if error.status() == Some(404)
                    || (error.status() == Some(409)
                        && error.engine_message().contains("in progress")) =>
            {
                Ok(())
            }
            other => other,
        }
    }

    /// Lists the containers that match `filters`, running or not.
    pub(crate) async fn list_containers(
        &self,
        filters: HashMap<String, Vec<String>>,
    ) -> Result<Vec<ContainerSummary>, EngineError> {
        let options = ListContainersOptionsBuilder::new()
            .all(true)
            .filters(&filters)
            .build();
        self.docker
            .list_containers(Some(options))
            .await
            .map_err(EngineError::could_not("list containers"))
    }

    /// Unpacks a tar stream below `path` of a container, which need not run.
    pub(crate) async fn upload(
        &self,
        id: &str,
        path: &str,
        tar: impl Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static,
    ) -> Result<(), EngineError> {
        let options = UploadToContainerOptionsBuilder::new().path(path).build();
        self.docker
            .upload_to_container(id, Some(options), body_try_stream(tar))
            .await
            .map_err(EngineError::could_not(format!("copy files to {path}")))
    }

    /// Returns a file or a folder of a container as a tar stream.
    pub(crate) fn download(
        &self,
        id: &str,
        path: &str,
    ) -> impl Stream<Item = Result<Bytes, EngineError>> + Send + use<> {
        let options = DownloadFromContainerOptionsBuilder::new()
            .path(path)
            .build();
        let attempted = format!("copy files from {path}");
        self.docker
            .download_from_container(id, Some(options))
            .map_err(move |source| EngineError {
                attempted: attempted.clone(),
                source,
            })
    }

    /// Returns the engine's full description of a container.
    pub(crate) async fn inspect_container(
        &self,
        id: &str,
    ) -> Result<ContainerInspectResponse, EngineError> {
        self.docker
            .inspect_container(id, None::<InspectContainerOptions>)
            .await
            .map_err(EngineError::could_not(format!("inspect container {id}")))
    }

    /// Returns the output of a container. With `follow`, also its future output.
    pub(crate) fn logs(
        &self,
        id: &str,
        follow: bool,
        tail: &str,
    ) -> impl Stream<Item = Result<bollard::container::LogOutput, EngineError>> + Send + use<> {
        let options = LogsOptionsBuilder::new()
            .follow(follow)
            .stdout(true)
            .stderr(true)
            .tail(tail)
            .build();
        let attempted = format!("read the log of container {id}");
        self.docker
            .logs(id, Some(options))
            .map_err(move |source| EngineError {
                attempted: attempted.clone(),
                source,
            })
    }
}
