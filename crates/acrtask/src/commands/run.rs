//! `acrtask run`.

use std::path::Path;

use acrtask_model::RunId;
use acrtask_source::{ContextSpec, Scratch};
use acrtask_spec::{
    build_line::ContextRef,
    plan::{Plan, StepKind},
};

use super::{
    context::Context,
    engine::{self, RunFiles, Session},
    interrupt::until_interrupted,
    spec,
    task::{self, tell},
    vaults,
    watch::Changes,
};
use crate::{
    args::{ColorWhen, PathOrStdin, RunArgs},
    error::CliError,
    exit::Exit,
    render::{Form, style::Style},
};

/// The name of what came on standard input.
pub(super) const STDIN_FILE: &str = "stdin";

/// Runs a task, once or at each change of its folder.
pub(crate) fn run(args: &RunArgs, color: ColorWhen, stderr: Style) -> Result<Exit, CliError> {
    let stdin_is_taken = match (&args.task.file, args.task.context.as_str()) {
        (Some(PathOrStdin::Stdin), _) => Some("the task file"),
        (_, "-") => Some("the context"),
        _ => None,
    };
    let credentials = engine::credentials(&args.engine, stdin_is_taken)?;
    let mut options = engine::options(&args.engine, &args.builder, &args.how, credentials.clone())?;
    options
        .known_registries
        .extend(task::registry(&args.task.facts));
    let source = acrtask_source::Options {
        credentials,
        ssh_agent: options.ssh_agent.clone(),
        ..acrtask_source::Options::default()
    };
    let mut context = Context::named(&args.task.context, &args.task.git, source)?;
    let form = Form::new(args.how.output, color);
    if args.watch {
        let folder = context.local_folder().map(Path::to_owned).ok_or_else(|| {
            CliError::usage(format!(
                "--watch needs a folder of this machine, and {} is none",
                context.spec()
            ))
        })?;
        if args.task.file == Some(PathOrStdin::Stdin) {
            return Err(CliError::usage(
                "--watch reads the task file again at each change, which `-f -` does not allow",
            ));
        }
        let session = Session::open(options)?;
        return watch(args, &session, &mut context, &folder, form, stderr);
    }
    let prepared = prepare(args, &mut context, stderr)?;
    let Some((id, plan)) = prepared else {
        return Ok(Exit::Usage);
    };
    // A build may need the files even where the task file came from elsewhere.
    if !matches!(context.spec(), ContextSpec::None) {
        context.fetch()?;
    }
    let fetched = engine::fetched(&context.files()?.0, context.spec());
    let workspace = context.into_workspace();
    let stdin = if stdin_is_taken.is_none() && reads_stdin(&plan) {
        Some(keep_stdin()?)
    } else {
        None
    };
    let files = RunFiles {
        context: workspace.as_ref().map(|workspace| workspace.root.clone()),
        stdin: stdin.as_ref().map(|kept| kept.path().join(STDIN_FILE)),
        fetched,
    };
    let session = Session::open(options)?;
    let cancel = session.interrupts.token.child_token();
    let exit = session.block_on(session.run(id, plan, files, form, stderr, cancel));
    // What was fetched is removed only now.
    drop((workspace, stdin));
    Ok(exit)
}

/// Whether a build reads its Dockerfile or its context from standard input.
fn reads_stdin(plan: &Plan) -> bool {
    plan.steps.iter().any(|step| match &step.kind {
        StepKind::Build(build) => build.line.as_ref().is_ok_and(|line| {
            line.context == ContextRef::Stdin || line.file.as_deref() == Some("-")
        }),
        StepKind::Cmd(_) | StepKind::Push(_) => false,
    })
}

/// What comes on standard input, kept for any number of builds.
pub(super) fn keep_stdin() -> Result<Scratch, CliError> {
    let fail = |error: &std::io::Error| {
        CliError::usage("cannot keep what a build reads from standard input").because(error)
    };
    let kept = Scratch::new(&std::env::temp_dir()).map_err(|error| fail(&error))?;
    let copying = async {
        let mut file = tokio::fs::File::create(kept.path().join(STDIN_FILE)).await?;
        tokio::io::copy(&mut tokio::io::stdin(), &mut file).await?;
        tokio::io::AsyncWriteExt::flush(&mut file).await
    };
    until_interrupted(copying)?.map_err(|error| fail(&error))?;
    Ok(kept)
}

/// A run for each state of the folder: a change stops the run that is under way, and the newest state is run.
fn watch(
    args: &RunArgs,
    session: &Session,
    context: &mut Context,
    folder: &Path,
    form: Form,
    stderr: Style,
) -> Result<Exit, CliError> {
    let say = |what: &str| {
        super::remote::say(&stderr.dim(what));
    };
    let mut changes = Changes::of(folder)?;
    let interrupted = &session.interrupts.token;
    let root = folder.canonicalize().ok();
    loop {
        // A mistake in the task file ends this round, not the watch.
        let prepared = match prepare(args, context, stderr) {
            Ok(prepared) => prepared,
            Err(error) => {
                super::remote::write_error(&error.render(stderr));
                None
            }
        };
        let changed = session.block_on(async {
            let cancel = interrupted.child_token();
            let mut first = None;
            if let Some((id, plan)) = prepared {
                let files = RunFiles {
                    context: root.clone(),
                    stdin: None,
                    fetched: None,
                };
                let running = session.run(id, plan, files, form, stderr, cancel.clone());
                let mut running = std::pin::pin!(running);
                tokio::select! {
                    _ = &mut running => {}
                    change = changes.next() => {
                        first = change;
                        cancel.cancel();
                        running.await;
                    }
                }
            }
            if first.is_none() && !interrupted.is_cancelled() {
                say(&format!(
                    "watching {} for changes; Ctrl-C ends",
                    folder.display()
                ));
                tokio::select! {
                    change = changes.next() => first = change,
                    () = interrupted.cancelled() => {}
                }
            }
            first
        });
        if interrupted.is_cancelled() {
            return Ok(Exit::Interrupted);
        }
        let Some(path) = changed else {
            return Err(CliError::unreachable(format!(
                "{} can no longer be watched",
                folder.display()
            )));
        };
        let path = root
            .as_deref()
            .and_then(|root| path.strip_prefix(root).ok())
            .unwrap_or(&path)
            .to_owned();
        say(&format!("{} changed: running again", path.display()));
    }
}

/// The plan to run; nothing where the file is refused, which has then been said.
fn prepare(
    args: &RunArgs,
    context: &mut Context,
    stderr: Style,
) -> Result<Option<(RunId, Plan)>, CliError> {
    let id = spec::run_id(&args.task.facts);
    let place = spec::place(&args.task, context)?;
    let asked = spec::of_run(args, &place)?;
    let vaults = vaults::of_user(&args.vaults)?;
    let allow = engine::allow(&args.engine);
    let job = spec::job(&id, &asked, context, allow, Some(&vaults))?;
    let prepared = acrtask_job::prepare(&job)?;
    tell(&prepared.source, &prepared.diagnostics, stderr);
    Ok(prepared.plan.map(|plan| (id, plan)))
}
