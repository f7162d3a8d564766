//! The tracer of system calls, for the test of hostile inputs: the machine's if it has one,
//! otherwise Debian's, unpacked and not installed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cache::{self, Cache, Lock};
use crate::packages;

/// Packages of the program and of its library that a minimal Debian 12 lacks.
const PACKAGES: &[&str] = &["libunwind8", "strace"];

/// Returns a program with the arguments of `strace`.
pub(crate) fn get(cache: &Cache, _lock: &Lock) -> Result<PathBuf> {
    let own = cache.path("strace/strace");
    let named = std::env::var_os("ACRTASK_TEST_STRACE").map(PathBuf::from);
    if let Some(named) = named.filter(|named| !named.as_os_str().is_empty() && *named != own) {
        return Ok(named);
    }
    let installed = Path::new("/usr/bin/strace");
    if installed.is_file() {
        return Ok(installed.to_owned());
    }
    let instead = "ACRTASK_TEST_STRACE to a program that takes the arguments of strace";
    let root = packages::unpacked(cache, "strace", PACKAGES, instead)?;
    let text = script(&root.join("usr/bin/strace"), &packages::libraries(&root)?);
    cache.dir("strace")?;
    if fs::read_to_string(&own).is_ok_and(|there| there == text) {
        return Ok(own);
    }
    cache::write_whole(&own, &text)?;
    fs::set_permissions(&own, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot make {} a program", own.display()))?;
    Ok(own)
}

/// Script that gives the libraries to strace and not to the traced program.
fn script(program: &Path, libraries: &str) -> String {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    format!(
        "#!/bin/sh\nLD_LIBRARY_PATH={} exec {} -E LD_LIBRARY_PATH \"$@\"\n",
        quoted(libraries),
        quoted(&program.to_string_lossy())
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_quote_their_paths() {
        let text = script(Path::new("/a b/it's/strace"), "/lib");
        assert!(
            text.contains(r"LD_LIBRARY_PATH='/lib' exec '/a b/it'\''s/strace' -E"),
            "unexpected script:\n{text}"
        );
    }
}
