//! The loop: takes an input, mutates it, runs the target within its limits, minimizes what fails.

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

/// Inputs in the pool.
const MAX_POOL: usize = 2000;
/// Time for making a failing input smaller.
const MINIMIZING: Duration = Duration::from_secs(20);
/// Time after which an input that does not end is stored and ends the process.
const STUCK: Duration = Duration::from_secs(30);

/// Bounds for one input.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Time.
    pub time: Duration,
    /// Bytes allocated at once.
    pub memory: usize,
}

impl Default for Limits {
    /// A second where the compiler optimized, five where it did not; 64 MiB.
    fn default() -> Self {
        Self {
            time: Duration::from_secs(if cfg!(debug_assertions) { 5 } else { 1 }),
            memory: 64 << 20,
        }
    }
}

/// What a run without a failure has tried.
#[derive(Debug, Default)]
pub struct Report {
    /// Inputs.
    pub inputs: u64,
    /// Different outcomes.
    pub outcomes: usize,
    /// The longest time of an input.
    pub slowest: Duration,
    /// The most bytes that an input allocated at once.
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

/// An input that the target does not withstand.
#[derive(Debug)]
pub struct Failure {
    /// What happened.
    pub reason: String,
    /// The input, made small.
    pub input: Vec<u8>,
    /// The file it was stored in, if it was.
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

/// The folder of a target's inputs.
fn corpus_folder(target: &Target) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target.name)
}

/// The stored inputs and those that the target makes itself.
fn corpus(target: &Target) -> Vec<Vec<u8>> {
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

/// Tries the corpus of a target alone.
///
/// # Errors
/// The first input that fails.
pub fn replay(target: &Target, limits: &Limits) -> Result<Report, Failure> {
    fuzz(target, Duration::ZERO, 0, limits, false)
}

/// Tries the corpus, and then mutated inputs for `time`. With `store`, what fails is added to the corpus.
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
    let mut pool = corpus(target);
    let mut outcomes = HashSet::new();
    let mut report = Report::default();
    for input in &pool {
        let outcome = attempt(target, input, limits, &mut report);
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
        match attempt(target, &input, limits, &mut report) {
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
fn attempt(
    target: &Target,
    input: &[u8],
    limits: &Limits,
    report: &mut Report,
) -> Result<u64, String> {
    catch_messages();
    watch(target, input);
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
        format!("a panic: {message}")
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
    /// Of the last panic of this thread.
    static MESSAGE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Keeps the messages of panics instead of printing them.
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

/// The input that is being tried.
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

/// Notes the input, for a thread that ends the process if the input does not end.
#[allow(clippy::print_stderr, reason = "the last words of the process")]
fn watch(target: &Target, input: &[u8]) {
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
                eprintln!("{}: an input does not end: {stored:?}", stuck.target);
                std::process::abort();
            }
        });
    });
}

/// Removes from a failing input what it does not need to fail.
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
    while piece > 0 && began.elapsed() < MINIMIZING {
        let mut at = 0;
        while at < input.len() && began.elapsed() < MINIMIZING {
            let mut shorter = input.clone();
            shorter.drain(at..(at + piece).min(input.len()));
            match attempt(target, &shorter, limits, &mut Report::default()) {
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
