//! PostgreSQL server of one test, which the test can stop, kill and restart. `cargo xtask test`
//! installs the programs.

use std::{
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::service::free_port;

/// PostgreSQL server that ends with its handle.
#[derive(Debug)]
pub struct TestDb {
    /// URL of the only database.
    pub url: String,
    port: u16,
    programs: PathBuf,
    folder: TempDir,
    child: Option<Child>,
}

impl TestDb {
    /// Creates and starts a server. `None` if `ACRTASK_TEST_SKIP_ENGINE` is set.
    pub fn start() -> Option<Self> {
        let Some(programs) = std::env::var_os("ACRTASK_TEST_POSTGRES_BIN") else {
            assert!(
                std::env::var_os("ACRTASK_TEST_SKIP_ENGINE").is_some(),
                "ACRTASK_TEST_POSTGRES_BIN is not set: run `cargo xtask test`"
            );
            return None;
        };
        let programs = PathBuf::from(programs);
        let folder = tempfile::tempdir().expect("a folder can be created");
        let made = Command::new(programs.join("initdb"))
            .args([
                "--username=postgres",
                "--auth=trust",
                "--locale=C",
                "--encoding=UTF8",
            ])
            .args(["--no-sync", "-D"])
            .arg(folder.path().join("data"))
            .stdout(Stdio::null())
            .status();
        assert!(made.is_ok_and(|status| status.success()), "initdb");
        let port = free_port();
        let mut postgres = Self {
            url: format!("postgres://postgres@127.0.0.1:{port}/postgres"),
            port,
            programs,
            folder,
            child: None,
        };
        postgres.restart();
        Some(postgres)
    }

    /// Starts or restarts the server with its data, and waits until it accepts connections.
    pub fn restart(&mut self) {
        let child = Command::new(self.programs.join("postgres"))
            .arg("-D")
            .arg(self.folder.path().join("data"))
            .args(["-p", &self.port.to_string(), "-k", ""])
            .args(["-c", "listen_addresses=127.0.0.1", "-c", "jit=off"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.child = Some(child.expect("postgres can be started"));
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(
                begun.elapsed() < Duration::from_secs(30),
                "PostgreSQL is not reachable"
            );
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Stops the server and every session: `immediate` as in a crash, otherwise an orderly
    /// shutdown.
    pub fn stop(&mut self, immediate: bool) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        let signal = if immediate { "QUIT" } else { "INT" };
        let _ = Command::new("kill")
            .args(["-s", signal, &child.id().to_string()])
            .status();
        let _ = child.wait();
    }
}

impl Drop for TestDb {
    fn drop(&mut self) {
        self.stop(true);
    }
}
