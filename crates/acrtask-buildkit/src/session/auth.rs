//! Registry credentials for the builder.
//!
//! Invariants: a host is compared whole, never by a part of it; the token protocol is refused, so the builder
//! itself fetches tokens with what it is given here.

use std::sync::Arc;

use acrtask_model::Secret;
use bollard_buildkit_proto::moby::filesync::v1::{
    CredentialsRequest, CredentialsResponse, FetchTokenRequest, FetchTokenResponse,
    GetTokenAuthorityRequest, GetTokenAuthorityResponse, VerifyTokenAuthorityRequest,
    VerifyTokenAuthorityResponse, auth_server::Auth,
};
use tonic::{Request, Response, Status};

/// What a registry wants to see. An empty `username` makes `secret` an identity token.
#[derive(Debug, Clone)]
pub struct RegistryCredential {
    /// The account.
    pub username: String,
    /// Password or token.
    pub secret: Secret,
}

/// Finds credentials for a registry.
#[tonic::async_trait]
pub trait Credentials: Send + Sync + 'static {
    /// The credential for exactly this host (`registry.example.com:5000`), or `None` for anonymous
    /// access. Docker Hub is asked for under the name that [`registry_key`] gives.
    async fn for_host(&self, host: &str) -> Option<RegistryCredential>;
}

/// Anonymous access everywhere.
#[derive(Debug, Clone, Copy, Default)]
pub struct Anonymous;

#[tonic::async_trait]
impl Credentials for Anonymous {
    async fn for_host(&self, _: &str) -> Option<RegistryCredential> {
        None
    }
}

/// One name for each registry: Docker Hub's several hosts are `docker.io`, every other host is itself in lower case.
pub fn registry_key(host: &str) -> String {
    match host.to_ascii_lowercase().as_str() {
        "docker.io"
        | "index.docker.io"
        | "registry-1.docker.io"
        | "https://index.docker.io/v1/" => "docker.io".to_owned(),
        host => host.to_owned(),
    }
}

pub(crate) struct AuthService(pub(crate) Arc<dyn Credentials>);

#[tonic::async_trait]
impl Auth for AuthService {
    async fn credentials(
        &self,
        request: Request<CredentialsRequest>,
    ) -> Result<Response<CredentialsResponse>, Status> {
        let key = registry_key(&request.get_ref().host);
        let found = self.0.for_host(&key).await;
        tracing::debug!(
            host = key,
            found = found.is_some(),
            "the builder asks for credentials"
        );
        Ok(Response::new(match found {
            Some(credential) => CredentialsResponse {
                username: credential.username,
                secret: credential.secret.expose().to_owned(),
            },
            None => CredentialsResponse::default(),
        }))
    }

    async fn fetch_token(
        &self,
        _: Request<FetchTokenRequest>,
    ) -> Result<Response<FetchTokenResponse>, Status> {
        Err(refused())
    }

    async fn get_token_authority(
        &self,
        _: Request<GetTokenAuthorityRequest>,
    ) -> Result<Response<GetTokenAuthorityResponse>, Status> {
        Err(refused())
    }

    async fn verify_token_authority(
        &self,
        _: Request<VerifyTokenAuthorityRequest>,
    ) -> Result<Response<VerifyTokenAuthorityResponse>, Status> {
        Err(refused())
    }
}

/// `Unavailable` is what makes a builder fall back to `Credentials`.
fn refused() -> Status {
    Status::unavailable("client side tokens are not offered")
}

#[cfg(test)]
mod tests {
    use super::*;

    struct One;

    #[tonic::async_trait]
    impl Credentials for One {
        async fn for_host(&self, host: &str) -> Option<RegistryCredential> {
            (host == "docker.io" || host == "example.com").then(|| RegistryCredential {
                username: "me".into(),
                secret: Secret::new("s"),
            })
        }
    }

    #[tokio::test]
    async fn hosts_are_compared_whole() {
        let service = AuthService(Arc::new(One));
        for (host, want) in [
            ("example.com", "me"),
            ("EXAMPLE.com", "me"),
            ("registry-1.docker.io", "me"),
            ("example.com.evil.net", ""),
            ("notexample.com", ""),
            ("example.com:5000", ""),
            ("docker.io.evil.net", ""),
        ] {
            let request = Request::new(CredentialsRequest { host: host.into() });
            assert_eq!(
                service
                    .credentials(request)
                    .await
                    .unwrap()
                    .into_inner()
                    .username,
                want,
                "{host}"
            );
        }
    }

    #[tokio::test]
    async fn the_token_protocol_is_refused_so_that_the_builder_falls_back() {
        let service = AuthService(Arc::new(One));
        let status = service
            .get_token_authority(Request::new(GetTokenAuthorityRequest::default()))
            .await
            .unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unavailable);
    }
}
