//! The runner's key and the folder that it lies in.
//!
//! The key is written before it is used for anything: whole or not at all, readable by this user alone. The folder
//! belongs to one running runner; a lock that ends with its process says which.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use acrtask_model::Secret;
use serde::{Deserialize, Serialize};

use crate::error::AgentError;

const KEY: &str = "runner.json";
const LOCK: &str = "lock";
const SPOOL: &str = "spool";
const WORK: &str = "work";

/// What a runner was given when it registered.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    /// Its id.
    pub(crate) runner: String,
    /// The name that it registered with.
    pub(crate) name: String,
    /// The key itself.
    pub(crate) key: Secret,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    runner: String,
    name: String,
    key: String,
}

/// The folder that a runner keeps its things in.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Makes it where it is missing, takes its lock, and removes what a runner that has ended left in it.
    pub(crate) fn open(path: &Path) -> Result<Self, AgentError> {
        let in_words = path.display();
        let make = |folder: &Path| {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .map_err(AgentError::state(format!(
                    "make the folder {}",
                    folder.display()
                )))
        };
        make(path)?;
        let path = fs::canonicalize(path)
            .map_err(AgentError::state(format!("find the folder {in_words}")))?;
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path.join(LOCK))
            .map_err(AgentError::state(format!("lock the folder {in_words}")))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(AgentError::InUse { path }),
            Err(fs::TryLockError::Error(error)) => {
                return Err(AgentError::state(format!("lock the folder {in_words}"))(
                    error,
                ));
            }
        }
        // Their runs have been given to others, or will be when their leases end. What has an owner of its own in
        // the other folder is judged by that.
        let spool = path.join(SPOOL);
        if let Err(error) = fs::remove_dir_all(&spool)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(AgentError::state(format!("empty {}", spool.display()))(
                error,
            ));
        }
        make(&spool)?;
        make(&path.join(WORK))?;
        Ok(Self { path, _lock: lock })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where logs are kept.
    pub(crate) fn spool(&self) -> PathBuf {
        self.path.join(SPOOL)
    }

    /// Where the files of runs are.
    pub(crate) fn work(&self) -> PathBuf {
        self.path.join(WORK)
    }

    /// Where the key is.
    pub(crate) fn key_path(&self) -> PathBuf {
        self.path.join(KEY)
    }

    /// The key; nothing where this runner has not registered.
    pub(crate) fn read_key(&self) -> Result<Option<Key>, AgentError> {
        let path = self.key_path();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(AgentError::state(format!("read {}", path.display()))(error));
            }
        };
        // What the parser says may hold a part of the text.
        let stored: Stored = serde_json::from_str(&text).map_err(|_| AgentError::Key {
            path,
            reason: "it is not what a runner writes".into(),
        })?;
        Ok(Some(Key {
            runner: stored.runner,
            name: stored.name,
            key: Secret::new(stored.key),
        }))
    }

    /// Keeps the key.
    pub(crate) fn write_key(&self, key: &Key) -> Result<(), AgentError> {
        let path = self.key_path();
        let write = || {
            let text = serde_json::to_string(&Stored {
                runner: key.runner.clone(),
                name: key.name.clone(),
                key: key.key.expose().to_owned(),
            })?;
            let part = self.path.join(format!("{KEY}.part"));
            let _ = fs::remove_file(&part);
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&part)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&part, &path)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(AgentError::state(format!(
            "write the key to {}",
            path.display()
        )))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_kept_for_this_user_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/state");
        let state = StateDir::open(&path).unwrap();
        assert!(state.read_key().unwrap().is_none());
        for key in ["one", "two"] {
            let key = Key {
                runner: "id".into(),
                name: "name".into(),
                key: Secret::new(key),
            };
            state.write_key(&key).unwrap();
        }
        let read = state.read_key().unwrap().unwrap();
        assert_eq!((read.runner.as_str(), read.key.expose()), ("id", "two"));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&state.key_path()), 0o600);
        assert_eq!(mode(&path), 0o700);
        fs::write(state.key_path(), "{\"key\": 1, \"hush\"").unwrap();
        let error = state.read_key().unwrap_err().to_string();
        assert!(
            error.contains("register again") && !error.contains("hush"),
            "{error}"
        );
    }

    #[test]
    fn a_folder_is_one_runners_and_old_logs_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let first = StateDir::open(folder.path()).unwrap();
        fs::write(first.spool().join("r1.1"), "old").unwrap();
        let second = StateDir::open(folder.path());
        assert!(matches!(second, Err(AgentError::InUse { .. })));
        assert!(first.spool().join("r1.1").exists());
        drop(first);
        let again = StateDir::open(folder.path()).unwrap();
        assert_eq!(fs::read_dir(again.spool()).unwrap().count(), 0);
    }
}
