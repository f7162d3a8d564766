//! Builds that could stop the runner or the builder, which all runs share.

use acrtask_tests::{
    TestEnvironment,
    project::create_folder,
    service::{TestRunner, TestServer},
};

const BUILD: &str = "version: v1.1.0\nsteps:\n  - build: --no-cache -t x:1 .\n";

#[test]
fn failing_build_with_a_large_dockerfile_reports_its_exit_code() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    // BuildKit sends the Dockerfile in the trailers of the failed request.
    let dockerfile = format!(
        "FROM {}\nRUN exit 3\n{}",
        environment.busybox(),
        format!("# {}\n", "x".repeat(98)).repeat(10_000)
    );
    let files = create_folder(&[("acr-task.yaml", BUILD), ("Dockerfile", &dockerfile)]);
    let outcome = environment.run_acrtask(files.path(), &["run", "."]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.transcript());
    assert!(
        outcome.transcript().contains("exit code: 3"),
        "{}",
        outcome.transcript()
    );
}

#[test]
fn dockerfile_that_expands_to_much_text_is_refused() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let dockerfile = format!(
        "ARG A={}\n{}FROM {}\n",
        "x".repeat(16_000),
        "ARG B=$A\n".repeat(50_000),
        environment.busybox()
    );
    let files = create_folder(&[("acr-task.yaml", BUILD), ("Dockerfile", &dockerfile)]);
    let outcome = environment.run_acrtask(files.path(), &["run", "."]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.transcript());
    assert!(
        outcome.transcript().contains("expand to more than 64 MiB"),
        "{}",
        outcome.transcript()
    );
}

#[test]
fn dockerfile_of_unclosed_braces_ends() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let dockerfile = format!(
        "ARG A={}\nFROM {}\nRUN exit 3\n",
        "${".repeat(1 << 20),
        environment.busybox()
    );
    let files = create_folder(&[("acr-task.yaml", BUILD), ("Dockerfile", &dockerfile)]);
    let outcome = environment.run_acrtask(files.path(), &["run", "."]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.transcript());
}

#[test]
fn ssh_agent_of_a_runner_needs_the_operator() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &["--no-runner"]);
    let task = "version: v1.1.0\nsteps:\n  - build: --ssh default -t x:1 .\n";
    let dockerfile = format!(
        "FROM {}\nRUN --mount=type=ssh true\n",
        environment.busybox()
    );
    let files = create_folder(&[("acr-task.yaml", task), ("Dockerfile", &dockerfile)]);
    let socket = files.path().join("absent.sock").display().to_string();
    // The build with the permission does not use the agent, so no agent has to run.
    for (name, flags, code) in [
        ("closed", &[][..], 1),
        ("open", &["--allow", "ssh-agent"][..], 0),
    ] {
        let variables = [("SSH_AUTH_SOCK", socket.as_str())];
        let mut runner = TestRunner::start_at(&server, &server.url, name, flags, &variables);
        let outcome = server.run(files.path(), &["run", "."]).wait();
        let text = outcome.transcript();
        assert_eq!(outcome.code, Some(code), "{name}: {text}");
        assert_eq!(
            text.contains("--allow ssh-agent"),
            code == 1,
            "{name}: {text}"
        );
        runner.kill();
    }
}
