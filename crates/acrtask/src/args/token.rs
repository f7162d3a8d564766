//! Arguments of `acrtask token`.

use clap::{Args, Subcommand, ValueEnum};

use super::server::{ListArgs, OutputArgs, ServerArgs, parse_ttl};

/// Subcommands of `acrtask token`.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Create a token and print it once, on standard output
    #[command(after_long_help = "\
Examples:
  acrtask token create laptop --scope run > token
  acrtask token create deploy --scope run --tasks 'deploy/*' --ttl 720h")]
    Create(CreateTokenArgs),
    /// List the tokens
    List(ListArgs),
    /// Revoke a token
    Revoke(TokenIdArgs),
    /// Manage the issuers whose identity tokens the server exchanges for its own tokens
    #[command(subcommand)]
    Federate(FederateCommand),
}

/// Arguments of `acrtask token create`.
#[derive(Debug, Args)]
pub(crate) struct CreateTokenArgs {
    /// A name that shows what the token is for
    pub(crate) name: String,
    /// Grant this scope; may be repeated
    #[arg(long, value_enum, required = true, value_delimiter = ',')]
    pub(crate) scope: Vec<ScopeArg>,
    /// Restrict the token to this task, or to tasks that match a prefix: 'team/*'
    #[arg(long, value_name = "NAME")]
    pub(crate) tasks: Option<String>,
    /// Allow its tasks to use this pool in addition to the default one; may be repeated
    #[arg(long, value_name = "NAME", requires = "tasks")]
    pub(crate) pool: Vec<String>,
    /// Let the token expire after this time: 12h, 720h, or a number of seconds [default: valid
    /// until revoked]
    #[arg(long, value_name = "TIME", value_parser = parse_ttl)]
    pub(crate) ttl: Option<u64>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Scopes of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ScopeArg {
    /// Read tasks, runs, logs and runners
    Read,
    /// Start, cancel and rerun runs; includes `read`
    Run,
    /// Create, change and delete tasks, secrets and credentials; includes `run`
    Write,
    /// Everything
    Admin,
}

/// Arguments of `acrtask token revoke`.
#[derive(Debug, Args)]
pub(crate) struct TokenIdArgs {
    /// The token's id, as `acrtask token list` shows it
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Subcommands of `acrtask token federate`.
#[derive(Debug, Subcommand)]
pub(crate) enum FederateCommand {
    /// Trust an issuer's tokens for some subjects
    #[command(after_long_help = "\
Examples:
  acrtask token federate create github --issuer https://token.actions.githubusercontent.com \\
    --audience https://ci.example.com --subject 'repo:org/app:ref:refs/heads/*' --scope run --tasks 'app/*'")]
    Create(FederationArgs),
    /// List the trusted issuers
    List(ListArgs),
    /// Remove a trusted issuer
    Delete(FederationNameArgs),
}

/// Arguments of `acrtask token federate create`.
#[derive(Debug, Args)]
pub(crate) struct FederationArgs {
    /// The federation's name
    pub(crate) name: String,
    /// Trust this issuer; must equal the claim `iss`
    #[arg(long, value_name = "URL")]
    pub(crate) issuer: String,
    /// Require this audience in the claim `aud`
    #[arg(long, value_name = "TEXT")]
    pub(crate) audience: String,
    /// Require this subject in the claim `sub`; `*` matches any text
    #[arg(long, value_name = "PATTERN")]
    pub(crate) subject: String,
    /// Grant this scope to the tokens; may be repeated
    #[arg(long, value_enum, required = true, value_delimiter = ',')]
    pub(crate) scope: Vec<ScopeArg>,
    /// Restrict the tokens to this task, or to tasks that match a prefix: 'team/*'
    #[arg(long, value_name = "NAME")]
    pub(crate) tasks: Option<String>,
    /// Allow their tasks to use this pool in addition to the default one; may be repeated
    #[arg(long, value_name = "NAME", requires = "tasks")]
    pub(crate) pool: Vec<String>,
    /// Let the tokens expire after this time; at most one hour
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = parse_ttl)]
    pub(crate) ttl: u64,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// A federation's name.
#[derive(Debug, Args)]
pub(crate) struct FederationNameArgs {
    /// The federation's name
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}
