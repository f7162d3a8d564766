//! `acrtask build`: one image, built and pushed, without a task file.

use acrtask_job::Files;

use super::{
    context::Context,
    engine::{self, RunFiles, Session},
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
    let asked = spec::of_build(args)?;
    let stdin_is_taken = (args.context == "-").then_some("the context");
    let credentials = engine::credentials(&args.engine, stdin_is_taken)?;
    let options = engine::options(&args.engine, &args.builder, &args.how, credentials.clone())?;
    let source = acrtask_source::Options {
        credentials,
        ssh_agent: options.ssh_agent.clone(),
        ..acrtask_source::Options::default()
    };
    let mut context = Context::named(&args.context, source)?;
    let id = spec::run_id(&args.facts);
    let job = spec::job(&id, &asked, &mut context, engine::allow(&args.engine))?;
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
        stdin: None,
        fetched,
    };
    let session = Session::open(options)?;
    let cancel = session.interrupts.token.child_token();
    let exit = session.block_on(session.run(id, plan, files, form, stderr, cancel));
    // What was fetched is removed only now.
    drop(context);
    Ok(exit)
}
