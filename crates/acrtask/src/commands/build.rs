//! `acrtask build`: one image, built and pushed, without a task file.

use acrtask_job::Files;

use super::{
    context::Context,
    dockerfile::{Dockerfile, stdin_of_build},
    engine::{self, RunFiles, Session},
    run::STDIN_FILE,
    spec,
    task::tell,
};
use crate::{
    args::{BuildArgs, ColorWhen},
    error::CliError,
    exit::Exit,
    render::{Form, style::Style},
};

/// Builds an image and pushes it.
pub(crate) fn build(args: &BuildArgs, color: ColorWhen, stderr: Style) -> Result<Exit, CliError> {
    let stdin_is_taken = stdin_of_build(args)?;
    let credentials = engine::credentials(&args.engine, stdin_is_taken)?;
    let options = engine::options(&args.engine, &args.builder, &args.how, credentials.clone())?;
    let source = acrtask_source::Options {
        credentials,
        ssh_agent: options.ssh_agent.clone(),
        ..acrtask_source::Options::default()
    };
    let mut context = Context::named(&args.context, &args.git, source)?;
    let dockerfile = Dockerfile::find(args.file.as_deref(), &context)?;
    let asked = spec::of_build(args, dockerfile.name())?;
    let kept = dockerfile.keep()?;
    let id = spec::run_id(&args.facts);
    let job = spec::job(&id, &asked, &mut context, engine::allow(&args.engine), None)?;
    let prepared = acrtask_job::prepare(&job)?;
    let fetched = engine::fetched(&job.files, context.spec());
    let root = match job.files {
        Files::OfTheOperator(root) | Files::FromElsewhere(root) => Some(root),
        Files::None => None,
    };
    tell(&prepared.source, &prepared.diagnostics, stderr);
    let Some(plan) = prepared.plan else {
        return Ok(Exit::Usage);
    };
    let form = Form::new(args.how.output, color);
    let files = RunFiles {
        context: root,
        stdin: kept.as_ref().map(|kept| kept.path().join(STDIN_FILE)),
        fetched,
    };
    let session = Session::open(options)?;
    let cancel = session.interrupts.token.child_token();
    let exit = session.block_on(session.run(id, plan, files, form, stderr, cancel));
    // What was fetched is removed only now.
    drop((context, kept));
    Ok(exit)
}
