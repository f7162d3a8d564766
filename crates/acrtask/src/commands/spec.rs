//! From flags to what a run is to do: the one form that this machine and a server's runners understand.
//!
//! Everything that a flag names on this machine is read here: values, secrets, a task file outside the context, the
//! environment behind a NAME. Left out: the context itself, which is for whoever carries the run out.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use acrtask_api::spec::{BuildSpec, Facts, RunSpec, Work};
use acrtask_executor::Allow;
use acrtask_job::{Files, Job, JobError, TASK_FILES, VaultSecrets, read_source};
use acrtask_model::{RunId, Secret, TrustDomain, mask::MIN_LEN};
use acrtask_spec::TaskSource;
use acrtask_vaults::Vaults;

use super::{context::Context, remote::say, task::read_values};
use crate::{
    args::{
        BuildArgs, HowArgs, PathOrStdin, RunArgs,
        task::{FactArgs, TaskArgs},
        values::Pair,
    },
    error::CliError,
};

/// What a run is to do, and the values of its secrets.
#[derive(Debug)]
pub(crate) struct Asked {
    /// Without a context, which the caller names where another machine carries the run out.
    pub(crate) spec: RunSpec,
    /// By the names of `spec.secrets`.
    pub(crate) secrets: BTreeMap<String, Secret>,
}

/// Where the files of the run are, as far as that matters for finding its task file.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// In this folder of the user's.
    Own(PathBuf),
    /// In this folder, into which they were fetched.
    Fetched(PathBuf),
    /// Where they are fetched later, by somebody else.
    Elsewhere,
    /// Nowhere: the run has none.
    Nowhere,
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

/// What `acrtask run` asks for.
pub(crate) fn of_run(args: &RunArgs, place: &Place) -> Result<Asked, CliError> {
    let mut asked = match &args.cmd {
        Some(line) => of_task_with(&args.task, Work::Cmd { line: line.clone() })?,
        None => of_task(&args.task, place)?,
    };
    how(&args.how, &mut asked.spec);
    Ok(asked)
}

/// What a task and its facts ask for, however it is carried out.
pub(crate) fn of_task(args: &TaskArgs, place: &Place) -> Result<Asked, CliError> {
    let work = work(args, place)?;
    of_task_with(args, work)
}

fn of_task_with(args: &TaskArgs, work: Work) -> Result<Asked, CliError> {
    let mut secrets = BTreeMap::new();
    for pair in &args.set_secret {
        let (name, value) = pair.resolve("--set-secret", |name| std::env::var(name).ok())?;
        secrets.insert(name, value);
    }
    secrets.extend(secret_files(&args.secret_file)?);
    warn_of_short_secrets(&secrets);
    let map = |pairs: &[Pair]| -> BTreeMap<String, String> {
        let pairs = pairs.iter();
        pairs
            .map(|pair| (pair.key.clone(), pair.value.clone()))
            .collect()
    };
    let spec = RunSpec {
        work,
        facts: facts(&args.facts),
        set: map(&args.set),
        values: values(args.values.as_deref())?,
        secrets: secrets.keys().cloned().collect(),
        build_secrets: ids(&args.secret_file),
        env: map(&args.env),
        alias_images: map(&args.alias_image),
        ..RunSpec::default()
    };
    Ok(Asked { spec, secrets })
}

/// What `acrtask build` asks for, with the Dockerfile by the name that the build has for it.
pub(crate) fn of_build(args: &BuildArgs, dockerfile: &str) -> Result<Asked, CliError> {
    let facts = facts(&args.facts);
    let registry = Some(facts.registry.as_str()).filter(|registry| !registry.is_empty());
    let images = args
        .tags
        .iter()
        .map(|tag| Ok(tag.name(registry, !args.how.no_push)?))
        .collect::<Result<_, CliError>>()?;
    let mut secrets: BTreeMap<_, _> = secret_files(&args.secret_file)?.into_iter().collect();
    let mut secret_args = Vec::new();
    for pair in &args.secret_build_arg {
        let (name, value) = pair.resolve("--secret-build-arg", |name| std::env::var(name).ok())?;
        let other = secrets.insert(name.clone(), value.clone());
        if other.is_some_and(|other| other.expose() != value.expose()) {
            return Err(CliError::usage(format!(
                "`{name}` stands for two secrets with different values"
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
            // As `docker build` has it: a name that the environment lacks is not set.
            None => Some((arg.clone(), std::env::var(arg).ok()?)),
        });
    let mut spec = RunSpec {
        work: Work::Build(BuildSpec {
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
        facts,
        secrets: secrets.keys().cloned().collect(),
        build_secrets: ids(&args.secret_file),
        ..RunSpec::default()
    };
    how(&args.how, &mut spec);
    Ok(Asked { spec, secrets })
}

fn how(args: &HowArgs, spec: &mut RunSpec) {
    spec.platforms.clone_from(&args.platform);
    spec.no_push = args.no_push;
    let whole = |limit: Duration| limit.as_secs() + u64::from(limit.subsec_nanos() > 0);
    spec.timeout_secs = args.timeout.map(whole);
}

/// Where the files of `context` are, which is fetched for it.
pub(crate) fn place(args: &TaskArgs, context: &mut Context) -> Result<Place, CliError> {
    check_stdin(args)?;
    Ok(match context.files()?.0 {
        Files::OfTheOperator(root) => Place::Own(root),
        Files::FromElsewhere(root) => Place::Fetched(root),
        Files::None => Place::Nowhere,
    })
}

/// The id that was given, or a new one.
pub(crate) fn run_id(args: &FactArgs) -> RunId {
    let given = args.id.clone();
    given.unwrap_or_else(|| RunId::from_random(rand::random()))
}

/// The run, as it is understood with the files of `context`. `vaults`: `None` if none is read.
pub(crate) fn job<'a>(
    id: &'a RunId,
    asked: &'a Asked,
    context: &mut Context,
    allow: Allow,
    vaults: Option<&'a Vaults>,
) -> Result<Job<'a>, CliError> {
    let (files, git) = context.files()?;
    let vaults = match vaults {
        Some(vaults) => super::vaults::secrets_of(vaults, &files),
        None => VaultSecrets::Placeholders,
    };
    Ok(Job {
        id,
        trust: &TrustDomain::Local,
        spec: &asked.spec,
        secrets: &asked.secrets,
        files,
        context: context.spec().to_string(),
        git,
        allow,
        vaults,
        now: jiff::Timestamp::now(),
    })
}

fn facts(args: &FactArgs) -> Facts {
    let text = |given: &Option<String>| given.clone().unwrap_or_default();
    Facts {
        registry: super::task::registry(args).unwrap_or_default(),
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

fn values(path: Option<&Path>) -> Result<serde_json::Map<String, serde_json::Value>, CliError> {
    let Some(path) = path else {
        return Ok(serde_json::Map::new());
    };
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| {
        CliError::usage(format!("cannot read the values in {shown}")).because(&error)
    })?;
    read_values(&shown.to_string(), &text)
}

/// Warns of secrets that the masking of logs leaves in clear.
pub(crate) fn warn_of_short_secrets(secrets: &BTreeMap<String, Secret>) {
    for (name, value) in secrets {
        if value.expose().trim().len() < MIN_LEN {
            say(&format!(
                "warning: the secret `{name}` is not masked in logs: it has fewer than {MIN_LEN} bytes"
            ));
        }
    }
}

/// `--secret-file`: ids and the files' contents.
fn secret_files(pairs: &[Pair]) -> Result<Vec<(String, Secret)>, CliError> {
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

fn ids(pairs: &[Pair]) -> Vec<String> {
    let mut ids: Vec<String> = Vec::new();
    for pair in pairs {
        if !ids.contains(&pair.key) {
            ids.push(pair.key.clone());
        }
    }
    ids
}

fn check_stdin(args: &TaskArgs) -> Result<(), CliError> {
    if args.context == "-" && args.file == Some(PathOrStdin::Stdin) {
        return Err(CliError::usage(
            "the context and the task file cannot both be on standard input",
        )
        .help("put the task file into the context, or write it to a file and name that with -f"));
    }
    Ok(())
}

/// The task file: as a file of the context where it is one there, else as text.
fn work(args: &TaskArgs, place: &Place) -> Result<Work, CliError> {
    check_stdin(args)?;
    match &args.file {
        Some(PathOrStdin::Stdin) => text(read_source(std::io::stdin(), "<stdin>".into())?),
        Some(PathOrStdin::Path(path)) => named(args, path, place),
        None => usual(args, place),
    }
}

/// A file that was named: in the context, else where the name leads from here.
fn named(args: &TaskArgs, path: &Path, place: &Place) -> Result<Work, CliError> {
    let shown = path.display().to_string();
    if path.is_absolute() {
        return read(path, shown);
    }
    let in_context = || Work::File {
        path: shown.clone(),
    };
    match place {
        Place::Elsewhere => return Ok(in_context()),
        Place::Own(root) | Place::Fetched(root) if is_inside(root, path) => {
            return Ok(in_context());
        }
        Place::Own(root) if root.join(path).is_file() => return read(&root.join(path), shown),
        Place::Own(_) | Place::Fetched(_) | Place::Nowhere => {}
    }
    if !path.exists() {
        return Err(
            CliError::usage(format!("there is no task file `{shown}`")).help(format!(
                "it was looked for in the context ({}) and in the current folder",
                args.context
            )),
        );
    }
    read(path, shown)
}

/// The usual file of the context. One that a link leads to from the user's folder to another place is read here,
/// because the link leads nowhere on another machine.
fn usual(args: &TaskArgs, place: &Place) -> Result<Work, CliError> {
    let Place::Own(root) = place else {
        return Ok(Work::Usual);
    };
    for name in TASK_FILES {
        if is_inside(root, Path::new(name)) {
            break;
        }
        if root.join(name).is_file() {
            let shown = Path::new(&args.context).join(name);
            return read(&root.join(name), shown.display().to_string());
        }
    }
    Ok(Work::Usual)
}

fn is_inside(root: &Path, path: &Path) -> bool {
    acrtask_source::paths::inside(root, path).is_ok_and(|found| found.is_file())
}

fn read(path: &Path, name: String) -> Result<Work, CliError> {
    match std::fs::File::open(path) {
        Ok(file) => text(read_source(file, name)?),
        Err(error) => {
            Err(CliError::usage(format!("cannot read the task file {name}")).because(&error))
        }
    }
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "the last call of functions that can fail"
)]
fn text(source: TaskSource) -> Result<Work, CliError> {
    Ok(Work::Text {
        name: source.name,
        text: source.text,
    })
}
