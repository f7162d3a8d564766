//! The program of an SSH server, for tests that start one: the machine's if it has one, otherwise
//! Debian's, unpacked and not installed.
//!
//! Root's `sshd` requires a user `sshd` and a folder `/run/sshd`. The script below starts it in a
//! mount namespace that has both. The machine gets neither.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cache::{self, Cache, Lock};
use crate::packages;

/// Packages of the server and of its libraries that a minimal Debian 12 with an SSH client lacks.
const PACKAGES: &[&str] = &[
    "openssh-server",
    "libaudit1",
    "libnsl2",
    "libpam0g",
    "libselinux1",
    "libsystemd0",
    "libtirpc3",
    "libwrap0",
];

/// Line of `/etc/passwd` for the unprivileged part of sshd.
const USER: &str = "sshd:x:65533:65534::/run/sshd:/bin/false\n";

/// Returns a program with the arguments of `sshd`. With `-D` it stays in the foreground.
pub(crate) fn get(cache: &Cache, _lock: &Lock) -> Result<PathBuf> {
    let own = cache.path("sshd/sshd");
    let named = std::env::var_os("ACRTASK_TEST_SSHD").map(PathBuf::from);
    if let Some(named) = named.filter(|named| !named.as_os_str().is_empty() && *named != own) {
        return Ok(named);
    }
    let installed = Path::new("/usr/sbin/sshd");
    let (program, libraries) = if installed.is_file() {
        (installed.to_owned(), None)
    } else {
        let instead = "ACRTASK_TEST_SSHD to a program that takes the arguments of sshd";
        let root = packages::unpacked(cache, "sshd", PACKAGES, instead)?;
        let libraries = packages::libraries(&root)?;
        (root.join("usr/sbin/sshd"), Some(libraries))
    };
    let folder = cache.dir("sshd")?;
    let users = fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
    let users_file = folder.join("passwd");
    cache::write_whole(&users_file, &format!("{}\n{USER}", users.trim_end()))?;
    let path = own;
    let text = script(&program, libraries.as_deref(), &users_file);
    if fs::read_to_string(&path).is_ok_and(|there| there == text) {
        return Ok(path);
    }
    cache::write_whole(&path, &text)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot make {} a program", path.display()))?;
    Ok(path)
}

fn script(program: &Path, libraries: Option<&str>, users: &Path) -> String {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    let libraries = libraries.map_or_else(String::new, |path| {
        format!("export LD_LIBRARY_PATH={}\n", quoted(path))
    });
    let program = quoted(&program.to_string_lossy());
    let users = quoted(&users.to_string_lossy());
    format!(
        "#!/bin/sh\n# Root's sshd requires a user and a folder. Both exist in this mount namespace only.\n{libraries}\
         if [ \"$(id -u)\" = 0 ]; then\n  \
         exec unshare --mount -- sh -ec '\n    \
         mount --bind \"$0\" /etc/passwd\n    \
         mount -t tmpfs -o mode=755 none /run\n    \
         mkdir /run/sshd\n    \
         exec \"$@\"' {users} {program} \"$@\"\nfi\n\
         exec {program} \"$@\"\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_quote_their_paths() {
        let text = script(Path::new("/a b/it's/sshd"), Some("/lib"), Path::new("/p w"));
        assert!(
            text.contains(r"exec '/a b/it'\''s/sshd' ") && text.contains("'/p w'"),
            "unexpected script:\n{text}"
        );
        assert!(text.contains("export LD_LIBRARY_PATH='/lib'\n"));
    }
}
