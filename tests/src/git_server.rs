//! Real git servers on loopback.
//!
//! HTTP is smart HTTP through `git http-backend`, with an optional password and with Git LFS
//! objects beside the repositories. SSH is a real `sshd` that serves only git.
//!
//! Invariants:
//! - A server ends with its handle.
//! - Ports, keys and folders belong to one test.
//! - Requests and sent bytes are counted, so that a test can assert what did not happen.

use std::{
    collections::BTreeMap,
    io::{self, BufRead as _, BufReader, Read as _, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::service::free_port;

/// Longest wait for a server.
const LIMIT: Duration = Duration::from_secs(20);

/// Runs git in `folder` and returns what it prints.
///
/// # Panics
/// If git fails.
pub fn git(folder: &Path, args: &[&str]) -> String {
    let output = git_command(folder)
        .args(args)
        .output()
        .expect("these tests need the program git");
    assert!(
        output.status.success(),
        "git {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Returns a git command with an author and without the configuration of the machine.
pub fn git_command(folder: &Path) -> Command {
    let mut command = Command::new("git");
    command
        .current_dir(folder)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1");
    for role in ["AUTHOR", "COMMITTER"] {
        command
            .env(format!("GIT_{role}_NAME"), "A")
            .env(format!("GIT_{role}_EMAIL"), "a@example.com")
            .env(format!("GIT_{role}_DATE"), "2026-01-01T00:00:00Z");
    }
    command
}

/// Folder of bare repositories, as a server stores them, each with a working copy for commits.
#[derive(Debug)]
pub struct Repositories {
    folder: TempDir,
}

impl Default for Repositories {
    fn default() -> Self {
        let folder = tempfile::tempdir().expect("a folder can be created");
        std::fs::create_dir(folder.path().join("bare")).expect("a folder can be created");
        Self { folder }
    }
}

impl Repositories {
    /// Returns the folder that a server serves.
    pub fn root(&self) -> PathBuf {
        self.folder.path().join("bare")
    }

    /// Returns the path of the bare repository `NAME.git`.
    pub fn bare_path(&self, name: &str) -> PathBuf {
        self.root().join(format!("{name}.git"))
    }

    /// Returns the path of the working copy of a repository.
    pub fn work_path(&self, name: &str) -> PathBuf {
        self.folder.path().join("work").join(name)
    }

    /// Creates an empty repository with the branch `main`.
    pub fn create(&self, name: &str) {
        let (bare, work) = (self.bare_path(name), self.work_path(name));
        for folder in [&bare, &work] {
            std::fs::create_dir_all(folder).expect("a folder can be created");
        }
        git(
            &bare,
            &["init", "--quiet", "--bare", "--initial-branch=main"],
        );
        git(&work, &["init", "--quiet", "--initial-branch=main"]);
        let url = bare.display().to_string();
        git(&work, &["remote", "add", "origin", &url]);
    }

    /// Writes files, commits them and force-pushes the checked-out branch. Returns the commit.
    pub fn commit(&self, name: &str, files: &[(&str, &str)]) -> String {
        let work = self.work_path(name);
        for (path, content) in files {
            let path = work.join(path);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
            std::fs::write(path, content).expect("a file can be written");
        }
        git(&work, &["add", "--all"]);
        git(
            &work,
            &["commit", "--quiet", "--allow-empty", "--message", "change"],
        );
        git(&work, &["push", "--quiet", "--force", "origin", "HEAD"]);
        git(&work, &["rev-parse", "HEAD"])
    }

    /// Deletes everything that no branch and no tag references, as a server does eventually.
    pub fn prune(&self, name: &str) {
        let bare = self.bare_path(name);
        git(&bare, &["reflog", "expire", "--expire=now", "--all"]);
        git(&bare, &["gc", "--quiet", "--prune=now"]);
    }
}

/// Head of a request that a server received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `POST`.
    pub method: String,
    /// Path without the query.
    pub path: String,
    /// Part behind `?`.
    pub query: String,
    /// Header values by name in lower case.
    pub headers: BTreeMap<String, String>,
}

#[derive(Debug, Default)]
struct State {
    root: PathBuf,
    login: Option<(String, String)>,
    first_protocol: AtomicBool,
    stop: AtomicBool,
    sent: AtomicU64,
    requests: Mutex<Vec<Request>>,
    /// Replaces the download action in responses of the Git LFS server.
    link: Mutex<Option<Value>>,
    /// Redirects of repositories: path to URL.
    redirects: Mutex<BTreeMap<String, String>>,
}

/// Git server over HTTP.
#[derive(Debug)]
pub struct HttpGit {
    address: SocketAddr,
    state: Arc<State>,
}

impl HttpGit {
    /// Serves the repositories to everyone, or only to this user with this password.
    pub fn start(root: &Path, login: Option<(&str, &str)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("the listener has an address");
        let state = Arc::new(State {
            root: root.to_owned(),
            login: login.map(|(user, password)| (user.into(), password.into())),
            ..State::default()
        });
        let serving = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if serving.stop.load(Ordering::SeqCst) {
                    return;
                }
                let state = Arc::clone(&serving);
                // A client may close the connection early.
                thread::spawn(move || serve(&state, address, stream).ok());
            }
        });
        Self { address, state }
    }

    /// Returns `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Returns the URL of a repository.
    pub fn url(&self, name: &str) -> String {
        format!("http://{}/{name}.git", self.address)
    }

    /// Restricts the server to the first version of the protocol. That version serves no commit
    /// that is not the tip of a branch or tag.
    pub fn use_first_protocol(&self) {
        self.state.first_protocol.store(true, Ordering::SeqCst);
    }

    /// Sets the download action that the server returns for every Git LFS object.
    pub fn set_lfs_download(&self, link: Value) {
        *lock(&self.state.link) = Some(link);
    }

    /// Redirects requests of the repository at `path` to the one at `url`.
    pub fn redirect(&self, path: &str, url: &str) {
        lock(&self.state.redirects).insert(path.into(), url.into());
    }

    /// Returns the number of bytes sent so far.
    pub fn bytes_sent(&self) -> u64 {
        self.state.sent.load(Ordering::SeqCst)
    }

    /// Returns the requests received so far.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.state.requests).clone()
    }
}

impl Drop for HttpGit {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::SeqCst);
        // Wakes the thread that waits for a connection.
        let _ = TcpStream::connect(self.address);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writer that counts the bytes written.
struct CountingWriter<'s>(&'s TcpStream, &'s AtomicU64);

impl Write for CountingWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.0.write(bytes)?;
        self.1.fetch_add(written as u64, Ordering::SeqCst);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn serve(state: &State, address: SocketAddr, stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(LIMIT))?;
    let mut reader = BufReader::new(&stream);
    let mut out = CountingWriter(&stream, &state.sent);
    let Some(request) = read_head(&mut reader)? else {
        return Ok(());
    };
    let body = read_body(&mut reader, &request)?;
    lock(&state.requests).push(request.clone());
    for (path, url) in lock(&state.redirects).iter() {
        if let Some(rest) = request.path.strip_prefix(&format!("/{path}/")) {
            let head = "HTTP/1.1 301 Moved Permanently\r\nConnection: close\r\nContent-Length: 0";
            return write!(
                out,
                "{head}\r\nLocation: {url}/{rest}?{}\r\n\r\n",
                request.query
            );
        }
    }
    let authorized = state.login.as_ref().is_none_or(|(user, password)| {
        let expected = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
        request.headers.get("authorization") == Some(&expected)
    });
    if !authorized {
        let head = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"git\"\r\n";
        return write!(out, "{head}Content-Length: 0\r\nConnection: close\r\n\r\n");
    }
    if request.path.ends_with("/info/lfs/objects/batch") {
        let answer = lfs_batch(state, address, &body).to_string();
        return respond(&mut out, "application/vnd.git-lfs+json", answer.as_bytes());
    }
    if let Some(oid) = request.path.strip_prefix("/lfs-objects/") {
        return match std::fs::read(state.root.join("lfs-objects").join(oid)) {
            Ok(object) => respond(&mut out, "application/octet-stream", &object),
            Err(_) => write!(
                out,
                "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            ),
        };
    }
    run_http_backend(state, &request, &body, &mut out)
}

/// Reads the head of a request. `None` if the client closed the connection.
///
/// # Errors
/// If the connection breaks.
pub fn read_head(reader: &mut impl io::BufRead) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let method = words.next().unwrap_or_default().to_owned();
    let target = words.next().unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let (path, query) = (path.to_owned(), query.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    Ok(Some(Request {
        method,
        path,
        query,
        headers,
    }))
}

/// Reads the body of a request.
///
/// # Errors
/// If the connection breaks or the body is malformed.
pub fn read_body(reader: &mut impl io::BufRead, request: &Request) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    if request.headers.get("transfer-encoding").map(String::as_str) == Some("chunked") {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let size = u64::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
            reader.take(size).read_to_end(&mut body)?;
            reader.read_line(&mut line)?;
            if size == 0 {
                return Ok(body);
            }
        }
    }
    let length = request.headers.get("content-length");
    let length = length.and_then(|text| text.parse().ok()).unwrap_or(0);
    reader.take(length).read_to_end(&mut body)?;
    Ok(body)
}

fn respond(out: &mut impl Write, kind: &str, body: &[u8]) -> io::Result<()> {
    let length = body.len();
    write!(
        out,
        "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )?;
    out.write_all(body)
}

/// Answers the batch API of Git LFS. Objects in the folder `lfs-objects` can be downloaded from
/// this server.
fn lfs_batch(state: &State, address: SocketAddr, body: &[u8]) -> Value {
    let request: Value = serde_json::from_slice(body).unwrap_or_default();
    let link = lock(&state.link).clone();
    let objects = request["objects"].as_array().cloned().unwrap_or_default();
    let objects: Vec<Value> = objects
        .into_iter()
        .map(|object| {
            let oid = object["oid"].as_str().unwrap_or_default().to_owned();
            let exists = state.root.join("lfs-objects").join(&oid).is_file();
            let own_link = || json!({ "href": format!("http://{address}/lfs-objects/{oid}") });
            match (&link, exists) {
                (Some(link), _) => json!({ "oid": oid, "actions": { "download": link } }),
                (None, true) => json!({ "oid": oid, "actions": { "download": own_link() } }),
                (None, false) => {
                    json!({ "oid": oid, "error": { "code": 404, "message": "Object does not exist" } })
                }
            }
        })
        .collect();
    json!({ "transfer": "basic", "objects": objects })
}

/// Answers a request with git's own HTTP program.
fn run_http_backend(
    state: &State,
    request: &Request,
    body: &[u8],
    out: &mut impl Write,
) -> io::Result<()> {
    let header = |name: &str| request.headers.get(name).cloned().unwrap_or_default();
    let first_protocol = state.first_protocol.load(Ordering::SeqCst);
    let mut child = git_command(&state.root)
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", &state.root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REQUEST_METHOD", &request.method)
        .env("PATH_INFO", &request.path)
        .env("QUERY_STRING", &request.query)
        .env("CONTENT_TYPE", header("content-type"))
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env(
            "GIT_PROTOCOL",
            if first_protocol {
                String::new()
            } else {
                header("git-protocol")
            },
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        let body = body.to_owned();
        thread::spawn(move || stdin.write_all(&body).ok());
    }
    let mut answer = BufReader::new(child.stdout.take().expect("the stream is piped"));
    let (mut status, mut head) = ("200 OK".to_owned(), String::new());
    loop {
        let mut line = String::new();
        answer.read_line(&mut line)?;
        match line.trim_end().split_once(": ") {
            Some(("Status", value)) => status = value.to_owned(),
            Some((name, value)) => head += &format!("{name}: {value}\r\n"),
            None => break,
        }
    }
    write!(out, "HTTP/1.1 {status}\r\n{head}Connection: close\r\n\r\n")?;
    let sent = io::copy(&mut answer, out);
    if sent.is_err() {
        // The client has closed the connection.
        let _ = child.kill();
    }
    child.wait()?;
    sent.map(drop)
}

/// Git server over SSH.
#[derive(Debug)]
pub struct SshGit {
    port: u16,
    program: PathBuf,
    root: PathBuf,
    folder: TempDir,
    child: Option<Child>,
}

impl SshGit {
    /// Serves the repositories to one key, which it creates. `None` if `ACRTASK_TEST_SKIP_ENGINE`
    /// is set.
    pub fn start(root: &Path) -> Option<Self> {
        let Some(program) = std::env::var_os("ACRTASK_TEST_SSHD") else {
            assert!(
                std::env::var_os("ACRTASK_TEST_SKIP_ENGINE").is_some(),
                "ACRTASK_TEST_SSHD is not set: run `cargo xtask test`"
            );
            return None;
        };
        let folder = tempfile::tempdir().expect("a folder can be created");
        let mut server = Self {
            port: free_port(),
            program: program.into(),
            root: root.to_owned(),
            folder,
            child: None,
        };
        let serve = server.folder.path().join("serve");
        // Only git. The response to `git-lfs-authenticate` is read from a file, if there is one.
        let script = format!(
            "#!/bin/sh\ncase \"$SSH_ORIGINAL_COMMAND\" in\n  \
             git-upload-pack\\ *) exec git shell -c \"$SSH_ORIGINAL_COMMAND\" ;;\n  \
             git-lfs-authenticate\\ *) exec cat '{}' ;;\nesac\nexit 1\n",
            root.join("lfs-authenticate.json").display()
        );
        std::fs::write(&serve, script).expect("a file can be written");
        std::fs::set_permissions(&serve, std::fs::Permissions::from_mode(0o755)).expect("a mode");
        server.new_key("user", "");
        let public = server.read("user.pub");
        server.write(
            "authorized",
            &format!("restrict,command=\"{}\" {public}", serve.display()),
        );
        server.new_host_key();
        Some(server)
    }

    /// Returns the URL of a repository.
    pub fn url(&self, name: &str) -> String {
        let user = current_user();
        let root = self.root.display();
        format!("ssh://{user}@127.0.0.1:{}{root}/{name}.git", self.port)
    }

    /// Returns the folder of the keys.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Returns the private key that the server accepts.
    pub fn private_key(&self) -> String {
        self.read("user")
    }

    /// Creates a private key that the server does not accept, or one with a passphrase.
    pub fn other_private_key(&self, passphrase: &str) -> String {
        self.new_key("other", passphrase);
        self.read("other")
    }

    /// Returns the line of this server in `known_hosts`.
    pub fn known_hosts(&self) -> String {
        format!("[127.0.0.1]:{} {}", self.port, self.read("host.pub"))
    }

    /// Starts or restarts the server with a new host key.
    pub fn new_host_key(&mut self) {
        self.stop();
        self.new_key("host", "");
        let folder = self.folder.path().display();
        let configuration = format!(
            "ListenAddress 127.0.0.1\nPort {}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n\
             PidFile none\nUsePAM no\nStrictModes no\nPermitRootLogin yes\nPasswordAuthentication no\n\
             KbdInteractiveAuthentication no\nAcceptEnv GIT_PROTOCOL\nMaxStartups 100\n",
            self.port
        );
        self.write("configuration", &configuration);
        let log =
            std::fs::File::create(self.folder.path().join("log")).expect("a log can be created");
        let child = Command::new(&self.program)
            .args(["-D", "-e", "-f"])
            .arg(self.folder.path().join("configuration"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        let mut child = child.unwrap_or_else(|error| panic!("{}: {error}", self.program.display()));
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let ended = child.try_wait().ok().flatten();
            assert!(
                ended.is_none() && begun.elapsed() < LIMIT,
                "sshd is not reachable ({ended:?}):\n{}",
                self.read("log")
            );
            thread::sleep(Duration::from_millis(10));
        }
        self.child = Some(child);
    }

    fn new_key(&self, name: &str, passphrase: &str) {
        for old in [name.to_owned(), format!("{name}.pub")] {
            let _ = std::fs::remove_file(self.folder.path().join(old));
        }
        let made = Command::new("ssh-keygen")
            .current_dir(self.folder.path())
            .args([
                "-q", "-t", "ed25519", "-C", "", "-N", passphrase, "-f", name,
            ])
            .stdin(Stdio::null())
            .status();
        assert!(made.is_ok_and(|status| status.success()), "ssh-keygen");
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(name)).unwrap_or_default()
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join(name), text).expect("a file can be written");
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // An error means that it has already ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for SshGit {
    fn drop(&mut self) {
        self.stop();
    }
}

fn current_user() -> String {
    let output = Command::new("id").arg("-un").output();
    let output = output.expect("these tests need the program id");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
