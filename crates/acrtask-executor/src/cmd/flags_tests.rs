use acrtask_model::StepId;
use acrtask_spec::{
    cmd_line::{self, ContainerLine, WordPart},
    plan::{CmdStep, ContainerOptions, Step, StepKind},
};
use std::time::Duration;

use super::*;
use crate::{
    Allow,
    cmd::body::{Definition, define_container},
    engine::Labels,
    owner::Owner,
};

fn step() -> Step {
    let line = ContainerLine::default();
    let command = cmd_line::Command {
        kind: cmd_line::CommandKind::Container(Box::new(line)),
        redirects: Vec::new(),
    };
    Step {
        id: StepId::new("web_1").unwrap(),
        kind: StepKind::Cmd(Box::new(CmdStep {
            raw: String::new(),
            line: Ok(cmd_line::CmdLine {
                first: cmd_line::Pipeline {
                    commands: vec![command],
                },
                rest: Vec::new(),
            }),
        })),
        after: Vec::new(),
        env: vec!["A=step".into()],
        working_directory: "sub".into(),
        disable_working_directory_override: false,
        timeout: Duration::from_secs(600),
        start_delay: Duration::ZERO,
        retries: 0,
        retry_delay: Duration::from_secs(5),
        retry_on_errors: Vec::new(),
        repeat: 0,
        ignore_errors: false,
        network: Some("net".into()),
        line: 1,
        container: ContainerOptions::default(),
    }
}

/// Returns the definition for `docker run LINE`.
fn define_line(line: &str, allow: Allow) -> Result<Definition, String> {
    define_with(line, allow, true)
}

fn define_with(line: &str, allow: Allow, supports_subpaths: bool) -> Result<Definition, String> {
    let words: Vec<Word> = line
        .split_whitespace()
        .map(|text| Word {
            parts: vec![WordPart::Text(text.into())],
        })
        .collect();
    let line = cmd_line::container_from_words(&words).map_err(|refusal| refusal.message)?;
    let step = step();
    let labels = Labels::new("r1".parse().unwrap(), Owner::this_process());
    define_container(
        &line,
        DefinitionInput {
            step: &step,
            labels: &labels,
            allow: &allow,
            env: &[],
            workspace_mounts: Vec::new(),
            workspace_volume: "acrtask_r1_workspace",
            workspace_name: "acrtask_r1_workspace",
            volumes: vec!["creds", "shared"],
            volume_name: &|name| format!("acrtask_r1_{name}"),
            network_name: &|name| match name {
                "shared" => name.to_owned(),
                _ => format!("acrtask_r1_{name}"),
            },
            network: Some("net"),
            networks: vec!["net", "shared"],
            machine_networks: vec!["shared"],
            supports_subpaths,
            stdin: false,
            now: jiff::Timestamp::UNIX_EPOCH,
        },
    )
}

fn refusal(line: &str) -> String {
    define_line(line, Allow::default()).unwrap_err()
}

#[test]
fn plain_container_has_defaults_of_the_step() {
    let made = define_line(
        "-e B=line -l traefik.enable=true alpine echo a",
        Allow::default(),
    )
    .unwrap();
    assert_eq!(made.image, "alpine");
    let body = made.body;
    let labels = body.labels.unwrap();
    assert_eq!(labels["io.acrtask.keep"], "false");
    assert_eq!(labels["io.acrtask.name"], "");
    assert_eq!(labels["io.acrtask.label.traefik.enable"], "true");
    assert_eq!(body.env.unwrap(), ["A=step", "B=line", "HOME=/acb/home"]);
    assert_eq!(body.working_dir.as_deref(), Some("/workspace/sub"));
    assert_eq!(body.hostname.as_deref(), Some("web-1"));
    assert_eq!(body.cmd.unwrap(), ["echo", "a"]);
    let networks = body.networking_config.unwrap().endpoints_config.unwrap();
    let endpoint = &networks["acrtask_r1_net"];
    assert_eq!(endpoint.aliases.as_deref(), Some(&["web_1".to_owned()][..]));
    assert_eq!(made.needs_network.as_deref(), Some("net"));
}

#[test]
fn volume_flags_mount_only_volumes_of_the_run() {
    let mounts = |line: &str| {
        let host = define_line(line, Allow::default())
            .unwrap()
            .body
            .host_config
            .unwrap();
        let mount = host.mounts.unwrap().pop().unwrap();
        let subpath = mount.volume_options.unwrap().subpath;
        (
            mount.source.unwrap(),
            mount.target.unwrap(),
            subpath,
            mount.read_only.unwrap(),
        )
    };
    let workspace = || "acrtask_r1_workspace".to_owned();
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(
        mounts("-v creds:/c:ro alpine"),
        ("acrtask_r1_creds".into(), "/c".into(), None, true)
    );
    // A machine network with the same name has no effect.
    assert_eq!(
        mounts("-v shared:/c alpine"),
        ("acrtask_r1_shared".into(), "/c".into(), None, false)
    );
    assert_eq!(
        mounts("-v cache:/c alpine"),
        ("acrtask_r1_cache".into(), "/c".into(), None, false)
    );
    assert_eq!(
        mounts("-v ./x:/c alpine"),
        (workspace(), "/c".into(), some("sub/x"), false)
    );
    assert_eq!(
        mounts("-v /workspace:/c alpine"),
        (workspace(), "/c".into(), None, false)
    );
    assert_eq!(
        mounts("-v acrtask_r1_workspace:/w alpine"),
        (workspace(), "/w".into(), None, false)
    );
    assert_eq!(
        mounts("-v /acb/home/.npm:/n alpine"),
        ("acrtask_r1_home".into(), "/n".into(), some(".npm"), false)
    );
    for line in [
        "-v /etc:/c alpine",
        "-v ../../x:/c alpine",
        "-v /var/lib/docker:/c alpine",
    ] {
        assert!(refusal(line).contains("never mounted"), "{line}");
    }
    assert!(refusal("-v /var/run/docker.sock:/s alpine").contains("--allow docker-socket"));
    assert!(refusal("-v a:b alpine").contains("SOURCE:/TARGET"));
    let old = |line: &str| define_with(line, Allow::default(), false);
    assert!(old("-v ./x:/c alpine").unwrap_err().contains("Docker 26"));
    assert!(old("-v /workspace:/c alpine").is_ok());
}

#[test]
fn flags_that_extend_the_reach_need_the_operator() {
    for line in [
        "--privileged alpine",
        "--cap-add NET_ADMIN alpine",
        "--security-opt seccomp=unconfined alpine",
        "--pid host alpine",
        "--ipc host alpine",
        "--log-driver syslog --log-opt syslog-address=unix:///run/x alpine",
        "--log-opt fluentd-address=169.254.169.254:80 alpine",
        "--oom-score-adj -1000 alpine",
        "--cpu-shares 262144 alpine",
        "--ulimit rtprio=99 alpine",
        "--ulimit nice=40:40 alpine",
    ] {
        assert!(
            refusal(line).contains("--allow privileged"),
            "{line}: {}",
            refusal(line)
        );
        let allow = Allow {
            privileged: true,
            ..Allow::default()
        };
        assert!(define_line(line, allow).is_ok(), "{line}");
    }
    // The engine accepts every case.
    for limit in ["RTPRIO=99", "Nice=40", "\"rtprio=99\"", " rtprio=99"] {
        let error = parse_ulimit(limit).unwrap_err();
        assert!(error.contains("has no limit"), "{limit}: {error}");
    }
    assert!(refusal("--network host alpine").contains("--allow host-network"));
    assert!(refusal("--network shared alpine").contains("--allow host-network"));
    assert!(refusal("--network other alpine").contains("the task has no network `other`"));
    assert!(
        define_line(
            "--log-driver json-file --log-opt max-size=1m alpine",
            Allow::default()
        )
        .is_ok()
    );
    assert!(refusal("--device /dev/kvm alpine").contains("not supported"));
    for label in [
        "io.acrtask.run=x",
        "io.acrtask.keep",
        "com.docker.compose.project=x",
    ] {
        assert!(refusal(&format!("-l {label} alpine")).contains("is reserved"));
    }
    for line in ["-P alpine", "--publish-all alpine"] {
        assert!(refusal(line).contains("--allow host-network"), "{line}");
    }
    for line in ["-v a:/b:rshared alpine", "-v a:/b:ro,exec alpine"] {
        assert!(refusal(line).contains("is not supported"), "{line}");
    }
}

#[test]
fn sysctl_accepts_only_namespaced_settings() {
    for name in [
        "net.core.somaxconn",
        "net.ipv4.ip_unprivileged_port_start",
        "kernel.shmmax",
        "kernel.shm_rmid_forced",
        "kernel.msgmnb",
        "kernel.sem",
        "fs.mqueue.msg_max",
    ] {
        let made = define_line(&format!("--sysctl {name}=1 alpine"), Allow::default()).unwrap();
        let host = made.body.host_config.unwrap();
        assert_eq!(host.sysctls.unwrap()[name], "1");
    }
    for name in [
        "kernel.core_pattern",
        "kernel.hostname",
        "kernel.shmx",
        "vm.overcommit_memory",
        "fs.file-max",
        "net/ipv4/ip_forward",
        "net..core",
        "net.",
        "netx",
    ] {
        let why = define_line(&format!("--sysctl {name}=1 alpine"), Allow::default()).unwrap_err();
        assert!(why.contains("the whole machine"), "{name}: {why}");
    }
    let allow = Allow {
        host_network: true,
        ..Allow::default()
    };
    let line = "--network host --sysctl net.core.somaxconn=1 alpine";
    let why = define_line(line, allow).unwrap_err();
    assert!(why.contains("`--network host`"), "{why}");
}

#[test]
fn network_flag_selects_the_network_mode() {
    let mode = |line: &str| {
        let allow = Allow {
            host_network: true,
            ..Allow::default()
        };
        let host = define_line(line, allow).unwrap().body.host_config.unwrap();
        host.network_mode.unwrap()
    };
    assert_eq!(mode("--network none alpine"), "none");
    assert_eq!(mode("--network host alpine"), "host");
    assert_eq!(mode("--network shared alpine"), "shared");
    assert_eq!(mode("--network bridge alpine"), "acrtask_r1_net");
}

#[test]
fn sizes_and_cpu_counts_are_parsed() {
    for (text, expected) in [
        ("512m", 512 << 20),
        ("1g", 1 << 30),
        ("1.5k", 1536),
        ("10", 10),
        ("2GiB", 2 << 30),
        ("-1", -1),
    ] {
        assert_eq!(parse_bytes("memory", text), Ok(expected), "{text}");
    }
    for bad in ["", "m", "1x", "1e400g", "-5m"] {
        assert!(parse_bytes("memory", bad).is_err(), "{bad}");
    }
    assert_eq!(parse_nano_cpus("0.5"), Ok(500_000_000));
    for bad in ["0", "-1", "many", "nan"] {
        assert!(parse_nano_cpus(bad).is_err(), "{bad}");
    }
}

#[test]
fn published_ports_bind_to_loopback_by_default() {
    let show = |spec: &str, any_address| {
        let (bindings, exposed) = parse_ports(vec![spec.into()], any_address)?;
        let mut out: Vec<String> = bindings
            .into_iter()
            .flat_map(|(port, to)| {
                to.unwrap().into_iter().map(move |to| {
                    format!(
                        "{}:{}->{port}",
                        to.host_ip.unwrap_or_default(),
                        to.host_port.unwrap_or_default()
                    )
                })
            })
            .collect();
        out.sort();
        assert_eq!(out.len(), exposed.len());
        Ok::<_, String>(out.join(" "))
    };
    for (spec, expected) in [
        ("80", "127.0.0.1:->80/tcp"),
        ("8080:80", "127.0.0.1:8080->80/tcp"),
        ("127.0.0.1:8080:80/udp", "127.0.0.1:8080->80/udp"),
        ("127.0.0.1::80", "127.0.0.1:->80/tcp"),
        ("[::1]:1:2", "::1:1->2/tcp"),
        (
            "8000-8001:80-81",
            "127.0.0.1:8000->80/tcp 127.0.0.1:8001->81/tcp",
        ),
    ] {
        assert_eq!(show(spec, false).unwrap(), expected, "{spec}");
    }
    assert_eq!(show("8080:80", true).unwrap(), ":8080->80/tcp");
    for spec in [
        "0.0.0.0:80:80",
        "10.0.0.1::80",
        "[::]:80:80",
        "127.0.0.2:80:80",
        ":80:80",
    ] {
        let refused = show(spec, false).unwrap_err();
        assert!(
            refused.contains("--allow host-network"),
            "{spec}: {refused}"
        );
        assert!(show(spec, true).is_ok(), "{spec}");
    }
    for bad in ["", "x", "0", "80:", "1-3:1-2", "9-8", "70000"] {
        assert!(show(bad, false).is_err(), "{bad}");
    }
    assert_eq!(parse_exposed_ports("53/udp").unwrap(), ["53/udp"]);
}
