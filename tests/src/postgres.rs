//! A PostgreSQL of a test's own, to be stopped, killed and started again. Its programs are those that
//! `cargo xtask test` set up.

use std::{
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::service::free_port;

/// A PostgreSQL; it ends with this.
#[derive(Debug)]
pub struct Postgres {
    /// The URL of its only database.
    pub url: String,
    port: u16,
    programs: PathBuf,
    folder: TempDir,
    child: Option<Child>,
}

impl Postgres {
    /// Makes and starts one; nothing only where skipping was asked for.
    pub fn start() -> Option<Self> {
        let Some(programs) = std::env::var_os("ACRTASK_TEST_POSTGRES_BIN") else {
            assert!(
                std::env::var_os("ACRTASK_TEST_SKIP_ENGINE").is_some(),
                "ACRTASK_TEST_POSTGRES_BIN is not set: run `cargo xtask test`"
            );
            return None;
        };
        let programs = PathBuf::from(programs);
        let folder = tempfile::tempdir().expect("a folder can be made");
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

    /// Starts it, or starts it again with what it had, and waits until it takes connections.
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
                "PostgreSQL does not answer"
            );
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ends it with every session, at once (`immediate`: as a crash) or in order (`fast`).
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

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop(true);
    }
}
