//! Creation of reruns.

use acrtask_api::{
    run::Approval,
    spec::ContextSource,
    task::{QueueOptions, Task},
};
use acrtask_store::{RunGroup, RunRow};

use super::{RequestContext, RunDraft, build_draft, unseal_secrets};
use crate::{App, vault::VaultError};

/// Creates a rerun of `run` with the same files, values and secrets, and with the bases that `run`
/// used. It stays in the trust domain of `run`, regardless of the requester: the code is unchanged.
///
/// `task` is the current task of the run. Its queue and its `noPush` replace those of the run, so
/// that a rerun does not restore a pool, group or push that was removed from the task. `None` if
/// the run has no task or the task was deleted. A run of a deleted task waits in the default pool
/// without a group.
///
/// # Errors
/// Returns an error if the secrets of `run` cannot be decrypted.
pub fn rerun(
    app: &App,
    run: &RunRow,
    task: Option<&Task>,
    by: RequestContext,
) -> Result<RunDraft, VaultError> {
    let secrets = unseal_secrets(app, run)?;
    let mut spec = run.spec.clone();
    let queue = match task {
        Some(task) => {
            spec.no_push |= task.definition.no_push;
            task.definition.queue.clone()
        }
        None if run.task_id.is_some() => QueueOptions::default(),
        None => run.queue.clone(),
    };
    let queue = QueueOptions {
        priority: run.queue.priority,
        ..queue
    };
    // No cascade would promote the staged images of a rerun.
    spec.push_by_digest &= run.trigger != "cascade";
    if let Some(result) = &run.result {
        for base in &result.bases {
            spec.pins.insert(base.name.clone(), base.digest.clone());
        }
        let found = &result.variables;
        for (fact, found) in [
            (&mut spec.variables.branch, &found.branch),
            (&mut spec.variables.git_tag, &found.git_tag),
            (&mut spec.variables.repository, &found.repository),
            (&mut spec.variables.commit, &found.commit),
        ] {
            if fact.is_empty() {
                fact.clone_from(found);
            }
        }
        if let ContextSource::Url {
            url, commit: None, ..
        } = &mut spec.context
            && let Some(pinned) = pin_to_commit(url, &found.commit)
        {
            *url = pinned;
        }
    }
    let owner = run.task_id.clone().zip(run.task_name.clone());
    let mut draft = build_draft(
        app,
        run.trust_domain.clone(),
        owner,
        spec,
        queue,
        secrets,
        "rerun",
        by,
    );
    draft.run.rerun_of = Some(run.id.clone());
    // A commit from a fork still needs its approval.
    draft.run.origin.needs_approval = run.approval == Some(Approval::Pending);
    draft.run.origin.one_at_a_time = matches!(run.group, Some(RunGroup::Ref(_)));
    draft.run.origin.ref_key.clone_from(&run.ref_key);
    draft.run.origin.commit.clone_from(&run.commit);
    draft.run.platform.clone_from(&run.platform);
    draft.run.timeout_secs = run.timeout_secs;
    draft.run.affinity_key.clone_from(&run.affinity_key);
    Ok(draft)
}

/// Returns the URL of a git context, pinned to the commit that its reference resolved to. `None`
/// for a tarball or an artifact.
pub(super) fn pin_to_commit(url: &str, commit: &str) -> Option<String> {
    if !is_commit(commit) || url.starts_with("oci://") {
        return None;
    }
    Some(match url.split_once('#') {
        None => format!("{url}#{commit}"),
        Some((repository, fragment)) => match fragment.split_once(':') {
            None => format!("{repository}#{commit}"),
            Some((_, folder)) => format!("{repository}#{commit}:{folder}"),
        },
    })
}

/// Returns `true` if a context is a git repository at a full commit, so that its content cannot
/// change.
pub(crate) fn is_pinned_to_commit(url: &str) -> bool {
    let fragment = url.split_once('#').map_or("", |(_, fragment)| fragment);
    let reference = fragment.split(':').next().unwrap_or_default();
    is_commit(reference) && !url.starts_with("oci://")
}

fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_hexdigit())
}
