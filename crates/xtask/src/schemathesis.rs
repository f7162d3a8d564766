//! Schemathesis, which compares the server with its OpenAPI document: Python packages in a folder
//! of the cache, in the versions of `schemathesis/requirements.txt`. Nothing is installed on the
//! machine.
//!
//! The interpreter is the machine's `python3`, else Debian's, unpacked. The packages depend on its
//! version, and on nothing else of the machine.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::cache::{self, Cache, Lock, short_hash};
use crate::process::run_logged;
use crate::{packages, progress};

/// The variable that names the program for the tests.
pub(crate) const VARIABLE: &str = "ACRTASK_TEST_SCHEMATHESIS";
/// Versions of schemathesis and of all that it depends on.
const REQUIREMENTS: &str = include_str!("../schemathesis/requirements.txt");
/// Oldest Python that these versions support.
const OLDEST: (u32, u32) = (3, 10);
const INSTEAD: &str = "ACRTASK_TEST_SCHEMATHESIS to a program that takes the arguments of `st`";
/// Python of Debian 12, with the libraries that a minimal system lacks.
const PYTHON: &[&str] = &[
    "libexpat1",
    "libffi8",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libsqlite3-0",
    "libssl3",
    "python3.11",
    "python3.11-minimal",
];
/// Pip as one file that Python imports.
const PIP: &[&str] = &["python3-pip-whl"];

/// An interpreter, and the libraries that it needs beside the machine's.
struct Python {
    program: PathBuf,
    libraries: String,
    version: (u32, u32),
}

/// Returns the program that the user named, else one in the cache. Installs it unless an earlier
/// command did.
pub(crate) fn get(cache: &Cache, _lock: &Lock) -> Result<PathBuf> {
    let own = cache.path("schemathesis/st");
    let named = std::env::var_os(VARIABLE).map(PathBuf::from);
    if let Some(named) = named.filter(|named| !named.as_os_str().is_empty() && *named != own) {
        return Ok(named);
    }
    let python = match Python::of_machine() {
        Some(python) => python,
        None => Python::unpacked(cache)?,
    };
    let (major, minor) = python.version;
    let name = format!(
        "schemathesis-python{major}.{minor}-{}",
        short_hash(REQUIREMENTS)
    );
    let folder = cache.dir_once(&name, |dir| {
        progress::announce(format!(
            "Installing schemathesis for Python {major}.{minor} into {}",
            cache.root().display()
        ));
        install(cache, &python, dir)
            .with_context(|| format!("cannot install schemathesis (set {INSTEAD})"))
    })?;
    let text = script(&python, &folder);
    cache.dir("schemathesis")?;
    if !fs::read_to_string(&own).is_ok_and(|there| there == text) {
        cache::write_whole(&own, &text)?;
        fs::set_permissions(&own, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("cannot make {} a program", own.display()))?;
    }
    Ok(own)
}

impl Python {
    /// Returns the machine's interpreter. `None` if there is none, or an old one.
    fn of_machine() -> Option<Self> {
        let program = PathBuf::from("python3");
        let version = version(&program, "")?;
        (version >= OLDEST).then(|| Self {
            program,
            libraries: String::new(),
            version,
        })
    }

    /// Unpacks Debian's interpreter.
    fn unpacked(cache: &Cache) -> Result<Self> {
        let root = packages::unpacked(cache, "python", PYTHON, INSTEAD)?;
        let libraries = packages::libraries(&root)?;
        let program = root.join("usr/bin/python3.11");
        let version = version(&program, &libraries)
            .with_context(|| format!("{} does not run", program.display()))?;
        Ok(Self {
            program,
            libraries,
            version,
        })
    }

    /// Runs the interpreter with the modules in `path`.
    fn command(&self, path: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command.env("PYTHONPATH", path);
        if !self.libraries.is_empty() {
            command.env("LD_LIBRARY_PATH", &self.libraries);
        }
        command
    }
}

/// Returns the version of an interpreter that has the modules for pip. `None` if it does not run.
fn version(program: &Path, libraries: &str) -> Option<(u32, u32)> {
    let mut command = Command::new(program);
    if !libraries.is_empty() {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    let output = command
        .args(["-c", "import ssl, sys, zlib; print(*sys.version_info[:2])"])
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (major, minor) = text.trim().split_once(' ')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn install(cache: &Cache, python: &Python, into: &Path) -> Result<()> {
    let log = cache.dir("logs")?.join("schemathesis.log");
    let has_pip = python
        .command(Path::new(""))
        .args(["-m", "pip", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    let pip = if has_pip {
        PathBuf::new()
    } else {
        let wheels = packages::unpacked(cache, "pip", PIP, INSTEAD)?;
        let wheels = wheels.join("usr/share/python-wheels");
        let mut found = fs::read_dir(&wheels)
            .with_context(|| format!("cannot list {}", wheels.display()))?
            .filter_map(|entry| Some(entry.ok()?.path()));
        found
            .find(|path| path.to_string_lossy().contains("/pip-"))
            .with_context(|| format!("{} contains no pip", wheels.display()))?
    };
    let requirements = into.join("requirements.txt");
    fs::write(&requirements, REQUIREMENTS)
        .with_context(|| format!("cannot write {}", requirements.display()))?;
    run_logged(
        python
            .command(&pip)
            .args(["-m", "pip", "install", "--quiet", "--no-deps"])
            .args(["--only-binary=:all:", "--no-compile", "--target"])
            .arg(into)
            .arg("--requirement")
            .arg(&requirements)
            .env("PIP_ROOT_USER_ACTION", "ignore"),
        &log,
    )
}

/// Returns the text of the program that starts schemathesis.
fn script(python: &Python, folder: &Path) -> String {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    let libraries = match python.libraries.as_str() {
        "" => String::new(),
        folders => format!("LD_LIBRARY_PATH={} ", quoted(folders)),
    };
    format!(
        "#!/bin/sh\n\
         {libraries}PYTHONPATH={}:\"$PYTHONPATH\" PYTHONDONTWRITEBYTECODE=1 exec {} -m schemathesis.cli \"$@\"\n",
        quoted(&folder.to_string_lossy()),
        quoted(&python.program.to_string_lossy())
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_requirement_has_an_exact_version() {
        for line in REQUIREMENTS.lines() {
            assert!(line.contains("=="), "{line}");
        }
        assert!(REQUIREMENTS.contains("schemathesis=="));
    }

    #[test]
    fn scripts_start_the_interpreter_with_its_packages() {
        let mut python = Python {
            program: "python3".into(),
            libraries: String::new(),
            version: OLDEST,
        };
        let text = script(&python, Path::new("/it's"));
        assert!(
            text.contains(r"PYTHONPATH='/it'\''s':") && text.contains("exec 'python3' -m"),
            "unexpected script:\n{text}"
        );
        python.libraries = "/lib".into();
        assert!(script(&python, Path::new("/a")).contains("\nLD_LIBRARY_PATH='/lib' PYTHONPATH"));
    }
}
