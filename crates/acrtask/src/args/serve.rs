//! `acrtask serve`: the control plane, with a runner inside.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use acrtask_server::serve::Network;
use clap::Args;

use super::{
    backup::DataArgs,
    control::TelemetryArgs,
    engine::{BuilderArgs, EngineArgs, VaultRuleArgs},
    values,
};

/// `acrtask serve`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  acrtask serve                                everything on this machine
  acrtask serve --listen 0.0.0.0:7070 --tls-cert cert.pem --tls-key key.pem \\
    --public-url https://ci.example.com
  acrtask serve --database 'postgres://acrtask@db/acrtask?sslmode=verify-full' --no-runner \\
    --blobs s3://bucket/acrtask --key-file /etc/acrtask/key --listen 0.0.0.0:7070 --tls-cert cert.pem --tls-key key.pem
  acrtask serve --tasks tasks/                 the tasks stand in files, and follow them
  acrtask serve --reset-admin-token            a new admin token, where the last one is lost

Where nothing else is said, the database is a SQLite file, logs and contexts are files, and a runner
is inside. The first start prints the first token, once. Secrets of tasks are encrypted with the key
in --key-file: whoever loses it loses them. SIGTERM ends it: the runner inside takes nothing new and
finishes what it holds.

Exit codes:
    0  it was asked to end
    2  the usage or a setting is wrong
    3  the address is taken, or the database, the blobs or the engine could not be reached")]
pub(crate) struct ServeArgs {
    /// Where it listens, for the API and for runners
    #[arg(
        long,
        env = "ACRTASK_LISTEN",
        value_name = "HOST:PORT",
        default_value = "127.0.0.1:7070"
    )]
    pub(crate) listen: SocketAddr,

    #[command(flatten)]
    pub(crate) data: DataArgs,

    /// The server's certificate, with those between it and the authority (PEM)
    #[arg(
        long,
        env = "ACRTASK_TLS_CERT",
        value_name = "FILE",
        requires = "tls_key"
    )]
    pub(crate) tls_cert: Option<PathBuf>,

    /// Its key (PEM)
    #[arg(
        long,
        env = "ACRTASK_TLS_KEY",
        value_name = "FILE",
        requires = "tls_cert"
    )]
    pub(crate) tls_key: Option<PathBuf>,

    /// Serve other machines without TLS: everybody on the way can read tokens and secrets
    #[arg(long, env = "ACRTASK_ALLOW_PLAINTEXT", value_parser = clap::builder::FalseyValueParser::new())]
    pub(crate) allow_plaintext: bool,

    /// Where people, forges and registries reach it: https://HOST[:PORT]. Stands in addresses of webhooks and in links
    #[arg(long, env = "ACRTASK_PUBLIC_URL", value_name = "URL", value_parser = values::public_url)]
    pub(crate) public_url: Option<url::Url>,

    /// A proxy in front, by address or range (10.0.0.0/8): its X-Forwarded-For or Forwarded header names the client that limits are counted for; may be repeated
    #[arg(
        long,
        env = "ACRTASK_TRUSTED_PROXY",
        value_name = "CIDR",
        value_delimiter = ','
    )]
    pub(crate) trusted_proxy: Vec<Network>,

    /// A folder of task files that the server's tasks follow; may be repeated
    #[arg(long, value_name = "DIR")]
    pub(crate) tasks: Vec<PathBuf>,

    /// Record this key file and these blobs as those of the database
    ///
    /// Without it, a server refuses to start where the database was used with another key file or
    /// other blobs. For the case that these are lost: what only they hold stays unreadable.
    #[arg(long)]
    pub(crate) adopt_storage: bool,

    /// Make a new token with the scope admin, print it once, and exit without serving
    ///
    /// For the case that no such token is left. A server may run on the same database meanwhile.
    /// Other tokens stay as they are.
    #[arg(long)]
    pub(crate) reset_admin_token: bool,

    /// No runner inside
    #[arg(long)]
    pub(crate) no_runner: bool,

    /// Let the contexts of runs on the runner inside, and those whom tasks tell of results, be at private addresses
    #[arg(long)]
    pub(crate) allow_private_addresses: bool,

    /// Let the tasks whose names begin so share build caches and warm runners: 'team/*'. By default, each
    /// task has its own. May be repeated; the longest match wins
    #[arg(
        long,
        env = "ACRTASK_TRUST_DOMAIN",
        value_name = "PATTERN",
        value_delimiter = ','
    )]
    pub(crate) trust_domain: Vec<acrtask_model::TaskPattern>,

    /// Runs that the runner inside carries out at once
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) slots: u32,

    /// How long the runs that the runner inside holds may go on after SIGTERM
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = values::duration)]
    pub(crate) drain_timeout: Duration,

    /// How long runs, their logs and their files are kept after their end
    #[arg(long, value_name = "TIME", default_value = "720h", value_parser = values::duration)]
    pub(crate) retention: Duration,

    /// How often each base image is looked at that images of tasks stand on
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = values::duration)]
    pub(crate) base_interval: Duration,

    /// How often the tags of a base image are listed for which a task has a rule for newer ones
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = values::duration)]
    pub(crate) tags_interval: Duration,

    /// Requests a second that a registry gets at most because of base images, with one login
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) base_rate: u32,

    /// Base images that are looked at side by side
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) base_parallel: u32,

    /// Look for base images at this registry without TLS; may be repeated
    #[arg(long, value_name = "HOST")]
    pub(crate) insecure_registry: Vec<String>,

    /// The largest context that may be uploaded: a number of bytes, or with K, M or G behind it
    #[arg(long, value_name = "SIZE", default_value = "4G", value_parser = values::size)]
    pub(crate) context_limit: u64,

    /// Free disk below which no new contexts, runs and logs are stored: a number of bytes, or with K, M or G behind it; 0 for none
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = values::size_or_none)]
    pub(crate) min_free_disk: u64,

    /// A lease that a runner does not renew for so long is over, and its run goes to another one
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = values::duration, hide = true)]
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
