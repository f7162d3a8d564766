//! Arguments of `acrtask registry`.

use clap::{Args, Subcommand};

use super::{engine::RegistryLoginArgs, server::OutputArgs};

/// Subcommands of `acrtask registry`.
#[derive(Debug, Subcommand)]
pub(crate) enum RegistryCommand {
    /// List the tags of a repository
    #[command(after_long_help = "\
Examples:
  acrtask registry tags reg.example.com/team/app
  acrtask registry tags reg.example.com/team/app -o json | jq -r '.tags[]'")]
    Tags(RegistryTagsArgs),
    /// Delete old tags and their manifests, and keep what other images need
    #[command(after_long_help = "\
Examples:
  acrtask registry purge reg.example.com --filter 'team/.*:.*' --ago 90d --untagged --dry-run
  acrtask registry purge reg.example.com --filter 'team/app:^pr-' --ago 7d --untagged
  acrtask registry purge reg.example.com --filter 'team/app:.*' --ago 30d --keep 5 -o json

FILTER:
  REPOSITORY:TAG. REPOSITORY is a regular expression for the whole name. TAG is a regular expression
  for any part of a tag; without special characters it is the name of one tag.

Kept in any case:
  manifests with another tag, parts of kept indexes, signatures and SBOMs of kept images, locked
  tags, and tags whose age is unknown

Exit codes:
    0  everything in the plan was deleted, or was shown by --dry-run
    1  the registry refused a deletion, or cannot be read
    2  the usage is wrong; nothing was deleted")]
    Purge(RegistryPurgeArgs),
}

/// Arguments of `acrtask registry tags`.
#[derive(Debug, Args)]
pub(crate) struct RegistryTagsArgs {
    /// The repository: REGISTRY/REPOSITORY
    #[arg(value_name = "REPOSITORY")]
    pub(crate) repository: String,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) login: RegistryLoginArgs,
}

/// Arguments of `acrtask registry purge`.
#[derive(Debug, Args)]
pub(crate) struct RegistryPurgeArgs {
    /// The registry: HOST or HOST:PORT
    #[arg(value_name = "REGISTRY")]
    pub(crate) registry: String,
    /// Select these repositories and tags; may be repeated
    #[arg(
        short,
        long,
        value_name = "REPOSITORY:TAG",
        required_unless_present = "untagged_only"
    )]
    pub(crate) filter: Vec<String>,
    /// Select only what was last updated this long ago: 30d, 2d3h6m, 1h15m
    #[arg(
        long,
        value_name = "AGE",
        required_unless_present = "untagged_only",
        allow_hyphen_values = true
    )]
    pub(crate) ago: Option<String>,
    /// Keep the N newest of the selected tags of each repository
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) keep: u32,
    /// Delete manifests without a tag too
    ///
    /// Only the registry's own API lists manifests that had no tag before. At other registries,
    /// these are the manifests whose tags this purge deletes, and all that belongs to them.
    #[arg(long)]
    pub(crate) untagged: bool,
    /// Delete only manifests without a tag, and no tags
    #[arg(long, conflicts_with = "untagged")]
    pub(crate) untagged_only: bool,
    /// Unlock and delete locked tags and manifests too
    #[arg(long)]
    pub(crate) include_locked: bool,
    /// Show what would be deleted, and delete nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Send at most N requests at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=32))]
    pub(crate) concurrency: u8,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) login: RegistryLoginArgs,
}
