//! Creation of the runs that a cascade starts.
//!
//! Invariants: a run is pinned to the digests that the cascade fixed. It does not supersede other
//! runs of its concurrency group and waits its turn in it.

use acrtask_cascade::cascade::Start;
use acrtask_store::{NewRun, StoreError};

use crate::{
    App,
    run_factory::{
        self, RequestContext,
        trigger::{TriggerContext, create_from_trigger},
    },
    webhooks::TaskSnapshot,
};

/// Creates the run of a task for a cascade, or returns the reason why it cannot run.
pub(super) async fn create_run(
    app: &App,
    tasks: &TaskSnapshot,
    start: &Start,
    reason: String,
    push_by_digest: bool,
) -> Result<Result<NewRun, String>, StoreError> {
    let Some(entry) = tasks.find_by_name(&start.task) else {
        return Ok(Err("the task no longer exists".into()));
    };
    if !entry.task.definition.enabled {
        return Ok(Err("the task is disabled".into()));
    }
    let context = TriggerContext {
        trigger: "cascade",
        triggered_by: "Image Update",
        ..TriggerContext::default()
    };
    let request = RequestContext {
        idempotency_key: Some(format!(
            "cascade/{}/{}/{}",
            start.cascade, start.task, start.attempt
        )),
        ..RequestContext::default()
    };
    let draft = match create_from_trigger(app, &entry.task, context, request) {
        Ok(draft) => draft,
        Err(problems) => return Ok(Err(format!("the task cannot run: {problems}"))),
    };
    let missing = run_factory::find_missing_secrets(app, &draft).await?;
    if !missing.is_empty() {
        let task = &entry.task.definition.name;
        return Ok(Err(run_factory::missing_secrets_message(
            &missing,
            Some(task),
        )));
    }
    let mut run = match draft.seal(app) {
        Ok(run) => run,
        Err(error) => return Ok(Err(format!("its secrets cannot be stored: {error}"))),
    };
    run.origin.reason = Some(reason);
    run.queue.priority = start.priority;
    if let Some(concurrency) = &mut run.queue.concurrency {
        concurrency.cancel_superseded = false;
    }
    run.spec.pins = start
        .pins
        .iter()
        .map(|(image, digest)| (image.to_string(), digest.clone()))
        .collect();
    run.spec.push_by_digest = push_by_digest;
    Ok(Ok(run))
}
