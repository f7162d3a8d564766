//! Images that runs pushed, and their bases.

use acrtask_api::{
    run::{BaseResult, BuiltResult, ImageResult, RunResult},
    task::TaskDefinition,
};
use acrtask_model::{
    Digest, RunState, StepId,
    events::{BaseRole, Evidence},
};
use acrtask_store::{ImageFilter, Ms, Report, RunRow, StoreError};

use crate::support::{NOW, TestDb, new_run, on_both};

on_both!(
    successful_run_stores_its_images,
    failed_run_stores_no_images,
    last_run_of_a_task_has_the_newest_images,
    runs_pushing_the_same_names_do_not_deadlock,
    outdated_images_expire,
);

pub(crate) fn sha(letter: char) -> Digest {
    format!("sha256:{}", letter.to_string().repeat(64))
        .parse()
        .unwrap()
}

/// Returns the result of a run that built these images from these bases: names, and letters of
/// their digests.
pub(crate) fn run_result(images: &[(&str, char)], bases: &[(&str, char)]) -> RunResult {
    let step = StepId::new("build").unwrap();
    RunResult {
        built: images
            .iter()
            .map(|(name, letter)| BuiltResult {
                step: step.clone(),
                names: vec![(*name).into()],
                digest: sha(*letter),
            })
            .collect(),
        images: images
            .iter()
            .map(|(name, letter)| ImageResult {
                step: step.clone(),
                name: (*name).into(),
                digest: sha(*letter),
                platforms: [("linux/amd64".to_owned(), sha(*letter))].into(),
                staged: false,
            })
            .collect(),
        bases: bases
            .iter()
            .map(|(name, letter)| BaseResult {
                step: step.clone(),
                role: BaseRole::Runtime,
                name: (*name).into(),
                digest: sha(*letter),
                evidence: Evidence::Provenance,
                platforms: Vec::new(),
            })
            .collect(),
        ..RunResult::default()
    }
}

pub(crate) async fn create_task(db: &TestDb, name: &str) {
    let definition: TaskDefinition =
        serde_json::from_value(serde_json::json!({"name": name, "cmd": "alpine true"})).unwrap();
    db.store
        .create_task(&format!("id-{name}"), &definition, None, NOW)
        .await
        .unwrap();
}

async fn start_run(db: &TestDb, id: &str, task: Option<&str>, at: Ms) -> RunRow {
    let mut new = new_run(id);
    new.task_id = task.map(|name| format!("id-{name}"));
    new.task_name = task.map(str::to_owned);
    db.store.enqueue(new, at).await.unwrap();
    let run = db.claim("a", 1, at).await.remove(0);
    db.report_all("a", &run, at, vec![Report::Accepted, Report::Started])
        .await;
    run
}

fn finished_with(state: RunState, result: RunResult) -> Report {
    Report::Finished {
        state,
        reason: None,
        result: Box::new(result),
        log_length: 0,
        log_sha256: "ab".repeat(32),
    }
}

/// Completes a successful run of a task that took one second.
pub(crate) async fn complete_run(
    db: &TestDb,
    id: &str,
    task: Option<&str>,
    result: RunResult,
    at: Ms,
) {
    let run = start_run(db, id, task, at - 1000).await;
    db.report("a", &run, at, finished_with(RunState::Succeeded, result))
        .await;
}

fn all_images() -> ImageFilter {
    ImageFilter {
        limit: 100,
        ..ImageFilter::default()
    }
}

async fn successful_run_stores_its_images(db: &TestDb) {
    create_task(db, "app").await;
    let made = run_result(
        &[("r.io/app:1", 'a'), ("r.io/app:latest", 'a')],
        &[
            ("busybox", 'b'),
            (
                "r.io/base@sha256:00000000000000000000000000000000000000000000000000000000000000ff",
                'c',
            ),
        ],
    );
    let run = start_run(db, "one", Some("app"), NOW - 1000).await;
    let finish = finished_with(RunState::Succeeded, made);
    // The runner repeats its report because the verdict was lost.
    db.report("a", &run, NOW, finish.clone()).await;
    db.report("a", &run, NOW + 5, finish).await;
    let images = db.store.images(all_images()).await.unwrap();
    let names: Vec<&str> = images.iter().map(|image| image.name.as_str()).collect();
    assert_eq!(names, ["r.io/app:1", "r.io/app:latest"]);
    let (image, bases) = db.store.image("r.io/app:1").await.unwrap();
    assert_eq!(image, images[0]);
    assert_eq!(image.digest, sha('a'));
    assert_eq!((image.built_at, image.run_ms), (NOW, Some(1000)));
    assert_eq!(image.run.as_str(), "one");
    assert_eq!(image.task_name.as_deref(), Some("app"));
    assert!(image.task_exists && image.newest);
    assert_eq!(image.platforms, ["linux/amd64"]);
    let shown: Vec<(&str, bool)> = bases
        .iter()
        .map(|base| (base.name.as_str(), base.pinned))
        .collect();
    assert_eq!(
        shown,
        [
            ("docker.io/library/busybox:latest", false),
            (
                "r.io/base@sha256:00000000000000000000000000000000000000000000000000000000000000ff",
                true
            )
        ]
    );
    assert_eq!(bases[0].digest, sha('b'));
    assert_eq!(bases[0].role, BaseRole::Runtime);
    assert_eq!(bases[0].evidence, Evidence::Provenance);
    let page = ImageFilter {
        prefix: Some("r.io/app".into()),
        after: Some("r.io/app:1".into()),
        pattern: Some("ap*".into()),
        task: Some("app".into()),
        newest: true,
        limit: 1,
    };
    let page = db.store.images(page).await.unwrap();
    assert_eq!(page, [images[1].clone()]);
    for (pattern, prefix) in [
        (Some("other"), None),
        (Some("b*"), None),
        (None, Some("r.io/b")),
    ] {
        let none = ImageFilter {
            prefix: prefix.map(str::to_owned),
            pattern: pattern.map(str::to_owned),
            ..all_images()
        };
        assert_eq!(db.store.images(none).await.unwrap(), []);
    }
    let missing = db.store.image("r.io/app:2").await.unwrap_err();
    assert!(
        matches!(missing, StoreError::NotFound { .. }),
        "{missing:?}"
    );
}

async fn failed_run_stores_no_images(db: &TestDb) {
    let run = start_run(db, "one", None, NOW).await;
    let made = run_result(&[("r.io/app:1", 'a')], &[]);
    db.report("a", &run, NOW, finished_with(RunState::Failed, made))
        .await;
    assert_eq!(db.store.images(all_images()).await.unwrap(), []);
}

async fn last_run_of_a_task_has_the_newest_images(db: &TestDb) {
    create_task(db, "app").await;
    let base = [("r.io/base:1", 'b')];
    let first = run_result(&[("r.io/app:latest", '1'), ("r.io/app:one", '1')], &base);
    complete_run(db, "one", Some("app"), first, NOW).await;
    complete_run(
        db,
        "free",
        None,
        run_result(&[("r.io/free:1", 'f')], &base),
        NOW,
    )
    .await;
    let second = run_result(
        &[("r.io/app:latest", '2'), ("r.io/app:two", '2')],
        &[("r.io/base:1", 'c')],
    );
    complete_run(db, "two", Some("app"), second, NOW + 10).await;
    // A run without pushes leaves the images unchanged.
    complete_run(db, "test", Some("app"), RunResult::default(), NOW + 20).await;
    let images = db.store.images(all_images()).await.unwrap();
    let newest: Vec<(&str, bool)> = images
        .iter()
        .map(|image| (image.name.as_str(), image.newest))
        .collect();
    assert_eq!(
        newest,
        [
            ("r.io/app:latest", true),
            ("r.io/app:one", false),
            ("r.io/app:two", true),
            ("r.io/free:1", true)
        ]
    );
    let graph = db.store.image_graph().await.unwrap();
    let graph: Vec<(&str, Digest)> = graph
        .iter()
        .map(|(image, bases)| (image.name.as_str(), bases[0].digest.clone()))
        .collect();
    assert_eq!(
        graph,
        [
            ("r.io/app:latest", sha('c')),
            ("r.io/app:two", sha('c')),
            ("r.io/free:1", sha('b'))
        ]
    );
    let builds = db.store.image_builds("r.io/app:latest", 10).await.unwrap();
    let builds: Vec<(&str, Digest)> = builds
        .iter()
        .map(|build| (build.run.as_str(), build.digest.clone()))
        .collect();
    assert_eq!(builds, [("two", sha('2')), ("one", sha('1'))]);
}

async fn runs_pushing_the_same_names_do_not_deadlock(db: &TestDb) {
    create_task(db, "app").await;
    let mut runs = Vec::new();
    for number in 0..8 {
        runs.push(start_run(db, &format!("run-{number}"), Some("app"), NOW).await);
    }
    let reports = runs.iter().enumerate().map(|(number, run)| {
        let names = if number % 2 == 0 {
            [("r.io/a:1", '1'), ("r.io/b:1", '2')]
        } else {
            [("r.io/b:1", '3'), ("r.io/a:1", '4')]
        };
        let report = finished_with(RunState::Succeeded, run_result(&names, &[("busybox", 'b')]));
        db.report("a", run, NOW, report)
    });
    for verdict in futures::future::join_all(reports).await {
        assert_eq!(verdict, acrtask_store::Verdict::Done);
    }
    let images = db.store.images(all_images()).await.unwrap();
    assert_eq!(images.len(), 2);
    // Both images belong to the same run.
    assert_eq!(images[0].run, images[1].run);
}

async fn outdated_images_expire(db: &TestDb) {
    create_task(db, "app").await;
    let base = [("r.io/base:1", 'b')];
    let of = |tag: &str| {
        run_result(
            &[("r.io/app:latest", '1'), (&format!("r.io/app:{tag}"), '1')],
            &base,
        )
    };
    complete_run(db, "one", Some("app"), of("one"), NOW).await;
    complete_run(db, "two", Some("app"), of("two"), NOW + 10).await;
    complete_run(
        db,
        "free",
        None,
        run_result(&[("r.io/free:1", 'f')], &base),
        NOW,
    )
    .await;
    db.store.remove_expired(NOW + 1000, 100).await.unwrap();
    let images = db.store.images(all_images()).await.unwrap();
    let names: Vec<&str> = images.iter().map(|image| image.name.as_str()).collect();
    assert_eq!(names, ["r.io/app:latest", "r.io/app:two"]);
    let builds = db.store.image_builds("r.io/app:latest", 10).await.unwrap();
    assert_eq!(builds.len(), 1);
}
