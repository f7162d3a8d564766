//! Programs in Python that tests use: packages in a folder of the cache, in the versions of
//! `python/PROGRAM.txt`. Nothing is installed on the machine.
//!
//! Schemathesis compares the server with its OpenAPI document. The Azure CLI uses the server as an
//! Azure registry.
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

/// A program in Python.
#[derive(Debug)]
pub(crate) struct Program {
    /// Name of its folder in the cache.
    name: &'static str,
    /// Name of its command.
    command: &'static str,
    /// Module that starts it.
    module: &'static str,
    /// The variable that names the program for the tests.
    pub(crate) variable: &'static str,
    /// Versions of the program and of all that it depends on.
    requirements: &'static str,
}

/// The program that compares the server with its OpenAPI document.
pub(crate) const SCHEMATHESIS: Program = Program {
    name: "schemathesis",
    command: "st",
    module: "schemathesis.cli",
    variable: "ACRTASK_TEST_SCHEMATHESIS",
    requirements: include_str!("../python/schemathesis.txt"),
};
/// The command line of Azure.
pub(crate) const AZURE_CLI: Program = Program {
    name: "azure-cli",
    command: "az",
    module: "azure.cli",
    variable: "ACRTASK_TEST_AZ",
    requirements: include_str!("../python/azure-cli.txt"),
};
/// Oldest Python that these versions support.
const OLDEST: (u32, u32) = (3, 10);
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
pub(crate) fn get(cache: &Cache, _lock: &Lock, wanted: &Program) -> Result<PathBuf> {
    let own = cache.path(format!("{}/{}", wanted.name, wanted.command));
    let named = std::env::var_os(wanted.variable).map(PathBuf::from);
    if let Some(named) = named.filter(|named| !named.as_os_str().is_empty() && *named != own) {
        return Ok(named);
    }
    let instead = wanted.instead();
    let python = match Python::of_machine() {
        Some(python) => python,
        None => Python::unpacked(cache, &instead)?,
    };
    let (major, minor) = python.version;
    let name = format!(
        "{}-python{major}.{minor}-{}",
        wanted.name,
        short_hash(wanted.requirements)
    );
    let folder = cache.dir_once(&name, |dir| {
        progress::announce(format!(
            "Installing {} for Python {major}.{minor} into {}",
            wanted.name,
            cache.root().display()
        ));
        install(cache, &python, wanted, dir)
            .with_context(|| format!("cannot install {} (set {instead})", wanted.name))
    })?;
    let text = script(&python, &folder, wanted.module);
    cache.dir(wanted.name)?;
    if !fs::read_to_string(&own).is_ok_and(|there| there == text) {
        cache::write_whole(&own, &text)?;
        fs::set_permissions(&own, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("cannot make {} a program", own.display()))?;
    }
    Ok(own)
}

impl Program {
    /// Returns the advice for a machine that cannot install the program.
    fn instead(&self) -> String {
        format!(
            "{} to a program that takes the arguments of `{}`",
            self.variable, self.command
        )
    }
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
    fn unpacked(cache: &Cache, instead: &str) -> Result<Self> {
        let root = packages::unpacked(cache, "python", PYTHON, instead)?;
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

fn install(cache: &Cache, python: &Python, wanted: &Program, into: &Path) -> Result<()> {
    let log = cache.dir("logs")?.join(format!("{}.log", wanted.name));
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
        let wheels = packages::unpacked(cache, "pip", PIP, &wanted.instead())?;
        let wheels = wheels.join("usr/share/python-wheels");
        let mut found = fs::read_dir(&wheels)
            .with_context(|| format!("cannot list {}", wheels.display()))?
            .filter_map(|entry| Some(entry.ok()?.path()));
        found
            .find(|path| path.to_string_lossy().contains("/pip-"))
            .with_context(|| format!("{} contains no pip", wheels.display()))?
    };
    let requirements = into.join("requirements.txt");
    fs::write(&requirements, wanted.requirements)
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

/// Returns the text of the program that starts `module`.
fn script(python: &Python, folder: &Path, module: &str) -> String {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    let libraries = match python.libraries.as_str() {
        "" => String::new(),
        folders => format!("LD_LIBRARY_PATH={} ", quoted(folders)),
    };
    format!(
        "#!/bin/sh\n\
         {libraries}PYTHONPATH={}:\"$PYTHONPATH\" PYTHONDONTWRITEBYTECODE=1 exec {} -m {module} \"$@\"\n",
        quoted(&folder.to_string_lossy()),
        quoted(&python.program.to_string_lossy())
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_requirement_has_an_exact_version() {
        for program in [SCHEMATHESIS, AZURE_CLI] {
            for line in program.requirements.lines() {
                assert!(line.contains("=="), "{line}");
            }
            let own = format!("{}==", program.name);
            assert!(program.requirements.contains(&own), "{own}");
        }
    }

    #[test]
    fn scripts_start_the_interpreter_with_its_packages() {
        let mut python = Python {
            program: "python3".into(),
            libraries: String::new(),
            version: OLDEST,
        };
        let text = script(&python, Path::new("/it's"), "st");
        assert!(
            text.contains(r"PYTHONPATH='/it'\''s':") && text.contains("exec 'python3' -m st "),
            "unexpected script:\n{text}"
        );
        python.libraries = "/lib".into();
        assert!(
            script(&python, Path::new("/a"), "st").contains("\nLD_LIBRARY_PATH='/lib' PYTHONPATH")
        );
    }
}
