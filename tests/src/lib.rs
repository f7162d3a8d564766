//! Integration tests of the program against a real engine and a real registry.
//!
//! `cargo xtask test` sets these up and passes them in the environment: `DOCKER_HOST`,
//! `ACRTASK_TEST_REGISTRY` (an open registry with the base images) and `ACRTASK_TEST_BIN` (the
//! program). Without them, [`TestEnvironment::find`] fails the test, or skips it if
//! `ACRTASK_TEST_SKIP_ENGINE` is set.
//!
//! Invariants:
//! - Every run has its own id, so that tests can run in parallel.
//! - Every wait has a limit. The failure message contains what the run had printed by then.

use std::{
    ffi::OsStr,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

pub mod base_images;
pub mod browser;
pub mod dice;
pub mod engine;
pub mod environment;
pub mod forge;
pub mod git_server;
pub mod misbehaving;
pub mod postgres;
pub mod project;
pub mod proxy;
pub mod registry;
pub mod registry_tools;
pub mod repository;
pub mod scenario;
pub mod second_engine;
pub mod separate_buildkit;
pub mod service;

/// Longest time that one command of a test may take.
const LIMIT: Duration = Duration::from_secs(150);

/// Engine, registry and program that a test uses.
#[derive(Debug, Clone)]
pub struct TestEnvironment {
    /// `host:port`.
    pub registry: String,
    program: PathBuf,
    /// Home and configuration folder of the programs of one test.
    home: Arc<TempDir>,
}

/// Result of a finished command.
#[derive(Debug)]
pub struct Outcome {
    /// Id of the run.
    pub run: String,
    /// Exit code. `None` if a signal ended the program.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Command that has been started.
#[derive(Debug)]
pub struct RunningProgram {
    /// Id of the run.
    pub run: String,
    child: Child,
    stdout: StreamCollector,
    stderr: StreamCollector,
}

impl TestEnvironment {
    /// Returns the environment that the variables describe. `None` if `ACRTASK_TEST_SKIP_ENGINE` is
    /// set.
    ///
    /// # Panics
    ///
    /// If the variables are not set and skipping was not requested.
    #[expect(clippy::print_stderr, reason = "the test's own output")]
    pub fn find() -> Option<Self> {
        let registry = std::env::var("ACRTASK_TEST_REGISTRY")
            .ok()
            .filter(|value| !value.is_empty());
        let program = std::env::var_os("ACRTASK_TEST_BIN").filter(|value| !value.is_empty());
        match (registry, program) {
            (Some(registry), Some(program)) => Some(Self {
                registry,
                program: program.into(),
                home: Arc::new(tempfile::tempdir().expect("a folder can be created")),
            }),
            _ if std::env::var_os("ACRTASK_TEST_SKIP_ENGINE").is_some() => {
                eprintln!("skipped: ACRTASK_TEST_SKIP_ENGINE is set");
                None
            }
            _ => panic!(
                "ACRTASK_TEST_REGISTRY and ACRTASK_TEST_BIN are not set: run `cargo xtask test`, or set \
                 ACRTASK_TEST_SKIP_ENGINE=1 to skip what needs an engine"
            ),
        }
    }

    /// Returns the path of the program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Returns the name of the busybox image that the registry of the tests contains.
    pub fn busybox(&self) -> String {
        format!("{}/base/busybox:1.36", self.registry)
    }

    /// Starts the program with `args` in `folder`. The command gets its own run id and the
    /// registry, as `run` and `build` expect.
    pub fn start<S: AsRef<OsStr>>(&self, folder: &Path, args: &[S]) -> RunningProgram {
        self.start_with(folder, args, &[], "")
    }

    /// Starts the program as [`Self::start`] does, with `variables` set and `input` on standard
    /// input.
    pub fn start_with<S: AsRef<OsStr>>(
        &self,
        folder: &Path,
        args: &[S],
        variables: &[(&str, &str)],
        input: &str,
    ) -> RunningProgram {
        self.start_with_id(&new_run_id(), folder, args, variables, input)
    }

    /// Returns a command for the program in the environment of the test.
    pub fn command(&self) -> Command {
        self.command_for(&self.program)
    }

    /// Returns a command for another program, such as a script that starts acrtask, in the
    /// environment of [`Self::command`].
    pub fn command_for(&self, program: impl AsRef<OsStr>) -> Command {
        environment::isolated(program, self.home.path())
    }

    /// Starts the program as [`Self::start_with`] does, with `run` as the id of the run.
    pub fn start_with_id<S: AsRef<OsStr>>(
        &self,
        run: &str,
        folder: &Path,
        args: &[S],
        variables: &[(&str, &str)],
        input: &str,
    ) -> RunningProgram {
        let mut command = self.command();
        let (name, rest) = args.split_first().expect("a command");
        command
            .arg(name)
            .args(["--registry", &self.registry, "--id", run])
            .args(rest);
        command.current_dir(folder).envs(variables.iter().copied());
        RunningProgram::spawn(run, command, input)
    }

    /// Starts the program with exactly these arguments.
    pub fn start_plain<S: AsRef<OsStr>>(
        &self,
        folder: &Path,
        args: &[S],
        variables: &[(&str, &str)],
    ) -> RunningProgram {
        let mut command = self.command();
        command
            .args(args)
            .current_dir(folder)
            .envs(variables.iter().copied());
        RunningProgram::spawn("", command, "")
    }

    /// Starts the program and waits for its end.
    pub fn run_acrtask<S: AsRef<OsStr>>(&self, folder: &Path, args: &[S]) -> Outcome {
        self.start(folder, args).wait()
    }

    /// Returns the digest that the registry reports for `repository:tag`. `None` if the tag does
    /// not exist.
    pub async fn fetch_digest(&self, repository: &str, tag: &str) -> Option<String> {
        let accept = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                      application/vnd.docker.distribution.manifest.list.v2+json, \
                      application/vnd.docker.distribution.manifest.v2+json";
        // The client needs a TLS provider even for plain HTTP. An error means that one is
        // installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let url = format!("http://{}/v2/{repository}/manifests/{tag}", self.registry);
        let response = reqwest::Client::new()
            .head(&url)
            .header("Accept", accept)
            .send()
            .await
            .unwrap_or_else(|error| panic!("{url}: {error}"));
        match response.status().as_u16() {
            200 => Some(
                response.headers()["docker-content-digest"]
                    .to_str()
                    .expect("ASCII")
                    .to_owned(),
            ),
            404 => None,
            other => panic!("{url}: status {other}"),
        }
    }
}

impl RunningProgram {
    fn spawn(run: &str, mut command: Command, input: &str) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let mut stdin = child.stdin.take().expect("the stream is piped");
        // A program that does not read its input may have closed it.
        let _ = stdin.write_all(input.as_bytes());
        let stdout = StreamCollector::start(child.stdout.take().expect("the stream is piped"));
        let stderr = StreamCollector::start(child.stderr.take().expect("the stream is piped"));
        Self {
            run: run.to_owned(),
            child,
            stdout,
            stderr,
        }
    }

    /// Sends a signal by name: `INT`, `TERM`, `KILL`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args(["-s", name, &self.child.id().to_string()])
            .status();
        assert!(
            status.is_ok_and(|status| status.success()),
            "kill -s {name}"
        );
    }

    /// Waits until the program has printed `text` on either stream.
    pub fn wait_for(&self, text: &str) {
        let begun = Instant::now();
        loop {
            let (stdout, stderr) = (self.stdout.read_so_far(), self.stderr.read_so_far());
            if stdout.contains(text) || stderr.contains(text) {
                return;
            }
            if begun.elapsed() > LIMIT {
                self.signal("INT");
                panic!(
                    "run {} did not print {text:?} within {LIMIT:?}, only:\n{stdout}{stderr}",
                    self.run
                );
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for the end of the program, at most `LIMIT`.
    pub fn wait(mut self) -> Outcome {
        let begun = Instant::now();
        let status: Option<ExitStatus> = loop {
            match self.child.try_wait().expect("the process is a child") {
                Some(status) => break Some(status),
                None if begun.elapsed() > LIMIT => {
                    let _ = self.child.kill();
                    let _ = self.child.wait();
                    break None;
                }
                None => thread::sleep(Duration::from_millis(10)),
            }
        };
        let stdout = self.stdout.read_to_end();
        let stderr = self.stderr.read_to_end();
        let Some(status) = status else {
            panic!(
                "run {} did not end within {LIMIT:?}; it printed:\n{stdout}{stderr}",
                self.run
            );
        };
        Outcome {
            run: self.run,
            code: status.code(),
            stdout,
            stderr,
        }
    }
}

impl Outcome {
    /// Parses the events of a run with `-o json`.
    pub fn events(&self) -> Vec<Value> {
        let parse =
            |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        self.stdout.lines().map(parse).collect()
    }

    /// Returns the events named `name`.
    pub fn events_named(&self, name: &str) -> Vec<Value> {
        self.events()
            .into_iter()
            .filter(|event| event["event"] == name)
            .collect()
    }

    /// Returns the final state of the step `id`.
    pub fn step_state(&self, id: &str) -> String {
        self.events_named("step_finished")
            .into_iter()
            .find(|event| event["step"] == id)
            .map_or_else(
                || "none".into(),
                |event| event["state"].as_str().unwrap_or_default().to_owned(),
            )
    }

    /// Returns the exit code and both streams, for the message of a failed test.
    pub fn transcript(&self) -> String {
        format!(
            "exit code {:?}\n{}\n{}",
            self.code, self.stdout, self.stderr
        )
    }
}

/// Returns an id that no other test of this or another process uses.
pub fn new_run_id() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |now| now.as_micros());
    format!(
        "t{:x}-{}-{}",
        now % (1 << 40),
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

/// Returns the path of the source checkout.
pub fn checkout() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Output stream of a program, read while the program writes.
#[derive(Debug)]
struct StreamCollector {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
}

impl StreamCollector {
    fn start(mut from: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let collected = Arc::clone(&bytes);
        let reader = thread::spawn(move || {
            let mut chunk = [0; 4096];
            // The bytes before a read error are still worth showing.
            while let Ok(n @ 1..) = from.read(&mut chunk) {
                let mut collected = collected.lock().expect("no thread panics with it");
                collected.extend_from_slice(&chunk[..n]);
            }
        });
        Self { bytes, reader }
    }

    fn read_so_far(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().expect("no thread panics with it")).into_owned()
    }

    fn read_to_end(self) -> String {
        self.reader.join().expect("the reader does not panic");
        String::from_utf8_lossy(&self.bytes.lock().expect("no thread panics with it")).into_owned()
    }
}
