//! Detection of steps that need the operator's permission, before anything starts. Pure.
//!
//! The executor refuses the same steps later. This module only saves the time of the steps before
//! them.

use acrtask_executor::Allow;
use acrtask_spec::{
    Code, Diagnostic, TaskSource,
    cmd_line::{CmdLine, Command, CommandKind, ContainerLine, Word, docker_word_supported},
    plan::{Network, Plan, Step, StepKind},
};

/// Returns an error for each network and step of `plan` that needs more than `allow`.
pub(crate) fn find_refusals(source: &TaskSource, plan: &Plan, allow: Allow) -> Vec<Diagnostic> {
    let networks = plan.networks.iter().filter(|_| !allow.host_network);
    let networks = networks.filter_map(|network| {
        let line = network
            .line
            .map_or(0..0, |line| first_line(&source.text, line));
        let refusal = Diagnostic::error(Code::NotAllowed, network.needs_operator()?);
        Some(
            refusal
                .at(line, "this network")
                .help(Network::OPERATOR_HELP),
        )
    });
    let steps = plan
        .steps
        .iter()
        .flat_map(|step| {
            let privileged = !allow.privileged && is_privileged(step);
            let network = !allow.host_network && wants_host_network(step, plan);
            let refuse = |need: &str, flag: &str| {
                Diagnostic::error(
                    Code::NotAllowed,
                    format!("the step `{}` needs {need}", step.id),
                )
                .at(first_line(&source.text, step.line), "in this step")
                .help(format!(
                    "an operator who trusts this task allows it with `--allow {flag}`"
                ))
            };
            let privileged = privileged.then(|| {
                refuse(
                    "a privileged container, which is root on this machine",
                    "privileged",
                )
            });
            let network = network.then(|| refuse("the network of this machine", "host-network"));
            let socket = !allow.docker_socket && needs_socket(step);
            let socket = socket.then(|| {
                refuse(
                    "a `docker` command that only works with the engine's socket, which is root on this machine",
                    "docker-socket",
                )
            });
            privileged.into_iter().chain(network).chain(socket)
        });
    networks.chain(steps).collect()
}

fn is_privileged(step: &Step) -> bool {
    step.container.privileged || containers(step).any(|line| line.flags.privileged)
}

fn wants_host_network(step: &Step, plan: &Plan) -> bool {
    let build_uses_it = match &step.kind {
        StepKind::Build(build) => build
            .line
            .as_ref()
            .is_ok_and(|line| line.network.as_deref() == Some("host")),
        StepKind::Cmd(_) | StepKind::Push(_) => false,
    };
    let is_machine_network = |name: &str| {
        let declared = plan.networks.iter().find(|network| network.name == name);
        declared.map_or(name == "host", |network| network.skip_creation)
    };
    let container_uses_it = |line: &ContainerLine| {
        let wanted = line.flags.network.as_ref().and_then(Word::literal);
        let wanted = wanted.filter(|name| !matches!(name.as_str(), "bridge" | "default"));
        let name = wanted.as_deref().or(step.network.as_deref());
        name.is_some_and(is_machine_network)
    };
    build_uses_it || containers(step).any(container_uses_it)
}

fn needs_socket(step: &Step) -> bool {
    commands(step).any(
        |command| matches!(&command.kind, CommandKind::Docker(words) if !docker_word_supported(words)),
    )
}

/// Returns the containers of a cmd step.
fn containers(step: &Step) -> impl Iterator<Item = &ContainerLine> {
    commands(step).filter_map(|command| match &command.kind {
        CommandKind::Container(line) => Some(&**line),
        _ => None,
    })
}

/// Returns the commands of a cmd step.
fn commands(step: &Step) -> impl Iterator<Item = &Command> {
    let line: Option<&CmdLine> = match &step.kind {
        StepKind::Cmd(cmd) => cmd.line.as_ref().ok(),
        StepKind::Build(_) | StepKind::Push(_) => None,
    };
    line.into_iter()
        .flat_map(|line| {
            std::iter::once(&line.first).chain(line.rest.iter().map(|(_, pipeline)| pipeline))
        })
        .flat_map(|pipeline| &pipeline.commands)
}

/// Returns the byte range of line number `line`, from 1, without its indentation.
pub(crate) fn first_line(text: &str, line: usize) -> std::ops::Range<usize> {
    let start: usize = text
        .split_inclusive('\n')
        .take(line.saturating_sub(1))
        .map(str::len)
        .sum();
    let line = text[start..].lines().next().unwrap_or("");
    let indent = line.len() - line.trim_start().len();
    start + indent..start + line.trim_end().len().max(indent)
}
