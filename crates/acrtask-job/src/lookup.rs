//! What a task file may ask of the outside while it is read: `alias: src:` and the sources of `secrets`.
//!
//! The author of a task file need not be trusted with this machine: a file is read only inside the context,
//! a URL only at a public address, and this machine's environment only for a task of the operator's own
//! folder. Of vaults, it reads what the operator lists for its task.

use std::{
    io::Read,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use acrtask_model::{Secret, chain};
use acrtask_registry::{AddressPolicy, net};
use acrtask_spec::{Lookup, SecretDeclaration, SecretSource};
use acrtask_vaults::{KeyVaultHosts, SecretAddress, VaultError};

use crate::{Files, VaultSecrets};

/// The longest alias source that is read, in bytes.
const MAX_SOURCE: u64 = 1 << 20;
/// The time that a download may take.
const DOWNLOAD_TIME: Duration = Duration::from_secs(30);

/// Value of a secret whose vault is not read. It is also valid as base 64, for volumes.
const PLACEHOLDER: &str = "c2VjcmV0LXZhbHVl";

/// The outside of a task file.
#[derive(Debug)]
pub(crate) struct Outside<'v> {
    files: Files,
    vaults: VaultSecrets<'v>,
    /// Reason of a missing value that another attempt may read.
    unreachable: Mutex<Option<String>>,
}

impl<'v> Outside<'v> {
    /// With these files and vaults.
    pub(crate) fn new(files: Files, vaults: VaultSecrets<'v>) -> Self {
        Self {
            files,
            vaults,
            unreachable: Mutex::new(None),
        }
    }

    /// Returns why a vault was not read that another attempt may reach.
    pub(crate) fn unreachable(&self) -> Option<String> {
        self.unreachable
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Returns the address of a secret in a vault. `None` if it has another source.
    fn address(&self, source: &SecretSource) -> Option<Result<SecretAddress, VaultError>> {
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
    fn read(&self, ids: &[&str], addresses: &[SecretAddress]) -> Vec<Result<Secret, VaultError>> {
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

    fn file(&self, path: &str) -> Result<String, String> {
        let root = match &self.files {
            Files::OfTheOperator(root) | Files::FromElsewhere(root) => root,
            Files::None => return Err("the run has no context that it could be in".into()),
        };
        let found = acrtask_source::paths::inside(root, Path::new(path))
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

impl Lookup for Outside<'_> {
    fn alias_source(&self, location: &str) -> Result<String, String> {
        if location.starts_with("https://") || location.starts_with("http://") {
            return download(location);
        }
        self.file(location)
    }

    fn secret(&self, declared: &SecretDeclaration) -> Result<Option<Secret>, String> {
        let own = matches!(self.files, Files::OfTheOperator(_));
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
            SecretSource::File(path) => self.file(path).map(|text| Some(Secret::new(text))),
        }
    }

    /// Reads all secrets of vaults together.
    fn secrets(&self, declared: &[SecretDeclaration]) -> Vec<Result<Option<Secret>, String>> {
        let (mut ids, mut addresses) = (Vec::new(), Vec::new());
        // `None`: a secret of a vault, in the order of `addresses`.
        let found: Vec<_> = declared
            .iter()
            .map(|one| match self.address(&one.source) {
                Some(Ok(address)) => {
                    ids.push(one.id.as_str());
                    addresses.push(address);
                    None
                }
                Some(Err(error)) => Some(Err(error.message)),
                None => Some(self.secret(one)),
            })
            .collect();
        let mut read = self.read(&ids, &addresses).into_iter();
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

/// The text at `url`. Blocks.
fn download(url: &str) -> Result<String, String> {
    block_on(async {
        tokio::time::timeout(DOWNLOAD_TIME, fetch(url))
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {} s", DOWNLOAD_TIME.as_secs())))
    })
}

/// Runs on a thread of its own, because the caller may be inside a runtime. Blocks.
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
            .unwrap_or_else(|_| Err("the download broke off".into()))
    })
}

async fn fetch(url: &str) -> Result<String, String> {
    let url: url::Url = url
        .parse()
        .map_err(|error| format!("it is no URL: {error}"))?;
    net::check_literal(AddressPolicy::PublicOnly, &url).map_err(|error| error.to_string())?;
    let client = net::client(AddressPolicy::PublicOnly, true).map_err(|error| chain(&error))?;
    let mut response = client
        .get(url)
        .send()
        .await
        .and_then(reqwest::Response::error_for_status)
        .map_err(|error| chain(&error))?;
    let mut text = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| chain(&error))? {
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

    fn outside(files: Files) -> Outside<'static> {
        Outside::new(files, VaultSecrets::Placeholders)
    }

    fn env(name: &str) -> SecretDeclaration {
        SecretDeclaration {
            id: "s".into(),
            source: SecretSource::Env(name.into()),
        }
    }

    #[test]
    fn files_only_inside_the_context() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        std::fs::write(root.join("aliases.yaml"), "values: {}").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.join("link")).unwrap();
        let outside = outside(Files::OfTheOperator(root));
        assert_eq!(
            outside.alias_source("aliases.yaml"),
            Ok("values: {}".into())
        );
        for elsewhere in ["/etc/passwd", "../x", "link"] {
            assert!(outside.alias_source(elsewhere).is_err(), "{elsewhere}");
        }
        let none = Outside::new(Files::None, VaultSecrets::Placeholders);
        assert!(none.alias_source("aliases.yaml").is_err());
    }

    #[test]
    fn addresses_of_this_machine_are_refused() {
        for url in [
            "http://127.0.0.1:1/x",
            "http://169.254.169.254/latest/meta-data",
            "http://[::1]/",
        ] {
            let error = outside(Files::None).alias_source(url).unwrap_err();
            assert!(!error.contains("refused to connect"), "{error}");
        }
    }

    #[test]
    fn the_environment_only_for_the_operators_own_folder() {
        let own = outside(Files::OfTheOperator("/".into()));
        assert!(own.secret(&env("PATH")).unwrap().is_some());
        assert!(own.secret(&env("NO_SUCH_VARIABLE_HERE")).is_err());
        assert!(
            outside(Files::FromElsewhere("/".into()))
                .secret(&env("PATH"))
                .is_err()
        );
    }
}
