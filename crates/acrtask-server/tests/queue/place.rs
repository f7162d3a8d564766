//! Databases, blobs and keys of a test's own.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use acrtask_server::{
    Config,
    clock::Clock,
    serve::{ServeOptions, Server, start},
};
use tempfile::TempDir;
use tokio::{sync::Notify, task::JoinHandle};

/// A database, blobs and keys, which outlive the servers that use them.
pub(crate) struct Place {
    folder: TempDir,
    database: String,
    /// Where a PostgreSQL has to forget the database.
    made: Option<(String, String)>,
}

impl Place {
    pub(crate) fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = format!("sqlite:{}", folder.path().join("acrtask.db").display());
        Self {
            folder,
            database,
            made: None,
        }
    }

    /// Nothing where no PostgreSQL is named.
    pub(crate) fn postgres() -> Option<Self> {
        let url = std::env::var("ACRTASK_TEST_POSTGRES").ok()?;
        let name = format!("queue_{:016x}", rand::random::<u64>());
        sql(&url, &format!("CREATE DATABASE {name}"));
        let database = format!("{}/{name}", url.rsplit_once('/').unwrap().0);
        Some(Self {
            folder: tempfile::tempdir().unwrap(),
            database,
            made: Some((url, name)),
        })
    }

    pub(crate) fn options(&self, config: Config) -> ServeOptions {
        ServeOptions {
            listen: "127.0.0.1:0".parse().unwrap(),
            tls: None,
            allow_plaintext: false,
            database: self.database.clone(),
            blobs: self.folder.path().join("blobs").display().to_string(),
            key_file: self.folder.path().join("keys"),
            config,
            clock: Clock::real(),
        }
    }

    pub(crate) async fn server(&self, config: Config) -> Server {
        start(self.options(config)).await.unwrap()
    }

    pub(crate) fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }
}

/// Sends one statement to the PostgreSQL at `url`, which has to trust us, as that of `cargo xtask test` does.
fn sql(url: &str, text: &str) {
    let url = url::Url::parse(url).unwrap();
    let (host, port) = (url.host_str().unwrap(), url.port().unwrap_or(5432));
    let mut stream = TcpStream::connect((host, port)).unwrap();
    let mut start = 196_608_i32.to_be_bytes().to_vec();
    for word in ["user", url.username(), "database", &url.path()[1..], ""] {
        start.extend(word.as_bytes());
        start.push(0);
    }
    send(&mut stream, &[], &start);
    until_ready(&mut stream);
    send(&mut stream, b"Q", format!("{text}\0").as_bytes());
    until_ready(&mut stream);
}

/// Stands before a PostgreSQL and can cut it off.
pub(crate) struct Gate {
    closed: Arc<AtomicBool>,
    cut: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Gate {
    /// Lets nothing through, and cuts what goes through now.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.cut.notify_waiters();
    }

    pub(crate) fn open(&self) {
        self.closed.store(false, Ordering::SeqCst);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Place {
    /// Puts a gate before the PostgreSQL.
    pub(crate) async fn gated(&mut self) -> Gate {
        let mut url = url::Url::parse(&self.database).unwrap();
        let behind = (url.host_str().unwrap().to_owned(), url.port().unwrap());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_port(Some(listener.local_addr().unwrap().port()))
            .unwrap();
        self.database = url.to_string();
        let closed = Arc::new(AtomicBool::new(false));
        let cut = Arc::new(Notify::new());
        let (is_closed, cutting) = (closed.clone(), cut.clone());
        let task = tokio::spawn(async move {
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                if is_closed.load(Ordering::SeqCst) {
                    continue;
                }
                let (behind, cutting) = (behind.clone(), cutting.clone());
                tokio::spawn(async move {
                    let mut far = tokio::net::TcpStream::connect(behind).await.unwrap();
                    tokio::select! {
                        () = cutting.notified() => {}
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    }
                });
            }
        });
        Gate { closed, cut, task }
    }
}

fn send(stream: &mut TcpStream, kind: &[u8], body: &[u8]) {
    let length = i32::try_from(body.len() + 4).unwrap().to_be_bytes();
    stream.write_all(&[kind, &length, body].concat()).unwrap();
}

fn until_ready(stream: &mut TcpStream) {
    loop {
        let mut head = [0; 5];
        stream.read_exact(&mut head).unwrap();
        let length = u32::from_be_bytes(head[1..].try_into().unwrap()) as usize;
        let mut body = vec![0; length - 4];
        stream.read_exact(&mut body).unwrap();
        match head[0] {
            b'Z' => return,
            b'E' => panic!("{}", String::from_utf8_lossy(&body)),
            b'R' => assert_eq!(body, [0; 4], "PostgreSQL wants a password"),
            _ => {}
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some((url, name)) = &self.made {
            sql(url, &format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"));
        }
    }
}
