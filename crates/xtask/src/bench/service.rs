//! The service under load, with real control planes and databases. Benches with 1,000 runners use
//! simulated ones (`load` in the crate of the tests); the others use a real runner.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::{Bench, Row, spread};
use crate::progress;

/// Counted dispatches. As many warm-up dispatches come first, while the runners connect.
const DISPATCHES: usize = 10_000;
const FIRST: usize = 1_000;
/// Number of lines of the long log.
const LINES: u64 = 10_000_000;
/// Limit for the start of each process.
const SOON: Duration = Duration::from_secs(60);

/// A control plane. Dropping it stops the process.
pub(super) struct Server {
    pub(super) child: Child,
    pub(super) url: String,
    pub(super) token: String,
    log: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Output of `load`.
#[derive(Debug, Deserialize)]
struct Rate {
    per_second: f64,
}

#[derive(Debug, Deserialize)]
struct Latency {
    p50_ms: f64,
    p99_ms: f64,
}

impl Bench {
    /// Starts a control plane on `database`. `None`: on SQLite in a new folder.
    pub(super) fn serve(
        &self,
        name: &str,
        database: Option<&str>,
        flags: &[&str],
    ) -> Result<Server> {
        let folder = self.folder(name)?;
        let listener = TcpListener::bind("127.0.0.1:0").context("no port is free")?;
        let address = listener.local_addr().context("a port has no number")?;
        drop(listener);
        let log = folder.join("log");
        let output = File::create(&log).context("cannot make a log")?;
        let errors = output.try_clone().context("cannot share a log")?;
        let mut command = Command::new(&self.acrtask);
        command
            .args(["serve", "--listen", &address.to_string(), "--data-dir"])
            .arg(folder.join("data"))
            .args(flags)
            .envs(self.environment.variables())
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors);
        if let Some(database) = database {
            command.args(["--database", database]);
        }
        let child = command.spawn().context("cannot start a control plane")?;
        let mut server = Server {
            child,
            url: format!("http://{address}"),
            token: String::new(),
            log,
        };
        let begun = Instant::now();
        while !ready(&address.to_string()) || !server.text().contains("acrt_") {
            ensure!(
                begun.elapsed() < SOON,
                "the control plane is not ready:\n{}",
                server.text()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        let text = server.text();
        let token = text
            .split_whitespace()
            .find(|word| word.starts_with("acrt_"));
        server.token = token
            .context("the control plane printed no token")?
            .to_owned();
        Ok(server)
    }

    fn load(&self, words: &[&str]) -> Command {
        let mut command = Command::new(self.acrtask.with_file_name("load"));
        command.args(words);
        command
    }

    /// Runs `load` and parses its output.
    pub(super) fn loaded<T: for<'a> Deserialize<'a>>(&self, words: &[&str]) -> Result<T> {
        let output = self
            .load(words)
            .stderr(Stdio::inherit())
            .output()
            .context("cannot start `load`")?;
        ensure!(output.status.success(), "load {words:?} failed");
        serde_json::from_slice(&output.stdout).with_context(|| format!("load {words:?}"))
    }

    /// Creates an empty database: in PostgreSQL, or as a file.
    pub(super) fn database(&self, postgres: bool, name: &str) -> Result<String> {
        if !postgres {
            let folder = self.folder(&format!("db-{name}"))?;
            return Ok(format!("sqlite:{}", folder.join("acrtask.db").display()));
        }
        let mut variables = self.environment.variables();
        let url = variables.find(|(name, _)| *name == "ACRTASK_TEST_POSTGRES");
        let (_, url) = url.context("no PostgreSQL was set up")?;
        let name = format!("bench_{}_{}", name.replace('-', "_"), std::process::id());
        #[derive(Deserialize)]
        struct Made {
            url: String,
        }
        let made: Made = self.loaded(&["create-database", "--postgres", url, "--name", &name])?;
        Ok(made.url)
    }

    /// Measures dispatches with 1,000 runners and 100,000 queued runs, beside the rate with few
    /// queued runs and the rate of claims without runners.
    pub(super) fn dispatch(&self) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        self.forget("dispatch-")?;
        for (postgres, name) in [(false, "SQLite"), (true, "PostgreSQL")] {
            let (mut few, mut many, mut bare) = (Vec::new(), Vec::new(), Vec::new());
            for round in 0..3 {
                for (queued, into) in [(FIRST + DISPATCHES, &mut few), (100_000, &mut many)] {
                    let database = self
                        .database(postgres, &format!("{name}-{queued}-{round}").to_lowercase())?;
                    progress::announce(format!(
                        "Measuring: dispatch on {name} with {queued} queued, round {}",
                        round + 1
                    ));
                    let _: Rate = self.loaded(&[
                        "fill",
                        "--database",
                        &database,
                        "--runs",
                        &queued.to_string(),
                    ])?;
                    // A file system is slow for a while in a folder whose files were just removed.
                    let folder = format!("dispatch-{name}-{queued}-{round}");
                    let server = self.serve(&folder, Some(&database), &["--no-runner"])?;
                    let rate: Rate = self.loaded(&[
                        "dispatch",
                        "--server",
                        &server.url,
                        "--token",
                        &server.token,
                        "--first",
                        &FIRST.to_string(),
                        "--runs",
                        &DISPATCHES.to_string(),
                    ])?;
                    into.push(rate.per_second);
                }
                let database =
                    self.database(postgres, &format!("{name}-bare-{round}").to_lowercase())?;
                let rate: Rate = self.loaded(&[
                    "bare",
                    "--database",
                    &database,
                    "--claims",
                    &DISPATCHES.to_string(),
                ])?;
                bare.push(rate.per_second);
            }
            let per_run =
                |rates: &[f64]| rates.iter().map(|rate| 1000.0 / rate).collect::<Vec<_>>();
            let (low, median, high) = spread(&per_run(&many))?;
            let (_, bare, _) = spread(&bare)?;
            rows.push(Row {
                what: format!("dispatch on {name}, 100,000 queued"),
                low,
                median,
                high,
                decides: median,
                bound: 1.0,
                unit: "ms",
                scale: format!(
                    "{:.0} runs a second, carried to their end; {bare:.0} bare claims a second",
                    1000.0 / median
                ),
            });
            let slower: Vec<f64> = few
                .iter()
                .zip(&many)
                .map(|(few, many)| few / many)
                .collect();
            let (low, median, high) = spread(&slower)?;
            rows.push(Row {
                what: format!("the same, beside {} queued", FIRST + DISPATCHES),
                low,
                median,
                high,
                decides: median,
                bound: 1.1,
                unit: "x",
                scale: String::new(),
            });
        }
        Ok(rows)
    }

    /// Measures the time from a request to the first step of its run on an idle system.
    pub(super) fn latency(&self) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for (postgres, name) in [(false, "SQLite"), (true, "PostgreSQL")] {
            progress::announce(format!(
                "Measuring: from a request to its first step on {name}"
            ));
            let database = self.database(postgres, &format!("{name}-latency").to_lowercase())?;
            let server = self.serve("latency", Some(&database), &[])?;
            wait_for_runner(&server)?;
            let image = format!("{}/base/busybox:1.36", self.environment.registry);
            let latency: Latency = self.loaded(&[
                "latency",
                "--server",
                &server.url,
                "--token",
                &server.token,
                "--image",
                &image,
            ])?;
            for (what, value, bound) in [
                ("p50", latency.p50_ms, 50.0),
                ("p99", latency.p99_ms, 250.0),
            ] {
                rows.push(Row {
                    what: format!("request to first step on {name}, {what}"),
                    low: value,
                    median: value,
                    high: value,
                    decides: value,
                    bound,
                    unit: "ms",
                    scale: String::new(),
                });
            }
        }
        Ok(rows)
    }

    /// Measures the memory of an idle control plane and of an idle runner.
    pub(super) fn idle(&self) -> Result<Vec<Row>> {
        progress::announce(
            "Measuring: memory of an idle control plane with 1,000 runners, and of an idle runner",
        );
        let server = self.serve("idle", None, &["--no-runner"])?;
        let mut fleet = self
            .load(&["idle", "--server", &server.url, "--token", &server.token])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start `load`")?;
        let mut line = String::new();
        let out = fleet.stdout.take().context("no output")?;
        BufReader::new(out).read_line(&mut line)?;
        ensure!(line.contains("1000"), "the runners did not connect: {line}");
        // Two heartbeats of each.
        std::thread::sleep(Duration::from_secs(22));
        let of_server = resident_mib(server.child.id())?;
        drop(fleet.stdin.take());
        let _ = fleet.wait();
        let runner = self.runner(&server)?;
        std::thread::sleep(Duration::from_secs(12));
        let of_runner = resident_mib(runner.0.id())?;
        let row = |what: &str, value, bound| Row {
            what: what.into(),
            low: value,
            median: value,
            high: value,
            decides: value,
            bound,
            unit: "MiB",
            scale: String::new(),
        };
        Ok(vec![
            row("memory, control plane with 1,000 runners", of_server, 80.0),
            row("memory, idle runner", of_runner, 20.0),
        ])
    }

    fn runner(&self, server: &Server) -> Result<Ended> {
        let folder = self.folder("runner")?;
        let token = self.client(server, &["runner", "token"])?;
        super::write(&folder.join("token"), token.trim())?;
        let log = File::create(folder.join("log")).context("cannot make a log")?;
        let child = Command::new(&self.acrtask)
            .args([
                "runner",
                "start",
                "--server",
                &server.url,
                "--name",
                "bench",
                "--token-file",
            ])
            .arg(folder.join("token"))
            .arg("--state-dir")
            .arg(folder.join("state"))
            .envs(self.environment.variables())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("cannot start a runner")?;
        let runner = Ended(child);
        wait_for_runner(server)?;
        Ok(runner)
    }

    fn client(&self, server: &Server, words: &[&str]) -> Result<String> {
        let output = Command::new(&self.acrtask)
            .args(words)
            .env("ACRTASK_SERVER", &server.url)
            .env("ACRTASK_TOKEN", &server.token)
            .output()
            .context("cannot start acrtask")?;
        ensure!(
            output.status.success(),
            "acrtask {words:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).context("acrtask printed something else than text")
    }

    /// Measures a log of ten million lines from a container to a reader.
    pub(super) fn logs(&self) -> Result<Vec<Row>> {
        let server = self.serve("logs", None, &[])?;
        wait_for_runner(&server)?;
        progress::announce(
            "Measuring: a log of ten million lines, followed by a reader while it grows",
        );
        let image = format!("{}/base/busybox:1.36", self.environment.registry);
        let folder = self.folder("logs-context")?;
        let begun = Instant::now();
        let mut reader = Command::new(&self.acrtask)
            .args([
                "run",
                "-o",
                "json",
                "--cmd",
                &format!("{image} seq 1 {LINES}"),
                "/dev/null",
            ])
            .current_dir(&folder)
            .env("ACRTASK_SERVER", &server.url)
            .env("ACRTASK_TOKEN", &server.token)
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start acrtask")?;
        let out = reader.stdout.take().context("no output")?;
        let mut peak_reader = 0.0;
        let next = in_order(BufReader::with_capacity(1 << 20, out), |line| {
            if line % (LINES / 10) == 0 {
                peak_reader = peak_mib(reader.id())?;
            }
            Ok(())
        })?;
        let status = reader.wait().context("cannot wait for acrtask")?;
        let seconds = begun.elapsed().as_secs_f64();
        ensure!(
            status.success(),
            "the run failed: {status}\n{}",
            server.text()
        );
        let of_server = peak_mib(server.child.id())?;
        let lost = (LINES + 1).saturating_sub(next) as f64;
        let row = |what: &str, value, bound, unit, scale| Row {
            what: what.into(),
            low: value,
            median: value,
            high: value,
            decides: value,
            bound,
            unit,
            scale,
        };
        let mut rows = vec![
            row(
                "a log of 10 million lines: lines lost",
                lost,
                0.0,
                "",
                format!("{:.0} lines a second", LINES as f64 / seconds),
            ),
            row(
                "peak memory, control plane with its runner",
                of_server,
                200.0,
                "MiB",
                String::new(),
            ),
            row(
                "peak memory, reader",
                peak_reader,
                64.0,
                "MiB",
                String::new(),
            ),
        ];
        rows.extend(super::log_index::measure(&server, LINES)?);
        Ok(rows)
    }
}

/// A child process. Dropping it kills the process.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Server {
    fn text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// Reads events and passes each number that the step printed to `seen`. Returns the next number.
fn in_order(events: impl BufRead, mut seen: impl FnMut(u64) -> Result<()>) -> Result<u64> {
    #[derive(Deserialize)]
    struct Event {
        event: String,
        #[serde(default)]
        text: String,
    }
    let mut next = 1;
    for line in events.lines() {
        let event: Event = serde_json::from_str(&line?).context("no event")?;
        if event.event != "output" {
            continue;
        }
        for number in event.text.lines() {
            if number.parse() != Ok(next) {
                bail!("line {next} is missing; {number} came");
            }
            seen(next)?;
            next += 1;
        }
    }
    Ok(next)
}

fn get(address: &str, path: &str, token: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.starts_with("HTTP/1.1 200").then_some(answer)
}

fn ready(address: &str) -> bool {
    get(address, "/readyz", "").is_some()
}

pub(super) fn wait_for_runner(server: &Server) -> Result<()> {
    let address = server.url.trim_start_matches("http://");
    let begun = Instant::now();
    while get(address, "/api/v1/runners", &server.token)
        .is_none_or(|answer| !answer.contains("\"state\":\"online\""))
    {
        ensure!(begun.elapsed() < SOON, "no runner came:\n{}", server.text());
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn resident_mib(pid: u32) -> Result<f64> {
    status_mib(pid, "VmRSS:")
}

pub(super) fn peak_mib(pid: u32) -> Result<f64> {
    status_mib(pid, "VmHWM:")
}

/// Returns a figure of /proc/PID/status in bytes. The file counts in KiB (proc_pid_status(5)).
fn status_mib(pid: u32, key: &str) -> Result<f64> {
    let path = Path::new("/proc").join(pid.to_string()).join("status");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let figure = line.and_then(|line| line.split_whitespace().next());
    let kib: f64 = figure
        .with_context(|| format!("{} has no {key}", path.display()))?
        .parse()?;
    Ok(kib / 1024.0)
}
