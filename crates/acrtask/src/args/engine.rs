//! What carries the plan out, and what it may do.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::values::{self, CredentialArg};

/// The Docker engine, credentials, permissions.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Engine")]
pub(crate) struct EngineArgs {
    /// The Docker engine that runs containers: unix:///PATH or tcp://HOST:PORT [default: unix:///var/run/docker.sock]
    #[arg(long, env = "DOCKER_HOST", value_name = "URL")]
    pub(crate) docker_host: Option<String>,

    /// A login for a registry: HOST=USER:@FILE, HOST=USER:@- (standard input) or HOST=USER:env:NAME
    ///
    /// Where none is given, the Docker configuration (`docker login`) is asked. A password itself is
    /// refused here: every process of the machine could read it.
    #[arg(long, value_name = "HOST=USER:FROM", value_parser = values::credential_arg)]
    pub(crate) credential: Vec<CredentialArg>,

    /// Let steps have what can harm this machine; may be repeated
    #[arg(long, value_enum, value_name = "WHAT", value_delimiter = ',')]
    pub(crate) allow: Vec<Allowed>,
}

/// What steps are refused unless the operator allows it by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Allowed {
    /// The engine's socket, for `cmd: docker ...` words that acrtask does not carry out itself: root on this machine
    DockerSocket,
    /// `privileged: true`: root on this machine
    Privileged,
    /// The machine's own network
    HostNetwork,
    /// Build caches that no run of the task has exported, in `--cache-from`: they decide layers of all builds
    CacheImports,
    /// Frontends other than docker/dockerfile, in `# syntax=` lines: they can read such caches too
    Frontends,
}

/// The vaults that secrets of task files are read from.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Vaults")]
pub(crate) struct VaultArgs {
    /// Read `keyvault:` secrets at this host too, beside those of Azure: HOST or HOST:PORT; may be repeated
    ///
    /// It gets a token of the identity in AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET or
    /// AZURE_FEDERATED_TOKEN_FILE. `vault:` secrets are read at VAULT_ADDR, with VAULT_TOKEN, with VAULT_ROLE_ID and
    /// VAULT_SECRET_ID, or with VAULT_JWT_FILE and VAULT_JWT_ROLE.
    #[arg(
        long,
        env = "ACRTASK_KEY_VAULT_HOST",
        value_name = "HOST",
        value_delimiter = ','
    )]
    pub(crate) key_vault_host: Vec<String>,
}

/// The secrets of vaults that tasks of a server may read.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Vaults")]
pub(crate) struct VaultRuleArgs {
    /// Let these tasks read these secrets of vaults: 'team/*=https://team.vault.azure.net/secrets/' or
    /// 'team/*=secret/team/'. By default, no task reads any; may be repeated
    ///
    /// TASKS is the name of a task, or the beginning of names and `*`. SECRETS is the address of one secret, or the
    /// beginning of addresses with `/` or `*` at the end: in a Key Vault by URL, in a Vault by the path that
    /// `vault kv get` takes.
    #[arg(
        long,
        env = "ACRTASK_ALLOW_VAULT",
        value_name = "TASKS=SECRETS",
        value_delimiter = ','
    )]
    pub(crate) allow_vault: Vec<acrtask_vaults::VaultRule>,

    #[command(flatten)]
    pub(crate) vault: VaultArgs,
}

/// The BuildKit endpoint.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Builder")]
pub(crate) struct BuilderArgs {
    /// A buildkitd: unix:///PATH or tcp://HOST:PORT [default: the BuildKit inside the Docker engine] [env: ACRTASK_BUILDER, BUILDKIT_HOST]
    #[arg(long, value_name = "URL")]
    pub(crate) builder: Option<String>,

    /// Certificates of the authorities that a tcp:// builder is trusted by (PEM)
    #[arg(
        long,
        env = "ACRTASK_BUILDER_CA",
        value_name = "FILE",
        requires = "builder_cert"
    )]
    pub(crate) builder_ca: Option<PathBuf>,

    /// Our own certificate for a tcp:// builder (PEM)
    #[arg(
        long,
        env = "ACRTASK_BUILDER_CERT",
        value_name = "FILE",
        requires_all = ["builder_key", "builder_ca"]
    )]
    pub(crate) builder_cert: Option<PathBuf>,

    /// Its key (PEM)
    #[arg(
        long,
        env = "ACRTASK_BUILDER_KEY",
        value_name = "FILE",
        requires_all = ["builder_cert", "builder_ca"]
    )]
    pub(crate) builder_key: Option<PathBuf>,

    /// The name in the builder's certificate, where it is not the URL's host
    #[arg(long, env = "ACRTASK_BUILDER_SERVER_NAME", value_name = "NAME")]
    pub(crate) builder_server_name: Option<String>,
}

impl BuilderArgs {
    /// The builder's URL: the flag, then `ACRTASK_BUILDER`, then `BUILDKIT_HOST`, as `buildctl` reads it.
    pub(crate) fn url(&self) -> Option<String> {
        self.builder
            .clone()
            .or_else(|| {
                ["ACRTASK_BUILDER", "BUILDKIT_HOST"]
                    .iter()
                    .find_map(|name| std::env::var(name).ok())
            })
            .filter(|url| !url.is_empty())
    }
}
