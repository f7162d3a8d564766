//! Restart of PostgreSQL, with a separate instance.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use acrtask_store::{Hint, Store};
use tokio::time::{sleep, timeout};

use crate::support::{NOW, new_run};

struct Instance {
    programs: PathBuf,
    data: PathBuf,
    port: u16,
    server: Option<Child>,
    _folder: tempfile::TempDir,
}

impl Instance {
    /// Returns `None` if tests that need a server are disabled.
    fn initialize() -> Option<Self> {
        let Some(programs) = std::env::var_os("ACRTASK_TEST_POSTGRES_BIN") else {
            assert!(
                std::env::var("ACRTASK_TEST_SKIP_ENGINE").is_ok(),
                "ACRTASK_TEST_POSTGRES_BIN does not name PostgreSQL's programs: run `cargo xtask test`, or \
                 `eval \"$(cargo xtask env)\"` before this, or set ACRTASK_TEST_SKIP_ENGINE to leave this test out"
            );
            return None;
        };
        let programs = PathBuf::from(programs);
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let made = Command::new(programs.join("initdb"))
            .args([
                "--username=postgres",
                "--auth=trust",
                "--locale=C",
                "--encoding=UTF8",
                "--no-sync",
                "-D",
            ])
            .arg(&data)
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(made.success(), "initdb: {made}");
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        Some(Self {
            programs,
            data,
            port,
            server: None,
            _folder: folder,
        })
    }

    fn start(&mut self) {
        let mut command = Command::new(Path::new(&self.programs).join("postgres"));
        command
            .arg("-D")
            .arg(&self.data)
            .args([
                "-p",
                &self.port.to_string(),
                "-k",
                "",
                "-c",
                "listen_addresses=127.0.0.1",
                "-c",
                "jit=off",
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.server = Some(command.spawn().unwrap());
    }

    /// Stops the server and ends every session.
    fn stop(&mut self) {
        let Some(mut server) = self.server.take() else {
            return;
        };
        let signaled = Command::new("kill")
            .args(["-INT", &server.id().to_string()])
            .status();
        if !signaled.is_ok_and(|status| status.success()) {
            let _ = server.kill();
        }
        let _ = server.wait();
    }

    fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn retry_until_ok<T, E: std::fmt::Debug>(
    mut attempt: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match attempt().await {
            Ok(value) => return value,
            Err(error) => assert!(Instant::now() < deadline, "still: {error:?}"),
        }
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn store_survives_a_restart() {
    let Some(mut instance) = Instance::initialize() else {
        return;
    };
    instance.start();
    let url = instance.url();
    let store = retry_until_ok(async || Store::open(&url).await).await;
    let row = store.enqueue(new_run("one"), NOW).await.unwrap().into_row();
    let mut hints = store.listen_for_hints().await.unwrap();
    store.send_hints(&[Hint::Tasks]).await.unwrap();
    assert_eq!(hints.next().await, Hint::Tasks);

    instance.stop();
    for _ in 0..3 {
        let error = store.ping().await.unwrap_err();
        assert!(error.is_unavailable(), "{error:?}");
        let error = store.enqueue(new_run("two"), NOW).await.unwrap_err();
        assert!(error.is_unavailable(), "{error:?}");
    }
    let error = Store::open(&url).await.unwrap_err();
    assert!(error.is_unavailable(), "{error:?}");

    instance.start();
    retry_until_ok(async || store.ping().await).await;
    assert_eq!(store.run(&row.id).await.unwrap(), row);
    store.enqueue(new_run("two"), NOW).await.unwrap();
    // Hints may have been lost, so one is returned after the reconnection. Later hints arrive
    // again.
    let received = timeout(Duration::from_secs(10), hints.next())
        .await
        .unwrap();
    assert_eq!(received, Hint::Enqueued);
    let sender = store.clone();
    let sending = tokio::spawn(async move {
        loop {
            let _ = sender.send_hints(&[Hint::Tasks]).await;
            sleep(Duration::from_millis(50)).await;
        }
    });
    let received = timeout(Duration::from_secs(10), hints.next())
        .await
        .unwrap();
    assert_eq!(received, Hint::Tasks);
    sending.abort();
}
