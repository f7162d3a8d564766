//! `--platform`.

use acrtask_spec::plan::{Plan, StepKind};

/// Sets the platforms of the run on each build without its own platforms.
pub(crate) fn set_platforms(plan: &mut Plan, platforms: &[String]) {
    for step in &mut plan.steps {
        if let StepKind::Build(build) = &mut step.kind
            && let Ok(line) = &mut build.line
            && line.platforms.is_empty()
        {
            line.platforms = platforms.to_vec();
        }
    }
}
