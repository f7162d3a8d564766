//! External sources that a task file may read: `alias: src:` and the sources of `secrets`.
//!
//! The author of a task file may be untrusted. A file is read only inside the context, and a URL
//! only at a public address. This machine's environment is read only for a task of the operator's
//! own folder. Only those vault secrets are read that the operator lists for the task.

use std::{
    io::Read,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use acrtask_model::{Secret, error_chain};
use acrtask_registry::{AddressPolicy, net};
use acrtask_spec::{Lookup, SecretDeclaration, SecretSource};
use acrtask_vaults::{KeyVaultHosts, SecretAddress, VaultError};

use crate::{Files, VaultSecrets};

/// Maximum size of an alias source, in bytes.
const MAX_SOURCE: u64 = 1 << 20;
/// Maximum duration of a download.
const DOWNLOAD_TIME: Duration = Duration::from_secs(30);

/// Value of a secret whose vault is not read. It is also valid as base 64, for volumes.
const PLACEHOLDER: &str = "c2VjcmV0LXZhbHVl";

/// The external sources of a task file.
#[derive(Debug)]
pub(crate) struct TaskLookup<'v> {
    files: Files,
    vaults: VaultSecrets<'v>,
    /// Reason for a missing value that another attempt may read.
    unreachable: Mutex<Option<String>>,
}

impl<'v> TaskLookup<'v> {
    /// Returns a lookup in these files and vaults.
    pub(crate) fn new(files: Files, vaults: VaultSecrets<'v>) -> Self {
        Self {
            files,
            vaults,
            unreachable: Mutex::new(None),
        }
    }

    /// Returns the reason for an unread vault that another attempt may reach. `None` if every vault
    /// was read or refused.
    pub(crate) fn unreachable(&self) -> Option<String> {
        self.unreachable
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Returns the address of a secret in a vault. `None` if it has another source.
    fn vault_address(&self, source: &SecretSource) -> Option<Result<SecretAddress, VaultError>> {
        let any = KeyVaultHosts::any();
        let hosts = match &self.vaults {
            // A plan sends nothing, and the operator of a runner may list other hosts.
            VaultSecrets::Placeholders => &any,
            VaultSecrets::Read { vaults, .. } => vaults.hosts(),
        };
        match source {
            SecretSource::KeyVault { url, client_id } => {
                Some(SecretAddress::key_vault(url, client_id.as_deref(), hosts))
            }
            SecretSource::Vault(text) => Some(SecretAddress::vault(text)),
            SecretSource::Env(_) | SecretSource::File(_) => None,
        }
    }

    /// Reads secrets of vaults, in the order of `addresses`.
    fn read_vaults(
        &self,
        ids: &[&str],
        addresses: &[SecretAddress],
    ) -> Vec<Result<Secret, VaultError>> {
        let VaultSecrets::Read { vaults, access } = &self.vaults else {
            return vec![Ok(Secret::new(PLACEHOLDER)); addresses.len()];
        };
        if addresses.is_empty() {
            return Vec::new();
        }
        let found = block_on(async { Ok(vaults.read(addresses, access).await) });
        let found = found.unwrap_or_else(|why| {
            let error = VaultError {
                message: why,
                unreachable: true,
            };
            vec![Err(error); addresses.len()]
        });
        let reason = ids.iter().zip(&found).find_map(|(id, value)| match value {
            Err(error) if error.unreachable => {
                Some(format!("the secret `{id}` has no value: {error}"))
            }
            _ => None,
        });
        if reason.is_some() {
            *self
                .unreachable
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = reason;
        }
        found
    }

    fn read_file(&self, path: &str) -> Result<String, String> {
        let root = match &self.files {
            Files::OperatorFolder(root) | Files::Fetched(root) => root,
            Files::None => return Err("the run has no context that it could be in".into()),
        };
        let found = acrtask_source::paths::resolve_inside(root, Path::new(path))
            .map_err(|error| error.to_string())?;
        let mut text = String::new();
        std::fs::File::open(found)
            .and_then(|file| file.take(MAX_SOURCE + 1).read_to_string(&mut text))
            .map_err(|error| error.to_string())?;
        if text.len() as u64 > MAX_SOURCE {
            return Err(format!("it is larger than {} MiB", MAX_SOURCE >> 20));
        }
        Ok(text)
    }
}

impl Lookup for TaskLookup<'_> {
    fn alias_source(&self, location: &str) -> Result<String, String> {
        if location.starts_with("https://") || location.starts_with("http://") {
            return download(location);
        }
        self.read_file(location)
    }

    #[allow(clippy::disallowed_methods, reason = "the task names the variable")]
    fn secret(&self, declared: &SecretDeclaration) -> Result<Option<Secret>, String> {
        let own = matches!(self.files, Files::OperatorFolder(_));
        match &declared.source {
            SecretSource::KeyVault { .. } | SecretSource::Vault(_) => self
                .secrets(std::slice::from_ref(declared))
                .pop()
                .unwrap_or(Ok(None)),
            SecretSource::Env(_) if !own => {
                Err("a task file that was fetched cannot read this machine's environment".into())
            }
            SecretSource::Env(name) => match std::env::var(name) {
                Ok(value) => Ok(Some(Secret::new(value))),
                Err(_) => Err(format!("the environment has no {name}")),
            },
            SecretSource::File(path) => self.read_file(path).map(|text| Some(Secret::new(text))),
        }
    }

    /// Reads all secrets of vaults in one batch.
    fn secrets(&self, declared: &[SecretDeclaration]) -> Vec<Result<Option<Secret>, String>> {
        let (mut ids, mut addresses) = (Vec::new(), Vec::new());
        // `None`: a secret of a vault, in the order of `addresses`.
        let found: Vec<_> = declared
            .iter()
            .map(|one| match self.vault_address(&one.source) {
                Some(Ok(address)) => {
                    ids.push(one.id.as_str());
                    addresses.push(address);
                    None
                }
                Some(Err(error)) => Some(Err(error.message)),
                None => Some(self.secret(one)),
            })
            .collect();
        let mut read = self.read_vaults(&ids, &addresses).into_iter();
        let mut next = || match read.next() {
            Some(Ok(value)) => Ok(Some(value)),
            Some(Err(error)) => Err(error.message),
            None => Ok(None),
        };
        found
            .into_iter()
            .map(|found| found.unwrap_or_else(&mut next))
            .collect()
    }
}

/// Downloads the text at `url`. Blocks.
fn download(url: &str) -> Result<String, String> {
    block_on(async {
        tokio::time::timeout(DOWNLOAD_TIME, fetch_text(url))
            .await
            .unwrap_or_else(|_| Err(format!("no response within {} s", DOWNLOAD_TIME.as_secs())))
    })
}

/// Runs a future on a new thread, because the caller may be inside a runtime. Blocks.
fn block_on<T: Send>(future: impl Future<Output = Result<T, String>> + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        let running = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|e| e.to_string())?;
            runtime.block_on(future)
        });
        running
            .join()
            .unwrap_or_else(|_| Err("the download was interrupted".into()))
    })
}

async fn fetch_text(url: &str) -> Result<String, String> {
    let url: url::Url = url
        .parse()
        .map_err(|error| format!("it is not a URL: {error}"))?;
    net::check_literal(AddressPolicy::PublicOnly, &url).map_err(|error| error.to_string())?;
    let client =
        net::client(AddressPolicy::PublicOnly, true).map_err(|error| error_chain(&error))?;
    let mut response = client
        .get(url)
        .send()
        .await
        .and_then(reqwest::Response::error_for_status)
        .map_err(|error| error_chain(&error))?;
    let mut text = Vec::new();
    while let Some(chunk) = response
        .chunk()
        .await
        .map_err(|error| error_chain(&error))?
    {
        text.extend_from_slice(&chunk);
        if text.len() as u64 > MAX_SOURCE {
            return Err(format!("it is larger than {} MiB", MAX_SOURCE >> 20));
        }
    }
    String::from_utf8(text).map_err(|_| "it is not UTF-8 text".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(files: Files) -> TaskLookup<'static> {
        TaskLookup::new(files, VaultSecrets::Placeholders)
    }

    fn env(name: &str) -> SecretDeclaration {
        SecretDeclaration {
            id: "s".into(),
            source: SecretSource::Env(name.into()),
        }
    }

    #[test]
    fn files_are_read_only_inside_the_context() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        std::fs::write(root.join("aliases.yaml"), "values: {}").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.join("link")).unwrap();
        let lookup = lookup(Files::OperatorFolder(root));
        assert_eq!(lookup.alias_source("aliases.yaml"), Ok("values: {}".into()));
        for elsewhere in ["/etc/passwd", "../x", "link"] {
            assert!(lookup.alias_source(elsewhere).is_err(), "{elsewhere}");
        }
        let none = TaskLookup::new(Files::None, VaultSecrets::Placeholders);
        assert!(none.alias_source("aliases.yaml").is_err());
    }

    #[test]
    fn private_addresses_are_refused() {
        for url in [
            "http://127.0.0.1:1/x",
            "http://169.254.169.254/latest/meta-data",
            "http://[::1]/",
        ] {
            let error = lookup(Files::None).alias_source(url).unwrap_err();
            assert!(!error.contains("refused to connect"), "{error}");
        }
    }

    #[test]
    fn environment_is_read_only_for_the_operators_folder() {
        let own = lookup(Files::OperatorFolder("/".into()));
        assert!(own.secret(&env("PATH")).unwrap().is_some());
        assert!(own.secret(&env("NO_SUCH_VARIABLE_HERE")).is_err());
        assert!(
            lookup(Files::Fetched("/".into()))
                .secret(&env("PATH"))
                .is_err()
        );
    }
}
