//! `up` and `down`: set up and remove all services and programs that the tests use, and name them
//! in environment variables.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cache::{self, Cache};
use crate::packages::Tools;
use crate::registry::{self, Kind, PASSWORD, USER};
use crate::{
    browser, engine, images, npm, postgres, progress, python, registry_tools, sshd, strace,
};

/// Services and programs that are set up.
#[derive(Debug)]
pub(crate) struct Environment {
    variables: Vec<(&'static str, String)>,
    root: Option<PathBuf>,
    /// The open registry, `host:port`.
    pub(crate) registry: String,
}

impl Environment {
    /// Returns the variables for a child process.
    pub(crate) fn variables(&self) -> impl Iterator<Item = (&str, &str)> {
        self.variables
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
    }

    /// Root file system of the engine, with the `docker` command and its plugins. `None` if the
    /// engine is the machine's.
    pub(crate) fn root(&self) -> Option<&Path> {
        self.root.as_deref()
    }

    /// Formats the variables for a POSIX shell.
    pub(crate) fn shell(&self) -> String {
        let mut text = String::new();
        for (name, value) in self.variables() {
            let _ = writeln!(text, "export {name}='{}'", value.replace('\'', r"'\''"));
        }
        text
    }
}

/// Finds or sets up all services that the demo and the tests need.
pub(crate) fn up() -> Result<Environment> {
    let cache = Cache::locate()?;
    let lock = cache.lock()?;
    let tools = Tools::get(&cache, &lock)?;
    let engine = engine::get(&cache, &lock, &tools)?;
    let open = match named_registry(&cache) {
        Some(address) => {
            progress::report(format!(
                "the registry {address} is used, as ACRTASK_TEST_REGISTRY says"
            ));
            address
        }
        None => registry::get(&cache, &lock, &tools, Kind::Open)?,
    };
    let password = registry::get(&cache, &lock, &tools, Kind::Password)?;
    images::put(&open, &tools).with_context(|| {
        format!("the registry at {open} cannot be used (unset ACRTASK_TEST_REGISTRY to have one started)")
    })?;
    let postgres = postgres::get(&cache, &lock)?;
    let sshd = sshd::get(&cache, &lock)?;
    let strace = strace::get(&cache, &lock)?;
    let schemathesis = python::get(&cache, &lock, &python::SCHEMATHESIS)?;
    let az = python::get(&cache, &lock, &python::AZURE_CLI)?;
    let registry_tools = registry_tools::get(&cache, &lock)?;
    let examples = npm::GITHUB_EXAMPLES.get(&cache, &lock)?;
    let axe = npm::AXE.get(&cache, &lock)?;
    let chromedriver = browser::get(&cache, &lock, &tools)?;
    let mut variables = vec![
        ("DOCKER_HOST", engine.host.clone()),
        ("ACRTASK_TEST_DOCKER_HOST", engine.host),
        ("ACRTASK_TEST_REGISTRY", open.clone()),
        // Tests start further registries with this program.
        (
            "ACRTASK_TEST_REGISTRY_BIN",
            tools.path("/usr/bin/docker-registry").display().to_string(),
        ),
        ("ACRTASK_TEST_AUTH_REGISTRY", password),
        ("ACRTASK_TEST_AUTH_USER", USER.to_owned()),
        ("ACRTASK_TEST_AUTH_PASSWORD", PASSWORD.to_owned()),
        ("ACRTASK_TEST_POSTGRES", postgres.url),
        (
            "ACRTASK_TEST_POSTGRES_BIN",
            postgres.programs.display().to_string(),
        ),
        ("ACRTASK_TEST_SSHD", sshd.display().to_string()),
        ("ACRTASK_TEST_STRACE", strace.display().to_string()),
        // Tests configure their network namespaces with its `ip`.
        (
            "ACRTASK_TEST_BUSYBOX",
            tools.path("/bin/busybox").display().to_string(),
        ),
        (
            registry_tools::VARIABLE,
            registry_tools.display().to_string(),
        ),
        (
            python::SCHEMATHESIS.variable,
            schemathesis.display().to_string(),
        ),
        (python::AZURE_CLI.variable, az.display().to_string()),
        (
            npm::GITHUB_EXAMPLES.variable,
            examples.display().to_string(),
        ),
        (npm::AXE.variable, axe.display().to_string()),
        (browser::VARIABLE, chromedriver.display().to_string()),
    ];
    if let Some(root) = &engine.root {
        let docker = root.join("usr/bin/docker");
        variables.push(("ACRTASK_TEST_DOCKER", docker.display().to_string()));
    }
    let environment = Environment {
        variables,
        registry: open,
        root: engine.root,
    };
    cache::write_whole(&cache.path("env"), &environment.shell())?;
    Ok(environment)
}

/// Returns the registry that the user named. Ignores the value that an earlier `up` printed.
fn named_registry(cache: &Cache) -> Option<String> {
    let named = std::env::var("ACRTASK_TEST_REGISTRY").ok()?;
    let own = registry::address_of_last_time(cache);
    Some(named).filter(|named| !named.is_empty() && Some(named) != own.as_ref())
}

/// Stops all that `up` started and removes all that it created. Services that it found stay.
pub(crate) fn down() -> Result<()> {
    let cache = Cache::locate()?;
    if !cache.root().exists() {
        progress::finish("nothing was set up");
        return Ok(());
    }
    let lock = cache.lock()?;
    engine::down(&cache, &lock)?;
    registry::down(&cache, &lock)?;
    postgres::down(&cache, &lock)?;
    progress::announce(format!("Removing {}", cache.root().display()));
    cache::remove_tree(cache.root())
        .context("everything is stopped, but not all could be removed")?;
    progress::finish("everything that was set up is gone");
    Ok(())
}
