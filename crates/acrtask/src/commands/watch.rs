//! Change notifications for a folder, used by `--watch`.
//!
//! Only changes that a build can see count: `.git` and files in `.dockerignore` are ignored, and so
//! is the program's own output if it goes to a file in the folder. Changes in quick succession
//! count once.

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use acrtask_buildkit::PatternSet;
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use crate::error::CliError;

/// Time without changes that ends a series of changes.
const QUIET_PERIOD: Duration = Duration::from_millis(200);
/// Maximum duration of a series of changes.
const MAX_SERIES: Duration = Duration::from_secs(2);

/// Stream of changes in a folder.
pub(crate) struct Changes {
    changed: mpsc::Receiver<PathBuf>,
    /// First changed file of a series that `next` has not returned yet.
    first: Option<PathBuf>,
    _watcher: RecommendedWatcher,
}

impl Changes {
    /// Starts to watch `root` and everything below it.
    pub(crate) fn watch(root: &Path) -> Result<Self, CliError> {
        let refuse = |error: &(dyn std::error::Error + 'static)| {
            CliError::unreachable(format!("cannot watch {} for changes", root.display()))
                .because(error)
        };
        let root = root.canonicalize().map_err(|error| refuse(&error))?;
        // One slot is enough: a full channel already means that something changed.
        let (sender, changed) = mpsc::channel(1);
        let base = root.clone();
        let own_output = output_file_ids();
        let mut ignored = Ignored::read(&base);
        let mut watcher =
            notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
                // An error means that events were lost, so an extra notification is safer.
                let Ok(event) = event else {
                    let _ = sender.try_send(base.clone());
                    return;
                };
                if matches!(event.kind, EventKind::Access(_)) {
                    return;
                }
                if event
                    .paths
                    .iter()
                    .any(|path| path.ends_with(".dockerignore"))
                {
                    ignored = Ignored::read(&base);
                }
                let is_relevant = |path: &&PathBuf| {
                    ignored.is_visible(&base, path)
                        && !file_id(path).is_some_and(|id| own_output.contains(&id))
                };
                if let Some(path) = event.paths.iter().find(is_relevant) {
                    let _ = sender.try_send(path.clone());
                }
            })
            .map_err(|error| refuse(&error))?;
        watcher
            .watch(&root, RecursiveMode::Recursive)
            .map_err(|error| {
                refuse(&error)
                    .help("a large folder may need more: sysctl fs.inotify.max_user_watches=524288")
            })?;
        Ok(Self {
            changed,
            first: None,
            _watcher: watcher,
        })
    }

    /// Waits for the next series of changes to end, and returns its first file. Cancel safe: the
    /// next call returns a change that a canceled call had received.
    pub(crate) async fn next(&mut self) -> Option<PathBuf> {
        if self.first.is_none() {
            self.first = Some(self.changed.recv().await?);
        }
        let quiet = async {
            while let Ok(Some(_)) = tokio::time::timeout(QUIET_PERIOD, self.changed.recv()).await {}
        };
        // A folder that changes all the time still triggers runs.
        let _ = tokio::time::timeout(MAX_SERIES, quiet).await;
        self.first.take()
    }
}

/// Returns the ids of the files behind standard output and standard error.
fn output_file_ids() -> Vec<(u64, u64)> {
    ["/proc/self/fd/1", "/proc/self/fd/2"]
        .into_iter()
        .filter_map(|path| file_id(Path::new(path)))
        .collect()
}

/// Returns device and inode, which identify a file on this machine.
fn file_id(path: &Path) -> Option<(u64, u64)> {
    let found = std::fs::metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

/// Patterns of files that a build ignores.
struct Ignored(Option<PatternSet>);

impl Ignored {
    fn read(root: &Path) -> Self {
        // The build reports a file that does not parse.
        let text = std::fs::read_to_string(root.join(".dockerignore")).unwrap_or_default();
        Self(PatternSet::from_ignore_file(&text).ok())
    }

    fn is_visible(&self, root: &Path, path: &Path) -> bool {
        let Ok(relative) = path.strip_prefix(root) else {
            return true;
        };
        if relative
            .components()
            .next()
            .is_some_and(|first| first.as_os_str() == ".git")
        {
            return false;
        }
        match (&self.0, relative.to_str()) {
            (Some(patterns), Some(relative)) if !relative.is_empty() => !patterns.matches(relative),
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn change_after(make: impl FnOnce(&Path)) -> Option<PathBuf> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(".git")).unwrap();
        std::fs::create_dir(folder.path().join("target")).unwrap();
        std::fs::write(
            folder.path().join(".dockerignore"),
            "target\n*.log\n!keep.log\n",
        )
        .unwrap();
        let mut changes = Changes::watch(folder.path()).unwrap();
        make(folder.path());
        // This change always counts, so the wait ends even if `make` changed nothing relevant.
        std::fs::write(folder.path().join("zz-end"), "").unwrap();
        let changed = tokio::time::timeout(Duration::from_secs(20), changes.next())
            .await
            .expect("a change")?;
        Some(
            changed
                .strip_prefix(folder.path().canonicalize().unwrap())
                .unwrap()
                .to_owned(),
        )
    }

    #[tokio::test]
    async fn canceled_wait_loses_no_change() {
        let folder = tempfile::tempdir().unwrap();
        let mut changes = Changes::watch(folder.path()).unwrap();
        std::fs::write(folder.path().join("a"), "").unwrap();
        // Cancels the wait during the quiet period.
        while changes.first.is_none() {
            let _ = tokio::time::timeout(Duration::from_millis(1), changes.next()).await;
        }
        let change = tokio::time::timeout(Duration::from_secs(20), changes.next()).await;
        assert!(change.unwrap().unwrap().ends_with("a"));
    }

    #[tokio::test]
    async fn changes_that_a_build_ignores_do_not_count() {
        let write =
            |name: &'static str| move |root: &Path| std::fs::write(root.join(name), "x").unwrap();
        for ignored in [".git/index", "target/out", "a.log"] {
            assert_eq!(
                change_after(write(ignored)).await,
                Some("zz-end".into()),
                "{ignored}"
            );
        }
        for seen in ["main.c", "keep.log", ".dockerignore"] {
            assert_eq!(change_after(write(seen)).await, Some(seen.into()), "{seen}");
        }
    }
}
