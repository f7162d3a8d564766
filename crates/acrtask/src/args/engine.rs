//! Flags for the engine, the builder and the vaults, and for the permissions of steps.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::values::{self, CredentialArg};

/// Logins for registries.
#[derive(Debug, Clone, Args)]
pub(crate) struct RegistryLoginArgs {
    /// Set a login for a registry: HOST=USER:@FILE, HOST=USER:@- (standard input) or
    /// HOST=USER:env:NAME
    ///
    /// Without this flag, acrtask uses the logins of the Docker configuration (`docker login`). It
    /// rejects a password on the command line, because every process of the machine could read it.
    #[arg(long, value_name = "HOST=USER:FROM", value_parser = values::parse_credential_arg)]
    pub(crate) credential: Vec<CredentialArg>,
}

/// Docker engine, credentials and permissions.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Engine")]
pub(crate) struct EngineArgs {
    /// Run containers on this Docker engine: unix:///PATH or tcp://HOST:PORT [default:
    /// unix:///var/run/docker.sock]
    #[arg(long, env = "DOCKER_HOST", value_name = "URL")]
    pub(crate) docker_host: Option<String>,

    #[command(flatten)]
    pub(crate) login: RegistryLoginArgs,

    /// Allow steps a capability that can harm this machine; may be repeated
    #[arg(long, value_enum, value_name = "WHAT", value_delimiter = ',')]
    pub(crate) allow: Vec<Allowed>,
}

/// Capabilities that steps have only if the operator allows them by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Allowed {
    /// The engine's socket, for `cmd: docker ...` commands that acrtask does not execute itself:
    /// root on this machine
    DockerSocket,
    /// `privileged: true`: root on this machine
    Privileged,
    /// The machine's own network
    HostNetwork,
    /// Build caches in `--cache-from` that no run of the task has exported: they decide the layers
    /// of all builds
    CacheImports,
    /// The SSH agent of `SSH_AUTH_SOCK`, at runners: every task can then log in with its keys
    SshAgent,
    /// Frontends other than docker/dockerfile in `# syntax=` lines: they can read such caches too
    Frontends,
}

/// Vaults with the secrets of task files.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Vaults")]
pub(crate) struct VaultArgs {
    /// Read `keyvault:` secrets also from this host, in addition to those of Azure: HOST or
    /// HOST:PORT; may be repeated
    ///
    /// The host gets a token of the identity in AZURE_TENANT_ID, AZURE_CLIENT_ID and
    /// AZURE_CLIENT_SECRET or AZURE_FEDERATED_TOKEN_FILE. `vault:` secrets come from VAULT_ADDR,
    /// with VAULT_TOKEN, with VAULT_ROLE_ID and VAULT_SECRET_ID, or with VAULT_JWT_FILE and
    /// VAULT_JWT_ROLE.
    #[arg(
        long,
        env = "ACRTASK_KEY_VAULT_HOST",
        value_name = "HOST",
        value_delimiter = ','
    )]
    pub(crate) key_vault_host: Vec<String>,
}

/// Vault secrets that the tasks of a server may read.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Vaults")]
pub(crate) struct VaultRuleArgs {
    /// Allow these tasks to read these vault secrets:
    /// 'team/*=https://team.vault.azure.net/secrets/' or 'team/*=secret/team/'. By default, no task
    /// reads any; may be repeated
    ///
    /// TASKS is the name of a task, or a prefix and `*`. SECRETS is the address of one secret, or a
    /// prefix of addresses with `/` or `*` at the end: in a Key Vault by URL, in a Vault by the
    /// path for `vault kv get`.
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
    /// Use this buildkitd: unix:///PATH or tcp://HOST:PORT [default: the BuildKit inside the Docker
    /// engine] [env: ACRTASK_BUILDER, BUILDKIT_HOST]
    #[arg(long, value_name = "URL")]
    pub(crate) builder: Option<String>,

    /// Trust these certificate authorities for a tcp:// builder (PEM)
    #[arg(
        long,
        env = "ACRTASK_BUILDER_CA",
        value_name = "FILE",
        requires = "builder_cert"
    )]
    pub(crate) builder_ca: Option<PathBuf>,

    /// Authenticate to a tcp:// builder with this certificate (PEM)
    #[arg(
        long,
        env = "ACRTASK_BUILDER_CERT",
        value_name = "FILE",
        requires_all = ["builder_key", "builder_ca"]
    )]
    pub(crate) builder_cert: Option<PathBuf>,

    /// Use this private key for the certificate (PEM)
    #[arg(
        long,
        env = "ACRTASK_BUILDER_KEY",
        value_name = "FILE",
        requires_all = ["builder_cert", "builder_ca"]
    )]
    pub(crate) builder_key: Option<PathBuf>,

    /// Expect this name in the builder's certificate [default: the URL's host]
    #[arg(long, env = "ACRTASK_BUILDER_SERVER_NAME", value_name = "NAME")]
    pub(crate) builder_server_name: Option<String>,
}

impl BuilderArgs {
    /// Returns the builder's URL: the flag, then `ACRTASK_BUILDER`, then `BUILDKIT_HOST` of
    /// `buildctl`.
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
