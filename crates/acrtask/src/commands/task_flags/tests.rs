//! Tests of the conversion from flags to definitions.

use clap::Parser;

use super::*;
use crate::args::{Cli, Command, task::TaskCommand};

fn parse(args: &[&str]) -> Command {
    let all = [&["acrtask", "task"], args].concat();
    Cli::try_parse_from(all)
        .unwrap_or_else(|error| panic!("{error}"))
        .command
}

fn create(args: &[&str]) -> Result<TaskDraft, CliError> {
    match parse(&[&["create", "-n", "app"], args].concat()) {
        Command::Task(TaskCommand::Create(args)) => {
            create_draft(args.name.name(), &args.definition)
        }
        other => panic!("{other:?}"),
    }
}

fn update(before: TaskDefinition, args: &[&str]) -> Result<TaskDraft, CliError> {
    match parse(&[&["update", "app"], args].concat()) {
        Command::Task(TaskCommand::Update(args)) => update_draft(before, &args),
        other => panic!("{other:?}"),
    }
}

fn render(draft: Result<TaskDraft, CliError>) -> String {
    match draft {
        Ok(draft) => crate::task_files::to_yaml(&draft.definition).unwrap(),
        Err(error) => error.render(crate::render::style::Style::PLAIN),
    }
}

const GIT: &str = "https://github.com/org/app.git#main";

/// All flags of the cloud service.
#[test]
fn all_flags_of_the_cloud_service_are_accepted() {
    insta::assert_snapshot!(render(create(&[
        "--context",
        GIT,
        "--registry",
        "reg.example.com",
        "--image",
        "app:{{.Run.ID}}",
        "--image",
        "app:latest",
        "--file",
        "docker/Dockerfile",
        "--arg",
        "A=1",
        "--secret-arg",
        "TOKEN=hush",
        "--target",
        "final",
        "--no-cache",
        "--platform",
        "linux/arm64",
        "--timeout",
        "3600",
        "--set",
        "k=v",
        "--set-secret",
        "s=hush",
        "--schedule",
        "night:0 3 * * *",
        "--schedule",
        "30 4 * * 1",
        "--commit-trigger-enabled",
        "True",
        "--base-image-trigger-enabled",
        "true",
        "--base-image-trigger-type",
        "All",
        "--status",
        "Disabled",
        "--pool",
        "big",
        "--runner-label",
        "disk=ssd",
        "--priority",
        "-3",
        "--max-concurrent",
        "2",
        "--cancel-superseded",
    ])));
}

#[test]
fn flags_select_the_source_of_the_task() {
    let source = |args: &[&str]| {
        let task = create(args).unwrap().definition;
        (
            task.file,
            task.cmd,
            task.build.map(|build| build.dockerfile),
        )
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(source(&["-c", GIT]), (None, None, None));
    assert_eq!(
        source(&["-c", GIT, "-f", "ci.yaml"]),
        (some("ci.yaml"), None, None)
    );
    assert_eq!(
        source(&["-c", "/dev/null", "--cmd", "a b"]),
        (None, some("a b"), None)
    );
    assert_eq!(
        source(&["-c", GIT, "-t", "a"]),
        (None, None, some("Dockerfile"))
    );
    assert_eq!(
        source(&["-c", GIT, "-t", "a", "-f", "D"]),
        (None, None, some("D"))
    );
}

#[test]
fn update_changes_only_the_given_flags() {
    let before = create(&[
        "-c",
        GIT,
        "-t",
        "a:1",
        "--arg",
        "A=1",
        "--set",
        "x=1",
        "--set",
        "y=1",
        "--schedule",
        "night:0 3 * * *",
        "--base-image-trigger-type",
        "all",
    ])
    .unwrap()
    .definition;
    let unchanged = update(before.clone(), &[]).unwrap().definition;
    assert_eq!(unchanged, before);
    insta::assert_snapshot!(render(update(
        before.clone(),
        &[
            "-f",
            "other/Dockerfile",
            "--arg",
            "B=2",
            "--set",
            "y=2",
            "--unset",
            "x",
            "--unset-schedule",
            "night",
            "--schedule",
            "0 5 * * *",
            "--base-image-trigger-enabled",
            "false",
            "--timeout",
            "10m",
        ],
    )));
    // A new source replaces the previous one.
    let cmd = update(before.clone(), &["--cmd", "a b"])
        .unwrap()
        .definition;
    assert_eq!((cmd.build, cmd.cmd.as_deref()), (None, Some("a b")));
    assert!(update(before, &["--unset", "nothing"]).is_err());
}

#[test]
fn secrets_are_not_part_of_the_definition() {
    let draft = create(&[
        "-c",
        GIT,
        "-t",
        "a",
        "--set-secret",
        "s=hush-one",
        "--secret-arg",
        "T=hush-two",
    ])
    .unwrap();
    let text = crate::task_files::to_yaml(&draft.definition).unwrap();
    assert!(!text.contains("hush"), "{text}");
    let names: Vec<_> = draft.secrets.keys().map(String::as_str).collect();
    assert_eq!(names, ["T", "s"]);
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "hush\n").unwrap();
    let from = format!("@{}", token.display());
    let (host, token) = create(&["-c", GIT, "--git-access-token", &from])
        .unwrap()
        .git
        .unwrap();
    assert_eq!((host.as_str(), token.expose()), ("github.com", "hush"));
    let elsewhere = "https://git.example.com:8443/org/app.git#main";
    let (host, _) = create(&["-c", elsewhere, "--git-access-token", &from])
        .unwrap()
        .git
        .unwrap();
    assert_eq!(host, "git.example.com:8443");
}

#[test]
fn no_push_survives_updates_until_it_is_reset() {
    let pushes = |args: &[&str]| !create(args).unwrap().definition.no_push;
    assert!(pushes(&["-c", GIT]));
    assert!(!pushes(&["-c", GIT, "-t", "a", "--no-push"]));
    assert!(!pushes(&["-c", GIT, "--no-push", "true", "-t", "a"]));
    let quiet = create(&["-c", GIT, "--no-push=True"]).unwrap().definition;
    assert!(quiet.no_push);
    let still = update(quiet.clone(), &["--timeout", "5m"]).unwrap();
    assert!(still.definition.no_push);
    let loud = update(quiet, &["--no-push", "false"]).unwrap();
    assert!(!loud.definition.no_push);
}

#[test]
fn invalid_flags_are_rejected() {
    let mut text = String::new();
    for args in [
        &["-c", GIT, "-g", "group"][..],
        &["-c", GIT, "--auth-mode", "Default"],
        &["-c", GIT, "--assign-identity"],
        &["-c", GIT, "--agent-pool", "p"],
        &["-c", GIT, "--arg", "A=1"],
        &["-c", "."],
        &["-c", "https://me:hunter2@github.com/org/app.git"],
        &["-c", GIT, "--git-access-token", "hunter2"],
        &[
            "-c",
            "/dev/null",
            "--cmd",
            "a",
            "--git-access-token",
            "env:T",
        ],
        &[
            "-c",
            GIT,
            "-t",
            "a",
            "--set-secret",
            "T=1",
            "--secret-arg",
            "T=2",
        ],
        &[
            "-c",
            GIT,
            "--schedule",
            "a:0 1 * * *",
            "--schedule",
            "a:0 2 * * *",
        ],
        &[],
    ] {
        let shown = args.join(" ").replace("hunter2", "PASSWORD");
        text += &format!("$ task create -n app {shown}\n{}\n", render(create(args)));
    }
    assert!(!text.contains("hunter2"), "{text}");
    insta::assert_snapshot!(text);
}
