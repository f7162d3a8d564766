//! Separate BuildKit: the builder of a second engine behind a proxy that serves it as a buildkitd
//! does, as plain gRPC on a Unix socket, or on TCP with certificates on both sides.
//!
//! An engine offers its builder after an upgrade of an HTTP connection to HTTP/2. The proxy requests
//! the upgrade for each connection, and then only copies bytes.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, UnixListener, UnixStream},
};
use tokio_rustls::TlsAcceptor;

use crate::second_engine::SecondEngine;

const UPGRADE: &[u8] =
    b"POST /grpc HTTP/1.1\r\nHost: engine\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n";

/// Longest head of the engine's response, in bytes.
const MAX_HEAD: usize = 8192;

/// Separate BuildKit that ends with its handle.
#[derive(Debug)]
pub struct SeparateBuildkit {
    /// URL of the Unix socket.
    pub unix: String,
    /// URL of the TCP port, which requires a client certificate.
    pub tcp: String,
    /// Folder with `ca.pem`, `cert.pem` and `key.pem` for clients of the TCP port.
    pub certificates: PathBuf,
    _folder: TempDir,
    _engine: SecondEngine,
}

impl SeparateBuildkit {
    /// Starts an engine and its proxy. `None` if this machine cannot run a second engine.
    ///
    /// # Panics
    /// If the proxy cannot listen.
    pub fn start() -> Option<Self> {
        let engine = SecondEngine::start()?;
        let socket = PathBuf::from(engine.host.trim_start_matches("unix://"));
        let folder = tempfile::tempdir().expect("a folder can be created");
        let path = folder.path().join("buildkitd.sock");
        let server = create_certificates(folder.path());
        let (ready, address) = std::sync::mpsc::channel();
        let listening = path.clone();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime can be created");
            runtime.block_on(async {
                let unix = UnixListener::bind(&listening).expect("the socket can be created");
                let tcp = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
                let address = tcp.local_addr().expect("the listener has an address");
                ready.send(address).expect("the starter waits");
                let acceptor = TlsAcceptor::from(Arc::new(server));
                loop {
                    let socket = socket.clone();
                    tokio::select! {
                        Ok((client, _)) = unix.accept() => {
                            tokio::spawn(async move { forward(client, &socket).await });
                        }
                        Ok((client, _)) = tcp.accept() => {
                            let acceptor = acceptor.clone();
                            tokio::spawn(async move {
                                forward(acceptor.accept(client).await?, &socket).await
                            });
                        }
                    }
                }
            });
        });
        let address = address.recv().expect("the proxy listens");
        Some(Self {
            unix: format!("unix://{}", path.display()),
            tcp: format!("tcp://{address}"),
            certificates: folder.path().to_owned(),
            _folder: folder,
            _engine: engine,
        })
    }
}

/// Connects a client with the builder of the engine at `socket`, until one of them ends.
async fn forward(mut client: impl AsyncRead + AsyncWrite + Unpin, socket: &Path) -> io::Result<()> {
    let mut engine = UnixStream::connect(socket).await?;
    engine.write_all(UPGRADE).await?;
    let mut head = Vec::new();
    // Byte by byte, because the first frame of the builder may follow the head immediately.
    while !head.ends_with(b"\r\n\r\n") && head.len() < MAX_HEAD {
        head.push(engine.read_u8().await?);
    }
    if !head.starts_with(b"HTTP/1.1 101 ") {
        return Err(io::Error::other("the engine offers no builder"));
    }
    tokio::io::copy_bidirectional(&mut client, &mut engine)
        .await
        .map(drop)
}

/// Creates an authority, and certificates of it for the server and for clients. Writes the files of
/// clients to `folder`.
fn create_certificates(folder: &Path) -> ServerConfig {
    let key = || KeyPair::generate().expect("a key can be generated");
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, key()).expect("a certificate");
    let issue = || {
        let key = key();
        let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let certificate = CertificateParams::new(names)
            .and_then(|parameters| parameters.signed_by(&key, &authority))
            .expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    };
    let (certificate, key) = issue();
    for (name, content) in [
        ("ca.pem", authority.pem()),
        ("cert.pem", certificate),
        ("key.pem", key),
    ] {
        fs::write(folder.join(name), content).expect("a file can be written");
    }
    let (certificate, key) = issue();
    let parse = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM");
    let mut roots = RootCertStore::empty();
    roots.add(parse(&authority.pem())).expect("an authority");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .expect("a verifier of clients");
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider supports TLS")
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![parse(&certificate)],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM"),
        )
        .expect("the certificate has this key");
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}
