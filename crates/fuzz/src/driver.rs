//! The main loop: chooses an input, mutates it, runs the target within its limits, and minimizes
//! failing inputs.

use std::{
    cell::RefCell,
    collections::HashSet,
    fmt,
    panic::{self, AssertUnwindSafe},
    path::PathBuf,
    sync::{Mutex, Once, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use rand::{SeedableRng as _, rngs::SmallRng, seq::IndexedRandom as _};
use sha2::{Digest as _, Sha256};

use crate::{ALLOCATED, mutate, targets::Target};

/// Maximum number of inputs in the pool.
const MAX_POOL: usize = 2000;
/// Maximum time to minimize a failing input.
const MINIMIZE_TIME: Duration = Duration::from_secs(20);
/// Time after which an endless input is stored and the process aborted.
const STUCK: Duration = Duration::from_secs(30);

/// Limits for one input.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Maximum duration.
    pub time: Duration,
    /// Maximum number of allocated bytes at any time.
    pub memory: usize,
}

impl Default for Limits {
    /// Returns 64 MiB, and one second with compiler optimizations or five without.
    fn default() -> Self {
        Self {
            time: Duration::from_secs(if cfg!(debug_assertions) { 5 } else { 1 }),
            memory: 64 << 20,
        }
    }
}

/// Statistics of a run without a failure.
#[derive(Debug, Default)]
pub struct Report {
    /// Number of inputs.
    pub inputs: u64,
    /// Number of distinct outcomes.
    pub outcomes: usize,
    /// Maximum duration of an input.
    pub slowest: Duration,
    /// Maximum number of bytes that an input allocated at any time.
    pub largest: usize,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} inputs, {} outcomes, at most {:?} and {} KiB",
            self.inputs,
            self.outcomes,
            self.slowest,
            self.largest >> 10
        )
    }
}

/// An input with which the target failed.
#[derive(Debug)]
pub struct Failure {
    /// The reason of the failure.
    pub reason: String,
    /// The minimized input.
    pub input: Vec<u8>,
    /// The file in which it was stored. `None` if it was not.
    pub stored: Option<PathBuf>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FAILED: {}\n  input: ", self.reason)?;
        let shown = &self.input[..self.input.len().min(400)];
        write!(f, "{}", shown.escape_ascii())?;
        if let Some(path) = &self.stored {
            write!(f, "\n  stored: {}", path.display())?;
        }
        Ok(())
    }
}

/// Returns the folder of a target's inputs.
fn corpus_folder(target: &Target) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target.name)
}

/// Returns the stored inputs and those that the target generates.
fn read_corpus(target: &Target) -> Vec<Vec<u8>> {
    let entries = std::fs::read_dir(corpus_folder(target));
    let mut paths: Vec<PathBuf> = entries
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    paths.sort();
    let stored = paths.iter().filter_map(|path| std::fs::read(path).ok());
    stored.chain((target.seeds)()).collect()
}

/// Runs only the corpus of a target.
///
/// # Errors
/// The first input that fails.
pub fn replay(target: &Target, limits: &Limits) -> Result<Report, Failure> {
    fuzz(target, Duration::ZERO, 0, limits, false)
}

/// Runs the corpus, and then mutated inputs for `time`. With `store`, adds failing inputs to the
/// corpus.
///
/// # Errors
/// The first input that fails.
pub fn fuzz(
    target: &Target,
    time: Duration,
    seed: u64,
    limits: &Limits,
    store: bool,
) -> Result<Report, Failure> {
    let began = Instant::now();
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut pool = read_corpus(target);
    let mut outcomes = HashSet::new();
    let mut report = Report::default();
    for input in &pool {
        let outcome = run_once(target, input, limits, &mut report);
        outcomes.insert(outcome.map_err(|reason| minimize(target, input, reason, limits, store))?);
    }
    if pool.is_empty() {
        pool.push(Vec::new());
    }
    while began.elapsed() < time {
        let first = pool.choose(&mut rng).cloned().unwrap_or_default();
        let other = pool.choose(&mut rng).cloned().unwrap_or_default();
        let mut input = mutate::mutate(first, &other, target.words, &mut rng);
        input.truncate(target.max_len);
        if let Some(repair) = target.repair {
            repair(&mut input);
        }
        match run_once(target, &input, limits, &mut report) {
            Ok(outcome) => {
                if outcomes.insert(outcome) && pool.len() < MAX_POOL {
                    pool.push(input);
                }
            }
            Err(reason) => return Err(minimize(target, &input, reason, limits, store)),
        }
    }
    report.outcomes = outcomes.len();
    Ok(report)
}

/// Runs the target once.
fn run_once(
    target: &Target,
    input: &[u8],
    limits: &Limits,
    report: &mut Report,
) -> Result<u64, String> {
    catch_messages();
    record_current(target, input);
    let before = ALLOCATED.current_usage();
    ALLOCATED.reset_peak_usage();
    let began = Instant::now();
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| (target.check)(input)));
    let took = began.elapsed();
    let allocated = ALLOCATED.peak_usage().saturating_sub(before);
    *current() = None;
    report.inputs += 1;
    report.slowest = report.slowest.max(took);
    report.largest = report.largest.max(allocated);
    let outcome = outcome.map_err(|_| {
        let message = MESSAGE.with_borrow_mut(std::mem::take);
        format!("panic: {message}")
    })?;
    if took > limits.time {
        return Err(format!("{took:?} for {} bytes", input.len()));
    }
    if allocated > limits.memory {
        return Err(format!("{} KiB for {} bytes", allocated >> 10, input.len()));
    }
    Ok(outcome)
}

thread_local! {
    /// Message of the last panic of this thread.
    static MESSAGE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Stores the messages of panics instead of printing them.
fn catch_messages() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if current().is_some() {
                MESSAGE.set(info.to_string());
            } else {
                usual(info);
            }
        }));
    });
}

/// The input of the current run of a target.
struct Current {
    began: Instant,
    target: &'static str,
    folder: PathBuf,
    input: Vec<u8>,
}

fn current() -> std::sync::MutexGuard<'static, Option<Current>> {
    static CURRENT: Mutex<Option<Current>> = Mutex::new(None);
    CURRENT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Records the input for the thread that aborts the process if the input does not end.
#[allow(clippy::print_stderr, reason = "the process aborts after it")]
fn record_current(target: &Target, input: &[u8]) {
    static WATCHING: OnceLock<()> = OnceLock::new();
    *current() = Some(Current {
        began: Instant::now(),
        target: target.name,
        folder: corpus_folder(target),
        input: input.to_vec(),
    });
    WATCHING.get_or_init(|| {
        std::thread::spawn(|| {
            loop {
                std::thread::sleep(Duration::from_secs(1));
                let current = current();
                let Some(stuck) = current.as_ref().filter(|it| it.began.elapsed() > STUCK) else {
                    continue;
                };
                let stored = store_input(&stuck.folder, &stuck.input);
                eprintln!("{}: an input did not end: {stored:?}", stuck.target);
                std::process::abort();
            }
        });
    });
}

/// Removes the parts of a failing input that are not needed for its failure.
fn minimize(
    target: &Target,
    input: &[u8],
    reason: String,
    limits: &Limits,
    store: bool,
) -> Failure {
    let began = Instant::now();
    let (mut input, mut reason) = (input.to_vec(), reason);
    let mut piece = input.len() / 2;
    while piece > 0 && began.elapsed() < MINIMIZE_TIME {
        let mut at = 0;
        while at < input.len() && began.elapsed() < MINIMIZE_TIME {
            let mut shorter = input.clone();
            shorter.drain(at..(at + piece).min(input.len()));
            match run_once(target, &shorter, limits, &mut Report::default()) {
                Err(again) => (input, reason) = (shorter, again),
                Ok(_) => at += piece,
            }
        }
        piece /= 2;
    }
    let stored = store.then(|| store_input(&corpus_folder(target), &input));
    Failure {
        reason,
        input,
        stored: stored.flatten(),
    }
}

fn store_input(folder: &std::path::Path, input: &[u8]) -> Option<PathBuf> {
    let digest = Sha256::digest(input);
    let name: String = digest[..6]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let path = folder.join(format!("failed-{name}"));
    std::fs::create_dir_all(folder).ok()?;
    std::fs::write(&path, input).ok()?;
    Some(path)
}
