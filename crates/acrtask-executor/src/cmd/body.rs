//! From a step and its line to what the engine is asked to make. Pure.

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

use super::{flags, words};
use crate::{
    Allow,
    engine::Labels,
    owner::{KEEP_LABEL, NAME_LABEL, RESERVED_LABELS, STEP_LABEL, TASK_LABEL},
    workspace::{HOME, WORKSPACE},
};

/// What of the run a container's definition depends on.
pub(crate) struct Setting<'a> {
    pub(crate) step: &'a Step,
    pub(crate) labels: &'a Labels,
    pub(crate) allow: &'a Allow,
    /// Reaches every container; the step's own and the line's win.
    pub(crate) env: &'a [(String, String)],
    pub(crate) workspace_mounts: Vec<Mount>,
    /// The volume that the workspace lives in.
    pub(crate) workspace_volume: &'a str,
    /// What the task calls it: `{{.Run.SharedVolume}}`.
    pub(crate) workspace_name: &'a str,
    /// Names of the task's volumes.
    pub(crate) volumes: Vec<&'a str>,
    /// Returns the engine's name for a volume of the run.
    pub(crate) volume_name: &'a dyn Fn(&str) -> String,
    /// Returns the engine's name for a declared network.
    pub(crate) network_name: &'a dyn Fn(&str) -> String,
    /// The network that the step joins; nothing: the engine's own.
    pub(crate) network: Option<&'a str>,
    /// The networks of the task.
    pub(crate) networks: Vec<&'a str>,
    /// Those of them that were there before the run: they are the machine's.
    pub(crate) of_the_machine: Vec<&'a str>,
    /// Whether the engine can mount a folder of a volume; an older one would mount all of it and say nothing.
    pub(crate) mounts_parts: bool,
    /// Bytes will be piped into it.
    pub(crate) stdin: bool,
    pub(crate) now: Timestamp,
}

/// A container, ready to be made.
#[derive(Debug)]
pub(crate) struct Definition {
    pub(crate) body: ContainerCreateBody,
    /// As the line names it.
    pub(crate) image: String,
    /// `--platform`.
    pub(crate) platform: Option<String>,
    pub(crate) detach: bool,
    /// `--pull always`, or the step's `pull`.
    pub(crate) pull: Pull,
    /// A network of the run that must be there first.
    pub(crate) needs_network: Option<String>,
    /// Volumes of the task that it mounts.
    pub(crate) needs_volumes: Vec<String>,
    /// The name that `--name` gave it.
    pub(crate) name: Option<String>,
    /// What to warn of.
    pub(crate) warnings: Vec<String>,
}

/// When the image is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Pull {
    /// Where the engine does not have it.
    #[default]
    Missing,
    /// Every time.
    Always,
    /// Never.
    Never,
}

/// What the engine is asked to make for `line`. An error is a refusal, with what to do about it.
pub(crate) fn define(line: &ContainerLine, setting: Setting<'_>) -> Result<Definition, String> {
    let step = setting.step;
    let options = &step.container;
    let text = |word: &Word| words::expand(word, setting.now);
    let flag = |word: &Option<Word>| word.as_ref().map(text).transpose();

    let mut out = flags::apply(&line.flags.other, &setting)?;
    let host = &mut out.host;

    if options.privileged || line.flags.privileged {
        if !setting.allow.privileged {
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
        Some(other) => out.warnings.push(format!(
            "isolation `{other}` means nothing on Linux and is ignored"
        )),
    }
    if let Some(cpus) = &options.cpus {
        host.nano_cpus = Some(flags::nano_cpus(cpus)?);
    }

    let mut mounts = setting.workspace_mounts.clone();
    let mut needs_volumes = Vec::new();
    for wanted in &options.volume_mounts {
        let name = (setting.volume_name)(&wanted.name);
        mounts.push(crate::engine::volumes::mount(
            &name,
            &wanted.mount_path,
            false,
            None,
            setting.labels,
        ));
        needs_volumes.push(wanted.name.clone());
    }
    for word in &line.flags.volumes {
        match flags::volume(&text(word)?, &setting)? {
            flags::VolumeFlag::Mount { mount, of_task } => {
                // A line's own mount takes the place of one that every step has there.
                mounts.retain(|other| other.target != mount.target);
                mounts.push(*mount);
                needs_volumes.extend(of_task);
            }
            flags::VolumeFlag::Bind(bind) => host.binds.get_or_insert_default().push(bind),
            flags::VolumeFlag::Anonymous(path) => out.volumes.push(path),
        }
    }
    host.mounts = Some(mounts);

    let (bindings, mut exposed) = flags::ports(
        options
            .ports
            .iter()
            .cloned()
            .map(Ok)
            .chain(line.flags.ports.iter().map(text))
            .collect::<Result<Vec<_>, _>>()?,
        setting.allow.host_network,
    )?;
    for port in options
        .expose
        .iter()
        .cloned()
        .map(Ok)
        .chain(line.flags.expose.iter().map(text))
    {
        exposed.extend(flags::exposed(&port?)?);
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
    let (mode, needs_network) = network(wanted_network.as_deref(), &setting)?;
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
        // What it prints is streamed; the engine need not write it to its disk as well.
        host.log_config.get_or_insert(HostConfigLogConfig {
            typ: Some("none".into()),
            config: None,
        });
    }

    let mut labels = setting.labels.map();
    labels.insert(STEP_LABEL.into(), step.id.to_string());
    // Set in any case: a label that the container does not have it gets from its image.
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
    let args = words::expand_all(&line.args, setting.now)?;
    let attach = !detach || options.detach;
    let body = ContainerCreateBody {
        hostname: out
            .hostname
            .take()
            .or_else(|| Some(hostname(step.id.as_str()))),
        domainname: out.domainname.take(),
        user: flag(&line.flags.user)?.or_else(|| options.user.clone()),
        attach_stdin: Some(setting.stdin),
        attach_stdout: Some(attach),
        attach_stderr: Some(attach),
        open_stdin: Some(setting.stdin),
        stdin_once: Some(setting.stdin),
        exposed_ports: (!exposed.is_empty()).then_some(exposed),
        env: Some(environment(&line.flags.env, &out.env, &setting)?),
        cmd: (!args.is_empty()).then_some(args),
        // The engine fills it in when the image is known.
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

/// Where the step's commands start: `/workspace/<workingDirectory>`, an absolute one as it is.
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

/// The engine's network mode, and the network of the run that it needs.
fn network(
    wanted: Option<&str>,
    setting: &Setting<'_>,
) -> Result<(String, Option<String>), String> {
    let name = match wanted {
        Some("bridge" | "default") | None => match setting.network {
            Some(network) => network,
            None => return Ok(("bridge".into(), None)),
        },
        Some(other) => other,
    };
    let declared = setting.networks.contains(&name);
    let of_the_machine = setting.of_the_machine.contains(&name);
    if declared && !of_the_machine {
        return Ok(((setting.network_name)(name), Some(name.into())));
    }
    match name {
        "none" => Ok(("none".into(), None)),
        "bridge" | "default" => Ok(("bridge".into(), None)),
        "host" if setting.allow.host_network => Ok(("host".into(), None)),
        "host" => Err(
            "the host's network is not allowed here; an operator who trusts this task \
                        allows it with `--allow host-network`"
                .into(),
        ),
        name if of_the_machine && setting.allow.host_network => {
            Ok(((setting.network_name)(name), Some(name.into())))
        }
        name if of_the_machine => Err(format!(
            "the network `{name}` is this machine's and not the run's, which is not allowed here: take `skipCreation` \
             away for one of the run's own; an operator who trusts this task allows it with `--allow host-network`"
        )),
        other => Err(format!(
            "there is no network `{other}` in this task; declare it under `networks:` (it has: {})",
            setting.networks.join(", ")
        )),
    }
}

/// `KEY=VALUE` once for each key: HOME, the run's, the step's, the line's; the last one wins.
fn environment(
    flags: &[Word],
    files: &[(String, String)],
    setting: &Setting<'_>,
) -> Result<Vec<String>, String> {
    let mut env: BTreeMap<String, String> = BTreeMap::from([("HOME".into(), HOME.into())]);
    env.extend(setting.env.iter().cloned());
    env.extend(pairs(&setting.step.env));
    env.extend(files.iter().cloned());
    for word in flags {
        let text = words::expand(word, setting.now)?;
        match text.split_once('=') {
            Some((key, value)) => drop(env.insert(key.into(), value.into())),
            // The name alone: its value from the step's environment, which is there already.
            None if env.contains_key(&text) => {}
            None => drop(env.insert(text, String::new())),
        }
    }
    Ok(env.into_iter().map(|(k, v)| format!("{k}={v}")).collect())
}

/// `KEY=VALUE` texts as pairs; a key alone has no value.
pub(crate) fn pairs(env: &[String]) -> impl Iterator<Item = (String, String)> {
    env.iter().map(|entry| {
        let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
        (key.to_owned(), value.to_owned())
    })
}

/// A host name of at most 63 letters, digits and `-`.
fn hostname(step: &str) -> String {
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

/// What [`flags::apply`] has made of the flags that have no field of their own.
#[derive(Debug, Default)]
pub(crate) struct Extra {
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
