//! Order, time limits and repetition of steps.

use acrtask_model::{EventKind, RunState};

use crate::harness::{Ran, engine};

fn attempts(ran: &Ran, step: &str) -> usize {
    let of = |kind: &EventKind| matches!(kind, EventKind::StepStarted { step: s, .. } if s.as_str() == step);
    ran.events.iter().filter(|event| of(&event.kind)).count()
}

#[tokio::test]
async fn failed_step_is_retried() {
    let engine = engine!();
    let ran = engine
        .run(
            r#"
steps:
  - id: flaky
    retries: 3
    retryDelay: 1
    cmd: $BASH bash -c 'echo x >> /workspace/tries; [ $(busybox wc -l < /workspace/tries) -ge 3 ]'
  - id: match
    retries: 3
    retryDelay: 1
    retryOnErrors: ["connection reset"]
    ignoreErrors: true
    cmd: $BASH bash -c 'echo y >> /workspace/more; [ $(busybox wc -l < /workspace/more) -ge 2 ] && echo other || echo connection reset; exit 1'
  - id: thrice
    repeat: 2
    cmd: $BASH echo again
"#,
        )
        .await
        .ok();
    assert_eq!(attempts(&ran, "flaky"), 3);
    assert_eq!(attempts(&ran, "match"), 2, "only the first failure matches");
    assert_eq!(ran.output("thrice"), "again\nagain\nagain\n");
}

#[tokio::test]
async fn secret_is_masked_in_every_message() {
    let engine = engine!();
    let mut task = engine.task(
        r#"
steps:
  - id: s
    retries: 1
    retryDelay: 1
    cmd: $BASH {{.Secrets.key}}
"#,
    );
    task.facts.secrets = vec![("key".into(), acrtask_model::Secret::new("hunter2-hunter2"))];
    let ran = task.run().await.failed();
    assert_eq!(attempts(&ran, "s"), 2);
    assert!(!ran.story().contains("hunter2"), "{}", ran.story());
}

#[tokio::test]
async fn timeout_stops_the_container() {
    let engine = engine!();
    let started = std::time::Instant::now();
    let ran = engine
        .run("steps:\n  - id: slow\n    timeout: 2\n    cmd: $BASH busybox sleep 60\n  - id: after\n    cmd: $BASH true\n")
        .await
        .failed();
    assert!(started.elapsed().as_secs() < 30);
    assert_eq!(ran.state("slow").to_string(), "timed out");
    assert_eq!(ran.state("after").to_string(), "skipped");
    assert!(
        ran.report
            .outcome
            .reason
            .as_deref()
            .unwrap()
            .contains("slow timed out after 2 s")
    );
}

#[tokio::test]
async fn cancel_stops_a_download_of_a_context_that_hangs() {
    let engine = engine!();
    // Accepts connections and sends nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = silent.local_addr().unwrap().to_string();
    let mut task = engine.task(&format!(
        "steps:\n  - id: build\n    build: -t $R/$ID/never:1 oci://{host}/context:1\n"
    ));
    task.options.operator_registries = vec![host];
    let cancel = task.cancel.clone();
    let started = std::time::Instant::now();
    tokio::spawn(async move {
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        cancel.cancel();
    });
    let ran = task.run().await;
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
    assert_eq!(ran.state("build").to_string(), "canceled");
}

#[tokio::test]
async fn run_timeout_stops_the_run() {
    let engine = engine!();
    let mut task = engine.task("steps:\n  - id: slow\n    cmd: $BASH busybox sleep 60\n");
    task.options.timeout = Some(std::time::Duration::from_secs(2));
    let ran = task.run().await;
    assert_eq!(
        ran.report.outcome.state,
        RunState::TimedOut,
        "{}",
        ran.story()
    );
    assert_eq!(ran.state("slow").to_string(), "canceled");
}

#[tokio::test]
async fn failure_stops_concurrent_steps() {
    let engine = engine!();
    let started = std::time::Instant::now();
    let ran = engine
        .run(
            r#"
steps:
  - id: long
    when: ["-"]
    cmd: $BASH busybox sleep 60
  - id: bad
    when: ["-"]
    startDelay: 1
    cmd: $BASH bash -c 'exit 9'
  - id: push
    when: ["bad"]
    push: ["$R/$ID/never:1"]
"#,
        )
        .await
        .failed();
    assert!(started.elapsed().as_secs() < 30);
    assert_eq!(ran.reason("bad"), "exit code 9");
    assert_eq!(ran.state("long").to_string(), "canceled");
    assert_eq!(ran.state("push").to_string(), "skipped");
    assert!(ran.report.pushed.is_empty());
}

#[tokio::test]
async fn independent_steps_run_concurrently() {
    let engine = engine!();
    // Each step waits for the other's file, so they would never end in sequence.
    let wait = |mine: &str, theirs: &str| {
        format!(
            "$BASH bash -c 'echo > /workspace/{mine}; while [ ! -e /workspace/{theirs} ]; do busybox sleep 0.1; done'"
        )
    };
    let text = format!(
        "steps:\n  - id: a\n    when: [\"-\"]\n    timeout: 30\n    cmd: {}\n  - id: b\n    when: [\"-\"]\n    timeout: 30\n    cmd: {}\n",
        wait("a", "b"),
        wait("b", "a")
    );
    engine.run(&text).await.ok();
}
