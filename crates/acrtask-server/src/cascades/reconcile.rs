//! Change of the state: loaded from the cache, changed by events, and stored with all of its
//! consequences.
//!
//! Invariants:
//!
//! - Ends of runs are applied before facts are read, so the facts include every successful run.
//! - A change is stored completely or not at all.
//! - Afterwards the cached state equals the stored state.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::Instant,
};

use acrtask_api::{cascade::DigestChange, run::Approval};
use acrtask_cascade::{
    Cascades,
    cascade::{
        Action, Cascade, CascadeId, End, Event, NodePin, NodeState, Phase, Settings, SkipCause,
        Start, StepError,
    },
};
use acrtask_model::{Digest, ImageRef, RunId, RunState};
use acrtask_store::{CascadeRunKey, CascadeRunRow, Hint, NewCascadeRun, StoreError};
use jiff::{SignedDuration, Timestamp};

use super::{
    facts, settings, starts,
    state::{self, Loaded},
};
use crate::App;

/// Time for which a finished cascade can be retried.
const RETRY_PERIOD: SignedDuration = SignedDuration::from_hours(24);
/// Maximum length of a chain of superseding runs.
const MAX_SUCCESSORS: usize = 64;
/// Prefix of the reason of a run that a user canceled without a reason.
const CANCELED_PREFIX: &str = "canceled by ";

/// Outcome of a pass.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct PassOutcome {
    /// Time of the next pass.
    pub(super) wake: Option<Timestamp>,
    /// `true` if ends of runs were applied.
    pub(super) ends: bool,
    /// `true` if runs are in progress.
    pub(super) running: bool,
    /// `true` if a change was stored.
    pub(super) changed: bool,
}

/// Cached state of the cascades. `None` if it must be reloaded.
#[derive(Debug, Default)]
pub(super) struct StateCache(Option<Loaded>);

impl StateCache {
    /// Returns the current state. Reloads it if the database has another version.
    pub(super) async fn load(&mut self, app: &App) -> Result<&mut Loaded, StoreError> {
        let version = app.store.cascade_version().await?;
        if self.0.as_ref().is_none_or(|cache| cache.version != version) {
            self.0 = None;
            self.0 = Some(Loaded::new(app.store.load_cascades().await?)?);
        }
        self.0.as_mut().ok_or_else(|| StoreError::Invalid {
            what: "the state of cascades was not loaded".into(),
        })
    }

    fn clear(&mut self) {
        self.0 = None;
    }
}

/// Applies ends of runs and the clock. With `facts`, also compares all facts with all cascades.
pub(super) async fn reconcile(
    app: &App,
    cache: &mut StateCache,
    facts: bool,
) -> Result<PassOutcome, StoreError> {
    loop {
        let loaded = cache.load(app).await?;
        let now = app.clock.now();
        let mut runs = app.store.open_cascade_runs().await?;
        wait_for_successors(app, loaded, &mut runs).await?;
        if !facts && is_idle(loaded, &runs, now) {
            return Ok(PassOutcome {
                wake: loaded.next_wake.flatten(),
                running: !runs.is_empty(),
                ..PassOutcome::default()
            });
        }
        let mut pass = Pass::new(loaded, now);
        pass.apply_run_ends(&runs);
        pass.step(Event::Tick)?;
        if facts {
            let graph = facts::read_graph(app).await?;
            let begun = Instant::now();
            let done = pass.cascades.reconcile(&graph, &pass.settings, now);
            app.metrics
                .reconcile_seconds
                .observe(begun.elapsed().as_secs_f64());
            for id in &done.created {
                tracing::info!(cascade = id.0, "created a cascade");
            }
            for refused in &done.refused {
                tracing::debug!(%refused, "refused to build a stale task");
            }
            pass.queue_actions(done.actions);
            pass.prune();
        }
        let ends = !pass.seen.is_empty();
        if let Some(mut outcome) = store_pass(app, cache, pass, None).await? {
            outcome.ends = ends;
            return Ok(outcome);
        }
    }
}

/// Applies the commands of users to the state.
pub(super) async fn apply_commands(
    app: &App,
    cache: &mut StateCache,
    events: &[Event],
) -> Result<Result<(), StepError>, StoreError> {
    loop {
        let loaded = cache.load(app).await?;
        let mut pass = Pass::new(loaded, app.clock.now());
        for event in events {
            let actions = match pass.cascades.step(event.clone(), &pass.settings, pass.now) {
                Ok(actions) => actions,
                Err(error) => return Ok(Err(error)),
            };
            pass.queue_actions(actions);
        }
        if store_pass(app, cache, pass, None).await?.is_some() {
            return Ok(Ok(()));
        }
    }
}

/// Stores new settings.
pub(super) async fn store_settings(
    app: &App,
    cache: &mut StateCache,
    settings: &str,
) -> Result<(), StoreError> {
    loop {
        let loaded = cache.load(app).await?;
        let pass = Pass::new(loaded, app.clock.now());
        if store_pass(app, cache, pass, Some(settings.to_owned()))
            .await?
            .is_some()
        {
            cache.clear();
            return Ok(());
        }
    }
}

fn is_idle(loaded: &Loaded, runs: &[CascadeRunRow], now: Timestamp) -> bool {
    let ended = |run: &CascadeRunRow| run.state.is_none_or(RunState::is_final);
    // If this version of the state was never processed, its timers may be due.
    let waits = loaded
        .next_wake
        .is_some_and(|wake| wake.is_none_or(|at| at > now));
    waits && !runs.iter().any(ended)
}

/// Stores a change. Returns `None` if another server changed the state first; the caller then
/// starts again.
async fn store_pass(
    app: &App,
    cache: &mut StateCache,
    mut pass: Pass,
    settings: Option<String>,
) -> Result<Option<PassOutcome>, StoreError> {
    let runs = pass.start_runs(app).await?;
    let Some(before) = &mut cache.0 else {
        return Ok(None);
    };
    let mut change = state::diff_states(before, &pass.cascades, &pass.stages, &pass.archived)?;
    change.settings = settings;
    change.runs = runs;
    change.cancels = std::mem::take(&mut pass.cancels);
    change.seen = std::mem::take(&mut pass.seen);
    let mut outcome = PassOutcome {
        wake: pass.wake,
        ends: false,
        running: !pass.cascades.running(&pass.settings).is_empty(),
        changed: !state::is_empty(&change, before),
    };
    if !outcome.changed {
        before.next_wake = Some(pass.wake);
        return Ok(Some(outcome));
    }
    // The cache stays empty until the change is known to be stored.
    let version = before.version;
    let settings = before.settings.clone();
    cache.clear();
    let now = app.clock.now_ms();
    if !app.store.change_cascades(version, &change, now).await? {
        app.metrics.cascade_conflicts.inc();
        return Ok(None);
    }
    cache.0 = Some(Loaded {
        version: version + 1,
        settings,
        cascades: pass.cascades,
        stages: pass.stages,
        next_wake: Some(pass.wake),
    });
    for id in &pass.finished {
        tracing::info!(cascade = id.0, "cascade finished");
    }
    for start in &change.runs {
        tracing::info!(
            cascade = start.cascade,
            task = start.task,
            attempt = start.attempt,
            run = %start.run.id,
            "started a run of a cascade"
        );
    }
    outcome.running |= !change.runs.is_empty();
    if !change.runs.is_empty() || !change.cancels.is_empty() {
        app.wake.notify_one();
        app.cancels.notify_one();
        if let Err(error) = app.store.send_hints(&[Hint::Enqueued]).await {
            tracing::debug!(%error, "failed to send a hint");
        }
    }
    Ok(Some(outcome))
}

/// Changed state and its consequences.
struct Pass {
    now: Timestamp,
    settings: Settings,
    /// Task name prefix for staging. A cascade with a matching task pushes by digest.
    staging_prefix: Option<String>,
    cascades: Cascades,
    stages: BTreeMap<CascadeId, bool>,
    starts: VecDeque<Start>,
    cancels: Vec<(CascadeRunKey, String)>,
    seen: Vec<CascadeRunKey>,
    finished: Vec<CascadeId>,
    archived: Vec<Cascade>,
    wake: Option<Timestamp>,
}

impl Pass {
    fn new(loaded: &Loaded, now: Timestamp) -> Self {
        Self {
            now,
            settings: settings::settings_at(&loaded.settings, now),
            staging_prefix: loaded
                .settings
                .promotion
                .as_ref()
                .map(|promotion| promotion.tasks.clone()),
            cascades: loaded.cascades.clone(),
            stages: loaded.stages.clone(),
            starts: VecDeque::new(),
            cancels: Vec::new(),
            seen: Vec::new(),
            finished: Vec::new(),
            archived: Vec::new(),
            wake: None,
        }
    }

    fn step(&mut self, event: Event) -> Result<(), StoreError> {
        let actions = self
            .cascades
            .step(event, &self.settings, self.now)
            .map_err(|error| StoreError::Invalid {
                what: error.to_string(),
            })?;
        self.queue_actions(actions);
        Ok(())
    }

    /// Collects actions. The last batch determines the next wake-up.
    fn queue_actions(&mut self, actions: Vec<Action>) {
        self.wake = None;
        for action in actions {
            match action {
                Action::Start(start) => self.starts.push_back(start),
                Action::Stop {
                    cascade,
                    task,
                    attempt,
                } => {
                    let by = match self.cascades.get(cascade).map(|cascade| &cascade.phase) {
                        Some(Phase::Canceling { by }) => {
                            format!("cascade {cascade} was canceled by {by}")
                        }
                        _ => format!("cascade {cascade} was canceled"),
                    };
                    self.cancels.push(((cascade.0, task, attempt), by));
                }
                Action::WakeAt { at } => self.wake = Some(at),
                Action::Finished { cascade } => self.finished.push(cascade),
            }
        }
    }

    /// Applies the ends of runs. Starts the runs that must exist but are missing.
    fn apply_run_ends(&mut self, runs: &[CascadeRunRow]) {
        let existing: BTreeSet<(u64, &str, u32)> = runs
            .iter()
            .map(|run| (run.cascade, run.task.as_str(), run.attempt))
            .collect();
        for start in self.cascades.running(&self.settings) {
            if !existing.contains(&(start.cascade.0, start.task.as_str(), start.attempt)) {
                tracing::error!(
                    cascade = start.cascade.0,
                    task = start.task,
                    attempt = start.attempt,
                    "starting a missing run of a cascade"
                );
                self.starts.push_back(start);
            }
        }
        for run in runs {
            let Some(end) = run_end(run) else { continue };
            let event = Event::Ended {
                cascade: CascadeId(run.cascade),
                task: run.task.clone(),
                attempt: run.attempt,
                end,
            };
            // Ends of runs are never refused.
            if let Ok(actions) = self.cascades.step(event, &self.settings, self.now) {
                self.queue_actions(actions);
            }
            self.seen.push((run.cascade, run.task.clone(), run.attempt));
        }
    }

    /// Removes the cascades that have been finished for longer than [`RETRY_PERIOD`].
    fn prune(&mut self) {
        let before = self
            .now
            .saturating_sub(RETRY_PERIOD)
            .unwrap_or(Timestamp::MIN);
        self.archived = self
            .cascades
            .prune_where(|cascade| matches!(cascade.phase, Phase::Finished { at } if at < before));
    }

    /// Prepares the runs to start. A task that cannot run fails, which may let other tasks start.
    async fn start_runs(&mut self, app: &App) -> Result<Vec<NewCascadeRun>, StoreError> {
        let mut runs = Vec::new();
        if self.starts.is_empty() {
            return Ok(runs);
        }
        let tasks = app.tasks.current(&app.store).await?;
        let unpromoted = app.store.unpromoted_images().await?;
        let unpromoted: HashMap<(&str, &Digest), u64> = unpromoted
            .iter()
            .map(|(name, digest, of, _)| ((name.as_str(), digest), *of))
            .collect();
        while let Some(start) = self.starts.pop_front() {
            let moved = self.moved_bases(&start);
            let reason = start_reason(start.cascade, &moved);
            // An image built on staged images must not be visible before them.
            let on_staged = start.pins.iter().any(|(image, digest)| {
                let name = image.to_string();
                let of = unpromoted.get(&(name.as_str(), digest));
                of.is_some_and(|of| *of != start.cascade.0)
            });
            let push_by_digest = self.decide_staging(start.cascade, on_staged);
            match starts::create_run(app, &tasks, &start, reason, push_by_digest).await? {
                Ok(run) => runs.push(NewCascadeRun {
                    cascade: start.cascade.0,
                    task: start.task,
                    attempt: start.attempt,
                    push_by_digest,
                    moved,
                    run,
                }),
                Err(reason) => {
                    let event = Event::Ended {
                        cascade: start.cascade,
                        task: start.task,
                        attempt: start.attempt,
                        end: End::Failed { reason },
                    };
                    // A retry would fail again.
                    let once = Settings {
                        retries: 0,
                        ..self.settings.clone()
                    };
                    if let Ok(actions) = self.cascades.step(event, &once, self.now) {
                        self.queue_actions(actions);
                    }
                }
            }
        }
        Ok(runs)
    }

    /// Returns the bases that make a start necessary.
    fn moved_bases(&self, start: &Start) -> Vec<DigestChange> {
        let node = self
            .cascades
            .get(start.cascade)
            .and_then(|cascade| cascade.nodes.get(&start.task));
        let bases = node.into_iter().flat_map(|node| &node.bases);
        bases
            .filter(|base| base.counted)
            .filter_map(|base| {
                let pin = start.pins.get(&base.image)?;
                (*pin != base.used).then(|| DigestChange {
                    reference: base.image.to_string(),
                    from: base.used.clone(),
                    to: pin.clone(),
                })
            })
            .collect()
    }

    /// Returns `true` if a cascade pushes by digest from now on.
    ///
    /// The first run of a cascade decides this. A later run changes it if it depends on staged
    /// images of another cascade.
    fn decide_staging(&mut self, id: CascadeId, on_staged: bool) -> bool {
        let push_by_digest = on_staged
            || self.stages.get(&id).copied().unwrap_or_else(|| {
                let cascade = self.cascades.get(id);
                cascade.is_some_and(|cascade| self.must_stage(cascade))
            });
        self.stages.insert(id, push_by_digest);
        push_by_digest
    }

    /// Returns `true` if the cascade contains a task to stage, or waits for a task of a staging
    /// cascade.
    fn must_stage(&self, cascade: &Cascade) -> bool {
        cascade.nodes.iter().any(|(task, node)| {
            let built = !matches!(
                node.state,
                NodeState::Skipped {
                    cause: SkipCause::Fresh | SkipCause::Moved { .. }
                }
            );
            let chosen = self
                .staging_prefix
                .as_ref()
                .is_some_and(|prefix| task.starts_with(prefix));
            let on_staged = node.bases.iter().any(|base| {
                matches!(&base.pin, NodePin::Output { cascade: other, .. }
                    if *other != cascade.id && self.stages.get(other) == Some(&true))
            });
            built && (chosen || on_staged)
        })
    }
}

/// Returns the reason of a run as a sentence.
fn start_reason(cascade: CascadeId, moved: &[DigestChange]) -> String {
    let names: Vec<&str> = moved.iter().map(|base| base.reference.as_str()).collect();
    match names.as_slice() {
        [] => format!("cascade {cascade}"),
        [one] => format!("cascade {cascade}: {one} has a new digest"),
        many => format!("cascade {cascade}: {} have new digests", many.join(", ")),
    }
}

/// Treats superseded runs as running until their successor finishes, because that run may build the
/// task.
///
/// Canceled cascades do not wait for successors.
async fn wait_for_successors(
    app: &App,
    loaded: &Loaded,
    runs: &mut [CascadeRunRow],
) -> Result<(), StoreError> {
    for run in runs {
        let cascade = loaded.cascades.get(CascadeId(run.cascade));
        let waits = cascade.is_some_and(|cascade| matches!(cascade.phase, Phase::Active));
        if run.state == Some(RunState::Canceled)
            && waits
            && let Some(by) = &run.superseded_by
            && is_under_way(app, by.clone()).await?
        {
            run.state = Some(RunState::Running);
        }
    }
    Ok(())
}

/// Returns `true` if a run or its last successor is in progress.
///
/// Runs that need an approval do not count, because it may be pending for days.
async fn is_under_way(app: &App, mut id: RunId) -> Result<bool, StoreError> {
    for _ in 0..MAX_SUCCESSORS {
        let run = match app.store.run(&id).await {
            Ok(run) => run,
            Err(StoreError::NotFound { .. }) => return Ok(false),
            Err(error) => return Err(error),
        };
        if !run.state.is_final() {
            return Ok(run.approval != Some(Approval::Pending));
        }
        match run.superseded_by {
            Some(by) if run.state == RunState::Canceled => id = by,
            _ => return Ok(false),
        }
    }
    Ok(false)
}

/// Returns the result of a run; `None` if it is in progress.
fn run_end(run: &CascadeRunRow) -> Option<End> {
    let Some(state) = run.state else {
        return Some(End::Failed {
            reason: format!("its run {} no longer exists", run.run),
        });
    };
    if !state.is_final() {
        return None;
    }
    let reason = run
        .reason
        .clone()
        .unwrap_or_else(|| format!("its run ended: {state}"));
    Some(match state {
        RunState::Succeeded => End::Succeeded {
            digests: pushed_digests(run),
        },
        RunState::Canceled if run.superseded_by.is_some() => End::Superseded,
        RunState::Canceled => End::Canceled {
            by: reason
                .strip_prefix(CANCELED_PREFIX)
                .unwrap_or(&reason)
                .to_owned(),
        },
        _ => End::Failed { reason },
    })
}

fn pushed_digests(run: &CascadeRunRow) -> BTreeMap<ImageRef, Digest> {
    let images = run.result.iter().flat_map(|result| &result.images);
    images
        .filter_map(|image| {
            let name = image.name.parse::<ImageRef>().ok()?;
            Some((name.or_latest(), image.digest.clone()))
        })
        .collect()
}
