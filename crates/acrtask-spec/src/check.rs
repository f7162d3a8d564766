//! From a task as it was read to a [`Plan`]: checks, defaults, order. All problems are noted; there is a
//! plan only where none of them is an error.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ops::Range,
    time::Duration,
};

use acrtask_model::{ImageRef, Secret, StepId};
use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::{
    alias::{Aliases, expand_image},
    build_line, cmd_line,
    cmd_line::{CommandKind, docker_word_supported},
    diagnostic::{Diagnostic, Position, Severity, nearest},
    facts::RunFacts,
    graph::{self, AT_ONCE},
    origin::align,
    plan::{
        BuildStep, CmdStep, ContainerOptions, LineRefusal, Network, Plan, PushStep, Step, StepKind,
        Version, Volume, VolumeMount,
    },
    read::{Int, Report, Text, quoted},
    task::{RawMount, RawSecret, RawStep, RawTask, RawVolume},
    version,
};

/// The bridge network that is made where a file declares none.
pub const DEFAULT_NETWORK: &str = "acb_default_network";

const DEFAULT_STEP_TIMEOUT: i64 = 600;
const DEFAULT_RETRY_DELAY: i64 = 5;

/// What a check of a task needs to know besides the task.
pub(crate) struct Context<'c> {
    pub(crate) facts: &'c RunFacts,
    pub(crate) aliases: Option<&'c Aliases>,
    /// The text that the task was read from.
    pub(crate) source: &'c str,
    /// The author's text, for line numbers.
    pub(crate) author: &'c str,
    pub(crate) secrets: &'c [Secret],
}

/// Notes what is wrong with the `secrets` of a task; the reference executor looks at them first.
pub(crate) fn secrets(declared: &[RawSecret], report: &mut Report<'_>) {
    let mut seen: HashMap<&str, &Text> = HashMap::new();
    for secret in declared {
        let Some(id) = &secret.id else {
            report.push(
                Diagnostic::error("secret", "the secret has no id")
                    .at(line_of(&secret.span), "add `id`")
                    .help("write `- id: NAME`; a template reads it as `{{.Secrets.NAME}}`"),
            );
            continue;
        };
        if id.value.contains(char::is_whitespace) {
            report.push(
                Diagnostic::error(
                    "secret",
                    format!("the id `{}` of the secret has white space in it", id.value),
                )
                .at(id.span.clone(), "no white space")
                .help(format!(
                    "write `id: {}`",
                    id.value.split_whitespace().collect::<Vec<_>>().join("-")
                )),
            );
        }
        if let Some(first) = seen.insert(&id.value, id) {
            report.push(
                Diagnostic::error("secret", format!("two secrets have the id `{}`", id.value))
                    .at(id.span.clone(), "the second one")
                    .at(first.span.clone(), "the first one")
                    .help("give one of them another id"),
            );
        }
        if secret.keyvault.is_none() && secret.env.is_none() && secret.file.is_none() {
            report.push(
                Diagnostic::error(
                    "secret",
                    format!("the secret `{}` says nowhere where its value is", id.value),
                )
                .at(id.span.clone(), "this one")
                .help("add its source: `keyvault: URL`, `env: VARIABLE` or `file: PATH`"),
            );
        }
        if let Some(client) = &secret.client_id
            && !is_uuid(&client.value)
        {
            report.push(
                Diagnostic::error("secret", format!("`{}` is no client id", client.value))
                    .at(client.span.clone(), "expected a UUID")
                    .help("write the identity's client id: `clientID: 00000000-0000-0000-0000-000000000000`"),
            );
        }
    }
}

fn is_uuid(text: &str) -> bool {
    let text = text.strip_prefix("urn:uuid:").unwrap_or(text);
    let text = text
        .strip_prefix('{')
        .and_then(|t| t.strip_suffix('}'))
        .unwrap_or(text);
    let groups: Vec<usize> = text.split('-').map(str::len).collect();
    (groups == [8, 4, 4, 4, 12] || groups == [32])
        && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
}

/// Checks `task` and makes the plan. Lines that cannot be run are in the second part, as errors.
pub(crate) fn plan(
    task: &RawTask,
    context: &Context<'_>,
    report: &mut Report<'_>,
) -> (Option<Plan>, Vec<Diagnostic>) {
    let version = check_version(task, context, report);
    let mut refusals = Vec::new();
    let volumes = volumes(&task.volumes, report, &mut refusals);
    let (networks, default_network) = networks(task, report);
    let mut task_env = task.env.clone();
    merge_env(&mut task_env, &from_flags(&context.facts.env), report);

    let ids = step_ids(&task.steps, report);
    let edges = check_order(&task.steps, &ids, report);
    let step_timeout = task.step_timeout.as_ref().map_or(0, |int| int.value);
    let step_timeout = if step_timeout <= 0 {
        DEFAULT_STEP_TIMEOUT
    } else {
        step_timeout
    };

    let mut steps = Vec::new();
    for (i, raw) in task.steps.iter().enumerate() {
        check_step(raw, &networks, report);
        check_mounts(raw, &task.volumes, report);
        let kind = step_kind(raw, &ids[i], context, report, &mut refusals);
        let mut env = raw.env.clone();
        merge_env(&mut env, &task_env, report);
        let (Some(kind), Some(id)) = (kind, ids[i].step.clone()) else {
            continue;
        };
        let after = edges[i]
            .iter()
            .filter_map(|at| ids[*at].step.clone())
            .collect();
        let text = |text: &Option<Text>| text.as_ref().map(|text| text.value.clone());
        let texts = |texts: &[Text]| {
            texts
                .iter()
                .map(|text| text.value.clone())
                .collect::<Vec<_>>()
        };
        let line = Position::of(context.author, report.author_span(raw.span.clone()).start).line;
        steps.push(Step {
            id,
            kind,
            after,
            env: texts(&env),
            working_directory: text(&raw.working_directory)
                .or_else(|| text(&task.working_directory))
                .unwrap_or_default(),
            disable_working_directory_override: raw.disable_working_directory_override,
            timeout: seconds(raw.timeout.as_ref(), step_timeout),
            start_delay: seconds(raw.start_delay.as_ref(), 0),
            retries: count(raw.retries.as_ref()),
            retry_delay: seconds(raw.retry_delay.as_ref(), DEFAULT_RETRY_DELAY),
            retry_on_errors: texts(&raw.retry_on_errors),
            repeat: count(raw.repeat.as_ref()),
            ignore_errors: raw.ignore_errors,
            network: text(&raw.network).or_else(|| default_network.clone()),
            line,
            container: ContainerOptions {
                detach: raw.detach,
                keep: raw.keep,
                entry_point: text(&raw.entry_point),
                user: text(&raw.user),
                ports: texts(&raw.ports),
                expose: texts(&raw.expose),
                privileged: raw.privileged,
                isolation: text(&raw.isolation),
                cpus: text(&raw.cpus),
                pull: raw.pull,
                download_retries: count(raw.download_retries.as_ref()),
                download_retry_delay: seconds(raw.download_retry_delay.as_ref(), 0),
                volume_mounts: raw.volume_mounts.iter().filter_map(mount).collect(),
            },
        });
    }
    if report.has_errors() {
        return (None, refusals);
    }
    let plan = version.map(|version| Plan {
        version,
        networks,
        volumes,
        credentials: Vec::new(),
        steps,
        secrets: context.secrets.to_vec(),
        timeout: None,
    });
    (plan, refusals)
}

fn line_of(span: &Range<usize>) -> Range<usize> {
    span.start..span.start + 1
}

fn check_version(
    task: &RawTask,
    context: &Context<'_>,
    report: &mut Report<'_>,
) -> Option<Version> {
    if let (Some(span), None) = (&task.alias, context.aliases) {
        report.push(
            Diagnostic::warning(
                "no-effect",
                "aliases exist from `v1.1.0` on, and this file is older",
            )
            .at(span.clone(), "it is ignored")
            .help("begin the file with `version: v1.1.0`"),
        );
    }
    let Some(text) = &task.version else {
        return Some(Version::V1_0_0);
    };
    let version = version::parse(&text.value);
    if version.is_none() {
        report.push(
            Diagnostic::error(
                "version",
                format!("there is no version `{}` of the task language", text.value),
            )
            .at(
                text.span.clone(),
                "known are v1.1.0, v1.0.0 and 1.0-preview-1",
            )
            .help(format!(
                "write `version: {}`",
                version::nearest(&text.value).as_str()
            )),
        );
    }
    version
}

fn networks(task: &RawTask, report: &mut Report<'_>) -> (Vec<Network>, Option<String>) {
    let mut networks: Vec<Network> = Vec::new();
    for raw in &task.networks {
        let Some(name) = &raw.name else {
            report.push(
                Diagnostic::error("network", "the network has no name")
                    .at(line_of(&raw.span), "add `name`")
                    .help("write `- name: backend`"),
            );
            continue;
        };
        if networks.iter().any(|network| network.name == name.value) {
            report.push(
                Diagnostic::error(
                    "network",
                    format!("two networks have the name `{}`", name.value),
                )
                .at(name.span.clone(), "the second one")
                .help("give one of them another name"),
            );
        }
        networks.push(Network {
            name: name.value.clone(),
            driver: raw
                .driver
                .as_ref()
                .map_or("bridge", |driver| &driver.value)
                .to_owned(),
            ipv6: raw.ipv6,
            skip_creation: raw.skip_creation,
            is_default: raw.is_default,
        });
    }
    if task.networks.is_empty() {
        networks.push(Network {
            name: DEFAULT_NETWORK.to_owned(),
            driver: "bridge".to_owned(),
            ipv6: false,
            skip_creation: false,
            is_default: true,
        });
    }
    // The last one that is marked counts.
    let default = networks.iter().rev().find(|network| network.is_default);
    let default = default.map(|network| network.name.clone());
    (networks, default)
}

fn volumes(
    raw: &[RawVolume],
    report: &mut Report<'_>,
    refusals: &mut Vec<Diagnostic>,
) -> Vec<Volume> {
    let mut volumes: Vec<Volume> = Vec::new();
    let allowed = |text: &str, more: &[u8]| {
        text.bytes()
            .all(|b| b.is_ascii_alphanumeric() || more.contains(&b))
    };
    for volume in raw {
        let Some(name) = &volume.name else {
            report.push(
                Diagnostic::error("volume", "the volume has no name")
                    .at(line_of(&volume.span), "add `name`")
                    .help("write `- name: keys`"),
            );
            continue;
        };
        if !allowed(&name.value, b"-_") {
            report.push(
                Diagnostic::error(
                    "volume",
                    format!("`{}` is no name for a volume", name.value),
                )
                .at(name.span.clone(), "letters, digits, `-` and `_` only")
                .help(format!(
                    "write `name: {}`",
                    name.value
                        .replace(|c: char| !c.is_ascii_alphanumeric(), "-")
                )),
            );
        }
        if volumes.iter().any(|other| other.name == name.value) {
            report.push(
                Diagnostic::error(
                    "volume",
                    format!("two volumes have the name `{}`", name.value),
                )
                .at(name.span.clone(), "the second one")
                .help("give one of them another name"),
            );
        }
        let files = volume.secret.as_deref().unwrap_or_default();
        if files.is_empty() {
            report.push(
                Diagnostic::error("volume", format!("the volume `{}` has no files", name.value))
                    .at(name.span.clone(), "this one")
                    .help("add `secret:` with a line `FILE: CONTENT` for each file, the content in base 64"),
            );
        }
        let mut read = BTreeMap::new();
        for (file, content) in files {
            if file.value.is_empty() || !allowed(&file.value, b"-_.") {
                report.push(
                    Diagnostic::error(
                        "volume",
                        format!("`{}` is no name for a secret's file", file.value),
                    )
                    .at(file.span.clone(), "letters, digits, `-`, `_` and `.` only")
                    .help(format!(
                        "write `{}`",
                        file.value
                            .replace(|c: char| !c.is_ascii_alphanumeric() && c != '.', "-")
                    )),
                );
            }
            let decoded = STANDARD
                .decode(content.value.trim())
                .ok()
                .map(String::from_utf8);
            let why = match decoded {
                Some(Ok(text)) => {
                    read.insert(file.value.clone(), Secret::new(text));
                    continue;
                }
                Some(Err(_)) => "is not text (UTF-8) once it is decoded",
                None => "is not in base 64",
            };
            read.insert(file.value.clone(), Secret::new(""));
            refusals.push(
                report.placed(
                    Diagnostic::error("volume", format!("the content of `{}` {why}", file.value))
                        .at(content.span.clone(), "expected base 64")
                        .help(format!(
                            "let the template encode it: `{}: {{{{.Secrets.NAME | b64enc}}}}`",
                            file.value
                        )),
                ),
            );
        }
        volumes.push(Volume {
            name: name.value.clone(),
            files: read,
        });
    }
    volumes
}

/// The id of a step, as far as it has a good one.
struct Named {
    /// As written, or `acb_step_N`.
    text: String,
    step: Option<StepId>,
}

fn step_ids(steps: &[RawStep], report: &mut Report<'_>) -> Vec<Named> {
    let mut first: HashMap<&str, &Text> = HashMap::new();
    let mut ids = Vec::new();
    for (i, step) in steps.iter().enumerate() {
        let Some(id) = &step.id else {
            let id = StepId::default_at(i);
            ids.push(Named {
                text: id.to_string(),
                step: Some(id),
            });
            continue;
        };
        let checked = StepId::new(id.value.clone());
        if checked.is_err() {
            let (why, instead) = if id.value == "acb_root" {
                ("the name is reserved", "root".to_owned())
            } else {
                (
                    "no white space",
                    id.value.split_whitespace().collect::<Vec<_>>().join("-"),
                )
            };
            report.push(
                Diagnostic::error(
                    "step-id",
                    format!("`{}` cannot be the id of a step", id.value),
                )
                .at(id.span.clone(), why)
                .help(format!("write `id: {instead}`")),
            );
        }
        if let Some(earlier) = first.insert(&id.value, id) {
            report.push(
                Diagnostic::error("step-id", format!("two steps have the id `{}`", id.value))
                    .at(id.span.clone(), "the second one")
                    .at(earlier.span.clone(), "the first one")
                    .help(format!(
                        "give one of them another id, for example `{}-2`",
                        id.value
                    )),
            );
        }
        ids.push(Named {
            text: id.value.clone(),
            step: checked.ok(),
        });
    }
    for (i, named) in ids.iter().enumerate() {
        if steps[i].id.is_none()
            && let Some(taken) = first.get(named.text.as_str())
        {
            report.push(
                Diagnostic::error(
                    "step-id",
                    format!(
                        "`{}` is the id of the step at position {i}, which has none of its own",
                        named.text
                    ),
                )
                .at(taken.span.clone(), "taken here")
                .at(line_of(&steps[i].span), "meant here")
                .help("give this step another id"),
            );
        }
    }
    ids
}

fn check_order(steps: &[RawStep], ids: &[Named], report: &mut Report<'_>) -> Vec<Vec<usize>> {
    let positions: HashMap<&str, usize> = ids
        .iter()
        .enumerate()
        .rev()
        .map(|(i, id)| (id.text.as_str(), i))
        .collect();
    for (i, step) in steps.iter().enumerate() {
        for name in &step.when {
            if name.value == AT_ONCE {
                if step.when.len() > 1 {
                    report.push(
                        Diagnostic::error("when", "`-` means at once, and stands alone")
                            .at(name.span.clone(), "beside others it means nothing")
                            .help("write `when: [\"-\"]`, or take it away"),
                    );
                }
            } else if name.value == ids[i].text {
                report.push(
                    Diagnostic::error(
                        "when",
                        format!("the step `{}` waits for itself", name.value),
                    )
                    .at(name.span.clone(), "this is the step's own id")
                    .help("name the steps before it, or write `when: [\"-\"]` to start at once"),
                );
            } else if !positions.contains_key(name.value.as_str()) {
                let help = match nearest(&name.value, ids.iter().map(|id| id.text.as_str())) {
                    Some(near) => format!("write `{near}`"),
                    None => {
                        let all: Vec<&str> = ids.iter().map(|id| id.text.as_str()).collect();
                        format!("the steps are: {}", all.join(", "))
                    }
                };
                report.push(
                    Diagnostic::error(
                        "when",
                        format!("there is no step `{}` to wait for", name.value),
                    )
                    .at(name.span.clone(), "no step has this id")
                    .help(help),
                );
            }
        }
    }
    let edges = graph::edges(steps, |id| positions.get(id).copied());
    if let Some(path) = graph::cycle(&edges).filter(|path| path.len() > 1) {
        let mut names: Vec<&str> = path.iter().map(|at| ids[*at].text.as_str()).collect();
        names.push(names[0]);
        let mut diagnostic = Diagnostic::error(
            "cycle",
            format!("these steps wait for each other: {}", names.join(" -> ")),
        );
        for (at, next) in path.iter().zip(path.iter().cycle().skip(1)) {
            let step = &steps[*at];
            let named = step.when.iter().find(|name| name.value == ids[*next].text);
            let (span, text) = match named {
                Some(name) => (
                    name.span.clone(),
                    format!("`{}` waits for `{}`", ids[*at].text, name.value),
                ),
                None => (
                    line_of(&step.span),
                    format!(
                        "`{}` has no `when`, so it waits for `{}`",
                        ids[*at].text, ids[*next].text
                    ),
                ),
            };
            diagnostic = diagnostic.at(span, text);
        }
        report.push(diagnostic.help("take one of these names out of its `when`"));
    }
    edges
}

fn check_step(raw: &RawStep, networks: &[Network], report: &mut Report<'_>) {
    for (name, int) in [("retries", &raw.retries), ("repeat", &raw.repeat)] {
        if let Some(int) = int.as_ref().filter(|int| int.value < 0) {
            report.push(
                Diagnostic::error(
                    "negative",
                    format!("`{name}` is a number of times, and cannot be {}", int.value),
                )
                .at(int.span.clone(), "0 or more")
                .help(format!("write `{name}: 0`, or take the line away")),
            );
        }
    }
    if let Some(cache) = &raw.cache {
        if !["enabled", "disabled"]
            .iter()
            .any(|word| cache.value.eq_ignore_ascii_case(word))
        {
            let meant = match cache.value.to_lowercase().as_str() {
                "false" | "off" | "no" | "none" | "disable" | "n" => "disabled",
                _ => "enabled",
            };
            report.push(
                Diagnostic::error(
                    "cache",
                    format!("`cache` is enabled or disabled, not `{}`", cache.value),
                )
                .at(cache.span.clone(), "expected enabled or disabled")
                .help(format!("write `cache: {meant}`")),
            );
        } else if raw.build.is_none() {
            report.push(
                Diagnostic::warning("no-effect", "`cache` has an effect on build steps only")
                    .at(cache.span.clone(), "it is ignored")
                    .help("take the line away"),
            );
        }
    }
    if let Some(network) = &raw.network
        && !networks.iter().any(|known| known.name == network.value)
        && !["host", "none", "bridge"].contains(&network.value.as_str())
    {
        let help = match nearest(
            &network.value,
            networks.iter().map(|known| known.name.as_str()),
        ) {
            Some(near) => format!("write `network: {near}`"),
            None => format!(
                "declare it beside `steps`: `networks: [{{name: {}}}]`",
                network.value
            ),
        };
        report.push(
            Diagnostic::warning(
                "network",
                format!("the file declares no network `{}`", network.value),
            )
            .at(network.span.clone(), "the engine may not know it either")
            .help(help),
        );
    }
}

fn check_mounts(raw: &RawStep, volumes: &[RawVolume], report: &mut Report<'_>) {
    let names: Vec<&str> = volumes
        .iter()
        .filter_map(|volume| volume.name.as_ref())
        .map(|name| name.value.as_str())
        .collect();
    let mut paths = HashSet::new();
    if let (Some(mount), false, None, None) = (
        raw.volume_mounts.first(),
        raw.push.is_empty(),
        &raw.cmd,
        &raw.build,
    ) {
        report.push(
            Diagnostic::error("mount", "a push step has no container to mount a volume in")
                .at(line_of(&mount.span), "on a push step")
                .help("take `volumeMounts` away, or mount the volume in a cmd step"),
        );
    }
    for mount in &raw.volume_mounts {
        let (Some(name), Some(path)) = (&mount.name, &mount.mount_path) else {
            report.push(
                Diagnostic::error("mount", "a mount needs the name of a volume and a path")
                    .at(line_of(&mount.span), "this one")
                    .help("write `- name: VOLUME` and under it `mountPath: /PATH`"),
            );
            continue;
        };
        if !names.contains(&name.value.as_str()) {
            let help = match nearest(&name.value, names.iter().copied()) {
                Some(near) => format!("write `name: {near}`"),
                None => format!(
                    "declare it beside `steps`: `volumes:` with an entry `- name: {}`",
                    name.value
                ),
            };
            report.push(
                Diagnostic::error("mount", format!("there is no volume `{}`", name.value))
                    .at(name.span.clone(), "no volume has this name")
                    .help(help),
            );
        }
        if !paths.insert(path.value.as_str()) {
            report.push(
                Diagnostic::error(
                    "mount",
                    format!("two volumes are mounted at `{}`", path.value),
                )
                .at(path.span.clone(), "the second one")
                .help("give each mount a path of its own"),
            );
        }
    }
}

fn mount(raw: &RawMount) -> Option<VolumeMount> {
    Some(VolumeMount {
        name: raw.name.as_ref()?.value.clone(),
        mount_path: raw.mount_path.as_ref()?.value.clone(),
    })
}

fn step_kind(
    raw: &RawStep,
    id: &Named,
    context: &Context<'_>,
    report: &mut Report<'_>,
    refusals: &mut Vec<Diagnostic>,
) -> Option<StepKind> {
    let given = [
        raw.build.as_ref().map(|text| ("build", &text.span)),
        raw.cmd.as_ref().map(|text| ("cmd", &text.span)),
        raw.push.first().map(|text| ("push", &text.span)),
    ];
    let given: Vec<_> = given.into_iter().flatten().collect();
    if given.len() != 1 {
        let diagnostic = if given.is_empty() {
            let span = raw.push_key.clone().unwrap_or_else(|| line_of(&raw.span));
            Diagnostic::error(
                "step-kind",
                format!("the step `{}` has nothing to do", id.text),
            )
            .at(span, "one of build, cmd and push is missing")
            .help("add `build: ...`, `cmd: ...` or `push: [...]`; an empty one counts as missing")
        } else {
            let names: Vec<&str> = given.iter().map(|(name, _)| *name).collect();
            let (last, others) = names.split_last()?;
            let mut diagnostic = Diagnostic::error(
                "step-kind",
                format!(
                    "the step `{}` has {} and {last}, and a step is one of them",
                    id.text,
                    others.join(", ")
                ),
            );
            for (name, span) in &given {
                diagnostic = diagnostic.at((*span).clone(), format!("{name} here"));
            }
            diagnostic.help(format!("begin a new step with `- {last}:`"))
        };
        report.push(diagnostic);
        return None;
    }
    if let Some(build) = &raw.build {
        let line = build_line::parse(&build.value);
        let mut places = Places {
            text: build,
            shift: None,
            context,
        };
        match &line {
            Err(refused) => refusals.push(places.refusal(refused, report)),
            Ok(line) => {
                for (flag, sentence) in &line.ignored {
                    let at = places.find(flag);
                    report
                        .push(Diagnostic::warning("no-effect", sentence.clone()).at(at, "ignored"));
                }
            }
        }
        let cache = raw
            .cache
            .as_ref()
            .is_some_and(|cache| cache.value.eq_ignore_ascii_case("enabled"));
        let tags = line
            .as_ref()
            .map(|line| line.tags.clone())
            .unwrap_or_default();
        let cache = match cache
            .then(|| cache_ref(&tags, &id.text, context.facts))
            .flatten()
        {
            Some(Err(why)) => {
                report.push(
                    Diagnostic::warning("cache", format!("the step's cache has no place: {why}"))
                        .at(build.span.clone(), "the cache is kept beside the first tag")
                        .help("give the build a tag whose repository can also hold the cache"),
                );
                None
            }
            Some(Ok(reference)) => Some(reference),
            None => None,
        };
        return Some(StepKind::Build(Box::new(BuildStep {
            raw: build.value.clone(),
            line,
            cache,
        })));
    }
    if let Some(cmd) = &raw.cmd {
        let expanded = context
            .aliases
            .and_then(|aliases| expand_image(&cmd.value, aliases));
        let (line_text, shift) = match expanded {
            Some((line, word)) => (line, Some(word)),
            None => (cmd.value.clone(), None),
        };
        let image_alias = |word: &str| {
            context
                .aliases
                .and_then(|aliases| aliases.image(word))
                .map(str::to_owned)
        };
        let line = cmd_line::parse(&line_text, &image_alias);
        let places = Places {
            text: cmd,
            shift: shift.map(|word| (word, line_text.len())),
            context,
        };
        match &line {
            Err(refused) => refusals.push(places.refusal(refused, report)),
            Ok(line) => warn_of_docker(line, cmd, report),
        }
        return Some(StepKind::Cmd(Box::new(CmdStep {
            raw: line_text,
            line,
        })));
    }
    Some(StepKind::Push(push(raw, context, report, refusals)))
}

/// The words of `docker` that nobody carries out.
fn warn_of_docker(line: &cmd_line::CmdLine, cmd: &Text, report: &mut Report<'_>) {
    let pipelines =
        std::iter::once(&line.first).chain(line.rest.iter().map(|(_, pipeline)| pipeline));
    for command in pipelines.flat_map(|pipeline| &pipeline.commands) {
        if let CommandKind::Docker(words) = &command.kind
            && !docker_word_supported(words)
        {
            let name = cmd_line::docker_word_name(words);
            report.push(
                Diagnostic::warning("docker-word", format!("`docker {name}` is not carried out by acrtask"))
                    .at(cmd.span.clone(), "it needs the engine's socket")
                    .help("a run refuses it unless the operator allowed the socket; steps clean up after themselves"),
            );
        }
    }
}

fn push(
    raw: &RawStep,
    context: &Context<'_>,
    report: &Report<'_>,
    refusals: &mut Vec<Diagnostic>,
) -> PushStep {
    let mut step = PushStep {
        images: Vec::new(),
        raw: Vec::new(),
    };
    for image in &raw.push {
        let full = if image.value.contains(['@', ':']) {
            image.value.clone()
        } else {
            format!("{}:latest", image.value)
        };
        if step.raw.contains(&full) {
            continue;
        }
        let parsed = full.parse::<ImageRef>().map_err(|error| {
            let trimmed = full.trim();
            LineRefusal {
                message: format!("`{}` is no image: {}", image.value, error.reason),
                span: 0..full.len(),
                help: Some(if image.value.trim().contains(char::is_whitespace) {
                    format!(
                        "write one entry for each image: `push: [{}]`",
                        image
                            .value
                            .split_whitespace()
                            .map(quoted)
                            .collect::<Vec<_>>()
                            .join(", ")
                    )
                } else if trimmed.to_lowercase().parse::<ImageRef>().is_ok() {
                    format!("write `{}`", trimmed.to_lowercase())
                } else {
                    "write for example `{{.Run.Registry}}/app:{{.Run.ID}}`".to_owned()
                }),
            }
        });
        if let Err(refused) = &parsed {
            let places = Places {
                text: image,
                shift: None,
                context,
            };
            refusals.push(places.refusal(refused, report));
        }
        step.images.push(parsed.map(ImageRef::or_latest));
        step.raw.push(full);
    }
    step
}

/// Where the cache of a build is kept: `<repository of the first tag>:cache_<task>_<step>`. The first tag
/// that names its registry counts; where none does, the run's registry is meant. Nothing without tags.
fn cache_ref(tags: &[String], step: &str, facts: &RunFacts) -> Option<Result<ImageRef, String>> {
    let task = if facts.task_name.is_empty() {
        "quickrun"
    } else {
        &facts.task_name
    };
    let first = tags.first()?;
    let names_registry = |tag: &&String| {
        tag.split_once('/')
            .is_some_and(|(host, _)| host.contains(['.', ':']) || host == "localhost")
    };
    let full = match tags.iter().find(names_registry) {
        Some(tag) => tag.clone(),
        None if facts.registry.is_empty() => first.clone(),
        None => format!("{}/{first}", facts.registry),
    };
    let tagged = full
        .parse::<ImageRef>()
        .and_then(|image| image.with_tag(&format!("cache_{task}_{step}")));
    Some(tagged.map_err(|error| error.to_string()))
}

/// From bytes of a line to the author's.
struct Places<'p> {
    text: &'p Text,
    /// Where an image alias was replaced: the bytes of its word, and the length of the whole line after.
    shift: Option<(Range<usize>, usize)>,
    context: &'p Context<'p>,
}

impl Places<'_> {
    /// The refusal of a line as an error.
    fn refusal(&self, refused: &LineRefusal, report: &Report<'_>) -> Diagnostic {
        let source = self
            .context
            .source
            .get(self.text.span.clone())
            .unwrap_or_default();
        let map = align(&self.text.value, source);
        let place = |at: usize| {
            let at = self.unshifted(at).min(map.len() - 1);
            self.text.span.start + map[at]
        };
        let start = place(refused.span.start);
        let end = place(refused.span.end.saturating_sub(1)).max(start) + 1;
        let mut diagnostic = Diagnostic {
            code: "cannot-run",
            severity: Severity::Error,
            message: refused.message.clone(),
            labels: Vec::new(),
            help: refused.help.clone(),
        };
        diagnostic = diagnostic.at(start..end, "here");
        report.placed(diagnostic)
    }

    fn unshifted(&self, at: usize) -> usize {
        let Some((word, expanded)) = &self.shift else {
            return at;
        };
        let after_word = self.text.value[word.end..].trim_end().len();
        let image = expanded - after_word;
        if at < image {
            word.start
        } else {
            word.end + (at - image)
        }
    }

    /// Where a flag stands, or the whole line.
    fn find(&mut self, flag: &str) -> Range<usize> {
        let source = self
            .context
            .source
            .get(self.text.span.clone())
            .unwrap_or_default();
        match source.find(flag) {
            Some(at) => self.text.span.start + at..self.text.span.start + at + flag.len(),
            None => self.text.span.clone(),
        }
    }
}

fn from_flags(env: &[String]) -> Vec<Text> {
    env.iter()
        .map(|entry| Text {
            value: entry.clone(),
            span: 0..0,
        })
        .collect()
}

/// Adds the variables of `more` that `env` lacks. An entry of `more` may hold several, separated by
/// commas. Entries need a `=` only where there is something to merge, as in the reference executor.
fn merge_env(env: &mut Vec<Text>, more: &[Text], report: &mut Report<'_>) {
    if more.is_empty() {
        return;
    }
    let refuse = |entry: &Text, report: &mut Report<'_>| {
        let diagnostic = Diagnostic::error("env", format!("`{}` sets no variable", entry.value))
            .help(format!(
                "write `{}=VALUE`; a comma in the task's `env` ends an entry",
                entry.value.trim()
            ));
        report.push(if entry.span.is_empty() {
            diagnostic
        } else {
            diagnostic.at(entry.span.clone(), "expected NAME=VALUE")
        });
    };
    let mut names = HashSet::new();
    for entry in env.iter() {
        match entry.value.split_once('=') {
            Some((name, _)) => {
                names.insert(name.to_owned());
            }
            None => refuse(entry, report),
        }
    }
    for entry in more {
        for part in entry.value.split(',') {
            let part = Text {
                value: part.to_owned(),
                span: entry.span.clone(),
            };
            match part.value.split_once('=') {
                Some((name, _)) if !names.contains(name) => env.push(part),
                Some(_) => {}
                None => refuse(&part, report),
            }
        }
    }
}

fn seconds(int: Option<&Int>, default: i64) -> Duration {
    let value = int.map_or(0, |int| int.value);
    let value = if value <= 0 { default } else { value };
    Duration::from_secs(u64::try_from(value).unwrap_or(0))
}

fn count(int: Option<&Int>) -> u32 {
    int.map_or(0, |int| u32::try_from(int.value.max(0)).unwrap_or(u32::MAX))
}
