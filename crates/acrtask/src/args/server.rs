//! Flags for the server, and for the placement of a run there.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::values::{self, Pair};

/// The server that a command connects to.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Server")]
pub(crate) struct ServerArgs {
    /// Use this server [default: the one of `acrtask login`]
    ///
    /// The token comes from ACRTASK_TOKEN, or from the login that `acrtask login` stored for this
    /// address.
    #[arg(long, env = "ACRTASK_SERVER", value_name = "URL")]
    pub(crate) server: Option<String>,

    /// Trust these certificate authorities for the server (PEM) [default: the system's]
    #[arg(long, env = "ACRTASK_CA", value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,

    /// Connect without TLS to a server on another machine; anyone on the network path can read the
    /// token
    #[arg(long, env = "ACRTASK_ALLOW_PLAINTEXT", value_parser = clap::builder::FalseyValueParser::new())]
    pub(crate) allow_plaintext: bool,
}

/// Time range of a list.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct PeriodArgs {
    /// Only entries from this time on: 24h or 7d ago, 2026-01-31, or 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = values::parse_time)]
    pub(crate) since: Option<jiff::Timestamp>,

    /// Only entries before this time, in the same format
    #[arg(long, value_name = "TIME", value_parser = values::parse_time)]
    pub(crate) until: Option<jiff::Timestamp>,
}

impl PeriodArgs {
    /// Returns the query parameters of the request.
    pub(crate) fn query(&self) -> impl Iterator<Item = (&'static str, String)> {
        let since = self.since.map(|time| ("since", time.to_string()));
        let until = self.until.map(|time| ("until", time.to_string()));
        since.into_iter().chain(until)
    }
}

/// Flags that decide if and how `run` and `build` use a server.
#[derive(Debug, Clone, Args)]
pub(crate) struct RemoteArgs {
    /// Run on this machine, even if a server is configured
    #[arg(long, help_heading = "Server", conflicts_with_all = ["pool", "runner_label", "priority", "no_wait"])]
    pub(crate) local: bool,

    /// Print the run's id and exit without waiting for the run
    #[arg(long, visible_alias = "detach", help_heading = "Server")]
    pub(crate) no_wait: bool,

    #[command(flatten)]
    pub(crate) queue: QueueArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Placement and priority of a run.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Server")]
pub(crate) struct QueueArgs {
    /// Run in this pool of runners [default: default]
    #[arg(long, value_name = "NAME")]
    pub(crate) pool: Option<String>,

    /// Require this label of the runner; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) runner_label: Vec<Pair>,

    /// Set the priority, -10 to 10; each step counts as ten minutes of waiting in the queue
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(-10..=10))]
    pub(crate) priority: Option<i32>,
}

impl QueueArgs {
    /// Returns the first of these flags that was given; commands that stay on this machine reject
    /// it.
    pub(crate) fn first_given(&self) -> Option<&'static str> {
        [
            ("--pool", self.pool.is_some()),
            ("--runner-label", !self.runner_label.is_empty()),
            ("--priority", self.priority.is_some()),
        ]
        .into_iter()
        .find_map(|(flag, given)| given.then_some(flag))
    }
}

/// Forms of a list or of one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum ListOutput {
    /// A table
    #[default]
    Text,
    /// JSON document
    Json,
}

/// `-o` of lists.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct OutputArgs {
    /// Choose the form of the output
    #[arg(short, long, value_enum, default_value_t, value_name = "FORM")]
    pub(crate) output: ListOutput,
}

/// Arguments of a command that lists objects.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Source of a secret's value. The command line never contains the value itself.
#[derive(Debug, Clone, Default, Args)]
#[group(multiple = false)]
pub(crate) struct ValueSource {
    /// Read the value from this file, `-` for standard input, without its last line break [default:
    /// -]
    #[arg(long, value_name = "FILE")]
    pub(crate) from_file: Option<super::PathOrStdin>,

    /// Read the value from this environment variable
    #[arg(long, value_name = "NAME")]
    pub(crate) from_env: Option<String>,
}

/// Arguments of `acrtask login`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  acrtask login https://ci.example.com --token-file token   read the token from a file
  acrtask login https://ci.example.com < token              or from standard input
  ACRTASK_TOKEN=... acrtask login https://ci.example.com    or from the environment
  acrtask login https://ci.example.com --oidc-token-file id-token
                                                            exchange a CI job's identity token

The login is stored in $XDG_CONFIG_HOME/acrtask/config.json, readable only by you. A CI job needs no
login: set ACRTASK_SERVER and ACRTASK_TOKEN in its environment. The server exchanges an identity token
for a token of its own.

Exit codes:
    0  the server accepted the token, and the login was stored
    2  the server rejected the token, or the usage is wrong
    3  the server could not be reached")]
pub(crate) struct LoginArgs {
    /// The server's address: https://HOST[:PORT]
    #[arg(value_name = "URL", env = "ACRTASK_SERVER")]
    pub(crate) url: String,

    /// Read the token from this file, `-` for standard input [default: ACRTASK_TOKEN, then -]
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<super::PathOrStdin>,

    /// Read a CI job's identity token from this file; the server exchanges it for a token of its
    /// own
    #[arg(long, value_name = "FILE", conflicts_with = "token_file")]
    pub(crate) oidc_token_file: Option<super::PathOrStdin>,

    /// Trust these certificate authorities for the server (PEM) [default: the system's]
    #[arg(long, env = "ACRTASK_CA", value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,

    /// Connect without TLS to a server on another machine; anyone on the network path can read the
    /// token
    #[arg(long, env = "ACRTASK_ALLOW_PLAINTEXT", value_parser = clap::builder::FalseyValueParser::new())]
    pub(crate) allow_plaintext: bool,
}

/// Arguments of `acrtask logout`.
#[derive(Debug, Args)]
pub(crate) struct LogoutArgs {
    /// The server's address [default: the one of the last login]
    #[arg(value_name = "URL")]
    pub(crate) url: Option<String>,
}

/// Arguments of `acrtask whoami`.
#[derive(Debug, Args)]
pub(crate) struct WhoamiArgs {
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Parses the lifetime of a token into seconds: `90s`, `12h`. jiff parses no days here; write 30
/// days as `720h`.
pub(crate) fn parse_ttl(text: &str) -> Result<u64, String> {
    values::parse_duration(text).map(|time| time.as_secs())
}
