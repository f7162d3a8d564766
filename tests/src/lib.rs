//! The program against a real engine and a real registry.
//!
//! `cargo xtask test` sets up what is needed and names it in the environment: `DOCKER_HOST`,
//! `ACRTASK_TEST_REGISTRY` (an open registry with the base images), `ACRTASK_TEST_BIN` (the program). Where
//! they are not set, [`World::find`] says so and the test is skipped.
//!
//! Invariants: every run has an id of its own, so that tests can run side by side; nothing is waited for
//! without a limit, and what a run had printed by then is shown.

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
pub mod scenario;
pub mod second_engine;
pub mod service;

/// The longest that any run of a test may take.
const LIMIT: Duration = Duration::from_secs(150);

/// The engine, the registry and the program.
#[derive(Debug, Clone)]
pub struct World {
    /// `host:port`.
    pub registry: String,
    program: PathBuf,
    /// Home and configuration of the programs of one test.
    home: Arc<TempDir>,
}

/// What a run gave.
#[derive(Debug)]
pub struct Outcome {
    /// The run's id.
    pub run: String,
    /// Its exit code; nothing where a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// A run that has been started.
#[derive(Debug)]
pub struct Running {
    /// The run's id.
    pub run: String,
    child: Child,
    stdout: Collected,
    stderr: Collected,
}

impl World {
    /// The world that the environment names; nothing only where skipping was asked for.
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
                home: Arc::new(tempfile::tempdir().expect("a folder can be made")),
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

    /// The program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The base image that every registry of the tests has.
    pub fn busybox(&self) -> String {
        format!("{}/base/busybox:1.36", self.registry)
    }

    /// The program with `args`, started in `folder`; `run` and `build` get an id of their own and the registry.
    pub fn start<S: AsRef<OsStr>>(&self, folder: &Path, args: &[S]) -> Running {
        self.start_with(folder, args, &[], "")
    }

    /// The same, with these variables set and this on standard input.
    pub fn start_with<S: AsRef<OsStr>>(
        &self,
        folder: &Path,
        args: &[S],
        variables: &[(&str, &str)],
        input: &str,
    ) -> Running {
        self.start_as(&new_run_id(), folder, args, variables, input)
    }

    /// Returns the program as a command, in an environment of the test's own.
    pub fn command(&self) -> Command {
        self.command_of(&self.program)
    }

    /// Returns another program, such as a script that starts acrtask, in the environment of [`Self::command`].
    pub fn command_of(&self, program: impl AsRef<OsStr>) -> Command {
        environment::isolated(program, self.home.path())
    }

    /// The same, with `run` as the run's id.
    pub fn start_as<S: AsRef<OsStr>>(
        &self,
        run: &str,
        folder: &Path,
        args: &[S],
        variables: &[(&str, &str)],
        input: &str,
    ) -> Running {
        let mut command = self.command();
        let (name, rest) = args.split_first().expect("a command");
        command
            .arg(name)
            .args(["--registry", &self.registry, "--id", run])
            .args(rest);
        command.current_dir(folder).envs(variables.iter().copied());
        Running::spawn(run, command, input)
    }

    /// The program with exactly these arguments.
    pub fn start_plain<S: AsRef<OsStr>>(
        &self,
        folder: &Path,
        args: &[S],
        variables: &[(&str, &str)],
    ) -> Running {
        let mut command = self.command();
        command
            .args(args)
            .current_dir(folder)
            .envs(variables.iter().copied());
        Running::spawn("", command, "")
    }

    /// Starts it, and waits for its end.
    pub fn acrtask<S: AsRef<OsStr>>(&self, folder: &Path, args: &[S]) -> Outcome {
        self.start(folder, args).wait()
    }

    /// The digest that the registry itself has for `repository:tag`; nothing where it has none.
    pub async fn digest(&self, repository: &str, tag: &str) -> Option<String> {
        let accept = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                      application/vnd.docker.distribution.manifest.list.v2+json, \
                      application/vnd.docker.distribution.manifest.v2+json";
        // The client wants a provider for TLS even where it speaks plain HTTP; an error means it has one.
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

impl Running {
    fn spawn(run: &str, mut command: Command, input: &str) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let mut stdin = child.stdin.take().expect("it is piped");
        // A program that does not read its input may have closed it.
        let _ = stdin.write_all(input.as_bytes());
        let stdout = Collected::of(child.stdout.take().expect("it is piped"));
        let stderr = Collected::of(child.stderr.take().expect("it is piped"));
        Self {
            run: run.to_owned(),
            child,
            stdout,
            stderr,
        }
    }

    /// Sends a signal by its name: `INT`, `TERM`, `KILL`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args(["-s", name, &self.child.id().to_string()])
            .status();
        assert!(
            status.is_ok_and(|status| status.success()),
            "kill -s {name}"
        );
    }

    /// Waits until it has printed `text`, on either stream.
    pub fn wait_for(&self, text: &str) {
        let begun = Instant::now();
        loop {
            let (stdout, stderr) = (self.stdout.so_far(), self.stderr.so_far());
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

    /// Waits for its end, at most as long as a test may take.
    pub fn wait(mut self) -> Outcome {
        let begun = Instant::now();
        let status: Option<ExitStatus> = loop {
            match self.child.try_wait().expect("it is our child") {
                Some(status) => break Some(status),
                None if begun.elapsed() > LIMIT => {
                    let _ = self.child.kill();
                    let _ = self.child.wait();
                    break None;
                }
                None => thread::sleep(Duration::from_millis(10)),
            }
        };
        let stdout = self.stdout.whole();
        let stderr = self.stderr.whole();
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
    /// The events of a run with `-o json`.
    pub fn events(&self) -> Vec<Value> {
        let parse =
            |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        self.stdout.lines().map(parse).collect()
    }

    /// The events named `name`.
    pub fn events_named(&self, name: &str) -> Vec<Value> {
        self.events()
            .into_iter()
            .filter(|event| event["event"] == name)
            .collect()
    }

    /// The final state of the step `id`.
    pub fn state(&self, id: &str) -> String {
        self.events_named("step_finished")
            .into_iter()
            .find(|event| event["step"] == id)
            .map_or_else(
                || "none".into(),
                |event| event["state"].as_str().unwrap_or_default().to_owned(),
            )
    }

    /// Everything that it printed, for the message of a failed test.
    pub fn all(&self) -> String {
        format!(
            "exit code {:?}\n{}\n{}",
            self.code, self.stdout, self.stderr
        )
    }
}

/// An id that no other test of this or of another process uses.
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

/// The checkout.
pub fn checkout() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// A stream of the program's, read as it comes.
#[derive(Debug)]
struct Collected {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
}

impl Collected {
    fn of(mut from: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let collected = Arc::clone(&bytes);
        let reader = thread::spawn(move || {
            let mut chunk = [0; 4096];
            // What came before an error is still worth showing.
            while let Ok(n @ 1..) = from.read(&mut chunk) {
                let mut collected = collected.lock().expect("nobody panics with it");
                collected.extend_from_slice(&chunk[..n]);
            }
        });
        Self { bytes, reader }
    }

    fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().expect("nobody panics with it")).into_owned()
    }

    fn whole(self) -> String {
        self.reader.join().expect("the reader does not panic");
        String::from_utf8_lossy(&self.bytes.lock().expect("nobody panics with it")).into_owned()
    }
}
