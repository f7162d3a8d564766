//! Removal of orphans: objects of killed processes, found by their labels.
//!
//! Only objects whose label names a process that is certainly dead are removed ([`crate::owner`]).
//! Objects that a task asked to keep stay.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

use tokio_util::task::TaskTracker;

use crate::{
    context::remove_all,
    engine::{Engine, Labels, label_filter},
    image_names::{NAMES_FILE, remove_listed},
    owner::{Judgement, OWNER_LABEL, Owner, RUN_LABEL, is_kept},
    scope::RunScope,
    workspace::{OWNER_FILE, SCRATCH_PREFIX, keeper_image},
};

/// Removes the objects of dead processes. Returns one line of text for each removal.
///
/// Removes networks on `later`: a finished run leaves them to the engine, which needs a moment.
pub(crate) async fn remove_orphans(
    engine: &Engine,
    me: &Owner,
    scratch_root: &Path,
    later: &TaskTracker,
) -> Vec<String> {
    let (containers, networks, volumes) = tokio::join!(
        engine.list_containers(label_filter(RUN_LABEL)),
        engine.list_networks(RUN_LABEL),
        engine.list_volumes(RUN_LABEL),
    );
    let containers = containers
        .unwrap_or_default()
        .into_iter()
        .filter_map(|c| c.labels);
    let networks = networks.unwrap_or_default().into_iter().map(|n| n.labels);
    let volumes = volumes.unwrap_or_default().into_iter().map(|v| v.labels);
    let attached = containers
        .filter(|labels| !is_kept(labels))
        .chain(volumes)
        .map(|labels| (labels, 1));
    let mut dead: BTreeMap<String, (Labels, usize)> = BTreeMap::new();
    for (labels, count) in attached.chain(networks.map(|labels| (labels, 0))) {
        if let Some((run, owner)) = dead_owner(&labels, me) {
            let entry = dead.entry(run.to_string());
            entry.or_insert_with(|| (Labels::new(run, owner), 0)).1 += count;
        }
    }
    let mut removed = Vec::new();
    for (run, (labels, count)) in dead {
        // Addresses the image by its name: listing all images takes half a second on an engine with
        // many of them.
        let image = Some(keeper_image(&labels.scope));
        if count == 0 {
            let engine = engine.clone();
            later.spawn(async move {
                let left = remove_all(&engine, &labels, image).await;
                tracing::debug!(%run, ?left, "removed the networks of a finished run");
            });
            continue;
        }
        let left = remove_all(engine, &labels, image).await;
        if left.len() < count {
            let things = if count == 1 { "object" } else { "objects" };
            removed.push(format!(
                "run {run}: {} {things} of the engine",
                count - left.len()
            ));
        }
        for thing in left {
            tracing::debug!(%run, object = thing, "could not remove an orphan");
        }
    }
    // A folder stays until all images that it lists are removed.
    let mut done = Vec::new();
    for folder in dead_folders(scratch_root, me) {
        let list = tokio::fs::read_to_string(folder.join("files").join(NAMES_FILE)).await;
        let is_done = match list {
            Ok(list) => remove_listed(engine, &list).await,
            Err(_) => true,
        };
        if is_done {
            done.push(folder);
        }
    }
    let root = scratch_root.to_owned();
    let folders = tokio::task::spawn_blocking(move || {
        let mut removed = remove_folders(done);
        let fetched = acrtask_source::remove_orphans(&root);
        removed.extend(
            fetched
                .iter()
                .map(|path| format!("folder {}", path.display())),
        );
        removed
    });
    let folders = folders.await;
    removed.extend(folders.unwrap_or_default());
    removed
}

/// Returns the run and the owner that the labels name, if that owner is dead.
fn dead_owner(labels: &HashMap<String, String>, me: &Owner) -> Option<(RunScope, Owner)> {
    let run: RunScope = labels.get(RUN_LABEL)?.parse().ok()?;
    let owner: Owner = labels.get(OWNER_LABEL)?.parse().ok()?;
    (owner.judge_locally(me) == Judgement::Dead).then_some((run, owner))
}

/// Returns the scratch folders of dead processes.
fn dead_folders(root: &Path, me: &Owner) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    let scratch_folders = entries.filter(|entry| {
        let name = entry.file_name();
        name.to_string_lossy().starts_with(SCRATCH_PREFIX)
    });
    scratch_folders
        .filter_map(|entry| {
            let folder: PathBuf = entry.path();
            let owner = std::fs::read_to_string(folder.join(OWNER_FILE)).ok()?;
            let owner: Owner = owner.parse().ok()?;
            (owner.judge_locally(me) == Judgement::Dead).then_some(folder)
        })
        .collect()
}

fn remove_folders(folders: Vec<PathBuf>) -> Vec<String> {
    folders
        .into_iter()
        .filter_map(|folder| {
            std::fs::remove_dir_all(&folder).ok()?;
            Some(format!("folder {}", folder.display()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Scratch;

    #[test]
    fn folders_of_live_processes_stay() {
        let root = tempfile::tempdir().unwrap();
        let me = Owner::this_process();
        let run: RunScope = "r1".parse().unwrap();
        let mine = Scratch::new(root.path(), &run, &me).unwrap();
        // A process with this one's id but another start time. It is dead.
        let mut label = me.to_string();
        label.push('0');
        let dead: Owner = label.parse().unwrap();
        let theirs = Scratch::new(root.path(), &"r2".parse().unwrap(), &dead).unwrap();
        std::fs::create_dir(root.path().join("acrtask-run-without-owner")).unwrap();
        let removed = remove_folders(dead_folders(root.path(), &me));
        assert_eq!(removed.len(), 1, "{removed:?}");
        assert!(removed[0].contains("acrtask-run-r2-"));
        assert!(mine.path().exists());
        assert!(root.path().join("acrtask-run-without-owner").exists());
        drop(theirs);
    }
}
