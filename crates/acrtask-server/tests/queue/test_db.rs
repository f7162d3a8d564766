//! A separate database, blob folder and key file for each test.

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

/// A database, blobs and keys that outlive the servers that use them. Removed on drop.
pub(crate) struct TestDb {
    folder: TempDir,
    database: String,
    /// The URL of the PostgreSQL server and the name of the database to drop.
    postgres: Option<(String, String)>,
}

impl TestDb {
    pub(crate) fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = format!("sqlite:{}", folder.path().join("acrtask.db").display());
        Self {
            folder,
            database,
            postgres: None,
        }
    }

    /// Creates a database. Returns `None` if `ACRTASK_TEST_POSTGRES` is not set.
    pub(crate) fn postgres() -> Option<Self> {
        let url = std::env::var("ACRTASK_TEST_POSTGRES").ok()?;
        let name = format!("queue_{:016x}", rand::random::<u64>());
        execute_sql(&url, &format!("CREATE DATABASE {name}"));
        let database = format!("{}/{name}", url.rsplit_once('/').unwrap().0);
        Some(Self {
            folder: tempfile::tempdir().unwrap(),
            database,
            postgres: Some((url, name)),
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
            clock: Clock::system(),
        }
    }

    pub(crate) async fn start_server(&self, config: Config) -> Server {
        start(self.options(config)).await.unwrap()
    }

    pub(crate) fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }
}

/// Executes one statement at the PostgreSQL server `url`, which must accept the user without a
/// password, as the server of `cargo xtask test` does.
fn execute_sql(url: &str, text: &str) {
    let url = url::Url::parse(url).unwrap();
    let (host, port) = (url.host_str().unwrap(), url.port().unwrap_or(5432));
    let mut stream = TcpStream::connect((host, port)).unwrap();
    let mut start = 196_608_i32.to_be_bytes().to_vec();
    for word in ["user", url.username(), "database", &url.path()[1..], ""] {
        start.extend(word.as_bytes());
        start.push(0);
    }
    send_message(&mut stream, &[], &start);
    wait_until_ready(&mut stream);
    send_message(&mut stream, b"Q", format!("{text}\0").as_bytes());
    wait_until_ready(&mut stream);
}

/// A proxy before a PostgreSQL server that can interrupt its connections.
pub(crate) struct PostgresProxy {
    closed: Arc<AtomicBool>,
    cut: Arc<Notify>,
    task: JoinHandle<()>,
}

impl PostgresProxy {
    /// Closes all connections and accepts no new ones.
    pub(crate) fn disconnect(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.cut.notify_waiters();
    }

    pub(crate) fn reconnect(&self) {
        self.closed.store(false, Ordering::SeqCst);
    }
}

impl Drop for PostgresProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl TestDb {
    /// Puts a proxy before the PostgreSQL server.
    pub(crate) async fn insert_proxy(&mut self) -> PostgresProxy {
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
        PostgresProxy { closed, cut, task }
    }
}

fn send_message(stream: &mut TcpStream, kind: &[u8], body: &[u8]) {
    let length = i32::try_from(body.len() + 4).unwrap().to_be_bytes();
    stream.write_all(&[kind, &length, body].concat()).unwrap();
}

fn wait_until_ready(stream: &mut TcpStream) {
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

impl Drop for TestDb {
    fn drop(&mut self) {
        if let Some((url, name)) = &self.postgres {
            execute_sql(url, &format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"));
        }
    }
}
