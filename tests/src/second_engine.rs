//! Second Docker engine that starts empty. Tests need it for an empty layer cache and for engines
//! that are killed.
//!
//! The engine runs in the root file system of the engine that `cargo xtask test` set up. It has its
//! own mount namespace and bridge and no packet filter rules, so that it does not affect the first
//! engine. If another engine is used, this root file system does not exist. Then the tests that
//! need a second engine are skipped.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// Script of the shell in the new mount namespace. Arguments: root file system, data, folder of the
/// socket, name.
const ENTER: &str = r#"
set -eu
root=$1 data=$2 run=$3 name=$4
mount --bind "$root" "$root"
mount --rbind /proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mkdir -p "$root/run/$name" "$root/var/lib/docker"
mount --bind "$run" "$root/run/$name"
mount --bind "$data" "$root/var/lib/docker"
if [ -z "$(ls -A "$root/sys/fs/cgroup")" ]; then
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
fi
exec chroot "$root" dockerd --config-file="/run/$name/daemon.json"
"#;

/// Engine that ends with its handle.
#[derive(Debug)]
pub struct SecondEngine {
    /// Value for `DOCKER_HOST`.
    pub host: String,
    name: String,
    bridge: String,
    busybox: PathBuf,
    root: PathBuf,
    folder: TempDir,
    child: Option<Child>,
}

impl SecondEngine {
    /// Starts an engine. `None` if this machine cannot run a second one.
    #[expect(clippy::print_stderr, reason = "the test's own output")]
    pub fn start() -> Option<Self> {
        let Some((root, busybox)) = find_engine_files() else {
            eprintln!("skipped: the engine is not one that `cargo xtask test` set up");
            return None;
        };
        // Names of network interfaces have at most 15 characters.
        let bridge = format!("acrt{}", std::process::id());
        let name = format!("acrtask-second-{}", std::process::id());
        let folder = tempfile::Builder::new()
            .prefix("acrt2-")
            .tempdir()
            .expect("a folder can be created");
        let network = std::process::id() % 250;
        let address = format!("172.31.{network}.1/24");
        for words in [
            ["brctl", "addbr", &bridge].as_slice(),
            &["ip", "addr", "add", &address, "dev", &bridge],
            &["ip", "link", "set", &bridge, "up"],
        ] {
            let done = Command::new(&busybox).args(words).status();
            assert!(done.is_ok_and(|status| status.success()), "{words:?}");
        }
        let mut engine = Self {
            host: format!("unix://{}/run/docker.sock", folder.path().display()),
            name,
            bridge,
            busybox,
            root,
            folder,
            child: None,
        };
        engine.restart();
        Some(engine)
    }

    /// Starts or restarts the engine with its data, and waits until it answers.
    pub fn restart(&mut self) {
        let (data, run) = (
            self.folder.path().join("data"),
            self.folder.path().join("run"),
        );
        let name = &self.name;
        for folder in [&data, &run] {
            std::fs::create_dir_all(folder).expect("a folder can be created");
        }
        for stale in ["docker.sock", "docker.pid"] {
            let _ = std::fs::remove_file(run.join(stale));
        }
        let configuration = serde_json::json!({
            "features": { "containerd-snapshotter": true },
            "hosts": [format!("unix:///run/{name}/docker.sock")],
            "pidfile": format!("/run/{name}/docker.pid"),
            "exec-root": format!("/run/{name}/exec"),
            "data-root": "/var/lib/docker",
            "insecure-registries": ["127.0.0.0/8"],
            "iptables": false,
            "ip6tables": false,
            "bridge": self.bridge,
        });
        std::fs::write(run.join("daemon.json"), configuration.to_string())
            .expect("a file can be written");
        let log =
            std::fs::File::create(self.folder.path().join("log")).expect("a log can be created");
        let errors = log.try_clone().expect("a file can be shared");
        let child = Command::new("setsid")
            .args([
                "unshare",
                "--mount",
                "--propagation",
                "private",
                "--",
                "sh",
                "-c",
                ENTER,
                "sh",
            ])
            .arg(&self.root)
            .args([&data, &run])
            .arg(name)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .expect("unshare can be started");
        self.child = Some(child);
        let begun = Instant::now();
        let socket = run.join("docker.sock");
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "the second engine is not reachable:\n{}",
                std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
            );
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Kills the engine and everything it runs. As in a crash, nothing is cleaned up.
    pub fn kill(&mut self) {
        let begun = Instant::now();
        loop {
            let processes = self.processes();
            if processes.is_empty() {
                if let Some(mut child) = self.child.take() {
                    let _ = child.wait();
                }
                return;
            }
            let _ = Command::new("kill").arg("-KILL").args(&processes).status();
            assert!(
                begun.elapsed() < Duration::from_secs(20),
                "{processes:?} do not end"
            );
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Lists the processes in the mount namespace of the engine. This includes the shims of its
    /// containers.
    fn processes(&self) -> Vec<String> {
        let mark = format!("/run/{}/", self.name);
        let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        all.filter(|entry| {
            let mounts = std::fs::read_to_string(entry.path().join("mountinfo"));
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let in_namespace = mounts.is_ok_and(|text| text.contains(self.name.as_str()));
            !line.is_empty() && (in_namespace || String::from_utf8_lossy(&line).contains(&mark))
        })
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.bytes().all(|b| b.is_ascii_digit()))
        .collect()
    }
}

impl Drop for SecondEngine {
    fn drop(&mut self) {
        self.kill();
        for words in [
            vec!["ip", "link", "set", &self.bridge, "down"],
            vec!["brctl", "delbr", &self.bridge],
        ] {
            let _ = Command::new(&self.busybox).args(words).status();
        }
    }
}

/// Finds the root file system of the engine of the tests, and the busybox that belongs to it.
fn find_engine_files() -> Option<(PathBuf, PathBuf)> {
    let docker = std::env::var_os("ACRTASK_TEST_DOCKER")?;
    let root = Path::new(&docker).ancestors().nth(3)?.to_owned();
    let cache = std::fs::read_dir(root.parent()?).ok()?.flatten();
    let tools = cache.filter(|entry| entry.file_name().to_string_lossy().starts_with("tools-"));
    let busybox = tools
        .map(|entry| entry.path().join("bin/busybox"))
        .find(|path| path.exists())?;
    Some((root, busybox))
}
