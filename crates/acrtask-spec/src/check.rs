//! From a task as it was read to a [`Plan`]: checks, defaults, order. All problems are noted; there is a
//! plan only where none of them is an error.

mod declared;
mod images;
mod lines;
mod order;
mod paths;

use std::{
    collections::{BTreeMap, HashSet},
    ops::Range,
    time::Duration,
};

use acrtask_model::Secret;

pub(crate) use self::declared::secrets;
pub use self::paths::{mounted, normalize_path};
use self::{
    declared::{check_mounts, mount, networks, volumes},
    images::merge_without_registry,
    lines::step_kind,
    order::{check_order, step_ids},
    paths::BuildPlace,
};
use crate::{
    alias::Aliases,
    diagnostic::{Diagnostic, nearest},
    env::{self, Quoting},
    facts::RunFacts,
    plan::{ContainerOptions, Network, Plan, Step, Version},
    read::{Int, MAX_PROBLEMS, Report, Text},
    task::{RawStep, RawTask},
    version,
    words::BEGIN_WITH_VERSION,
};

/// The bridge network that is made where a file declares none.
pub const DEFAULT_NETWORK: &str = "acb_default_network";

/// Bytes that the steps may get from the task in all.
const MAX_HANDED_DOWN: usize = 16 << 20;

const DEFAULT_STEP_TIMEOUT: i64 = 600;
const DEFAULT_RETRY_DELAY: i64 = 5;

/// What a check of a task needs to know besides the task.
pub(crate) struct Context<'c> {
    pub(crate) facts: &'c RunFacts,
    pub(crate) aliases: Option<&'c Aliases>,
    /// The text that the task was read from.
    pub(crate) source: &'c str,
    /// The line breaks of the author's text, for line numbers.
    pub(crate) line_breaks: &'c [usize],
    pub(crate) secrets: &'c [Secret],
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
    let (networks, default_network) = networks(task, context, report, &mut refusals);
    let mut task_env = read_env(&task.env, env::read_entries, report);
    merge_env(&mut task_env, &from_flags(&context.facts.env), report);

    let ids = step_ids(&task.steps, report);
    let edges = check_order(&task.steps, &ids, report);
    let step_timeout = task.step_timeout.as_ref().map_or(0, |int| int.value);
    let step_timeout = if step_timeout <= 0 {
        DEFAULT_STEP_TIMEOUT
    } else {
        step_timeout
    };

    if !check_handed_down(task, &task_env, report) {
        return (None, refusals);
    }
    let mut steps = Vec::new();
    for (i, raw) in task.steps.iter().enumerate() {
        check_step(raw, &networks, report);
        check_mounts(raw, &task.volumes, report);
        let next = task.steps.get(i + 1);
        let text = |text: &Option<Text>| text.as_ref().map(|text| text.value.clone());
        let working_directory = text(&raw.working_directory)
            .or_else(|| text(&task.working_directory))
            .unwrap_or_default();
        let place = BuildPlace {
            working_directory: &working_directory,
            mounts: raw.volume_mounts.iter().filter_map(mount).collect(),
            volumes: &volumes,
        };
        let kind = step_kind(raw, next, &ids[i], &place, context, report, &mut refusals);
        let volume_mounts = place.mounts;
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
            timeout: seconds(raw.timeout.as_ref(), step_timeout),
            start_delay: seconds(raw.start_delay.as_ref(), 0),
            retries: count(raw.retries.as_ref()),
            retry_delay: seconds(raw.retry_delay.as_ref(), DEFAULT_RETRY_DELAY),
            retry_on_errors: texts(&raw.retry_on_errors),
            repeat: count(raw.repeat.as_ref()),
            ignore_errors: raw.ignore_errors,
            network: text(&raw.network).or_else(|| default_network.clone()),
            line: line(&raw.span, context, report),
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
                volume_mounts,
            },
        });
    }
    merge_without_registry(&mut refusals);
    if hides_version(task, context) {
        correct_help(&mut refusals);
    }
    refusals.truncate(MAX_PROBLEMS);
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
        pins: BTreeMap::new(),
    });
    (plan, refusals)
}

/// What every step gets a copy of may not grow with the square of the file.
fn check_handed_down(task: &RawTask, env: &[Text], report: &mut Report<'_>) -> bool {
    let texts = env.iter().chain(&task.working_directory);
    // An entry of many short variables becomes as many texts, each with an overhead of its own.
    let size = |text: &Text| text.value.len() + 48 * (1 + text.value.matches(',').count());
    let bytes = texts.map(size).sum::<usize>() * task.steps.len();
    if bytes > MAX_HANDED_DOWN {
        report.push(
            Diagnostic::error(
                "too-large",
                format!(
                    "the task's `env` and `workingDirectory` are too large for {} steps, each of which gets them",
                    task.steps.len()
                ),
            )
            .help("set them on the steps that need them"),
        );
    }
    bytes <= MAX_HANDED_DOWN
}

/// Returns the position of a span's first line in the author's text, from 1.
fn line(span: &Range<usize>, context: &Context<'_>, report: &Report<'_>) -> usize {
    let start = report.author_span(span.clone()).start;
    1 + context.line_breaks.partition_point(|at| *at < start)
}

fn line_of(span: &Range<usize>) -> Range<usize> {
    span.start..span.start + 1
}

/// Returns the place of a word in the text of a line, or the whole text.
fn span_of_word(text: &str, word: &str) -> Range<usize> {
    match text.find(word) {
        Some(at) if !word.is_empty() => at..at + word.len(),
        _ => 0..text.len(),
    }
}

/// The help on how aliases are turned on.
const VERSION_LINE: &str = "write `version: v1.1.0` once, as the first line, without indent, braces and tags: only a line \
                            like that turns aliases on";

/// Returns `true` if the file has a version with aliases that is not in a line by which they are turned on.
fn hides_version(task: &RawTask, context: &Context<'_>) -> bool {
    let version = task.version.as_ref();
    let version = version.and_then(|text| version::parse(&text.value));
    context.aliases.is_none() && version == Some(Version::V1_1_0)
}

/// Replaces the help that asks for a version which the file has already.
fn correct_help(refusals: &mut [Diagnostic]) {
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
                    "no-effect",
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
                "version",
                "aliases are replaced, because the first `version` line of the file turns them on",
            )
            .help("write one `version` line"),
        );
    } else if let (Some(span), None) = (&task.alias, context.aliases) {
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

/// Returns the entries that `--env` gave. They are not quoted: a shell has read them already.
fn from_flags(env: &[String]) -> Vec<Text> {
    let entries = env.iter().flat_map(|entry| entry.split(','));
    let text = |value: &str| Text {
        value: value.to_owned(),
        span: 0..0,
    };
    entries.map(text).collect()
}

/// Reads the entries of an `env`, each of which may become several.
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

/// Adds the variables of `more` that `env` lacks. Entries need a `=` only where there is something to merge, as in the
/// reference executor.
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
        match entry.value.split_once('=') {
            Some((name, _)) if !names.contains(name) => env.push(entry.clone()),
            Some(_) => {}
            None => refuse(entry, report),
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
