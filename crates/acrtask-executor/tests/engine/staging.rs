//! A run that stages its images pushes them by their digests and changes no tag.

use acrtask_model::{Digest, EventKind, ImageRef};
use acrtask_registry::{Credentials, Registry, Settings};

use crate::harness::{Engine, Ran, docker, engine};

const DOCKERFILE: &str =
    "FROM $BASH\nARG WHAT=staged\nRUN echo \"$WHAT\" > /x\nCMD [\"cat\", \"/x\"]\n";

fn registry() -> Registry {
    Registry::new(Credentials::new(), Settings::default()).unwrap()
}

fn reference(name: &str) -> ImageRef {
    name.parse().unwrap()
}

/// Returns the digest of a tag. `None` if the tag does not exist.
async fn has(name: &str) -> Option<Digest> {
    match registry().resolve(&reference(name)).await {
        Ok(found) => Some(found.digest),
        Err(error) if error.is_not_found() => None,
        Err(error) => panic!("{error}"),
    }
}

async fn run_staged(engine: &Engine, steps: &str) -> Ran {
    let mut task = engine
        .task(&format!("steps:\n{steps}"))
        .file("Dockerfile", DOCKERFILE);
    task.extra.push_by_digest = true;
    task.run().await
}

/// All ways in which a task can push `$R/$ID/staged:1`.
const WAYS: [(&str, &str); 9] = [
    (
        "a push step",
        "  - build: -t $R/$ID/staged:1 .\n  - id: push\n    push: [\"$R/$ID/staged:1\"]\n",
    ),
    (
        "docker push",
        "  - build: -t $R/$ID/staged:1 .\n  - id: push\n    cmd: docker push $R/$ID/staged:1\n",
    ),
    (
        "another name",
        "  - build: -t $R/$ID/other:1 .\n  - cmd: docker tag $R/$ID/other:1 $R/$ID/staged:1\n  - id: push\n    cmd: docker push $R/$ID/staged:1\n",
    ),
    (
        "build --push",
        "  - id: push\n    build: --push -t $R/$ID/staged:1 .\n",
    ),
    (
        "docker build --push",
        "  - id: push\n    cmd: docker build --push -t $R/$ID/staged:1 .\n",
    ),
    (
        "an output of type registry",
        "  - id: push\n    build: --output type=registry,name=$R/$ID/staged:1 .\n",
    ),
    (
        "an output of type image",
        "  - id: push\n    build: --output type=image,push=true,name=$R/$ID/staged:1 .\n",
    ),
    (
        "a manifest list",
        "  - cmd: docker manifest create $R/$ID/staged:1 $BUSYBOX\n  - id: push\n    cmd: docker manifest push $R/$ID/staged:1\n",
    ),
    (
        "imagetools",
        "  - id: push\n    cmd: docker buildx imagetools create -t $R/$ID/staged:1 $BUSYBOX\n",
    ),
];

#[tokio::test]
async fn staged_pushes_of_every_kind_change_no_tag() {
    let engine = engine!();
    for (way, steps) in WAYS {
        let ran = run_staged(&engine, steps).await.ok();
        let name = format!("{}/{}/staged:1", engine.registry, ran.id);
        assert_eq!(has(&name).await, None, "{way}: {}", ran.story());
        let [pushed] = ran.report.pushed.as_slice() else {
            panic!("{way}: {}", ran.story())
        };
        assert!(pushed.staged, "{way}");
        assert_eq!(pushed.name, name, "{way}");
        let at = reference(&name).at(pushed.digest.clone());
        assert_eq!(has(&at.to_string()).await.as_ref(), Some(&pushed.digest));
        let line = format!("staged {name} {} (no tag yet)", pushed.digest);
        assert!(ran.output("push").contains(&line), "{way}: {}", ran.story());
        // The digest is the one that was built and tested.
        if let Some(built) = ran.report.built.last() {
            assert_eq!(built.digest, pushed.digest, "{way}");
        }
    }
}

#[tokio::test]
async fn staged_image_can_be_pulled_and_run() {
    let engine = engine!();
    let ran = run_staged(
        &engine,
        "  - build: -t $R/$ID/staged:1 --build-arg WHAT=$ID .\n  - push: [\"$R/$ID/staged:1\"]\n",
    )
    .await
    .ok();
    let name = format!("{}/{}/staged:1", engine.registry, ran.id);
    let at = reference(&name).at(ran.report.pushed[0].digest.clone());
    // The engine never had the image under this name.
    let docker = docker().await;
    assert!(docker.inspect_image(&name).await.is_err());
    let other = engine
        .run(&format!("steps:\n  - id: see\n    cmd: {at}\n"))
        .await
        .ok();
    assert_eq!(other.output("see").trim(), ran.id.as_str());
}

#[tokio::test]
async fn staging_does_not_change_an_existing_tag() {
    let engine = engine!();
    let steps = |what: &str| {
        format!(
            "steps:\n  - build: -t $R/stays/{what}:1 --build-arg WHAT=$ID .\n  - push: [\"$R/stays/{what}:1\"]\n  \
             - id: see\n    cmd: $R/stays/{what}:1\n  - id: pull\n    cmd: docker pull $R/stays/{what}:1\n  \
             - id: again\n    cmd: $R/stays/{what}:1\n  - id: inspect\n    cmd: docker manifest inspect $R/stays/{what}:1\n  \
             - id: list\n    cmd: docker buildx imagetools create -t $R/stays/{what}:2 $R/stays/{what}:1\n  \
             - id: below\n    build: --pull --build-arg BASE=$R/stays/{what}:1 -f Below -t $R/stays/{what}:3 .\n  \
             - id: stands\n    cmd: $R/stays/{what}:3\n"
        )
    };
    let what = format!("t{}", std::process::id());
    let task = |text: &str| {
        engine
            .task(text)
            .file("Dockerfile", DOCKERFILE)
            .file("Below", "ARG BASE\nFROM $BASE\nRUN echo below >> /x\n")
    };
    let before = task(&format!(
        "steps:\n  - build: -t $R/stays/{what}:1 --build-arg WHAT=before .\n  - push: [\"$R/stays/{what}:1\"]\n"
    ));
    let before = before.run().await.ok();
    let tag = format!("{}/stays/{what}:1", engine.registry);
    assert_eq!(
        has(&tag).await,
        Some(before.report.pushed[0].digest.clone())
    );

    let mut after = task(&steps(&what));
    after.extra.push_by_digest = true;
    let after = after.run().await.ok();
    let digest = after.report.pushed[0].digest.clone();
    assert_ne!(digest, before.report.pushed[0].digest);
    assert_eq!(
        has(&tag).await,
        Some(before.report.pushed[0].digest.clone())
    );
    // For the run itself the tag refers to the image that it pushed, in every use.
    let own = after.id.as_str();
    assert_eq!(after.output("see").trim(), own);
    assert_eq!(after.output("again").trim(), own);
    let registry = registry();
    let mine = registry.manifest(&reference(&tag).at(digest.clone())).await;
    let text = String::from_utf8_lossy(&mine.unwrap().raw).into_owned();
    assert_eq!(after.output("inspect").trim(), text.trim());
    assert_eq!(after.output("stands").trim(), format!("{own}\nbelow"));
    let of_list = after.events.iter().find_map(|event| match &event.kind {
        EventKind::ImagePushed {
            step, platforms, ..
        } if step.as_str() == "list" => Some(platforms.clone()),
        _ => None,
    });
    let inside: Vec<_> = of_list.unwrap().into_values().collect();
    assert_eq!(inside, [digest]);
}

#[tokio::test]
async fn second_push_of_a_staged_image_has_the_same_digest() {
    let engine = engine!();
    let steps = "  - build: -t $R/$ID/staged:1 .\n  - push: [\"$R/$ID/staged:1\"]\n  - id: twice\n    push: [\"$R/$ID/staged:1\"]\n";
    let ran = run_staged(&engine, steps).await.ok();
    let [first, second] = ran.report.pushed.as_slice() else {
        panic!("{}", ran.story())
    };
    assert_eq!(first.digest, second.digest);
}

#[tokio::test]
async fn missing_image_cannot_be_staged() {
    let engine = engine!();
    let ran = run_staged(&engine, "  - id: p\n    push: [\"$R/$ID/none:1\"]\n")
        .await
        .failed();
    assert!(
        ran.reason("p").contains("the run has no image"),
        "{}",
        ran.reason("p")
    );
    assert!(ran.report.pushed.is_empty());
}
