//! `acrtask plan`: shows what a task would do. Starts nothing; a local folder needs neither a
//! network nor a runtime.
//!
//! The text is for people, and masks secrets. The JSON is for programs that compare or execute the
//! plan, so it contains a secret that the file puts into a line.

use acrtask_executor::Allow;
use acrtask_model::mask::Patterns;
use serde_json::json;

use super::{
    context::Context,
    print, spec,
    task_file::{print_diagnostics, terminal_width},
};
use crate::{
    args::{PlanArgs, PlanOutput},
    error::CliError,
    exit::Exit,
    render::style::Style,
};

/// Prints the plan, or the diagnostics of the file.
pub(crate) fn plan(args: &PlanArgs, style: Style, stdout: Style) -> Result<Exit, CliError> {
    let mut context = Context::parse(
        &args.task.context,
        &args.task.git,
        acrtask_source::Options::default(),
    )?;
    let id = spec::run_id(&args.task.variables);
    let location = spec::locate(&args.task, &mut context)?;
    let input = spec::from_task_args(&args.task, &location)?;
    let job = spec::assemble_job(&id, &input, &mut context, Allow::default(), None)?;
    let resolved = acrtask_job::resolve_task(&job)?;
    let diagnostics = resolved.resolution.for_plan();
    print_diagnostics(&resolved.source, &diagnostics, style);
    let width = terminal_width();
    match (&resolved.resolution.plan, args.output) {
        (Some(plan), PlanOutput::Text) => {
            let text = acrtask_spec::plan_text(plan, stdout.is_colored(), width);
            print(Patterns::new(&plan.secrets).mask(&text).as_bytes())
        }
        (Some(plan), PlanOutput::Json) => {
            print(format!("{}\n", acrtask_spec::plan_json(plan)).as_bytes())
        }
        (None, PlanOutput::Text) => Ok(Exit::Usage),
        (None, PlanOutput::Json) => {
            let found: Vec<_> = diagnostics
                .iter()
                .map(|diagnostic| diagnostic.to_json(&resolved.source))
                .collect();
            print(format!("{}\n", json!({ "ok": false, "diagnostics": found })).as_bytes())?;
            Ok(Exit::Usage)
        }
    }
}
