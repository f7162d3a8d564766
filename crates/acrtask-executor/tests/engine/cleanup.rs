//! A run leaves no objects on the engine, regardless of its end.

use std::time::Duration;

use acrtask_executor::{Executor, Options};
use acrtask_model::{EventKind, RunState};
use tokio::sync::mpsc;

use crate::harness::{Task, docker, endpoint, engine, left_on_engine, wait_until_removed};

const SLEEPS: &str = "steps:\n  - id: s\n    cmd: $BASH bash -c 'echo ready; busybox sleep 120'\n";

fn is_ready(kind: &EventKind) -> bool {
    matches!(kind, EventKind::Output { text, .. } if text.contains("ready"))
}

#[tokio::test]
async fn interrupt_stops_the_run_and_removes_its_objects() {
    let engine = engine!();
    let started = std::time::Instant::now();
    let ran = engine
        .task(SLEEPS)
        .run_and(|event, cancel| {
            if is_ready(&event.kind) {
                cancel.cancel();
            }
        })
        .await;
    assert!(started.elapsed().as_secs() < 30);
    assert_eq!(ran.report.outcome.state, RunState::Canceled);
    assert_eq!(ran.state("s").to_string(), "canceled");
    assert!(ran.report.left.is_empty(), "{:?}", ran.report.left);
}

#[tokio::test]
async fn objects_of_a_dropped_run_are_removed_in_the_background() {
    let engine = engine!();
    let task = engine.task(SLEEPS);
    let id = task.id.clone();
    let executor = Executor::connect(task.options.clone()).await.unwrap();
    let (sender, mut receiver) = mpsc::channel(16);
    let request = task.request();
    tokio::select! {
        _ = executor.run(request, sender, task.cancel.clone()) => panic!("the run ended"),
        () = async { while !is_ready(&receiver.recv().await.unwrap().kind) {} } => {}
    }
    wait_until_removed(&id).await;
}

/// Returns the names of the images that runs of runners pulled.
async fn pulled() -> Vec<String> {
    let filters = std::collections::HashMap::from([("reference", vec!["127.0.0.1:0/pulled/*"])]);
    let options = bollard::query_parameters::ListImagesOptionsBuilder::new().filters(&filters);
    let images = docker()
        .await
        .list_images(Some(options.build()))
        .await
        .unwrap();
    images
        .into_iter()
        .flat_map(|image| image.repo_tags)
        .collect()
}

#[tokio::test]
async fn old_images_that_runs_pulled_are_removed() {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let engine = engine!();
    let mut task = engine
        .task("steps:\n  - build: -t $R/$ID/kept:1 .\n")
        .file("Dockerfile", "FROM $BUSYBOX\n");
    // The image stays in the engine.
    task.options.own_machine = true;
    let (id, options) = (task.id.clone(), task.options.clone());
    let built = format!("{}/{id}/kept:1", engine.registry);
    task.run().await.ok();
    // The name that a runner gives a pulled image: the tag is the hour of the pull since 1970.
    let mut names = Vec::new();
    for hour in ["1", "9999999"] {
        let repository = format!("127.0.0.1:0/pulled/{id}");
        let tag = bollard::query_parameters::TagImageOptionsBuilder::new()
            .repo(&repository)
            .tag(hour);
        let tagged = docker().await.tag_image(&built, Some(tag.build())).await;
        tagged.unwrap();
        names.push(format!("{repository}:{hour}"));
    }
    let [old, young] = names.try_into().unwrap();
    let both = pulled().await;
    assert!(both.contains(&old) && both.contains(&young), "{both:?}");

    let executor = Executor::connect(options).await.unwrap();
    let sleeping = engine.task(SLEEPS);
    let (sender, mut receiver) = mpsc::channel(16);
    tokio::select! {
        _ = executor.run(sleeping.request(), sender, sleeping.cancel.clone()) => panic!("the run ended"),
        () = async {
            while !is_ready(&receiver.recv().await.unwrap().kind) {}
            assert_eq!(executor.remove_pulled_images(DAY).await.unwrap(), None);
        } => {}
    }
    assert!(pulled().await.contains(&old));
    let removed = executor.remove_pulled_images(DAY).await.unwrap();
    assert!(removed.is_some_and(|count| count > 0), "{removed:?}");
    let left = pulled().await;
    assert!(!left.contains(&old) && left.contains(&young), "{left:?}");
    for name in [&young, &built] {
        let removed = docker()
            .await
            .remove_image(
                name,
                None::<bollard::query_parameters::RemoveImageOptions>,
                None,
            )
            .await;
        removed.unwrap();
    }
    wait_until_removed(&sleeping.id).await;
}

#[tokio::test]
async fn keep_keeps_the_container_and_reports_it() {
    let engine = engine!();
    let task: Task = engine.task("steps:\n  - id: s\n    keep: true\n    cmd: $BASH true\n");
    let executor = Executor::connect(task.options.clone()).await.unwrap();
    let (sender, mut receiver) = mpsc::channel(16);
    let (report, ()) = tokio::join!(
        executor.run(task.request(), sender, task.cancel.clone()),
        async { while receiver.recv().await.is_some() {} }
    );
    assert!(
        report.left.iter().any(|l| l.contains("(kept)")),
        "{:?}",
        report.left
    );
    let left = left_on_engine(&task.id).await;
    assert!(left.iter().any(|l| l.starts_with("container")), "{left:?}");
    // Another start leaves the container. The test removes it.
    executor.remove_orphans().await;
    executor.finish_removals(Duration::from_secs(60)).await;
    assert!(
        left_on_engine(&task.id)
            .await
            .iter()
            .any(|l| l.starts_with("container"))
    );
    let docker = docker().await;
    let filters = std::collections::HashMap::from([(
        "label".to_owned(),
        vec![format!(
            "{}={}",
            acrtask_executor::owner::RUN_LABEL,
            task.id
        )],
    )]);
    use bollard::query_parameters as q;
    let all = q::ListContainersOptionsBuilder::new()
        .all(true)
        .filters(&filters)
        .build();
    for container in docker.list_containers(Some(all)).await.unwrap() {
        docker
            .remove_container(&container.id.unwrap(), None)
            .await
            .unwrap();
    }
    let volumes = q::ListVolumesOptionsBuilder::new()
        .filters(&filters)
        .build();
    for volume in docker
        .list_volumes(Some(volumes))
        .await
        .unwrap()
        .volumes
        .unwrap_or_default()
    {
        docker
            .remove_volume(&volume.name, None::<q::RemoveVolumeOptions>)
            .await
            .unwrap();
    }
}

/// Variable that makes the test below run a task instead, in a process that is then killed.
const VICTIM: &str = "ACRTASK_TEST_VICTIM";

#[tokio::test]
async fn next_start_removes_orphans_of_a_killed_process() {
    let engine = engine!();
    if let Ok(id) = std::env::var(VICTIM) {
        let mut task = engine.task(SLEEPS);
        task.id = acrtask_model::RunId::new(id).unwrap();
        task.run_and(|event, _| {
            if is_ready(&event.kind) {
                eprintln!("VICTIM READY");
            }
        })
        .await;
        return;
    }
    use std::io::BufRead;
    let id = engine.task(SLEEPS).id;
    let mut victim = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "next_start_removes_orphans_of_a_killed_process",
            "--nocapture",
        ])
        .env(VICTIM, id.as_str())
        .stderr(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let lines = std::io::BufReader::new(victim.stderr.take().unwrap()).lines();
    let ready = lines
        .map_while(Result::ok)
        .any(|line| line.contains("VICTIM READY"));
    assert!(ready, "the process did not get to its container");
    let executor = Executor::connect(Options::new(endpoint())).await.unwrap();
    executor.remove_orphans().await;
    executor.finish_removals(Duration::from_secs(60)).await;
    assert!(
        !left_on_engine(&id).await.is_empty(),
        "objects of a live process were removed"
    );
    victim.kill().unwrap();
    victim.wait().unwrap();
    executor.remove_orphans().await;
    executor.finish_removals(Duration::from_secs(60)).await;
    wait_until_removed(&id).await;
}
