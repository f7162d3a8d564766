//! Checks, defaults and order of a parsed task.
//!
//! Each problem is reported. A [`Plan`] is made only if none of them is an error.

mod declared;
mod images;
mod lines;
mod order;
mod paths;
mod purge;

use std::{
    collections::{BTreeMap, HashSet},
    ops::Range,
    time::Duration,
};

use acrtask_model::Secret;

pub(crate) use self::declared::check_secrets;
pub use self::paths::{find_mount, normalize_path};
use self::{
    declared::{check_mounts, read_networks, read_volumes, to_volume_mount},
    images::merge_empty_registry_refusals,
    lines::read_step_kind,
    order::{check_order, step_ids},
    paths::BuildInputs,
    purge::warn_of_short_purge,
};
use crate::{
    alias::Aliases,
    code::Code,
    diagnostic::{Diagnostic, find_nearest},
    env::{self, Quoting},
    lexer::BEGIN_WITH_VERSION,
    plan::{ContainerOptions, Network, Plan, Step, Version},
    read::{Int, MAX_PROBLEMS, Report, Text},
    run_variables::RunVariables,
    task::{RawStep, RawTask},
    version,
};

/// Name of the bridge network that is created if a file declares no network.
pub const DEFAULT_NETWORK: &str = "acb_default_network";

/// Maximum size in bytes of what all steps together inherit from the task.
const MAX_INHERITED_BYTES: usize = 16 << 20;

const DEFAULT_STEP_TIMEOUT: i64 = 600;
const DEFAULT_RETRY_DELAY: i64 = 5;

/// Inputs of a check besides the task.
pub(crate) struct Context<'c> {
    pub(crate) variables: &'c RunVariables,
    pub(crate) aliases: Option<&'c Aliases>,
    /// Text that the task was parsed from.
    pub(crate) source: &'c str,
    /// Offsets of the line breaks in the author's text, for line numbers.
    pub(crate) line_breaks: &'c [usize],
    pub(crate) secrets: &'c [Secret],
}

/// Checks `task` and makes its plan. The second part contains the refusals of single lines, as
/// errors.
pub(crate) fn make_plan(
    task: &RawTask,
    context: &Context<'_>,
    report: &mut Report<'_>,
) -> (Option<Plan>, Vec<Diagnostic>) {
    let version = check_version(task, context, report);
    let mut refusals = Vec::new();
    let volumes = read_volumes(&task.volumes, report, &mut refusals);
    let (networks, default_network) = read_networks(task, context, report, &mut refusals);
    let mut task_env = read_env(&task.env, env::read_entries, report);
    merge_env(
        &mut task_env,
        &split_flag_env(&context.variables.env),
        report,
    );

    let ids = step_ids(&task.steps, report);
    let edges = check_order(&task.steps, &ids, report);
    let step_timeout = task.step_timeout.as_ref().map_or(0, |int| int.value);
    let step_timeout = if step_timeout <= 0 {
        DEFAULT_STEP_TIMEOUT
    } else {
        step_timeout
    };

    if !check_inherited_size(task, &task_env, report) {
        return (None, refusals);
    }
    let volume_names = task
        .volumes
        .iter()
        .filter_map(|volume| volume.name.as_ref());
    let volume_names = volume_names.map(|name| name.value.as_str()).collect();
    let mut steps = Vec::new();
    for (i, raw) in task.steps.iter().enumerate() {
        check_step(raw, &networks, report);
        check_mounts(raw, &volume_names, report);
        let next = task.steps.get(i + 1);
        let text = |text: &Option<Text>| text.as_ref().map(|text| text.value.clone());
        let working_directory = text(&raw.working_directory)
            .or_else(|| text(&task.working_directory))
            .unwrap_or_default();
        let inputs = BuildInputs {
            working_directory: &working_directory,
            mounts: raw
                .volume_mounts
                .iter()
                .filter_map(to_volume_mount)
                .collect(),
            volumes: &volumes,
        };
        let kind = read_step_kind(raw, next, &ids[i], &inputs, context, report, &mut refusals);
        let timeout = raw.timeout.as_ref().or(task.step_timeout.as_ref());
        warn_of_short_purge(kind.as_ref(), timeout, report);
        let volume_mounts = inputs.mounts;
        let mut env = read_env(
            &raw.env,
            |entry, quoting| vec![env::read_entry(entry, quoting)],
            report,
        );
        merge_env(&mut env, &task_env, report);
        let (Some(kind), Some(id)) = (kind, ids[i].step.clone()) else {
            continue;
        };
        let after = edges[i]
            .iter()
            .filter_map(|at| ids[*at].step.clone())
            .collect();
        let texts = |texts: &[Text]| {
            texts
                .iter()
                .map(|text| text.value.clone())
                .collect::<Vec<_>>()
        };
        steps.push(Step {
            id,
            kind,
            after,
            env: texts(&env),
            working_directory,
            disable_working_directory_override: raw.disable_working_directory_override,
            timeout: to_duration(raw.timeout.as_ref(), step_timeout),
            start_delay: to_duration(raw.start_delay.as_ref(), 0),
            retries: to_count(raw.retries.as_ref()),
            retry_delay: to_duration(raw.retry_delay.as_ref(), DEFAULT_RETRY_DELAY),
            retry_on_errors: texts(&raw.retry_on_errors),
            repeat: to_count(raw.repeat.as_ref()),
            ignore_errors: raw.ignore_errors,
            network: text(&raw.network).or_else(|| default_network.clone()),
            line: line_number(&raw.span, context, report),
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
                download_retries: to_count(raw.download_retries.as_ref()),
                download_retry_delay: to_duration(raw.download_retry_delay.as_ref(), 0),
                volume_mounts,
            },
        });
    }
    merge_empty_registry_refusals(&mut refusals);
    if hides_version(task, context) {
        replace_version_help(&mut refusals);
    }
    refusals.truncate(MAX_PROBLEMS);
    if report.has_errors() {
        return (None, refusals);
    }
    let plan = version.map(|version| Plan {
        version,
        registry: context.variables.registry.clone(),
        networks,
        volumes,
        credentials: Vec::new(),
        steps,
        secrets: context.secrets.to_vec(),
        timeout: None,
        pins: BTreeMap::new(),
    });
    (plan, refusals)
}

/// Limits what the steps inherit from the task, because its size grows with the square of the file.
fn check_inherited_size(task: &RawTask, env: &[Text], report: &mut Report<'_>) -> bool {
    let texts = env.iter().chain(&task.working_directory);
    // An entry of many short variables becomes as many texts. Each text has an overhead.
    let size = |text: &Text| text.value.len() + 48 * (1 + text.value.matches(',').count());
    let bytes = texts.map(size).sum::<usize>() * task.steps.len();
    if bytes > MAX_INHERITED_BYTES {
        report.push(
            Diagnostic::error(
                Code::TooLarge,
                format!(
                    "the task's `env` and `workingDirectory` are too large for {} steps, each of which gets them",
                    task.steps.len()
                ),
            )
            .help("set them on the steps that need them"),
        );
    }
    bytes <= MAX_INHERITED_BYTES
}

/// Returns the line number of a span's start in the author's text, from 1.
fn line_number(span: &Range<usize>, context: &Context<'_>, report: &Report<'_>) -> usize {
    let start = report.author_span(span.clone()).start;
    1 + context.line_breaks.partition_point(|at| *at < start)
}

fn first_byte(span: &Range<usize>) -> Range<usize> {
    span.start..span.start + 1
}

/// Returns the range of a word in the text of a line, or that of the whole text.
fn span_of_word(text: &str, word: &str) -> Range<usize> {
    match text.find(word) {
        Some(at) if !word.is_empty() => at..at + word.len(),
        _ => 0..text.len(),
    }
}

/// Help that explains how to turn aliases on.
const VERSION_LINE: &str = "write `version: v1.1.0` once, as the first line, without indent, braces and tags: only a line \
                            like that turns aliases on";

/// Returns `true` if the file declares a version with aliases in a form that does not turn them on.
fn hides_version(task: &RawTask, context: &Context<'_>) -> bool {
    let version = task.version.as_ref();
    let version = version.and_then(|text| version::parse(&text.value));
    context.aliases.is_none() && version == Some(Version::V1_1_0)
}

/// Replaces help that asks for a version which the file already declares.
fn replace_version_help(refusals: &mut [Diagnostic]) {
    for refused in refusals {
        let help = refused.help.take();
        refused.help = help.map(|help| match help.split_once(BEGIN_WITH_VERSION) {
            Some((before, _)) => format!("{before}{VERSION_LINE}"),
            None => help,
        });
    }
}

fn check_version(
    task: &RawTask,
    context: &Context<'_>,
    report: &mut Report<'_>,
) -> Option<Version> {
    let written = task.version.as_ref().map(|text| text.value.as_str());
    if hides_version(task, context) {
        if let Some(span) = &task.alias {
            report.push(
                Diagnostic::warning(
                    Code::NoEffect,
                    "aliases are not replaced: the file's first `version` line does not turn them on",
                )
                .at(span.clone(), "it is ignored")
                .help(VERSION_LINE),
            );
        }
    } else if context.aliases.is_some()
        && written.is_some_and(|text| version::parse(text).is_some_and(|v| v != Version::V1_1_0))
    {
        report.push(
            Diagnostic::warning(
                Code::Version,
                "aliases are replaced, because the first `version` line of the file turns them on",
            )
            .help("write one `version` line"),
        );
    } else if let (Some(span), None) = (&task.alias, context.aliases) {
        report.push(
            Diagnostic::warning(
                Code::NoEffect,
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
                Code::Version,
                format!("`{}` is not a version of the task language", text.value),
            )
            .at(
                text.span.clone(),
                "known are v1.1.0, v1.0.0 and 1.0-preview-1",
            )
            .help(format!(
                "write `version: {}`",
                version::guess_version(&text.value).as_str()
            )),
        );
    }
    version
}

fn check_step(raw: &RawStep, networks: &[Network], report: &mut Report<'_>) {
    for (name, int) in [("retries", &raw.retries), ("repeat", &raw.repeat)] {
        if let Some(int) = int.as_ref().filter(|int| int.value < 0) {
            report.push(
                Diagnostic::error(
                    Code::Negative,
                    format!("`{name}` is a number of times, and cannot be {}", int.value),
                )
                .at(int.span.clone(), "0 or more")
                .help(format!("write `{name}: 0`, or remove the line")),
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
                    Code::Cache,
                    format!("`cache` is enabled or disabled, not `{}`", cache.value),
                )
                .at(cache.span.clone(), "expected enabled or disabled")
                .help(format!("write `cache: {meant}`")),
            );
        } else if raw.build.is_none() {
            report.push(
                Diagnostic::warning(Code::NoEffect, "`cache` has an effect on build steps only")
                    .at(cache.span.clone(), "it is ignored")
                    .help("remove the line"),
            );
        }
    }
    if let Some(network) = &raw.network
        && !report.is_full()
        && !networks
            .iter()
            .any(|declared| declared.name == network.value)
        && !["host", "none", "bridge"].contains(&network.value.as_str())
    {
        let help = match find_nearest(
            &network.value,
            networks.iter().map(|declared| declared.name.as_str()),
        ) {
            Some(near) => format!("write `network: {near}`"),
            None => format!(
                "declare it beside `steps`: `networks: [{{name: {}}}]`",
                network.value
            ),
        };
        report.push(
            Diagnostic::warning(
                Code::Network,
                format!("the file declares no network `{}`", network.value),
            )
            .at(network.span.clone(), "the engine may not have it either")
            .help(help),
        );
    }
}

/// Returns the entries of `--env`. They are not unquoted, because a shell has already done so.
fn split_flag_env(env: &[String]) -> Vec<Text> {
    let entries = env.iter().flat_map(|entry| entry.split(','));
    let text = |value: &str| Text {
        value: value.to_owned(),
        span: 0..0,
    };
    entries.map(text).collect()
}

/// Reads the entries of an `env`. Each may yield several.
fn read_env(
    env: &[Text],
    read: fn(&str, Quoting) -> Vec<String>,
    report: &Report<'_>,
) -> Vec<Text> {
    let mut entries = Vec::new();
    for entry in env {
        let quoting = Quoting::of(report.written(entry.span.clone()));
        let values = read(&entry.value, quoting).into_iter();
        entries.extend(values.map(|value| Text {
            value,
            span: entry.span.clone(),
        }));
    }
    entries
}

/// Adds the variables of `more` that `env` lacks. As in the reference executor, an entry needs a
/// `=` only if `more` has entries.
fn merge_env(env: &mut Vec<Text>, more: &[Text], report: &mut Report<'_>) {
    if more.is_empty() {
        return;
    }
    let refuse = |entry: &Text, report: &mut Report<'_>| {
        let diagnostic =
            Diagnostic::error(Code::Env, format!("`{}` sets no variable", entry.value)).help(
                format!(
                    "write `{}=VALUE`; a comma in the task's `env` ends an entry",
                    entry.value.trim()
                ),
            );
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
        match entry.value.split_once('=') {
            Some((name, _)) if !names.contains(name) => env.push(entry.clone()),
            Some(_) => {}
            None => refuse(entry, report),
        }
    }
}

fn to_duration(int: Option<&Int>, default: i64) -> Duration {
    let value = int.map_or(0, |int| int.value);
    let value = if value <= 0 { default } else { value };
    Duration::from_secs(u64::try_from(value).unwrap_or(0))
}

fn to_count(int: Option<&Int>) -> u32 {
    int.map_or(0, |int| u32::try_from(int.value.max(0)).unwrap_or(u32::MAX))
}
