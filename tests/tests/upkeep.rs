//! Purges of a real registry: the plan, its deletion, and what must survive.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use acrtask_tests::{
    Outcome, TestEnvironment, new_run_id,
    project::create_folder,
    registry::TestRegistry,
    repository::{INDEX, MANIFEST, OLD, Repository},
    service::TestServer,
};
use serde_json::{Value, json};

fn run_plain(environment: &TestEnvironment, args: &[&str]) -> Outcome {
    let folder = create_folder(&[]);
    environment.start_plain(folder.path(), args, &[]).wait()
}

fn run_purge(environment: &TestEnvironment, host: &str, filter: &str, more: &[&str]) -> Outcome {
    let args = ["registry", "purge", host, "--filter", filter];
    let rules = ["--ago", "30d", "--untagged"];
    run_plain(environment, &[&args[..], &rules, more].concat())
}

fn parse_report(outcome: &Outcome) -> Value {
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    serde_json::from_str(&outcome.stdout).unwrap()
}

fn now() -> String {
    jiff::Timestamp::now().to_string()
}

#[tokio::test]
async fn image_of_a_kept_tag_survives_with_platforms_and_signatures() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let host = environment.registry.clone();
    let name = format!("upkeep/{}/app", new_run_id());
    let repository = Repository::new(&host, &name);
    let (kept, [kept_amd, kept_arm]) = repository.put_index("prod", "kept").await;
    let (old, [old_amd, old_arm]) = repository.put_index("v0", "old").await;
    // A second tag of the old index, and a tag of a platform of the kept index.
    let (_, index) = repository
        .client
        .fetch_manifest(&format!("{name}:v0"))
        .await
        .unwrap();
    repository.put("v0-alias", INDEX, &index).await;
    let (_, image) = repository
        .client
        .fetch_manifest(&format!("{name}@{kept_amd}"))
        .await
        .unwrap();
    repository.put("v1", MANIFEST, &image).await;
    let kept_sbom = repository.put_referrer(&kept).await;
    let old_sbom = repository.put_referrer(&old).await;
    let signature = |digest: &str| format!("{}.sig", digest.replace(':', "-"));
    repository
        .put_image(&signature(&kept), "kept sig", OLD)
        .await;
    repository.put_image(&signature(&old), "old sig", OLD).await;
    let young = repository.put_image("v9", "young", &now()).await;
    let unknown = repository
        .put_image("v-unknown", "unknown", "1970-01-01T00:00:00Z")
        .await;

    let filter = format!("{name}:^v");
    let purge = |more: &[&str]| run_purge(&environment, &host, &filter, more);
    let planned = parse_report(&purge(&["--dry-run", "-o", "json"]));
    assert!(
        repository.find("v0").await.is_some(),
        "a dry run deletes nothing"
    );
    let done = parse_report(&purge(&["-o", "json"]));
    assert_eq!(planned["repositories"], done["repositories"], "{planned:#}");
    assert_eq!(done["deletedTags"], 5, "{done:#}");
    assert_eq!(done["deletedManifests"], 6, "{done:#}");
    let tags = done["repositories"][0]["tags"].as_array().unwrap();
    let reason = |tag: &str| {
        let line = tags.iter().find(|line| line["tag"] == tag).unwrap();
        line["reason"].as_str().unwrap().to_owned()
    };
    assert_eq!(reason("v-unknown"), "unknown age: kept");
    assert_eq!(reason("prod"), "no filter selects it: kept");
    assert_eq!(reason("v0"), "last updated 2020-01-02 03:04 UTC");

    for digest in [&kept, &kept_amd, &kept_arm, &kept_sbom, &young, &unknown] {
        assert!(repository.find(digest).await.is_some(), "{digest} stays");
    }
    assert_eq!(repository.find("prod").await, Some(kept.clone()));
    assert_eq!(repository.find("v9").await, Some(young));
    for tag in [signature(&kept), kept.replace(':', "-")] {
        assert!(repository.find(&tag).await.is_some(), "{tag} stays");
    }
    for digest in [&old, &old_amd, &old_arm, &old_sbom] {
        assert_eq!(repository.find(digest).await, None, "{digest} goes");
    }
    for tag in [
        "v0",
        "v0-alias",
        "v1",
        &signature(&old),
        &old.replace(':', "-"),
    ] {
        assert_eq!(repository.find(tag).await, None, "{tag} goes");
    }

    let again = parse_report(&purge(&["-o", "json"]));
    assert_eq!(
        (&again["deletedTags"], &again["deletedManifests"]),
        (&json!(0), &json!(0))
    );
    let listed = run_plain(
        &environment,
        &["registry", "tags", &format!("{host}/{name}")],
    );
    let tags: Vec<&str> = listed.stdout.lines().collect();
    assert_eq!(tags.len(), 5, "{}", listed.transcript());
    assert!(tags.contains(&"prod") && tags.contains(&"v9"), "{tags:?}");
}

#[tokio::test]
async fn dry_run_prints_the_lines_of_the_real_run() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let host = environment.registry.clone();
    let id = new_run_id();
    for name in ["api", "worker"] {
        let repository = Repository::new(&host, &format!("upkeep/{id}/{name}"));
        repository.put_index("v1", &format!("{id} {name}")).await;
        repository
            .put_image("v2", &format!("{id} {name} 2"), OLD)
            .await;
    }
    let filter = format!("upkeep/{id}/.*:.*");
    let planned = run_purge(&environment, &host, &filter, &["--dry-run"]);
    assert_eq!(planned.code, Some(0), "{}", planned.transcript());
    let done = run_purge(&environment, &host, &filter, &[]);
    assert_eq!(done.code, Some(0), "{}", done.transcript());
    let planned: Vec<String> = planned
        .stdout
        .lines()
        .skip_while(|line| line.starts_with("DRY RUN"))
        .map(|line| {
            line.replace("Would delete:", "Deleted")
                .replace("Would delete ", "Deleting ")
                .replace("tags to be deleted", "deleted tags")
                .replace("manifests to be deleted", "deleted manifests")
        })
        .collect();
    let done: Vec<&str> = done.stdout.lines().collect();
    assert_eq!(planned, done);
    assert!(done.contains(&"Number of deleted tags: 4"), "{done:#?}");
    assert!(
        done.contains(&"Number of deleted manifests: 8"),
        "{done:#?}"
    );
}

#[tokio::test]
async fn tags_without_manifests_go_alone() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let host = environment.registry.clone();
    let name = format!("upkeep/{}/app", new_run_id());
    let repository = Repository::new(&host, &name);
    let image = repository.put_image("v1", "one", OLD).await;
    let args = ["registry", "purge", &host, "--ago", "1d", "--filter"];
    let purge = |filter: &str| run_plain(&environment, &[&args[..], &[filter]].concat());
    // Without special characters, the filter names one tag.
    let outcome = purge(&format!("{name}:v"));
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    assert!(
        outcome.stderr.contains("names one tag here"),
        "{}",
        outcome.transcript()
    );
    assert!(repository.find("v1").await.is_some());
    let outcome = purge(&format!("{name}:v1"));
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    assert_eq!(repository.find("v1").await, None);
    assert_eq!(repository.find(&image).await, Some(image));
}

#[tokio::test]
async fn registry_without_deletions_is_named_and_unchanged() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    // This registry does not allow deletions.
    let Some(registry) = TestRegistry::start(None) else {
        return;
    };
    let repository = Repository::new(&registry.host, "app");
    let (index, _) = repository.put_index("v1", "one").await;
    for untagged in [&["--untagged"][..], &[]] {
        let args = [
            "registry",
            "purge",
            &registry.host,
            "--filter",
            "app:.*",
            "--ago",
            "1d",
        ];
        let outcome = run_plain(&environment, &[&args[..], untagged].concat());
        assert_eq!(outcome.code, Some(1), "{}", outcome.transcript());
        let text = format!(
            "{} deletes no manifests, so nothing was deleted",
            registry.host
        );
        assert!(outcome.stderr.contains(&text), "{}", outcome.transcript());
        assert!(outcome.stdout.contains("Number of deleted tags: 0"));
        assert_eq!(repository.find("v1").await, Some(index.clone()));
    }
    let path = format!("{}/app", registry.host);
    for (host, filter, text) in [
        (registry.host.as_str(), "*:.*", "write `.*:.*`"),
        (&path, "app:.*", "is not a registry"),
    ] {
        let args = ["registry", "purge", host, "--filter", filter, "--ago", "1d"];
        let outcome = run_plain(&environment, &args);
        assert_eq!(outcome.code, Some(2), "{}", outcome.transcript());
        assert!(outcome.stderr.contains(text), "{}", outcome.transcript());
    }
}

#[tokio::test]
async fn step_purges_with_the_word_acr() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let id = new_run_id();
    let name = format!("upkeep/{id}/app");
    let repository = Repository::new(&environment.registry, &name);
    repository.put_index("v1", &id).await;
    let young = repository.put_image("latest", "young", &now()).await;
    let purge = format!("acr purge --filter 'upkeep/{id}/.*:.*' --ago 30d --untagged");
    let image = "mcr.microsoft.com/acr/acr-cli:0.5";
    let task = format!(
        "version: v1.1.0\nsteps:\n  - id: plan\n    cmd: {}\n  - id: purge\n    cmd: {}\n  - id: list\n    cmd: {}\n  \
         - id: version\n    cmd: acr version\n",
        json!(format!("{purge} --dry-run")),
        json!(purge.replacen("acr", image, 1)),
        json!(format!("acr tag list --repository {name}")),
    );
    let files = create_folder(&[("acr-task.yaml", &task)]);
    // A run that pushes nothing deletes nothing.
    let outcome = environment.run_acrtask(files.path(), &["run", "--no-push", "-o", "plain"]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.transcript());
    assert!(
        outcome
            .transcript()
            .contains("this run pushes nothing, so it deletes nothing"),
        "{}",
        outcome.transcript()
    );
    let shown = format!("Would delete: {}/{name}:v1", environment.registry);
    assert!(outcome.stdout.contains(&shown), "{}", outcome.transcript());
    assert!(repository.find("v1").await.is_some());

    let outcome = environment.run_acrtask(files.path(), &["run", "-o", "plain"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    for text in [
        format!("Deleting tags for repository: {name}"),
        format!("Deleted {}/{name}:v1", environment.registry),
        "Number of deleted tags: 1".into(),
        "Number of deleted manifests: 3".into(),
        format!("Listing tags for the \"{name}\" repository:"),
        format!("{}/{name}:latest", environment.registry),
        "Version: acrtask".into(),
    ] {
        assert!(
            outcome.stdout.contains(&text),
            "{text}:\n{}",
            outcome.transcript()
        );
    }
    assert_eq!(repository.find("v1").await, None);
    assert_eq!(repository.find("latest").await, Some(young));
    assert!(
        !outcome.transcript().contains("pull"),
        "{}",
        outcome.transcript()
    );
}

#[tokio::test]
async fn tags_and_manifests_are_deleted_by_name() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let id = new_run_id();
    let name = format!("upkeep/{id}/app");
    let repository = Repository::new(&environment.registry, &name);
    let image = repository.put_image("v1", &id, OLD).await;
    let gone = repository.put_image("v2", "two", OLD).await;
    let task = format!(
        "version: v1.1.0\nsteps:\n  - cmd: acr tag delete --repository {name} v1\n  - cmd: acr manifest delete --repository {name} {gone}\n  \
         - cmd: acr tag delete --repository {name} missing\n"
    );
    let files = create_folder(&[("acr-task.yaml", &task)]);
    let outcome = environment.run_acrtask(files.path(), &["run", "-o", "plain"]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.transcript());
    assert!(
        outcome.transcript().contains("missing does not exist"),
        "{}",
        outcome.transcript()
    );
    assert_eq!(repository.find("v1").await, None);
    assert_eq!(repository.find(&image).await, Some(image));
    assert_eq!(repository.find(&gone).await, None);
    assert_eq!(repository.find("v2").await, None);
}

#[tokio::test]
async fn ready_made_purges_run_at_a_server() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let host = environment.registry.clone();
    let name = format!("upkeep/{}/app", new_run_id());
    let repository = Repository::new(&host, &name);
    for tag in ["v1.0", "latest", "main-1", "pr-1", "pr-1-linux"] {
        repository.put_image(tag, tag, OLD).await;
    }
    let newer = OLD.replace("2020", "2021");
    repository.put_image("main-2", "main-2", &newer).await;
    let server = TestServer::start(&environment, &[]);
    let folder = create_folder(&[]);
    let client = |args: &[&str]| {
        let outcome = server.start_client(folder.path(), args).wait();
        assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
        outcome
    };
    let listed = client(&["catalog", "list"]).stdout;
    let repositories = format!("repositories={name}");
    for (entry, more, left) in [
        (
            "purge-pr",
            "age=1d",
            &["latest", "main-1", "main-2", "v1.0"][..],
        ),
        ("purge-nightly", "keep=1", &["latest", "main-2", "v1.0"]),
    ] {
        assert!(listed.contains(entry), "{listed}");
        let set = ["--set", &repositories, "--set", more];
        client(&[&["catalog", "add", entry, "-r", &host], &set[..]].concat());
        client(&["task", "run", entry]);
        let tags = client(&["registry", "tags", &format!("{host}/{name}")]).stdout;
        let mut tags: Vec<&str> = tags.lines().collect();
        tags.sort_unstable();
        assert_eq!(tags.len(), left.len(), "{entry}: {tags:?}");
        for tag in left {
            assert!(tags.iter().any(|line| line.starts_with(tag)), "{tags:?}");
        }
    }
}
