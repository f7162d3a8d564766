//! Every file in `scenarios/`, each a test of its own.

use std::{collections::BTreeSet, path::PathBuf};

use acrtask_tests::scenario;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scenarios")
}

macro_rules! scenarios {
    ($($test:ident: $file:literal,)*) => {
        $(
            #[test]
            fn $test() {
                scenario::check(&folder().join(concat!($file, ".yaml")));
            }
        )*

        #[test]
        fn every_file_has_a_test() {
            let listed: BTreeSet<String> = [$($file),*].map(str::to_owned).into();
            assert_eq!(scenario::names(&folder()), listed);
        }
    };
}

scenarios! {
    build_context: "build-context",
    build_secret: "build-secret",
    cache_enabled: "cache-enabled",
    cmd_line_words: "cmd-line-words",
    container_settings: "container-settings",
    docker_socket_is_refused: "docker-socket-is-refused",
    docker_words: "docker-words",
    failing_build_shows_the_dockerfile: "failing-build-shows-the-dockerfile",
    failure_stops_what_runs: "failure-stops-what-runs",
    file_is_wrong: "file-is-wrong",
    ignored_failure: "ignored-failure",
    missing_image: "missing-image",
    networks: "networks",
    no_push: "no-push",
    parallel: "parallel",
    privileged_is_refused: "privileged-is-refused",
    pushed_is_tested: "pushed-is-tested",
    repeat: "repeat",
    retries: "retries",
    run_timeout: "run-timeout",
    secret_volume: "secret-volume",
    secrets_are_masked: "secrets-are-masked",
    shell_is_refused: "shell-is-refused",
    step_timeout: "step-timeout",
    workspace_and_home: "workspace-and-home",
}
