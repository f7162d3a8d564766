//! Arguments of `acrtask registry`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{
    engine::RegistryLoginArgs,
    server::{OutputArgs, ServerArgs},
};

/// Subcommands of `acrtask registry`.
#[derive(Debug, Subcommand)]
pub(crate) enum RegistryCommand {
    /// List the tags of a repository
    #[command(after_long_help = "\
Examples:
  acrtask registry tags reg.example.com/team/app
  acrtask registry tags reg.example.com/team/app -o json | jq -r '.tags[]'")]
    Tags(RegistryListArgs),
    /// List the manifests of a repository: images, platforms, signatures and SBOMs
    ///
    /// Only the registry's own API lists manifests without a tag. At other registries, the list has
    /// what tags lead to.
    #[command(after_long_help = "\
Examples:
  acrtask registry manifests reg.example.com/team/app
  acrtask registry manifests reg.example.com/team/app -o json | jq '.manifests[] | select(.tags == [])'")]
    Manifests(RegistryListArgs),
    /// List signatures, SBOMs and other artifacts that refer to an image or to its platforms
    #[command(after_long_help = "\
Examples:
  acrtask registry referrers reg.example.com/team/app:v1
  acrtask registry referrers reg.example.com/team/app:v1 -o json | jq -r '.referrers[].artifactType'")]
    Referrers(RegistryListArgs),
    /// Delete what the rules in a file do not keep
    #[command(after_long_help = RETENTION_HELP)]
    Retention(RegistryRetentionArgs),
    /// Copy an image with all platforms, their signatures and SBOMs
    #[command(after_long_help = COPY_HELP)]
    Copy(RegistryCopyArgs),
    /// Copy an image into a registry under the same name
    #[command(after_long_help = "\
Examples:
  acrtask registry import reg.example.com docker.io/library/alpine:3.20
  acrtask registry import reg.example.com ghcr.io/org/app:v1 --image mirror/app:v1

`import` copies as `acrtask registry copy` does. Without --image, the copy has the repository and the
tag of the source.")]
    Import(RegistryImportArgs),
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

/// Help of `acrtask registry retention`.
const RETENTION_HELP: &str = "\
Examples:
  acrtask registry retention reg.example.com --file retention.yaml --dry-run
  acrtask registry retention reg.example.com --file retention.yaml

FILE:
  untagged: 7d               # age from which on manifests without a tag go, or `keep`
  maxDeletions: 1000         # tags in one run, the oldest first
  maxShare: 50%              # a repository that would lose more is left alone
  rules:
    - repositories: team/.*  # regular expression for the whole name
      tags: .*               # tags that the rule may delete [default: all]
      keep:
        tags: ['^v\\d', latest]
        newest: 10
        youngerThan: 30d
        used: true           # what images of the server need

A tag goes if a rule selects it and no rule keeps it. --dry-run prints the plan of the run.

Exit codes:
    0  everything in the plan was deleted, or was shown by --dry-run
    1  the registry refused a deletion, cannot be read, or a share was exceeded
    2  the rules are wrong; nothing was deleted";

/// Arguments of `acrtask registry retention`.
#[derive(Debug, Args)]
pub(crate) struct RegistryRetentionArgs {
    /// The registry: HOST or HOST:PORT
    #[arg(value_name = "REGISTRY")]
    pub(crate) registry: String,
    /// Read the rules from this file
    #[arg(short, long, value_name = "RULES")]
    pub(crate) file: PathBuf,
    /// Show what would be deleted, and delete nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) login: RegistryLoginArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Help of `acrtask registry copy`.
const COPY_HELP: &str = "\
Examples:
  acrtask registry copy ghcr.io/org/app:v1 reg.example.com/mirror/app:v1
  acrtask registry copy reg.example.com/app@sha256:... reg.example.com/prod/app:v1
  acrtask registry copy reg.example.com/app:v1 oci:backup:v1
  acrtask registry copy oci:backup:v1 reg.example.com/app:v1

PLACE:
  REGISTRY/REPOSITORY[:TAG][@DIGEST]   an image at a registry
  oci:FOLDER[:TAG][@DIGEST]            an image in a folder with OCI image layout

Copied:
  the index and its platforms; the referrers of all of them, from the API and from fallback tags; the
  tags of cosign (.sig, .att, .sbom)

All digests stay the same. What the target has is not transferred again, so a repeated copy
continues where the last one stopped. Inside one registry, blobs are mounted. The tag of the image is
set last.

Exit codes:
    0  the target has the image and everything that belongs to it
    2  the usage is wrong
    3  a registry or a folder cannot be read or written";

/// Arguments of `acrtask registry copy`.
#[derive(Debug, Args)]
pub(crate) struct RegistryCopyArgs {
    /// The image: REGISTRY/REPOSITORY:TAG, or oci:FOLDER:TAG
    #[arg(value_name = "SOURCE")]
    pub(crate) source: String,
    /// The place of the copy: REGISTRY/REPOSITORY:TAG, or oci:FOLDER:TAG [default tag: that of the
    /// source]
    #[arg(value_name = "TARGET")]
    pub(crate) target: String,
    /// Copy only this platform, as an image with its own digest [default: all]
    #[arg(long, value_name = "OS/ARCH")]
    pub(crate) platform: Option<String>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) login: RegistryLoginArgs,
}

/// Arguments of `acrtask registry import`.
#[derive(Debug, Args)]
pub(crate) struct RegistryImportArgs {
    /// The registry of the copy: HOST or HOST:PORT
    #[arg(value_name = "REGISTRY")]
    pub(crate) registry: String,
    /// The image: REGISTRY/REPOSITORY:TAG, or oci:FOLDER:TAG
    #[arg(value_name = "SOURCE")]
    pub(crate) source: String,
    /// Name the copy REPOSITORY:TAG [default: as the source]
    #[arg(long, value_name = "REPOSITORY:TAG")]
    pub(crate) image: Option<String>,
    /// Copy only this platform, as an image with its own digest [default: all]
    #[arg(long, value_name = "OS/ARCH")]
    pub(crate) platform: Option<String>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) login: RegistryLoginArgs,
}

/// Arguments of a command that lists the content of a registry.
#[derive(Debug, Args)]
pub(crate) struct RegistryListArgs {
    /// The repository REGISTRY/REPOSITORY; for referrers, the image with its tag or digest
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
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
    /// Delete at most N tags, the oldest first, and N manifests that had no tag; the next purge
    /// continues
    #[arg(long, value_name = "N")]
    pub(crate) max_deletions: Option<usize>,
    /// Delete nothing in a repository that would lose more than this share of its tags
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=100))]
    pub(crate) max_share: Option<u8>,
    /// Send at most N requests at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=32))]
    pub(crate) concurrency: u8,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) login: RegistryLoginArgs,
}
