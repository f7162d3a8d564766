//! One change of the state: it is taken from memory, told what happened, and written with all that follows from that.
//!
//! Invariants: ends are taken before facts are read, so that a run that ended well is in them; a change is written whole
//! or not at all; what is in memory afterwards is what the database has.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::Instant,
};

use acrtask_api::{cascade::MovedBase, run::Approval};
use acrtask_cascade::{
    Cascades,
    cascade::{
        Action, Cascade, CascadeId, End, Event, NodePin, NodeState, Phase, Settings,
        SkippedBecause, Start, StepError,
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

/// A cascade that is over can go on for so long when somebody retries it.
const KEPT: SignedDuration = SignedDuration::from_hours(24);
/// Runs that took each other's place are followed so far.
const FOLLOWED: usize = 64;
/// How the reason of a run begins that somebody has canceled without one.
const CANCELED: &str = "canceled by ";

/// What one look came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Looked {
    /// When the clock has something to do.
    pub(super) wake: Option<Timestamp>,
    /// Ends of runs were taken.
    pub(super) ends: bool,
    /// Runs are under way.
    pub(super) running: bool,
    /// Something was written.
    pub(super) changed: bool,
}

/// The state, as far as it is in memory.
#[derive(Debug, Default)]
pub(super) struct Kept(Option<Loaded>);

impl Kept {
    /// The state as it is now.
    pub(super) async fn current(&mut self, app: &App) -> Result<&mut Loaded, StoreError> {
        let version = app.store.cascade_version().await?;
        if self.0.as_ref().is_none_or(|kept| kept.version != version) {
            self.0 = None;
            self.0 = Some(Loaded::new(app.store.load_cascades().await?)?);
        }
        self.0.as_mut().ok_or_else(|| StoreError::Invalid {
            what: "the state of cascades is not there".into(),
        })
    }

    fn forget(&mut self) {
        self.0 = None;
    }
}

/// Takes ends of runs and lets the clock go on; `facts`: and compares everything with what is known now.
pub(super) async fn look(app: &App, kept: &mut Kept, facts: bool) -> Result<Looked, StoreError> {
    loop {
        let loaded = kept.current(app).await?;
        let now = app.clock.now();
        let mut runs = app.store.open_cascade_runs().await?;
        wait_for_successors(app, loaded, &mut runs).await?;
        if !facts && nothing_to_do(loaded, &runs, now) {
            return Ok(Looked {
                wake: loaded.looked.flatten(),
                running: !runs.is_empty(),
                ..Looked::default()
            });
        }
        let mut work = Work::new(loaded, now);
        work.take_runs(&runs);
        work.step(Event::Tick)?;
        if facts {
            let graph = facts::read(app).await?;
            let begun = Instant::now();
            let done = work.cascades.reconcile(&graph, &work.settings, now);
            app.metrics
                .reconcile_seconds
                .observe(begun.elapsed().as_secs_f64());
            for id in &done.created {
                tracing::info!(cascade = id.0, "a cascade began");
            }
            for refused in &done.refused {
                tracing::debug!(%refused, "a stale task is not built");
            }
            work.take(done.actions);
            work.prune();
        }
        let ends = !work.seen.is_empty();
        if let Some(mut looked) = finish(app, kept, work, None).await? {
            looked.ends = ends;
            return Ok(looked);
        }
    }
}

/// Tells the state what somebody wants.
pub(super) async fn tell(
    app: &App,
    kept: &mut Kept,
    events: &[Event],
) -> Result<Result<(), StepError>, StoreError> {
    loop {
        let loaded = kept.current(app).await?;
        let mut work = Work::new(loaded, app.clock.now());
        for event in events {
            let actions = match work.cascades.step(event.clone(), &work.settings, work.now) {
                Ok(actions) => actions,
                Err(error) => return Ok(Err(error)),
            };
            work.take(actions);
        }
        if finish(app, kept, work, None).await?.is_some() {
            return Ok(Ok(()));
        }
    }
}

/// Stores other settings.
pub(super) async fn set(app: &App, kept: &mut Kept, settings: &str) -> Result<(), StoreError> {
    loop {
        let loaded = kept.current(app).await?;
        let work = Work::new(loaded, app.clock.now());
        if finish(app, kept, work, Some(settings.to_owned()))
            .await?
            .is_some()
        {
            kept.forget();
            return Ok(());
        }
    }
}

fn nothing_to_do(loaded: &Loaded, runs: &[CascadeRunRow], now: Timestamp) -> bool {
    let ended = |run: &CascadeRunRow| run.state.is_none_or(RunState::is_final);
    // Where nobody has looked at this version yet, the clock may have something to do.
    let waits = loaded
        .looked
        .is_some_and(|wake| wake.is_none_or(|at| at > now));
    waits && !runs.iter().any(ended)
}

/// Writes a change down. Nothing: another server was quicker, and all has to be done anew.
async fn finish(
    app: &App,
    kept: &mut Kept,
    mut work: Work,
    settings: Option<String>,
) -> Result<Option<Looked>, StoreError> {
    let runs = work.start_runs(app).await?;
    let Some(before) = &mut kept.0 else {
        return Ok(None);
    };
    let mut change = state::difference(before, &work.cascades, &work.holds, &work.gone)?;
    change.settings = settings;
    change.runs = runs;
    change.cancels = std::mem::take(&mut work.cancels);
    change.seen = std::mem::take(&mut work.seen);
    let mut looked = Looked {
        wake: work.wake,
        ends: false,
        running: !work.cascades.running(&work.settings).is_empty(),
        changed: !state::is_empty(&change, before),
    };
    if !looked.changed {
        before.looked = Some(work.wake);
        return Ok(Some(looked));
    }
    // Until it is known whether it was written, nothing is.
    let version = before.version;
    let settings = before.settings.clone();
    kept.forget();
    let now = app.clock.now_ms();
    if !app.store.change_cascades(version, &change, now).await? {
        app.metrics.cascade_conflicts.inc();
        return Ok(None);
    }
    kept.0 = Some(Loaded {
        version: version + 1,
        settings,
        cascades: work.cascades,
        holds: work.holds,
        looked: Some(work.wake),
    });
    for id in &work.finished {
        tracing::info!(cascade = id.0, "a cascade is over");
    }
    for start in &change.runs {
        tracing::info!(
            cascade = start.cascade,
            task = start.task,
            attempt = start.attempt,
            run = %start.run.id,
            "a cascade started a run"
        );
    }
    looked.running |= !change.runs.is_empty();
    if !change.runs.is_empty() || !change.cancels.is_empty() {
        app.wake.notify_one();
        app.cancels.notify_one();
        if let Err(error) = app.store.hint(&[Hint::Enqueued]).await {
            tracing::debug!(%error, "a hint could not be sent");
        }
    }
    Ok(Some(looked))
}

/// A state that changes, and what is to be done because of that.
struct Work {
    now: Timestamp,
    settings: Settings,
    /// A cascade with a task whose name begins so pushes without tags.
    holding: Option<String>,
    cascades: Cascades,
    holds: BTreeMap<CascadeId, bool>,
    starts: VecDeque<Start>,
    cancels: Vec<(CascadeRunKey, String)>,
    seen: Vec<CascadeRunKey>,
    finished: Vec<CascadeId>,
    gone: Vec<Cascade>,
    wake: Option<Timestamp>,
}

impl Work {
    fn new(loaded: &Loaded, now: Timestamp) -> Self {
        Self {
            now,
            settings: settings::at(&loaded.settings, now),
            holding: loaded
                .settings
                .promotion
                .as_ref()
                .map(|promotion| promotion.tasks.clone()),
            cascades: loaded.cascades.clone(),
            holds: loaded.holds.clone(),
            starts: VecDeque::new(),
            cancels: Vec::new(),
            seen: Vec::new(),
            finished: Vec::new(),
            gone: Vec::new(),
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
        self.take(actions);
        Ok(())
    }

    /// What is to be done. Each says anew when the clock has something to do.
    fn take(&mut self, actions: Vec<Action>) {
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

    /// Takes the ends of runs, and starts what has to be running and is not there.
    fn take_runs(&mut self, runs: &[CascadeRunRow]) {
        let there: BTreeSet<(u64, &str, u32)> = runs
            .iter()
            .map(|run| (run.cascade, run.task.as_str(), run.attempt))
            .collect();
        for start in self.cascades.running(&self.settings) {
            if !there.contains(&(start.cascade.0, start.task.as_str(), start.attempt)) {
                tracing::error!(
                    cascade = start.cascade.0,
                    task = start.task,
                    attempt = start.attempt,
                    "a run of a cascade was missing and is started"
                );
                self.starts.push_back(start);
            }
        }
        for run in runs {
            let Some(end) = end(run) else { continue };
            let event = Event::Ended {
                cascade: CascadeId(run.cascade),
                task: run.task.clone(),
                attempt: run.attempt,
                end,
            };
            // Of an end nothing is refused.
            if let Ok(actions) = self.cascades.step(event, &self.settings, self.now) {
                self.take(actions);
            }
            self.seen.push((run.cascade, run.task.clone(), run.attempt));
        }
    }

    /// Lets go of what has been over for long.
    fn prune(&mut self) {
        let before = self.now.saturating_sub(KEPT).unwrap_or(Timestamp::MIN);
        self.gone = self
            .cascades
            .prune_where(|cascade| matches!(cascade.phase, Phase::Over { at } if at < before));
    }

    /// The runs that start. A task that cannot be run has failed, which may let others start.
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
            let moved = self.moved(&start);
            let reason = reason(start.cascade, &moved);
            // What stands on images that are held back must not be seen before these are.
            let on_held = start.pins.iter().any(|(image, digest)| {
                let name = image.to_string();
                let of = unpromoted.get(&(name.as_str(), digest));
                of.is_some_and(|of| *of != start.cascade.0)
            });
            let held = self.holds(start.cascade, on_held);
            match starts::draft(app, &tasks, &start, reason, held).await? {
                Ok(run) => runs.push(NewCascadeRun {
                    cascade: start.cascade.0,
                    task: start.task,
                    attempt: start.attempt,
                    held,
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
                    // It would be the same a moment later.
                    let once = Settings {
                        retries: 0,
                        ..self.settings.clone()
                    };
                    if let Ok(actions) = self.cascades.step(event, &once, self.now) {
                        self.take(actions);
                    }
                }
            }
        }
        Ok(runs)
    }

    /// The bases that make a start necessary.
    fn moved(&self, start: &Start) -> Vec<MovedBase> {
        let node = self
            .cascades
            .get(start.cascade)
            .and_then(|cascade| cascade.nodes.get(&start.task));
        let bases = node.into_iter().flat_map(|node| &node.bases);
        bases
            .filter(|base| base.counted)
            .filter_map(|base| {
                let pin = start.pins.get(&base.image)?;
                (*pin != base.used).then(|| MovedBase {
                    name: base.image.to_string(),
                    from: base.used.clone(),
                    to: pin.clone(),
                })
            })
            .collect()
    }

    /// Whether a cascade pushes without tags from now on. It is decided with its first run, and once more for each that stands
    /// on what another cascade holds back.
    fn holds(&mut self, id: CascadeId, on_held: bool) -> bool {
        let held = on_held
            || self.holds.get(&id).copied().unwrap_or_else(|| {
                let cascade = self.cascades.get(id);
                cascade.is_some_and(|cascade| self.is_to_hold(cascade))
            });
        self.holds.insert(id, held);
        held
    }

    /// Whether a cascade has a task whose pushes are to be held back, or that waits for one of a cascade that does so.
    fn is_to_hold(&self, cascade: &Cascade) -> bool {
        cascade.nodes.iter().any(|(task, node)| {
            let built = !matches!(
                node.state,
                NodeState::Skipped {
                    because: SkippedBecause::Fresh | SkippedBecause::Moved { .. }
                }
            );
            let chosen = self
                .holding
                .as_ref()
                .is_some_and(|prefix| task.starts_with(prefix));
            let on_held = node.bases.iter().any(|base| {
                matches!(&base.pin, NodePin::Output { cascade: other, .. }
                    if *other != cascade.id && self.holds.get(other) == Some(&true))
            });
            built && (chosen || on_held)
        })
    }
}

/// Why a run starts, as a sentence.
fn reason(cascade: CascadeId, moved: &[MovedBase]) -> String {
    let names: Vec<&str> = moved.iter().map(|base| base.name.as_str()).collect();
    match names.as_slice() {
        [] => format!("cascade {cascade}"),
        [one] => format!("cascade {cascade}: {one} has a new digest"),
        many => format!("cascade {cascade}: {} have new digests", many.join(", ")),
    }
}

/// A run that a newer one of its group has ended counts as under way until that one is over: it may build the task. Nobody
/// waits for that in a cascade that was canceled.
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

/// Whether a run, or the last one of those that took its place, is not over. One that nobody may have approved for days is
/// not waited for.
async fn is_under_way(app: &App, mut id: RunId) -> Result<bool, StoreError> {
    for _ in 0..FOLLOWED {
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

/// How a run has ended; nothing: it has not.
fn end(run: &CascadeRunRow) -> Option<End> {
    let Some(state) = run.state else {
        return Some(End::Failed {
            reason: format!("its run {} is gone", run.run),
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
            digests: pushed(run),
        },
        RunState::Canceled if run.superseded_by.is_some() => End::Superseded,
        RunState::Canceled => End::Canceled {
            by: reason.strip_prefix(CANCELED).unwrap_or(&reason).to_owned(),
        },
        _ => End::Failed { reason },
    })
}

fn pushed(run: &CascadeRunRow) -> BTreeMap<ImageRef, Digest> {
    let images = run.result.iter().flat_map(|result| &result.images);
    images
        .filter_map(|image| {
            let name = image.name.parse::<ImageRef>().ok()?;
            Some((name.or_latest(), image.digest.clone()))
        })
        .collect()
}
