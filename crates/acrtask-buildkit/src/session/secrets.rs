//! `RUN --mount=type=secret`: the builder requests a secret by its id.
//!
//! Invariants:
//! - Values are in types without a printable form until they are encoded for the wire.
//! - A secret that the build does not list does not exist.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use acrtask_model::Secret;
use bollard_buildkit_proto::moby::buildkit::secrets::v1::{
    GetSecretRequest, GetSecretResponse, secrets_server::Secrets,
};
use tonic::{Request, Response, Status};

/// Maximum size of one secret in a builder, in bytes.
pub const MAX_SECRET_BYTES: usize = 500 * 1024;

/// Secret that a build may mount.
#[derive(Debug, Clone)]
pub struct BuildSecret {
    /// Id of the secret in the Dockerfile.
    pub id: String,
    /// Source of the value.
    pub source: SecretSource,
}

/// Source of a secret's value.
#[derive(Debug, Clone)]
pub enum SecretSource {
    /// Text in memory.
    Text(Secret),
    /// Bytes in memory.
    Bytes(Arc<secrecy::SecretSlice<u8>>),
    /// File, read on the request of the builder.
    File(PathBuf),
    /// Environment variable of this process.
    Env(String),
}

/// Error of passing a secret to a build.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The secret exceeds the limit of all builders.
    #[error("the secret {id:?} has {bytes} bytes; BuildKit accepts at most {MAX_SECRET_BYTES}")]
    TooLarge {
        /// Id of the secret.
        id: String,
        /// Size of the secret, in bytes.
        bytes: u64,
    },
    /// The file of the secret is unreadable.
    #[error("cannot read the secret {id:?} from {}", path.display())]
    File {
        /// Id of the secret.
        id: String,
        /// Path of the file.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// The variable of the secret is not set.
    #[error("the environment variable {name} of the secret {id:?} is not set")]
    Env {
        /// Id of the secret.
        id: String,
        /// Name of the variable.
        name: String,
    },
}

impl BuildSecret {
    /// Checks before the build that the secret is available.
    #[allow(
        clippy::disallowed_methods,
        reason = "the variable belongs to a tool whose conventions apply here"
    )]
    pub(crate) fn check(&self) -> Result<(), SecretError> {
        use secrecy::ExposeSecret;
        let bytes = match &self.source {
            SecretSource::Text(text) => text.expose().len() as u64,
            SecretSource::Bytes(bytes) => bytes.expose_secret().len() as u64,
            SecretSource::File(path) => std::fs::metadata(path)
                .map_err(|e| self.file_error(path, e))?
                .len(),
            SecretSource::Env(name) => match std::env::var_os(name) {
                Some(value) => value.len() as u64,
                None => {
                    return Err(SecretError::Env {
                        id: self.id.clone(),
                        name: name.clone(),
                    });
                }
            },
        };
        if bytes > MAX_SECRET_BYTES as u64 {
            return Err(SecretError::TooLarge {
                id: self.id.clone(),
                bytes,
            });
        }
        Ok(())
    }

    fn file_error(&self, path: &Path, source: std::io::Error) -> SecretError {
        SecretError::File {
            id: self.id.clone(),
            path: path.to_owned(),
            source,
        }
    }

    #[allow(
        clippy::disallowed_methods,
        reason = "the variable belongs to a tool whose conventions apply here"
    )]
    async fn read(&self) -> Result<Vec<u8>, SecretError> {
        use secrecy::ExposeSecret;
        use std::os::unix::ffi::OsStringExt;
        Ok(match &self.source {
            SecretSource::Text(text) => text.expose().as_bytes().to_vec(),
            SecretSource::Bytes(bytes) => bytes.expose_secret().to_vec(),
            SecretSource::File(path) => tokio::fs::read(path)
                .await
                .map_err(|e| self.file_error(path, e))?,
            SecretSource::Env(name) => std::env::var_os(name)
                .ok_or_else(|| SecretError::Env {
                    id: self.id.clone(),
                    name: name.clone(),
                })?
                .into_vec(),
        })
    }
}

pub(crate) struct SecretService(HashMap<String, BuildSecret>);

impl SecretService {
    pub(crate) fn new(secrets: &[BuildSecret]) -> Self {
        Self(
            secrets
                .iter()
                .map(|secret| (secret.id.clone(), secret.clone()))
                .collect(),
        )
    }
}

#[tonic::async_trait]
impl Secrets for SecretService {
    async fn get_secret(
        &self,
        request: Request<GetSecretRequest>,
    ) -> Result<Response<GetSecretResponse>, Status> {
        let id = &request.get_ref().id;
        let secret = self
            .0
            .get(id)
            .ok_or_else(|| Status::not_found(format!("secret {id}: not found")))?;
        let data = secret
            .read()
            .await
            .map_err(|e| Status::failed_precondition(crate::filesync::error_chain(&e)))?;
        Ok(Response::new(GetSecretResponse { data }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(id: &str, value: String) -> BuildSecret {
        BuildSecret {
            id: id.into(),
            source: SecretSource::Text(Secret::new(value)),
        }
    }

    #[tokio::test]
    async fn secret_is_found_by_its_exact_id() {
        let service = SecretService::new(&[text("token", "v".into())]);
        let get = |id: &str| {
            service.get_secret(Request::new(GetSecretRequest {
                id: id.into(),
                ..Default::default()
            }))
        };
        assert_eq!(get("token").await.unwrap().into_inner().data, b"v");
        assert_eq!(get("toke").await.unwrap_err().code(), tonic::Code::NotFound);
    }

    #[test]
    fn check_refuses_unavailable_secrets() {
        assert!(matches!(
            text("big", "x".repeat(MAX_SECRET_BYTES + 1)).check(),
            Err(SecretError::TooLarge { .. })
        ));
        let absent = BuildSecret {
            id: "f".into(),
            source: SecretSource::File("/absent/file".into()),
        };
        assert!(matches!(absent.check(), Err(SecretError::File { .. })));
        assert!(!format!("{:?}", text("t", "hidden".into())).contains("hidden"));
    }
}
