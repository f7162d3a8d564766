//! The browser of the tests of the web page: the machine's chromedriver with its Chromium, or
//! Debian's in a root file system of the cache.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::unistd::Uid;

use crate::cache::{self, Cache, Lock};
use crate::engine::rootfs;
use crate::packages::Tools;

/// Variable that names a program with the arguments of `chromedriver`.
pub(crate) const VARIABLE: &str = "ACRTASK_TEST_CHROMEDRIVER";

/// Packages of the root file system. debootstrap does not find the provider of a session bus, which
/// Chromium depends on. The fonts are for screenshots.
const PACKAGES: &str = "ca-certificates,chromium,chromium-driver,dbus-x11,fonts-dejavu-core";

/// Returns a program with the arguments of `chromedriver`.
pub(crate) fn get(cache: &Cache, lock: &Lock, tools: &Tools) -> Result<PathBuf> {
    let own = cache.path("browser/chromedriver");
    let named = std::env::var_os(VARIABLE).map(PathBuf::from);
    if let Some(named) = named.filter(|named| !named.as_os_str().is_empty() && *named != own) {
        return Ok(named);
    }
    let installed = Path::new("/usr/bin/chromedriver");
    if installed.is_file() && Path::new("/usr/bin/chromium").is_file() {
        return Ok(installed.to_owned());
    }
    if !Uid::effective().is_root() {
        bail!(
            "the tests of the web page need Chromium: install Debian's packages chromium and \
             chromium-driver, or set {VARIABLE} to a chromedriver, or run this as root to have \
             them in the cache"
        );
    }
    let root = rootfs::install(cache, lock, tools, "browser", PACKAGES)
        .context("cannot install Debian with Chromium")?;
    let text = script(&root);
    cache.dir("browser")?;
    if fs::read_to_string(&own).is_ok_and(|there| there == text) {
        return Ok(own);
    }
    cache::write_whole(&own, &text)?;
    fs::set_permissions(&own, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot make {} a program", own.display()))?;
    Ok(own)
}

/// Script that runs the chromedriver of `root` there. Its mounts and all its processes end with it.
fn script(root: &Path) -> String {
    let root = root.to_string_lossy().replace('\'', r"'\''");
    format!(
        "#!/bin/sh\n\
         # The mounts exist in this mount namespace only.\n\
         exec unshare --mount --pid --fork --kill-child -- sh -ec '\n  \
         mount -t proc proc \"$0/proc\"\n  \
         mount --rbind /dev \"$0/dev\"\n  \
         mount -t tmpfs tmpfs \"$0/tmp\"\n  \
         # Chromedriver connects to \"localhost\".\n  \
         cp /etc/hosts \"$0/etc/hosts\"\n  \
         exec chroot \"$0\" /usr/bin/chromedriver \"$@\"' '{root}' \"$@\"\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn script_quotes_the_folder() {
        let text = script(Path::new("/a b/it's"));
        assert!(
            text.ends_with("\"$@\"' '/a b/it'\\''s' \"$@\"\n"),
            "unexpected script:\n{text}"
        );
    }
}
