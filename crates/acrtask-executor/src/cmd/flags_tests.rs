use acrtask_model::StepId;
use acrtask_spec::{
    cmd_line::{self, ContainerLine, WordPart},
    plan::{CmdStep, ContainerOptions, Step, StepKind},
};
use std::time::Duration;

use super::*;
use crate::{
    Allow,
    cmd::body::{Definition, define},
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

/// What is made of `docker run LINE`.
fn made(line: &str, allow: Allow) -> Result<Definition, String> {
    made_by(line, allow, true)
}

fn made_by(line: &str, allow: Allow, mounts_parts: bool) -> Result<Definition, String> {
    let words: Vec<Word> = line
        .split_whitespace()
        .map(|text| Word {
            parts: vec![WordPart::Text(text.into())],
        })
        .collect();
    let line = cmd_line::container_from_words(&words).map_err(|refusal| refusal.message)?;
    let step = step();
    let labels = Labels::new("r1".parse().unwrap(), Owner::this_process());
    define(
        &line,
        Setting {
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
            of_the_machine: vec!["shared"],
            mounts_parts,
            stdin: false,
            now: jiff::Timestamp::UNIX_EPOCH,
        },
    )
}

fn denied(line: &str) -> String {
    made(line, Allow::default()).unwrap_err()
}

#[test]
fn a_plain_container() {
    let made = made(
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
fn volumes_are_the_runs_own() {
    let mounts = |line: &str| {
        let host = made(line, Allow::default())
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
    // A network of the machine with the same name makes no difference.
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
        assert!(denied(line).contains("never mounted"), "{line}");
    }
    assert!(denied("-v /var/run/docker.sock:/s alpine").contains("--allow docker-socket"));
    assert!(denied("-v a:b alpine").contains("SOURCE:/TARGET"));
    let old = |line: &str| made_by(line, Allow::default(), false);
    assert!(old("-v ./x:/c alpine").unwrap_err().contains("Docker 26"));
    assert!(old("-v /workspace:/c alpine").is_ok());
}

#[test]
fn a_way_out_needs_the_operator() {
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
            denied(line).contains("--allow privileged"),
            "{line}: {}",
            denied(line)
        );
        let allow = Allow {
            privileged: true,
            ..Allow::default()
        };
        assert!(made(line, allow).is_ok(), "{line}");
    }
    assert!(denied("--network host alpine").contains("--allow host-network"));
    assert!(denied("--network shared alpine").contains("--allow host-network"));
    assert!(denied("--network other alpine").contains("there is no network `other`"));
    assert!(
        made(
            "--log-driver json-file --log-opt max-size=1m alpine",
            Allow::default()
        )
        .is_ok()
    );
    assert!(denied("--device /dev/kvm alpine").contains("not supported"));
    for label in [
        "io.acrtask.run=x",
        "io.acrtask.keep",
        "com.docker.compose.project=x",
    ] {
        assert!(denied(&format!("-l {label} alpine")).contains("is reserved"));
    }
    for line in ["-P alpine", "--publish-all alpine"] {
        assert!(denied(line).contains("--allow host-network"), "{line}");
    }
    for line in ["-v a:/b:rshared alpine", "-v a:/b:ro,exec alpine"] {
        assert!(denied(line).contains("is not supported"), "{line}");
    }
}

#[test]
fn sysctls_of_the_container_alone() {
    for name in [
        "net.core.somaxconn",
        "net.ipv4.ip_unprivileged_port_start",
        "kernel.shmmax",
        "kernel.shm_rmid_forced",
        "kernel.msgmnb",
        "kernel.sem",
        "fs.mqueue.msg_max",
    ] {
        let made = made(&format!("--sysctl {name}=1 alpine"), Allow::default()).unwrap();
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
        let why = made(&format!("--sysctl {name}=1 alpine"), Allow::default()).unwrap_err();
        assert!(why.contains("the whole machine"), "{name}: {why}");
    }
    let allow = Allow {
        host_network: true,
        ..Allow::default()
    };
    let line = "--network host --sysctl net.core.somaxconn=1 alpine";
    let why = made(line, allow).unwrap_err();
    assert!(why.contains("`--network host`"), "{why}");
}

#[test]
fn networks_that_are_none_of_the_runs() {
    let mode = |line: &str| {
        let allow = Allow {
            host_network: true,
            ..Allow::default()
        };
        let host = made(line, allow).unwrap().body.host_config.unwrap();
        host.network_mode.unwrap()
    };
    assert_eq!(mode("--network none alpine"), "none");
    assert_eq!(mode("--network host alpine"), "host");
    assert_eq!(mode("--network shared alpine"), "shared");
    assert_eq!(mode("--network bridge alpine"), "acrtask_r1_net");
}

#[test]
fn sizes_and_numbers() {
    for (text, expected) in [
        ("512m", 512 << 20),
        ("1g", 1 << 30),
        ("1.5k", 1536),
        ("10", 10),
        ("2GiB", 2 << 30),
        ("-1", -1),
    ] {
        assert_eq!(bytes("memory", text), Ok(expected), "{text}");
    }
    for bad in ["", "m", "1x", "1e400g", "-5m"] {
        assert!(bytes("memory", bad).is_err(), "{bad}");
    }
    assert_eq!(nano_cpus("0.5"), Ok(500_000_000));
    for bad in ["0", "-1", "many", "nan"] {
        assert!(nano_cpus(bad).is_err(), "{bad}");
    }
}

#[test]
fn published_ports() {
    let show = |spec: &str, any_address| {
        let (bindings, exposed) = ports(vec![spec.into()], any_address)?;
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
    assert_eq!(exposed("53/udp").unwrap(), ["53/udp"]);
}
