//! npm packages that tests read, unpacked into the cache. No code of them runs here.
//!
//! `npm` downloads them if it is installed, otherwise apt's download helper. The digest of each
//! archive must match.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha512};

use crate::cache::{Cache, Lock};
use crate::process::run_logged;
use crate::progress;

const APT_HELPER: &str = "/usr/lib/apt/apt-helper";

/// A package with its pinned content.
#[derive(Debug)]
pub(crate) struct Package {
    /// Variable that names the folder for the tests.
    pub(crate) variable: &'static str,
    /// Folder in the cache, without the version.
    folder: &'static str,
    name: &'static str,
    version: &'static str,
    url: &'static str,
    sha512: &'static str,
}

/// Webhook deliveries that GitHub publishes. The tests of `acrtask-trigger` read them.
pub(crate) const GITHUB_EXAMPLES: Package = Package {
    variable: "ACRTASK_TEST_GITHUB_EXAMPLES",
    folder: "github-examples",
    name: "@octokit/webhooks-examples",
    version: "7.6.1",
    url: "https://registry.npmjs.org/@octokit/webhooks-examples/-/webhooks-examples-7.6.1.tgz",
    sha512: "0dee94dd707a3b70ed09aedb2a008ccd31dd7a8a6aa99e92362bcc6099caeb989eaca2f5027348034b644580914bb970193efdd9df8fb3559b7c796ca3a3329d",
};

/// Rules of accessibility. The browser of the tests runs them on every page.
pub(crate) const AXE: Package = Package {
    variable: "ACRTASK_TEST_AXE",
    folder: "axe-core",
    name: "axe-core",
    version: "4.14.1",
    url: "https://registry.npmjs.org/axe-core/-/axe-core-4.14.1.tgz",
    sha512: "1477dafa598d8d065f273d6af302aa203c02e83131707b7fa648cd41bd3d6b734f8c22a0dab86ee6a6f64b8afbe804b214d36db85a2826965edfb3a0b9d546b5",
};

impl Package {
    /// Returns the folder that the user named, or the one in the cache. Downloads the latter if it
    /// is missing.
    pub(crate) fn get(&self, cache: &Cache, _lock: &Lock) -> Result<PathBuf> {
        let (package, variable) = (self.name, self.variable);
        let name = format!("{}-{}", self.folder, self.version);
        let own = cache.path(&name).join("package");
        if let Some(named) = std::env::var_os(variable).filter(|named| !named.is_empty())
            && named != own
        {
            progress::report(format!("{package} in {} is used", named.display()));
            return Ok(named.into());
        }
        let folder = cache.dir_once(&name, |dir| {
            progress::announce(format!(
                "Fetching {package} {} into {} (nothing is installed)",
                self.version,
                cache.root().display()
            ));
            let log = cache.dir("logs")?.join("npm.log");
            let archive = dir.join("package.tgz");
            self.fetch(dir, &archive, &log).with_context(|| {
                format!(
                    "cannot fetch the npm package {package} (set {variable} to a folder with its content to use that)"
                )
            })?;
            self.unpack(&archive, dir, &log)
        })?;
        Ok(folder.join("package"))
    }

    fn fetch(&self, dir: &Path, archive: &Path, log: &Path) -> Result<()> {
        let npm = Command::new("npm")
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if !npm.is_ok_and(|status| status.success()) {
            if !Path::new(APT_HELPER).exists() {
                bail!("this machine has neither npm nor apt");
            }
            return run_logged(
                Command::new(APT_HELPER)
                    .args(["-o", "APT::Sandbox::User=root", "download-file", self.url])
                    .arg(archive),
                log,
            );
        }
        let packed = dir.join("packed");
        fs::create_dir(&packed).with_context(|| format!("cannot create {}", packed.display()))?;
        run_logged(
            Command::new("npm")
                .current_dir(dir)
                .args(["pack", "--ignore-scripts", "--loglevel=error"])
                .arg("--cache")
                .arg(dir.join("npm-cache"))
                .arg("--pack-destination")
                .arg(&packed)
                .arg(format!("{}@{}", self.name, self.version)),
            log,
        )?;
        let mut entries =
            fs::read_dir(&packed).with_context(|| format!("cannot list {}", packed.display()))?;
        let made = entries.next().context("npm made no file")?;
        fs::rename(made.context("cannot list what npm made")?.path(), archive)
            .with_context(|| format!("cannot rename to {}", archive.display()))?;
        for left in ["packed", "npm-cache"] {
            crate::cache::remove_tree(&dir.join(left))?;
        }
        Ok(())
    }

    fn unpack(&self, archive: &Path, into: &Path, log: &Path) -> Result<()> {
        let content =
            fs::read(archive).with_context(|| format!("cannot read {}", archive.display()))?;
        let digest = format!("{:x}", Sha512::digest(&content));
        if digest != self.sha512 {
            bail!(
                "{} {} has the SHA-512 {digest}, and should have {}",
                self.name,
                self.version,
                self.sha512
            );
        }
        run_logged(
            Command::new("tar")
                .args(["--no-same-owner", "-xzf"])
                .arg(archive)
                .arg("-C")
                .arg(into),
            log,
        )?;
        fs::remove_file(archive).with_context(|| format!("cannot remove {}", archive.display()))
    }
}
