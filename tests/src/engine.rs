//! Queries of the engine that bypass the program.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use bollard::{
    Docker,
    query_parameters::{
        ListContainersOptionsBuilder, ListNetworksOptionsBuilder, ListVolumesOptionsBuilder,
    },
};

/// Longest time in which the engine removes a network.
const REMOVAL_TIME: Duration = Duration::from_secs(30);

/// Lists everything on the engine labelled with the id of `run`: `container NAME`, `network NAME`,
/// `volume NAME`.
pub fn list_resources(run: &str) -> Vec<String> {
    // On a separate thread, because the caller may already be inside a runtime.
    let listed = std::thread::scope(|scope| {
        let listing = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime can be created");
            runtime.block_on(list(run))
        });
        listing.join().expect("the listing does not panic")
    });
    listed.unwrap_or_else(|e| panic!("the engine does not list the resources of {run}: {e}"))
}

/// Waits until the engine has none of the run's networks, which it removes after the end of the
/// run. Lists what then remains, as [`list_resources`] does.
pub fn list_remains(run: &str) -> Vec<String> {
    let deadline = Instant::now() + REMOVAL_TIME;
    loop {
        let left = list_resources(run);
        let is_network = |thing: &String| thing.starts_with("network ");
        if !left.iter().any(is_network) || Instant::now() > deadline {
            return left;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

async fn list(run: &str) -> Result<Vec<String>, bollard::errors::Error> {
    let docker = Docker::connect_with_defaults()?.negotiate_version().await?;
    let filters = HashMap::from([("label", vec![format!("io.acrtask.run={run}")])]);
    let containers = ListContainersOptionsBuilder::new()
        .all(true)
        .filters(&filters)
        .build();
    let networks = ListNetworksOptionsBuilder::new().filters(&filters).build();
    let volumes = ListVolumesOptionsBuilder::new().filters(&filters).build();
    let mut things = Vec::new();
    for container in docker.list_containers(Some(containers)).await? {
        let names = container.names.unwrap_or_default().join(" ");
        things.push(format!("container {names}"));
    }
    for network in docker.list_networks(Some(networks)).await? {
        things.push(format!("network {}", network.name.unwrap_or_default()));
    }
    let volumes = docker.list_volumes(Some(volumes)).await?.volumes;
    for volume in volumes.unwrap_or_default() {
        things.push(format!("volume {}", volume.name));
    }
    things.sort();
    Ok(things)
}

/// Runs Docker's client against the engine of the tests and returns its output.
///
/// # Panics
///
/// If Docker's client is missing or the command fails.
pub fn docker(args: &[&str]) -> String {
    let output = docker_output(args);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "docker {args:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Runs Docker's client as [`docker`] does, for a command that may fail.
///
/// # Panics
///
/// If Docker's client is missing.
pub fn docker_output(args: &[&str]) -> std::process::Output {
    let client = std::env::var_os("ACRTASK_TEST_DOCKER")
        .expect("ACRTASK_TEST_DOCKER names no docker client: run `cargo xtask test`");
    let output = std::process::Command::new(client).args(args).output();
    output.expect("the docker client can be started")
}
