//! `RUN --mount=type=ssh`: forwards bytes between the builder and the socket of an SSH agent.
//!
//! Left out: private key files. This program would have to be an agent. Use `ssh-add` to load them
//! into one.

use std::collections::HashMap;
use std::path::PathBuf;
use std::pin::Pin;

use bollard_buildkit_proto::moby::sshforward::v1::{
    BytesMessage, CheckAgentRequest, CheckAgentResponse, ssh_server::Ssh,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Id of a mount without an id.
const DEFAULT_ID: &str = "default";
/// Header in which the builder names the agent.
const ID_HEADER: &str = "buildkit.ssh.id";
const CHUNK: usize = 32 * 1024;

/// SSH agent that a build may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshSource {
    /// Id of the agent in the Dockerfile. `default` for a mount without an id.
    pub id: String,
    /// Socket of the agent.
    pub agent: PathBuf,
}

pub(crate) struct SshService(HashMap<String, PathBuf>);

impl SshService {
    pub(crate) fn new(sources: &[SshSource]) -> Self {
        Self(
            sources
                .iter()
                .map(|source| (source.id.clone(), source.agent.clone()))
                .collect(),
        )
    }

    fn find_agent(&self, id: &str) -> Result<&PathBuf, Status> {
        let id = if id.is_empty() { DEFAULT_ID } else { id };
        self.0
            .get(id)
            .ok_or_else(|| Status::not_found(format!("unset ssh forward key {id}")))
    }
}

#[tonic::async_trait]
impl Ssh for SshService {
    type ForwardAgentStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<BytesMessage, Status>> + Send>>;

    async fn check_agent(
        &self,
        request: Request<CheckAgentRequest>,
    ) -> Result<Response<CheckAgentResponse>, Status> {
        self.find_agent(&request.get_ref().id)?;
        Ok(Response::new(CheckAgentResponse {}))
    }

    async fn forward_agent(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<Self::ForwardAgentStream>, Status> {
        let id = request
            .metadata()
            .get(ID_HEADER)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default();
        let path = self.find_agent(id)?;
        let socket = UnixStream::connect(path).await.map_err(|e| {
            Status::failed_precondition(format!(
                "cannot connect to the SSH agent at {}: {e}",
                path.display()
            ))
        })?;
        let (mut from_agent, mut to_agent) = socket.into_split();
        let mut incoming = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(message)) = incoming.message().await {
                if to_agent.write_all(&message.data).await.is_err() {
                    return;
                }
            }
            let _ = to_agent.shutdown().await;
        });
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(async move {
            let mut buffer = vec![0; CHUNK];
            loop {
                let message = match from_agent.read(&mut buffer).await {
                    Ok(0) => return,
                    Ok(n) => Ok(BytesMessage {
                        data: buffer[..n].to_vec(),
                    }),
                    Err(e) => Err(Status::unavailable(format!(
                        "the SSH agent closed the connection: {e}"
                    ))),
                };
                let failed = message.is_err();
                if sender.send(message).await.is_err() || failed {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

#[cfg(test)]
mod tests {
    use bollard_buildkit_proto::moby::sshforward::v1::ssh_client::SshClient;
    use bollard_buildkit_proto::moby::sshforward::v1::ssh_server::SshServer;
    use hyper_util::rt::TokioIo;
    use tokio::net::UnixListener;
    use tonic::Code;
    use tonic::service::Routes;
    use tonic::transport::{Channel, Endpoint};

    use super::*;

    /// Returns a client of the service, over a connection in memory.
    async fn client(sources: &[SshSource]) -> SshClient<Channel> {
        let (near, far) = tokio::io::duplex(4096);
        crate::session::serve(far, Routes::new(SshServer::new(SshService::new(sources))));
        let mut near = Some(near);
        let connector = tower::service_fn(move |_| {
            let near = near.take().map(TokioIo::new);
            async move { near.ok_or_else(|| std::io::Error::other("one connection only")) }
        });
        SshClient::new(
            Endpoint::from_static("http://session")
                .connect_with_connector(connector)
                .await
                .unwrap(),
        )
    }

    #[tokio::test]
    async fn bytes_are_forwarded_to_the_agent_and_back() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("agent");
        let agent = UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = agent.accept().await.unwrap();
            let mut received = Vec::new();
            stream.read_to_end(&mut received).await.unwrap();
            stream
                .write_all(&[b"got ", received.as_slice()].concat())
                .await
                .unwrap();
        });
        let mut client = client(&[SshSource {
            id: "default".into(),
            agent: path,
        }])
        .await;
        client
            .check_agent(CheckAgentRequest::default())
            .await
            .unwrap();
        let messages = ["pi", "ng"].map(|text| BytesMessage { data: text.into() });
        let mut responses = client
            .forward_agent(tokio_stream::iter(messages))
            .await
            .unwrap()
            .into_inner();
        let mut all = Vec::new();
        while let Some(response) = responses.message().await.unwrap() {
            all.extend(response.data);
        }
        assert_eq!(all, b"got ping");
    }

    #[tokio::test]
    async fn only_named_agents_are_available() {
        let mut client = client(&[SshSource {
            id: "work".into(),
            agent: "/absent".into(),
        }])
        .await;
        let status = client
            .check_agent(CheckAgentRequest {
                id: "default".into(),
            })
            .await
            .unwrap_err();
        assert_eq!(status.code(), Code::NotFound);
        client
            .check_agent(CheckAgentRequest { id: "work".into() })
            .await
            .unwrap();
    }
}
