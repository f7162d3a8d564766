//! Later steps run and push the image that a build step built.

use crate::harness::engine;

const DOCKERFILE: &str = "FROM $BASH\nARG GREETING=hello\nRUN echo \"$GREETING\" > /greeting\nCMD [\"cat\", \"/greeting\"]\n";

#[tokio::test]
async fn pushed_image_is_the_built_and_tested_one() {
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

#[tokio::test]
async fn build_reads_files_of_earlier_steps() {
    let engine = engine!();
    let ran = engine
        .task(
            r#"
steps:
  - id: generate
    cmd: $BASH bash -c 'echo generated > gen.txt; busybox chmod 751 gen.txt; busybox ln -s gen.txt link'
  - id: build
    build: -t $R/$ID/gen:1 .
  - id: test
    cmd: $R/$ID/gen:1
"#,
        )
        .file("Dockerfile", "FROM $BASH\nCOPY . /all\nCMD [\"bash\", \"-c\", \"cat /all/link; cat /all/given; busybox stat -c %a /all/gen.txt\"]\n")
        .file("given", "given\n")
        .run()
        .await
        .ok();
    assert_eq!(ran.output("test"), "generated\ngiven\n751\n");
}

#[tokio::test]
async fn no_push_prints_a_notice_and_pushes_nothing() {
    let engine = engine!();
    let mut task = engine
        .task("steps:\n  - id: build\n    build: -t $R/$ID/no:1 .\n  - id: push\n    push: [\"$R/$ID/no:1\"]\n")
        .file("Dockerfile", DOCKERFILE);
    task.options.no_push = true;
    let ran = task.run().await.ok();
    assert!(ran.report.pushed.is_empty());
    assert!(ran.output("push").contains("--no-push"));
}

#[tokio::test]
async fn push_of_a_missing_image_fails() {
    let engine = engine!();
    let ran = engine
        .run("steps:\n  - id: p\n    push: [\"$R/$ID/none:1\"]\n")
        .await
        .failed();
    assert!(
        ran.reason("p").contains("the run has no image"),
        "{}",
        ran.reason("p")
    );
}

#[tokio::test]
async fn bases_are_reported_with_their_roles() {
    let engine = engine!();
    let ran = engine
        .task("steps:\n  - id: build\n    build: -t $R/$ID/bases:1 .\n")
        .file(
            "Dockerfile",
            "FROM $BUSYBOX AS tools\nRUN echo x > /x\nFROM $BASH\nCOPY --from=tools /x /x\n",
        )
        .run()
        .await
        .ok();
    let mut bases: Vec<String> = ran
        .report
        .bases
        .iter()
        .map(|base| format!("{:?} {}", base.role, base.name.rsplit('/').next().unwrap()))
        .collect();
    bases.sort();
    assert_eq!(
        bases,
        ["BuildTime busybox:1.36", "Runtime bash:5.2"],
        "{}",
        ran.story()
    );
}

#[tokio::test]
async fn build_uses_secrets_arguments_targets_and_files() {
    let engine = engine!();
    let ran = engine
        .task(
            r#"
steps:
  - id: build
    env: ["TOKEN=from-env-1234"]
    build: -f docker/App.Dockerfile --target wanted --build-arg A --build-arg B=b --secret id=tok,env=TOKEN --secret id=file,src=secret.txt -t $R/$ID/args:1 --iidfile id.txt .
  - id: test
    cmd: $R/$ID/args:1 && cat id.txt
  - id: out
    build: --output out --target files -f docker/App.Dockerfile .
  - id: see
    cmd: $BASH cat out/made.txt
"#,
        )
        .file(
            "docker/App.Dockerfile",
            "FROM $BASH AS wanted\nARG A\nARG B\nRUN --mount=type=secret,id=tok --mount=type=secret,id=file \
             bash -c 'echo \"[$A][$B] $(busybox wc -c < /run/secrets/tok) $(cat /run/secrets/file)\" > /r'\n\
             CMD [\"cat\", \"/r\"]\nFROM $BASH AS make\nRUN echo made > /made.txt\nFROM scratch AS files\nCOPY --from=make /made.txt /\n\
             FROM wanted\nRUN false\n",
        )
        .file("secret.txt", "in-file")
        .run()
        .await
        .ok();
    let out = ran.output("test");
    assert!(out.starts_with("[][b] 13 in-file\nsha256:"), "{out}");
    assert_eq!(ran.output("see"), "made\n");
}

#[tokio::test]
async fn failing_build_shows_its_dockerfile_lines() {
    let engine = engine!();
    let ran = engine
        .task("steps:\n  - id: b\n    build: -t $R/$ID/bad:1 .\n")
        .file("Dockerfile", "FROM $BASH\nRUN bash -c 'echo why; exit 7'\n")
        .run()
        .await
        .failed();
    assert!(ran.story().contains("RUN bash -c"), "{}", ran.story());
    assert!(ran.output("b").contains("why"));
    let finished = ran.events.iter().any(|event| {
        matches!(&event.kind, acrtask_model::EventKind::StepFinished { excerpt: Some(text), .. } if text.contains("exit 7"))
    });
    assert!(finished, "{}", ran.story());
}

#[tokio::test]
async fn enabled_cache_is_imported_from_the_registry() {
    let engine = engine!();
    let text =
        "version: v1.1.0\nsteps:\n  - id: b\n    cache: enabled\n    build: -t $R/cached/app:1 .\n";
    let dockerfile = "FROM $BASH\nRUN echo cache-me\n";
    engine
        .task(text)
        .file("Dockerfile", dockerfile)
        .run()
        .await
        .ok();
    let ran = engine
        .task(text)
        .file("Dockerfile", dockerfile)
        .run()
        .await
        .ok();
    assert!(
        ran.story().contains("importing cache manifest"),
        "{}",
        ran.story()
    );
}
