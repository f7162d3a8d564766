//! From what was typed to a task that is understood: its context, its file, the facts of its run.
//!
//! Invariants: a context is fetched only where something is needed from it, git is asked only where the
//! file names one of its facts, and a task file from elsewhere reads nothing of this machine.

use std::{
    io::{Read, Write},
    path::Path,
};

use acrtask_model::{RunId, Secret};
use acrtask_source::{ContextSpec, GitFacts};
use acrtask_spec::{Diagnostic, Resolution, RunFacts, TaskSource, resolve, values_from_yaml};

use super::{
    context::Context,
    lookup::{Files, Outside},
};
use crate::{
    args::{
        PathOrStdin,
        task::{FactArgs, TaskArgs},
        values::Pair,
    },
    error::CliError,
    render::style::Style,
};

/// The files that are looked for in the context where none is named, in this order.
const TASK_FILES: [&str; 2] = ["acr-task.yaml", "acb.yaml"];

const EXAMPLE: &str = "\
version: v1.1.0
steps:
  - build: -t $Registry/app:$ID .
  - cmd: $Registry/app:$ID --self-test
  - push: [$Registry/app:$ID]";

/// The text of the task file, from where it was named, else from where it usually is.
pub(crate) fn find(
    context: &mut Context,
    file: Option<&PathOrStdin>,
) -> Result<TaskSource, CliError> {
    match file {
        Some(PathOrStdin::Stdin) => {
            if matches!(context.spec(), ContextSpec::Stdin) {
                return Err(CliError::usage("the context and the task file cannot both be on standard input")
                    .help("put the task file into the context, or write it to a file and name that with -f"));
            }
            read(std::io::stdin(), "<stdin>".into())
        }
        Some(PathOrStdin::Path(path)) => named_file(context, path),
        None => usual_file(context),
    }
}

/// A file that was named: in the context, else where the name leads from here.
fn named_file(context: &mut Context, path: &Path) -> Result<TaskSource, CliError> {
    let inside = if path.is_absolute() {
        None
    } else {
        context.root()?.map(|root| root.join(path))
    };
    let inside = inside.filter(|inside| inside.is_file());
    let found = inside.as_deref().unwrap_or(path);
    if !found.exists() && !path.is_absolute() {
        return Err(
            CliError::usage(format!("there is no task file `{}`", path.display())).help(format!(
                "it was looked for in the context ({}) and in the current folder",
                context.spec()
            )),
        );
    }
    open(found, path.display().to_string())
}

fn usual_file(context: &mut Context) -> Result<TaskSource, CliError> {
    let nothing = |place: String| {
        CliError::usage(format!("there is no task file in {place}")).help(format!(
            "looked for {}; name another one with -f, or write this to {}:\n\n{EXAMPLE}",
            TASK_FILES.join(" and "),
            TASK_FILES[0]
        ))
    };
    let Some(root) = context.root()? else {
        return Err(nothing("/dev/null, which is an empty context".into()));
    };
    let shown = context.local_folder().unwrap_or(&root).to_owned();
    for name in TASK_FILES {
        if root.join(name).is_file() {
            let shown = if shown == Path::new(".") {
                name.into()
            } else {
                shown.join(name)
            };
            return open(&root.join(name), shown.display().to_string());
        }
    }
    Err(nothing(context.spec().to_string()))
}

fn open(path: &Path, name: String) -> Result<TaskSource, CliError> {
    match std::fs::File::open(path) {
        Ok(file) => read(file, name),
        Err(error) => {
            Err(CliError::usage(format!("cannot read the task file {name}")).because(&error))
        }
    }
}

/// Reads no more than it takes to see that a file is too large, which [`resolve`] then says.
fn read(from: impl Read, name: String) -> Result<TaskSource, CliError> {
    let mut bytes = Vec::new();
    from.take(acrtask_spec::MAX_FILE as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| {
            CliError::usage(format!("cannot read the task file {name}")).because(&error)
        })?;
    let text = if bytes.len() > acrtask_spec::MAX_FILE {
        // Cut in the middle of a character, perhaps.
        String::from_utf8_lossy(&bytes).into_owned()
    } else {
        String::from_utf8(bytes).map_err(|error| {
            CliError::usage(format!("the task file {name} is not UTF-8 text"))
                .because(&error.utf8_error())
        })?
    };
    Ok(TaskSource { name, text })
}

/// The facts of a run of `text`. `run` is its id; `platform` is what `--platform` says first.
pub(crate) fn facts(
    args: &TaskArgs,
    run: &RunId,
    platform: Option<&str>,
    context: &mut Context,
    text: &str,
) -> Result<RunFacts, CliError> {
    let values = match &args.values {
        Some(path) => {
            let shown = path.display();
            let text = std::fs::read_to_string(path).map_err(|error| {
                CliError::usage(format!("cannot read the values in {shown}")).because(&error)
            })?;
            values_from_yaml(&text).map_err(|diagnostic| {
                let source = TaskSource {
                    name: shown.to_string(),
                    text,
                };
                let what = acrtask_spec::render_diagnostics(
                    &source,
                    std::slice::from_ref(&diagnostic),
                    false,
                    terminal_width(),
                );
                CliError::usage(format!("the values in {shown} cannot be used\n{what}"))
            })?
        }
        None => serde_json::Map::new(),
    };
    let mut secrets = Vec::new();
    for pair in &args.set_secret {
        secrets.push(pair.resolve("--set-secret", |name| std::env::var(name).ok())?);
    }
    secrets.extend(secret_files(&args.secret_file)?);
    let git = if needs_git(text, &args.facts) {
        git_facts(context)?
    } else {
        GitFacts::default()
    };
    Ok(RunFacts {
        values,
        set: args
            .set
            .iter()
            .map(|pair| (pair.key.clone(), pair.value.clone()))
            .collect(),
        secrets,
        env: args
            .env
            .iter()
            .map(|pair| format!("{}={}", pair.key, pair.value))
            .collect(),
        images: args
            .alias_image
            .iter()
            .map(|pair| (pair.key.clone(), pair.value.clone()))
            .collect(),
        ..run_facts(&args.facts, run, platform, git)
    })
}

/// The facts that flags, git and this machine give.
pub(crate) fn run_facts(
    args: &FactArgs,
    run: &RunId,
    platform: Option<&str>,
    git: GitFacts,
) -> RunFacts {
    let given = |flag: &Option<String>, otherwise: Option<String>| {
        flag.clone().or(otherwise).unwrap_or_default()
    };
    let mut platform = platform.unwrap_or_default().split('/').map(str::to_owned);
    let (os, architecture) = (platform.next().filter(|os| !os.is_empty()), platform.next());
    RunFacts {
        id: run.to_string(),
        registry: registry(args).unwrap_or_default(),
        commit: given(&args.commit, git.commit),
        branch: given(&args.branch, git.branch),
        git_tag: given(&args.git_tag, git.tag),
        repository: given(&args.repository, git.repository),
        date: args.date.unwrap_or_else(jiff::Timestamp::now),
        shared_volume: given(
            &args.shared_volume,
            Some(format!("acrtask_{run}_workspace")),
        ),
        os: given(&args.os, os.or_else(|| Some("linux".into()))),
        os_version: given(&args.os_version, None),
        architecture: given(
            &args.architecture,
            architecture.or_else(|| Some(this_architecture().into())),
        ),
        triggered_by: given(&args.triggered_by, Some("Manual".into())),
        task_name: given(&args.task_name, None),
        ..RunFacts::default()
    }
}

/// `--registry` as references have it: `https://reg.example.com/` is `reg.example.com`.
pub(crate) fn registry(args: &FactArgs) -> Option<String> {
    let text = args.registry.as_deref()?;
    let host = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"))
        .unwrap_or(text);
    Some(host.trim_end_matches('/').to_owned()).filter(|host| !host.is_empty())
}

/// `--secret-file`: ids and the files' contents.
pub(crate) fn secret_files(pairs: &[Pair]) -> Result<Vec<(String, Secret)>, CliError> {
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

/// In Go's words, which images use.
fn this_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// Whether the text may use a fact that only git knows and that no flag gives. May say yes too often.
fn needs_git(text: &str, flags: &FactArgs) -> bool {
    let facts = [
        ("Commit", flags.commit.is_some()),
        ("Branch", flags.branch.is_some()),
        ("GitTag", flags.git_tag.is_some()),
        ("Repository", flags.repository.is_some()),
    ];
    facts
        .iter()
        .any(|(name, given)| !given && text.contains(name))
        || (text.contains("RunJSON") || text.contains(".Run }}"))
            && facts.iter().any(|(_, given)| !given)
}

fn git_facts(context: &mut Context) -> Result<GitFacts, CliError> {
    match (context.local_folder(), context.spec()) {
        (Some(folder), _) => Ok(acrtask_source::facts::of_folder(folder)),
        (None, ContextSpec::None) => Ok(GitFacts::default()),
        (None, _) => context.fetch().map(|workspace| workspace.facts.clone()),
    }
}

/// What came of a task file.
pub(crate) struct Understood {
    /// The text that the diagnostics are about.
    pub(crate) source: TaskSource,
    /// The plan and what was found.
    pub(crate) resolution: Resolution,
}

/// Finds the task file and resolves it.
pub(crate) fn understand(
    args: &TaskArgs,
    run: &RunId,
    platform: Option<&str>,
    context: &mut Context,
) -> Result<Understood, CliError> {
    let source = find(context, args.file.as_ref())?;
    let facts = facts(args, run, platform, context, &source.text)?;
    resolve_source(source, &facts, context)
}

/// Resolves a text that was found.
pub(crate) fn resolve_source(
    source: TaskSource,
    facts: &RunFacts,
    context: &mut Context,
) -> Result<Understood, CliError> {
    let root = context.root()?;
    let files = match (context.local_folder(), root) {
        (Some(_), Some(root)) => Files::OfTheOperator(root),
        (None, Some(root)) => Files::FromElsewhere(root),
        (_, None) => Files::None,
    };
    let resolution = resolve(&source, facts, &Outside::new(files));
    Ok(Understood { source, resolution })
}

/// Says on standard error what was found in a task file, if anything.
pub(crate) fn tell(source: &TaskSource, diagnostics: &[Diagnostic], style: Style) {
    if !diagnostics.is_empty() {
        let text = acrtask_spec::render_diagnostics(
            source,
            diagnostics,
            style.is_colored(),
            terminal_width(),
        );
        // Where standard error is closed, the exit code still tells.
        let _ = std::io::stderr().write_all(text.as_bytes());
    }
}

/// Columns to write text in: those of the terminal, or as many as a usual one has.
pub(crate) fn terminal_width() -> usize {
    let terminal = console::Term::stderr()
        .size_checked()
        .map(|(_, columns)| usize::from(columns));
    terminal.unwrap_or(100).clamp(40, 140)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags() -> FactArgs {
        FactArgs {
            registry: None,
            id: None,
            commit: None,
            branch: None,
            git_tag: None,
            repository: None,
            date: None,
            triggered_by: None,
            task_name: None,
            os: None,
            os_version: None,
            architecture: None,
            shared_volume: None,
        }
    }

    #[test]
    fn git_is_asked_only_for_facts_that_the_file_names_and_no_flag_gives() {
        let with_commit = FactArgs {
            commit: Some("c".into()),
            ..flags()
        };
        for (text, args, asked) in [
            ("cmd: $Registry/app", &flags(), false),
            ("cmd: $Commit", &flags(), true),
            ("cmd: {{.Run.Commit}}", &with_commit, false),
            ("cmd: {{.Run.Branch}}", &with_commit, true),
            ("cmd: {{.RunJSON}}", &with_commit, true),
        ] {
            assert_eq!(needs_git(text, args), asked, "{text}");
        }
    }

    #[test]
    fn facts_that_nobody_gave() {
        let run = RunId::new("r1").unwrap();
        let git = GitFacts {
            branch: Some("from-git".into()),
            ..GitFacts::default()
        };
        let args = FactArgs {
            registry: Some("https://reg.example.com/".into()),
            ..flags()
        };
        let facts = run_facts(&args, &run, Some("linux/arm64"), git);
        assert_eq!(facts.registry, "reg.example.com");
        assert_eq!(facts.branch, "from-git");
        assert_eq!(
            (facts.os.as_str(), facts.architecture.as_str()),
            ("linux", "arm64")
        );
        assert_eq!(facts.triggered_by, "Manual");
        assert_eq!(facts.shared_volume, "acrtask_r1_workspace");
        let facts = run_facts(&flags(), &run, None, GitFacts::default());
        assert!(
            !facts.architecture.is_empty() && !facts.architecture.contains('_'),
            "{}",
            facts.architecture
        );
    }
}
