//! Converts the flags of `acrtask task create` and `update` into a definition and its secrets. The
//! only side effects are reads of files and environment variables that flags name.

mod commit;

use std::collections::BTreeMap;

use acrtask_api::{
    admin::{PutCredential, PutSecret},
    run::SecretText,
    spec::BuildSpec,
    task::{BaseImageTrigger, BaseImageTriggerType, Concurrency, TaskDefinition, Timer},
};
use acrtask_model::Secret;
use acrtask_source::{ContextSpec, GitTransport};

use super::{remote, task_file::read_values};
use crate::{
    args::{
        task::{BaseImages, DefinitionArgs, Schedule, TaskStatus, UpdateArgs},
        values::{Pair, SecretPair},
    },
    client::{ApiError, Client},
    error::CliError,
};

/// User name for a git token; forges ignore it and check the token alone.
const TOKEN_USER: &str = "x-access-token";

/// Task definition to store, with its secrets.
#[derive(Debug)]
pub(super) struct TaskDraft {
    /// Definition of the task.
    pub(super) definition: TaskDefinition,
    /// Secret values for this task alone.
    secrets: BTreeMap<String, Secret>,
    /// Git host and its token, for this task alone.
    git: Option<(String, Secret)>,
}

/// Builds the draft of `create`.
pub(super) fn create_draft(name: &str, args: &DefinitionArgs) -> Result<TaskDraft, CliError> {
    let empty = TaskDefinition {
        name: name.into(),
        description: String::new(),
        enabled: true,
        context: None,
        // Same default as `docker build` and ACR.
        submodules: true,
        lfs: false,
        file: None,
        text: None,
        cmd: None,
        build: None,
        registry: std::env::var("ACRTASK_REGISTRY")
            .ok()
            .filter(|registry| !registry.is_empty()),
        values: serde_json::Map::new(),
        secrets: BTreeMap::new(),
        env: BTreeMap::new(),
        alias_images: BTreeMap::new(),
        platform: None,
        timeout: None,
        no_push: false,
        cache: true,
        queue: acrtask_api::task::QueueOptions::default(),
        triggers: acrtask_api::task::Triggers::default(),
        notify: Vec::new(),
    };
    if args.context.is_none() {
        return Err(CliError::usage("a task needs a context").help(
            "write `--context https://HOST/REPOSITORY.git#BRANCH`, or `--context /dev/null` for none",
        ));
    }
    apply_flags(empty, args)
}

/// Applies the flags of `update` to a definition.
pub(super) fn update_draft(
    before: TaskDefinition,
    args: &UpdateArgs,
) -> Result<TaskDraft, CliError> {
    let mut new = apply_flags(before, &args.definition)?;
    let definition = &mut new.definition;
    let missing = |flag: &str, name: &str| {
        CliError::usage(format!("{flag} {name}: the task does not have it"))
            .help("list what the task has with `acrtask task show`")
    };
    for key in &args.unset {
        if definition.values.remove(key).is_none() {
            return Err(missing("--unset", key));
        }
    }
    for key in &args.unset_secret {
        if definition.secrets.remove(key).is_none() {
            return Err(missing("--unset-secret", key));
        }
        if let Some(build) = &mut definition.build {
            build.secret_args.retain(|arg| arg != key);
        }
    }
    for name in &args.unset_schedule {
        if definition.triggers.timers.remove(name).is_none() {
            return Err(missing("--unset-schedule", name));
        }
    }
    Ok(new)
}

fn apply_flags(mut to: TaskDefinition, args: &DefinitionArgs) -> Result<TaskDraft, CliError> {
    if let Some((flag, instead)) = args.unsupported.given_flags().first() {
        return Err(CliError::usage(format!("acrtask does not support {flag}")).help(*instead));
    }
    let mut new_host = None;
    if let Some(text) = &args.context {
        let (context, host) = parse_context(text)?;
        to.context = context;
        new_host = host;
    }
    to.submodules = args.git.submodules.unwrap_or(to.submodules);
    to.lfs = args.git.lfs.unwrap_or(to.lfs);
    apply_source(&mut to, args)?;
    let secrets = apply_secrets(&mut to, args)?;
    apply_settings(&mut to, args)?;
    apply_triggers(&mut to, args)?;
    apply_queue(&mut to, args);
    let git = match &args.git_access_token {
        None => None,
        Some(from) => {
            let from = from.parse("--git-access-token")?;
            let host = match (new_host, &to.context) {
                (Some(host), _) => Some(host),
                (None, Some(text)) => parse_context(text)?.1,
                (None, None) => None,
            };
            let host = host.ok_or_else(|| {
                CliError::usage(
                    "--git-access-token requires a context that is a git repository over https",
                )
                .help("write `--context https://HOST/REPOSITORY.git`")
            })?;
            Some((
                host,
                remote::read_secret(&from, "the token of --git-access-token")?,
            ))
        }
    };
    Ok(TaskDraft {
        definition: to,
        secrets,
        git,
    })
}

/// Parses a context. Returns the text to store, and the git host for a token.
fn parse_context(text: &str) -> Result<(Option<String>, Option<String>), CliError> {
    let spec = ContextSpec::parse(text).map_err(|error| {
        CliError::usage(format!(
            "`{}` is not a context: {}",
            error.text, error.reason
        ))
        .help(error.help)
    })?;
    match spec {
        ContextSpec::None => Ok((None, None)),
        ContextSpec::Git(git) if git.credential.is_some() => Err(CliError::usage(
            "the context contains a password, and everyone who can read the task can read it",
        )
        .help("remove it, and set it with `--git-access-token env:NAME`")),
        ContextSpec::Git(git) if git.transport != GitTransport::File => {
            let https = git.transport == GitTransport::Https;
            // A login is stored for a host and its port.
            let port = url::Url::parse(&git.url).ok().and_then(|url| url.port());
            let host = match port {
                Some(port) => format!("{}:{port}", git.host),
                None => git.host,
            };
            Ok((Some(text.into()), https.then_some(host)))
        }
        ContextSpec::HttpTarball(_) | ContextSpec::Oci(_) => Ok((Some(text.into()), None)),
        ContextSpec::Git(_)
        | ContextSpec::Folder(_)
        | ContextSpec::TarballFile(_)
        | ContextSpec::Stdin => Err(CliError::usage(format!(
            "`{text}` is on this machine, where the runners of a server cannot read it"
        ))
        .help("write a git URL, a tarball's URL or `oci://REFERENCE`; to use the files of this folder in one run: `acrtask task run NAME --context .`")),
    }
}

/// Sets the source of the task: a file, a command or an image build.
fn apply_source(to: &mut TaskDefinition, args: &DefinitionArgs) -> Result<(), CliError> {
    if let Some(cmd) = &args.cmd {
        (to.file, to.text, to.build, to.cmd) = (None, None, None, Some(cmd.clone()));
    }
    if !args.image.is_empty() {
        (to.file, to.text, to.cmd) = (None, None, None);
        let build = to.build.get_or_insert_with(|| BuildSpec {
            dockerfile: "Dockerfile".into(),
            ..BuildSpec::default()
        });
        build.images.clone_from(&args.image);
    }
    match (&mut to.build, &args.file) {
        (Some(build), Some(file)) => build.dockerfile.clone_from(file),
        (None, Some(file)) => (to.file, to.text, to.cmd) = (Some(file.clone()), None, None),
        (_, None) => {}
    }
    let of_build = [
        ("--arg", !args.arg.is_empty()),
        ("--secret-arg", !args.secret_arg.is_empty()),
        ("--target", args.target.is_some()),
        ("--no-cache", args.no_cache.is_some()),
    ];
    let Some(build) = &mut to.build else {
        return match of_build.iter().find(|(_, given)| *given) {
            Some((flag, _)) => Err(CliError::usage(format!(
                "{flag} requires a task that builds one image"
            ))
            .help(
                "name the image with `--image`, or write the flag into the `build` step of the task file",
            )),
            None => Ok(()),
        };
    };
    build.args.extend(map(&args.arg));
    if let Some(target) = &args.target {
        build.target = Some(target.clone()).filter(|target| !target.is_empty());
    }
    build.no_cache = args.no_cache.unwrap_or(build.no_cache);
    Ok(())
}

fn map(pairs: &[Pair]) -> impl Iterator<Item = (String, String)> {
    pairs
        .iter()
        .map(|pair| (pair.key.clone(), pair.value.clone()))
}

/// Collects the secret values and adds their names to the definition.
fn apply_secrets(
    to: &mut TaskDefinition,
    args: &DefinitionArgs,
) -> Result<BTreeMap<String, Secret>, CliError> {
    let mut found: BTreeMap<String, Secret> = BTreeMap::new();
    let mut take = |flag: &str, pair: &SecretPair| -> Result<String, CliError> {
        let (name, value) = pair.resolve(flag, |name| std::env::var(name).ok())?;
        let other = found.insert(name.clone(), value.clone());
        if other.is_some_and(|other| other.expose() != value.expose()) {
            return Err(CliError::usage(format!(
                "`{name}` names two secrets with different values"
            ))
            .help("give one of --set-secret and --secret-arg another name"));
        }
        to.secrets.insert(name.clone(), name.clone());
        Ok(name)
    };
    let mut of_build = Vec::new();
    for pair in &args.set_secret {
        take("--set-secret", pair)?;
    }
    for pair in &args.secret_arg {
        of_build.push(take("--secret-arg", pair)?);
    }
    if let Some(build) = &mut to.build {
        of_build.retain(|name| !build.secret_args.contains(name));
        build.secret_args.extend(of_build);
    }
    Ok(found)
}

fn apply_settings(to: &mut TaskDefinition, args: &DefinitionArgs) -> Result<(), CliError> {
    if let Some(path) = &args.values {
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| {
            CliError::usage(format!("cannot read the values in {shown}")).because(&error)
        })?;
        to.values.extend(read_values(&shown, &text)?);
    }
    to.values
        .extend(map(&args.set).map(|(key, value)| (key, value.into())));
    to.env.extend(map(&args.env));
    if let Some(description) = &args.description {
        to.description.clone_from(description);
    }
    let set_or_clear = |flag: &Option<String>, before: &mut Option<String>| {
        if let Some(value) = flag {
            *before = Some(value.clone()).filter(|value| !value.is_empty());
        }
    };
    set_or_clear(&args.registry, &mut to.registry);
    set_or_clear(&args.platform, &mut to.platform);
    if let Some(timeout) = args.timeout {
        to.timeout = Some(format!("{}s", timeout.as_secs().max(1)));
    }
    if let Some(status) = args.status {
        to.enabled = status == TaskStatus::Enabled;
    }
    to.no_push = args.no_push.unwrap_or(to.no_push);
    to.cache = args.cache.unwrap_or(to.cache);
    Ok(())
}

fn apply_triggers(to: &mut TaskDefinition, args: &DefinitionArgs) -> Result<(), CliError> {
    let triggers = &mut to.triggers;
    triggers.commit = commit::apply_flags(triggers.commit.take(), &args.commit);
    if args.base_image_trigger_enabled.is_some() || args.base_image_trigger_type.is_some() {
        let before = triggers.base_image.take();
        let kind = match args.base_image_trigger_type {
            Some(BaseImages::Runtime) => BaseImageTriggerType::Runtime,
            Some(BaseImages::All) => BaseImageTriggerType::All,
            Some(BaseImages::None) => BaseImageTriggerType::None,
            None => before
                .as_ref()
                .map(|before| before.r#type)
                .unwrap_or_default(),
        };
        triggers.base_image = Some(BaseImageTrigger {
            enabled: args
                .base_image_trigger_enabled
                .unwrap_or_else(|| before.as_ref().is_none_or(|before| before.enabled)),
            r#type: kind,
            tags: before.map(|before| before.tags).unwrap_or_default(),
        });
    }
    let mut names = std::collections::BTreeSet::new();
    for Schedule { name, cron } in &args.schedule {
        let name = match name {
            Some(name) => name.clone(),
            // Same names as in the cloud service.
            None => (1..)
                .map(|n| format!("t{n}"))
                .find(|name| !triggers.timers.contains_key(name))
                .unwrap_or_default(),
        };
        if !names.insert(name.clone()) {
            return Err(
                CliError::usage(format!("two timers have the name `{name}`"))
                    .help("give each `--schedule` a different name"),
            );
        }
        triggers.timers.insert(name, Timer::new(cron));
    }
    Ok(())
}

fn apply_queue(to: &mut TaskDefinition, args: &DefinitionArgs) {
    let queue = &mut to.queue;
    queue.priority = args.queue.priority.unwrap_or(queue.priority);
    if let Some(pool) = &args.queue.pool {
        queue.pool = Some(pool.clone()).filter(|pool| !pool.is_empty());
    }
    queue.labels.extend(map(&args.queue.runner_label));
    if args.max_concurrent.is_some() || args.cancel_superseded.is_some() {
        let concurrency = queue.concurrency.get_or_insert(Concurrency {
            group: None,
            max: 1,
            cancel_superseded: false,
        });
        concurrency.max = args.max_concurrent.unwrap_or(concurrency.max);
        concurrency.cancel_superseded = args
            .cancel_superseded
            .unwrap_or(concurrency.cancel_superseded);
    }
}

/// Stores the secrets and the credential of this task.
pub(super) async fn store_secrets(
    client: &Client,
    task: &str,
    new: &TaskDraft,
) -> Result<(), CliError> {
    let put = async || -> Result<(), ApiError> {
        for (name, value) in &new.secrets {
            let body = PutSecret {
                value: SecretText(value.expose().to_owned()),
                task: Some(task.into()),
                tasks: None,
            };
            client.put(&["secrets", name], None, &body).await?;
        }
        if let Some((host, token)) = &new.git {
            let body = PutCredential {
                username: TOKEN_USER.into(),
                password: SecretText(token.expose().to_owned()),
                known_hosts: None,
                task: Some(task.into()),
                tasks: None,
            };
            client.put(&["credentials", host], None, &body).await?;
        }
        Ok(())
    };
    Ok(put().await?)
}

#[cfg(test)]
mod tests;
