//! Backups: one archive of a server that works, restored elsewhere; the file of a server that was stopped; a lost token;
//! a service that moves from SQLite to PostgreSQL.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::Path;

use acrtask_tests::{
    World, new_run_id,
    postgres::Postgres,
    project::{folder, one_step},
    service::Server,
};

/// Starts a server with the data of another one.
fn server_with(world: &World, data: &Path, token: &str) -> Server {
    let file = |name: &str| data.join(name).display().to_string();
    let flags = [
        "--database",
        &format!("sqlite:{}", file("acrtask.db")),
        "--blobs",
        &file("blobs"),
        "--key-file",
        &file("key"),
    ];
    Server::start_with(world, &flags, Some(token))
}

#[test]
fn backup_of_a_working_server_is_restored_elsewhere() {
    let Some(world) = World::find() else { return };
    let server = Server::start(&world, &[]);
    let files = folder(&[
        ("acr-task.yaml", &one_step("echo the first one")),
        ("secret", "hush-hush"),
        ("long/acr-task.yaml", &one_step("echo begun; sleep 8")),
    ]);
    let first = server
        .run(files.path(), &["run", "-o", "plain", "."])
        .wait();
    assert_eq!(first.code, Some(0), "{}", first.all());
    let secret = files.path().join("secret").display().to_string();
    server.ok(&["secret", "set", "stored", "--from-file", &secret]);
    let task = files.path().join("task.yaml");
    std::fs::write(
        &task,
        format!(
            "name: keeps\nsecrets: {{mine: stored}}\ntext: |\n  version: v1.1.0\n  steps:\n    \
             - cmd: {} sh -c \"test '{{{{.Secrets.mine}}}}' = hush-hush\"\n",
            world.busybox()
        ),
    )
    .unwrap();
    server.ok(&["task", "apply", "-f", &task.display().to_string()]);
    let working = server.run(&files.path().join("long"), &["run", "."]);
    let data = server.data().display().to_string();
    let archive = files.path().join("backup.tar").display().to_string();
    let backup = ["backup", "--data-dir", &data, &archive];
    let made = world.start_plain(files.path(), &backup, &[]).wait();
    assert_eq!(made.code, Some(0), "{}", made.all());
    // An archive is not replaced, and a folder with data is left alone.
    let again = world.start_plain(files.path(), &backup, &[]).wait();
    assert_eq!(again.code, Some(2), "{}", again.all());
    let over = ["restore", "--data-dir", &data, &archive];
    let over = world.start_plain(files.path(), &over, &[]).wait();
    assert_eq!(over.code, Some(2), "{}", over.all());
    let working = working.wait();
    assert_eq!(working.code, Some(0), "{}", working.all());

    let elsewhere = files.path().join("elsewhere");
    let target = elsewhere.display().to_string();
    let restore = ["restore", "--data-dir", &target, &archive];
    let restored = world.start_plain(files.path(), &restore, &[]).wait();
    assert_eq!(restored.code, Some(0), "{}", restored.all());
    let copy = server_with(&world, &elsewhere, &server.token);
    let run = copy.run_of(&first.run);
    assert_eq!(run["state"], "succeeded", "{run:#}");
    let log = copy.ok(&["runs", "logs", &first.run]);
    assert!(log.stdout.contains("the first one"), "{}", log.all());
    // The secret opens with the key of the archive.
    let uses = copy.ok(&["task", "run", "keeps"]);
    assert!(!uses.all().contains("hush-hush"), "{}", uses.all());
}

#[test]
fn stopped_server_leaves_all_data_in_its_database_file() {
    let Some(world) = World::find() else { return };
    let mut server = Server::start(&world, &["--no-runner"]);
    server.ok(&["token", "create", "other", "--scope", "read"]);
    server.signal("TERM");
    assert_eq!(server.ended(), Some(0));
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::create_dir(elsewhere.path().join("blobs")).unwrap();
    for name in ["acrtask.db", "key", "blobs/store-id"] {
        std::fs::copy(server.data().join(name), elsewhere.path().join(name)).unwrap();
    }
    let copy = server_with(&world, elsewhere.path(), &server.token);
    let tokens = copy.ok(&["token", "list"]);
    assert!(tokens.stdout.contains("other"), "{}", tokens.all());
}

#[test]
fn server_with_another_key_or_other_blobs_does_not_start() {
    let Some(world) = World::find() else { return };
    let server = Server::start(&world, &["--no-runner"]);
    let file = |name: &str| server.data().join(name).display().to_string();
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
        let refused = world.start_plain(&server.data(), &args, &[]).wait();
        assert_eq!(refused.code, Some(2), "{}", refused.all());
        assert!(refused.stderr.contains(wrong), "{}", refused.all());
    }
    let doctor = server.client(&server.data(), &["doctor"]).wait();
    assert!(doctor.stdout.contains("storage"), "{}", doctor.all());
}

#[test]
fn lost_admin_token_is_replaced_beside_a_working_server() {
    let Some(world) = World::find() else { return };
    let mut server = Server::start(&world, &["--no-runner"]);
    let data = server.data().display().to_string();
    let reset = ["serve", "--data-dir", &data, "--reset-admin-token"];
    let reset = world.start_plain(&server.data(), &reset, &[]).wait();
    assert_eq!(reset.code, Some(0), "{}", reset.all());
    let word = reset
        .stdout
        .split_whitespace()
        .find(|word| word.starts_with("acrt_"));
    server.token = word.unwrap().to_owned();
    server.ok(&["token", "list"]);
    // A folder without data gets none.
    let empty = tempfile::tempdir().unwrap();
    let empty = empty.path().display().to_string();
    let wrong = ["serve", "--data-dir", &empty, "--reset-admin-token"];
    let wrong = world.start_plain(&server.data(), &wrong, &[]).wait();
    assert_eq!(wrong.code, Some(2), "{}", wrong.all());
}

/// Answers that a service gives about its data.
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
    let Some(world) = World::find() else { return };
    let Some(postgres) = Postgres::start() else {
        return;
    };
    let mut server = Server::start(&world, &[]);
    let unique = new_run_id();
    let repository = format!("{}/migrate/{unique}", world.registry);
    let base = |text: &str| {
        let dockerfile = format!("FROM {}\nRUN echo {text} > /base\n", world.busybox());
        let files = folder(&[("Dockerfile", &dockerfile)]);
        let image = format!("{repository}/base:1");
        let built = world.acrtask(files.path(), &["build", "--local", "-t", &image, "."]);
        assert_eq!(built.code, Some(0), "{}", built.all());
    };
    base("first");
    let definition = format!(
        "name: app\nsecrets: {{mine: stored}}\nregistry: {}\ntriggers: {{timers: {{night: {{schedule: '0 3 * * *'}}}}}}\ntext: |\n  \
         version: v1.1.0\n  steps:\n    - cmd: {} sh -c \"test '{{{{.Secrets.mine}}}}' = hush-hush && echo Ü-and-more\"\n    \
         - build: -t {repository}/app:1 -f Dockerfile .\n    - push: [{repository}/app:1]\n",
        world.registry,
        world.busybox(),
    );
    let files = folder(&[
        ("secret", "hush-hush"),
        ("task.yaml", &definition),
        (
            "context/Dockerfile",
            &format!("FROM {repository}/base:1\nRUN cat /base\n"),
        ),
    ]);
    let path = |name: &str| files.path().join(name).display().to_string();
    server.ok(&["secret", "set", "stored", "--from-file", &path("secret")]);
    server.ok(&["task", "apply", "-f", &path("task.yaml")]);
    server.ok(&["token", "create", "other", "--scope", "read"]);
    let first = server.ok(&[
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
    let lists = |server: &Server| LISTS.map(|list| server.json(list));

    let data = server.data();
    let from = format!("sqlite:{}", data.join("acrtask.db").display());
    let migrate = ["migrate-store", "--from", &from, "--to", &postgres.url];
    let refused = world.start_plain(files.path(), &migrate, &[]).wait();
    assert_eq!(refused.code, Some(2), "{}", refused.all());
    assert!(
        refused.all().contains("stop the server first"),
        "{}",
        refused.all()
    );

    let before = lists(&server);
    server.signal("TERM");
    assert_eq!(server.ended(), Some(0));
    let copied = world.start_plain(files.path(), &migrate, &[]).wait();
    assert_eq!(copied.code, Some(0), "{}", copied.all());
    assert!(copied.all().contains("runs: 1"), "{}", copied.all());
    let again = world.start_plain(files.path(), &migrate, &[]).wait();
    assert_eq!(again.code, Some(2), "{}", again.all());
    assert!(
        again.all().contains("name an empty database"),
        "{}",
        again.all()
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
    let moved = Server::start_with(&world, &flags, Some(&server.token));
    assert_eq!(lists(&moved), before);
    let log = moved.ok(&["runs", "logs", &run]);
    assert!(log.stdout.contains("Ü-and-more"), "{}", log.all());
    // It goes on: new rows have new numbers, and a base that moves starts a run.
    moved.ok(&["task", "run", "app", "--context", &path("context")]);
    base("second");
    moved.ok(&["base", "check"]);
    let images = moved.json(&[
        "images",
        "show",
        &format!("{repository}/app:1"),
        "-o",
        "json",
    ]);
    assert_eq!(images["history"].as_array().unwrap().len(), 2, "{images:#}");
}
