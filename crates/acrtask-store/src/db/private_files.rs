//! Permissions of the files of a SQLite database.

use std::path::Path;

/// Makes `path` and SQLite's companion files readable only for their owner. SQLite gives new
/// companion files the mode of the database.
pub(super) fn restrict_permissions(path: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
        std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        for beside in ["", "-wal", "-shm", "-journal"] {
            let mut name = path.as_os_str().to_owned();
            name.push(beside);
            let Ok(found) = std::fs::metadata(&name) else {
                continue;
            };
            let mode = found.permissions().mode();
            if mode & 0o077 != 0 {
                tracing::warn!(
                    file = %name.display(),
                    mode = format!("{:o}", mode & 0o777),
                    "closing a database file to other users of the machine"
                );
                std::fs::set_permissions(&name, std::fs::Permissions::from_mode(0o600))?;
            }
        }
    }
    Ok(())
}
