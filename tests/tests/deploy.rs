//! Checks of `runners/deploy`: every file parses as its consumer parses it, every flag exists, and
//! what can run here is started.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use acrtask_tests::{TestEnvironment, checkout, service::TestServer};
use serde_json::Value;

fn deploy_folder() -> PathBuf {
    checkout().join("runners/deploy")
}

fn read_file(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the documents of a Kubernetes file.
fn read_documents(path: &Path) -> Vec<Value> {
    read_file(path)
        .split("\n---\n")
        .map(|text| {
            serde_yaml::from_str(text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        })
        .collect()
}

/// Returns every object of the manifests in the kustomization. Asserts that it lists every
/// manifest.
fn read_manifests() -> Vec<Value> {
    let folder = deploy_folder().join("kubernetes");
    let kustomization = &read_documents(&folder.join("kustomization.yaml"))[0];
    let named = kustomization["resources"].as_array().unwrap();
    let named = named.iter().map(|name| name.as_str().unwrap().to_owned());
    let named: BTreeSet<String> = named.collect();
    let there = std::fs::read_dir(&folder).unwrap().flatten();
    let there = there.filter_map(|entry| entry.file_name().into_string().ok());
    let there: BTreeSet<String> = there
        .filter(|name| name.ends_with(".yaml") && name != "kustomization.yaml")
        .collect();
    assert_eq!(named, there);
    for map in kustomization["configMapGenerator"].as_array().unwrap() {
        for file in map["files"].as_array().unwrap() {
            assert!(folder.join(file.as_str().unwrap()).is_file(), "{file}");
        }
    }
    named
        .iter()
        .flat_map(|name| read_documents(&folder.join(name)))
        .collect()
}

/// Asserts that the program accepts these arguments, without starting it.
fn assert_accepts(environment: &TestEnvironment, args: &[String]) {
    let done = environment
        .command()
        .args(args)
        .arg("--help")
        .output()
        .unwrap();
    assert!(
        done.status.success(),
        "{args:?}\n{}",
        String::from_utf8_lossy(&done.stderr)
    );
}

#[test]
fn manifests_are_consistent_and_use_existing_flags() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let all = read_manifests();
    let mut containers = 0;
    for object in &all {
        let kind = object["kind"].as_str().unwrap();
        assert!(
            object["apiVersion"].is_string() && object["metadata"]["name"].is_string(),
            "{object}"
        );
        let pod = &object["spec"]["template"]["spec"];
        if pod.is_null() {
            continue;
        }
        let name = &object["metadata"]["name"];
        assert_eq!(
            object["spec"]["selector"]["matchLabels"],
            object["spec"]["template"]["metadata"]["labels"],
            "{kind} {name}"
        );
        let mut volumes: BTreeSet<&str> = BTreeSet::new();
        for list in [&pod["volumes"], &object["spec"]["volumeClaimTemplates"]] {
            for volume in list.as_array().into_iter().flatten() {
                let own = volume["name"]
                    .as_str()
                    .or(volume["metadata"]["name"].as_str());
                volumes.insert(own.unwrap());
            }
        }
        for container in pod["containers"].as_array().unwrap() {
            for mount in container["volumeMounts"].as_array().into_iter().flatten() {
                let volume = mount["name"].as_str().unwrap();
                assert!(volumes.contains(volume), "{kind} {name} mounts {volume}");
            }
            if container["image"] == "acrtask" {
                containers += 1;
                let args = container["args"].as_array().unwrap().iter();
                let args: Vec<String> =
                    args.map(|word| word.as_str().unwrap().to_owned()).collect();
                assert_accepts(&environment, &args);
            }
        }
    }
    assert_eq!(containers, 2, "a server and a runner");
    // The selector of every service matches a pod.
    for service in all.iter().filter(|object| object["kind"] == "Service") {
        let selected = &service["spec"]["selector"];
        assert!(
            all.iter()
                .any(|object| object["spec"]["template"]["metadata"]["labels"] == *selected),
            "{service}"
        );
    }
}

/// Returns the value of `key` in a unit.
fn find_setting(unit: &str, key: &str) -> String {
    let prefix = format!("{key}=");
    let found = unit.lines().find_map(|line| line.strip_prefix(&prefix));
    found.unwrap_or_else(|| panic!("no {key}")).to_owned()
}

#[test]
fn units_parse_and_their_commands_start() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let folder = deploy_folder().join("systemd");
    for name in ["acrtask-server.service", "acrtask-runner.service"] {
        let unit = read_file(&folder.join(name));
        for section in ["[Unit]", "[Service]", "[Install]"] {
            assert!(
                unit.lines().any(|line| line == section),
                "{name}: {section}"
            );
        }
        for line in unit.lines().filter(|line| !line.is_empty()) {
            assert!(
                line.starts_with(['#', '[']) || line.contains('='),
                "{name}: {line}"
            );
        }
        let command =
            find_setting(&unit, "ExecStart").replace("${ACRTASK_SERVER}", "https://acrtask");
        let args: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
        assert_eq!(args[0], "/usr/local/bin/acrtask");
        assert_accepts(&environment, &args[1..]);
    }
    // Starts the server with the flags of the unit, but with folders of the test.
    let unit = read_file(&folder.join("acrtask-server.service"));
    let command = find_setting(&unit, "ExecStart");
    let tasks = tempfile::tempdir().unwrap();
    let mut flags: Vec<&str> = command.split_whitespace().skip(2).collect();
    let at = flags.iter().position(|word| *word == "--tasks").unwrap();
    flags[at + 1] = tasks.path().to_str().unwrap();
    for flag in ["--listen", "--data-dir"] {
        let at = flags.iter().position(|word| *word == flag).unwrap();
        flags.drain(at..at + 2);
    }
    let mut server = TestServer::start(&environment, &flags);
    server.run_ok(&["task", "list"]);
    server.signal("TERM");
    assert_eq!(server.wait_for_exit(), Some(0), "{}", server.log());
}

#[test]
fn containerfile_builds_the_program_it_starts() {
    let text = read_file(&deploy_folder().join("Containerfile"));
    let stages: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("FROM "))
        .collect();
    assert_eq!(stages.len(), 2, "{stages:?}");
    assert!(text.contains("cargo build --release --locked --package acrtask"));
    assert!(text.contains("COPY --from=build /usr/local/bin/acrtask"));
    let pinned = read_file(&checkout().join("rust-toolchain.toml"));
    let version = pinned.split('"').nth(1).unwrap().trim_end_matches(".0");
    assert!(
        text.contains(&format!("rust:{version}-")),
        "the toolchain is {version}"
    );
    let start = text
        .lines()
        .find_map(|line| line.strip_prefix("CMD "))
        .unwrap();
    let args: Vec<String> = serde_json::from_str(start).unwrap();
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    assert_accepts(&environment, &args);
}
