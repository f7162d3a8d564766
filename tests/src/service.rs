//! Control planes and runners as processes of their own: started, killed, stopped, started again.
//!
//! Invariants: a process ends with its handle; what it printed is shown when something is wrong; every folder is the
//! test's own. Leases are short, so that what happens when one is over is seen within seconds.

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

use crate::{Outcome, Running, World, new_run_id};

/// The longest that anything of a service may take.
const LIMIT: Duration = Duration::from_secs(60);
/// Seconds of a lease in tests.
pub const LEASE: u64 = 6;

/// A process with its output in a file.
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
            .expect("a log can be made");
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
        // One that has ended already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn wait_for(&mut self, what: &str) {
        let begun = Instant::now();
        while !self.log().contains(what) {
            let ended = self.child.try_wait().ok().flatten();
            assert!(
                ended.is_none() && begun.elapsed() < LIMIT,
                "it did not print {what:?} ({ended:?}):\n{}",
                self.log()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until it has ended by itself; its exit code.
    fn ended(&mut self) -> Option<i32> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                return status.code();
            }
            assert!(begun.elapsed() < LIMIT, "it does not end:\n{}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Process {
    #[expect(clippy::print_stdout, reason = "the test's own output")]
    fn drop(&mut self) {
        // A stopped process takes no other signal than this one.
        self.kill();
        if thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            println!("--- {}:\n{}", self.log.display(), tail.join("\n"));
        }
    }
}

/// A control plane.
#[derive(Debug)]
pub struct Server {
    /// `http://127.0.0.1:PORT`.
    pub url: String,
    /// The first administrator's token.
    pub token: String,
    world: World,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    folder: TempDir,
    process: Option<Process>,
}

/// A PostgreSQL, a folder of blobs and a key that several servers share.
#[derive(Debug)]
pub struct SharedState {
    database: String,
    blobs: String,
    key: String,
    _folder: tempfile::TempDir,
}

impl SharedState {
    /// Creates the folder for the blobs and the key beside `database`.
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

/// A port that nothing listens at now.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port can be had");
    listener.local_addr().expect("it has an address").port()
}

impl Server {
    /// Starts one with these flags beside its own; the first start of a database gives its token.
    pub fn start(world: &World, flags: &[&str]) -> Self {
        Self::start_with(world, flags, None)
    }

    /// The same for a database that has a token already.
    pub fn start_with(world: &World, flags: &[&str], token: Option<&str>) -> Self {
        // Tests talk to the server with a client that wants a provider of TLS; an error means it has one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().expect("a folder can be made");
        // As an operator makes it: others can enter it, and read nothing in it.
        std::fs::create_dir(folder.path().join("data")).expect("a folder can be made");
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
        let mut server = Self {
            url: format!("http://127.0.0.1:{port}"),
            token: token.unwrap_or_default().to_owned(),
            world: world.clone(),
            arguments,
            environment: Vec::new(),
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

    /// Starts it again where it was, with what it had.
    pub fn restart(&mut self) {
        let mut command = self.world.command();
        command
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .env("ACRTASK_LOG", "info")
            .current_dir(self.folder.path());
        let mut process = Process::start(command, &self.folder.path().join("log"));
        let begun = Instant::now();
        let address = self.url.trim_start_matches("http://").to_owned();
        while !ready(&address) {
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
        self.process.as_mut().expect("it runs")
    }

    /// Kills it at once.
    pub fn kill(&mut self) {
        self.process().kill();
        self.process = None;
    }

    /// Sends a signal by its name.
    pub fn signal(&mut self, name: &str) {
        self.process().signal(name);
    }

    /// Waits for its own end; its exit code.
    pub fn ended(&mut self) -> Option<i32> {
        let code = self.process().ended();
        self.process = None;
        code
    }

    /// Waits until it has printed `what`.
    pub fn wait_for(&mut self, what: &str) {
        self.process().wait_for(what);
    }

    /// What it printed so far, in all its lives.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("it runs").child.id()
    }

    /// Its folder for data.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The variables that make a client of it.
    pub fn variables(&self) -> Vec<(String, String)> {
        vec![
            ("ACRTASK_SERVER".into(), self.url.clone()),
            ("ACRTASK_TOKEN".into(), self.token.clone()),
            // Nobody's own settings.
            (
                "XDG_CONFIG_HOME".into(),
                self.folder.path().display().to_string(),
            ),
        ]
    }

    /// The program as a client of this control plane, started in `folder`.
    pub fn client<S: AsRef<OsStr>>(&self, folder: &Path, args: &[S]) -> Running {
        let variables = self.variables();
        let variables: Vec<(&str, &str)> = variables
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        self.world.start_plain(folder, args, &variables)
    }

    /// `acrtask run` of a folder at this control plane, with the tests' registry and an id of its own.
    pub fn run<S: AsRef<OsStr>>(&self, folder: &Path, args: &[S]) -> Running {
        let variables = self.variables();
        let variables: Vec<(&str, &str)> = variables
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        self.world
            .start_as(&new_run_id(), folder, args, &variables, "")
    }

    /// What a client prints with `-o json`.
    pub fn json<S: AsRef<OsStr>>(&self, args: &[S]) -> Value {
        let outcome = self.client(self.folder.path(), args).wait();
        assert_eq!(outcome.code, Some(0), "{}", outcome.all());
        serde_json::from_str(&outcome.stdout).unwrap_or_else(|e| panic!("{e}: {}", outcome.all()))
    }

    /// A client's command that must succeed.
    pub fn ok<S: AsRef<OsStr>>(&self, args: &[S]) -> Outcome {
        let outcome = self.client(self.folder.path(), args).wait();
        assert_eq!(outcome.code, Some(0), "{}", outcome.all());
        outcome
    }

    /// The run `id` as the API shows it.
    pub fn run_of(&self, id: &str) -> Value {
        self.json(&["runs", "show", id, "-o", "json"])
    }

    /// Waits until `what` holds of the run.
    pub fn wait_for_run(&self, id: &str, what: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let run = self.run_of(id);
            if what(&run) {
                return run;
            }
            assert!(begun.elapsed() < LIMIT, "run {id} stands at {run:#}");
            thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Whether a server at `address` says that it is ready.
fn ready(address: &str) -> bool {
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

/// A runner.
#[derive(Debug)]
pub struct Runner {
    /// Its name.
    pub name: String,
    world: World,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    folder: TempDir,
    state: PathBuf,
    process: Option<Process>,
}

impl Runner {
    /// Registers and starts one at `server`, and waits until it is online.
    pub fn start(server: &Server, name: &str, flags: &[&str]) -> Self {
        Self::start_at(server, &server.url, name, flags, &[])
    }

    /// Starts one whose registration token is made with these flags.
    pub fn start_granted(server: &Server, name: &str, grant: &[&str]) -> Self {
        Self::start_with(server, &server.url, name, grant, &[], &[])
    }

    /// The same by another address of the server (a proxy), and with these variables.
    pub fn start_at(
        server: &Server,
        url: &str,
        name: &str,
        flags: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        // What a runner says of itself has to be what its token allows.
        let mut grant = Vec::new();
        for pair in flags.windows(2) {
            match pair {
                ["--pool" | "--label", _] => grant.extend(pair),
                ["--slots", slots] => grant.extend(["--max-slots", *slots]),
                _ => {}
            }
        }
        Self::start_with(server, url, name, &grant, flags, environment)
    }

    fn start_with(
        server: &Server,
        url: &str,
        name: &str,
        grant: &[&str],
        flags: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let state = folder.path().join("state");
        let mut request = vec!["runner", "token", "-o", "json"];
        request.extend(grant);
        let token = server.json(&request);
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
            world: server.world.clone(),
            arguments,
            environment: environment
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

    /// Starts it again with the state that it had.
    pub fn restart(&mut self) {
        let mut command = self.world.command();
        command
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .env("ACRTASK_LOG", "info")
            .current_dir(self.folder.path());
        self.process = Some(Process::start(command, &self.folder.path().join("log")));
    }

    /// Waits until the server shows it as online.
    pub fn wait_online(&self, server: &Server) {
        self.wait_state(server, "online");
    }

    /// Waits until the server shows it in this state.
    pub fn wait_state(&self, server: &Server, state: &str) {
        let begun = Instant::now();
        loop {
            let runners = server.json(&["runner", "list", "-o", "json"]);
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

    /// Sends a signal by its name: `STOP`, `CONT`, `TERM`.
    pub fn signal(&self, name: &str) {
        self.process.as_ref().expect("it runs").signal(name);
    }

    /// Kills it at once.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Waits for its own end; its exit code.
    pub fn ended(&mut self) -> Option<i32> {
        let code = self.process.as_mut().expect("it runs").ended();
        self.process = None;
        code
    }

    /// Waits until it has printed `what`.
    pub fn wait_for(&mut self, what: &str) {
        self.process.as_mut().expect("it runs").wait_for(what);
    }

    /// What it printed so far, in all its lives.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("it runs").child.id()
    }

    /// Where it keeps its key and its spools.
    pub fn state(&self) -> &Path {
        &self.state
    }
}
