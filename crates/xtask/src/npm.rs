//! Webhook deliveries that GitHub publishes as an npm package. The tests of `acrtask-trigger` read
//! them. The package is unpacked into the cache and contains data only.
//!
//! `npm` downloads it if it is installed, otherwise apt's download helper. The digest below must
//! match.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha512};

use crate::cache::{Cache, Lock};
use crate::process::run_logged;
use crate::progress;

const PACKAGE: &str = "@octokit/webhooks-examples";
const VERSION: &str = "7.6.1";
const URL: &str =
    "https://registry.npmjs.org/@octokit/webhooks-examples/-/webhooks-examples-7.6.1.tgz";
const SHA512: &str = "0dee94dd707a3b70ed09aedb2a008ccd31dd7a8a6aa99e92362bcc6099caeb989eaca2f5027348034b644580914bb970193efdd9df8fb3559b7c796ca3a3329d";
const APT_HELPER: &str = "/usr/lib/apt/apt-helper";

/// Variable that names the folder for the tests.
pub(crate) const VARIABLE: &str = "ACRTASK_TEST_GITHUB_EXAMPLES";

/// Returns the folder that the user named, or the one in the cache. Downloads the latter if it is
/// missing.
pub(crate) fn github_examples(cache: &Cache, _lock: &Lock) -> Result<PathBuf> {
    let name = format!("github-examples-{VERSION}");
    let own = cache.path(&name).join("package");
    if let Some(named) = std::env::var_os(VARIABLE).filter(|named| !named.is_empty())
        && named != own
    {
        progress::report(format!("the examples in {} are used", named.display()));
        return Ok(named.into());
    }
    let folder = cache.dir_once(&name, |dir| {
        progress::announce(format!(
            "Fetching {PACKAGE} {VERSION} into {} (nothing is installed)",
            cache.root().display()
        ));
        let log = cache.dir("logs")?.join("npm.log");
        let archive = dir.join("package.tgz");
        fetch(dir, &archive, &log).with_context(|| {
            format!(
                "cannot fetch the npm package {PACKAGE} (set {VARIABLE} to a folder with its content to use that)"
            )
        })?;
        unpack(&archive, dir, &log)
    })?;
    Ok(folder.join("package"))
}

fn fetch(dir: &Path, archive: &Path, log: &Path) -> Result<()> {
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
                .args(["-o", "APT::Sandbox::User=root", "download-file", URL])
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
            .arg(format!("{PACKAGE}@{VERSION}")),
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

fn unpack(archive: &Path, into: &Path, log: &Path) -> Result<()> {
    let content =
        fs::read(archive).with_context(|| format!("cannot read {}", archive.display()))?;
    let digest = format!("{:x}", Sha512::digest(&content));
    if digest != SHA512 {
        bail!("{PACKAGE} {VERSION} has the SHA-512 {digest}, and should have {SHA512}");
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
