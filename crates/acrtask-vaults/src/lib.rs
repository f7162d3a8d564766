//! Secrets in vaults that task files name: Azure Key Vault (`keyvault:`) and HashiCorp Vault
//! (`vault:`).
//!
//! Vaults are read over REST with the identity of the operator. This is the user for a local run,
//! and the runner for a run of a server. The identity comes from the standard environment variables
//! ([`Settings::from_env`]).
//!
//! Invariants:
//! - A token of the operator is sent only to its issuer and to the vault, over TLS or to this
//!   machine, and along no redirect.
//! - A task author chooses a Key Vault only among the hosts of [`KeyVaultHosts`], and no host of a
//!   Vault.
//! - A task of a server reads only the addresses that a [`VaultRule`] of the operator lists for its
//!   name.
//! - Values and tokens exist only as [`Secret`].
//!
//! Left out: writing to vaults, dynamic secrets, certificates and keys of Key Vault, managed
//! identities of virtual machines.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod address;
mod azure;
mod hashicorp;
mod http;
mod rules;
mod settings;
mod tokens;

use std::time::Duration;

use acrtask_model::{Secret, mask::MIN_LEN};
use futures::{StreamExt as _, stream};
use tokio::time::{Instant, timeout_at};

pub use self::{
    address::{KeyVaultHosts, KeyVaultSecret, SecretAddress, VaultSecret},
    rules::{Access, VaultRule},
    settings::{AzureSettings, Settings, VaultSettings},
};
use self::{azure::Azure, hashicorp::HashiCorp};

/// Maximum size of a secret's value, in bytes.
pub const MAX_VALUE: usize = 64 << 10;
/// Maximum number of vault secrets of one task file.
pub const MAX_SECRETS: usize = 100;
/// Number of concurrent requests to vaults.
const PARALLEL: usize = 4;
/// Maximum time to read all secrets of a run.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(60);

/// An error for a secret that was not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct VaultError {
    /// The cause in one sentence, for the author of the task.
    pub message: String,
    /// Set if another attempt may succeed: the vault is unreachable or overloaded.
    pub unreachable: bool,
}

impl VaultError {
    fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            unreachable: false,
        }
    }

    fn unreachable(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            unreachable: true,
        }
    }
}

/// The vaults that this machine reads, with the identity of its operator.
///
/// Caches its tokens until they expire.
#[derive(Debug)]
pub struct Vaults {
    azure: Azure,
    vault: HashiCorp,
    hosts: KeyVaultHosts,
    rules: Vec<VaultRule>,
}

impl Vaults {
    /// Creates vaults with these settings, and rules for [`Access::Task`].
    pub fn new(settings: Settings, rules: Vec<VaultRule>) -> Self {
        Self {
            azure: Azure::new(settings.azure),
            vault: HashiCorp::new(settings.vault),
            hosts: settings.key_vault_hosts,
            rules,
        }
    }

    /// Returns the hosts of Key Vaults that secrets may be read from.
    pub fn hosts(&self) -> &KeyVaultHosts {
        &self.hosts
    }

    /// Reads secrets. The results are in the order of `addresses`.
    pub async fn read(
        &self,
        addresses: &[SecretAddress],
        access: &Access,
    ) -> Vec<Result<Secret, VaultError>> {
        if addresses.len() > MAX_SECRETS {
            let error = VaultError::new(format!(
                "the file reads {} secrets of vaults, and may read {MAX_SECRETS}",
                addresses.len()
            ));
            return vec![Err(error); addresses.len()];
        }
        // Clients belong to the runtime of the caller, so they are not cached.
        let clients = http::Clients::default();
        let deadline = Instant::now() + TOTAL_TIMEOUT;
        let reading: Vec<_> = addresses
            .iter()
            .map(|address| self.read_until(deadline, &clients, address, access))
            .collect();
        stream::iter(reading).buffered(PARALLEL).collect().await
    }

    async fn read_until(
        &self,
        deadline: Instant,
        clients: &http::Clients,
        address: &SecretAddress,
        access: &Access,
    ) -> Result<Secret, VaultError> {
        access.check_access(address, &self.rules)?;
        let late = |_| {
            VaultError::unreachable(format!(
                "{address} was not read within {} s",
                TOTAL_TIMEOUT.as_secs()
            ))
        };
        let reading = self.read_one(clients, address);
        let value = timeout_at(deadline, reading).await.map_err(late)??;
        check_value(address, &value)?;
        Ok(value)
    }

    async fn read_one(
        &self,
        clients: &http::Clients,
        address: &SecretAddress,
    ) -> Result<Secret, VaultError> {
        match address {
            SecretAddress::KeyVault(secret) => self.azure.read(clients, secret).await,
            SecretAddress::Vault(secret) => self.vault.read(clients, secret).await,
        }
    }
}

fn check_value(address: &SecretAddress, value: &Secret) -> Result<(), VaultError> {
    match value.expose().len() {
        0 => Err(VaultError::new(format!("the value of {address} is empty"))),
        1..MIN_LEN => Err(VaultError::new(format!(
            "the value of {address} has fewer than {MIN_LEN} bytes, and so cannot be masked in logs"
        ))),
        MIN_LEN..=MAX_VALUE => Ok(()),
        length => Err(VaultError::new(format!(
            "the value of {address} has {length} bytes, and may have {MAX_VALUE}"
        ))),
    }
}

#[cfg(test)]
mod tests;
