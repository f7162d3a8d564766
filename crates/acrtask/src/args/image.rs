//! Arguments of `acrtask image`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{
    engine::RegistryLoginArgs,
    server::{OutputArgs, ServerArgs},
};

/// Subcommands of `acrtask image`.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// List images that runs pushed
    #[command(after_long_help = "\
Examples:
  acrtask image list --stale                 images whose base has a newer digest
  acrtask image list --task app -o json | jq -r '.items[].digest'")]
    List(ListImagesArgs),
    /// Show an image: its digest, its run, its bases, and earlier pushes of its tag
    Show(ImageRefArgs),
    /// Show the tree of bases and the images built from them
    #[command(after_long_help = "\
Examples:
  acrtask image tree                         show all bases
  acrtask image tree alpine:3.20             show everything built from alpine:3.20
  acrtask image tree --all golang:1.25       include build stages, frontends and containers")]
    Tree(TreeArgs),
    /// Explain if an image is stale, and why: its bases, their digests and their ages
    Why(ImageRefArgs),
    /// Explain why a purge keeps an image: tags, indexes, subjects, locks, images of the server
    #[command(after_long_help = "\
Examples:
  acrtask image why-kept reg.example.com/team/app:v1
  acrtask image why-kept reg.example.com/team/app@sha256:... --file retention.yaml

With --file, the decision of these rules about each tag is shown too. Images of the server are
included if --server names one, or a rule needs them.")]
    WhyKept(WhyKeptArgs),
}

/// Arguments of `acrtask image why-kept`.
#[derive(Debug, Args)]
pub(crate) struct WhyKeptArgs {
    /// The image: REGISTRY/REPOSITORY:TAG or REGISTRY/REPOSITORY@DIGEST
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
    /// Show the decision of the rules in this file
    #[arg(short, long, value_name = "RULES")]
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) login: RegistryLoginArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Arguments of `acrtask image list`.
#[derive(Debug, Args)]
pub(crate) struct ListImagesArgs {
    /// Only images of this task
    #[arg(long, value_name = "NAME")]
    pub(crate) task: Option<String>,
    /// Only images whose names start with this text
    #[arg(long, value_name = "TEXT")]
    pub(crate) prefix: Option<String>,
    /// Only stale images, whose base has a newer digest that triggers a rebuild of their task
    #[arg(long)]
    pub(crate) stale: bool,
    /// Only images of the latest run of each task
    #[arg(long)]
    pub(crate) newest: bool,
    /// Show at most N entries
    #[arg(long, default_value_t = 200, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: u32,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Arguments of a command that needs an image.
#[derive(Debug, Args)]
pub(crate) struct ImageRefArgs {
    /// The image: REGISTRY/REPOSITORY:TAG
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Arguments of `acrtask image tree`.
#[derive(Debug, Args)]
pub(crate) struct TreeArgs {
    /// Show the tree below this base [default: every base that no task builds]
    #[arg(value_name = "IMAGE")]
    pub(crate) root: Option<String>,
    /// Include bases of build stages, frontends and images that steps ran
    #[arg(long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}
