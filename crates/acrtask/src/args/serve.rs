//! Arguments of `acrtask serve`: a server with a built-in runner.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use acrtask_server::{ArmRegistry, serve::Network};
use clap::Args;

use super::{
    backup::DataArgs,
    engine::{BuilderArgs, EngineArgs, VaultRuleArgs},
    telemetry::TelemetryArgs,
    values,
};

/// Arguments of `acrtask serve`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  acrtask serve                                run everything on this machine
  acrtask serve --listen 0.0.0.0:7070 --tls-cert cert.pem --tls-key key.pem \\
    --public-url https://ci.example.com
  acrtask serve --database 'postgres://acrtask@db/acrtask?sslmode=verify-full' --no-runner \\
    --blobs s3://bucket/acrtask --key-file /etc/acrtask/key --listen 0.0.0.0:7070 --tls-cert cert.pem --tls-key key.pem
  acrtask serve --tasks tasks/                 keep the tasks as in these files
  acrtask serve --reset-admin-token            create a new admin token if the last one is lost

By default, the database is a SQLite file, logs and contexts are files, and a runner is built in. The
first start prints the first token, once. The key in --key-file encrypts the secrets of tasks; without
it, they are lost. SIGTERM stops the server: the built-in runner leases no new runs and finishes its
current ones.

Exit codes:
    0  a signal stopped the server
    2  the usage or a setting is wrong
    3  the address is in use, or the database, the blobs or the engine could not be reached")]
pub(crate) struct ServeArgs {
    /// Listen on this address for the API and for runners
    #[arg(
        long,
        env = "ACRTASK_LISTEN",
        value_name = "HOST:PORT",
        default_value = "127.0.0.1:7070"
    )]
    pub(crate) listen: SocketAddr,

    #[command(flatten)]
    pub(crate) data: DataArgs,

    /// Use this TLS certificate for the server, with its intermediate certificates (PEM)
    #[arg(
        long,
        env = "ACRTASK_TLS_CERT",
        value_name = "FILE",
        requires = "tls_key"
    )]
    pub(crate) tls_cert: Option<PathBuf>,

    /// Use this private key for the certificate (PEM)
    #[arg(
        long,
        env = "ACRTASK_TLS_KEY",
        value_name = "FILE",
        requires = "tls_cert"
    )]
    pub(crate) tls_key: Option<PathBuf>,

    /// Serve other machines without TLS; anyone on the network path can read tokens and secrets
    #[arg(long, env = "ACRTASK_ALLOW_PLAINTEXT", value_parser = clap::builder::FalseyValueParser::new())]
    pub(crate) allow_plaintext: bool,

    /// Set the address that people, forges and registries use: https://HOST[:PORT]; it is part of
    /// webhook addresses and links
    #[arg(long, env = "ACRTASK_PUBLIC_URL", value_name = "URL", value_parser = values::parse_public_url)]
    pub(crate) public_url: Option<url::Url>,

    /// Serve the API of Azure Resource Manager, so that `az acr build`, `run` and `task` use this
    /// server: the registry HOST has the name NAME; may be repeated
    ///
    /// Needs TLS. The start prints the `az` commands to sign in.
    #[arg(
        long,
        env = "ACRTASK_ARM",
        value_name = "NAME=HOST",
        value_delimiter = ','
    )]
    pub(crate) arm: Vec<ArmRegistry>,

    /// Trust this reverse proxy, an address or range (10.0.0.0/8): its X-Forwarded-For or Forwarded
    /// header names the client for rate limits; may be repeated
    #[arg(
        long,
        env = "ACRTASK_TRUSTED_PROXY",
        value_name = "CIDR",
        value_delimiter = ','
    )]
    pub(crate) trusted_proxy: Vec<Network>,

    /// Keep the server's tasks as defined in this folder of task files; may be repeated
    #[arg(long, value_name = "DIR")]
    pub(crate) tasks: Vec<PathBuf>,

    /// Record this key file and these blobs as those of the database
    ///
    /// By default, a server refuses to start if its database was last used with another key file or
    /// other blobs. Use this flag if they are lost: secrets and logs in them stay unreadable.
    #[arg(long)]
    pub(crate) adopt_storage: bool,

    /// Create a new token with the scope admin, print it once, and exit without serving
    ///
    /// Use this flag if no admin token is left. Another server may run on the same database
    /// meanwhile. Other tokens stay valid.
    #[arg(long)]
    pub(crate) reset_admin_token: bool,

    /// Run no built-in runner
    #[arg(long)]
    pub(crate) no_runner: bool,

    /// Allow private addresses for contexts of runs on the built-in runner and for notification
    /// targets of tasks
    #[arg(long)]
    pub(crate) allow_private_addresses: bool,

    /// Let the tasks that match a prefix share build caches and warm runners: 'team/*'. By default,
    /// each task has its own. May be repeated; the longest match applies
    #[arg(
        long,
        env = "ACRTASK_TRUST_DOMAIN",
        value_name = "PATTERN",
        value_delimiter = ','
    )]
    pub(crate) trust_domain: Vec<acrtask_model::TaskPattern>,

    /// Execute at most N runs at once on the built-in runner
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) slots: u32,

    /// Let runs on the built-in runner continue for at most this time after SIGTERM
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = values::parse_duration)]
    pub(crate) drain_timeout: Duration,

    /// Keep finished runs, their logs and their files for this time
    #[arg(long, value_name = "TIME", default_value = "720h", value_parser = values::parse_duration)]
    pub(crate) retention: Duration,

    /// Set the interval between checks of each base image
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = values::parse_duration)]
    pub(crate) base_interval: Duration,

    /// Set the interval between listings of a base image's tags, if a task has a rule for newer
    /// tags
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = values::parse_duration)]
    pub(crate) tags_interval: Duration,

    /// Send at most N requests per second and login to a registry for checks of base images
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) base_rate: u32,

    /// Check at most N base images at once
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) base_parallel: u32,

    /// Connect without TLS to this registry for checks of base images; may be repeated
    #[arg(long, value_name = "HOST")]
    pub(crate) insecure_registry: Vec<String>,

    /// Accept contexts up to this size: a number of bytes, or with K, M or G after it
    #[arg(long, value_name = "SIZE", default_value = "4G", value_parser = values::parse_size)]
    pub(crate) context_limit: u64,

    /// Store no new contexts, runs and logs while less disk than this is free: a number of bytes,
    /// or with K, M or G after it; 0 for no limit
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = values::parse_size_or_zero)]
    pub(crate) min_free_disk: u64,

    /// Expire a lease that the runner does not renew for this time; another runner then gets the
    /// run
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = values::parse_duration, hide = true)]
    pub(crate) lease: Duration,

    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    #[command(flatten)]
    pub(crate) vaults: VaultRuleArgs,
    #[command(flatten)]
    pub(crate) builder: BuilderArgs,
    #[command(flatten)]
    pub(crate) telemetry: TelemetryArgs,
}
