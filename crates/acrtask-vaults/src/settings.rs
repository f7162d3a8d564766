//! The identity of the operator, from the standard variables.

use std::path::PathBuf;

use acrtask_model::Secret;

use crate::{KeyVaultHosts, VaultError};

/// Maximum size of a token file, in bytes.
const MAX_TOKEN: u64 = 64 << 10;

/// Settings of all vaults.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// The identity for Azure Key Vault.
    pub azure: AzureSettings,
    /// The address of HashiCorp Vault, and the identity for it.
    pub vault: VaultSettings,
    /// The hosts of Key Vaults.
    pub key_vault_hosts: KeyVaultHosts,
}

impl Settings {
    /// Reads the standard variables: `AZURE_...` and `VAULT_...`. An empty variable counts as
    /// unset.
    pub fn from_env(var: impl Fn(&str) -> Option<String>) -> Self {
        let text = |name: &str| var(name).filter(|value| !value.trim().is_empty());
        let secret = |name: &str| text(name).map(Secret::new);
        let path = |name: &str| text(name).map(PathBuf::from);
        Self {
            azure: AzureSettings {
                tenant_id: text("AZURE_TENANT_ID"),
                client_id: text("AZURE_CLIENT_ID"),
                client_secret: secret("AZURE_CLIENT_SECRET"),
                token_file: path("AZURE_FEDERATED_TOKEN_FILE"),
                authority: text("AZURE_AUTHORITY_HOST"),
            },
            vault: VaultSettings {
                address: text("VAULT_ADDR"),
                namespace: text("VAULT_NAMESPACE"),
                ca: path("VAULT_CACERT"),
                token: secret("VAULT_TOKEN"),
                role_id: text("VAULT_ROLE_ID"),
                secret_id: secret("VAULT_SECRET_ID"),
                jwt_role: text("VAULT_JWT_ROLE"),
                jwt_file: path("VAULT_JWT_FILE"),
                auth_path: text("VAULT_AUTH_PATH"),
                token_file: None,
            },
            key_vault_hosts: KeyVaultHosts::default(),
        }
    }
}

/// The identity for Azure Key Vault.
#[derive(Debug, Clone, Default)]
pub struct AzureSettings {
    /// `AZURE_TENANT_ID`: id or domain of the directory.
    pub tenant_id: Option<String>,
    /// `AZURE_CLIENT_ID`: id of the application or identity.
    pub client_id: Option<String>,
    /// `AZURE_CLIENT_SECRET`: secret of the application. Takes precedence over the file.
    pub client_secret: Option<Secret>,
    /// `AZURE_FEDERATED_TOKEN_FILE`: a file with an identity token. It is read for each token.
    pub token_file: Option<PathBuf>,
    /// `AZURE_AUTHORITY_HOST`: the issuer. `None`: `https://login.microsoftonline.com/`.
    pub authority: Option<String>,
}

/// The address of HashiCorp Vault, and the identity for it. The first one that is set applies: a
/// token, AppRole, JWT, a token's file.
#[derive(Debug, Clone, Default)]
pub struct VaultSettings {
    /// `VAULT_ADDR`: `https://HOST[:PORT]`.
    pub address: Option<String>,
    /// `VAULT_NAMESPACE`.
    pub namespace: Option<String>,
    /// `VAULT_CACERT`: PEM file of the trusted certificates. `None`: the system's.
    pub ca: Option<PathBuf>,
    /// `VAULT_TOKEN`.
    pub token: Option<Secret>,
    /// `VAULT_ROLE_ID` of an AppRole.
    pub role_id: Option<String>,
    /// `VAULT_SECRET_ID` of an AppRole. `None`: the role needs none.
    pub secret_id: Option<Secret>,
    /// `VAULT_JWT_ROLE`: the role for an identity token. `None`: the default of the auth method.
    pub jwt_role: Option<String>,
    /// `VAULT_JWT_FILE`: a file with an identity token. It is read for each login.
    pub jwt_file: Option<PathBuf>,
    /// `VAULT_AUTH_PATH`: mount point of the auth method. `None`: `approle` or `jwt`.
    pub auth_path: Option<String>,
    /// A file with a token, such as `~/.vault-token` from `vault login`.
    pub token_file: Option<PathBuf>,
}

/// Reads a token from the file that `variable` names.
pub(crate) async fn read_token(
    path: &std::path::Path,
    variable: &str,
) -> Result<Secret, VaultError> {
    use tokio::io::AsyncReadExt as _;
    let failed = |why: &dyn std::fmt::Display| {
        VaultError::new(format!(
            "the token in {} ({variable}) cannot be read: {why}",
            path.display()
        ))
    };
    let file = tokio::fs::File::open(path)
        .await
        .map_err(|error| failed(&error))?;
    let mut text = String::new();
    file.take(MAX_TOKEN)
        .read_to_string(&mut text)
        .await
        .map_err(|error| failed(&error))?;
    match text.trim() {
        "" => Err(failed(&"the file is empty")),
        token => Ok(Secret::new(token)),
    }
}
