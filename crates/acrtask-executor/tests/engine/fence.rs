//! A run whose fence is closed pushes no image to a registry in any way.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use acrtask_executor::Fence;
use acrtask_model::{EventKind, ImageRef};
use acrtask_registry::{Credentials, Registry, Settings};

use crate::harness::{Engine, engine};

/// Grants the first requests up to a given number.
#[derive(Debug)]
struct Grants {
    left: AtomicU32,
    asked: AtomicU32,
}

impl Grants {
    fn first(count: u32) -> Arc<Self> {
        Arc::new(Self {
            left: AtomicU32::new(count),
            asked: AtomicU32::new(0),
        })
    }
}

#[tonic::async_trait]
impl Fence for Grants {
    async fn may_push(&self) -> Result<(), String> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                left.checked_sub(1)
            })
            .map(drop)
            .map_err(|_| "the lease is over".to_owned())
    }
}

/// Returns `true` if the registry has the image.
async fn has(name: &str) -> bool {
    let registry = Registry::new(Credentials::new(), Settings::default()).unwrap();
    registry
        .resolve(&name.parse::<ImageRef>().unwrap())
        .await
        .is_ok()
}

const DOCKERFILE: &str = "FROM $BUSYBOX\nRUN echo fenced > /x\n";

/// All ways in which a task can push `$R/$ID/fenced:1`.
const WAYS: [(&str, &str); 9] = [
    (
        "a push step",
        "  - build: -t $R/$ID/fenced:1 .\n  - id: push\n    push: [\"$R/$ID/fenced:1\"]\n",
    ),
    (
        "docker push",
        "  - build: -t $R/$ID/fenced:1 .\n  - id: push\n    cmd: docker push $R/$ID/fenced:1\n",
    ),
    (
        "another name",
        "  - build: -t $R/$ID/other:1 .\n  - cmd: docker tag $R/$ID/other:1 $R/$ID/fenced:1\n  - id: push\n    cmd: docker push $R/$ID/fenced:1\n",
    ),
    (
        "build --push",
        "  - id: push\n    build: --push -t $R/$ID/fenced:1 .\n",
    ),
    (
        "docker build --push",
        "  - id: push\n    cmd: docker build --push -t $R/$ID/fenced:1 .\n",
    ),
    (
        "an output of type registry",
        "  - id: push\n    build: --output type=registry,name=$R/$ID/fenced:1 .\n",
    ),
    (
        "an output of type image",
        "  - id: push\n    build: --output type=image,push=true,name=$R/$ID/fenced:1 .\n",
    ),
    (
        "a manifest list",
        "  - cmd: docker manifest create $R/$ID/fenced:1 $BUSYBOX\n  - id: push\n    cmd: docker manifest push $R/$ID/fenced:1\n",
    ),
    (
        "imagetools",
        "  - id: push\n    cmd: docker buildx imagetools create -t $R/$ID/fenced:1 $BUSYBOX\n",
    ),
];

async fn run(engine: &Engine, steps: &str, fence: Arc<Grants>) -> (crate::harness::Ran, bool) {
    let mut task = engine
        .task(&format!("steps:\n{steps}"))
        .file("Dockerfile", DOCKERFILE);
    task.extra.fence = Some(fence);
    let ran = task.run().await;
    let there = has(&format!("{}/{}/fenced:1", engine.registry, ran.id)).await;
    (ran, there)
}

#[tokio::test]
async fn closed_fence_prevents_every_kind_of_push() {
    let engine = engine!();
    for (way, steps) in WAYS {
        let fence = Grants::first(0);
        let (ran, there) = run(&engine, steps, Arc::clone(&fence)).await;
        assert!(!there, "{way}: pushed all the same\n{}", ran.story());
        let ran = ran.failed();
        let story = ran.story();
        assert!(
            story.contains("nothing was pushed: the lease is over"),
            "{way}: {story}"
        );
        // A closed fence stays closed, so the push is not attempted again.
        assert_eq!(fence.asked.load(Ordering::SeqCst), 1, "{way}: {story}");
    }
}

#[tokio::test]
async fn open_fence_allows_every_kind_of_push() {
    let engine = engine!();
    for (way, steps) in WAYS {
        let fence = Grants::first(9);
        let (ran, there) = run(&engine, steps, Arc::clone(&fence)).await;
        let ran = ran.ok();
        assert!(there, "{way}: not in the registry\n{}", ran.story());
        assert_eq!(fence.asked.load(Ordering::SeqCst), 1, "{way}");
        // It is an image of the run, and its bases are recorded.
        let pushed = ran.events.iter().any(|event| {
            matches!(&event.kind, EventKind::ImagePushed { name, .. } if name.ends_with("/fenced:1"))
        });
        assert!(pushed, "{way}: not story\n{}", ran.story());
    }
}

#[tokio::test]
async fn fence_checks_each_image() {
    let engine = engine!();
    let fence = Grants::first(1);
    let mut task = engine
        .task(
            "steps:\n  - build: -t $R/$ID/fenced:1 .\n  - cmd: docker push $R/$ID/fenced:1\n  \
             - cmd: docker tag $R/$ID/fenced:1 $R/$ID/fenced:2\n  - id: second\n    push: [\"$R/$ID/fenced:2\"]\n",
        )
        .file("Dockerfile", DOCKERFILE);
    task.extra.fence = Some(fence);
    let ran = task.run().await.failed();
    let name = |tag: u8| format!("{}/{}/fenced:{tag}", engine.registry, ran.id);
    assert!(
        has(&name(1)).await && !has(&name(2)).await,
        "{}",
        ran.story()
    );
    assert_eq!(
        ran.reason("second"),
        "nothing was pushed: the lease is over"
    );
    assert_eq!(ran.report.pushed.len(), 1);
}
