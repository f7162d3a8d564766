//! `--platform`.

use acrtask_spec::plan::{Plan, StepKind};

/// The platforms of the run for each build that names none itself.
pub(crate) fn set(plan: &mut Plan, platforms: &[String]) {
    for step in &mut plan.steps {
        if let StepKind::Build(build) = &mut step.kind
            && let Ok(line) = &mut build.line
            && line.platforms.is_empty()
        {
            line.platforms = platforms.to_vec();
        }
    }
}
