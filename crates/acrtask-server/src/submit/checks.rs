//! What can be seen to be wrong before a run exists. Every problem is told, with its key.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;

use super::inline;
use acrtask_model::printable::unprintable_in_name;
use acrtask_source::ContextSpec;
use acrtask_trigger::{ImageRules, TriggerRules};

use acrtask_api::{
    spec::{BuildSpec, ContextSource, RunSpec, Work},
    task::{QueueOptions, TaskDefinition},
};
use acrtask_store::RunGroup;

/// Longest name of a task.
const MAX_NAME: usize = 100;
/// Longest inline task file, in bytes: no larger one is read.
const MAX_TEXT: usize = acrtask_spec::MAX_FILE;
/// Largest spec of a run and largest definition of a task, in bytes of JSON.
pub(crate) const MAX_SPEC: usize = 256 << 10;
/// Longest limit of a run, in seconds: a week.
const MAX_TIMEOUT: u64 = 7 * 24 * 3600;

/// Problems of a request. A value can differ from the form that the OpenAPI document states, or break a rule that
/// no schema can express.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problems {
    texts: Vec<String>,
    wrong_form: bool,
}

impl Problems {
    /// Adds a value that does not have the form in the OpenAPI document.
    pub fn add(&mut self, problem: impl Into<String>) {
        self.wrong_form = true;
        self.add_rule(problem);
    }

    /// Adds a broken rule between values, or in the language that a value is written in.
    pub fn add_rule(&mut self, problem: impl Into<String>) {
        let problem = problem.into();
        if !self.texts.contains(&problem) {
            self.texts.push(problem);
        }
    }

    /// Returns `true` if there is no problem.
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    /// Returns `true` if a value does not have the form in the OpenAPI document.
    pub fn has_wrong_form(&self) -> bool {
        self.wrong_form
    }

    /// An error where something is wrong.
    ///
    /// # Errors
    /// The problems themselves.
    pub fn into_result(self) -> Result<(), Self> {
        if self.is_empty() { Ok(()) } else { Err(self) }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.texts.join("; "))
    }
}

impl std::error::Error for Problems {}

/// What is wrong with the definition of a task.
pub fn check_task(task: &TaskDefinition) -> Problems {
    let mut problems = Problems::default();
    check_size("the definition of the task", task, &mut problems);
    if let Err(reason) = task_name(&task.name) {
        problems.add(format!("`name`: {reason}"));
    }
    let works: Vec<&str> = [
        ("file", task.file.is_some()),
        ("text", task.text.is_some()),
        ("cmd", task.cmd.is_some()),
        ("build", task.build.is_some()),
    ]
    .into_iter()
    .filter_map(|(key, given)| given.then_some(key))
    .collect();
    if works.len() > 1 {
        problems.add_rule(format!(
            "`{}` exclude each other: give one of `file`, `text`, `cmd` and `build`, or none of them for `acr-task.yaml`",
            works.join("`, `")
        ));
    }
    if works.iter().all(|key| *key == "file") && task.context.is_none() {
        problems.add_rule(
            "there is no `context` that a task file could be in: give one, or `text`, `cmd` or `build`",
        );
    }
    if let Some(context) = &task.context {
        check_url("context", context, &mut problems);
    }
    if let Some(file) = &task.file {
        check_path("file", file, &mut problems);
    }
    if let Some(text) = &task.text {
        check_text("text", text, &mut problems);
    }
    if let Some(cmd) = &task.cmd {
        check_cmd(cmd, &mut problems);
    }
    if let Some(build) = &task.build {
        check_build("build", build, &mut problems);
        for image in build.images.iter().filter(|image| !image.contains("{{")) {
            if let Err(reason) = inline::check_image(image, task.registry.as_deref()) {
                problems.add_rule(format!("`build.images`: `{image}`: {reason}"));
            }
        }
    }
    if let Some(registry) = &task.registry {
        check_host(registry, &mut problems);
    }
    check_names(task.secrets.keys(), &mut problems);
    check_names(task.secrets.values(), &mut problems);
    check_env("env", &task.env, &mut problems);
    check_aliases(task.alias_images.keys(), &mut problems);
    if let Some(platform) = &task.platform {
        check_platform("platform", platform, &mut problems);
    }
    if let Some(timeout) = &task.timeout {
        match duration(timeout) {
            Ok(1..=MAX_TIMEOUT) => {}
            Ok(_) => problems.add_rule("`timeout` must be a second to a week"),
            Err(reason) => problems.add_rule(format!("`timeout`: {reason}")),
        }
    }
    check_queue(&task.queue, &mut problems);
    check_triggers(task, &mut problems);
    crate::timers::check(&task.triggers, &mut problems);
    if let Some(url) = &task.triggers.url
        && url.allow_set.iter().any(|key| key.trim().is_empty())
    {
        problems.add("`triggers.url.allowSet` has an empty name");
    }
    problems
}

/// What is wrong with what starts runs, and with who is told of them.
fn check_triggers(task: &TaskDefinition, problems: &mut Problems) {
    // One that is off may stand beside a context that is no repository.
    if let Some(commit) = task.triggers.commit.as_ref().filter(|it| it.enabled)
        && let Err(errors) = TriggerRules::new(commit, task.context.as_deref())
    {
        for error in errors {
            problems.add_rule(format!("`triggers.commit`: {error}"));
        }
    }
    if let Some(push) = &task.triggers.registry_push
        && let Err(errors) = ImageRules::new(push)
    {
        for error in errors {
            let problem = format!("`triggers.registryPush`: {error}");
            if push.repositories.is_empty() {
                problems.add(problem);
            } else {
                problems.add_rule(problem);
            }
        }
    }
    for problem in crate::bases::tags::problems(task) {
        problems.add_rule(problem);
    }
    for notify in &task.notify {
        check_names(
            std::iter::once(&notify.url).chain(&notify.sign_with),
            problems,
        );
    }
}

/// Refuses what takes more than [`MAX_SPEC`] as JSON: it is stored with each run, and sent to its runner.
pub(super) fn check_size(name: &str, value: &impl Serialize, problems: &mut Problems) {
    // What cannot be written as JSON is refused where it is stored.
    let size = serde_json::to_vec(value).map_or(0, |json| json.len());
    if size > MAX_SPEC {
        problems.add_rule(format!(
            "{name} takes {} KiB as JSON, and may take {} KiB: put large texts and values into a file of the context",
            size.div_ceil(1024),
            MAX_SPEC >> 10
        ));
    }
}

/// What is wrong with the spec of a run.
pub(super) fn check_spec(spec: &RunSpec, problems: &mut Problems) {
    match &spec.context {
        ContextSource::None => {
            if matches!(spec.work, Work::Usual | Work::File { .. }) {
                problems.add_rule(
                    "`spec.work` is a file of the context, and `spec.context` is nothing",
                );
            }
        }
        ContextSource::Upload { id } => {
            if id.is_empty() {
                problems.add("`spec.context.id` is empty: upload the files first, with POST /api/v1/contexts");
            }
        }
        ContextSource::Url { url, commit, .. } => {
            check_url("spec.context.url", url, problems);
            let full = |commit: &String| {
                matches!(commit.len(), 40 | 64) && commit.bytes().all(|b| b.is_ascii_hexdigit())
            };
            if commit.as_ref().is_some_and(|commit| !full(commit)) {
                problems.add(
                    "`spec.context.commit` is not the full name of a commit: 40 or 64 hexadecimal digits",
                );
            }
        }
    }
    match &spec.work {
        Work::Usual => {}
        Work::File { path } => check_path("spec.work.path", path, problems),
        Work::Text { text, .. } => check_text("spec.work.text", text, problems),
        Work::Cmd { line } if line.trim().is_empty() => {
            problems.add("`spec.work.line` is empty: give an image and its arguments");
        }
        Work::Cmd { .. } => {}
        Work::Build(build) => check_build("spec.work", build, problems),
    }
    if !spec.facts.registry.is_empty() {
        check_host(&spec.facts.registry, problems);
    }
    check_names(spec.secrets.iter(), problems);
    check_env("spec.env", &spec.env, problems);
    check_values("spec.set", &spec.set, problems);
    check_aliases(spec.alias_images.keys(), problems);
    for platform in &spec.platforms {
        check_platform("spec.platforms", platform, problems);
    }
    if let Some(seconds) = spec.timeout_secs {
        check_timeout("spec.timeoutSecs", seconds, problems);
    }
}

/// What is wrong with where and when a run may run.
pub(super) fn check_queue(queue: &QueueOptions, problems: &mut Problems) {
    if !(-10..=10).contains(&queue.priority) {
        problems.add(format!(
            "`queue.priority` is {}, and may be -10 to 10",
            queue.priority
        ));
    }
    if let Some(pool) = &queue.pool
        && let Err(reason) = word(pool)
    {
        problems.add(format!("`queue.pool`: {reason}"));
    }
    check_labels("queue.labels", &queue.labels, problems);
    if let Some(concurrency) = &queue.concurrency {
        if concurrency.max == 0 {
            problems.add("`queue.concurrency.max` is 0: no run would ever start; give 1 or more");
        }
        if concurrency
            .group
            .as_ref()
            .is_some_and(|group| group.trim().is_empty() || group.chars().count() > MAX_NAME)
        {
            problems.add(format!(
                "`queue.concurrency.group` must have 1 to {MAX_NAME} characters"
            ));
        } else if let Some(Err(reason)) = concurrency.group.as_deref().map(RunGroup::check_name) {
            problems.add_rule(format!("`queue.concurrency.group`: {reason}"));
        }
    }
}

/// What is wrong with labels of runs or runners.
pub(crate) fn check_labels(key: &str, labels: &BTreeMap<String, String>, problems: &mut Problems) {
    for (name, value) in labels {
        if let Err(reason) = word(name) {
            problems.add(format!("`{key}`: {reason}"));
        }
        if value.chars().count() > MAX_NAME {
            problems.add(format!(
                "`{key}.{name}` is longer than {MAX_NAME} characters"
            ));
        }
    }
}

/// The name of a task: letters, digits, `-`, `_`, `.` and `/`.
///
/// # Errors
/// Why it is none.
pub fn task_name(name: &str) -> Result<(), String> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    if name.is_empty() {
        Err("a task needs a name".into())
    } else if name.len() > MAX_NAME {
        Err(format!("it is longer than {MAX_NAME} characters"))
    } else if let Some(bad) = name.chars().find(|c| !good(*c)) {
        Err(format!(
            "`{name}` holds {bad:?}, and only letters, digits, `-`, `_`, `.` and `/` may be used"
        ))
    } else if name
        .split('/')
        .any(|part| part.is_empty() || part.chars().all(|c| c == '.'))
    {
        Err(format!("`{name}` has an empty part, or one of dots alone"))
    } else {
        Ok(())
    }
}

/// The name of a secret, as templates can say it: `.Secrets.NAME`.
///
/// # Errors
/// Why it is none.
pub fn secret_name(name: &str) -> Result<(), String> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(good) {
        return Err(format!(
            "`{name}` is not the name of a secret: 1 to {MAX_NAME} letters, digits, `-`, `_` and `.`"
        ));
    }
    Ok(())
}

/// A pool, the name of a label, of a runner: 1 to 100 letters, digits and a few marks.
///
/// # Errors
/// Why it is none.
pub(crate) fn word(text: &str) -> Result<(), String> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    if text.is_empty() {
        return Err("it is empty".into());
    }
    if text.len() > MAX_NAME || !text.chars().all(good) {
        return Err(format!(
            "`{text}` must be 1 to {MAX_NAME} letters, digits, `-`, `_`, `.` and `/`"
        ));
    }
    Ok(())
}

/// Refuses a name that a terminal or a log would not show as it is.
pub(crate) fn check_printable(key: &str, name: &str, problems: &mut Problems) {
    if let Some(c) = unprintable_in_name(name) {
        let code = u32::from(c);
        let problem = format!(
            "`{key}` contains U+{code:04X}, which is not printable: write letters, digits, blanks and signs"
        );
        if c.is_control() {
            problems.add(problem);
        } else {
            problems.add_rule(problem);
        }
    }
}

pub(super) fn check_names<'n>(names: impl Iterator<Item = &'n String>, problems: &mut Problems) {
    for name in names {
        if let Err(reason) = secret_name(name) {
            problems.add(reason);
        }
    }
}

/// The host of a registry: a name or an address, with or without a port.
pub(super) fn check_host(host: &str, problems: &mut Problems) {
    if let Err(reason) = host_name(host) {
        problems.add(reason);
    }
}

/// Host and port, as logins name them.
///
/// # Errors
/// Why it is none.
pub(crate) fn host_name(host: &str) -> Result<(), String> {
    let good =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | ':' | '[' | ']' | '_');
    if host.is_empty() || host.len() > 255 || host.contains("://") || !host.chars().all(good) {
        return Err(format!(
            "`{host}` is not a host: write it without scheme and path, as in `registry.example.com:5000`"
        ));
    }
    Ok(())
}

fn check_env(key: &str, variables: &BTreeMap<String, String>, problems: &mut Problems) {
    check_values(key, variables, problems);
    for name in variables.keys() {
        if name.is_empty() || name.contains(['=', '\0']) {
            problems.add(format!(
                "`{key}`: {name:?} cannot be the name of a variable"
            ));
        }
    }
}

/// Refuses the character U+0000, which neither a variable nor a database can store.
fn check_values(key: &str, values: &BTreeMap<String, String>, problems: &mut Problems) {
    for (name, _) in values.iter().filter(|(_, value)| value.contains('\0')) {
        problems.add(format!(
            "`{key}.{name}`: the value contains the character U+0000"
        ));
    }
}

fn check_aliases<'n>(names: impl Iterator<Item = &'n String>, problems: &mut Problems) {
    const KNOWN: [&str; 5] = ["acr", "az", "bash", "curl", "cssc"];
    for name in names {
        if !KNOWN.contains(&name.as_str()) {
            problems.add(format!(
                "`aliasImages.{name}`: there is no such word; there are {}",
                KNOWN.join(", ")
            ));
        }
    }
}

/// Checks a single command, unless templates decide what it is.
fn check_cmd(cmd: &str, problems: &mut Problems) {
    if cmd.trim().is_empty() {
        problems.add("`cmd` is empty: give an image and its arguments");
    } else if !cmd.contains("{{") {
        for problem in inline::mistakes_of_cmd(cmd) {
            problems.add_rule(format!("`cmd`: {problem}"));
        }
    }
}

fn check_build(key: &str, build: &BuildSpec, problems: &mut Problems) {
    if build.images.iter().any(|image| image.trim().is_empty()) {
        problems.add(format!("`{key}.images` has an empty name"));
    }
    check_path(&format!("{key}.dockerfile"), &build.dockerfile, problems);
    check_names(build.secret_args.iter(), problems);
}

fn check_text(key: &str, text: &str, problems: &mut Problems) {
    if text.trim().is_empty() {
        problems.add(format!("`{key}` is empty: there would be nothing to do"));
    } else if text.len() > MAX_TEXT {
        problems.add_rule(format!(
            "`{key}` has {} bytes, and a task file may have {MAX_TEXT}",
            text.len()
        ));
    } else if !text.contains("{{") {
        for problem in inline::mistakes(text) {
            problems.add_rule(format!("`{key}`, {problem}"));
        }
    }
}

/// A path inside the context.
fn check_path(key: &str, path: &str, problems: &mut Problems) {
    if path.is_empty() {
        problems.add(format!("`{key}` is empty"));
    } else if path.contains('\0') {
        problems.add(format!("`{key}` contains the character U+0000"));
    } else if path.starts_with('/') {
        problems.add(outside(key, path));
    } else if path.split('/').any(|part| part == "..") {
        problems.add_rule(outside(key, path));
    }
}

fn outside(key: &str, path: &str) -> String {
    format!("`{key}` is `{path}`, which is outside the context: give a path relative to it")
}

/// What the runner fetches: only what can be seen without asking anybody.
fn check_url(key: &str, url: &str, problems: &mut Problems) {
    if url.trim() != url || url.is_empty() || url.chars().any(char::is_control) {
        problems.add(format!("`{key}` is empty, or holds white space around it"));
        return;
    }
    if url.starts_with('-') || url.contains(char::is_whitespace) {
        problems.add(format!("`{key}` begins with `-`, or holds white space"));
        return;
    }
    if url.split_once("::").is_some_and(|(helper, _)| {
        helper
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    }) {
        problems.add_rule(format!(
            "`{key}` asks git for a helper program, which none is started for"
        ));
        return;
    }
    match url::Url::parse(url) {
        Ok(parsed) => {
            let known = ["https", "http", "git", "ssh", "oci"];
            // `host:path` of ssh parses with the host as its scheme.
            let scp = !url.contains("://");
            if !scp && !known.contains(&parsed.scheme()) {
                problems.add_rule(format!(
                    "`{key}`: `{}:` is not fetched; give a git URL (`https://HOST/REPO.git#REF:FOLDER`), a tarball's URL or `oci://REFERENCE`",
                    parsed.scheme()
                ));
            }
            if parsed.password().is_some()
                || (!parsed.username().is_empty() && ["http", "https"].contains(&parsed.scheme()))
            {
                problems.add_rule(format!(
                    "`{key}` holds a login, which would be stored in clear: take it out, and give it with `acrtask credential set {}`",
                    parsed.host_str().unwrap_or("HOST")
                ));
            }
        }
        // `github.com/org/repo` and `git@host:path` are understood too; a path of the runner's is not.
        Err(_) if url.starts_with(['/', '.', '~']) => {
            problems.add_rule(not_fetched(key));
            return;
        }
        Err(_) => {}
    }
    // As a runner reads it.
    match ContextSpec::parse(url) {
        Ok(ContextSpec::Folder(_) | ContextSpec::TarballFile(_) | ContextSpec::Stdin) => {
            problems.add_rule(not_fetched(key));
        }
        Ok(_) => {}
        Err(error) => problems.add_rule(format!("`{key}`: {}; {}", error.reason, error.help)),
    }
}

fn not_fetched(key: &str) -> String {
    format!(
        "`{key}` is a path, and the runner has no such folder: give a git URL, a tarball's URL or `oci://REFERENCE`"
    )
}

/// `OS/ARCHITECTURE[/VARIANT]`.
fn check_platform(key: &str, platform: &str, problems: &mut Problems) {
    let parts: Vec<&str> = platform.split('/').collect();
    let good = |part: &&str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.')
    };
    if !(2..=3).contains(&parts.len()) || !parts.iter().all(good) {
        problems.add(format!(
            "`{key}`: `{platform}` is no platform: write `linux/amd64` or `linux/arm/v7`"
        ));
    }
}

fn check_timeout(key: &str, seconds: u64, problems: &mut Problems) {
    if seconds == 0 || seconds > MAX_TIMEOUT {
        problems.add(format!("`{key}` must be a second to a week"));
    }
}

/// Seconds of `90s`, `1h30m` or a bare number.
pub(super) fn duration(text: &str) -> Result<u64, String> {
    let seconds = match text.parse::<u64>() {
        Ok(seconds) => Some(seconds),
        Err(_) => text
            .parse::<jiff::SignedDuration>()
            .ok()
            .and_then(|time| u64::try_from(time.as_secs()).ok()),
    };
    seconds.ok_or_else(|| {
        format!("`{text}` is no time: write 90s, 10m, 1h30m, or a number of seconds")
    })
}

#[cfg(test)]
#[path = "forms_tests.rs"]
mod forms_tests;
#[cfg(test)]
#[path = "checks_tests.rs"]
mod tests;
