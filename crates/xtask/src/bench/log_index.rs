//! Outline, windows of lines and search of a long log, as a client of the server sees them.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::service::{Server, peak_mib};
use super::{Row, spread};

/// Number of measured requests of each kind.
const REQUESTS: u64 = 50;
/// Lines of a window.
const WINDOW: u64 = 500;
/// Limit of each response.
const SOON: Duration = Duration::from_secs(120);

/// Measures the log of the newest run of `server`. It has one step, which prints the numbers from 1
/// to `lines`.
pub(super) fn measure(server: &Server, lines: u64) -> Result<Vec<Row>> {
    let runs = json(server, "/runs?limit=1")?;
    let run = runs["items"][0]["id"]
        .as_str()
        .context("the server has no run")?;
    let outline = format!("/runs/{run}/outline");
    let begun = Instant::now();
    let first = json(server, &outline)?;
    let indexing = begun.elapsed();
    let step = first["steps"][0]["id"]
        .as_str()
        .context("the run has no step")?;
    let found = first["steps"][0]["lines"].as_u64().unwrap_or(0);
    ensure!(found >= lines, "the outline has {found} of {lines} lines");

    let outlines = times(|_| json(server, &outline).map(drop))?;
    let windows = times(|at| {
        // A fixed sequence of positions, spread over the log.
        let from = 1 + (at * 7_919_777) % (lines - WINDOW);
        let page = json(
            server,
            &format!("/runs/{run}/lines?step={step}&from={from}&count={WINDOW}"),
        )?;
        let count = page["lines"].as_array().map_or(0, Vec::len) as u64;
        ensure!(count == WINDOW, "a window at {from} has {count} lines");
        Ok(())
    })?;
    let mut all = Vec::new();
    let hits = times(|at| {
        let needle = lines - 1 - at * (lines / REQUESTS / 2);
        let begun = Instant::now();
        let mut items = open(server, &format!("/runs/{run}/search?q={needle}"))?;
        read_until(&mut items, "\"type\":\"hit\"")?;
        if at == 0 {
            let mut rest = items;
            read_until(&mut rest, "\"type\":\"end\"")?;
            all.push(begun.elapsed().as_secs_f64() * 1000.0);
        }
        Ok(())
    })?;
    let of_first = vec![indexing.as_secs_f64() * 1000.0];
    Ok(vec![
        row(
            "outline of the log, not indexed before",
            &of_first,
            10_000.0,
        )?,
        row("outline of the log, indexed", &outlines, 100.0)?,
        row("any 500 lines of the log", &windows, 50.0)?,
        row(
            "search: first hit, in the last half of the log",
            &hits[1..],
            300.0,
        )?,
        row("search: true counts", &all, 10_000.0)?,
        Row {
            what: "peak memory, control plane after reads of the log".into(),
            bound: 200.0,
            unit: "MiB",
            ..row("", &[peak_mib(server.child.id())?], 200.0)?
        },
    ])
}

/// Returns the row of durations in milliseconds. The longest one decides.
fn row(what: &str, values: &[f64], bound: f64) -> Result<Row> {
    let (low, median, high) = spread(values)?;
    Ok(Row {
        what: what.into(),
        low,
        median,
        high,
        decides: high,
        bound,
        unit: "ms",
        scale: String::new(),
    })
}

/// Returns the durations of requests in milliseconds.
fn times(mut request: impl FnMut(u64) -> Result<()>) -> Result<Vec<f64>> {
    (0..REQUESTS)
        .map(|at| {
            let begun = Instant::now();
            request(at)?;
            Ok(begun.elapsed().as_secs_f64() * 1000.0)
        })
        .collect()
}

/// Sends a request and returns its response, from the first line on.
fn open(server: &Server, path: &str) -> Result<BufReader<TcpStream>> {
    let address = server.url.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).context("cannot connect to the control plane")?;
    stream.set_read_timeout(Some(SOON))?;
    let token = &server.token;
    let request = format!(
        "GET /api/v1{path} HTTP/1.0\r\nhost: {address}\r\nauthorization: Bearer {token}\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    Ok(BufReader::new(stream))
}

fn json(server: &Server, path: &str) -> Result<Value> {
    let mut response = String::new();
    open(server, path)?.read_to_string(&mut response)?;
    let (head, body) = response.split_once("\r\n\r\n").unwrap_or_default();
    ensure!(head.contains(" 200 "), "{path}: {head}\n{body}");
    serde_json::from_str(body).with_context(|| format!("{path} returned no JSON"))
}

fn read_until(response: &mut BufReader<TcpStream>, text: &str) -> Result<()> {
    let mut line = String::new();
    while !line.contains(text) {
        line.clear();
        ensure!(
            response.read_line(&mut line)? > 0,
            "the response has no {text}"
        );
    }
    Ok(())
}
