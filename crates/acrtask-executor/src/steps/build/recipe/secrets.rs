//! `--secret` and `--ssh` of a build line.

use acrtask_buildkit::{BuildSecret, SecretSource, SshSource};
use acrtask_model::Secret;
use acrtask_spec::build_line::BuildLine;

use super::Base;
use crate::context::StepContext;

/// Reads the secrets of `--secret`.
pub(super) fn read_secrets(
    ctx: &StepContext,
    line: &BuildLine,
    base: &Base,
) -> Result<Vec<BuildSecret>, String> {
    line.secrets
        .iter()
        .map(|spec| {
            let variable = |name: &str| ctx.run.variable(&ctx.step, name).map(Secret::new);
            let source = match (&spec.src, &spec.env) {
                (Some(path), _) => match mounted_file(ctx, path, base) {
                    Some(content) => SecretSource::Text(content),
                    None => SecretSource::File(base.local_path(path)?),
                },
                (None, Some(name)) => SecretSource::Text(variable(name).ok_or_else(|| {
                    format!(
                        "--secret id={}: the step's environment has no {name}; add it under `env:`",
                        spec.id
                    )
                })?),
                // As in Docker: the variable of that name, else the file.
                (None, None) => match variable(&spec.id) {
                    Some(value) => SecretSource::Text(value),
                    None => SecretSource::File(base.local_path(&spec.id)?),
                },
            };
            Ok(BuildSecret {
                id: spec.id.clone(),
                source,
            })
        })
        .collect()
}

/// Returns the content of a file of a volume that the step mounts. It is never written to a disk of
/// this machine.
fn mounted_file(ctx: &StepContext, path: &str, base: &Base) -> Option<Secret> {
    let path = acrtask_spec::normalize_path(&base.folder, path);
    let (mount, name) = acrtask_spec::find_mount(&ctx.step.container.volume_mounts, &path)?;
    let volumes = &ctx.run.plan.volumes;
    let volume = volumes.iter().find(|volume| volume.name == mount.name)?;
    volume.files.get(name).cloned()
}

/// Returns the agents that `--ssh` names.
pub(super) fn ssh_agents(ctx: &StepContext, line: &BuildLine) -> Result<Vec<SshSource>, String> {
    line.ssh
        .iter()
        .map(|spec| {
            let (id, path) = match spec.split_once('=') {
                Some((id, path)) => (id, Some(path)),
                None => (spec.as_str(), None),
            };
            if let Some(path) = path {
                return Err(format!(
                    "--ssh {id}={path}: a task cannot name sockets or keys of this machine; write `--ssh {id}`, \
                     which is the operator's agent"
                ));
            }
            let agent = ctx.run.options.ssh_agent.clone().ok_or_else(|| {
                let missing = if ctx.run.options.own_machine {
                    "start an agent and set SSH_AUTH_SOCK"
                } else {
                    "its operator gives tasks an agent with `--allow ssh-agent` and SSH_AUTH_SOCK"
                };
                format!("--ssh {id}: this machine has no SSH agent for tasks; {missing}")
            })?;
            Ok(SshSource { id: id.into(), agent })
        })
        .collect()
}
