//! Detection of builds with an empty context before anything starts. Pure.

use std::collections::HashSet;

use acrtask_model::StepId;
use acrtask_spec::{
    Code, Diagnostic, TaskSource,
    build_line::ContextRef,
    plan::{Plan, Step, StepKind},
};

use crate::{Files, permit::first_line};

/// Returns an error for each build of a folder that must be empty: the run has no files, and no
/// step before the build writes any.
pub(crate) fn find_refusals(source: &TaskSource, plan: &Plan, files: &Files) -> Vec<Diagnostic> {
    if *files != Files::None {
        return Vec::new();
    }
    let empty = plan.steps.iter().filter(|step| {
        builds_folder(step) && !steps_before(step, plan).into_iter().any(writes_files)
    });
    empty
        .map(|step| {
            Diagnostic::error(
                Code::EmptyContext,
                format!("the step `{}` builds a folder of the context, which is empty", step.id),
            )
            .at(first_line(&source.text, step.line), "in this step")
            .help("name a folder in place of `/dev/null`, or build from a git URL: `build: -t IMAGE https://HOST/REPOSITORY.git`")
        })
        .collect()
}

fn builds_folder(step: &Step) -> bool {
    let StepKind::Build(build) = &step.kind else {
        return false;
    };
    build.line.as_ref().is_ok_and(|line| {
        matches!(line.context, ContextRef::Path(_)) && line.file.as_deref() != Some("-")
    })
}

/// Returns `true` if the step may write files: a container to the workspace, or a build with an
/// export to it.
fn writes_files(step: &Step) -> bool {
    match &step.kind {
        StepKind::Cmd(_) => true,
        StepKind::Build(build) => build.line.as_ref().is_ok_and(|line| {
            !line.outputs.is_empty() || line.iidfile.is_some() || line.metadata_file.is_some()
        }),
        StepKind::Push(_) => false,
    }
}

/// Returns all steps that end before `step` starts.
fn steps_before<'p>(step: &'p Step, plan: &'p Plan) -> Vec<&'p Step> {
    let mut found = Vec::new();
    let mut seen: HashSet<&StepId> = HashSet::new();
    let mut next: Vec<&StepId> = step.after.iter().collect();
    while let Some(id) = next.pop() {
        if !seen.insert(id) {
            continue;
        }
        for before in plan.steps.iter().filter(|other| other.id == *id) {
            found.push(before);
            next.extend(&before.after);
        }
    }
    found
}
