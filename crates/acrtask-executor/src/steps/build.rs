//! Build steps.

use acrtask_spec::{build_line::BuildLine, plan::BuildStep};

use super::Trace;
use crate::{context::StepContext, policy::Attempt};

/// Builds.
pub(crate) async fn run(
    _ctx: &StepContext,
    _step: &BuildStep,
    _line: &BuildLine,
    _trace: &mut Trace,
) -> Attempt {
    Attempt::failed("not yet")
}
