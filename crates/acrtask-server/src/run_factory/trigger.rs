//! Runs that a trigger starts: a change of a repository or a registry.
//!
//! Invariants:
//! * The run has the exact commit, and its task file is from that commit.
//! * A commit from a fork pushes nothing, gets no secret and does not write the shared cache until
//!   it is approved.
//! * Values of the trigger are untrusted.

use std::collections::BTreeMap;

use acrtask_api::{
    run::StartTask,
    spec::{ContextSource, RunSpec, SharedCache, Variables},
    task::Task,
};
use acrtask_model::{ContributionSource, TrustDomain};

use super::{
    RequestContext, RunDraft,
    create::{ValueTrust, draft_of_task},
};
use crate::{App, validate::Problems};

/// Facts of a trigger that a run needs.
#[derive(Debug, Clone, Default)]
pub(crate) struct TriggerContext {
    /// Kind of the trigger: `commit`, `tag`, `pullRequest` or `registryPush`.
    pub(crate) trigger: &'static str,
    /// Value of `{{.Run.TriggeredBy}}`.
    pub(crate) triggered_by: &'static str,
    /// Context that replaces the task's own.
    pub(crate) context: Option<ContextSource>,
    /// Commit hash. Empty if the trigger has none.
    pub(crate) commit: String,
    /// Name of the branch.
    pub(crate) branch: String,
    /// Name of the git tag.
    pub(crate) git_tag: String,
    /// URL of the repository.
    pub(crate) repository: String,
    /// Values that override those of the task.
    pub(crate) set: BTreeMap<String, String>,
    /// New tags of base images that the run tries.
    pub(crate) base_tags: BTreeMap<String, String>,
    /// Key of the branch, tag or pull request that changed.
    pub(crate) lane: Option<String>,
    /// A newer run with the same key cancels the older ones and waits for their end.
    pub(crate) newest_wins: bool,
    /// The commit is from a fork.
    pub(crate) from_fork: bool,
}

/// Creates the run of `task` for a trigger. Problems of the task itself were reported when it was
/// stored.
///
/// # Errors
/// Returns the problems that prevent the run.
pub(crate) fn create_from_trigger(
    app: &App,
    task: &Task,
    trigger: TriggerContext,
    by: RequestContext,
) -> Result<RunDraft, Problems> {
    let start = StartTask {
        set: trigger.set,
        context: trigger.context,
        ..StartTask::default()
    };
    let mut draft = draft_of_task(
        app,
        task,
        start,
        ValueTrust::Untrusted,
        by,
        Problems::default(),
    )?;
    if trigger.from_fork {
        // Code of a fork shares nothing with the task, even after approval. All commits of one pull
        // request share a domain.
        let reference = trigger.lane.as_ref().unwrap_or(&trigger.commit).clone();
        draft.move_to_contribution(ContributionSource::Fork { reference });
    }
    let run = &mut draft.run;
    trigger.trigger.clone_into(&mut run.trigger);
    let variables = std::mem::take(&mut run.spec.variables);
    run.spec.variables = Variables {
        commit: trigger.commit.clone(),
        branch: trigger.branch,
        git_tag: trigger.git_tag,
        repository: trigger.repository,
        triggered_by: trigger.triggered_by.into(),
        ..variables
    };
    crate::bases::tags::apply_tags(task, &trigger.base_tags, &mut run.spec);
    run.spec.base_tags = trigger.base_tags;
    if trigger.from_fork {
        restrict_fork(&mut run.spec);
    }
    run.origin.one_at_a_time = trigger.newest_wins;
    run.origin.ref_key = trigger.lane;
    run.origin.commit = (!trigger.commit.is_empty()).then_some(trigger.commit);
    run.origin.needs_approval = trigger.from_fork;
    draft.check_size()?;
    Ok(draft)
}

/// Restricts the spec of a fork's run until it is approved.
fn restrict_fork(spec: &mut RunSpec) {
    spec.no_push = true;
}

/// Makes the shared cache read-only if the run's trust domain must not write it.
pub(super) fn restrict_cache(spec: &mut RunSpec, domain: &TrustDomain) {
    if domain.writes_shared_cache() {
        return;
    }
    if let SharedCache::ReadWrite { name } = &spec.cache {
        spec.cache = SharedCache::ReadOnly { name: name.clone() };
    }
}

/// Returns the spec of a fork's run after its approval. The shared cache of the task stays
/// read-only. `no_push` is that of the task.
pub(crate) fn approve_spec(spec: &RunSpec, no_push: bool) -> RunSpec {
    let mut spec = spec.clone();
    spec.no_push = no_push;
    spec
}

/// Returns the spec of a fork's run for a runner before its approval: without pushes and without
/// the names of secrets.
pub(crate) fn restrict_unapproved(spec: &RunSpec, domain: &TrustDomain) -> RunSpec {
    let mut spec = spec.clone();
    restrict_fork(&mut spec);
    restrict_cache(&mut spec, domain);
    spec.secrets.clear();
    spec.build_secrets.clear();
    spec
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn approval_lifts_the_restrictions_of_a_fork() {
        let task = TrustDomain::Task { id: "t1".into() };
        let spec = RunSpec {
            secrets: vec!["a".into()],
            build_secrets: vec!["a".into()],
            cache: SharedCache::ReadWrite { name: "x".into() },
            ..RunSpec::default()
        };
        let mut restricted = spec.clone();
        restrict_fork(&mut restricted);
        assert!(restricted.no_push);
        assert_eq!(approve_spec(&restricted, false), spec);
        assert!(approve_spec(&restricted, true).no_push);
        restrict_cache(&mut restricted, &task);
        assert_eq!(
            restricted.cache,
            SharedCache::ReadWrite { name: "x".into() }
        );
        let contribution = task.contribution(ContributionSource::Fork {
            reference: "pull request 1".into(),
        });
        restrict_cache(&mut restricted, &contribution);
        let foreign = approve_spec(&restricted, false);
        assert_eq!(foreign.cache, SharedCache::ReadOnly { name: "x".into() });
        let given = restrict_unapproved(&spec, &contribution);
        assert!(given.no_push && given.secrets.is_empty() && given.build_secrets.is_empty());
        assert_eq!(given.cache, SharedCache::ReadOnly { name: "x".into() });
    }
}
