//! Command line tests without an engine: exit code, standard output and standard error.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

/// Returns the program with a fixed environment.
fn acrtask(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_acrtask"));
    command
        .args(args)
        .current_dir(folder)
        .env_clear()
        .env("HOME", folder)
        .env("COLUMNS", "100")
        .stdin(Stdio::null());
    command
}

/// Runs a command; returns exit code and both streams as one text.
fn output_of(command: &mut Command, input: &str) -> String {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stdin = child.stdin.take().unwrap();
    // A program that rejects its arguments does not read the input.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    format!(
        "exit code: {}\n----- stdout -----\n{}----- stderr -----\n{}",
        output.status.code().unwrap_or(-1),
        text(&output.stdout),
        text(&output.stderr)
    )
}

/// Creates a folder with these files.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    folder
}

fn run_in(files: &[(&str, &str)], args: &[&str]) -> String {
    let folder = folder(files);
    output_of(&mut acrtask(folder.path(), args), "")
}

const RUN_VARIABLES: [&str; 10] = [
    "-r",
    "reg.example.com",
    "--id",
    "ca7",
    "--date",
    "2026-01-02T03:04:05Z",
    "--commit",
    "0123456789abcdef0123456789abcdef01234567",
    "--branch",
    "main",
];

const TASK: &str = "\
version: v1.1.0
steps:
  - id: build
    build: -t $Registry/app:$ID .
  - id: lint
    cmd: $Registry/lint --strict
    when: ['-']
  - id: test
    cmd: $Registry/app:$ID --self-test
    when: [build, lint]
  - push: ['$Registry/app:$ID']
";

fn plan(files: &[(&str, &str)], more: &[&str]) -> String {
    run_in(files, &[&["plan"], &RUN_VARIABLES[..], more].concat())
}

#[test]
fn help_of_each_command() {
    for command in ["run", "build", "plan", "completions"] {
        insta::assert_snapshot!(format!("help_{command}"), run_in(&[], &[command, "--help"]));
    }
    for command in [
        &["login"][..],
        &["logout"],
        &["whoami"],
        &["task"],
        &["task", "create"],
        &["task", "update"],
        &["task", "run"],
        &["task", "apply"],
        &["task", "list"],
        &["runs"],
        &["runs", "list"],
        &["runs", "logs"],
        &["runs", "cancel"],
        &["runs", "approve"],
        &["webhook"],
        &["webhook", "setup"],
        &["webhook", "create"],
        &["webhook", "update"],
        &["webhook", "deliveries"],
        &["webhook", "redeliver"],
        &["doctor"],
        &["runner"],
        &["runner", "start"],
        &["runner", "token"],
        &["serve"],
        &["secret", "set"],
        &["credential", "set"],
        &["token", "create"],
        &["token", "federate", "create"],
        &["image"],
        &["image", "list"],
        &["registry"],
        &["registry", "tags"],
        &["registry", "purge"],
        &["base"],
        &["base", "check"],
        &["cascade"],
        &["cascade", "plan"],
        &["cascade", "show"],
        &["cascade", "settings"],
        &["schema"],
    ] {
        let seen = run_in(&[], &[command, &["--help"]].concat());
        assert!(seen.starts_with("exit code: 0\n"), "{seen}");
        insta::assert_snapshot!(format!("help_{}", command.join("_")), seen);
    }
    insta::assert_snapshot!("help", run_in(&[], &["--help"]));
}

/// Without a login, and with invalid server settings.
#[test]
fn server_errors_are_reported() {
    let files = [("acr-task.yaml", TASK)];
    let mut text = String::new();
    for args in [
        &["whoami"][..],
        &["runs", "list"],
        &["logout"],
        &["run", "--no-wait"],
        &["run", "--pool", "big"],
        &["run", "--local", "--pool", "big"],
        &["run", "--server", "https://ci.example.com"],
        &["run", "--server", "ftp://ci.example.com"],
        &["login", "http://ci.example.com", "--token-file", "none"],
        &["login", "http://127.0.0.1:1", "--token-file", "none"],
        &[
            "runner",
            "start",
            "--server",
            "http://ci.example.com",
            "--state-dir",
            "state",
        ],
        &[
            "runner",
            "start",
            "--server",
            "http://127.0.0.1:1",
            "--state-dir",
            "state",
        ],
        &[
            "serve",
            "--listen",
            "0.0.0.0:0",
            "--data-dir",
            "data",
            "--no-runner",
        ],
        &[
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--data-dir",
            "data",
            "--tasks",
            "none",
        ],
        &["serve", "--tls-cert", "x"],
        &["task", "apply", "-f", "none.yaml"],
        &[
            "secret",
            "set",
            "A",
            "--from-env",
            "A",
            "--server",
            "http://127.0.0.1:1",
        ],
    ] {
        let folder = folder(&files);
        let output = output_of(&mut acrtask(folder.path(), args), "");
        let output = output.replace(&folder.path().display().to_string(), "FOLDER");
        text += &format!("$ acrtask {}\n{output}\n", args.join(" "));
    }
    insta::assert_snapshot!(text);
}

/// Flags that configure this machine are rejected before a request to the server.
#[test]
fn local_flags_are_rejected_for_a_server() {
    let folder = folder(&[("acr-task.yaml", TASK), ("Dockerfile", "FROM scratch\n")]);
    let mut text = String::new();
    for args in [
        &["run", "--watch"][..],
        &["run", "--docker-host", "unix:///x"],
        &["run", "--builder", "unix:///x"],
        &["build", "-t", "reg.example.com/a", "--allow", "privileged"],
        &["run", "https://me:hunter2@github.com/org/app.git"],
    ] {
        let mut command = acrtask(folder.path(), args);
        command
            .env("ACRTASK_SERVER", "http://127.0.0.1:1")
            .env("ACRTASK_TOKEN", "t0k3n");
        let shown = args.join(" ").replace("hunter2", "PASSWORD");
        text += &format!("$ acrtask {shown}\n{}\n", output_of(&mut command, ""));
    }
    assert!(!text.contains("hunter2"), "{text}");
    insta::assert_snapshot!(text);
}

#[test]
fn schemas_are_valid_json() {
    for (of, key) in [("task", "baseImage"), ("acr-task", "steps")] {
        let seen = run_in(&[], &["schema", of]);
        let json = seen.split("----- stdout -----\n").nth(1).unwrap();
        let json = json.split("----- stderr -----").next().unwrap();
        let schema: serde_json::Value = serde_json::from_str(json).unwrap();
        assert!(schema.to_string().contains(key), "{schema:#}");
    }
}

#[test]
fn usage_errors() {
    for (name, args) in [
        ("no_command", &[][..]),
        ("unknown_command", &["rnu"]),
        ("unknown_flag", &["run", "--sett", "a=b"]),
        ("set_without_a_value", &["run", "--set", "novalue"]),
        ("output_that_is_none", &["run", "-o", "xml"]),
        ("timeout_that_is_none", &["run", "--timeout", "soon"]),
        ("id_that_is_none", &["run", "--id", "Not An Id"]),
        ("build_without_a_name", &["build", "."]),
        ("build_with_a_bad_name", &["build", "-t", "Reg/App", "."]),
        ("build_without_a_registry", &["build", "-t", "app:1", "."]),
        ("cmd_and_file", &["run", "--cmd", "a b", "-f", "x"]),
        (
            "watch_something_remote",
            &["run", "--watch", "https://example.com/org/repo.git"],
        ),
        (
            "key_without_certificate",
            &["run", "--builder-key", "k.pem"],
        ),
    ] {
        insta::assert_snapshot!(
            format!("usage_{name}"),
            run_in(&[("Dockerfile", "FROM scratch\n")], args)
        );
    }
}

/// Messages never contain a possible secret.
#[test]
fn passwords_are_never_part_of_a_message() {
    let files = [("acr-task.yaml", TASK)];
    for (name, args) in [
        (
            "credential_with_a_password",
            &["run", "--credential", "reg.example.com=me:hunter2"][..],
        ),
        (
            "credential_without_a_host",
            &["run", "--credential", "hunter2"],
        ),
        (
            "secret_without_a_name",
            &["run", "--set-secret", "=hunter2"],
        ),
        (
            "secret_build_arg_without_a_name",
            &[
                "build",
                "-t",
                "reg.example.com/a",
                "--secret-build-arg",
                "=hunter2",
            ],
        ),
        ("secret_that_is_not_set", &["plan", "--set-secret", "TOKEN"]),
    ] {
        let seen = run_in(&files, args);
        assert!(!seen.contains("hunter2"), "{seen}");
        insta::assert_snapshot!(format!("secret_{name}"), seen);
    }
}

#[test]
fn plan_as_text_and_json() {
    let task = [("acr-task.yaml", TASK)];
    insta::assert_snapshot!("plan_text", plan(&task, &[]));
    insta::assert_snapshot!("plan_json", plan(&task, &["-o", "json"]));
}

#[test]
fn invalid_task_file_is_reported() {
    let bad = [(
        "acr-task.yaml",
        "version: v1.1.0\nsteps:\n  - id: a\n    bild: -t x .\n  - cmd: x\n    when: [b]\n",
    )];
    insta::assert_snapshot!("refused_text", plan(&bad, &[]));
    insta::assert_snapshot!("refused_json", plan(&bad, &["-o", "json"]));
    insta::assert_snapshot!("refused_run", run_in(&bad, &["run"]));
}

/// The permissions are checked before the engine, which does not exist here.
#[test]
fn privileged_steps_need_permission() {
    let files = [(
        "acr-task.yaml",
        "steps:\n  - id: first\n    cmd: a\n  - id: root\n    cmd: a\n    privileged: true\n  - id: net\n    cmd: --network host a\n  \
         - id: both\n    build: --network host .\n",
    )];
    let run = ["run", "--docker-host", "unix:///no/such/docker.sock"];
    insta::assert_snapshot!("not_allowed", run_in(&files, &run));
    let allowed = run_in(
        &files,
        &[&run[..], &["--allow", "privileged,host-network"]].concat(),
    );
    assert!(allowed.starts_with("exit code: 3\n"), "{allowed}");
}

#[test]
fn task_file_is_found_in_context_or_current_folder() {
    let small = |image: &str| format!("steps:\n  - id: one\n    cmd: {image}\n");
    let (first, second, third) = (small("first"), small("second"), small("third"));
    let both = [
        ("acr-task.yaml", first.as_str()),
        ("acb.yaml", &second),
        ("ci/task.yaml", &third),
    ];
    let cmd = |seen: String| {
        let plan: serde_json::Value = serde_json::from_str(seen.lines().nth(2).unwrap()).unwrap();
        plan["steps"][0]["cmd"].as_str().unwrap().to_owned()
    };
    assert_eq!(cmd(plan(&both, &["-o", "json"])), "first");
    assert_eq!(cmd(plan(&both[1..], &["-o", "json"])), "second");
    assert_eq!(
        cmd(plan(&both, &["-o", "json", "-f", "ci/task.yaml"])),
        "third"
    );
    assert_eq!(
        cmd(plan(
            &both,
            &["-o", "json", "-f", "ci/task.yaml", "/dev/null"]
        )),
        "third"
    );
    // The context has priority over the current folder.
    let nested = [("task.yaml", first.as_str()), ("sub/task.yaml", &second)];
    assert_eq!(
        cmd(plan(&nested, &["-o", "json", "-f", "task.yaml", "sub"])),
        "second"
    );
    let empty = folder(&[]);
    assert_eq!(
        cmd(output_of(
            &mut acrtask(empty.path(), &["plan", "-o", "json", "-f", "-"]),
            &third
        )),
        "third"
    );
    insta::assert_snapshot!("no_task_file", run_in(&[], &["run"]));
    insta::assert_snapshot!(
        "no_such_task_file",
        run_in(&[], &["run", "-f", "nothing.yaml"])
    );
    insta::assert_snapshot!("no_such_context", run_in(&[], &["plan", "no/such/folder"]));
    insta::assert_snapshot!(
        "both_on_standard_input",
        run_in(&[], &["run", "-f", "-", "-"])
    );
}

#[test]
fn values_and_secrets_are_merged_and_masked() {
    let files = [
        (
            "acr-task.yaml",
            "steps:\n  - id: one\n    cmd: a {{.Values.x}} {{.Values.y}} {{.Values.s}}\n    env: [T=1]\n",
        ),
        ("values.yaml", "x: from-file\ny: from-file\n"),
    ];
    let folder = folder(&files);
    let args = [
        "plan",
        "-o",
        "json",
        "--values",
        "values.yaml",
        "--set",
        "y=from-flag",
        "--set-secret",
        "s",
        "--env",
        "E=2",
    ];
    let output = output_of(
        acrtask(folder.path(), &args).env("s", "from-environment"),
        "",
    );
    assert!(output.contains("a from-file from-flag "), "{output}");
    assert!(output.contains("E=2"), "{output}");
    // JSON contains the line unmasked; text masks the secret.
    assert!(
        output.contains("a from-file from-flag from-environment"),
        "{output}"
    );
    let args = ["plan", "--values", "values.yaml", "--set-secret", "s"];
    let output = output_of(
        acrtask(folder.path(), &args).env("s", "from-environment"),
        "",
    );
    assert!(
        output.contains("***") && !output.contains("from-environment"),
        "{output}"
    );
    let bad = [files[0], ("values.yaml", "x: [\n")];
    insta::assert_snapshot!(
        "bad_values",
        run_in(&bad, &["plan", "--values", "values.yaml"])
    );
}

#[test]
fn missing_engine_is_reported() {
    let files = [("acr-task.yaml", TASK), ("Dockerfile", "FROM scratch\n")];
    for (name, args) in [
        (
            "run",
            &[
                "run",
                "--docker-host",
                "unix:///no/such/docker.sock",
                "-r",
                "reg.example.com",
                "--id",
                "ca7",
            ][..],
        ),
        (
            "build",
            &[
                "build",
                "--docker-host",
                "unix:///no/such/docker.sock",
                "-t",
                "reg.example.com/app:1",
                "--id",
                "ca7",
            ],
        ),
    ] {
        let seen = run_in(&files, args);
        assert!(seen.starts_with("exit code: 3\n"), "{seen}");
        insta::assert_snapshot!(format!("no_engine_{name}"), seen);
    }
}

#[test]
fn completions_are_generated_for_each_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let seen = run_in(&[], &["completions", shell]);
        assert!(
            seen.starts_with("exit code: 0\n") && seen.contains("secret-build-arg"),
            "{shell}"
        );
    }
}

/// `acrtask ... | head -1` ends silently.
#[test]
fn closed_pipe_is_not_an_error() {
    for args in [&["completions", "bash"][..], &["--help"]] {
        let folder = folder(&[]);
        let mut command = acrtask(folder.path(), args);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "", "{args:?}");
    }
}
