//! Tests of the files in `scenarios/`.

use std::{collections::BTreeSet, path::PathBuf};

use acrtask_tests::scenario;

fn scenario_folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scenarios")
}

macro_rules! scenarios {
    ($($test:ident: $file:literal,)*) => {
        $(
            #[test]
            fn $test() {
                scenario::check_scenario(&scenario_folder().join(concat!($file, ".yaml")));
            }
        )*

        #[test]
        fn every_file_has_a_test() {
            let listed: BTreeSet<String> = [$($file),*].map(str::to_owned).into();
            assert_eq!(scenario::list_names(&scenario_folder()), listed);
        }
    };
}

scenarios! {
    build_context: "build-context",
    build_secret: "build-secret",
    cache_enabled: "cache-enabled",
    cmd_line_grammar: "cmd-line-grammar",
    container_settings: "container-settings",
    docker_socket_is_refused: "docker-socket-is-refused",
    docker_commands: "docker-commands",
    failing_build_shows_the_dockerfile: "failing-build-shows-the-dockerfile",
    failure_stops_parallel_steps: "failure-stops-parallel-steps",
    invalid_file_reports_all_errors: "invalid-file-reports-all-errors",
    ignored_failure: "ignored-failure",
    missing_image: "missing-image",
    networks: "networks",
    no_push: "no-push",
    parallel: "parallel",
    privileged_is_refused: "privileged-is-refused",
    pushed_image_is_tested_image: "pushed-image-is-tested-image",
    repeat: "repeat",
    retries: "retries",
    run_timeout: "run-timeout",
    secret_volume: "secret-volume",
    secrets_are_masked: "secrets-are-masked",
    shell_is_refused: "shell-is-refused",
    step_timeout: "step-timeout",
    workspace_and_home: "workspace-and-home",
}
