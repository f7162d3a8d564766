//! Server under attack: a separate process on loopback, with SQLite and without a runner.

use std::{
    fs::File,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::{Child, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use acrtask_tests::{environment::isolated, service::free_port};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use tempfile::TempDir;
use tokio_rustls::TlsConnector;

/// Server process that ends with its handle.
pub(crate) struct Target {
    pub(crate) address: Address,
    /// Token of the first administrator.
    pub(crate) token: String,
    /// Certificate of the server, as PEM.
    pub(crate) certificate: Option<String>,
    folder: TempDir,
    process: Mutex<Child>,
}

/// Information about the server that an attack gets.
#[derive(Clone)]
pub(crate) struct Address {
    pub(crate) socket: SocketAddr,
    /// TLS configurations for HTTP/1.1 and HTTP/2.
    pub(crate) tls: Option<(TlsConnector, TlsConnector)>,
}

impl Drop for Target {
    fn drop(&mut self) {
        let mut process = self.process.lock().unwrap();
        let _ = process.kill();
        let _ = process.wait();
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(20).collect();
            println!(
                "--- the server's last lines, newest first:\n{}",
                tail.join("\n")
            );
        }
    }
}

fn program() -> PathBuf {
    let named = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    named("ACRTASK_LOAD_BIN")
        .or_else(|| named("ACRTASK_TEST_BIN"))
        .expect("ACRTASK_TEST_BIN names no program; `cargo xtask test` sets it")
        .into()
}

fn connector(certificate: &str, protocol: &[u8]) -> TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap())
        .unwrap();
    let mut config = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    TlsConnector::from(Arc::new(config))
}

impl Target {
    /// Starts a server and waits until it listens.
    pub(crate) async fn start(tls: bool) -> Self {
        // An error means that a provider is already installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let socket = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let output = File::create(folder.path().join("log")).unwrap();
        let mut command = isolated(program(), folder.path());
        command
            .args([
                "serve",
                "--no-runner",
                "--listen",
                &socket.to_string(),
                "--data-dir",
            ])
            .arg(folder.path().join("data"))
            .env("ACRTASK_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output);
        let mut certificate = None;
        let mut connectors = None;
        if tls {
            let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
            let (file, key) = (
                folder.path().join("cert.pem"),
                folder.path().join("key.pem"),
            );
            std::fs::write(&file, made.cert.pem()).unwrap();
            std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
            command
                .arg("--tls-cert")
                .arg(file)
                .arg("--tls-key")
                .arg(key);
            let pem = made.cert.pem();
            connectors = Some((connector(&pem, b"http/1.1"), connector(&pem, b"h2")));
            certificate = Some(pem);
        }
        let mut target = Self {
            address: Address {
                socket,
                tls: connectors,
            },
            token: String::new(),
            certificate,
            process: Mutex::new(command.spawn().unwrap()),
            folder,
        };
        let begun = Instant::now();
        loop {
            let log = target.log();
            if let Some(token) = log
                .split_whitespace()
                .find(|word| word.starts_with("acrt_"))
            {
                target.token = token.to_owned();
                return target;
            }
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "the server did not start: {log}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn clone_address(&self) -> Address {
        self.address.clone()
    }

    pub(crate) fn is_tls(&self) -> bool {
        self.certificate.is_some()
    }

    /// Returns `http://127.0.0.1:PORT`, or `https://localhost:PORT` with TLS.
    pub(crate) fn url(&self) -> String {
        match self.certificate {
            None => format!("http://{}", self.address.socket),
            Some(_) => format!("https://localhost:{}", self.address.socket.port()),
        }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.process.lock().unwrap().try_wait().unwrap().is_none()
    }

    /// Returns the resident memory of the process, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        let pid = self.process.lock().unwrap().id();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next());
        kib.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) << 10
    }

    /// Returns the peak of the process memory until `until`, in bytes.
    pub(crate) async fn watch_memory(&self, until: Instant) -> u64 {
        let mut most = 0;
        while Instant::now() < until {
            most = most.max(self.memory());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        most
    }
}
