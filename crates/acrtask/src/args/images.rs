//! `acrtask images` and `acrtask base`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{
    control::ListArgs,
    server::{OutputArgs, ServerArgs},
};

/// `acrtask images ...`.
#[derive(Debug, Subcommand)]
pub(crate) enum ImagesCommand {
    /// List images that runs pushed
    #[command(after_long_help = "\
Examples:
  acrtask images list --stale                those whose base has moved since they were built
  acrtask images list --task app -o json | jq -r '.items[].digest'")]
    List(ListImagesArgs),
    /// Show an image: its digest, its run, what it was built from, and what was pushed under its name before
    Show(OneImageArgs),
    /// Show what stands on what
    #[command(after_long_help = "\
Examples:
  acrtask images tree                        all of it
  acrtask images tree alpine:3.20            what stands on alpine:3.20
  acrtask images tree --all golang:1.25      build stages, frontends and containers count too")]
    Tree(TreeArgs),
    /// Say what would make an image be built again: which bases, which digests, how old
    Why(OneImageArgs),
}

/// `acrtask images list`.
#[derive(Debug, Args)]
pub(crate) struct ListImagesArgs {
    /// Only images of this task
    #[arg(long, value_name = "NAME")]
    pub(crate) task: Option<String>,
    /// Only images whose names begin so
    #[arg(long, value_name = "TEXT")]
    pub(crate) prefix: Option<String>,
    /// Only images whose base has moved since they were built, where that counts for their task
    #[arg(long)]
    pub(crate) stale: bool,
    /// Only images that the last run of their task pushed
    #[arg(long)]
    pub(crate) newest: bool,
    /// At most so many
    #[arg(long, default_value_t = 200, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: u32,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// An image.
#[derive(Debug, Args)]
pub(crate) struct OneImageArgs {
    /// The image: REGISTRY/REPOSITORY:TAG
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// `acrtask images tree`.
#[derive(Debug, Args)]
pub(crate) struct TreeArgs {
    /// The base [default: every image that nobody here builds]
    #[arg(value_name = "IMAGE")]
    pub(crate) root: Option<String>,
    /// Bases of build stages, frontends and what containers were made of, not what images stand on alone
    #[arg(long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// `acrtask base ...`.
#[derive(Debug, Subcommand)]
pub(crate) enum BaseCommand {
    /// List the base tags that are watched
    List(ListArgs),
    /// Show a base tag: what it holds, and how it moved
    Show(OneImageArgs),
    /// Look at a base tag now, or at all of them
    #[command(after_long_help = "\
Examples:
  acrtask base check                         all of them
  acrtask base check alpine:3.20 && acrtask images list --stale")]
    Check(CheckArgs),
    /// Show newer tags of base images that rules of tasks allow, and what became of them
    ///
    /// A rule stands in a task's definition, under `triggers.baseImage.tags`: an image, and which of its tags may take the
    /// place of the one in use. What it finds is proposed here, or starts a run that gets the tag as a build argument or
    /// as a value. Each tag starts one run. Once that has succeeded, later runs of the task get the tag too; where it
    /// fails, they use what was used before, and the next newer tag is tried again.
    #[command(after_long_help = "\
A task with rules, for `acrtask task apply -f FILE`:
  name: app
  context: https://example.com/team/app.git
  build: {images: [\"app:{{.Run.ID}}\"]}
  triggers:
    baseImage:
      tags:
        - image: docker.io/library/alpine      # proposed here
          semver: ^3.20
        - image: docker.io/library/node        # built with --build-arg NODE_TAG=...
          pattern: 22\\.(?<order>[0-9.]+)-alpine
          buildArg: NODE_TAG                   # FROM node:$NODE_TAG

Examples:
  acrtask base proposals                       all that are newer
  acrtask base proposals app --all             every rule of app, and what it found
  acrtask base proposals --diff app | git apply
  acrtask base proposals --diff app services/app/Dockerfile")]
    Proposals(ProposalsArgs),
    /// Stop looking at a base tag
    Pause(BaseNameArgs),
    /// Look at a paused base tag again
    Resume(BaseNameArgs),
    /// Show everything that stands on a base, through any number of our own images
    BlastRadius(OneImageArgs),
}

/// `acrtask base check`.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// The base: REGISTRY/REPOSITORY:TAG [default: all]
    #[arg(value_name = "IMAGE")]
    pub(crate) image: Option<String>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// `acrtask base proposals`.
#[derive(Debug, Args)]
pub(crate) struct ProposalsArgs {
    /// Only those of this task
    #[arg(value_name = "TASK", required_if_eq("diff", "true"))]
    pub(crate) task: Option<String>,
    /// With --diff: the folder that the task's context is, or its Dockerfile
    #[arg(value_name = "PATH", default_value = ".", requires = "task")]
    pub(crate) path: PathBuf,
    /// Print what is proposed as a diff of the Dockerfiles in a local folder, for `git apply` there
    #[arg(long, conflicts_with_all = ["all", "output"])]
    pub(crate) diff: bool,
    /// Rules that have found nothing newer, too
    #[arg(long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// A base tag.
#[derive(Debug, Args)]
pub(crate) struct BaseNameArgs {
    /// The base: REGISTRY/REPOSITORY:TAG
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}
