//! Repeated reading of the command lines and environments of processes.

use std::{
    collections::BTreeSet,
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use crate::marks::{Canary, search_all};

/// Thread that reads the command lines and environments of processes until the end of the test. It
/// covers the server, everything the server starts, and the engine.
pub(crate) struct Processes {
    stop: Arc<AtomicBool>,
    found: Arc<Mutex<BTreeSet<String>>>,
    reading: Option<JoinHandle<()>>,
}

impl Processes {
    pub(crate) fn watch(server: u32, canaries: Arc<Vec<Canary>>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let found = Arc::new(Mutex::new(BTreeSet::new()));
        let (stopped, seen) = (Arc::clone(&stop), Arc::clone(&found));
        let reading = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let mut found = seen.lock().unwrap();
                for pid in list_watched(server) {
                    for file in ["cmdline", "environ"] {
                        let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
                        let name = fs::read_to_string(format!("/proc/{pid}/comm"));
                        let location = format!("{file} of {}", name.unwrap_or_default().trim());
                        search_all(&canaries, &location, &bytes, &mut found);
                    }
                }
                drop(found);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Self {
            stop,
            found,
            reading: Some(reading),
        }
    }

    pub(crate) fn stop(mut self) -> BTreeSet<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.reading.take().unwrap().join().unwrap();
        std::mem::take(&mut self.found.lock().unwrap())
    }
}

/// Lists the descendants of the server, and the processes of the engine in this mount namespace.
/// Processes of containers have other mount namespaces.
fn list_watched(server: u32) -> Vec<u32> {
    let mounts = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let own_mounts = mounts("self");
    let mut parents = Vec::new();
    let mut watched = vec![server];
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
            continue;
        };
        let parent = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.split(' ').nth(1));
        parents.push((
            pid,
            parent
                .and_then(|parent| parent.parse::<u32>().ok())
                .unwrap_or(0),
        ));
        let name = stat.split(['(', ')']).nth(1).unwrap_or_default().to_owned();
        let engine = ["dockerd", "containerd", "runc", "buildkit"];
        if engine.iter().any(|engine| name.starts_with(engine))
            && mounts(&pid.to_string()) == own_mounts
        {
            watched.push(pid);
        }
    }
    let mut at = 0;
    while let Some(&parent) = watched.get(at) {
        if at == 0
            || parents
                .iter()
                .any(|(pid, of)| *pid == parent && *of == server)
        {
            let children = parents.iter().filter(|(_, of)| *of == parent);
            watched.extend(children.map(|(pid, _)| *pid).collect::<Vec<_>>());
        }
        at += 1;
    }
    watched
}
