//! The floor of free disk: below it the server stores nothing more that can wait.
//!
//! A database without room for its own writes would lose what it has accepted. Left out: object stores and PostgreSQL,
//! whose room only they know.

use std::path::PathBuf;

/// The floor, and the folders that it holds for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskFloor {
    /// Bytes that stay free. 0: no floor.
    pub bytes: u64,
    /// Folders of the database and of the blobs.
    pub folders: Vec<PathBuf>,
}

impl DiskFloor {
    /// Refuses to store more where a folder has less free than the floor.
    ///
    /// # Errors
    /// The folder, its free bytes and the floor, as a sentence.
    pub fn check(&self) -> Result<(), String> {
        if self.bytes == 0 {
            return Ok(());
        }
        for folder in &self.folders {
            // A file system that does not say how much is free has no floor.
            let Ok(found) = nix::sys::statvfs::statvfs(folder) else {
                continue;
            };
            let free = found
                .blocks_available()
                .saturating_mul(found.fragment_size());
            if free < self.bytes {
                return Err(format!(
                    "the server has {free} bytes of free disk in {}, and --min-free-disk keeps {} free",
                    folder.display(),
                    self.bytes
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_below_the_floor_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let floor = |bytes| DiskFloor {
            bytes,
            folders: vec![folder.path().to_owned()],
        };
        assert_eq!(floor(0).check(), Ok(()));
        assert_eq!(floor(1).check(), Ok(()));
        let refused = floor(u64::MAX).check().unwrap_err();
        assert!(refused.contains("--min-free-disk"), "{refused}");
    }
}
