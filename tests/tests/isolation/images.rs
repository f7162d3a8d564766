//! Image names: a name means the image that the run built, or else the registry's image as its own
//! login sees it. Images of other runs are not accessible.

use std::time::{Duration, Instant};

use acrtask_tests::{
    Outcome, RunningProgram, TestEnvironment, engine, new_run_id, project::create_folder,
    service::TestServer,
};
use tempfile::TempDir;

/// Image names of one test, all with the same unique part.
struct Names {
    registry: String,
    unique: String,
}

impl Names {
    fn new(environment: &TestEnvironment) -> Self {
        Self {
            registry: environment.registry.clone(),
            unique: new_run_id(),
        }
    }

    /// Returns the name of an image that the registry has.
    fn base_image(&self) -> String {
        format!("{}/iso/base:{}", self.registry, self.unique)
    }

    /// Returns the name of an image that only the attacker builds.
    fn unpushed_image(&self) -> String {
        format!("{}/iso/unpushed:{}", self.registry, self.unique)
    }

    /// Replaces the placeholders of a task file or Dockerfile.
    fn fill(&self, text: &str) -> String {
        text.replace("BASE", &self.base_image())
            .replace("UNPUSHED", &self.unpushed_image())
            .replace("BUSYBOX", &format!("{}/base/busybox:1.36", self.registry))
            .replace("REGISTRY", &self.registry)
            .replace("UNIQUE", &self.unique)
    }

    fn create_files(&self, task: &str, dockerfile: &str) -> TempDir {
        create_folder(&[
            ("acr-task.yaml", &self.fill(task)),
            ("Dockerfile", &self.fill(dockerfile)),
        ])
    }

    /// Pushes the image that the registry has.
    fn push_base(&self, environment: &TestEnvironment) {
        let task = "version: v1.1.0
steps:
  - build: -t BASE -t REGISTRY/iso/tools:UNIQUE .
  - push: [BASE, REGISTRY/iso/tools:UNIQUE]
";
        let files = self.create_files(
            task,
            "FROM BUSYBOX\nLABEL test=UNIQUE\nRUN echo good > /who\n",
        );
        let outcome = environment.run_acrtask(files.path(), &["run", "-o", "plain", "."]);
        assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
        // A local run gives its names to the engine. Here the engine is that of a runner.
        engine::docker(&[
            "image",
            "rm",
            &self.base_image(),
            &self.fill("REGISTRY/iso/tools:UNIQUE"),
        ]);
    }
}

/// Task file that builds under the names of other runs, pushes nothing, and runs while the victims
/// run.
const ATTACK: &str = "version: v1.1.0
steps:
  - build: -t BASE -t UNPUSHED -t iso-UNIQUE -t docker.io/library/iso-UNIQUE:1 .
  - build: -t BASE --output type=image,name=UNPUSHED .
  - cmd: docker tag BASE REGISTRY/iso/tagged:UNIQUE
  - cmd: docker tag BASE REGISTRY/iso/tools:UNIQUE
  - id: wait
    cmd: BASE sh -c 'cat /who; sleep 100'
";
const EVIL: &str = "FROM BUSYBOX\nRUN echo evil-UNIQUE > /who\n";

/// Starts the attack and waits until its images exist.
fn start_attack(names: &Names, server: &TestServer, files: &TempDir) -> RunningProgram {
    let attack = server.run(files.path(), &["run", "-o", "plain", "--no-push", "."]);
    attack.wait_for(&format!("| evil-{}", names.unique));
    attack
}

fn run_folder(server: &TestServer, files: &TempDir) -> Outcome {
    server
        .run(files.path(), &["run", "-o", "plain", "."])
        .wait()
}

#[test]
fn name_built_by_another_run_means_the_registrys_image() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &["--slots", "4"]);
    let names = Names::new(&environment);
    names.push_base(&environment);
    let evil = names.create_files(ATTACK, EVIL);
    let attack = start_attack(&names, &server, &evil);

    let task = "version: v1.1.0
steps:
  - {id: ran, cmd: BASE sh -c 'echo ran-$(cat /who)'}
  - {id: word, cmd: docker run BASE sh -c 'echo word-$(cat /who)'}
  - {id: pulled, cmd: docker pull BASE}
  - {id: again, cmd: BASE sh -c 'echo again-$(cat /who)'}
  - {id: tools, cmd: REGISTRY/iso/tools:UNIQUE sh -c 'echo tools-$(cat /who)'}
  - id: built
    build: --build-arg REG=REGISTRY --build-context named=docker-image://BASE -t REGISTRY/iso/victim:UNIQUE .
  - {id: stages, cmd: REGISTRY/iso/victim:UNIQUE sh -c 'echo stages-$(cat /one /two /three /four | sort -u)'}
  - {id: out, push: [REGISTRY/iso/victim:UNIQUE]}
";
    let dockerfile = "ARG REG=x
ARG NAME=iso/base
ARG REF=${REG:-y}/${NAME}:UNIQUE
FROM ${REF} AS one
FROM BASE AS tail
FROM BUSYBOX
COPY --from=one /who /one
COPY --from=BASE /who /two
COPY --from=named /who /three
RUN --mount=type=bind,from=BASE,target=/m cat /m/who > /four
RUN --mount=type=bind,from=tail,target=/m cat /m/who >> /four
";
    let files = names.create_files(task, dockerfile);
    let victim = run_folder(&server, &files);
    assert_eq!(victim.code, Some(0), "{}", victim.transcript());
    assert!(
        !victim.transcript().contains("evil"),
        "{}",
        victim.transcript()
    );
    for seen in [
        "ran-good",
        "word-good",
        "again-good",
        "stages-good",
        "tools-good",
    ] {
        assert!(
            victim.stdout.contains(seen),
            "{seen}: {}",
            victim.transcript()
        );
    }
    attack.signal("INT");
    attack.wait();
}

#[test]
fn images_of_another_run_are_refused() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &["--slots", "4"]);
    let names = Names::new(&environment);
    let evil = names.create_files(ATTACK, EVIL);
    let attack = start_attack(&names, &server, &evil);
    let stored = format!("127.0.0.1:0/run/{}-*", attack.run);
    let stored = engine::docker(&["images", "--format", "{{.Repository}}:{{.Tag}}", &stored]);
    let stored = stored.lines().next().unwrap().to_owned();
    // The engine has the image, under the attacker's name and under its digest.
    let id = engine::docker(&["image", "inspect", "-f", "{{.Id}}", &stored]);
    assert!(id.starts_with("sha256:"), "{id}");
    let container = engine::docker(&[
        "ps",
        "-q",
        "--no-trunc",
        "--filter",
        &format!("label=io.acrtask.run={}", attack.run),
    ]);
    assert!(!container.is_empty());

    let untagged = names
        .unpushed_image()
        .replace(&format!(":{}", names.unique), "");
    let upper = names.unpushed_image().replace("127.0.0.1", "LOCALHOST");
    let images = [
        names.unpushed_image(),
        format!("{untagged}@{id}"),
        format!("{}@{id}", names.unpushed_image()),
        format!("{}/iso/other@{id}", names.registry),
        format!("{}/iso/tagged:{}", names.registry, names.unique),
        upper,
        stored.clone(),
        format!("{stored}@{id}"),
        stored.replace("127.0.0.1:0", "localhost:0"),
        stored.replace("127.0.0.1:0", "127.0.0.1:00"),
        format!("../containers/{container}"),
        format!("x/../../containers/{container}"),
        format!("{untagged}?x=/../.."),
    ];
    let words = [
        "docker run IMAGE cat /who",
        "docker tag IMAGE REGISTRY/iso/stolen:UNIQUE",
        "docker inspect IMAGE",
        "docker image inspect IMAGE",
        "docker push IMAGE",
        "docker pull IMAGE",
        "docker run --pull never IMAGE cat /who",
        "docker build -t x --build-context y=docker-image://IMAGE -f Named .",
    ];
    let mut task = "version: v1.1.0\nsteps:\n".to_owned();
    let mut steps = 0;
    for image in &images {
        for word in words {
            let line = names.fill(word).replace("IMAGE", image);
            steps += 1;
            task.push_str(&format!(
                "  - ignoreErrors: true\n    cmd: {}\n",
                serde_json::Value::from(line)
            ));
        }
    }
    for (i, _) in images.iter().enumerate() {
        steps += 1;
        task.push_str(&format!(
            "  - ignoreErrors: true\n    build: -t y{i} -f from{i} .\n"
        ));
    }
    let files = create_folder(&[
        ("acr-task.yaml", &task),
        ("Named", "FROM y\nRUN cat /who\n"),
    ]);
    for (i, image) in images.iter().enumerate() {
        let text = format!("FROM {image}\nRUN cat /who\n");
        std::fs::write(files.path().join(format!("from{i}")), text).unwrap();
    }
    let outcome = server.run(files.path(), &["run", "-o", "json", "."]).wait();
    let finished = outcome.events_named("step_finished");
    assert_eq!(finished.len(), steps, "{}", outcome.transcript());
    let succeeded: Vec<_> = finished
        .iter()
        .filter(|step| step["state"] != "failed")
        .collect();
    assert!(succeeded.is_empty(), "{succeeded:#?}\n{task}");
    assert!(
        !outcome.stdout.contains("evil-"),
        "{}",
        outcome.transcript()
    );
    attack.signal("INT");
    attack.wait();
}

#[test]
fn image_pulled_with_another_login_is_refused() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let registry = std::env::var("ACRTASK_TEST_AUTH_REGISTRY").unwrap();
    let user = std::env::var("ACRTASK_TEST_AUTH_USER").unwrap();
    let password = std::env::var("ACRTASK_TEST_AUTH_PASSWORD").unwrap();
    let server = TestServer::start(&environment, &["--slots", "4"]);
    let names = Names::new(&environment);
    let image = format!("{registry}/iso/private:{}", names.unique);
    let owner = format!(
        "version: v1.1.0
steps:
  - cmd: docker login -u {user} -p {password} {registry}
  - build: -t {image} .
  - push: [{image}]
  - cmd: docker tag BUSYBOX other
    ignoreErrors: true
"
    );
    let files = names.create_files(&owner, "FROM BUSYBOX\nRUN echo private-UNIQUE > /who\n");
    let pushed = run_folder(&server, &files);
    assert_eq!(pushed.code, Some(0), "{}", pushed.transcript());
    let owner = format!(
        "version: v1.1.0
steps:
  - cmd: docker login -u {user} -p {password} {registry}
  - cmd: docker pull {image}
  - cmd: {image} sh -c 'cat /who; sleep 100'
"
    );
    let files = names.create_files(&owner, "");
    let running = server.run(files.path(), &["run", "-o", "plain", "."]);
    running.wait_for(&format!("| private-{}", names.unique));
    let line = format!("pushed {image} ");
    let digest = pushed.stdout.split(&line).nth(1).unwrap();
    let digest = digest.split_whitespace().next().unwrap().to_owned();
    let by_digest = format!("{registry}/iso/private@{digest}");
    // The engine has the image, but no name that leads to it.
    assert!(engine_has(&digest) && !engine_has(&by_digest) && !engine_has(&image));

    let mut task = "version: v1.1.0\nsteps:\n".to_owned();
    for image in [&image, &by_digest] {
        for line in [
            format!("cmd: {image} cat /who"),
            format!("cmd: docker run {image} cat /who"),
            format!("cmd: docker pull {image}"),
            format!("cmd: docker inspect {image}"),
            format!("cmd: docker tag {image} {}/iso/stolen:1", names.registry),
            format!("build: -t stolen --build-context y=docker-image://{image} -f Named ."),
        ] {
            task.push_str(&format!("  - ignoreErrors: true\n    {line}\n"));
        }
    }
    task.push_str("  - {ignoreErrors: true, build: -t a -f Tag .}\n");
    task.push_str("  - {ignoreErrors: true, build: -t b -f Digest .}\n");
    task.push_str("  - {ignoreErrors: true, build: -t c -f Copy .}\n");
    // A name that only the frontend sees, in a build that also uses an image of the run.
    task.push_str("  - {id: trigger, build: -t own -f Trigger .}\n");
    task.push_str("  - {ignoreErrors: true, build: -t d -f Own .}\n");
    let copy = names.fill(&format!(
        "FROM BUSYBOX\nCOPY --from={by_digest} /who /who\nRUN cat /who\n"
    ));
    let trigger = names.fill(&format!(
        "FROM BUSYBOX\nONBUILD COPY --from={by_digest} /who /who\n"
    ));
    let files = create_folder(&[
        ("acr-task.yaml", &task),
        ("Named", "FROM y\nRUN cat /who\n"),
        ("Tag", &format!("FROM {image}\nRUN cat /who\n")),
        ("Digest", &format!("FROM {by_digest}\nRUN cat /who\n")),
        ("Copy", &copy),
        ("Trigger", &trigger),
        ("Own", "FROM own\nRUN cat /who\n"),
    ]);
    let outcome = server.run(files.path(), &["run", "-o", "json", "."]).wait();
    let finished = outcome.events_named("step_finished");
    assert_eq!(finished.len(), 17, "{}", outcome.transcript());
    let is_refused = |step: &serde_json::Value| {
        let expected = if step["step"] == "trigger" {
            "succeeded"
        } else {
            "failed"
        };
        step["state"] == expected
    };
    assert!(finished.iter().all(is_refused), "{finished:#?}");
    assert!(
        !outcome.stdout.contains("private-t"),
        "{}",
        outcome.transcript()
    );
    running.signal("INT");
    running.wait();
    engine::docker_output(&["image", "rm", "-f", &digest]);
}

fn engine_has(name: &str) -> bool {
    engine::docker_output(&["image", "inspect", name])
        .status
        .success()
}

fn images_of(run: &str) -> String {
    engine::docker(&["images", "-q", &format!("127.0.0.1:0/run/{run}-*")])
}

#[test]
fn successful_local_run_tags_its_images_in_the_engine() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let names = Names::new(&environment);
    names.push_base(&environment);
    let task = "version: v1.1.0
steps:
  - build: -t BASE -t UNPUSHED .
  - cmd: BASE sh -c 'cat /who; while [ ! -f /workspace/stop ]; do sleep 1; done; exit CODE'
";
    for (code, published) in [("1", false), ("0", true)] {
        let task = task.replace("CODE", code).replace(
            "while [ ! -f /workspace/stop ]; do sleep 1; done",
            "sleep 6",
        );
        let files = names.create_files(&task, EVIL);
        let run = environment.start(files.path(), &["run", "-o", "plain", "."]);
        run.wait_for(&format!("| evil-{}", names.unique));
        assert!(!engine_has(&names.base_image()) && !engine_has(&names.unpushed_image()));
        // Meanwhile, another run of the same user gets the registry's image.
        let other = "version: v1.1.0\nsteps:\n  - cmd: BASE sh -c 'echo other-$(cat /who)'\n";
        let files = names.create_files(other, "");
        let other = environment.run_acrtask(files.path(), &["run", "-o", "plain", "."]);
        assert!(
            other.stdout.contains("other-good"),
            "{}",
            other.transcript()
        );
        let outcome = run.wait();
        assert_eq!(
            outcome.code == Some(0),
            published,
            "{}",
            outcome.transcript()
        );
        assert_eq!(engine_has(&names.base_image()), published);
        assert_eq!(engine_has(&names.unpushed_image()), published);
        assert_eq!(images_of(&outcome.run), "", "an image of the run is left");
    }
    engine::docker(&["image", "rm", &names.base_image(), &names.unpushed_image()]);
}

#[test]
fn image_only_in_the_engine_is_usable_by_local_runs_only() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let names = Names::new(&environment);
    // A registry that is unreachable, and one without the image.
    let mine = [
        format!("127.0.0.1:1/iso/mine:{}", names.unique),
        format!("{}/iso/mine:{}", names.registry, names.unique),
    ];
    let task = "version: v1.1.0\nsteps:\n  - build: -t 127.0.0.1:1/iso/mine:UNIQUE -t REGISTRY/iso/mine:UNIQUE .\n";
    let files = names.create_files(task, "FROM BUSYBOX\nRUN echo mine > /who\n");
    let outcome = environment.run_acrtask(files.path(), &["run", "-o", "plain", "."]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    let server = TestServer::start(&environment, &[]);
    for image in &mine {
        let task = format!(
            "version: v1.1.0
steps:
  - {{cmd: {image} sh -c 'echo ran-$(cat /who)'}}
  - {{build: -t REGISTRY/iso/from:UNIQUE .}}
  - {{cmd: REGISTRY/iso/from:UNIQUE sh -c 'echo built-$(cat /who)'}}
"
        );
        let files = names.create_files(&task, &format!("FROM {image}\nRUN test -f /who\n"));
        let here = environment.run_acrtask(files.path(), &["run", "-o", "plain", "."]);
        assert_eq!(here.code, Some(0), "{}", here.transcript());
        for seen in ["ran-mine", "built-mine"] {
            assert!(here.stdout.contains(seen), "{seen}: {}", here.transcript());
        }
        for step in [format!("cmd: {image} cat /who"), "build: -t x .".into()] {
            let task = format!("version: v1.1.0\nsteps:\n  - {step}\n");
            let files = names.create_files(&task, &format!("FROM {image}\nRUN test -f /who\n"));
            let there = run_folder(&server, &files);
            assert_ne!(there.code, Some(0), "{step}: {}", there.transcript());
        }
    }
    engine::docker(&["image", "rm", &mine[0], &mine[1]]);
    engine::docker_output(&["image", "rm", &names.fill("REGISTRY/iso/from:UNIQUE")]);
}

#[test]
fn images_of_a_run_are_removed_at_its_end_or_by_the_next_start() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let names = Names::new(&environment);
    let files = names.create_files(ATTACK, EVIL);
    let killed = environment.start(files.path(), &["run", "-o", "plain", "--no-push", "."]);
    killed.wait_for(&format!("| evil-{}", names.unique));
    assert_ne!(images_of(&killed.run), "");
    killed.signal("KILL");
    let killed = killed.wait();
    assert_ne!(images_of(&killed.run), "");
    let ok = "version: v1.1.0\nsteps:\n  - cmd: BUSYBOX true\n";
    let files = names.create_files(ok, "");
    // A busy engine can take longer than a start waits. Then the next start removes the remaining
    // images.
    for _ in 0..10 {
        let next = environment.run_acrtask(files.path(), &["run", "."]);
        assert_eq!(next.code, Some(0), "{}", next.transcript());
        if images_of(&killed.run).is_empty() {
            break;
        }
    }
    assert_eq!(images_of(&killed.run), "");
    assert_eq!(engine::list_remains(&killed.run), Vec::<String>::new());

    let server = TestServer::start(&environment, &[]);
    let task = "version: v1.1.0\nsteps:\n  - build: -t UNPUSHED .\n  - cmd: UNPUSHED cat /who\n";
    let outcome = run_folder(&server, &names.create_files(task, EVIL));
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    let begun = Instant::now();
    while !images_of(&outcome.run).is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(20), "the image stays");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(!engine_has(&names.unpushed_image()));
}
