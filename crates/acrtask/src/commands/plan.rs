//! `acrtask plan`: what a task would do. Starts nothing; for a folder it needs neither a network nor a runtime.
//!
//! The picture is for people, and secrets are masked in it. The JSON is for programs that compare or carry out
//! the plan: where a file puts a secret into a line, the line is told as it is.

use acrtask_executor::Allow;
use acrtask_model::mask::Patterns;
use serde_json::json;

use super::{
    context::Context,
    print, spec,
    task::{tell, terminal_width},
};
use crate::{
    args::{PlanArgs, PlanOutput},
    error::CliError,
    exit::Exit,
    render::style::Style,
};

/// Prints the plan, or what is wrong with the file.
pub(crate) fn plan(args: &PlanArgs, style: Style, stdout: Style) -> Result<Exit, CliError> {
    let mut context = Context::named(
        &args.task.context,
        &args.task.git,
        acrtask_source::Options::default(),
    )?;
    let id = spec::run_id(&args.task.facts);
    let place = spec::place(&args.task, &mut context)?;
    let asked = spec::of_task(&args.task, &place)?;
    let job = spec::job(&id, &asked, &mut context, Allow::default(), None)?;
    let understood = acrtask_job::understand(&job)?;
    let diagnostics = understood.resolution.for_plan();
    tell(&understood.source, &diagnostics, style);
    let width = terminal_width();
    match (&understood.resolution.plan, args.output) {
        (Some(plan), PlanOutput::Text) => {
            let picture = acrtask_spec::plan_text(plan, stdout.is_colored(), width);
            print(Patterns::new(&plan.secrets).mask(&picture).as_bytes())
        }
        (Some(plan), PlanOutput::Json) => {
            print(format!("{}\n", acrtask_spec::plan_json(plan)).as_bytes())
        }
        (None, PlanOutput::Text) => Ok(Exit::Usage),
        (None, PlanOutput::Json) => {
            let found: Vec<_> = diagnostics
                .iter()
                .map(|diagnostic| diagnostic.to_json(&understood.source))
                .collect();
            print(format!("{}\n", json!({ "ok": false, "diagnostics": found })).as_bytes())?;
            Ok(Exit::Usage)
        }
    }
}
