//! Backups: an archive of a running server restored elsewhere, the database file of a stopped
//! server, a lost token, and a move from SQLite to PostgreSQL.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::Path;

use acrtask_tests::{
    TestEnvironment, new_run_id,
    postgres::TestDb,
    project::{create_folder, task_with_one_step},
    service::TestServer,
};

/// Starts a server with the data of another server.
fn server_with(environment: &TestEnvironment, data: &Path, token: &str) -> TestServer {
    let file = |name: &str| data.join(name).display().to_string();
    let flags = [
        "--database",
        &format!("sqlite:{}", file("acrtask.db")),
        "--blobs",
        &file("blobs"),
        "--key-file",
        &file("key"),
    ];
    TestServer::start_with(environment, &flags, Some(token))
}

#[test]
fn backup_of_a_working_server_is_restored_elsewhere() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &[]);
    let files = create_folder(&[
        ("acr-task.yaml", &task_with_one_step("echo the first one")),
        ("secret", "hush-hush"),
        (
            "long/acr-task.yaml",
            &task_with_one_step("echo begun; sleep 8"),
        ),
    ]);
    let first = server
        .run(files.path(), &["run", "-o", "plain", "."])
        .wait();
    assert_eq!(first.code, Some(0), "{}", first.transcript());
    let secret = files.path().join("secret").display().to_string();
    server.run_ok(&["secret", "set", "stored", "--from-file", &secret]);
    let task = files.path().join("task.yaml");
    std::fs::write(
        &task,
        format!(
            "name: keeps\nsecrets: {{mine: stored}}\ntext: |\n  version: v1.1.0\n  steps:\n    \
             - cmd: {} sh -c \"test '{{{{.Secrets.mine}}}}' = hush-hush\"\n",
            environment.busybox()
        ),
    )
    .unwrap();
    server.run_ok(&["task", "apply", "-f", &task.display().to_string()]);
    let working = server.run(&files.path().join("long"), &["run", "."]);
    let data = server.data_dir().display().to_string();
    let archive = files.path().join("backup.tar").display().to_string();
    let backup = ["backup", "--data-dir", &data, &archive];
    let made = environment.start_plain(files.path(), &backup, &[]).wait();
    assert_eq!(made.code, Some(0), "{}", made.transcript());
    // The command neither replaces an archive nor restores into a folder with data.
    let again = environment.start_plain(files.path(), &backup, &[]).wait();
    assert_eq!(again.code, Some(2), "{}", again.transcript());
    let over = ["restore", "--data-dir", &data, &archive];
    let over = environment.start_plain(files.path(), &over, &[]).wait();
    assert_eq!(over.code, Some(2), "{}", over.transcript());
    let working = working.wait();
    assert_eq!(working.code, Some(0), "{}", working.transcript());

    let elsewhere = files.path().join("elsewhere");
    let target = elsewhere.display().to_string();
    let restore = ["restore", "--data-dir", &target, &archive];
    let restored = environment.start_plain(files.path(), &restore, &[]).wait();
    assert_eq!(restored.code, Some(0), "{}", restored.transcript());
    let copy = server_with(&environment, &elsewhere, &server.token);
    let run = copy.fetch_run(&first.run);
    assert_eq!(run["state"], "succeeded", "{run:#}");
    let log = copy.run_ok(&["runs", "logs", &first.run]);
    assert!(log.stdout.contains("the first one"), "{}", log.transcript());
    // The key in the archive decrypts the secret.
    let uses = copy.run_ok(&["task", "run", "keeps"]);
    assert!(
        !uses.transcript().contains("hush-hush"),
        "{}",
        uses.transcript()
    );
}

#[test]
fn stopped_server_leaves_all_data_in_its_database_file() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let mut server = TestServer::start(&environment, &["--no-runner"]);
    server.run_ok(&["token", "create", "other", "--scope", "read"]);
    server.signal("TERM");
    assert_eq!(server.wait_for_exit(), Some(0));
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::create_dir(elsewhere.path().join("blobs")).unwrap();
    for name in ["acrtask.db", "key", "blobs/store-id"] {
        std::fs::copy(server.data_dir().join(name), elsewhere.path().join(name)).unwrap();
    }
    let copy = server_with(&environment, elsewhere.path(), &server.token);
    let tokens = copy.run_ok(&["token", "list"]);
    assert!(tokens.stdout.contains("other"), "{}", tokens.transcript());
}

#[test]
fn server_with_another_key_or_other_blobs_does_not_start() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &["--no-runner"]);
    let file = |name: &str| server.data_dir().join(name).display().to_string();
    let database = format!("sqlite:{}", file("acrtask.db"));
    let other = tempfile::tempdir().unwrap();
    let other = other.path().display().to_string();
    let serve = [
        "serve",
        "--no-runner",
        "--listen",
        "127.0.0.1:0",
        "--data-dir",
        &other,
        "--database",
        &database,
    ];
    for (own, wrong) in [
        (["--blobs", &file("blobs")], "--key-file"),
        (["--key-file", &file("key")], "--blobs"),
    ] {
        let args = [&serve[..], &own[..]].concat();
        let refused = environment
            .start_plain(&server.data_dir(), &args, &[])
            .wait();
        assert_eq!(refused.code, Some(2), "{}", refused.transcript());
        assert!(refused.stderr.contains(wrong), "{}", refused.transcript());
    }
    let doctor = server.start_client(&server.data_dir(), &["doctor"]).wait();
    assert!(doctor.stdout.contains("storage"), "{}", doctor.transcript());
}

#[test]
fn lost_admin_token_is_replaced_beside_a_working_server() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let mut server = TestServer::start(&environment, &["--no-runner"]);
    let data = server.data_dir().display().to_string();
    let reset = ["serve", "--data-dir", &data, "--reset-admin-token"];
    let reset = environment
        .start_plain(&server.data_dir(), &reset, &[])
        .wait();
    assert_eq!(reset.code, Some(0), "{}", reset.transcript());
    let word = reset
        .stdout
        .split_whitespace()
        .find(|word| word.starts_with("acrt_"));
    server.token = word.unwrap().to_owned();
    server.run_ok(&["token", "list"]);
    // A folder without data gets no token.
    let empty = tempfile::tempdir().unwrap();
    let empty = empty.path().display().to_string();
    let wrong = ["serve", "--data-dir", &empty, "--reset-admin-token"];
    let wrong = environment
        .start_plain(&server.data_dir(), &wrong, &[])
        .wait();
    assert_eq!(wrong.code, Some(2), "{}", wrong.transcript());
}

/// Commands whose output must not change with the move.
const LISTS: [&[&str]; 6] = [
    &["runs", "list", "-o", "json"],
    &["task", "list", "-o", "json"],
    &["task", "show", "app", "-o", "json"],
    &["images", "list", "-o", "json"],
    &["secret", "list", "-o", "json"],
    &["cascade", "list", "-o", "json"],
];

#[test]
fn service_moves_from_sqlite_to_postgresql() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let Some(postgres) = TestDb::start() else {
        return;
    };
    let mut server = TestServer::start(&environment, &[]);
    let unique = new_run_id();
    let repository = format!("{}/migrate/{unique}", environment.registry);
    let base = |text: &str| {
        let dockerfile = format!("FROM {}\nRUN echo {text} > /base\n", environment.busybox());
        let files = create_folder(&[("Dockerfile", &dockerfile)]);
        let image = format!("{repository}/base:1");
        let built = environment.run_acrtask(files.path(), &["build", "--local", "-t", &image, "."]);
        assert_eq!(built.code, Some(0), "{}", built.transcript());
    };
    base("first");
    let definition = format!(
        "name: app\nsecrets: {{mine: stored}}\nregistry: {}\ntriggers: {{timers: {{night: {{schedule: '0 3 * * *'}}}}}}\ntext: |\n  \
         version: v1.1.0\n  steps:\n    - cmd: {} sh -c \"test '{{{{.Secrets.mine}}}}' = hush-hush && echo Ü-and-more\"\n    \
         - build: -t {repository}/app:1 -f Dockerfile .\n    - push: [{repository}/app:1]\n",
        environment.registry,
        environment.busybox(),
    );
    let files = create_folder(&[
        ("secret", "hush-hush"),
        ("task.yaml", &definition),
        (
            "context/Dockerfile",
            &format!("FROM {repository}/base:1\nRUN cat /base\n"),
        ),
    ]);
    let path = |name: &str| files.path().join(name).display().to_string();
    server.run_ok(&["secret", "set", "stored", "--from-file", &path("secret")]);
    server.run_ok(&["task", "apply", "-f", &path("task.yaml")]);
    server.run_ok(&["token", "create", "other", "--scope", "read"]);
    let first = server.run_ok(&[
        "task",
        "run",
        "app",
        "--context",
        &path("context"),
        "-o",
        "json",
    ]);
    let run = first.events_named("run_started")[0]["run"].clone();
    let run = run.as_str().unwrap().to_owned();
    let lists = |server: &TestServer| LISTS.map(|list| server.run_json(list));

    let data = server.data_dir();
    let from = format!("sqlite:{}", data.join("acrtask.db").display());
    let migrate = ["migrate-store", "--from", &from, "--to", &postgres.url];
    let refused = environment.start_plain(files.path(), &migrate, &[]).wait();
    assert_eq!(refused.code, Some(2), "{}", refused.transcript());
    assert!(
        refused.transcript().contains("stop the server first"),
        "{}",
        refused.transcript()
    );

    let before = lists(&server);
    server.signal("TERM");
    assert_eq!(server.wait_for_exit(), Some(0));
    let copied = environment.start_plain(files.path(), &migrate, &[]).wait();
    assert_eq!(copied.code, Some(0), "{}", copied.transcript());
    assert!(
        copied.transcript().contains("runs: 1"),
        "{}",
        copied.transcript()
    );
    let again = environment.start_plain(files.path(), &migrate, &[]).wait();
    assert_eq!(again.code, Some(2), "{}", again.transcript());
    assert!(
        again.transcript().contains("name an empty database"),
        "{}",
        again.transcript()
    );

    let file = |name: &str| data.join(name).display().to_string();
    let flags = [
        "--database",
        &postgres.url,
        "--blobs",
        &file("blobs"),
        "--key-file",
        &file("key"),
    ];
    let moved = TestServer::start_with(&environment, &flags, Some(&server.token));
    assert_eq!(lists(&moved), before);
    let log = moved.run_ok(&["runs", "logs", &run]);
    assert!(log.stdout.contains("Ü-and-more"), "{}", log.transcript());
    // The service continues: new rows get new ids, and a changed base starts a run.
    moved.run_ok(&["task", "run", "app", "--context", &path("context")]);
    base("second");
    moved.run_ok(&["base", "check"]);
    let images = moved.run_json(&[
        "images",
        "show",
        &format!("{repository}/app:1"),
        "-o",
        "json",
    ]);
    assert_eq!(images["history"].as_array().unwrap().len(), 2, "{images:#}");
}
