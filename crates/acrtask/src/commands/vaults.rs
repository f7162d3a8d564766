//! From flags and the environment to the vaults that secrets are read from.

use std::path::PathBuf;

use acrtask_job::{Files, VaultSecrets};
use acrtask_vaults::{Access, KeyVaultHosts, Settings, Vaults};

use crate::{
    args::engine::{VaultArgs, VaultRuleArgs},
    error::CliError,
};

/// Returns the vaults of a user's own runs, with the user's identity.
pub(crate) fn of_user(args: &VaultArgs) -> Result<Vaults, CliError> {
    let mut settings = settings(args)?;
    // What `vault login` has left there.
    settings.vault.token_file = std::env::var_os("HOME")
        .filter(|home| !home.is_empty())
        .map(|home| PathBuf::from(home).join(".vault-token"));
    Ok(Vaults::new(settings, Vec::new()))
}

/// Returns the vaults of a runner, with the identity and the rules of its operator.
pub(crate) fn of_runner(args: &VaultRuleArgs) -> Result<Vaults, CliError> {
    let settings = settings(&args.vault)?;
    for rule in &args.allow_vault {
        rule.check_host(&settings.key_vault_hosts)
            .map_err(|error| CliError::usage(format!("--allow-vault {error}")))?;
    }
    Ok(Vaults::new(settings, args.allow_vault.clone()))
}

fn settings(args: &VaultArgs) -> Result<Settings, CliError> {
    let hosts = KeyVaultHosts::new(args.key_vault_host.iter().cloned())
        .map_err(|error| CliError::usage(format!("--key-vault-host {error}")))?;
    Ok(Settings {
        key_vault_hosts: hosts,
        ..Settings::from_env(|name| std::env::var(name).ok())
    })
}

/// Returns how a run on the user's machine gets secrets of vaults: with the user's identity, unless others wrote its
/// files.
pub(crate) fn secrets_of<'v>(vaults: &'v Vaults, files: &Files) -> VaultSecrets<'v> {
    let access = match files {
        Files::OfTheOperator(_) | Files::None => Access::Everything,
        Files::FromElsewhere(_) => Access::Nothing(
            "a task file that was fetched cannot read vaults with this user's identity".into(),
        ),
    };
    VaultSecrets::Read { vaults, access }
}
