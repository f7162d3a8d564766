//! Builds run specifications from flags, in the form for this machine and for a server's runners.
//!
//! This module reads everything that a flag names on this machine: values, secrets, a task file
//! outside the context, and environment variables of a NAME. It does not read the context; the
//! executing machine does.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use acrtask_api::spec::{BuildSpec, RunSource, RunSpec, Variables};
use acrtask_executor::Allow;
use acrtask_job::{Files, Job, JobError, TASK_FILES, VaultSecrets, read_source};
use acrtask_model::{RunId, Secret, TrustDomain, mask::MIN_LEN};
use acrtask_spec::TaskSource;
use acrtask_vaults::Vaults;

use super::{context::Context, remote::print_message, task_file::read_values};
use crate::{
    args::{
        BuildArgs, ExecutionArgs, PathOrStdin, RunArgs,
        task_file::{RunVariableArgs, TaskArgs},
        values::Pair,
    },
    error::CliError,
};

/// Specification of a run, and the values of its secrets.
#[derive(Debug)]
pub(crate) struct RunInput {
    /// Specification without a context; the caller sets the context for another machine.
    pub(crate) spec: RunSpec,
    /// Values by the names in `spec.secrets`.
    pub(crate) secrets: BTreeMap<String, Secret>,
}

/// Location of the run's files, used to find the task file.
#[derive(Debug, Clone)]
pub(crate) enum ContextLocation {
    /// A folder of the user.
    Own(PathBuf),
    /// A folder with fetched files.
    Fetched(PathBuf),
    /// Another machine, which fetches the files later.
    Remote,
    /// No files.
    None,
}

impl From<JobError> for CliError {
    fn from(error: JobError) -> Self {
        let shown = if error.unreachable {
            Self::unreachable(&*error.message)
        } else {
            Self::usage(&*error.message)
        };
        let shown = match std::error::Error::source(&error) {
            Some(cause) => shown.because(cause),
            None => shown,
        };
        match error.help {
            Some(help) => shown.help(help),
            None => shown,
        }
    }
}

/// Builds the request of `acrtask run`.
pub(crate) fn from_run_args(
    args: &RunArgs,
    location: &ContextLocation,
) -> Result<RunInput, CliError> {
    let mut request = match &args.cmd {
        Some(line) => from_task_source(&args.task, RunSource::Cmd { line: line.clone() })?,
        None => from_task_args(&args.task, location)?,
    };
    apply_execution(&args.execution, &mut request.spec);
    Ok(request)
}

/// Builds the request of a task file, without the flags for its execution.
pub(crate) fn from_task_args(
    args: &TaskArgs,
    location: &ContextLocation,
) -> Result<RunInput, CliError> {
    let source = run_source(args, location)?;
    from_task_source(args, source)
}

fn from_task_source(args: &TaskArgs, source: RunSource) -> Result<RunInput, CliError> {
    let mut secrets = BTreeMap::new();
    for pair in &args.set_secret {
        let (name, value) = pair.resolve("--set-secret", |name| std::env::var(name).ok())?;
        secrets.insert(name, value);
    }
    secrets.extend(read_secret_files(&args.secret_file)?);
    warn_of_short_secrets(&secrets);
    let map = |pairs: &[Pair]| -> BTreeMap<String, String> {
        let pairs = pairs.iter();
        pairs
            .map(|pair| (pair.key.clone(), pair.value.clone()))
            .collect()
    };
    let spec = RunSpec {
        source,
        variables: run_variables(&args.variables),
        set: map(&args.set),
        values: read_values_file(args.values.as_deref())?,
        secrets: secrets.keys().cloned().collect(),
        build_secrets: unique_keys(&args.secret_file),
        env: map(&args.env),
        alias_images: map(&args.alias_image),
        ..RunSpec::default()
    };
    Ok(RunInput { spec, secrets })
}

/// Builds the request of `acrtask build`. `dockerfile` is the Dockerfile's name in the build.
pub(crate) fn from_build_args(args: &BuildArgs, dockerfile: &str) -> Result<RunInput, CliError> {
    let variables = run_variables(&args.variables);
    let registry = Some(variables.registry.as_str()).filter(|registry| !registry.is_empty());
    let images = args
        .tags
        .iter()
        .map(|tag| Ok(tag.name(registry, !args.execution.no_push)?))
        .collect::<Result<_, CliError>>()?;
    let mut secrets: BTreeMap<_, _> = read_secret_files(&args.secret_file)?.into_iter().collect();
    let mut secret_args = Vec::new();
    for pair in &args.secret_build_arg {
        let (name, value) = pair.resolve("--secret-build-arg", |name| std::env::var(name).ok())?;
        let other = secrets.insert(name.clone(), value.clone());
        if other.is_some_and(|other| other.expose() != value.expose()) {
            return Err(CliError::usage(format!(
                "`{name}` names two secrets with different values"
            ))
            .help("give one of --secret-build-arg and --secret-file another name"));
        }
        if !secret_args.contains(&name) {
            secret_args.push(name);
        }
    }
    let plain = args
        .build_arg
        .iter()
        .filter_map(|arg| match arg.split_once('=') {
            Some((name, value)) => Some((name.to_owned(), value.to_owned())),
            // As with `docker build`, a name without an environment variable is not set.
            None => Some((arg.clone(), std::env::var(arg).ok()?)),
        });
    let mut spec = RunSpec {
        source: RunSource::Build(BuildSpec {
            images,
            dockerfile: dockerfile.to_owned(),
            target: args.target.clone(),
            args: plain.collect(),
            secret_args,
            labels: args
                .label
                .iter()
                .map(|label| (label.key.clone(), label.value.clone()))
                .collect(),
            no_cache: args.no_cache,
        }),
        variables,
        secrets: secrets.keys().cloned().collect(),
        build_secrets: unique_keys(&args.secret_file),
        ..RunSpec::default()
    };
    apply_execution(&args.execution, &mut spec);
    Ok(RunInput { spec, secrets })
}

fn apply_execution(args: &ExecutionArgs, spec: &mut RunSpec) {
    spec.platforms.clone_from(&args.platform);
    spec.no_push = args.no_push;
    let round_up = |limit: Duration| limit.as_secs() + u64::from(limit.subsec_nanos() > 0);
    spec.timeout_secs = args.timeout.map(round_up);
}

/// Fetches `context` and returns the location of its files.
pub(crate) fn locate(args: &TaskArgs, context: &mut Context) -> Result<ContextLocation, CliError> {
    check_stdin(args)?;
    Ok(match context.files()?.0 {
        Files::OperatorFolder(root) => ContextLocation::Own(root),
        Files::Fetched(root) => ContextLocation::Fetched(root),
        Files::None => ContextLocation::None,
    })
}

/// Returns the given id, or a random one.
pub(crate) fn run_id(args: &RunVariableArgs) -> RunId {
    let given = args.id.clone();
    given.unwrap_or_else(|| RunId::from_random(rand::random()))
}

/// Assembles the job of a run with the files of `context`. If `vaults` is `None`, placeholders
/// replace their secrets.
pub(crate) fn assemble_job<'a>(
    id: &'a RunId,
    request: &'a RunInput,
    context: &mut Context,
    allow: Allow,
    vaults: Option<&'a Vaults>,
) -> Result<Job<'a>, CliError> {
    let (files, git) = context.files()?;
    let vaults = match vaults {
        Some(vaults) => super::vaults::vault_secrets(vaults, &files),
        None => VaultSecrets::Placeholders,
    };
    Ok(Job {
        id,
        trust: &TrustDomain::Local,
        spec: &request.spec,
        secrets: &request.secrets,
        files,
        context: context.spec().to_string(),
        git,
        allow,
        vaults,
        now: jiff::Timestamp::now(),
    })
}

fn run_variables(args: &RunVariableArgs) -> Variables {
    let text = |given: &Option<String>| given.clone().unwrap_or_default();
    Variables {
        registry: super::task_file::registry_host(args).unwrap_or_default(),
        commit: text(&args.commit),
        branch: text(&args.branch),
        git_tag: text(&args.git_tag),
        repository: text(&args.repository),
        date: args.date,
        triggered_by: text(&args.triggered_by),
        task_name: text(&args.task_name),
        os: text(&args.os),
        os_version: text(&args.os_version),
        architecture: text(&args.architecture),
        shared_volume: text(&args.shared_volume),
    }
}

fn read_values_file(
    path: Option<&Path>,
) -> Result<serde_json::Map<String, serde_json::Value>, CliError> {
    let Some(path) = path else {
        return Ok(serde_json::Map::new());
    };
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| {
        CliError::usage(format!("cannot read the values in {shown}")).because(&error)
    })?;
    read_values(&shown.to_string(), &text)
}

/// Warns about secrets that are too short for the masking of logs.
pub(crate) fn warn_of_short_secrets(secrets: &BTreeMap<String, Secret>) {
    for (name, value) in secrets {
        if value.expose().trim().len() < MIN_LEN {
            print_message(&format!(
                "warning: the secret `{name}` is not masked in logs, because it has fewer than {MIN_LEN} bytes"
            ));
        }
    }
}

/// Reads the files of `--secret-file`; returns ids and contents.
fn read_secret_files(pairs: &[Pair]) -> Result<Vec<(String, Secret)>, CliError> {
    pairs
        .iter()
        .map(|pair| match std::fs::read_to_string(&pair.value) {
            Ok(text) => Ok((pair.key.clone(), Secret::new(text))),
            Err(error) => Err(CliError::usage(format!(
                "cannot read {}, the file of the secret `{}`",
                pair.value, pair.key
            ))
            .because(&error)),
        })
        .collect()
}

fn unique_keys(pairs: &[Pair]) -> Vec<String> {
    let mut keys: Vec<String> = Vec::new();
    for pair in pairs {
        if !keys.contains(&pair.key) {
            keys.push(pair.key.clone());
        }
    }
    keys
}

fn check_stdin(args: &TaskArgs) -> Result<(), CliError> {
    if args.context == "-" && args.file == Some(PathOrStdin::Stdin) {
        return Err(
            CliError::usage("standard input cannot be both the context and the task file").help(
                "put the task file into the context, or write it to a file and name that with -f",
            ),
        );
    }
    Ok(())
}

/// Returns the task file: by path if the context contains it, otherwise as text.
fn run_source(args: &TaskArgs, location: &ContextLocation) -> Result<RunSource, CliError> {
    check_stdin(args)?;
    match &args.file {
        Some(PathOrStdin::Stdin) => inline_source(read_source(std::io::stdin(), "<stdin>".into())?),
        Some(PathOrStdin::Path(path)) => named_source(args, path, location),
        None => default_source(args, location),
    }
}

/// Returns the file that `-f` names: in the context, or else relative to the current folder.
fn named_source(
    args: &TaskArgs,
    path: &Path,
    location: &ContextLocation,
) -> Result<RunSource, CliError> {
    let shown = path.display().to_string();
    if path.is_absolute() {
        return read_inline(path, shown);
    }
    let in_context = || RunSource::File {
        path: shown.clone(),
    };
    match location {
        ContextLocation::Remote => return Ok(in_context()),
        ContextLocation::Own(root) | ContextLocation::Fetched(root) if is_inside(root, path) => {
            return Ok(in_context());
        }
        ContextLocation::Own(root) if root.join(path).is_file() => {
            return read_inline(&root.join(path), shown);
        }
        ContextLocation::Own(_) | ContextLocation::Fetched(_) | ContextLocation::None => {}
    }
    if !path.exists() {
        return Err(
            CliError::usage(format!("the task file `{shown}` does not exist")).help(format!(
                "put the file into the context ({}) or into the current folder",
                args.context
            )),
        );
    }
    read_inline(path, shown)
}

/// Returns the default task file of the context. If it is a link that leads out of the user's
/// folder, its text is read here, because the link is broken on another machine.
fn default_source(args: &TaskArgs, location: &ContextLocation) -> Result<RunSource, CliError> {
    let ContextLocation::Own(root) = location else {
        return Ok(RunSource::DefaultFile);
    };
    for name in TASK_FILES {
        if is_inside(root, Path::new(name)) {
            break;
        }
        if root.join(name).is_file() {
            let shown = Path::new(&args.context).join(name);
            return read_inline(&root.join(name), shown.display().to_string());
        }
    }
    Ok(RunSource::DefaultFile)
}

fn is_inside(root: &Path, path: &Path) -> bool {
    acrtask_source::paths::resolve_inside(root, path).is_ok_and(|found| found.is_file())
}

fn read_inline(path: &Path, name: String) -> Result<RunSource, CliError> {
    match std::fs::File::open(path) {
        Ok(file) => inline_source(read_source(file, name)?),
        Err(error) => {
            Err(CliError::usage(format!("cannot read the task file {name}")).because(&error))
        }
    }
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "the last call of functions that can fail"
)]
fn inline_source(source: TaskSource) -> Result<RunSource, CliError> {
    Ok(RunSource::Inline {
        name: source.name,
        text: source.text,
    })
}
