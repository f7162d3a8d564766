//! Contexts of builds that are private git repositories, reached by SSH with a key that was given for their host.
//!
//! BuildKit would take whatever key such a host shows; so we fetch them ourselves, with the rules for the files of a
//! run, and serve them as a folder: with submodules and without `.git`, as BuildKit's own are. Left out: named contexts,
//! and hosts that no key was given for, which are BuildKit's to fetch.

use acrtask_model::events::Stream;
use acrtask_source::{ContextSpec, GitOptions, Options, Origin, Workspace};

use crate::{context::StepContext, error::chain};

/// The repository's files, where there is a key for its host.
pub(super) async fn by_given_key(
    ctx: &StepContext,
    url: &str,
) -> Result<Option<Workspace>, String> {
    let run = &ctx.run;
    let Ok(spec) = ContextSpec::parse(url) else {
        return Ok(None);
    };
    let ContextSpec::Git(git) = &spec else {
        return Ok(None);
    };
    if !run.git.ssh_keys.iter().any(|key| key.opens(git)) {
        return Ok(None);
    }
    let options = Options {
        origin: Origin::TaskFile,
        allow_private_addresses: run.git.private_addresses,
        // Submodules may be reached otherwise.
        credentials: run.credentials(),
        ssh_keys: run.git.ssh_keys.clone(),
        git: GitOptions {
            submodules: true,
            ..GitOptions::default()
        },
        scratch_dir: run.options.scratch_root.clone(),
        ..Options::default()
    };
    ctx.output
        .say(Stream::Stderr, &format!("fetching {spec}"))
        .await;
    let workspace = acrtask_source::fetch(&spec, &options)
        .await
        .map_err(|error| match error.help() {
            Some(help) => format!("{}; {help}", chain(&error)),
            None => chain(&error),
        })?;
    let history = workspace.root.join(".git");
    match tokio::fs::remove_dir_all(&history).await {
        // A folder of the repository has none.
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("cannot remove {}: {error}", history.display()))
        }
        _ => Ok(Some(workspace)),
    }
}
