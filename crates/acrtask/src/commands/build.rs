//! `acrtask build`: builds and pushes one image without a task file.

use acrtask_job::Files;

use super::{
    context::Context,
    dockerfile::{Dockerfile, stdin_reader},
    engine::{self, RunFiles, Session},
    run::STDIN_FILE,
    spec,
    task_file::print_diagnostics,
};
use crate::{
    args::{BuildArgs, ColorWhen},
    error::CliError,
    exit::Exit,
    render::{Form, style::Style},
};

/// Builds an image and pushes it.
pub(crate) fn build(args: &BuildArgs, color: ColorWhen, stderr: Style) -> Result<Exit, CliError> {
    let stdin_is_taken = stdin_reader(args)?;
    let credentials = engine::load_credentials(&args.engine.login, stdin_is_taken)?;
    let options = engine::executor_options(
        &args.engine,
        &args.builder,
        &args.execution,
        credentials.clone(),
    )?;
    let source = acrtask_source::Options {
        credentials,
        ssh_agent: options.ssh_agent.clone(),
        ..acrtask_source::Options::default()
    };
    let mut context = Context::parse(&args.context, &args.git, source)?;
    let dockerfile = Dockerfile::find(args.file.as_deref(), &context)?;
    let input = spec::from_build_args(args, dockerfile.name())?;
    let kept = dockerfile.copy_for_build()?;
    let id = spec::run_id(&args.variables);
    let job = spec::assemble_job(
        &id,
        &input,
        &mut context,
        engine::capabilities(&args.engine),
        None,
    )?;
    let prepared = acrtask_job::prepare(&job)?;
    let fetched = engine::fetched_context(&job.files, context.spec());
    let root = match job.files {
        Files::OperatorFolder(root) | Files::Fetched(root) => Some(root),
        Files::None => None,
    };
    print_diagnostics(&prepared.source, &prepared.diagnostics, stderr);
    let Some(plan) = prepared.plan else {
        return Ok(Exit::Usage);
    };
    let form = Form::new(args.execution.output, color);
    let files = RunFiles {
        context: root,
        stdin: kept.as_ref().map(|kept| kept.path().join(STDIN_FILE)),
        fetched,
    };
    let session = Session::open(options)?;
    let cancel = session.interrupts.token.child_token();
    let exit = session.block_on(session.run(id, plan, files, form, stderr, cancel));
    // Dropping the context removes the fetched files.
    drop((context, kept));
    Ok(exit)
}
