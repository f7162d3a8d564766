//! Arguments of `acrtask base`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{
    image::ImageRefArgs,
    server::{ListArgs, OutputArgs, ServerArgs},
};

/// Subcommands of `acrtask base`.
#[derive(Debug, Subcommand)]
pub(crate) enum BaseCommand {
    /// List the watched base tags
    List(ListArgs),
    /// Show a base tag: its digest and its digest changes
    Show(ImageRefArgs),
    /// Check one base tag or all of them now
    #[command(after_long_help = "\
Examples:
  acrtask base check                         check all base tags
  acrtask base check alpine:3.20 && acrtask image list --stale")]
    Check(CheckArgs),
    /// Show newer tags of base images that match rules of tasks, and their state
    ///
    /// A rule is part of a task's definition, under `triggers.baseImage.tags`: an image, and the
    /// tags that may replace the one in use. A match is proposed here, or starts a run that gets
    /// the tag as a build argument or as a value. Each tag starts one run. After that run
    /// succeeded, later runs of the task use the tag too. If it failed, they use the previous tag,
    /// and the server tries the next newer tag.
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
  acrtask base proposals                       show all newer tags
  acrtask base proposals app --all             show every rule of app, and its matches
  acrtask base proposals --diff app | git apply
  acrtask base proposals --diff app services/app/Dockerfile")]
    Proposals(ProposalsArgs),
    /// Stop checking a base tag
    Pause(BaseNameArgs),
    /// Check a paused base tag again
    Resume(BaseNameArgs),
    /// Show everything that was built from a base, directly or through other images
    BlastRadius(ImageRefArgs),
}

/// Arguments of `acrtask base check`.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Check this base, REGISTRY/REPOSITORY:TAG [default: all]
    #[arg(value_name = "IMAGE")]
    pub(crate) image: Option<String>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Arguments of `acrtask base proposals`.
#[derive(Debug, Args)]
pub(crate) struct ProposalsArgs {
    /// Only proposals for this task
    #[arg(value_name = "TASK", required_if_eq("diff", "true"))]
    pub(crate) task: Option<String>,
    /// With --diff: the folder of the task's context, or its Dockerfile
    #[arg(value_name = "PATH", default_value = ".", requires = "task")]
    pub(crate) path: PathBuf,
    /// Print the proposals as a diff of the Dockerfiles in a local folder, for `git apply` there
    #[arg(long, conflicts_with_all = ["all", "output"])]
    pub(crate) diff: bool,
    /// Include rules without a newer tag
    #[arg(long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Arguments of a command that needs only a base tag.
#[derive(Debug, Args)]
pub(crate) struct BaseNameArgs {
    /// The base: REGISTRY/REPOSITORY:TAG
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}
