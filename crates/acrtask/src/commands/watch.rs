//! `--watch`: tells when a folder changed.
//!
//! What a build would not see is no change: what `.dockerignore` excludes, and `.git`. Neither is the program's
//! own output, where that goes to a file of the folder. Changes that come close together count once.

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use acrtask_buildkit::PatternSet;
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use crate::error::CliError;

/// Quiet that ends a series of changes.
const QUIET: Duration = Duration::from_millis(200);
/// Longest wait for quiet.
const LONGEST: Duration = Duration::from_secs(2);

/// Changes of a folder.
pub(crate) struct Changes {
    changed: mpsc::Receiver<PathBuf>,
    /// The first file of a series of changes that has not been told yet.
    first: Option<PathBuf>,
    _watcher: RecommendedWatcher,
}

impl Changes {
    /// Watches `root` and everything below it from now on.
    pub(crate) fn of(root: &Path) -> Result<Self, CliError> {
        let refuse = |error: &(dyn std::error::Error + 'static)| {
            CliError::unreachable(format!("cannot watch {} for changes", root.display()))
                .because(error)
        };
        let root = root.canonicalize().map_err(|error| refuse(&error))?;
        // A full channel already says that something changed.
        let (sender, changed) = mpsc::channel(1);
        let base = root.clone();
        let own_output = own_output();
        let mut ignored = Ignored::read(&base);
        let mut watcher =
            notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
                // An error means that events were lost: better once too often.
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
                let counts = |path: &&PathBuf| {
                    ignored.lets_see(&base, path)
                        && !file_id(path).is_some_and(|id| own_output.contains(&id))
                };
                if let Some(path) = event.paths.iter().find(counts) {
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

    /// Waits for the next change, and then until no more come; gives the first file that changed. A wait that is
    /// given up loses nothing: the next one tells it.
    pub(crate) async fn next(&mut self) -> Option<PathBuf> {
        if self.first.is_none() {
            self.first = Some(self.changed.recv().await?);
        }
        let quiet = async {
            while let Ok(Some(_)) = tokio::time::timeout(QUIET, self.changed.recv()).await {}
        };
        // A folder that never rests is run all the same.
        let _ = tokio::time::timeout(LONGEST, quiet).await;
        self.first.take()
    }
}

/// The files that standard output and standard error are.
fn own_output() -> Vec<(u64, u64)> {
    ["/proc/self/fd/1", "/proc/self/fd/2"]
        .into_iter()
        .filter_map(|path| file_id(Path::new(path)))
        .collect()
}

/// What tells a file from every other one of this machine.
fn file_id(path: &Path) -> Option<(u64, u64)> {
    let found = std::fs::metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

/// What a build does not see.
struct Ignored(Option<PatternSet>);

impl Ignored {
    fn read(root: &Path) -> Self {
        // The build itself says what is wrong with a file that does not parse.
        let text = std::fs::read_to_string(root.join(".dockerignore")).unwrap_or_default();
        Self(PatternSet::from_ignore_file(&text).ok())
    }

    fn lets_see(&self, root: &Path, path: &Path) -> bool {
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
        let mut changes = Changes::of(folder.path()).unwrap();
        make(folder.path());
        // The last one always counts: it ends the wait, so that nothing depends on how long one waits.
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
    async fn a_wait_that_is_given_up_loses_no_change() {
        let folder = tempfile::tempdir().unwrap();
        let mut changes = Changes::of(folder.path()).unwrap();
        std::fs::write(folder.path().join("a"), "").unwrap();
        // Given up while it waits for quiet.
        while changes.first.is_none() {
            let _ = tokio::time::timeout(Duration::from_millis(1), changes.next()).await;
        }
        let told = tokio::time::timeout(Duration::from_secs(20), changes.next()).await;
        assert!(told.unwrap().unwrap().ends_with("a"));
    }

    #[tokio::test]
    async fn what_a_build_would_not_see_is_no_change() {
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
