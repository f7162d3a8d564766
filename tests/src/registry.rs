//! A registry of a test's own, to be killed and started again, which tells somebody of pushes where a test wants that.
//! Its program is the one that `cargo xtask test` set up.

use std::{
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::service::free_port;

/// Whom a registry tells of pushes.
#[derive(Debug, Clone)]
pub struct Listener {
    /// Where.
    pub url: String,
    /// What it proves itself with.
    pub token: String,
}

/// A registry; it ends with this.
#[derive(Debug)]
pub struct OwnRegistry {
    /// `127.0.0.1:PORT`.
    pub host: String,
    program: PathBuf,
    folder: TempDir,
    child: Option<Child>,
}

impl OwnRegistry {
    /// Starts an empty one; nothing only where skipping was asked for.
    pub fn start(listener: Option<&Listener>) -> Option<Self> {
        let Some(program) = std::env::var_os("ACRTASK_TEST_REGISTRY_BIN") else {
            assert!(
                std::env::var_os("ACRTASK_TEST_SKIP_ENGINE").is_some(),
                "ACRTASK_TEST_REGISTRY_BIN is not set: run `cargo xtask test`"
            );
            return None;
        };
        let folder = tempfile::tempdir().expect("a folder can be made");
        let host = format!("127.0.0.1:{}", free_port());
        let data = folder.path().join("data").display().to_string();
        let mut configuration = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {data:?}}}}}\nhttp: {{addr: {host}}}\n"
        );
        if let Some(Listener { url, token }) = listener {
            configuration += &format!(
                "notifications:\n  endpoints:\n    - name: acrtask\n      url: {url}\n      timeout: 2s\n      \
                 threshold: 1\n      backoff: 1s\n      headers: {{Authorization: [Bearer {token}]}}\n"
            );
        }
        let file = folder.path().join("config.yml");
        std::fs::write(file, configuration).expect("a file can be written");
        let mut registry = Self {
            host,
            program: program.into(),
            folder,
            child: None,
        };
        registry.restart();
        Some(registry)
    }

    /// Starts it, or starts it again with what it had, and waits until it takes connections.
    pub fn restart(&mut self) {
        let child = Command::new(&self.program)
            .arg("serve")
            .arg(self.folder.path().join("config.yml"))
            // A variable like REGISTRY_HTTP_ADDR would override the configuration.
            .env_clear()
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.child = Some(child.expect("the registry can be started"));
        let begun = Instant::now();
        while TcpStream::connect(&self.host).is_err() {
            assert!(
                begun.elapsed() < Duration::from_secs(30),
                "the registry at {} does not answer",
                self.host
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills it at once; what it has stays.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // One that has ended already is as good.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for OwnRegistry {
    fn drop(&mut self) {
        self.kill();
    }
}
