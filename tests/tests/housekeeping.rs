//! Removals of a runner from its builder: entries of the cache beyond the operator's limits.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use acrtask_tests::{
    World,
    project::folder,
    second_engine::SecondEngine,
    service::{Runner, Server},
};

#[test]
fn build_cache_is_removed_beyond_the_limits_of_the_runner() {
    let Some(world) = World::find() else { return };
    // The cache belongs to every user of an engine, so this one is the test's own.
    let Some(engine) = SecondEngine::start() else {
        return;
    };
    let server = Server::start(&world, &["--no-runner"]);
    let start = |name: &str, more: &[&str]| {
        let flags = [&["--docker-host", engine.host.as_str()], more].concat();
        let variables = [("DOCKER_HOST", engine.host.as_str())];
        Runner::start_at(&server, &server.url, name, &flags, &variables)
    };
    let task = "version: v1.1.0\nsteps:\n  - build: -t $Registry/housekeeping:$ID .\n";
    let docker = format!("FROM {}\nRUN echo made > /made\n", world.busybox());
    let files = folder(&[("acr-task.yaml", task), ("Dockerfile", &docker)]);
    let cached = || {
        let run = server.run(files.path(), &["run", "-o", "json", "."]);
        let id = run.run.clone();
        let outcome = run.wait();
        assert_eq!(outcome.code, Some(0), "{}", outcome.all());
        server.run_of(&id)["result"]["cachedVertices"]
            .as_u64()
            .unwrap()
    };
    let mut first = start("first", &[]);
    cached();
    // A start begins with housekeeping. Without a limit the cache stays.
    first.kill();
    first.restart();
    first.wait_online(&server);
    let warm = cached();
    assert!(warm > 0, "{}", first.log());
    assert!(!first.log().contains("build cache"), "{}", first.log());
    drop(first);

    let mut second = start("second", &["--keep-build-cache", "1ms"]);
    second.wait_for("removed entries of the build cache");
    assert!(cached() < warm, "{}", second.log());
    let runners = server.json(&["runner", "list", "-o", "json"]);
    let shown = runners.as_array().unwrap().iter();
    let mut shown = shown.filter(|runner| runner["name"] == "second");
    let limits = &shown.next().unwrap()["features"]["housekeeping"];
    assert!(
        limits.as_str().unwrap().contains("build cache unused for"),
        "{runners:#}"
    );
    drop(second);

    let mut third = start("third", &["--build-cache-limit", "1"]);
    third.wait_for("removed entries of the build cache");
    assert!(third.log().contains("Bytes(1)"), "{}", third.log());
}
