//! `cargo xtask demo`: builds, tests and pushes an example on this machine.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::http::{self, Address};
use crate::{cargo, progress, setup};

const EXAMPLE: &str = "examples/build-test-push";
/// Repository of the image in the example's task file.
const REPOSITORY: &str = "demo/greeter";

/// Sets up what is missing, builds the program, and runs the example.
pub(crate) fn demo() -> Result<()> {
    let begun = Instant::now();
    let environment = setup::up()?;
    progress::announce("Building acrtask (`cargo build`; the first time takes a minute or two)");
    let program = cargo::build_acrtask(&["--package", "acrtask"])?;
    let registry = &environment.registry;
    let arguments = ["run", "-r", registry, "--set", "greeting=Hello", EXAMPLE];
    progress::announce(format!("Running `acrtask {}`", arguments.join(" ")));
    let status = Command::new(&program)
        .args(arguments)
        .current_dir(cargo::checkout()?)
        .envs(environment.variables())
        .status()
        .with_context(|| format!("cannot start {}", program.display()))?;
    if !status.success() {
        bail!("acrtask ended with {status}");
    }
    progress::announce(format!("Asking the registry at {registry} what it has now"));
    let (tag, digest) = pushed(registry)?;
    progress::report(format!("{registry}/{REPOSITORY}:{tag} is {digest}"));
    progress::finish(format!(
        "{EXAMPLE} was built, tested and pushed; all of this took {:.0} s. `cargo xtask down` takes it away again",
        begun.elapsed().as_secs_f32()
    ));
    Ok(())
}

/// Returns the digest that the registry has for the tag `latest` of the example's image.
fn pushed(registry: &str) -> Result<(String, String)> {
    #[derive(Deserialize)]
    struct Tags {
        tags: Vec<String>,
    }
    let address = Address::Tcp(registry.to_owned());
    let wait = Duration::from_secs(10);
    let list = http::request(
        &address,
        "GET",
        &format!("/v2/{REPOSITORY}/tags/list"),
        &[],
        b"",
        wait,
    )?;
    let tags: Tags = serde_json::from_slice(&list.body)
        .with_context(|| format!("{REPOSITORY} is not in the registry: {}", list.text()))?;
    let tag = tags
        .tags
        .into_iter()
        .find(|tag| tag == "latest")
        .context("the tag `latest` was not pushed")?;
    let accept = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                  application/vnd.docker.distribution.manifest.v2+json";
    let path = format!("/v2/{REPOSITORY}/manifests/{tag}");
    let head = http::request(&address, "HEAD", &path, &[("Accept", accept)], b"", wait)?;
    let digest = head
        .header("docker-content-digest")
        .context("the registry names no digest")?;
    Ok((tag, digest.to_owned()))
}
