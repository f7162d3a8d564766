//! Servers and runners as separate processes that a test can start, kill, stop and restart.
//!
//! Invariants:
//! - A process ends with its handle.
//! - A failed test prints the log of each process.
//! - Every folder belongs to one test.
//! - Leases are short, so that an expired lease takes effect within seconds.

use std::{
    ffi::OsStr,
    fs::File,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{Outcome, RunningProgram, TestEnvironment, new_run_id};

/// Longest wait for any event of a service.
const LIMIT: Duration = Duration::from_secs(60);
/// Lease duration in tests, in seconds.
pub const LEASE: u64 = 6;

/// Process with its output in a file.
#[derive(Debug)]
struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    fn start(mut command: Command, log: &Path) -> Self {
        let output = File::options()
            .create(true)
            .append(true)
            .open(log)
            .expect("a log can be created");
        let errors = output.try_clone().expect("a file can be shared");
        let child = command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self {
            child,
            log: log.to_owned(),
        }
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args(["-s", name, &self.child.id().to_string()])
            .status();
        assert!(
            status.is_ok_and(|status| status.success()),
            "kill -s {name}"
        );
    }

    fn kill(&mut self) {
        // An error means that it has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn wait_for(&mut self, text: &str) {
        let begun = Instant::now();
        while !self.log().contains(text) {
            let ended = self.child.try_wait().ok().flatten();
            assert!(
                ended.is_none() && begun.elapsed() < LIMIT,
                "the process did not print {text:?} ({ended:?}):\n{}",
                self.log()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the process ends on its own. Returns its exit code.
    fn wait_for_exit(&mut self) -> Option<i32> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("the process is a child") {
                return status.code();
            }
            assert!(
                begun.elapsed() < LIMIT,
                "the process did not end:\n{}",
                self.log()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Process {
    #[expect(clippy::print_stdout, reason = "the test's own output")]
    fn drop(&mut self) {
        // A stopped process reacts to no other signal than this one.
        self.kill();
        if thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            println!("--- {}:\n{}", self.log.display(), tail.join("\n"));
        }
    }
}

/// Server process.
#[derive(Debug)]
pub struct TestServer {
    /// `http://127.0.0.1:PORT`, or `https://localhost:PORT` with the flag `--tls-cert`.
    pub url: String,
    /// Token of the first administrator.
    pub token: String,
    environment: TestEnvironment,
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
    folder: TempDir,
    process: Option<Process>,
}

/// PostgreSQL database, blob folder and key file that several servers share.
#[derive(Debug)]
pub struct SharedState {
    database: String,
    blobs: String,
    key: String,
    _folder: tempfile::TempDir,
}

impl SharedState {
    /// Creates the blob folder and the path of the key file for `database`.
    ///
    /// # Panics
    /// If the folder cannot be created.
    pub fn new(database: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder can be created");
        let path = |name: &str| folder.path().join(name).display().to_string();
        let blobs = path("blobs");
        std::fs::create_dir(&blobs).expect("a folder can be created");
        Self {
            database: database.to_owned(),
            blobs,
            key: path("key"),
            _folder: folder,
        }
    }

    /// Returns the flags of a server without a runner.
    pub fn flags(&self) -> [&str; 7] {
        [
            "--no-runner",
            "--database",
            &self.database,
            "--blobs",
            &self.blobs,
            "--key-file",
            &self.key,
        ]
    }
}

/// Returns a port that no process listens on now.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener
        .local_addr()
        .expect("the listener has an address")
        .port()
}

impl TestServer {
    /// Starts a server with these additional flags. Its database must be new, because the server
    /// prints the token only on the first start.
    pub fn start(environment: &TestEnvironment, flags: &[&str]) -> Self {
        Self::start_with(environment, flags, None)
    }

    /// Starts a server on a database that already has a token.
    pub fn start_with(environment: &TestEnvironment, flags: &[&str], token: Option<&str>) -> Self {
        // Clients in tests need a TLS provider. An error means that one is installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().expect("a folder can be created");
        // Permissions as an operator creates the folder: others can enter it, but read nothing in
        // it.
        std::fs::create_dir(folder.path().join("data")).expect("a folder can be created");
        let port = free_port();
        let mut arguments = vec![
            "serve".to_owned(),
            "--listen".into(),
            format!("127.0.0.1:{port}"),
            "--data-dir".into(),
            folder.path().join("data").display().to_string(),
            "--lease".into(),
            LEASE.to_string(),
        ];
        arguments.extend(flags.iter().map(|flag| (*flag).to_owned()));
        let url = if flags.contains(&"--tls-cert") {
            format!("https://localhost:{port}")
        } else {
            format!("http://127.0.0.1:{port}")
        };
        let mut server = Self {
            url,
            token: token.unwrap_or_default().to_owned(),
            environment: environment.clone(),
            arguments,
            variables: Vec::new(),
            folder,
            process: None,
        };
        server.restart();
        if token.is_none() {
            server.wait_for("acrt_");
            let log = server.log();
            let word = log
                .split_whitespace()
                .find(|word| word.starts_with("acrt_"));
            server.token = word
                .unwrap_or_else(|| panic!("no token was printed:\n{log}"))
                .to_owned();
        }
        server
    }

    /// Restarts the server on the same port with the same data.
    pub fn restart(&mut self) {
        let mut command = self.environment.command();
        command
            .args(&self.arguments)
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .env("ACRTASK_LOG", "info")
            .current_dir(self.folder.path());
        let before = self.log().len();
        let mut process = Process::start(command, &self.folder.path().join("log"));
        let begun = Instant::now();
        let is_up = |log: &str| match self.url.strip_prefix("http://") {
            Some(address) => is_ready(address),
            None => log[before..].contains("listening at "),
        };
        while !is_up(&process.log()) {
            let ended = process.child.try_wait().ok().flatten();
            assert!(
                ended.is_none() && begun.elapsed() < LIMIT,
                "the server is not ready ({ended:?}):\n{}",
                process.log()
            );
            thread::sleep(Duration::from_millis(20));
        }
        self.process = Some(process);
    }

    fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the process runs")
    }

    /// Kills the server.
    pub fn kill(&mut self) {
        self.process().kill();
        self.process = None;
    }

    /// Sends a signal by name.
    pub fn signal(&mut self, name: &str) {
        self.process().signal(name);
    }

    /// Waits until the server ends on its own. Returns its exit code.
    pub fn wait_for_exit(&mut self) -> Option<i32> {
        let code = self.process().wait_for_exit();
        self.process = None;
        code
    }

    /// Waits until the server has printed `text`.
    pub fn wait_for(&mut self, text: &str) {
        self.process().wait_for(text);
    }

    /// Returns everything printed so far, over all restarts.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Returns the process id.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("the process runs").child.id()
    }

    /// Returns the data folder.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Returns the variables that make a program a client of this server.
    pub fn variables(&self) -> Vec<(String, String)> {
        vec![
            ("ACRTASK_SERVER".into(), self.url.clone()),
            ("ACRTASK_TOKEN".into(), self.token.clone()),
            // No user settings.
            (
                "XDG_CONFIG_HOME".into(),
                self.folder.path().display().to_string(),
            ),
        ]
    }

    /// Starts the program as a client of this server in `folder`.
    pub fn start_client<S: AsRef<OsStr>>(&self, folder: &Path, args: &[S]) -> RunningProgram {
        let variables = self.variables();
        let variables: Vec<(&str, &str)> = variables
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        self.environment.start_plain(folder, args, &variables)
    }

    /// Starts the program in `folder` as the holder of another token.
    pub fn start_client_as<S: AsRef<OsStr>>(
        &self,
        token: &str,
        folder: &Path,
        args: &[S],
    ) -> RunningProgram {
        let variables = self.variables();
        let variables: Vec<(&str, &str)> = variables
            .iter()
            .map(|(name, value)| match name.as_str() {
                "ACRTASK_TOKEN" => ("ACRTASK_TOKEN", token),
                name => (name, value.as_str()),
            })
            .collect();
        self.environment.start_plain(folder, args, &variables)
    }

    /// Starts `acrtask run` in `folder` at this server, with the registry of the tests and a new
    /// run id.
    pub fn run<S: AsRef<OsStr>>(&self, folder: &Path, args: &[S]) -> RunningProgram {
        let variables = self.variables();
        let variables: Vec<(&str, &str)> = variables
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        self.environment
            .start_with_id(&new_run_id(), folder, args, &variables, "")
    }

    /// Runs a client command with `-o json` and returns the parsed output.
    pub fn run_json<S: AsRef<OsStr>>(&self, args: &[S]) -> Value {
        let outcome = self.start_client(self.folder.path(), args).wait();
        assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
        serde_json::from_str(&outcome.stdout)
            .unwrap_or_else(|e| panic!("{e}: {}", outcome.transcript()))
    }

    /// Runs a client command that must succeed.
    pub fn run_ok<S: AsRef<OsStr>>(&self, args: &[S]) -> Outcome {
        let outcome = self.start_client(self.folder.path(), args).wait();
        assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
        outcome
    }

    /// Returns the run `id` as the API shows it.
    pub fn fetch_run(&self, id: &str) -> Value {
        self.run_json(&["runs", "show", id, "-o", "json"])
    }

    /// Waits until the run meets `condition`.
    pub fn wait_for_run(&self, id: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let run = self.fetch_run(id);
            if condition(&run) {
                return run;
            }
            assert!(begun.elapsed() < LIMIT, "run {id} has the state {run:#}");
            thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Returns `true` if the server at `address` reports that it is ready.
fn is_ready(address: &str) -> bool {
    use std::io::{Read, Write};
    let Ok(mut stream) = std::net::TcpStream::connect(address) else {
        return false;
    };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
    let request = format!("GET /readyz HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    if stream.write_all(request.as_bytes()).is_err() {
        return false;
    }
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer.starts_with("HTTP/1.1 200")
}

/// Runner process.
#[derive(Debug)]
pub struct TestRunner {
    /// Name under which the runner registers.
    pub name: String,
    environment: TestEnvironment,
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
    folder: TempDir,
    state: PathBuf,
    process: Option<Process>,
}

impl TestRunner {
    /// Registers and starts a runner at `server`, and waits until it is online.
    pub fn start(server: &TestServer, name: &str, flags: &[&str]) -> Self {
        Self::start_at(server, &server.url, name, flags, &[])
    }

    /// Starts a runner whose registration token is created with these flags.
    pub fn start_granted(server: &TestServer, name: &str, grant: &[&str]) -> Self {
        Self::start_with(server, &server.url, name, grant, &[], &[])
    }

    /// Starts a runner with these variables that reaches the server through `url`, such as a proxy.
    pub fn start_at(
        server: &TestServer,
        url: &str,
        name: &str,
        flags: &[&str],
        variables: &[(&str, &str)],
    ) -> Self {
        // The token must allow every property that the runner declares.
        let mut grant = Vec::new();
        for pair in flags.windows(2) {
            match pair {
                ["--pool" | "--label", _] => grant.extend(pair),
                ["--slots", slots] => grant.extend(["--max-slots", *slots]),
                _ => {}
            }
        }
        Self::start_with(server, url, name, &grant, flags, variables)
    }

    fn start_with(
        server: &TestServer,
        url: &str,
        name: &str,
        grant: &[&str],
        flags: &[&str],
        variables: &[(&str, &str)],
    ) -> Self {
        let folder = tempfile::tempdir().expect("a folder can be created");
        let state = folder.path().join("state");
        let mut request = vec!["runner", "token", "-o", "json"];
        request.extend(grant);
        let token = server.run_json(&request);
        let token_file = folder.path().join("token");
        std::fs::write(&token_file, token["secret"].as_str().expect("a token"))
            .expect("a file can be written");
        let mut arguments = vec![
            "runner".to_owned(),
            "start".into(),
            "--server".into(),
            url.to_owned(),
            "--token-file".into(),
            token_file.display().to_string(),
            "--name".into(),
            name.to_owned(),
        ];
        if !flags.contains(&"--state-dir") {
            arguments.extend(["--state-dir".into(), state.display().to_string()]);
        }
        arguments.extend(flags.iter().map(|flag| (*flag).to_owned()));
        let mut runner = Self {
            name: name.to_owned(),
            environment: server.environment.clone(),
            arguments,
            variables: variables
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            folder,
            state,
            process: None,
        };
        runner.restart();
        runner.wait_online(server);
        runner
    }

    /// Restarts the runner with its state.
    pub fn restart(&mut self) {
        let mut command = self.environment.command();
        command
            .args(&self.arguments)
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .env("ACRTASK_LOG", "info")
            .current_dir(self.folder.path());
        self.process = Some(Process::start(command, &self.folder.path().join("log")));
    }

    /// Waits until the server shows the runner as online.
    pub fn wait_online(&self, server: &TestServer) {
        self.wait_state(server, "online");
    }

    /// Waits until the server shows the runner in this state.
    pub fn wait_state(&self, server: &TestServer, state: &str) {
        let begun = Instant::now();
        loop {
            let runners = server.run_json(&["runner", "list", "-o", "json"]);
            let found = runners
                .as_array()
                .into_iter()
                .flatten()
                .any(|runner| runner["name"] == self.name.as_str() && runner["state"] == state);
            if found {
                return;
            }
            assert!(
                begun.elapsed() < LIMIT,
                "{} is not {state}: {runners:#}\n{}",
                self.name,
                self.log()
            );
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Sends a signal by name: `STOP`, `CONT`, `TERM`.
    pub fn signal(&self, name: &str) {
        self.process
            .as_ref()
            .expect("the process runs")
            .signal(name);
    }

    /// Kills the runner.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Waits until the runner ends on its own. Returns its exit code.
    pub fn wait_for_exit(&mut self) -> Option<i32> {
        let code = self
            .process
            .as_mut()
            .expect("the process runs")
            .wait_for_exit();
        self.process = None;
        code
    }

    /// Waits until the runner has printed `text`.
    pub fn wait_for(&mut self, text: &str) {
        self.process
            .as_mut()
            .expect("the process runs")
            .wait_for(text);
    }

    /// Returns everything printed so far, over all restarts.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Returns the process id.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("the process runs").child.id()
    }

    /// Returns the folder of the runner's key and spools.
    pub fn state_dir(&self) -> &Path {
        &self.state
    }
}
