//! Images that runs pushed, and what they were built from.

use acrtask_api::{
    run::{BaseResult, BuiltResult, ImageResult, RunResult},
    task::TaskDefinition,
};
use acrtask_model::{
    Digest, RunState, StepId,
    events::{BaseRole, Evidence},
};
use acrtask_store::{ImageFilter, Ms, Report, RunRow, StoreError};

use crate::support::{Fixture, NOW, new_run, on_both};

on_both!(
    a_run_that_succeeds_leaves_its_images,
    a_run_that_does_not_succeed_leaves_none,
    the_last_run_of_a_task_has_the_newest_images,
    runs_that_push_the_same_names_do_not_wait_for_each_other,
    what_nobody_builds_again_goes,
);

pub(crate) fn sha(letter: char) -> Digest {
    format!("sha256:{}", letter.to_string().repeat(64))
        .parse()
        .unwrap()
}

/// What a run came to that built these images from one base each: name and letter of its digest.
pub(crate) fn result(images: &[(&str, char)], bases: &[(&str, char)]) -> RunResult {
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
                held: false,
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

pub(crate) async fn task(fixture: &Fixture, name: &str) {
    let definition: TaskDefinition =
        serde_json::from_value(serde_json::json!({"name": name, "cmd": "alpine true"})).unwrap();
    fixture
        .store
        .create_task(&format!("id-{name}"), &definition, None, NOW)
        .await
        .unwrap();
}

async fn begin(fixture: &Fixture, id: &str, task: Option<&str>, at: Ms) -> RunRow {
    let mut new = new_run(id);
    new.task_id = task.map(|name| format!("id-{name}"));
    new.task_name = task.map(str::to_owned);
    fixture.store.enqueue(new, at).await.unwrap();
    let run = fixture.claim("a", 1, at).await.remove(0);
    fixture
        .say_all("a", &run, at, vec![Report::Accepted, Report::Started])
        .await;
    run
}

fn end(state: RunState, result: RunResult) -> Report {
    Report::Finished {
        state,
        reason: None,
        result: Box::new(result),
        log_length: 0,
        log_sha256: "ab".repeat(32),
    }
}

/// A run of a task that came to this, a second after it began.
pub(crate) async fn ran(
    fixture: &Fixture,
    id: &str,
    task: Option<&str>,
    result: RunResult,
    at: Ms,
) {
    let run = begin(fixture, id, task, at - 1000).await;
    fixture
        .say("a", &run, at, end(RunState::Succeeded, result))
        .await;
}

fn all() -> ImageFilter {
    ImageFilter {
        limit: 100,
        ..ImageFilter::default()
    }
}

async fn a_run_that_succeeds_leaves_its_images(fixture: &Fixture) {
    task(fixture, "app").await;
    let made = result(
        &[("r.io/app:1", 'a'), ("r.io/app:latest", 'a')],
        &[
            ("busybox", 'b'),
            (
                "r.io/base@sha256:00000000000000000000000000000000000000000000000000000000000000ff",
                'c',
            ),
        ],
    );
    let run = begin(fixture, "one", Some("app"), NOW - 1000).await;
    let finish = end(RunState::Succeeded, made);
    // Twice: the answer to the first time was lost.
    fixture.say("a", &run, NOW, finish.clone()).await;
    fixture.say("a", &run, NOW + 5, finish).await;
    let images = fixture.store.images(all()).await.unwrap();
    let names: Vec<&str> = images.iter().map(|image| image.name.as_str()).collect();
    assert_eq!(names, ["r.io/app:1", "r.io/app:latest"]);
    let (image, bases) = fixture.store.image("r.io/app:1").await.unwrap();
    assert_eq!(image, images[0]);
    assert_eq!(image.digest, sha('a'));
    assert_eq!((image.built_at, image.run_ms), (NOW, Some(1000)));
    assert_eq!(image.run.as_str(), "one");
    assert_eq!(image.task_name.as_deref(), Some("app"));
    assert!(image.task_lives && image.newest);
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
    let page = fixture.store.images(page).await.unwrap();
    assert_eq!(page, [images[1].clone()]);
    for (pattern, prefix) in [
        (Some("other"), None),
        (Some("b*"), None),
        (None, Some("r.io/b")),
    ] {
        let none = ImageFilter {
            prefix: prefix.map(str::to_owned),
            pattern: pattern.map(str::to_owned),
            ..all()
        };
        assert_eq!(fixture.store.images(none).await.unwrap(), []);
    }
    let missing = fixture.store.image("r.io/app:2").await.unwrap_err();
    assert!(
        matches!(missing, StoreError::NotFound { .. }),
        "{missing:?}"
    );
}

async fn a_run_that_does_not_succeed_leaves_none(fixture: &Fixture) {
    let run = begin(fixture, "one", None, NOW).await;
    let made = result(&[("r.io/app:1", 'a')], &[]);
    fixture
        .say("a", &run, NOW, end(RunState::Failed, made))
        .await;
    assert_eq!(fixture.store.images(all()).await.unwrap(), []);
}

async fn the_last_run_of_a_task_has_the_newest_images(fixture: &Fixture) {
    task(fixture, "app").await;
    let base = [("r.io/base:1", 'b')];
    let first = result(&[("r.io/app:latest", '1'), ("r.io/app:one", '1')], &base);
    ran(fixture, "one", Some("app"), first, NOW).await;
    ran(
        fixture,
        "free",
        None,
        result(&[("r.io/free:1", 'f')], &base),
        NOW,
    )
    .await;
    let second = result(
        &[("r.io/app:latest", '2'), ("r.io/app:two", '2')],
        &[("r.io/base:1", 'c')],
    );
    ran(fixture, "two", Some("app"), second, NOW + 10).await;
    // One that pushes nothing leaves the images as they are.
    ran(fixture, "test", Some("app"), RunResult::default(), NOW + 20).await;
    let images = fixture.store.images(all()).await.unwrap();
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
    let graph = fixture.store.image_graph().await.unwrap();
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
    let builds = fixture
        .store
        .image_builds("r.io/app:latest", 10)
        .await
        .unwrap();
    let builds: Vec<(&str, Digest)> = builds
        .iter()
        .map(|build| (build.run.as_str(), build.digest.clone()))
        .collect();
    assert_eq!(builds, [("two", sha('2')), ("one", sha('1'))]);
}

async fn runs_that_push_the_same_names_do_not_wait_for_each_other(fixture: &Fixture) {
    task(fixture, "app").await;
    let mut runs = Vec::new();
    for number in 0..8 {
        runs.push(begin(fixture, &format!("run-{number}"), Some("app"), NOW).await);
    }
    let said = runs.iter().enumerate().map(|(number, run)| {
        let names = if number % 2 == 0 {
            [("r.io/a:1", '1'), ("r.io/b:1", '2')]
        } else {
            [("r.io/b:1", '3'), ("r.io/a:1", '4')]
        };
        let report = end(RunState::Succeeded, result(&names, &[("busybox", 'b')]));
        fixture.say("a", run, NOW, report)
    });
    for verdict in futures::future::join_all(said).await {
        assert_eq!(verdict, acrtask_store::Verdict::Done);
    }
    let images = fixture.store.images(all()).await.unwrap();
    assert_eq!(images.len(), 2);
    // Both are of the same run, whichever was last.
    assert_eq!(images[0].run, images[1].run);
}

async fn what_nobody_builds_again_goes(fixture: &Fixture) {
    task(fixture, "app").await;
    let base = [("r.io/base:1", 'b')];
    let of = |tag: &str| {
        result(
            &[("r.io/app:latest", '1'), (&format!("r.io/app:{tag}"), '1')],
            &base,
        )
    };
    ran(fixture, "one", Some("app"), of("one"), NOW).await;
    ran(fixture, "two", Some("app"), of("two"), NOW + 10).await;
    ran(
        fixture,
        "free",
        None,
        result(&[("r.io/free:1", 'f')], &base),
        NOW,
    )
    .await;
    fixture.store.expire(NOW + 1000, 100).await.unwrap();
    let images = fixture.store.images(all()).await.unwrap();
    let names: Vec<&str> = images.iter().map(|image| image.name.as_str()).collect();
    assert_eq!(names, ["r.io/app:latest", "r.io/app:two"]);
    let builds = fixture
        .store
        .image_builds("r.io/app:latest", 10)
        .await
        .unwrap();
    assert_eq!(builds.len(), 1);
}
