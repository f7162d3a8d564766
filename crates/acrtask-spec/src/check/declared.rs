//! Declarations of a task beside its steps: secrets, networks, volumes, and the mounts of volumes.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use acrtask_model::Secret;
use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{Context, DEFAULT_NETWORK, first_byte, line_number};
use crate::{
    code::Code,
    diagnostic::{Diagnostic, find_nearest},
    plan::{Network, Volume, VolumeMount},
    read::{Report, Text},
    task::{RawMount, RawSecret, RawStep, RawTask, RawVolume},
};

/// Reports problems of the `secrets` of a task. The reference executor checks them first, too.
pub(crate) fn check_secrets(declared: &[RawSecret], report: &mut Report<'_>) {
    let mut seen: HashMap<&str, &Text> = HashMap::new();
    for secret in declared {
        let Some(id) = &secret.id else {
            report.push(
                Diagnostic::error(Code::Secret, "the secret has no id")
                    .at(first_byte(&secret.span), "add `id`")
                    .help("write `- id: NAME`; a template reads it as `{{.Secrets.NAME}}`"),
            );
            continue;
        };
        if id.value.contains(char::is_whitespace) {
            report.push(
                Diagnostic::error(
                    Code::Secret,
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
                Diagnostic::error(
                    Code::Secret,
                    format!("two secrets have the id `{}`", id.value),
                )
                .at(id.span.clone(), "the second one")
                .at(first.span.clone(), "the first one")
                .help("give one of them another id"),
            );
        }
        if secret.declaration().is_none() {
            report.push(
                Diagnostic::error(
                    Code::Secret,
                    format!("the secret `{}` has no source for its value", id.value),
                )
                .at(id.span.clone(), "this one")
                .help(
                    "add its source: `keyvault: URL`, `vault: PATH#KEY`, `env: VARIABLE` or `file: PATH`",
                ),
            );
        }
        if let Some(vault) = &secret.vault
            && !vault
                .value
                .split_once('#')
                .is_some_and(|(path, key)| path.contains('/') && !key.is_empty())
        {
            report.push(
                Diagnostic::error(
                    Code::Secret,
                    format!("`{}` is not the address of a secret in a vault", vault.value),
                )
                .at(vault.span.clone(), "expected PATH#KEY")
                .help("write the path as `vault kv get` takes it, and a key: `vault: secret/team/app#password`"),
            );
        }
        if let Some(client) = &secret.client_id
            && !is_uuid(&client.value)
        {
            report.push(
                Diagnostic::error(Code::Secret, format!("`{}` is not a client id", client.value))
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

/// Reads the networks of a task and the name of its default network. A name that the engine would
/// not accept becomes a refusal.
pub(super) fn read_networks(
    task: &RawTask,
    context: &Context<'_>,
    report: &mut Report<'_>,
    refusals: &mut Vec<Diagnostic>,
) -> (Vec<Network>, Option<String>) {
    let mut networks: Vec<Network> = Vec::new();
    let mut seen = HashSet::new();
    for raw in &task.networks {
        let Some(name) = &raw.name else {
            report.push(
                Diagnostic::error(Code::Network, "the network has no name")
                    .at(first_byte(&raw.span), "add `name`")
                    .help("write `- name: backend`"),
            );
            continue;
        };
        if !seen.insert(name.value.as_str()) {
            report.push(
                Diagnostic::error(
                    Code::Network,
                    format!("two networks have the name `{}`", name.value),
                )
                .at(name.span.clone(), "the second one")
                .help("give one of them another name"),
            );
        }
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        if name.value.is_empty() || name.value.contains(|c: char| !is_allowed(c)) {
            let refusal = Diagnostic::error(
                Code::Network,
                format!("`{}` is not a name for a network", name.value),
            );
            let refusal = refusal
                .at(name.span.clone(), "letters, digits, `-`, `_` and `.` only")
                .help(format!(
                    "write `name: {}`",
                    name.value.replace(|c: char| !is_allowed(c), "-")
                ));
            refusals.push(report.with_author_spans(refusal));
        }
        networks.push(Network {
            line: Some(line_number(&raw.span, context, report)),
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
            line: None,
            name: DEFAULT_NETWORK.to_owned(),
            driver: "bridge".to_owned(),
            ipv6: false,
            skip_creation: false,
            is_default: true,
        });
    }
    // The last network marked as default takes effect.
    let default = networks.iter().rev().find(|network| network.is_default);
    let default = default.map(|network| network.name.clone());
    (networks, default)
}

pub(super) fn read_volumes(
    raw: &[RawVolume],
    report: &mut Report<'_>,
    refusals: &mut Vec<Diagnostic>,
) -> Vec<Volume> {
    let mut volumes: Vec<Volume> = Vec::new();
    let mut seen = HashSet::new();
    let allowed = |text: &str, more: &[u8]| {
        text.bytes()
            .all(|b| b.is_ascii_alphanumeric() || more.contains(&b))
    };
    for volume in raw {
        let Some(name) = &volume.name else {
            report.push(
                Diagnostic::error(Code::Volume, "the volume has no name")
                    .at(first_byte(&volume.span), "add `name`")
                    .help("write `- name: keys`"),
            );
            continue;
        };
        if !allowed(&name.value, b"-_") {
            report.push(
                Diagnostic::error(
                    Code::Volume,
                    format!("`{}` is not a name for a volume", name.value),
                )
                .at(name.span.clone(), "letters, digits, `-` and `_` only")
                .help(format!(
                    "write `name: {}`",
                    name.value
                        .replace(|c: char| !c.is_ascii_alphanumeric(), "-")
                )),
            );
        }
        if !seen.insert(name.value.as_str()) {
            report.push(
                Diagnostic::error(
                    Code::Volume,
                    format!("two volumes have the name `{}`", name.value),
                )
                .at(name.span.clone(), "the second one")
                .help("give one of them another name"),
            );
        }
        let files = volume.secret.as_deref().unwrap_or_default();
        if files.is_empty() {
            report.push(
                Diagnostic::error(Code::Volume, format!("the volume `{}` has no files", name.value))
                    .at(name.span.clone(), "this one")
                    .help("add `secret:` with a line `FILE: CONTENT` for each file, the content in base 64"),
            );
        }
        let mut read = BTreeMap::new();
        for (file, content) in files {
            if file.value.is_empty() || !allowed(&file.value, b"-_.") {
                report.push(
                    Diagnostic::error(
                        Code::Volume,
                        format!("`{}` is not a name for a secret's file", file.value),
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
                report.with_author_spans(
                    Diagnostic::error(
                        Code::Volume,
                        format!("the content of `{}` {why}", file.value),
                    )
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

/// Reports problems of the mounts of a step. `names` contains the names of the declared volumes.
pub(super) fn check_mounts(raw: &RawStep, names: &BTreeSet<&str>, report: &mut Report<'_>) {
    let mut paths = HashSet::new();
    if let (Some(mount), false, None, None) = (
        raw.volume_mounts.first(),
        raw.push.is_empty(),
        &raw.cmd,
        &raw.build,
    ) {
        report.push(
            Diagnostic::error(
                Code::Mount,
                "a push step has no container to mount a volume in",
            )
            .at(first_byte(&mount.span), "on a push step")
            .help("remove `volumeMounts`, or mount the volume in a cmd step"),
        );
    }
    for mount in &raw.volume_mounts {
        let (Some(name), Some(path)) = (&mount.name, &mount.mount_path) else {
            report.push(
                Diagnostic::error(Code::Mount, "a mount needs the name of a volume and a path")
                    .at(first_byte(&mount.span), "this one")
                    .help("write `- name: VOLUME` and under it `mountPath: /PATH`"),
            );
            continue;
        };
        // A search for the nearest name is slow.
        if report.is_closed() {
            return;
        }
        if !names.contains(name.value.as_str()) {
            let help = match find_nearest(&name.value, names.iter().copied()) {
                Some(near) => format!("write `name: {near}`"),
                None => format!(
                    "declare it beside `steps`: `volumes:` with an entry `- name: {}`",
                    name.value
                ),
            };
            report.push(
                Diagnostic::error(
                    Code::Mount,
                    format!("the volume `{}` does not exist", name.value),
                )
                .at(name.span.clone(), "no volume has this name")
                .help(help),
            );
        }
        if !paths.insert(path.value.as_str()) {
            report.push(
                Diagnostic::error(
                    Code::Mount,
                    format!("two volumes are mounted at `{}`", path.value),
                )
                .at(path.span.clone(), "the second one")
                .help("give each mount a path of its own"),
            );
        }
    }
}

pub(super) fn to_volume_mount(raw: &RawMount) -> Option<VolumeMount> {
    Some(VolumeMount {
        name: raw.name.as_ref()?.value.clone(),
        mount_path: raw.mount_path.as_ref()?.value.clone(),
    })
}
