//! Which control plane is meant, and where a run may run there.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::values::{self, Pair};

/// The control plane that a command speaks to.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Server")]
pub(crate) struct ServerArgs {
    /// The control plane [default: the one of `acrtask login`]
    ///
    /// Its token is taken from ACRTASK_TOKEN, or from what `acrtask login` stored for this address.
    #[arg(long, env = "ACRTASK_SERVER", value_name = "URL")]
    pub(crate) server: Option<String>,

    /// Certificates of the authorities that the server is trusted by (PEM) [default: the system's]
    #[arg(long, env = "ACRTASK_CA", value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,

    /// Speak to a server that is not on this machine without TLS: everybody on the way can read the token
    #[arg(long, env = "ACRTASK_ALLOW_PLAINTEXT", value_parser = clap::builder::FalseyValueParser::new())]
    pub(crate) allow_plaintext: bool,
}

/// The period of a list.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct PeriodArgs {
    /// Only from this time on: 24h or 7d ago, 2026-01-31, or 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = values::moment)]
    pub(crate) since: Option<jiff::Timestamp>,

    /// Only before this time, written in the same way
    #[arg(long, value_name = "TIME", value_parser = values::moment)]
    pub(crate) until: Option<jiff::Timestamp>,
}

impl PeriodArgs {
    /// Returns the parameters of a request.
    pub(crate) fn query(&self) -> impl Iterator<Item = (&'static str, String)> {
        let since = self.since.map(|time| ("since", time.to_string()));
        let until = self.until.map(|time| ("until", time.to_string()));
        since.into_iter().chain(until)
    }
}

/// Whether and how `run` and `build` go to a control plane.
#[derive(Debug, Clone, Args)]
pub(crate) struct RemoteArgs {
    /// Stay on this machine, also where a server is known
    #[arg(long, help_heading = "Server", conflicts_with_all = ["pool", "runner_label", "priority", "no_wait"])]
    pub(crate) local: bool,

    /// Print the run's id and do not wait for its end
    #[arg(long, visible_alias = "detach", help_heading = "Server")]
    pub(crate) no_wait: bool,

    #[command(flatten)]
    pub(crate) queue: QueueArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Where and when a run may run.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Server")]
pub(crate) struct QueueArgs {
    /// The pool of runners [default: default]
    #[arg(long, value_name = "NAME")]
    pub(crate) pool: Option<String>,

    /// A label that the runner must have; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) runner_label: Vec<Pair>,

    /// -10 to 10: each step up is ten minutes of a head start over what waits beside it
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(-10..=10))]
    pub(crate) priority: Option<i32>,
}

impl QueueArgs {
    /// The first flag that was given, if any: for commands that stay on this machine.
    pub(crate) fn given(&self) -> Option<&'static str> {
        [
            ("--pool", self.pool.is_some()),
            ("--runner-label", !self.runner_label.is_empty()),
            ("--priority", self.priority.is_some()),
        ]
        .into_iter()
        .find_map(|(flag, given)| given.then_some(flag))
    }
}

/// The forms of a list or of one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum ListOutput {
    /// A table
    #[default]
    Text,
    /// One JSON document
    Json,
}

/// `-o` of lists.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct OutputArgs {
    /// The form of the answer
    #[arg(short, long, value_enum, default_value_t, value_name = "FORM")]
    pub(crate) output: ListOutput,
}

/// Where the value of a secret is. The value itself is never taken from the command line.
#[derive(Debug, Clone, Default, Args)]
#[group(multiple = false)]
pub(crate) struct ValueFrom {
    /// Take the value from this file, `-` for standard input; its last line end is left out [default: -]
    #[arg(long, value_name = "FILE")]
    pub(crate) from_file: Option<super::PathOrStdin>,

    /// Take the value from this variable of the environment
    #[arg(long, value_name = "NAME")]
    pub(crate) from_env: Option<String>,
}

/// `acrtask login`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  acrtask login https://ci.example.com --token-file token   the token stands in a file
  acrtask login https://ci.example.com < token              or on standard input
  ACRTASK_TOKEN=... acrtask login https://ci.example.com    or in the environment
  acrtask login https://ci.example.com --oidc-token-file id-token
                                                            a CI job's own identity token

What is stored stands in $XDG_CONFIG_HOME/acrtask/config.json, for this user's eyes only. A job of a
CI system needs no login: ACRTASK_SERVER and ACRTASK_TOKEN in its environment do. An identity token
is exchanged for a token of the server.

Exit codes:
    0  the server knows the token, and it was stored
    2  the server refused it, or the usage is wrong
    3  the server could not be reached")]
pub(crate) struct LoginArgs {
    /// The server's address: https://HOST[:PORT]
    #[arg(value_name = "URL", env = "ACRTASK_SERVER")]
    pub(crate) url: String,

    /// The file that holds the token, `-` for standard input [default: ACRTASK_TOKEN, then -]
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<super::PathOrStdin>,

    /// The file that holds a CI job's identity token, which the server exchanges for a token of its own
    #[arg(long, value_name = "FILE", conflicts_with = "token_file")]
    pub(crate) oidc_token_file: Option<super::PathOrStdin>,

    /// Certificates of the authorities that the server is trusted by (PEM) [default: the system's]
    #[arg(long, env = "ACRTASK_CA", value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,

    /// Speak to a server that is not on this machine without TLS: everybody on the way can read the token
    #[arg(long, env = "ACRTASK_ALLOW_PLAINTEXT", value_parser = clap::builder::FalseyValueParser::new())]
    pub(crate) allow_plaintext: bool,
}

/// `acrtask logout`.
#[derive(Debug, Args)]
pub(crate) struct LogoutArgs {
    /// The server's address [default: the one of the last login]
    #[arg(value_name = "URL")]
    pub(crate) url: Option<String>,
}

/// `acrtask whoami`.
#[derive(Debug, Args)]
pub(crate) struct WhoamiArgs {
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// A time that a token holds: `90s`, `12h`, `30d` is not one of jiff's words, so days are `720h`.
pub(crate) fn ttl(text: &str) -> Result<u64, String> {
    values::duration(text).map(|time| time.as_secs())
}
