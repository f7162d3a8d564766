//! The runner's key and its state folder.
//!
//! The key is stored before its first use: atomically, and readable only by this user. One running
//! runner owns the folder through a lock that ends with its process.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use acrtask_model::Secret;
use serde::{Deserialize, Serialize};

use crate::error::AgentError;

const KEY_FILE: &str = "runner.json";
const LOCK_FILE: &str = "lock";
const SPOOL_DIR: &str = "spool";
const WORK_DIR: &str = "work";

/// Credentials that a runner receives when it registers.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    /// The runner's id.
    pub(crate) runner: String,
    /// The registered name.
    pub(crate) name: String,
    /// The secret key.
    pub(crate) key: Secret,
}

#[derive(Serialize, Deserialize)]
struct StoredKey {
    runner: String,
    name: String,
    key: String,
}

/// State folder of a runner.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Creates the folder if it is missing, locks it, and removes the files of an earlier process.
    pub(crate) fn open(path: &Path) -> Result<Self, AgentError> {
        let shown_path = path.display();
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
            .map_err(AgentError::state(format!("find the folder {shown_path}")))?;
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path.join(LOCK_FILE))
            .map_err(AgentError::state(format!("lock the folder {shown_path}")))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(AgentError::InUse { path }),
            Err(fs::TryLockError::Error(error)) => {
                return Err(AgentError::state(format!("lock the folder {shown_path}"))(
                    error,
                ));
            }
        }
        // The runs of an earlier process are leased to others, or will be. The owner files in the
        // work folder decide what is removed there.
        let spool = path.join(SPOOL_DIR);
        if let Err(error) = fs::remove_dir_all(&spool)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(AgentError::state(format!("empty {}", spool.display()))(
                error,
            ));
        }
        make(&spool)?;
        make(&path.join(WORK_DIR))?;
        Ok(Self { path, _lock: lock })
    }

    /// Returns the path of the folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the folder of logs.
    pub(crate) fn spool(&self) -> PathBuf {
        self.path.join(SPOOL_DIR)
    }

    /// Returns the folder of the files of runs.
    pub(crate) fn work(&self) -> PathBuf {
        self.path.join(WORK_DIR)
    }

    /// Returns the path of the key file.
    pub(crate) fn key_path(&self) -> PathBuf {
        self.path.join(KEY_FILE)
    }

    /// Reads the key. `None` if this runner has not registered.
    pub(crate) fn read_key(&self) -> Result<Option<Key>, AgentError> {
        let path = self.key_path();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(AgentError::state(format!("read {}", path.display()))(error));
            }
        };
        // The error of the parser may quote the key.
        let stored: StoredKey = serde_json::from_str(&text).map_err(|_| AgentError::Key {
            path,
            reason: "its content was not written by a runner".into(),
        })?;
        Ok(Some(Key {
            runner: stored.runner,
            name: stored.name,
            key: Secret::new(stored.key),
        }))
    }

    /// Stores the key.
    pub(crate) fn write_key(&self, key: &Key) -> Result<(), AgentError> {
        let path = self.key_path();
        let write = || {
            let text = serde_json::to_string(&StoredKey {
                runner: key.runner.clone(),
                name: key.name.clone(),
                key: key.key.expose().to_owned(),
            })?;
            let part = self.path.join(format!("{KEY_FILE}.part"));
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
    fn key_is_readable_only_by_its_user() {
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
    fn folder_belongs_to_one_runner_and_old_logs_are_removed() {
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
