//! Registry of one test, which the test can kill and restart. It can notify an endpoint of pushes.
//! `cargo xtask test` installs the program.

use std::{
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::service::free_port;

/// Endpoint that a registry notifies of pushes.
#[derive(Debug, Clone)]
pub struct NotificationEndpoint {
    /// URL that receives the notifications.
    pub url: String,
    /// Bearer token of the notifications.
    pub token: String,
}

/// Registry that ends with its handle.
#[derive(Debug)]
pub struct TestRegistry {
    /// `127.0.0.1:PORT`.
    pub host: String,
    program: PathBuf,
    folder: TempDir,
    child: Option<Child>,
}

impl TestRegistry {
    /// Starts an empty registry. `None` if `ACRTASK_TEST_SKIP_ENGINE` is set.
    pub fn start(listener: Option<&NotificationEndpoint>) -> Option<Self> {
        let Some(program) = std::env::var_os("ACRTASK_TEST_REGISTRY_BIN") else {
            assert!(
                std::env::var_os("ACRTASK_TEST_SKIP_ENGINE").is_some(),
                "ACRTASK_TEST_REGISTRY_BIN is not set: run `cargo xtask test`"
            );
            return None;
        };
        let folder = tempfile::tempdir().expect("a folder can be created");
        let host = format!("127.0.0.1:{}", free_port());
        let data = folder.path().join("data").display().to_string();
        let mut configuration = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {data:?}}}}}\nhttp: {{addr: {host}}}\n"
        );
        if let Some(NotificationEndpoint { url, token }) = listener {
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

    /// Starts or restarts the registry with its data, and waits until it accepts connections.
    pub fn restart(&mut self) {
        let child = Command::new(&self.program)
            .arg("serve")
            .arg(self.folder.path().join("config.yml"))
            // A variable such as `REGISTRY_HTTP_ADDR` would override the configuration.
            .env_clear()
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.child = Some(child.expect("the registry can be started"));
        let begun = Instant::now();
        while TcpStream::connect(&self.host).is_err() {
            assert!(
                begun.elapsed() < Duration::from_secs(30),
                "the registry at {} is not reachable",
                self.host
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills the registry. Its data stays.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // An error means that it has already ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for TestRegistry {
    fn drop(&mut self) {
        self.kill();
    }
}
