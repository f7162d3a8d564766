//! Detection of loops between tasks and pushed images.
//!
//! In a loop, a run pushes an image that starts its own task again, possibly through other tasks.
//! The server learns where a task pushes to when its first run ends, so it finds such a loop at
//! its second turn.

use std::collections::HashSet;

use acrtask_store::{PusherRow, ReportedPush, StoreError};
use acrtask_trigger::RegistryPush;

use crate::App;

/// Maximum number of runs that are followed back towards the first cause.
const MAX_RUNS: usize = 100;

/// Describes the loop that a run of the task because of `image` would close. `None` if there is
/// no loop.
pub(super) async fn find_loop(
    app: &App,
    (task_id, task_name): (&str, &str),
    image: &RegistryPush,
) -> Result<Option<String>, StoreError> {
    let mut open = vec![(
        image.clone(),
        app.clock.now_ms(),
        format!("{} -> {task_name}", tag_name(image)),
    )];
    let mut seen = HashSet::new();
    while let Some((image, at, path)) = open.pop() {
        let name = tag_name(&image);
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
                let path = format!("{} -> {path}", tag_name(&cause));
                open.push((cause, run.created_at, path));
            }
        }
    }
    Ok(None)
}

/// Returns the name of an image without its digest.
fn tag_name(image: &RegistryPush) -> String {
    let digest = None;
    RegistryPush {
        digest,
        ..image.clone()
    }
    .to_string()
}

/// Returns the pushed image that started a run.
fn cause_of(run: &PusherRow) -> Option<RegistryPush> {
    if run.trigger != "registryPush" {
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
