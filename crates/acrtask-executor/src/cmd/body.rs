//! Conversion of a step and its line to a container definition for the engine. Pure.

use std::collections::{BTreeMap, HashMap};

use acrtask_spec::{
    cmd_line::{ContainerLine, Word},
    plan::Step,
};
use bollard::models::{
    ContainerCreateBody, EndpointSettings, HostConfig, HostConfigLogConfig, Mount,
    NetworkingConfig, PortBinding,
};
use jiff::Timestamp;

use super::{expand, flags};
use crate::{
    Allow,
    engine::Labels,
    owner::{KEEP_LABEL, NAME_LABEL, RESERVED_LABELS, STEP_LABEL, TASK_LABEL},
    workspace::{HOME, WORKSPACE},
};

/// The parts of a run that a container's definition depends on.
pub(crate) struct DefinitionInput<'a> {
    pub(crate) step: &'a Step,
    pub(crate) labels: &'a Labels,
    pub(crate) allow: &'a Allow,
    /// Environment of every container. Variables of the step and the line override it.
    pub(crate) env: &'a [(String, String)],
    pub(crate) workspace_mounts: Vec<Mount>,
    /// The volume of the workspace.
    pub(crate) workspace_volume: &'a str,
    /// The task's name for that volume: `{{.Run.SharedVolume}}`.
    pub(crate) workspace_name: &'a str,
    /// Names of the task's volumes.
    pub(crate) volumes: Vec<&'a str>,
    /// Returns the engine's name for a volume of the run.
    pub(crate) volume_name: &'a dyn Fn(&str) -> String,
    /// Returns the engine's name for a declared network.
    pub(crate) network_name: &'a dyn Fn(&str) -> String,
    /// The network that the step joins. `None`: the engine's own.
    pub(crate) network: Option<&'a str>,
    /// The networks of the task.
    pub(crate) networks: Vec<&'a str>,
    /// The networks of the task that existed before the run. They belong to the machine.
    pub(crate) machine_networks: Vec<&'a str>,
    /// Set if the engine can mount a folder of a volume. An older engine would silently mount the
    /// whole volume.
    pub(crate) supports_subpaths: bool,
    /// Set if the container reads from a pipe.
    pub(crate) stdin: bool,
    pub(crate) now: Timestamp,
}

/// The definition of a container, complete except for its image id.
#[derive(Debug)]
pub(crate) struct Definition {
    pub(crate) body: ContainerCreateBody,
    /// The image as the line names it.
    pub(crate) image: String,
    /// `--platform`.
    pub(crate) platform: Option<String>,
    pub(crate) detach: bool,
    /// `--pull`, or the step's `pull`.
    pub(crate) pull: Pull,
    /// A network of the run that must exist first.
    pub(crate) needs_network: Option<String>,
    /// Volumes of the task that the container mounts.
    pub(crate) needs_volumes: Vec<String>,
    /// The name that `--name` sets.
    pub(crate) name: Option<String>,
    /// Warnings for the user.
    pub(crate) warnings: Vec<String>,
}

/// Policy for pulling the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Pull {
    /// Pulls the image if the engine does not have it.
    #[default]
    Missing,
    Always,
    Never,
}

/// Returns the container definition for `line`. An error is a refusal with a remedy.
pub(crate) fn define_container(
    line: &ContainerLine,
    input: DefinitionInput<'_>,
) -> Result<Definition, String> {
    let step = input.step;
    let options = &step.container;
    let text = |word: &Word| expand::expand_word(word, input.now);
    let flag = |word: &Option<Word>| word.as_ref().map(text).transpose();

    let mut out = flags::apply_flags(&line.flags.other, &input)?;
    let host = &mut out.host;

    if options.privileged || line.flags.privileged {
        if !input.allow.privileged {
            return Err(
                "privileged containers are not allowed here; an operator who trusts this \
                        task allows them with `--allow privileged`"
                    .into(),
            );
        }
        host.privileged = Some(true);
    }
    match options.isolation.as_deref() {
        None | Some("" | "default") => {}
        Some(other) => out
            .warnings
            .push(format!("isolation `{other}` has no effect on Linux")),
    }
    if let Some(cpus) = &options.cpus {
        host.nano_cpus = Some(flags::parse_nano_cpus(cpus)?);
    }

    let mut mounts = input.workspace_mounts.clone();
    let mut needs_volumes = Vec::new();
    for wanted in &options.volume_mounts {
        let name = (input.volume_name)(&wanted.name);
        mounts.push(crate::engine::volumes::volume_mount(
            &name,
            &wanted.mount_path,
            false,
            None,
            input.labels,
        ));
        needs_volumes.push(wanted.name.clone());
    }
    for word in &line.flags.volumes {
        match flags::parse_volume(&text(word)?, &input)? {
            flags::VolumeFlag::Mount { mount, task_volume } => {
                // A mount of the line replaces the default mount at the same path.
                mounts.retain(|other| other.target != mount.target);
                mounts.push(*mount);
                needs_volumes.extend(task_volume);
            }
            flags::VolumeFlag::Bind(bind) => host.binds.get_or_insert_default().push(bind),
            flags::VolumeFlag::Anonymous(path) => out.volumes.push(path),
        }
    }
    host.mounts = Some(mounts);

    let (bindings, mut exposed) = flags::parse_ports(
        options
            .ports
            .iter()
            .cloned()
            .map(Ok)
            .chain(line.flags.ports.iter().map(text))
            .collect::<Result<Vec<_>, _>>()?,
        input.allow.host_network,
    )?;
    for port in options
        .expose
        .iter()
        .cloned()
        .map(Ok)
        .chain(line.flags.expose.iter().map(text))
    {
        exposed.extend(flags::parse_exposed_ports(&port?)?);
    }
    exposed.sort();
    exposed.dedup();
    if !bindings.is_empty() {
        host.port_bindings = Some(bindings);
    }

    let name = flag(&line.flags.name)?;
    let mut aliases = vec![step.id.to_string()];
    aliases.extend(name.clone());
    for alias in &line.flags.network_aliases {
        aliases.push(text(alias)?);
    }
    let wanted_network = flag(&line.flags.network)?;
    let (mode, needs_network) = network_mode(wanted_network.as_deref(), &input)?;
    let networking = needs_network.as_ref().map(|_| NetworkingConfig {
        endpoints_config: Some(HashMap::from([(
            mode.clone(),
            EndpointSettings {
                aliases: Some(aliases),
                ..Default::default()
            },
        )])),
    });
    if mode == "host"
        && let Some(name) = host
            .sysctls
            .iter()
            .flatten()
            .map(|(name, _)| name)
            .find(|n| n.starts_with("net."))
    {
        return Err(format!(
            "`--sysctl {name}` would change the network of the machine, which the container shares with `--network host`"
        ));
    }
    host.network_mode = Some(mode);

    let detach = options.detach || line.flags.detach;
    if !detach && !options.keep {
        // The output is streamed, so the engine need not write it to its disk as well.
        host.log_config.get_or_insert(HostConfigLogConfig {
            typ: Some("none".into()),
            config: None,
        });
    }

    let mut labels = input.labels.to_map();
    labels.insert(STEP_LABEL.into(), step.id.to_string());
    // Set always: otherwise the container would inherit the label from its image.
    labels.insert(KEEP_LABEL.into(), options.keep.to_string());
    labels.insert(NAME_LABEL.into(), name.clone().unwrap_or_default());
    for word in &line.flags.labels {
        let label = text(word)?;
        let (key, value) = label.split_once('=').unwrap_or((&label, ""));
        if let Some(reserved) = RESERVED_LABELS
            .iter()
            .find(|prefix| key.starts_with(**prefix))
        {
            return Err(format!(
                "the label `{key}` is reserved: a step's labels do not begin with `{reserved}`"
            ));
        }
        labels.insert(format!("{TASK_LABEL}{key}"), value.into());
    }

    let working_dir = match flag(&line.flags.workdir)? {
        Some(folder) => Some(folder),
        None if step.disable_working_directory_override => None,
        None => Some(working_folder(step)),
    };
    let entrypoint = match (flag(&line.flags.entrypoint)?, &options.entry_point) {
        (Some(program), _) => Some(vec![program]),
        (None, Some(words)) => Some(
            shell_words::split(words)
                .map_err(|_| format!("entryPoint `{words}` has an open quote"))?,
        ),
        (None, None) => None,
    };
    let args = expand::expand_words(&line.args, input.now)?;
    let attach = !detach || options.detach;
    let body = ContainerCreateBody {
        hostname: out
            .hostname
            .take()
            .or_else(|| Some(to_hostname(step.id.as_str()))),
        domainname: out.domainname.take(),
        user: flag(&line.flags.user)?.or_else(|| options.user.clone()),
        attach_stdin: Some(input.stdin),
        attach_stdout: Some(attach),
        attach_stderr: Some(attach),
        open_stdin: Some(input.stdin),
        stdin_once: Some(input.stdin),
        exposed_ports: (!exposed.is_empty()).then_some(exposed),
        env: Some(merge_environment(&line.flags.env, &out.env, &input)?),
        cmd: (!args.is_empty()).then_some(args),
        // Set as soon as the image is resolved.
        image: None,
        volumes: (!out.volumes.is_empty()).then(|| std::mem::take(&mut out.volumes)),
        working_dir,
        entrypoint,
        labels: Some(labels),
        stop_signal: out.stop_signal.take(),
        host_config: Some(out.host),
        networking_config: networking,
        ..Default::default()
    };
    let pull = if options.pull { Pull::Always } else { out.pull };
    Ok(Definition {
        body,
        image: text(&line.image)?,
        platform: out.platform,
        detach,
        pull,
        needs_network,
        needs_volumes,
        name,
        warnings: out.warnings,
    })
}

/// Returns the working directory of the step's commands: `/workspace/<workingDirectory>`, or an
/// absolute one unchanged.
pub(crate) fn working_folder(step: &Step) -> String {
    let wanted = step.working_directory.trim();
    if wanted.starts_with('/') {
        wanted.into()
    } else if wanted.is_empty() || wanted == "." {
        WORKSPACE.into()
    } else {
        format!("{WORKSPACE}/{}", wanted.trim_start_matches("./"))
    }
}

/// Returns the engine's network mode, and the network of the run that it needs.
fn network_mode(
    wanted: Option<&str>,
    input: &DefinitionInput<'_>,
) -> Result<(String, Option<String>), String> {
    let name = match wanted {
        Some("bridge" | "default") | None => match input.network {
            Some(network) => network,
            None => return Ok(("bridge".into(), None)),
        },
        Some(other) => other,
    };
    let declared = input.networks.contains(&name);
    let is_machine_network = input.machine_networks.contains(&name);
    if declared && !is_machine_network {
        return Ok(((input.network_name)(name), Some(name.into())));
    }
    match name {
        "none" => Ok(("none".into(), None)),
        "bridge" | "default" => Ok(("bridge".into(), None)),
        "host" if input.allow.host_network => Ok(("host".into(), None)),
        "host" => Err(
            "the host's network is not allowed here; an operator who trusts this task \
                        allows it with `--allow host-network`"
                .into(),
        ),
        name if is_machine_network && input.allow.host_network => {
            Ok(((input.network_name)(name), Some(name.into())))
        }
        name if is_machine_network => Err(format!(
            "the network `{name}` belongs to this machine and not to the run, which is not allowed here: remove `skipCreation` \
             to use a network of the run; an operator who trusts this task allows it with `--allow host-network`"
        )),
        other => Err(format!(
            "the task has no network `{other}`; declare it under `networks:` (declared: {})",
            input.networks.join(", ")
        )),
    }
}

/// Returns `KEY=VALUE` texts with unique keys. HOME, the run, the step and the line are applied in
/// this order; the last value wins.
fn merge_environment(
    flags: &[Word],
    files: &[(String, String)],
    input: &DefinitionInput<'_>,
) -> Result<Vec<String>, String> {
    let mut env: BTreeMap<String, String> = BTreeMap::from([("HOME".into(), HOME.into())]);
    env.extend(input.env.iter().cloned());
    env.extend(env_pairs(&input.step.env));
    env.extend(files.iter().cloned());
    for word in flags {
        let text = expand::expand_word(word, input.now)?;
        match text.split_once('=') {
            Some((key, value)) => drop(env.insert(key.into(), value.into())),
            // A name without a value uses the step's value, which is set already.
            None if env.contains_key(&text) => {}
            None => drop(env.insert(text, String::new())),
        }
    }
    Ok(env.into_iter().map(|(k, v)| format!("{k}={v}")).collect())
}

/// Splits `KEY=VALUE` texts into pairs. A key without `=` has an empty value.
pub(crate) fn env_pairs(env: &[String]) -> impl Iterator<Item = (String, String)> {
    env.iter().map(|entry| {
        let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
        (key.to_owned(), value.to_owned())
    })
}

/// Returns a host name of at most 63 letters, digits and `-`.
fn to_hostname(step: &str) -> String {
    let clean: String = step
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(63)
        .collect();
    let clean = clean.trim_matches('-');
    if clean.is_empty() { "step" } else { clean }.into()
}

/// The bindings of published ports, by container port.
pub(crate) type Bindings = HashMap<String, Option<Vec<PortBinding>>>;

/// Settings from the flags that have no field of their own in the line.
#[derive(Debug, Default)]
pub(crate) struct FlagSettings {
    pub(crate) host: HostConfig,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) volumes: Vec<String>,
    pub(crate) hostname: Option<String>,
    pub(crate) domainname: Option<String>,
    pub(crate) stop_signal: Option<String>,
    pub(crate) platform: Option<String>,
    pub(crate) pull: Pull,
    pub(crate) warnings: Vec<String>,
}
