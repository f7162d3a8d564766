//! `acrtask run`: runs a task on this machine.

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
    task_file::{self, print_diagnostics},
    vaults,
    watch::Changes,
};
use crate::{
    args::{ColorWhen, PathOrStdin, RunArgs},
    error::CliError,
    exit::Exit,
    render::{Form, style::Style},
};

/// Name of the file that stores standard input.
pub(super) const STDIN_FILE: &str = "stdin";

/// Runs a task once, or after each change of its folder.
pub(crate) fn run(args: &RunArgs, color: ColorWhen, stderr: Style) -> Result<Exit, CliError> {
    let stdin_is_taken = match (&args.task.file, args.task.context.as_str()) {
        (Some(PathOrStdin::Stdin), _) => Some("the task file"),
        (_, "-") => Some("the context"),
        _ => None,
    };
    let credentials = engine::load_credentials(&args.engine.login, stdin_is_taken)?;
    let mut options = engine::executor_options(
        &args.engine,
        &args.builder,
        &args.execution,
        credentials.clone(),
    )?;
    options
        .operator_registries
        .extend(task_file::registry_host(&args.task.variables));
    let source = acrtask_source::Options {
        credentials,
        ssh_agent: options.ssh_agent.clone(),
        ..acrtask_source::Options::default()
    };
    let mut context = Context::parse(&args.task.context, &args.task.git, source)?;
    let form = Form::new(args.execution.output, color);
    if args.watch {
        let folder = context.local_folder().map(Path::to_owned).ok_or_else(|| {
            CliError::usage(format!(
                "--watch requires a folder of this machine, but the context is {}",
                context.spec()
            ))
        })?;
        if args.task.file == Some(PathOrStdin::Stdin) {
            return Err(CliError::usage(
                "--watch reads the task file again after each change, so it cannot be on standard input",
            ));
        }
        let session = Session::open(options)?;
        return watch_folder(args, &session, &mut context, &folder, form, stderr);
    }
    let prepared = prepare_run(args, &mut context, stderr)?;
    let Some((id, plan)) = prepared else {
        return Ok(Exit::Usage);
    };
    // A build may need the files even if the task file is not in the context.
    if !matches!(context.spec(), ContextSpec::None) {
        context.fetch()?;
    }
    let fetched = engine::fetched_context(&context.files()?.0, context.spec());
    let workspace = context.into_workspace();
    let stdin = if stdin_is_taken.is_none() && reads_stdin(&plan) {
        Some(store_stdin()?)
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
    // Dropping the workspace removes the fetched files.
    drop((workspace, stdin));
    Ok(exit)
}

/// Returns `true` if a build reads its Dockerfile or its context from standard input.
fn reads_stdin(plan: &Plan) -> bool {
    plan.steps.iter().any(|step| match &step.kind {
        StepKind::Build(build) => build.line.as_ref().is_ok_and(|line| {
            line.context == ContextRef::Stdin || line.file.as_deref() == Some("-")
        }),
        StepKind::Cmd(_) | StepKind::Push(_) => false,
    })
}

/// Stores standard input in a file, because several builds may read it.
pub(super) fn store_stdin() -> Result<Scratch, CliError> {
    let fail = |error: &std::io::Error| {
        CliError::usage("cannot store the standard input of a build").because(error)
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

/// Runs the task for each state of the folder. A change cancels the current run and starts one with
/// the newest state.
fn watch_folder(
    args: &RunArgs,
    session: &Session,
    context: &mut Context,
    folder: &Path,
    form: Form,
    stderr: Style,
) -> Result<Exit, CliError> {
    let print_dim = |text: &str| {
        super::remote::print_message(&stderr.dim(text));
    };
    let mut changes = Changes::watch(folder)?;
    let interrupted = &session.interrupts.token;
    let root = folder.canonicalize().ok();
    loop {
        // An error in the task file does not end the watch.
        let prepared = match prepare_run(args, context, stderr) {
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
                print_dim(&format!(
                    "watching {} for changes; press Ctrl-C to end",
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
        print_dim(&format!("{} changed: running again", path.display()));
    }
}

/// Returns the plan to run; `None` if the task file has errors, which are then printed.
fn prepare_run(
    args: &RunArgs,
    context: &mut Context,
    stderr: Style,
) -> Result<Option<(RunId, Plan)>, CliError> {
    let id = spec::run_id(&args.task.variables);
    let location = spec::locate(&args.task, context)?;
    let input = spec::from_run_args(args, &location)?;
    let vaults = vaults::user_vaults(&args.vaults)?;
    let allow = engine::capabilities(&args.engine);
    let job = spec::assemble_job(&id, &input, context, allow, Some(&vaults))?;
    let prepared = acrtask_job::prepare(&job)?;
    print_diagnostics(&prepared.source, &prepared.diagnostics, stderr);
    Ok(prepared.plan.map(|plan| (id, plan)))
}
