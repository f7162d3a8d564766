//! The cache folder for all that these commands set up. Checkouts share it.
//!
//! `$XDG_CACHE_HOME/acrtask-dev`, else `~/.cache/acrtask-dev`:
//!
//! ```text
//! lock             locked while a command sets up or removes something
//! tools-HASH/      Debian packages, unpacked and not installed
//! rootfs-HASH/     Debian trixie with a Docker Engine
//! engine/          the engine's data; run/ its socket
//! registry/        the registry's data, its configuration, its port; the same for registry-auth/
//! postgres/        a PostgreSQL: data/, its port, bin/ with its programs as scripts; postgres-HASH/ where they were unpacked
//! sshd/            an SSH server's program, for tests that start one
//! registry-tools-HASH/  programs of others for registries: crane, oras, cosign, notation
//! github-examples-VERSION/  deliveries that GitHub publishes
//! axe-core-VERSION/  rules of accessibility for the web page
//! browser-HASH/    Debian trixie with Chromium; browser/ its chromedriver as a script
//! schemathesis/    the program that compares the server with its API document; schemathesis-PYTHON-HASH/ its packages
//! azure-cli/       the command line of Azure; azure-cli-PYTHON-HASH/ its packages
//! logs/            output of each service
//! env              the variables that tests and users export
//! ```
//!
//! A folder that takes long to fill has a temporary name until it is complete. HASH is the hash of
//! the recipe, so checkouts with different recipes do not disturb each other.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::progress;

/// The cache folder.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    root: PathBuf,
}

/// Lock that keeps other checkouts from changing the cache.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Cache {
    /// Finds the folder of this user. Does not create it.
    pub(crate) fn locate() -> Result<Self> {
        let base = match std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from) {
            Some(dir) if dir.is_absolute() => dir,
            _ => std::env::home_dir()
                .filter(|home| home.is_absolute())
                .context("neither XDG_CACHE_HOME nor HOME names a folder to keep the set-up in")?
                .join(".cache"),
        };
        Ok(Self {
            root: base.join("acrtask-dev"),
        })
    }

    /// The folder itself.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Returns a path inside the folder.
    pub(crate) fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.root.join(relative)
    }

    /// Returns a subfolder. Creates it if it is missing.
    pub(crate) fn dir(&self, relative: impl AsRef<Path>) -> Result<PathBuf> {
        let dir = self.path(relative);
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(dir)
    }

    /// Returns the mark of this folder: a word in the command line of each of its processes, and of
    /// no other process.
    pub(crate) fn mark(&self) -> String {
        format!("acrtask-dev-{}", short_hash(&self.root.to_string_lossy()))
    }

    /// Locks the folder. Waits for the command that has locked it.
    pub(crate) fn lock(&self) -> Result<Lock> {
        let path = self.dir("")?.join("lock");
        let file =
            File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                progress::announce(format!(
                    "Waiting for another `cargo xtask` that holds {}",
                    path.display()
                ));
                file.lock()
                    .with_context(|| format!("cannot lock {}", path.display()))?;
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
        Ok(Lock { _file: file })
    }

    /// Creates the folder `NAME` and fills it, unless it exists.
    pub(crate) fn dir_once(
        &self,
        name: &str,
        fill: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let whole = self.path(name);
        if whole.is_dir() {
            return Ok(whole);
        }
        let partial = self.path(format!("{name}.partial"));
        remove_tree(&partial)?;
        fs::create_dir_all(&partial)
            .with_context(|| format!("cannot create {}", partial.display()))?;
        fill(&partial)?;
        fs::rename(&partial, &whole).with_context(|| {
            format!("cannot rename {} to {}", partial.display(), whole.display())
        })?;
        Ok(whole)
    }
}

/// Writes a file atomically: a reader sees the old or the new content.
pub(crate) fn write_whole(path: &Path, content: &str) -> Result<()> {
    let partial = path.with_added_extension("partial");
    fs::write(&partial, content).with_context(|| format!("cannot write {}", partial.display()))?;
    fs::rename(&partial, path).with_context(|| format!("cannot write {}", path.display()))
}

/// Removes a folder with its content. Refuses while a file system is mounted below it, because the
/// removal would empty that file system.
pub(crate) fn remove_tree(dir: &Path) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    let dir = dir
        .canonicalize()
        .with_context(|| format!("cannot resolve {}", dir.display()))?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
    if let Some(mounted) = mount_points(&mounts).find(|mount| mount.starts_with(&dir)) {
        bail!(
            "{} is still mounted, so {} is not removed; unmount it and try again",
            mounted.display(),
            dir.display()
        );
    }
    fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))
}

/// Returns the mount points of a `mountinfo` file (proc(5): the fifth field, blanks as `\040`).
fn mount_points(mountinfo: &str) -> impl Iterator<Item = PathBuf> {
    mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|point| PathBuf::from(point.replace(r"\040", " ")))
}

/// Returns the first eight hexadecimal digits of the SHA-256 of a text.
pub(crate) fn short_hash(text: &str) -> String {
    let digest = Sha256::digest(text);
    digest[..4]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_with_blanks() {
        let text =
            "21 1 254:0 / / rw - ext4 /dev/vda rw\n30 21 0:4 / /a\\040b/proc rw - proc proc rw\n";
        let points: Vec<_> = mount_points(text).collect();
        assert_eq!(points, [PathBuf::from("/"), PathBuf::from("/a b/proc")]);
    }

    #[test]
    fn incomplete_folder_is_created_again() {
        let base = std::env::temp_dir().join(format!("xtask-cache-{}", std::process::id()));
        let cache = Cache { root: base.clone() };
        let interrupted = cache.dir_once("thing", |dir| {
            fs::write(dir.join("half"), "")?;
            bail!("killed")
        });
        assert!(interrupted.is_err());
        assert!(!cache.path("thing").exists());
        let made = cache
            .dir_once("thing", |dir| Ok(fs::write(dir.join("whole"), "")?))
            .unwrap();
        assert!(made.join("whole").exists() && !made.join("half").exists());
        cache.dir_once("thing", |_| panic!("made twice")).unwrap();
        fs::remove_dir_all(base).unwrap();
    }
}
