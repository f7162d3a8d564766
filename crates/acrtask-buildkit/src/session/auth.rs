//! Registry credentials for the builder.
//!
//! Invariants:
//! - Hosts are compared as a whole, never in part.
//! - The token protocol is refused, so that the builder itself requests tokens with these
//!   credentials.

use std::sync::Arc;

use acrtask_model::Secret;
use bollard_buildkit_proto::moby::filesync::v1::{
    CredentialsRequest, CredentialsResponse, FetchTokenRequest, FetchTokenResponse,
    GetTokenAuthorityRequest, GetTokenAuthorityResponse, VerifyTokenAuthorityRequest,
    VerifyTokenAuthorityResponse, auth_server::Auth,
};
use tonic::{Request, Response, Status};

/// Credential of a registry. If `username` is empty, `secret` is an identity token.
#[derive(Debug, Clone)]
pub struct RegistryCredential {
    /// Account name.
    pub username: String,
    /// Password or token.
    pub secret: Secret,
}

/// Source of credentials for registries.
#[tonic::async_trait]
pub trait Credentials: Send + Sync + 'static {
    /// Returns the credential for exactly this host (`registry.example.com:5000`). `None` for
    /// anonymous access. The name of Docker Hub is that of [`registry_key`].
    async fn for_host(&self, host: &str) -> Option<RegistryCredential>;
}

/// Credentials for anonymous access everywhere.
#[derive(Debug, Clone, Copy, Default)]
pub struct Anonymous;

#[tonic::async_trait]
impl Credentials for Anonymous {
    async fn for_host(&self, _: &str) -> Option<RegistryCredential> {
        None
    }
}

/// Returns the name of a registry. Docker Hub's hosts become `docker.io`, and every other host
/// becomes lower case.
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
            "the builder requested credentials"
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
        Err(refuse_token_protocol())
    }

    async fn get_token_authority(
        &self,
        _: Request<GetTokenAuthorityRequest>,
    ) -> Result<Response<GetTokenAuthorityResponse>, Status> {
        Err(refuse_token_protocol())
    }

    async fn verify_token_authority(
        &self,
        _: Request<VerifyTokenAuthorityRequest>,
    ) -> Result<Response<VerifyTokenAuthorityResponse>, Status> {
        Err(refuse_token_protocol())
    }
}

/// Returns the status `Unavailable`, after which a builder falls back to `Credentials`.
fn refuse_token_protocol() -> Status {
    Status::unavailable("client-side tokens are not supported")
}

#[cfg(test)]
mod tests {
    use super::*;

    struct TestCredentials;

    #[tonic::async_trait]
    impl Credentials for TestCredentials {
        async fn for_host(&self, host: &str) -> Option<RegistryCredential> {
            (host == "docker.io" || host == "example.com").then(|| RegistryCredential {
                username: "me".into(),
                secret: Secret::new("s"),
            })
        }
    }

    #[tokio::test]
    async fn credentials_require_the_exact_host() {
        let service = AuthService(Arc::new(TestCredentials));
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
    async fn token_protocol_is_unavailable() {
        let service = AuthService(Arc::new(TestCredentials));
        let status = service
            .get_token_authority(Request::new(GetTokenAuthorityRequest::default()))
            .await
            .unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unavailable);
    }
}
