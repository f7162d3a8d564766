//! Loops of tasks and pushed images: a task whose run pushes an image that starts the task again, through any
//! number of others.
//!
//! The first run of a task that pushes to a repository is not known to do so before it has ended. Such a loop is
//! therefore found at its second turn.

use std::collections::HashSet;

use acrtask_store::{PusherRow, ReportedPush, StoreError};
use acrtask_trigger::RegistryPush;

use crate::App;

/// Largest number of runs on the way back to the first cause.
const MAX_RUNS: usize = 100;

/// Returns the loop that a run of the task because of `image` would close, as a sentence. `None`: there is none.
pub(super) async fn find(
    app: &App,
    (task_id, task_name): (&str, &str),
    image: &RegistryPush,
) -> Result<Option<String>, StoreError> {
    let mut open = vec![(
        image.clone(),
        app.clock.now_ms(),
        format!("{} -> {task_name}", name_of(image)),
    )];
    let mut seen = HashSet::new();
    while let Some((image, at, path)) = open.pop() {
        let name = name_of(&image);
        let push = ReportedPush {
            repository: &image.repository,
            name: &name,
            digest: image.digest.as_ref(),
        };
        for run in app.store.pushers(task_id, push, at).await? {
            if seen.len() >= MAX_RUNS || !seen.insert(run.id.clone()) {
                continue;
            }
            let path = format!("{} -> {path}", run.task_name);
            if run.task_id == task_id {
                return Ok(Some(format!(
                    "another run would make a loop: {path}; run {} led to this push. Limit the trigger's \
                     `repositories` or `tags` to images that no run of the task leads to",
                    run.id
                )));
            }
            if let Some(cause) = cause_of(&run) {
                let path = format!("{} -> {path}", name_of(&cause));
                open.push((cause, run.created_at, path));
            }
        }
    }
    Ok(None)
}

/// Returns the name of an image without its digest.
fn name_of(image: &RegistryPush) -> String {
    let digest = None;
    RegistryPush {
        digest,
        ..image.clone()
    }
    .to_string()
}

/// Returns the pushed image that started a run.
fn cause_of(run: &PusherRow) -> Option<RegistryPush> {
    if run.trigger != "registry-push" {
        return None;
    }
    Some(RegistryPush {
        registry: run.set.get("pushedRegistry")?.clone(),
        repository: run.set.get("pushedRepository")?.clone(),
        tag: run.set.get("pushedTag").cloned(),
        digest: run
            .set
            .get("pushedDigest")
            .and_then(|text| text.parse().ok()),
    })
}
