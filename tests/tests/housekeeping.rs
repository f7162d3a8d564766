//! Housekeeping of a runner on its builder: cache entries beyond the limits of the operator are
//! removed.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use acrtask_tests::{
    TestEnvironment,
    project::create_folder,
    second_engine::SecondEngine,
    service::{TestRunner, TestServer},
};

#[test]
fn build_cache_is_removed_beyond_the_limits_of_the_runner() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    // All users of an engine share its cache, so this engine belongs to the test.
    let Some(engine) = SecondEngine::start() else {
        return;
    };
    let server = TestServer::start(&environment, &["--no-runner"]);
    let start = |name: &str, more: &[&str]| {
        let flags = [&["--docker-host", engine.host.as_str()], more].concat();
        let variables = [("DOCKER_HOST", engine.host.as_str())];
        TestRunner::start_at(&server, &server.url, name, &flags, &variables)
    };
    let task = "version: v1.1.0\nsteps:\n  - build: -t $Registry/housekeeping:$ID .\n";
    let docker = format!("FROM {}\nRUN echo made > /made\n", environment.busybox());
    let files = create_folder(&[("acr-task.yaml", task), ("Dockerfile", &docker)]);
    let count_cached = || {
        let run = server.run(files.path(), &["run", "-o", "json", "."]);
        let id = run.run.clone();
        let outcome = run.wait();
        assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
        server.fetch_run(&id)["result"]["cachedVertices"]
            .as_u64()
            .unwrap()
    };
    let mut first = start("first", &[]);
    count_cached();
    // Housekeeping runs at every start. Without a limit the cache stays.
    first.kill();
    first.restart();
    first.wait_online(&server);
    let warm = count_cached();
    assert!(warm > 0, "{}", first.log());
    assert!(!first.log().contains("build cache"), "{}", first.log());
    drop(first);

    let mut second = start("second", &["--keep-build-cache", "1ms"]);
    second.wait_for("removed entries of the build cache");
    assert!(count_cached() < warm, "{}", second.log());
    let runners = server.run_json(&["runner", "list", "-o", "json"]);
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
