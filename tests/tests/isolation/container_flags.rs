//! Refused container flags: every line that would break the isolation of a container fails with its
//! reason.

use acrtask_tests::{TestEnvironment, engine, project::create_folder};

/// `docker run` flags, each with a part of its error.
const REFUSED: &[(&str, &str)] = &[
    // Access to the machine.
    ("--privileged", "--allow privileged"),
    ("--privileged=1", "--allow privileged"),
    ("--cap-add ALL", "--allow privileged"),
    ("--cap-add SYS_ADMIN", "--allow privileged"),
    ("--cap-add=NET_ADMIN", "--allow privileged"),
    ("--security-opt seccomp=unconfined", "--allow privileged"),
    ("--security-opt apparmor=unconfined", "--allow privileged"),
    ("--security-opt label=disable", "--allow privileged"),
    (
        "--security-opt systempaths=unconfined",
        "--allow privileged",
    ),
    (
        "--security-opt no-new-privileges:false",
        "--allow privileged",
    ),
    ("--device /dev/kvm", "is not supported"),
    ("--device /dev/sda:/dev/sda:rwm", "is not supported"),
    ("--device-cgroup-rule 'c *:* rwm'", "is not supported"),
    ("--device-read-bps /dev/sda:1", "is not a flag"),
    ("--device-write-iops /dev/sda:1", "is not a flag"),
    ("--gpus all", "is not supported"),
    ("--cgroup-parent /", "is not supported"),
    ("--runtime runc", "is not supported"),
    ("--cgroupns host", "is not a flag"),
    // Namespaces of the machine and of other containers.
    ("--pid host", "--allow privileged"),
    ("--pid container:abc", "--allow privileged"),
    ("--ipc host", "--allow privileged"),
    ("--ipc container:abc", "--allow privileged"),
    ("--uts host", "has no flag"),
    ("--userns host", "has no flag"),
    ("--network host", "--allow host-network"),
    ("--net host", "--allow host-network"),
    ("--network=host", "--allow host-network"),
    ("--network container:abc", "no network `container:abc`"),
    (
        "--network ns:/proc/1/ns/net",
        "no network `ns:/proc/1/ns/net`",
    ),
    ("--network other", "no network `other`"),
    ("--network name=host", "no network `name=host`"),
    ("--link db", "is not a flag"),
    ("--link-local-ip 169.254.1.1", "is not a flag"),
    ("--ip 172.17.0.9", "is not a flag"),
    ("--ip6 ::9", "is not a flag"),
    ("--mac-address 02:42:ac:11:00:02", "is not a flag"),
    // Files and volumes of the machine and of other containers.
    ("-v /:/host", "never mounted"),
    ("-v /etc:/host:ro", "never mounted"),
    ("-v /var/lib/docker/volumes:/v", "never mounted"),
    ("-v /proc/1/root:/host", "never mounted"),
    ("-v ../..:/host", "never mounted"),
    ("-v ./../../etc:/host", "never mounted"),
    ("-v /workspace/../etc:/host", "never mounted"),
    ("-v /workspacex:/host", "never mounted"),
    ("--volume=/etc:/host", "never mounted"),
    ("-v/etc:/host", "never mounted"),
    ("-v /var/run/docker.sock:/s", "--allow docker-socket"),
    ("-v /run/docker.sock:/s", "--allow docker-socket"),
    ("-v /var/run/../run/docker.sock:/s", "never mounted"),
    ("-v //var/run/docker.sock:/s", "never mounted"),
    ("-v /run/containerd/containerd.sock:/s", "never mounted"),
    ("-v data:/data:rshared", "is not supported"),
    ("-v data:/data:ro,shared", "is not supported"),
    ("-v data:data", "SOURCE:/TARGET"),
    (
        "--mount type=bind,source=/,target=/host",
        "is not supported",
    ),
    (
        "--mount type=volume,source=pgdata,target=/v",
        "is not supported",
    ),
    (
        "--mount type=volume,source=x,target=/v,volume-opt=type=none,volume-opt=o=bind,volume-opt=device=/",
        "is not supported",
    ),
    (
        "--mount type=volume,source=pgdata,target=/v,volume-subpath=x",
        "is not supported",
    ),
    ("--mount type=tmpfs,target=/t", "is not supported"),
    ("--volumes-from abc", "has no flag"),
    ("--volume-driver local", "has no flag"),
    ("--env-file /etc/environment", "is not a flag"),
    ("--label-file /etc/hostname", "is not a flag"),
    ("--cidfile /tmp/x", "is not for a step"),
    ("--storage-opt size=1G", "is not a flag"),
    // Effects on other processes of the machine.
    ("--oom-score-adj -1000", "--allow privileged"),
    ("--oom-score-adj=500", "--allow privileged"),
    ("--oom-kill-disable", "is not a flag"),
    ("--cpu-shares 262144", "--allow privileged"),
    ("-c 2048", "--allow privileged"),
    ("--cpu-rt-runtime 950000", "is not a flag"),
    ("--cpu-rt-period 1000000", "is not a flag"),
    ("--blkio-weight 1000", "is not a flag"),
    ("--ulimit rtprio=99", "--allow privileged"),
    ("--ulimit nice=40", "--allow privileged"),
    ("--ulimit RTPRIO=99", "has no limit"),
    ("--ulimit Rtprio=99", "has no limit"),
    ("--ulimit '\"rtprio=99\"'", "has no limit"),
    ("--log-driver syslog", "--allow privileged"),
    ("--log-driver=journald", "--allow privileged"),
    (
        "--log-opt syslog-address=unix:///run/x",
        "--allow privileged",
    ),
    (
        "--log-opt fluentd-address=169.254.169.254:80",
        "--allow privileged",
    ),
    ("--restart always", "is not for a step"),
    ("--health-cmd true", "is not a flag"),
    (
        "--annotation run.oci.keep_original_groups=1",
        "is not a flag",
    ),
    ("--isolation process", "is not a flag"),
    ("--stop-timeout 3600", "is not a flag"),
    // Ports and labels.
    ("-p 0.0.0.0:8080:80", "--allow host-network"),
    ("-p 10.0.0.1::80", "--allow host-network"),
    ("-p [::]:8080:80", "--allow host-network"),
    ("-p :8080:80", "--allow host-network"),
    ("--publish 192.168.0.1:8080:80", "--allow host-network"),
    ("-P", "--allow host-network"),
    ("--publish-all", "--allow host-network"),
    ("-l io.acrtask.run=other", "is reserved"),
    ("--label io.acrtask.owner=other", "is reserved"),
    ("--label io.acrtask.keep=true", "is reserved"),
    ("--label com.docker.compose.project=prod", "is reserved"),
    ("--label io.docker.x=y", "is reserved"),
];

#[test]
fn escapes_from_the_container_are_refused() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let mut task = "version: v1.1.0\nsteps:\n".to_owned();
    for (i, (flags, _)) in REFUSED.iter().enumerate() {
        // Written as `docker run`, so that the executor refuses each line. Otherwise the whole task
        // would be refused before its start.
        let line = format!("docker run {flags} $Registry/base/busybox:1.36 echo reached");
        task.push_str(&format!(
            "  - id: s{i}\n    ignoreErrors: true\n    cmd: {}\n",
            serde_json::Value::from(line)
        ));
    }
    let files = create_folder(&[("acr-task.yaml", &task)]);
    let outcome = environment.run_acrtask(files.path(), &["run", "-o", "json", "."]);
    let output = outcome.events_named("output");
    let mut wrong = Vec::new();
    for (i, (flags, why)) in REFUSED.iter().enumerate() {
        let id = format!("s{i}");
        let text: Vec<&str> = output
            .iter()
            .filter(|event| event["step"] == id.as_str())
            .filter_map(|event| event["text"].as_str())
            .collect();
        let text = text.join("\n");
        let state = outcome.step_state(&id);
        if state != "failed" || !text.contains(why) || text.contains("reached") {
            wrong.push(format!("{flags}: {state}: {text}"));
        }
    }
    assert!(
        wrong.is_empty() && output.len() >= REFUSED.len(),
        "{} of {} are not refused:\n{}\n{}",
        wrong.len(),
        REFUSED.len(),
        wrong.join("\n"),
        outcome.stderr
    );
}

#[test]
fn published_ports_are_local_and_foreign_labels_are_dropped() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let task = "version: v1.1.0
steps:
  - id: web
    ports: ['8081']
    cmd: -p 8080 -l traefik.enable=true $Registry/base/busybox:1.36 sh -c 'echo ready; sleep 60'
";
    let files = create_folder(&[("acr-task.yaml", task)]);
    let run = environment.start(files.path(), &["run", "-o", "plain", "."]);
    run.wait_for("| ready");
    let container = format!("acrtask_{}_web", run.run);
    let seen = engine::docker(&["inspect", &container]);
    run.signal("INT");
    run.wait();
    let seen: serde_json::Value = serde_json::from_str(&seen).unwrap();
    let ports = &seen[0]["HostConfig"]["PortBindings"];
    for port in ["8080/tcp", "8081/tcp"] {
        assert_eq!(ports[port][0]["HostIp"], "127.0.0.1", "{ports:#}");
    }
    let labels = seen[0]["Config"]["Labels"].as_object().unwrap();
    let foreign: Vec<_> = labels
        .keys()
        .filter(|key| !key.starts_with("io.acrtask."))
        .collect();
    assert!(foreign.is_empty(), "{foreign:?}");
}
