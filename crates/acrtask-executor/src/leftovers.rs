//! What killed processes left behind, found by its labels and removed.
//!
//! Only what carries the label of a process that is certainly dead is touched ([`crate::owner`]); what a
//! task asked to keep is kept.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

use crate::{
    context::remove_all,
    engine::{Engine, Labels, label_filter},
    image_names::{NAMES_FILE, remove_listed},
    owner::{Judgement, OWNER_LABEL, Owner, RUN_LABEL, is_kept},
    scope::RunScope,
    workspace::{OWNER_FILE, SCRATCH_PREFIX, keeper_image},
};

/// Removes what dead processes left; returns it in words.
pub(crate) async fn remove(engine: &Engine, me: &Owner, scratch_root: &Path) -> Vec<String> {
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
    let all = containers
        .filter(|labels| !is_kept(labels))
        .chain(networks)
        .chain(volumes);
    let mut dead: BTreeMap<String, (Labels, usize)> = BTreeMap::new();
    for labels in all {
        if let Some((run, owner)) = dead_owner(&labels, me) {
            let entry = dead.entry(run.to_string());
            entry.or_insert_with(|| (Labels::new(run, owner), 0)).1 += 1;
        }
    }
    let mut removed = Vec::new();
    for (run, (labels, count)) in dead {
        // Looked for by its name: a list of all images takes an engine with many of them half a second.
        let image = Some(keeper_image(&labels.scope));
        let left = remove_all(engine, &labels, image).await;
        if left.len() < count {
            let things = if count == 1 { "object" } else { "objects" };
            removed.push(format!(
                "run {run}: {} {things} of the engine",
                count - left.len()
            ));
        }
        for thing in left {
            tracing::debug!(%run, thing, "left behind by a run that was killed");
        }
    }
    // A folder whose images are not all gone stays, because it lists them.
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
        let fetched = acrtask_source::remove_leftovers(&root);
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

/// The run and the owner that labels name, if that owner is dead.
fn dead_owner(labels: &HashMap<String, String>, me: &Owner) -> Option<(RunScope, Owner)> {
    let run: RunScope = labels.get(RUN_LABEL)?.parse().ok()?;
    let owner: Owner = labels.get(OWNER_LABEL)?.parse().ok()?;
    (owner.judge_here(me) == Judgement::Dead).then_some((run, owner))
}

/// Returns the scratch folders of dead processes.
fn dead_folders(root: &Path, me: &Owner) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| {
        let name = entry.file_name();
        name.to_string_lossy().starts_with(SCRATCH_PREFIX)
    });
    ours.filter_map(|entry| {
        let folder: PathBuf = entry.path();
        let owner = std::fs::read_to_string(folder.join(OWNER_FILE)).ok()?;
        let owner: Owner = owner.parse().ok()?;
        (owner.judge_here(me) == Judgement::Dead).then_some(folder)
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
    fn folders_of_the_living_stay() {
        let root = tempfile::tempdir().unwrap();
        let me = Owner::this_process();
        let run: RunScope = "r1".parse().unwrap();
        let mine = Scratch::new(root.path(), &run, &me).unwrap();
        // A process with this one's id that started at another time: it is gone.
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
