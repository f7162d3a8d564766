//! What `runners/deploy` holds is kept true: every file is read as what reads it would, every flag is one that the program
//! has, and what can be started here is started.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use acrtask_tests::{World, checkout, service::Server};
use serde_json::Value;

fn deploy() -> PathBuf {
    checkout().join("runners/deploy")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The documents of a file of Kubernetes.
fn documents(path: &Path) -> Vec<Value> {
    read(path)
        .split("\n---\n")
        .map(|text| {
            serde_yaml::from_str(text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        })
        .collect()
}

/// Every object of the manifests that the kustomization names.
fn manifests() -> Vec<Value> {
    let folder = deploy().join("kubernetes");
    let kustomization = &documents(&folder.join("kustomization.yaml"))[0];
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
        .flat_map(|name| documents(&folder.join(name)))
        .collect()
}

/// The program accepts these words; nothing is started.
fn accepts(world: &World, words: &[String]) {
    let done = world.command().args(words).arg("--help").output().unwrap();
    assert!(
        done.status.success(),
        "{words:?}\n{}",
        String::from_utf8_lossy(&done.stderr)
    );
}

#[test]
fn the_manifests_are_whole_and_their_flags_are_the_programs() {
    let Some(world) = World::find() else { return };
    let all = manifests();
    let mut ours = 0;
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
                ours += 1;
                let words = container["args"].as_array().unwrap().iter();
                let words: Vec<String> = words
                    .map(|word| word.as_str().unwrap().to_owned())
                    .collect();
                accepts(&world, &words);
            }
        }
    }
    assert_eq!(ours, 2, "a server and a runner");
    // What a service selects is there.
    for service in all.iter().filter(|object| object["kind"] == "Service") {
        let selected = &service["spec"]["selector"];
        assert!(
            all.iter()
                .any(|object| object["spec"]["template"]["metadata"]["labels"] == *selected),
            "{service}"
        );
    }
}

/// The value of `key` in a unit.
fn setting(unit: &str, key: &str) -> String {
    let prefix = format!("{key}=");
    let found = unit.lines().find_map(|line| line.strip_prefix(&prefix));
    found.unwrap_or_else(|| panic!("no {key}")).to_owned()
}

#[test]
fn the_units_start_what_they_say() {
    let Some(world) = World::find() else { return };
    let folder = deploy().join("systemd");
    for name in ["acrtask-server.service", "acrtask-runner.service"] {
        let unit = read(&folder.join(name));
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
        let command = setting(&unit, "ExecStart").replace("${ACRTASK_SERVER}", "https://acrtask");
        let words: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
        assert_eq!(words[0], "/usr/local/bin/acrtask");
        accepts(&world, &words[1..]);
    }
    // The server, with the unit's own flags and folders of the test's own.
    let unit = read(&folder.join("acrtask-server.service"));
    let command = setting(&unit, "ExecStart");
    let tasks = tempfile::tempdir().unwrap();
    let mut flags: Vec<&str> = command.split_whitespace().skip(2).collect();
    let at = flags.iter().position(|word| *word == "--tasks").unwrap();
    flags[at + 1] = tasks.path().to_str().unwrap();
    for flag in ["--listen", "--data-dir"] {
        let at = flags.iter().position(|word| *word == flag).unwrap();
        flags.drain(at..at + 2);
    }
    let mut server = Server::start(&world, &flags);
    server.ok(&["task", "list"]);
    server.signal("TERM");
    assert_eq!(server.ended(), Some(0), "{}", server.log());
}

#[test]
fn the_containerfile_builds_the_program_that_it_starts() {
    let text = read(&deploy().join("Containerfile"));
    let stages: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("FROM "))
        .collect();
    assert_eq!(stages.len(), 2, "{stages:?}");
    assert!(text.contains("cargo build --release --locked --package acrtask"));
    assert!(text.contains("COPY --from=build /usr/local/bin/acrtask"));
    let pinned = read(&checkout().join("rust-toolchain.toml"));
    let version = pinned.split('"').nth(1).unwrap().trim_end_matches(".0");
    assert!(
        text.contains(&format!("rust:{version}-")),
        "the toolchain is {version}"
    );
    let start = text
        .lines()
        .find_map(|line| line.strip_prefix("CMD "))
        .unwrap();
    let words: Vec<String> = serde_json::from_str(start).unwrap();
    let Some(world) = World::find() else { return };
    accepts(&world, &words);
}
