//! Checks of task definitions and run specs before a run exists. They report every problem with its
//! key.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;
use tokio::sync::Semaphore;

use acrtask_model::printable::unprintable_in_name;
use acrtask_source::ContextSpec;
use acrtask_trigger::{ImageRules, TriggerRules};

use acrtask_api::{
    spec::{BuildSpec, ContextSource, RunSource, RunSpec},
    task::{QueueOptions, TaskDefinition},
};
use acrtask_store::RunGroup;

use crate::api::ApiError;

mod inline;
mod secrets;

pub(crate) use secrets::{check_sent, check_username, check_value};

/// Longest name of a task, in characters.
const MAX_NAME: usize = 100;
/// Longest inline task file, in bytes. Equals the limit of the parser.
const MAX_TEXT: usize = acrtask_spec::MAX_FILE;
/// Largest spec of a run and largest definition of a task, in bytes of JSON.
pub(crate) const MAX_SPEC: usize = 256 << 10;
/// Maximum number of reported problems.
const MAX_PROBLEMS: usize = 100;
/// Maximum number of images of a build.
const MAX_IMAGES: usize = 200;
/// Maximum number of task definitions that are checked at once.
const MAX_CHECKS: usize = 4;
/// Longest timeout of a run, in seconds: a week.
const MAX_TIMEOUT: u64 = 7 * 24 * 3600;

/// Problems of a request. A value can violate the form in the OpenAPI document, or a rule that a
/// schema cannot express.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problems {
    /// At most [`MAX_PROBLEMS`].
    texts: Vec<String>,
    wrong_form: bool,
}

impl Problems {
    /// Adds the problem of a value that violates its form in the OpenAPI document.
    pub fn add(&mut self, problem: impl Into<String>) {
        self.wrong_form = true;
        self.add_rule(problem);
    }

    /// Adds the problem of a violated rule, between values or in the language of a value.
    pub fn add_rule(&mut self, problem: impl Into<String>) {
        let problem = problem.into();
        if self.texts.len() < MAX_PROBLEMS && !self.texts.contains(&problem) {
            self.texts.push(problem);
        }
    }

    /// Returns `true` if the request has no problems.
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    /// Returns `true` if a value violates its form in the OpenAPI document.
    pub fn has_wrong_form(&self) -> bool {
        self.wrong_form
    }

    /// Converts the problems into a result.
    ///
    /// # Errors
    /// Returns the problems, if there are any.
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

/// Checks a task definition on a thread for blocking work, at most [`MAX_CHECKS`] at once.
///
/// # Errors
/// Returns the problems of the definition.
pub(crate) async fn validate_task(task: TaskDefinition) -> Result<TaskDefinition, ApiError> {
    static CHECKS: Semaphore = Semaphore::const_new(MAX_CHECKS);
    let turn = CHECKS
        .acquire()
        .await
        .map_err(|error| ApiError::internal(&error))?;
    let check = move || {
        let problems = check_task(&task);
        problems.into_result().map(|()| task)
    };
    let checked = tokio::task::spawn_blocking(check).await;
    drop(turn);
    Ok(checked.map_err(|error| ApiError::internal(&error))??)
}

/// Returns the problems of a task definition. A definition above the maximum size has only that
/// problem, so that a refusal costs little.
pub fn check_task(task: &TaskDefinition) -> Problems {
    let mut problems = Problems::default();
    check_size("the definition of the task", task, &mut problems);
    if !problems.is_empty() {
        return problems;
    }
    if let Err(reason) = check_task_name(&task.name) {
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
            "`context` is missing: give the context of the task file, or `text`, `cmd` or `build`",
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
        if build.images.len() > MAX_IMAGES {
            problems.add_rule(format!(
                "`build.images` has {} images; a build may have at most {MAX_IMAGES}",
                build.images.len()
            ));
        }
        let images = build.images.iter().take(MAX_IMAGES);
        for image in images.filter(|image| !image.contains("{{")) {
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
        match parse_seconds(timeout) {
            Ok(1..=MAX_TIMEOUT) => {}
            Ok(_) => problems.add_rule("`timeout` must be 1 second to 1 week"),
            Err(reason) => problems.add_rule(format!("`timeout`: {reason}")),
        }
    }
    check_queue(&task.queue, &mut problems);
    check_triggers(task, &mut problems);
    crate::timers::validate_timers(&task.triggers, &mut problems);
    if let Some(url) = &task.triggers.url
        && url.allow_set.iter().any(|key| key.trim().is_empty())
    {
        problems.add("`triggers.url.allowSet` has an empty name");
    }
    problems
}

/// Checks the triggers of a task and the recipients of its notifications.
fn check_triggers(task: &TaskDefinition, problems: &mut Problems) {
    // A disabled trigger may exist beside a context that is not a repository.
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
    for problem in crate::bases::tags::find_rule_problems(task) {
        problems.add_rule(problem);
    }
    for notify in &task.notify {
        check_names(
            std::iter::once(&notify.url).chain(&notify.sign_with),
            problems,
        );
    }
}

/// Refuses a value of more than [`MAX_SPEC`] as JSON. The database stores it with each run and the
/// runner receives it.
pub(crate) fn check_size(name: &str, value: &impl Serialize, problems: &mut Problems) {
    // The store refuses a value that cannot be formatted as JSON.
    let size = serde_json::to_vec(value).map_or(0, |json| json.len());
    if size > MAX_SPEC {
        problems.add_rule(format!(
            "{name} has {} KiB as JSON, and the limit is {} KiB: put large texts and values into a file of the context",
            size.div_ceil(1024),
            MAX_SPEC >> 10
        ));
    }
}

/// Checks the spec of a run.
pub(crate) fn check_spec(spec: &RunSpec, problems: &mut Problems) {
    match &spec.context {
        ContextSource::None => {
            if matches!(spec.source, RunSource::DefaultFile | RunSource::File { .. }) {
                problems.add_rule(
                    "`spec.source` is a file of the context, but the run has no context: give `spec.context`",
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
            let is_full = |commit: &String| {
                matches!(commit.len(), 40 | 64) && commit.bytes().all(|b| b.is_ascii_hexdigit())
            };
            if commit.as_ref().is_some_and(|commit| !is_full(commit)) {
                problems.add(
                    "`spec.context.commit` is not a full commit hash: write 40 or 64 hexadecimal digits",
                );
            }
        }
    }
    match &spec.source {
        RunSource::DefaultFile => {}
        RunSource::File { path } => check_path("spec.source.path", path, problems),
        RunSource::Inline { text, .. } => check_text("spec.source.text", text, problems),
        RunSource::Cmd { line } if line.trim().is_empty() => {
            problems.add("`spec.source.line` is empty: give an image and its arguments");
        }
        RunSource::Cmd { .. } => {}
        RunSource::Build(build) => check_build("spec.source", build, problems),
    }
    if !spec.variables.registry.is_empty() {
        check_host(&spec.variables.registry, problems);
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

/// Checks the pool, labels, priority and concurrency group of a run.
pub(crate) fn check_queue(queue: &QueueOptions, problems: &mut Problems) {
    if !(-10..=10).contains(&queue.priority) {
        problems.add(format!(
            "`queue.priority` is {}: write -10 to 10",
            queue.priority
        ));
    }
    if let Some(pool) = &queue.pool
        && let Err(reason) = check_word(pool)
    {
        problems.add(format!("`queue.pool`: {reason}"));
    }
    check_labels("queue.labels", &queue.labels, problems);
    if let Some(concurrency) = &queue.concurrency {
        if concurrency.max == 0 {
            problems.add(
                "`queue.concurrency.max` is 0, so that a run can never start: write 1 or more",
            );
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

/// Checks the labels of runs or runners.
pub(crate) fn check_labels(key: &str, labels: &BTreeMap<String, String>, problems: &mut Problems) {
    for (name, value) in labels {
        if let Err(reason) = check_word(name) {
            problems.add(format!("`{key}`: {reason}"));
        }
        if value.chars().count() > MAX_NAME {
            problems.add(format!(
                "`{key}.{name}` is longer than {MAX_NAME} characters"
            ));
        }
    }
}

/// Checks the name of a task: letters, digits, `-`, `_`, `.` and `/`.
///
/// # Errors
/// Returns the reason if it is not a task name.
pub fn check_task_name(name: &str) -> Result<(), String> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    if name.is_empty() {
        Err("it is empty: give the task a name".into())
    } else if name.len() > MAX_NAME {
        Err(format!("it is longer than {MAX_NAME} characters"))
    } else if let Some(bad) = name.chars().find(|c| !good(*c)) {
        Err(format!(
            "`{name}` contains {bad:?}: use only letters, digits, `-`, `_`, `.` and `/`"
        ))
    } else if name
        .split('/')
        .any(|part| part.is_empty() || part.chars().all(|c| c == '.'))
    {
        Err(format!("`{name}` has an empty part or a part of only dots"))
    } else {
        Ok(())
    }
}

/// Checks the name of a secret. Templates refer to it as `.Secrets.NAME`.
///
/// # Errors
/// Returns the reason if it is not a secret name.
pub fn check_secret_name(name: &str) -> Result<(), String> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(good) {
        return Err(format!(
            "`{name}` is not a secret name: write 1 to {MAX_NAME} letters, digits, `-`, `_` and `.`"
        ));
    }
    Ok(())
}

/// Checks the name of a pool, label or runner: 1 to 100 letters, digits, `-`, `_`, `.` and `/`.
///
/// # Errors
/// Returns the reason if it is not such a name.
pub(crate) fn check_word(text: &str) -> Result<(), String> {
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

/// Refuses a name with characters that a terminal or a log cannot show.
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

fn check_names<'n>(names: impl Iterator<Item = &'n String>, problems: &mut Problems) {
    for name in names {
        if let Err(reason) = check_secret_name(name) {
            problems.add(reason);
        }
    }
}

/// Checks the host of a registry: a name or an address, with or without a port.
fn check_host(host: &str, problems: &mut Problems) {
    if let Err(reason) = check_host_name(host) {
        problems.add(reason);
    }
}

/// Checks a host and port in the form of logins.
///
/// # Errors
/// Returns the reason if it is not a host.
pub(crate) fn check_host_name(host: &str) -> Result<(), String> {
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
            problems.add(format!("`{key}`: {name:?} is not a variable name"));
        }
    }
}

/// Refuses the character U+0000, which neither variables nor databases can store.
fn check_values(key: &str, values: &BTreeMap<String, String>, problems: &mut Problems) {
    for (name, _) in values.iter().filter(|(_, value)| value.contains('\0')) {
        problems.add(format!(
            "`{key}.{name}`: the value contains the character U+0000"
        ));
    }
}

fn check_aliases<'n>(names: impl Iterator<Item = &'n String>, problems: &mut Problems) {
    const ALIASES: [&str; 5] = ["acr", "az", "bash", "curl", "cssc"];
    for name in names {
        if !ALIASES.contains(&name.as_str()) {
            problems.add(format!(
                "`aliasImages.{name}`: unknown alias; write one of {}",
                ALIASES.join(", ")
            ));
        }
    }
}

/// Checks a single command. Skips a command with templates, because they can change any part of it.
fn check_cmd(cmd: &str, problems: &mut Problems) {
    if cmd.trim().is_empty() {
        problems.add("`cmd` is empty: give an image and its arguments");
    } else if !cmd.contains("{{") {
        for problem in inline::check_cmd(cmd) {
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
        problems.add(format!("`{key}` is empty: give the steps of a task file"));
    } else if text.len() > MAX_TEXT {
        problems.add_rule(format!(
            "`{key}` has {} bytes, and the limit of a task file is {MAX_TEXT}",
            text.len()
        ));
    } else if !text.contains("{{") {
        for problem in inline::check_text(text) {
            problems.add_rule(format!("`{key}`, {problem}"));
        }
    }
}

/// Checks a path inside the context.
fn check_path(key: &str, path: &str, problems: &mut Problems) {
    if path.is_empty() {
        problems.add(format!("`{key}` is empty"));
    } else if path.contains('\0') {
        problems.add(format!("`{key}` contains the character U+0000"));
    } else if path.starts_with('/') {
        problems.add(outside_context(key, path));
    } else if path.split('/').any(|part| part == "..") {
        problems.add_rule(outside_context(key, path));
    }
}

fn outside_context(key: &str, path: &str) -> String {
    format!("`{key}` is `{path}`, which is outside the context: give a path relative to it")
}

/// Checks the URL of a context without any request.
fn check_url(key: &str, url: &str, problems: &mut Problems) {
    if url.trim() != url || url.is_empty() || url.chars().any(char::is_control) {
        problems.add(format!("`{key}` is empty or has white space around it"));
        return;
    }
    if url.starts_with('-') || url.contains(char::is_whitespace) {
        problems.add(format!("`{key}` begins with `-` or contains white space"));
        return;
    }
    if url.split_once("::").is_some_and(|(helper, _)| {
        helper
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    }) {
        problems.add_rule(format!(
            "`{key}` names a git remote helper (`HELPER::`), which is not allowed: give an `https://` or `ssh://` URL"
        ));
        return;
    }
    match url::Url::parse(url) {
        Ok(parsed) => {
            let schemes = ["https", "http", "git", "ssh", "oci"];
            // Parsing the ssh form `host:path` yields the host as scheme.
            let scp = !url.contains("://");
            if !scp && !schemes.contains(&parsed.scheme()) {
                problems.add_rule(format!(
                    "`{key}`: `{}:` is not supported: give a git URL (`https://HOST/REPO.git#REF:FOLDER`), a tarball's URL or `oci://REFERENCE`",
                    parsed.scheme()
                ));
            }
            if parsed.password().is_some()
                || (!parsed.username().is_empty() && ["http", "https"].contains(&parsed.scheme()))
            {
                problems.add_rule(format!(
                    "`{key}` contains a login, which would be stored unencrypted: remove it, and set it with `acrtask credential set {}`",
                    parsed.host_str().unwrap_or("HOST")
                ));
            }
        }
        // `github.com/org/repo` and `git@host:path` are accepted too. A path of the runner is not.
        Err(_) if url.starts_with(['/', '.', '~']) => {
            problems.add_rule(path_of_runner(key));
            return;
        }
        Err(_) => {}
    }
    // Parse the URL like a runner.
    match ContextSpec::parse(url) {
        Ok(ContextSpec::Folder(_) | ContextSpec::TarballFile(_) | ContextSpec::Stdin) => {
            problems.add_rule(path_of_runner(key));
        }
        Ok(_) => {}
        Err(error) => problems.add_rule(format!("`{key}`: {}; {}", error.reason, error.help)),
    }
}

fn path_of_runner(key: &str) -> String {
    format!(
        "`{key}` is a path, which the runner does not have: give a git URL, a tarball's URL or `oci://REFERENCE`"
    )
}

/// Checks a platform `OS/ARCHITECTURE[/VARIANT]`.
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
            "`{key}`: `{platform}` is not a platform: write `linux/amd64` or `linux/arm/v7`"
        ));
    }
}

fn check_timeout(key: &str, seconds: u64, problems: &mut Problems) {
    if seconds == 0 || seconds > MAX_TIMEOUT {
        problems.add(format!("`{key}` must be 1 second to 1 week"));
    }
}

/// Parses a duration such as `90s`, `1h30m` or a number of seconds into seconds.
pub(crate) fn parse_seconds(text: &str) -> Result<u64, String> {
    let seconds = match text.parse::<u64>() {
        Ok(seconds) => Some(seconds),
        Err(_) => text
            .parse::<jiff::SignedDuration>()
            .ok()
            .and_then(|time| u64::try_from(time.as_secs()).ok()),
    };
    seconds.ok_or_else(|| {
        format!("`{text}` is not a duration: write 90s, 10m, 1h30m, or a number of seconds")
    })
}

#[cfg(test)]
mod forms_tests;
#[cfg(test)]
mod tests;
