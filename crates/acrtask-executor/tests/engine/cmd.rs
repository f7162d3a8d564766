//! The environment of a container of a cmd step, and its permissions.

use std::time::Duration;

use acrtask_executor::Allow;

use crate::harness::engine;

#[tokio::test]
async fn container_mounts_workspace_and_home() {
    let engine = engine!();
    let ran = engine
        .task(
            r#"
steps:
  - id: see
    cmd: $BASH bash -c 'pwd; cat input; echo $HOME; echo made > made; echo kept > $HOME/kept'
  - id: sub
    workingDirectory: sub
    cmd: $BASH bash -c 'pwd; cat inner ../made $HOME/kept'
  - id: own
    disableWorkingDirectoryOverride: true
    cmd: $BASH pwd
"#,
        )
        .file("input", "from the context\n")
        .file("sub/inner", "inside\n")
        .run()
        .await
        .ok();
    assert_eq!(
        ran.output("see"),
        "/workspace\nfrom the context\n/acb/home\n"
    );
    assert_eq!(ran.output("sub"), "/workspace/sub\ninside\nmade\nkept\n");
    assert_eq!(ran.output("own"), "/\n");
}

#[tokio::test]
async fn steps_never_write_to_the_users_folder() {
    let engine = engine!();
    let task = engine
        .task("steps:\n  - cmd: $BASH bash -c 'rm -rf /workspace/*; echo x > /workspace/new'\n");
    let task = task.file("precious", "here\n");
    let folder = task.context.path().to_owned();
    // Keeps the folder after the run for the check.
    let context = std::sync::Arc::clone(&task.context);
    task.run().await.ok();
    let names: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names, ["precious"]);
    drop(context);
}

#[tokio::test]
async fn steps_reach_each_other_by_id() {
    let engine = engine!();
    let ran = engine
        .run(
            r#"
steps:
  - id: web-server
    detach: true
    ports: ["8080"]
    expose: ["9090"]
    cmd: $BUSYBOX sh -c 'mkdir -p /www && echo served > /www/index.html && echo up && exec httpd -f -p 8080 -h /www'
  - id: client
    retries: 20
    retryDelay: 1
    cmd: $BUSYBOX wget -q -O - http://web-server:8080/index.html
"#,
        )
        .await
        .ok();
    assert!(ran.output("client").contains("served"), "{}", ran.story());
    assert_eq!(
        ran.output("web-server"),
        "up\n",
        "the log of a detached step is kept"
    );
    assert_eq!(ran.state("web-server").to_string(), "canceled");
}

#[tokio::test]
async fn container_uses_environment_user_entry_point_and_cpus() {
    let engine = engine!();
    let task = engine.task(
        r#"
env: ["TASK=t", "BOTH=task"]
steps:
  - id: env
    env: ["BOTH=step"]
    cmd: -e LINE=l -e GIVEN $BASH bash -c 'echo $TASK $BOTH $LINE $GIVEN'
  - id: user
    user: "1234:5678"
    cmd: $BASH bash -c 'busybox id -u; busybox id -g'
  - id: entry
    entryPoint: bash -c
    cmd: $BASH 'echo as $0' given
  - id: cpus
    cpus: 0.5
    cmd: $BASH bash -c 'cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null | busybox head -n 1'
  - id: flags
    cmd: -m 64m --ulimit nofile=77:88 -w /tmp --tmpfs /scratch --add-host db:10.1.2.3 -l a=b -u 7 --hostname given $BASH bash -c 'pwd; busybox id -u; ulimit -n; busybox grep db /etc/hosts; busybox hostname; busybox grep -c /scratch /proc/mounts'
"#,
    );
    let mut task = task;
    task.options.env = vec![("GIVEN".into(), "r".into()), ("BOTH".into(), "run".into())];
    let ran = task.run().await.ok();
    assert_eq!(ran.output("env"), "t step l r\n");
    assert_eq!(ran.output("user"), "1234\n5678\n");
    assert_eq!(ran.output("entry"), "as given\n");
    assert!(
        ran.output("cpus").contains("50000"),
        "{}",
        ran.output("cpus")
    );
    assert_eq!(ran.output("flags"), "/tmp\n7\n77\n10.1.2.3\tdb\ngiven\n1\n");
}

#[tokio::test]
async fn volume_contains_secret_files() {
    let engine = engine!();
    let ran = engine
        .run(
            r#"
version: v1.1.0
volumes:
  - name: creds
    secret:
      token: c2VjcmV0LXRva2VuLTQy
steps:
  - id: reads
    user: "1234"
    volumeMounts:
      - name: creds
        mountPath: /run/creds
    cmd: $BASH bash -c 'cat /run/creds/token | busybox wc -c; cat /run/creds/token'
  - id: other
    cmd: $BASH bash -c 'ls /run/creds 2>/dev/null || echo none'
"#,
        )
        .await
        .ok();
    assert_eq!(ran.output("reads"), "15\n***\n");
    assert_eq!(ran.output("other"), "none\n");
}

#[tokio::test]
async fn extended_permissions_are_refused_with_a_remedy() {
    let engine = engine!();
    for (line, allow) in [
        (
            "cmd: -v /var/run/docker.sock:/var/run/docker.sock $BASH true",
            "docker-socket",
        ),
        ("cmd: --privileged $BASH true", "privileged"),
        ("privileged: true\n    cmd: $BASH true", "privileged"),
        ("cmd: --cap-add SYS_ADMIN $BASH true", "privileged"),
        ("cmd: --pid host $BASH true", "privileged"),
        ("cmd: --network host $BASH true", "host-network"),
        ("cmd: docker network ls", "docker-socket"),
    ] {
        let task = engine.task(&format!("steps:\n  - id: s\n    {line}\n"));
        let ran = task.run().await.failed();
        assert!(
            ran.reason("s").contains(&format!("--allow {allow}")),
            "{line}: {}",
            ran.reason("s")
        );
    }
    let ran = engine
        .run("steps:\n  - id: s\n    cmd: -v /etc:/host $BASH true\n")
        .await;
    assert!(ran.failed().reason("s").contains("never mounted"));
    let mut allowed = engine.task("steps:\n  - id: s\n    privileged: true\n    cmd: $BASH true\n");
    allowed.options.allow = Allow {
        privileged: true,
        ..Allow::default()
    };
    allowed.run().await.ok();
}

#[tokio::test]
async fn named_networks_of_the_machine_need_permission() {
    let engine = engine!();
    let there = |name: &str| {
        format!(
            "networks:\n  - name: {name}\n    skipCreation: true\n    isDefault: true\nsteps:\n  - id: s\n    cmd: $BASH busybox ip link\n"
        )
    };
    for text in [there("host"), there("bridge")] {
        let ran = engine.run(&text).await.failed();
        let reason = ran.report.outcome.reason.unwrap();
        assert!(reason.contains("--allow host-network"), "{text}: {reason}");
    }
    let ran = engine
        .run("steps:\n  - id: s\n    network: host\n    cmd: $BASH busybox ip link\n")
        .await
        .failed();
    assert!(ran.reason("s").contains("--allow host-network"));
    let ran = engine
        .run("steps:\n  - id: s\n    network: none\n    cmd: $BASH bash -c 'tail -n +3 /proc/net/dev | cut -c1-7'\n")
        .await
        .ok();
    let output = ran.output("s");
    let cards: Vec<&str> = output
        .lines()
        .map(str::trim)
        .filter(|card| card.ends_with(':'))
        .map(|card| card.trim_end_matches(':'))
        .collect();
    assert_eq!(cards, ["lo"]);
}

#[tokio::test]
async fn output_is_complete_masked_and_in_order() {
    let engine = engine!();
    let mut task = engine.task(
        r#"
steps:
  - id: much
    cmd: $BASH bash -c 'i=0; while [ $i -lt 20000 ]; do echo "line $i {{.Secrets.key}}"; i=$((i+1)); done; echo oops >&2; echo -n unfinished'
"#,
    );
    task.facts.secrets = vec![("key".into(), acrtask_model::Secret::new("hunter2-hunter2"))];
    let ran = task.run().await.ok();
    let out = ran.output("much");
    assert!(!ran.story().contains("hunter2"), "a secret is shown");
    let lines: Vec<&str> = out
        .lines()
        .filter(|line| line.starts_with("line "))
        .collect();
    assert_eq!(lines.len(), 20_000);
    assert_eq!(lines[19_999], "line 19999 ***");
    assert!(out.contains("oops\n") && out.contains("unfinished\n"));
}

#[tokio::test]
async fn missing_image_is_pulled_or_named_in_the_error() {
    let engine = engine!();
    let ran = engine
        .run("steps:\n  - id: s\n    cmdDownloadRetries: 1\n    cmdDownloadRetryDelay: 1\n    cmd: $R/no/such:1 true\n")
        .await
        .failed();
    assert!(
        ran.reason("s").contains("/no/such:1"),
        "{}",
        ran.reason("s")
    );
    assert!(
        ran.warnings()
            .iter()
            .any(|w| w.contains("another attempt in 1 s"))
    );
    let started = std::time::Instant::now();
    let ran = engine
        .run("steps:\n  - id: s\n    pull: true\n    cmd: $BASH true\n")
        .await
        .ok();
    assert!(started.elapsed() < Duration::from_secs(60));
    assert!(ran.story().contains("pulling "));
    assert!(
        ran.report
            .bases
            .iter()
            .any(|base| base.name.ends_with("/base/bash:5.2"))
    );
}

#[tokio::test]
async fn failed_program_is_named_in_the_reason() {
    let engine = engine!();
    let ran = engine
        .run("steps:\n  - id: s\n    cmd: $BASH no-such-program\n")
        .await
        .failed();
    assert!(
        ran.reason("s").contains("no-such-program"),
        "{}",
        ran.reason("s")
    );
    let ran = engine
        .run("steps:\n  - id: s\n    cmd: $BASH bash -c 'echo last words >&2; exit 3'\n")
        .await
        .failed();
    assert_eq!(ran.reason("s"), "exit code 3");
    assert!(
        ran.story().contains(r#""log_tail":["last words"]"#),
        "{}",
        ran.story()
    );
}
