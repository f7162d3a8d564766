//! Builds the vault settings from flags and the environment.

use std::path::PathBuf;

use acrtask_job::{Files, VaultSecrets};
use acrtask_vaults::{Access, KeyVaultHosts, Settings, Vaults};

use crate::{
    args::engine::{VaultArgs, VaultRuleArgs},
    error::CliError,
};

/// Returns the vaults of the user's own runs, with the user's identity.
pub(crate) fn user_vaults(args: &VaultArgs) -> Result<Vaults, CliError> {
    let mut settings = vault_settings(args)?;
    // `vault login` stores its token in this file.
    settings.vault.token_file = std::env::var_os("HOME")
        .filter(|home| !home.is_empty())
        .map(|home| PathBuf::from(home).join(".vault-token"));
    Ok(Vaults::new(settings, Vec::new()))
}

/// Returns the vaults of a runner, with its operator's identity and rules.
pub(crate) fn runner_vaults(args: &VaultRuleArgs) -> Result<Vaults, CliError> {
    let settings = vault_settings(&args.vault)?;
    for rule in &args.allow_vault {
        rule.check_host(&settings.key_vault_hosts)
            .map_err(|error| CliError::usage(format!("--allow-vault {error}")))?;
    }
    Ok(Vaults::new(settings, args.allow_vault.clone()))
}

fn vault_settings(args: &VaultArgs) -> Result<Settings, CliError> {
    let hosts = KeyVaultHosts::new(args.key_vault_host.iter().cloned())
        .map_err(|error| CliError::usage(format!("--key-vault-host {error}")))?;
    Ok(Settings {
        key_vault_hosts: hosts,
        ..Settings::from_env(|name| std::env::var(name).ok())
    })
}

/// Returns the access of a local run to vault secrets: with the user's identity if the files are
/// the user's own, none otherwise.
pub(crate) fn vault_secrets<'v>(vaults: &'v Vaults, files: &Files) -> VaultSecrets<'v> {
    let access = match files {
        Files::OperatorFolder(_) | Files::None => Access::Everything,
        Files::Fetched(_) => Access::Nothing(
            "a fetched task file cannot read vaults with this user's identity".into(),
        ),
    };
    VaultSecrets::Read { vaults, access }
}
