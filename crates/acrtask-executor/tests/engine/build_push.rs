//! What a build step made is what later steps run and push.

use crate::harness::engine;

const DOCKERFILE: &str = "FROM $BASH\nARG GREETING=hello\nRUN echo \"$GREETING\" > /greeting\nCMD [\"cat\", \"/greeting\"]\n";

#[tokio::test]
async fn the_pushed_image_is_the_built_and_tested_one() {
    let engine = engine!();
    let ran = engine
        .task(
            "steps:\n  - id: build\n    build: -t $R/$ID/app:1 --build-arg GREETING=$ID .\n  \
             - id: test\n    cmd: $R/$ID/app:1\n  - id: push\n    push: [\"$R/$ID/app:1\"]\n",
        )
        .file("Dockerfile", DOCKERFILE)
        .run()
        .await
        .ok();
    assert_eq!(ran.output("test").trim(), ran.id.as_str());
    assert_eq!(ran.report.built.len(), 1);
    assert_eq!(ran.report.pushed.len(), 1);
    assert_eq!(ran.report.built[0].digest, ran.report.pushed[0].digest);
}
