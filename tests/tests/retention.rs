//! Retention by rules in a file, limits, explanations, and purges at a server that knows more than
//! the registry.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use acrtask_tests::{
    Outcome, TestEnvironment, new_run_id,
    project::create_folder,
    repository::{OLD, Repository},
    service::TestServer,
};
use serde_json::{Value, json};

fn run_with(environment: &TestEnvironment, rules: &str, args: &[&str]) -> Outcome {
    let folder = create_folder(&[("rules.yaml", rules)]);
    environment.start_plain(folder.path(), args, &[]).wait()
}

fn parse(outcome: &Outcome) -> Value {
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    serde_json::from_str(&outcome.stdout).unwrap()
}

fn day(n: u32) -> String {
    format!("2020-01-{n:02}T00:00:00Z")
}

#[tokio::test]
async fn retention_deletes_what_its_preview_shows() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let host = environment.registry.clone();
    let id = new_run_id();
    let name = format!("retention/{id}/app");
    let repository = Repository::new(&host, &name);
    for n in 1..=5 {
        repository
            .put_image(&format!("pr-{n}"), &format!("{id} {n}"), &day(n))
            .await;
    }
    repository
        .put_image("v1.0", &format!("{id} v1.0"), OLD)
        .await;
    let (index, [amd64, _]) = repository.put_index("latest", &id).await;
    let other = Repository::new(&host, &format!("retention/{id}/other"));
    other.put_image("pr-1", &format!("{id} other"), OLD).await;

    let rules = format!(
        "rules:\n  - repositories: retention/{id}/app\n    keep:\n      tags: ['^v\\d', latest]\n      newest: 2\n"
    );
    let args = [
        "registry",
        "retention",
        &host,
        "--file",
        "rules.yaml",
        "-o",
        "json",
    ];
    let planned = parse(&run_with(
        &environment,
        &rules,
        &[&args[..], &["--dry-run"]].concat(),
    ));
    assert!(repository.find("pr-1").await.is_some());

    // The explanation agrees with the plan.
    let image = format!("{host}/{name}");
    let why = |reference: &str| {
        let args = [
            "image",
            "why-kept",
            reference,
            "--file",
            "rules.yaml",
            "-o",
            "json",
        ];
        parse(&run_with(&environment, &rules, &args))
    };
    let found = why(&format!("{image}@{amd64}"));
    let reason = format!("part of the index {index}: kept");
    assert_eq!(found["reasons"], json!([reason]), "{found:#}");
    assert_eq!(found["goes"], false, "{found:#}");
    assert_eq!(why(&format!("{image}:pr-1"))["goes"], true);
    let found = why(&format!("{image}:v1.0"));
    assert_eq!(
        found["decisions"][0]["reason"], "a rule keeps `^v\\d`: kept",
        "{found:#}"
    );
    let text = run_with(
        &environment,
        "",
        &["image", "why-kept", &format!("{image}:latest")],
    );
    assert!(
        text.stdout.contains("the tag latest names it"),
        "{}",
        text.transcript()
    );

    let done = parse(&run_with(&environment, &rules, &args));
    assert_eq!(planned["repositories"], done["repositories"], "{planned:#}");
    assert_eq!(done["deletedTags"], 3, "{done:#}");
    for tag in ["pr-4", "pr-5", "v1.0", "latest"] {
        assert!(repository.find(tag).await.is_some(), "{tag} stays");
    }
    for tag in ["pr-1", "pr-2", "pr-3"] {
        assert_eq!(repository.find(tag).await, None, "{tag} goes");
    }
    assert!(
        other.find("pr-1").await.is_some(),
        "no rule names this repository"
    );
}

#[tokio::test]
async fn limits_stop_a_run_and_the_next_one_continues() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let host = environment.registry.clone();
    let id = new_run_id();
    let repository = Repository::new(&host, &format!("retention/{id}/app"));
    for n in 1..=4 {
        repository
            .put_image(&format!("pr-{n}"), &format!("{id} {n}"), &day(n))
            .await;
    }
    let rules = |limit: &str| {
        format!("{limit}\nrules:\n  - repositories: retention/{id}/.*\n    tags: ^pr-\n")
    };
    let args = ["registry", "retention", &host, "--file", "rules.yaml"];
    let outcome = run_with(&environment, &rules("maxShare: 50%"), &args);
    assert_eq!(outcome.code, Some(1), "{}", outcome.transcript());
    assert!(
        outcome.stderr.contains("deletes 100 % of the tags"),
        "{}",
        outcome.transcript()
    );
    assert!(repository.find("pr-1").await.is_some());

    let with_json = [&args[..], &["-o", "json"]].concat();
    let first = parse(&run_with(
        &environment,
        &rules("maxDeletions: 3"),
        &with_json,
    ));
    assert_eq!(first["deletedTags"], 3, "{first:#}");
    assert_eq!(repository.find("pr-3").await, None, "the oldest go first");
    assert!(repository.find("pr-4").await.is_some());
    let second = parse(&run_with(
        &environment,
        &rules("maxDeletions: 3"),
        &with_json,
    ));
    assert_eq!(second["deletedTags"], 1, "{second:#}");

    for (rules, expected) in [
        (rules("maxShare: 0"), "`maxShare: 0` is not a share"),
        (
            "rules: [{repositories: a}]".into(),
            "it would delete all tags of `a`",
        ),
        (
            "rules: [{repositories: a, keep: {newest: 1, used: true}}]".into(),
            "server",
        ),
    ] {
        let outcome = run_with(&environment, &rules, &args);
        assert_eq!(outcome.code, Some(2), "{}", outcome.transcript());
        assert!(
            outcome.stderr.contains(expected),
            "{}",
            outcome.transcript()
        );
    }
}

#[tokio::test]
async fn server_protects_bases_and_dates_its_pushes() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &[]);
    let host = environment.registry.clone();
    let id = new_run_id();
    let name = |image: &str| format!("retention/{id}/{image}");
    let full = |image: &str| format!("{host}/{}", name(image));
    // The build states a creation time in 2020, as reproducible builds do.
    let dockerfile = format!("FROM {}\nRUN echo {id} > /note\n", environment.busybox());
    let files = create_folder(&[("Dockerfile", &dockerfile)]);
    let epoch = "SOURCE_DATE_EPOCH=1577934245";
    let base = full("base:1");
    let args = ["build", "-t", &base, "--build-arg", epoch, "--local", "."];
    let outcome = environment.start(files.path(), &args).wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());

    let task = format!(
        "version: v1.1.0\nsteps:\n  - {{id: image, build: -t {0} --build-arg {epoch} .}}\n  - {{id: out, push: [{0}]}}\n",
        full("app:1")
    );
    let dockerfile = format!("FROM {base}\nRUN cat /note > /seen\n");
    let files = create_folder(&[("acr-task.yaml", &task), ("Dockerfile", &dockerfile)]);
    let cmd = format!("{} true", environment.busybox());
    server.run_ok(&[
        "task",
        "create",
        "app",
        "--context",
        "/dev/null",
        "--cmd",
        &cmd,
    ]);
    let args = [
        "task",
        "run",
        "app",
        "--context",
        ".",
        "--file",
        "acr-task.yaml",
    ];
    let outcome = server.start_client(files.path(), &args).wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    let by_hand = Repository::new(&host, &name("app"));
    by_hand.put_image("2", &id, OLD).await;
    let caches = Repository::new(&host, &name("app"));
    caches
        .put_image("cache_app_image", &format!("{id} cache"), OLD)
        .await;

    // Without the server, the base and the image look old.
    let filter = format!("retention/{id}/.*:.*");
    let purge = [
        "registry",
        "purge",
        &host,
        "--filter",
        &filter,
        "--ago",
        "30d",
        "--dry-run",
    ];
    let outcome = environment.start_plain(files.path(), &purge, &[]).wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    assert!(
        outcome.stdout.contains("to be deleted: 4"),
        "{}",
        outcome.transcript()
    );

    let rules = format!(
        "rules:\n  - repositories: retention/{id}/.*\n    keep: {{youngerThan: 30d, used: true}}\n"
    );
    let task = format!(
        "version: v1.1.0\nsteps:\n  - {{id: plan, cmd: acr retention --file rules.yaml --dry-run}}\n  \
         - {{id: purge, cmd: \"acr purge --filter '{filter}' --ago 30d --untagged --verbose\"}}\n"
    );
    let files = create_folder(&[("acr-task.yaml", &task), ("rules.yaml", &rules)]);
    let outcome = server
        .run(files.path(), &["run", "-o", "plain", "."])
        .wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    for text in [
        format!("Would delete: {}", full("app:2")),
        format!("Deleted {}", full("app:2")),
        format!("Kept {base} (a current image was built from it: kept)"),
        format!(
            "Kept {} (build cache of a task: kept)",
            full("app:cache_app_image")
        ),
        format!(
            "Kept {} (last updated {}",
            full("app:1"),
            &jiff::Timestamp::now().to_string()[..4]
        ),
        "Number of deleted tags: 1".into(),
    ] {
        assert!(
            outcome.stdout.contains(&text),
            "{text}:\n{}",
            outcome.transcript()
        );
    }
    // The cache of the build, its seal, and the cache that a step may have, in both steps.
    let caches = outcome
        .stdout
        .matches("(build cache of a task: kept)")
        .count();
    assert_eq!(caches, 6, "{}", outcome.transcript());
    assert!(by_hand.find("1").await.is_some());
    assert_eq!(by_hand.find("2").await, None);

    // The same records reach a user with a token.
    let record = server.run_json(&["image", "why-kept", &base, "-o", "json"]);
    let reasons = record["reasons"].to_string();
    assert!(
        reasons.contains("a current image was built from it"),
        "{record:#}"
    );

    // Without a server, `used` is refused instead of ignored.
    let outcome = environment
        .start(files.path(), &["run", "--local", "-o", "plain"])
        .wait();
    assert_eq!(outcome.code, Some(1), "{}", outcome.transcript());
    assert!(
        outcome
            .transcript()
            .contains("needs the records of a server"),
        "{}",
        outcome.transcript()
    );
}
