//! Load without a token: attacks by anonymous clients, and their effect on clients with valid
//! credentials.
//!
//! Each attack runs for a few seconds against the real program, on loopback, from several
//! addresses. Meanwhile clients of every kind make requests, and the memory of the server is
//! sampled.
//!
//! Bounds: 256 MiB over the idle server, and 1 s at the 99th percentile of the valid requests of
//! each attack. A failed request counts as 999 s.
//!
//! `ACRTASK_LOAD_BIN` selects another program than that of the tests: `cargo xtask bench load`
//! measures the release build. `ACRTASK_LOAD_REPORT` is the path of a file for the results.

#![allow(clippy::unwrap_used, reason = "a test")]
#![allow(clippy::print_stdout, reason = "figures of the test")]

mod attacks;
mod clients;
mod target;
mod wire;

use std::{
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde_json::json;

use attacks::{ATTACKS, Attack};
use clients::Clients;
use target::{Address, Target};

/// Memory that the server may use above its idle state, in bytes.
const CEILING: u64 = 256 << 20;
/// Upper bound of the 99th percentile of valid requests.
const LATENCY: Duration = Duration::from_secs(1);
/// Duration of each attack.
const ATTACK: Duration = Duration::from_secs(4);
/// Smallest number of requests for a percentile.
const LEAST_REQUESTS: usize = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement of the release build: `cargo xtask bench load`"]
async fn valid_clients_are_served_during_attacks() {
    attack_all(Target::start(false).await, |_| true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement of the release build: `cargo xtask bench load`"]
async fn valid_clients_are_served_during_attacks_over_tls() {
    attack_all(Target::start(true).await, |attack| attack.over_tls).await;
}

/// Runs an attack on a separate thread. Then only the scheduler of the system can delay valid
/// clients.
fn start_on_thread(attack: &Attack, address: Address, until: Instant) -> JoinHandle<()> {
    let start = attack.start;
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(start(address, until));
    })
}

async fn attack_all(target: Target, chosen: impl Fn(&Attack) -> bool) {
    let only = std::env::var("ACRTASK_LOAD_ONLY").ok();
    let clients = Clients::prepare(&target).await;
    // Closes the connections of the preparation and fills the caches.
    clients.run(Duration::from_secs(2)).await;
    let idle = target.memory();
    let mut rows = Vec::new();
    let mut misses = Vec::new();
    for attack in ATTACKS.iter().filter(|attack| chosen(attack)) {
        if only.as_ref().is_some_and(|only| only != attack.name) {
            continue;
        }
        let until = Instant::now() + ATTACK;
        let attacking = start_on_thread(attack, target.clone_address(), until);
        let (samples, most) = tokio::join!(clients.run(ATTACK), target.watch_memory(until));
        attacking.join().unwrap();
        let over = most.saturating_sub(idle);
        let row = json!({
            "attack": attack.name,
            "tls": target.is_tls(),
            "over_idle_mib": over as f64 / f64::from(1 << 20),
            "requests": samples.count(),
            "refused": samples.refused().len(),
            "p50_ms": samples.percentile(0.5).as_secs_f64() * 1000.0,
            "p99_ms": samples.percentile(0.99).as_secs_f64() * 1000.0,
        });
        println!("{row}");
        let p99 = samples.percentile(0.99);
        if over > CEILING || p99 > LATENCY || samples.count() < LEAST_REQUESTS {
            misses.push(format!("{row}\n{}", samples.refused().join("\n")));
        }
        rows.push(row);
        assert!(target.is_alive(), "the server ended: {}", target.log());
    }
    if let Some(report) = std::env::var_os("ACRTASK_LOAD_REPORT") {
        let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
        let mut file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(report)
            .unwrap();
        std::io::Write::write_all(&mut file, lines.as_bytes()).unwrap();
    }
    assert!(!rows.is_empty(), "no attack has this name");
    assert!(misses.is_empty(), "bounds missed:\n{}", misses.join("\n"));
}
