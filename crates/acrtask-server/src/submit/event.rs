//! From what happened to a repository or a registry to a run of a task.
//!
//! Invariants: the run has the exact commit, and its task file comes from there; a stranger's commit pushes nothing, gets
//! no secret, and leaves nothing in the shared cache before somebody has approved that commit; values that the event
//! brings are untrusted.

use std::collections::BTreeMap;

use acrtask_api::{
    run::StartTask,
    spec::{ContextSource, Facts, RunSpec, SharedCache},
    task::Task,
};

use acrtask_model::TrustDomain;

use super::{Draft, Problems, Request, Values, of_task};
use crate::App;

/// What happened, as a run has to know it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Happening {
    /// What it was: `commit`, `tag`, `pull-request`, `registry-push`.
    pub(crate) trigger: &'static str,
    /// `{{.Run.TriggeredBy}}`.
    pub(crate) triggered_by: &'static str,
    /// Other files than the task's own.
    pub(crate) context: Option<ContextSource>,
    /// The commit.
    pub(crate) commit: String,
    /// The branch.
    pub(crate) branch: String,
    /// The git tag.
    pub(crate) git_tag: String,
    /// The repository's URL.
    pub(crate) repository: String,
    /// Values that win over those of the task.
    pub(crate) set: BTreeMap<String, String>,
    /// New tags of base images that the run tries.
    pub(crate) base_tags: BTreeMap<String, String>,
    /// What moved.
    pub(crate) lane: Option<String>,
    /// A newer run of the lane ends older ones, and waits until they are gone.
    pub(crate) newest_wins: bool,
    /// The commit is a stranger's.
    pub(crate) stranger: bool,
}

/// The run of `task` for what happened. What is wrong with the task itself was told when it was stored.
///
/// # Errors
/// What keeps a run from being made.
pub(crate) fn from_event(
    app: &App,
    task: &Task,
    happening: Happening,
    by: Request,
) -> Result<Draft, Problems> {
    let start = StartTask {
        set: happening.set,
        context: happening.context,
        ..StartTask::default()
    };
    let mut draft = of_task(app, task, start, Values::Untrusted, by, Problems::default())?;
    if happening.stranger {
        // Approved or not, it is foreign code: it shares nothing with the task. All commits of one pull request share.
        let source = happening.lane.as_ref().unwrap_or(&happening.commit);
        draft.contribute(source.clone());
    }
    let run = &mut draft.run;
    happening.trigger.clone_into(&mut run.trigger);
    let facts = std::mem::take(&mut run.spec.facts);
    run.spec.facts = Facts {
        commit: happening.commit.clone(),
        branch: happening.branch,
        git_tag: happening.git_tag,
        repository: happening.repository,
        triggered_by: happening.triggered_by.into(),
        ..facts
    };
    crate::bases::tags::give(task, &happening.base_tags, &mut run.spec);
    run.spec.base_tags = happening.base_tags;
    if happening.stranger {
        restrict(&mut run.spec);
    }
    run.origin.one_at_a_time = happening.newest_wins;
    run.origin.lane = happening.lane;
    run.origin.commit = (!happening.commit.is_empty()).then_some(happening.commit);
    run.origin.needs_approval = happening.stranger;
    draft.check_size()?;
    Ok(draft)
}

/// Takes away what a stranger's commit must not do before it is approved.
fn restrict(spec: &mut RunSpec) {
    spec.no_push = true;
}

/// Keeps a run whose domain must not write the shared cache from doing so.
pub(super) fn restrict_cache(spec: &mut RunSpec, domain: &TrustDomain) {
    if domain.writes_shared_cache() {
        return;
    }
    if let SharedCache::ReadWrite { name } = &spec.cache {
        spec.cache = SharedCache::ReadOnly { name: name.clone() };
    }
}

/// Returns the spec of a stranger's run once it is approved. The shared cache of the task stays closed to it. `no_push`:
/// the task never pushes.
pub(crate) fn approved(spec: &RunSpec, no_push: bool) -> RunSpec {
    let mut spec = spec.clone();
    spec.no_push = no_push;
    spec
}

/// The spec of a stranger's run, as a runner would get it before it is approved: without the names of secrets too.
pub(super) fn untrusted(spec: &RunSpec, domain: &TrustDomain) -> RunSpec {
    let mut spec = spec.clone();
    restrict(&mut spec);
    restrict_cache(&mut spec, domain);
    spec.secrets.clear();
    spec.build_secrets.clear();
    spec
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_approval_gives_back_what_was_taken() {
        let task = TrustDomain::Task { id: "t1".into() };
        let whole = RunSpec {
            secrets: vec!["a".into()],
            build_secrets: vec!["a".into()],
            cache: SharedCache::ReadWrite { name: "x".into() },
            ..RunSpec::default()
        };
        let mut held = whole.clone();
        restrict(&mut held);
        assert!(held.no_push);
        assert_eq!(approved(&held, false), whole);
        assert!(approved(&held, true).no_push);
        restrict_cache(&mut held, &task);
        assert_eq!(held.cache, SharedCache::ReadWrite { name: "x".into() });
        let contribution = task.contribution("pull request 1");
        restrict_cache(&mut held, &contribution);
        let foreign = approved(&held, false);
        assert_eq!(foreign.cache, SharedCache::ReadOnly { name: "x".into() });
        let given = untrusted(&whole, &contribution);
        assert!(given.no_push && given.secrets.is_empty() && given.build_secrets.is_empty());
        assert_eq!(given.cache, SharedCache::ReadOnly { name: "x".into() });
    }
}
