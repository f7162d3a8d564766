//! From what a cascade wants to be built to a run of the task.
//!
//! Invariants: the run is pinned to the digests that the cascade fixed; it ends no other run of its group, and waits its
//! turn in it.

use acrtask_cascade::cascade::Start;
use acrtask_store::{NewRun, StoreError};

use crate::{
    App,
    submit::{
        self, Request,
        event::{Happening, from_event},
    },
    webhooks::Tasks,
};

/// The run of a task for a cascade, or why there can be none.
pub(super) async fn draft(
    app: &App,
    tasks: &Tasks,
    start: &Start,
    reason: String,
    held: bool,
) -> Result<Result<NewRun, String>, StoreError> {
    let Some(entry) = tasks.named(&start.task) else {
        return Ok(Err("the task is gone".into()));
    };
    if !entry.task.definition.enabled {
        return Ok(Err("the task is disabled".into()));
    }
    let happening = Happening {
        trigger: "cascade",
        triggered_by: "Image Update",
        ..Happening::default()
    };
    let request = Request {
        idempotency_key: Some(format!(
            "cascade/{}/{}/{}",
            start.cascade, start.task, start.attempt
        )),
        ..Request::default()
    };
    let draft = match from_event(app, &entry.task, happening, request) {
        Ok(draft) => draft,
        Err(problems) => return Ok(Err(format!("the task cannot run: {problems}"))),
    };
    let missing = submit::missing_secrets(app, &draft).await?;
    if !missing.is_empty() {
        let task = &entry.task.definition.name;
        return Ok(Err(submit::no_secret(&missing, Some(task))));
    }
    let mut run = match draft.seal(app) {
        Ok(run) => run,
        Err(error) => return Ok(Err(format!("its secrets cannot be kept: {error}"))),
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
    run.spec.hold = held;
    Ok(Ok(run))
}
