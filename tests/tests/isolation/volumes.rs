//! Volumes and networks of other runs and of the machine, which a run must not reach.

use std::time::{Duration, Instant};

use acrtask_tests::{
    TestEnvironment, engine, new_run_id, project::create_folder, service::TestServer,
};

/// Run with a secret volume and a file in its workspace, which waits.
const VICTIM: &str = "version: v1.1.0
volumes:
  - name: creds
    secret: {token: c2VjcmV0LW9mLXRoZS12aWN0aW0=}
steps:
  - id: work
    cmd: $Registry/base/busybox:1.36 sh -c 'echo mine > /workspace/note; echo ready; sleep 120'
    volumeMounts: [{name: creds, mountPath: /creds}]
";

/// Volume, network or container of the test, removed when the value is dropped.
struct RemovedOnDrop(&'static str, String);

impl Drop for RemovedOnDrop {
    fn drop(&mut self) {
        let _ = engine::docker_output(&[self.0, "rm", "-f", &self.1]);
    }
}

fn wait_until(message: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < limit, "{message}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn volumes_of_another_run_and_of_the_machine_are_not_mounted() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &[]);
    let machine_volume = RemovedOnDrop("volume", format!("pgdata-{}", new_run_id()));
    engine::docker(&["volume", "create", &machine_volume.1]);
    let files = create_folder(&[("acr-task.yaml", VICTIM)]);
    let victim = server.run(files.path(), &["run", "-o", "plain", "."]);
    victim.wait_for("| ready");

    let of_victim = |name: &str| format!("acrtask_{}_{name}", victim.run);
    let targets = [
        of_victim("workspace"),
        of_victim("home"),
        of_victim("creds"),
        machine_volume.1.clone(),
    ];
    for target in &targets {
        // Regression: a declared network of the machine with the same name once disabled the
        // renaming of the volume.
        let declared = format!(
            "version: v1.1.0
networks: [{{name: {target}, skipCreation: true}}, {{name: own, isDefault: true}}]
steps:
  - cmd: -v {target}:/w $Registry/base/busybox:1.36 sh -c 'ls -A /w; echo evil > /w/evil'
"
        );
        let files = create_folder(&[("acr-task.yaml", &declared)]);
        let outcome = server
            .run(files.path(), &["run", "-o", "plain", "."])
            .wait();
        assert_ne!(outcome.code, Some(0), "{}", outcome.transcript());
        assert!(
            outcome.transcript().contains("skipCreation"),
            "{}",
            outcome.transcript()
        );

        let run = new_run_id();
        let task = format!(
            "version: v1.1.0
volumes: [{{name: {target}, secret: {{own: eA==}}}}]
steps:
  - id: flag
    cmd: -v {target}:/w $Registry/base/busybox:1.36 sh -c 'echo flag [$(ls -A /w)]; echo evil > /w/evil'
  - id: word
    cmd: docker run -v {target}:/w $Registry/base/busybox:1.36 sh -c 'echo word [$(ls -A /w)]; echo evil > /w/evil'
  - id: key
    cmd: $Registry/base/busybox:1.36 sh -c 'echo key [$(ls -A /w)]; echo evil > /w/evil'
    volumeMounts: [{{name: {target}, mountPath: /w}}]
"
        );
        let files = create_folder(&[("acr-task.yaml", &task)]);
        let outcome = environment
            .start_with_id(&run, files.path(), &["run", "-o", "plain", "."], &[], "")
            .wait();
        assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
        // The volume is the run's own: it contains its own file and the files its steps wrote.
        for seen in ["flag [own]", "word [evil own]", "key [evil own]"] {
            assert!(
                outcome.stdout.contains(seen),
                "{seen}: {}",
                outcome.transcript()
            );
        }
    }

    let checks = [("workspace", "note"), ("creds", "token")];
    for (name, expected) in checks {
        let mount = format!("{}:/v:ro", of_victim(name));
        let busybox = environment.busybox();
        let listed = engine::docker(&["run", "--rm", "-v", &mount, &busybox, "ls", "-A", "/v"]);
        assert!(listed.contains(expected), "{name}: {listed}");
        assert!(!listed.contains("evil"), "{name}: {listed}");
    }
    let run = victim.run.clone();
    victim.signal("INT");
    victim.wait();
    wait_until("the victim's secret stays", Duration::from_secs(20), || {
        engine::list_resources(&run).is_empty()
    });
    let machine_volume = format!("{}:/v:ro", machine_volume.1);
    let busybox = environment.busybox();
    let listed = engine::docker(&[
        "run",
        "--rm",
        "-v",
        &machine_volume,
        &busybox,
        "ls",
        "-A",
        "/v",
    ]);
    assert_eq!(listed, "", "a volume of the machine was changed");
}

#[test]
fn volume_not_created_by_the_run_is_refused() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    for labels in [
        &[][..],
        &["io.acrtask.run"],
        &["io.acrtask.run", "io.acrtask.owner"],
    ] {
        for (name, needs) in [("home", ""), ("data", "-v data:/data ")] {
            let run = new_run_id();
            let planted = RemovedOnDrop("volume", format!("acrtask_{run}_{name}"));
            let mut args = vec!["volume".to_owned(), "create".into()];
            for label in labels {
                let value = if *label == "io.acrtask.run" {
                    &run
                } else {
                    "v1/other/b/n/1/1"
                };
                args.extend(["--label".into(), format!("{label}={value}")]);
            }
            args.push(planted.1.clone());
            engine::docker(&args.iter().map(String::as_str).collect::<Vec<_>>());
            let task = format!(
                "version: v1.1.0\nsteps:\n  - id: one\n    cmd: {needs}$Registry/base/busybox:1.36 echo reached\n"
            );
            let files = create_folder(&[("acr-task.yaml", &task)]);
            let outcome = environment
                .start_with_id(&run, files.path(), &["run", "-o", "plain", "."], &[], "")
                .wait();
            assert_eq!(outcome.code, Some(1), "{}", outcome.transcript());
            let why = format!("a volume {} that this run did not make", planted.1);
            assert!(
                outcome.transcript().contains(&why),
                "{}",
                outcome.transcript()
            );
            assert!(
                !outcome.stdout.contains("| reached"),
                "{}",
                outcome.transcript()
            );
        }
    }
}

#[test]
fn networks_of_the_machine_are_refused_when_declared() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let network = RemovedOnDrop("network", format!("theirs-{}", new_run_id()));
    engine::docker(&["network", "create", &network.1]);
    let name = &network.1;
    for (declared, why) in [
        (
            format!("[{{name: {name}, skipCreation: true}}]"),
            "skipCreation",
        ),
        (
            format!("[{{name: {name}, skipCreation: true, isDefault: true}}]"),
            "skipCreation",
        ),
        ("[{name: host, skipCreation: true}]".into(), "skipCreation"),
        (
            "[{name: bridge, skipCreation: true}]".into(),
            "skipCreation",
        ),
        (
            "[{name: lan, driver: macvlan}]".into(),
            "has the driver `macvlan`",
        ),
        (
            "[{name: lan, driver: host}]".into(),
            "has the driver `host`",
        ),
        (
            "[{name: 'container:abcdef'}]".into(),
            "is not a name for a network",
        ),
        (
            "[{name: 'a/../../volumes/x'}]".into(),
            "is not a name for a network",
        ),
    ] {
        let task = format!(
            "version: v1.1.0\nnetworks: {declared}\nsteps:\n  - cmd: $Registry/base/busybox:1.36 echo reached\n"
        );
        let files = create_folder(&[("acr-task.yaml", &task)]);
        let outcome = environment.run_acrtask(files.path(), &["run", "-o", "plain", "."]);
        assert_eq!(
            outcome.code,
            Some(2),
            "{declared}: {}",
            outcome.transcript()
        );
        assert!(
            outcome.stderr.contains(why),
            "{declared}: {}",
            outcome.transcript()
        );
    }
    // Without `skipCreation`, the same name means a network of the run.
    let task = format!(
        "version: v1.1.0\nnetworks: [{{name: {name}, isDefault: true}}]\nsteps:\n  - cmd: $Registry/base/busybox:1.36 sh -c 'sleep 5'\n"
    );
    let files = create_folder(&[("acr-task.yaml", &task)]);
    let run = environment.start(files.path(), &["run", "-o", "plain", "."]);
    let own = format!("network acrtask_{}_{name}", run.run);
    wait_until(
        "the run did not create its network",
        Duration::from_secs(20),
        || engine::list_resources(&run.run).contains(&own),
    );
    let joined = engine::docker(&["network", "inspect", "-f", "{{len .Containers}}", name]);
    assert_eq!(joined, "0");
    assert_eq!(run.wait().code, Some(0));
}

#[test]
fn volume_in_use_at_the_end_of_a_run_is_removed_later() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &[]);
    let files = create_folder(&[("acr-task.yaml", VICTIM)]);
    let victim = server.run(files.path(), &["run", "-o", "plain", "."]);
    victim.wait_for("| ready");
    let run = victim.run.clone();
    let holder = RemovedOnDrop("container", format!("holder-{run}"));
    let mount = format!("acrtask_{run}_creds:/v");
    engine::docker(&[
        "create",
        "--name",
        &holder.1,
        "-v",
        &mount,
        &environment.busybox(),
        "true",
    ]);
    victim.signal("INT");
    victim.wait();
    let left = vec![format!("volume acrtask_{run}_creds")];
    wait_until("the run does not end", Duration::from_secs(20), || {
        engine::list_resources(&run) == left
    });
    drop(holder);
    wait_until("the secret stays on disk", Duration::from_secs(20), || {
        engine::list_resources(&run).is_empty()
    });
}
