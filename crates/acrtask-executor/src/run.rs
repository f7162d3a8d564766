//! The driver: feeds the graph with what happens, does what it says, and cleans up.

use std::{collections::HashMap, sync::Arc, time::Duration};

use acrtask_model::{
    Event, EventKind, Outcome, RunState, SkipReason, StepId, StepState, events::StepSummary,
    mask::Patterns,
};
use acrtask_registry::Credentials;
use acrtask_spec::plan::{Network, Plan, Step, StepKind};
use tokio::{
    sync::{Notify, mpsc},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::{
    Base, BuiltImage, Executor, PushedImage, Report, RunRequest,
    context::{KEPT, Parts, RunContext, StepContext, patterns, remove_all},
    engine::Labels,
    error::chain,
    graph::{Action, End, Graph, Input, Node},
    output::{Events, StepOutput},
    policy::reach::only_unreachable,
    scope::RunScope,
    steps::{self, Trace},
    workspace::Workspace,
};

/// Events that may wait between the run and its receiver.
const EVENTS: usize = 32;

/// Carries a run out; see [`Executor::run`].
pub(crate) async fn run(
    executor: &Executor,
    request: RunRequest,
    receiver: mpsc::Sender<Event>,
    cancel: CancellationToken,
) -> Report {
    let (sender, taken) = mpsc::channel(EVENTS);
    let recording = tokio::spawn(record(taken, receiver));
    let events = Events::new(
        request.id.clone(),
        sender,
        patterns(&request.plan, &request.domain),
    );
    let (outcome, steps, left) = drive(executor, request, &events, cancel).await;
    drop(events);
    let mut report = recording.await.unwrap_or_default();
    report.outcome = outcome;
    report.steps = steps;
    report.left = left;
    report
}

impl Default for Report {
    fn default() -> Self {
        Self {
            outcome: Outcome {
                state: RunState::Error,
                reason: None,
            },
            steps: Vec::new(),
            built: Vec::new(),
            pushed: Vec::new(),
            bases: Vec::new(),
            left: Vec::new(),
        }
    }
}

/// Passes events on, and keeps what the report says of them.
async fn record(mut taken: mpsc::Receiver<Event>, receiver: mpsc::Sender<Event>) -> Report {
    let mut report = Report::default();
    while let Some(event) = taken.recv().await {
        match &event.kind {
            EventKind::ImageBuilt {
                step,
                names,
                digest,
            } => report.built.push(BuiltImage {
                step: step.clone(),
                names: names.clone(),
                digest: digest.clone(),
            }),
            EventKind::ImagePushed {
                step,
                name,
                digest,
                held,
                ..
            } => report.pushed.push(PushedImage {
                step: step.clone(),
                name: name.clone(),
                digest: digest.clone(),
                held: *held,
            }),
            EventKind::BaseUsed {
                step,
                role,
                name,
                digest,
                evidence,
                ..
            } => report.bases.push(Base {
                step: step.clone(),
                role: *role,
                name: name.clone(),
                digest: digest.clone(),
                evidence: *evidence,
            }),
            _ => {}
        }
        // Nobody may be listening; the report is kept all the same.
        let _ = receiver.send(event).await;
    }
    report
}

/// Removes what a run made when its future is dropped before its end.
struct Guard {
    run: Option<Arc<RunContext>>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(run) = self.run.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let (engine, labels) = (run.engine.clone(), run.labels.clone());
            let image = run.workspace.keeper_image_if_made();
            run.background.close();
            runtime.spawn(async move {
                // Volumes and networks that are being made now are removed, too.
                run.background.wait().await;
                remove_all(&engine, &labels, image).await;
                run.image_names.remove(&run.engine).await;
            });
        }
    }
}

type Steps = Vec<(StepId, StepState, Duration)>;

async fn drive(
    executor: &Executor,
    request: RunRequest,
    events: &Events,
    cancel: CancellationToken,
) -> (Outcome, Steps, Vec<String>) {
    let began = Instant::now();
    let patterns = patterns(&request.plan, &request.domain);
    events
        .send(EventKind::RunStarted {
            steps: request
                .plan
                .steps
                .iter()
                .map(|step| summary(step, &patterns))
                .collect(),
            engine: executor.engine.describe(),
            builder: executor.builder.describe(),
        })
        .await;
    let limit = match (executor.options.timeout, request.plan.timeout) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
    let mut ended = None;
    let (outcome, steps, left) = match context(executor, request, events.clone()) {
        Ok(run) => {
            if let Some(reason) = refuse(&run).await {
                let outcome = Outcome {
                    state: RunState::Failed,
                    reason: Some(reason),
                };
                return finish(events, began, outcome, Vec::new(), Vec::new()).await;
            }
            let mut guard = Guard {
                run: Some(Arc::clone(&run)),
            };
            let (mut outcome, steps) = carry_out(&run, limit, cancel).await;
            if run.options.own_machine && outcome.state == RunState::Succeeded {
                run.publish_names().await;
            }
            if outcome.state == RunState::Failed
                && only_unreachable(steps.iter().map(|(_, state, _)| state))
            {
                outcome.state = RunState::Error;
            }
            let left = run.clean_up().await;
            guard.run = None;
            retry_removal(&run, &left);
            ended = Some(run);
            (outcome, steps, left)
        }
        Err(reason) => {
            let outcome = Outcome {
                state: RunState::Error,
                reason: Some(reason),
            };
            (outcome, Vec::new(), Vec::new())
        }
    };
    let finished = finish(events, began, outcome, steps, left).await;
    if let Some(run) = ended {
        // The result is reported by now.
        executor
            .removals
            .spawn(async move { run.image_names.remove(&run.engine).await });
    }
    finished
}

/// Waits between attempts at removing what the engine still held when a run ended, in seconds.
const REMOVAL_DELAYS: [u64; 8] = [2, 5, 15, 60, 300, 900, 1800, 3600];

/// Goes on removing what could not be removed at the end of a run, for as long as this process lives. What is left
/// then is removed by the next start. A container that the task keeps also keeps its volumes.
fn retry_removal(run: &RunContext, left: &[String]) {
    if left.is_empty() || left.iter().any(|thing| thing.ends_with(KEPT)) {
        return;
    }
    let (engine, labels) = (run.engine.clone(), run.labels.clone());
    let image = run.workspace.keeper_image_if_made();
    tokio::spawn(async move {
        for delay in REMOVAL_DELAYS {
            tokio::time::sleep(Duration::from_secs(delay)).await;
            let left = remove_all(&engine, &labels, image.clone()).await;
            if left.is_empty() {
                return;
            }
            tracing::warn!(run = %labels.scope, ?left, "could not remove what a run left on the engine");
        }
    });
}

async fn finish(
    events: &Events,
    began: Instant,
    outcome: Outcome,
    steps: Steps,
    left: Vec<String>,
) -> (Outcome, Steps, Vec<String>) {
    events
        .send(EventKind::RunFinished {
            outcome: outcome.clone(),
            elapsed_ms: millis(began.elapsed()),
            left: left.clone(),
        })
        .await;
    (outcome, steps, left)
}

/// Returns why the run is refused before anything starts: the first thing that the operator does not allow or that
/// the builder cannot do.
async fn refuse(run: &RunContext) -> Option<String> {
    let mut first = None;
    if !run.options.allow.host_network {
        let refused = run.plan.networks.iter().find_map(Network::needs_operator);
        if let Some(refused) = refused {
            return Some(format!("{refused}; {}", Network::OPERATOR_HELP));
        }
    }
    for step in &run.plan.steps {
        let StepKind::Build(build) = &step.kind else {
            continue;
        };
        for lacking in build.line.iter().flat_map(|line| run.builder.lacks(line)) {
            run.events.warn(Some(&step.id), lacking.clone(), None).await;
            first.get_or_insert(format!("step {} cannot be built: {lacking}", step.id));
        }
    }
    first
}

fn context(
    executor: &Executor,
    request: RunRequest,
    events: Events,
) -> Result<Arc<RunContext>, String> {
    let own = request.credentials.as_ref();
    let credentials = with_declared(own.unwrap_or(&executor.options.credentials), &request.plan);
    let registry = executor
        .options
        .registry(&credentials)
        .map_err(|error| chain(&error))?;
    let scope = RunScope::new(request.id.clone(), request.attempt);
    let labels = Labels::new(scope.clone(), executor.owner.clone());
    let workspace = Arc::new(Workspace::new(
        executor.engine.clone(),
        labels.clone(),
        scope,
        executor.owner.clone(),
        executor.options.scratch_root.clone(),
        request.context,
    ));
    let parts = Parts {
        id: request.id,
        options: Arc::clone(&executor.options),
        credentials,
        engine: executor.engine.clone(),
        builder: executor.builder.clone(),
        registry,
        proofs: Arc::clone(&executor.proofs),
        patterns: patterns(&request.plan, &request.domain),
        domain: request.domain,
        labels,
        events,
        workspace,
        stdin: request.stdin,
        no_push: request.no_push || executor.options.no_push,
        hold: request.hold,
        git: request.git,
        reach: request.reach,
        fence: request.fence,
    };
    Ok(Arc::new(RunContext::new(parts, request.plan)))
}

/// The operator's credentials with those that the task file declares for itself.
fn with_declared(credentials: &Credentials, plan: &Plan) -> Credentials {
    plan.credentials
        .iter()
        .fold(credentials.clone(), |all, one| {
            all.with(&one.registry, one.username.expose(), one.password.clone())
        })
}

fn summary(step: &Step, patterns: &Patterns) -> StepSummary {
    let (kind, line) = match &step.kind {
        StepKind::Build(step) => ("build", step.raw.clone()),
        StepKind::Cmd(step) => ("cmd", step.raw.clone()),
        StepKind::Push(step) => ("push", step.raw.join(" ")),
    };
    StepSummary {
        id: step.id.clone(),
        r#type: kind.into(),
        line: patterns.mask(&line),
        after: step.after.clone(),
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A step that has been started.
struct Running {
    context: StepContext,
    began: Instant,
}

/// What the tasks of steps tell the driver.
enum Told {
    Up(StepId),
    Ended(StepId, End, Trace),
}

struct Driver {
    run: Arc<RunContext>,
    graph: Graph,
    steps: HashMap<StepId, Arc<Step>>,
    running: HashMap<StepId, Running>,
    tasks: JoinSet<()>,
    told: mpsc::UnboundedSender<Told>,
    settled: HashMap<StepId, (StepState, Duration)>,
    traces: HashMap<StepId, Trace>,
    /// Whether the removal of what the run made has begun.
    cleaning: bool,
}

async fn carry_out(
    run: &Arc<RunContext>,
    limit: Option<Duration>,
    cancel: CancellationToken,
) -> (Outcome, Steps) {
    let (told, mut tellings) = mpsc::unbounded_channel();
    let nodes = run.plan.steps.iter().map(|step| Node {
        id: step.id.clone(),
        after: step.after.clone(),
        detach: step.container.detach,
        ignore_errors: step.ignore_errors,
    });
    let steps = run.plan.steps.iter();
    let mut driver = Driver {
        graph: Graph::new(nodes.collect()),
        steps: steps
            .map(|step| (step.id.clone(), Arc::new(step.clone())))
            .collect(),
        run: Arc::clone(run),
        running: HashMap::new(),
        tasks: JoinSet::new(),
        told,
        settled: HashMap::new(),
        traces: HashMap::new(),
        cleaning: false,
    };
    prepare(run);
    let mut over = std::pin::pin!(async {
        match limit {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    });
    let mut input = Input::Begin;
    let outcome = loop {
        if let Some(outcome) = driver.on(input).await {
            break outcome;
        }
        let halted = driver.graph.halted().is_some();
        input = tokio::select! {
            telling = tellings.recv() => match telling {
                Some(Told::Up(id)) => Input::Up(id),
                Some(Told::Ended(id, end, trace)) => {
                    driver.traces.insert(id.clone(), trace);
                    Input::Ended(id, end)
                }
                // The driver holds a sender itself.
                None => unreachable!("the channel is open"),
            },
            () = cancel.cancelled(), if !halted => Input::Stop(SkipReason::Interrupted),
            () = &mut over, if !halted => Input::Stop(SkipReason::RunTimedOut),
            Some(Err(panic)) = driver.tasks.join_next(), if !driver.tasks.is_empty() => {
                std::panic::resume_unwind(panic.into_panic())
            }
        };
    };
    let steps = run.plan.steps.iter().map(|step| {
        let settled = driver.settled.remove(&step.id);
        let (state, time) = settled.unwrap_or((StepState::Pending, Duration::ZERO));
        (step.id.clone(), state, time)
    });
    (outcome, steps.collect())
}

/// Begins what steps will need, beside the first of them: a network takes as long as a cached build.
fn prepare(run: &Arc<RunContext>) {
    let is_cmd = |step: &Step| matches!(step.kind, StepKind::Cmd(_));
    if run.plan.steps.iter().any(is_cmd) {
        let run = Arc::clone(run);
        let tracker = run.background.clone();
        tracker.spawn(async move {
            // The step that needs them reports the error.
            let _ = run.workspace.ensure_volumes().await;
        });
    }
    let needs_network = run.plan.steps.iter().find_map(|step| match &step.kind {
        StepKind::Cmd(_) => step.network.clone(),
        _ => None,
    });
    if let Some(name) = needs_network {
        let run = Arc::clone(run);
        let tracker = run.background.clone();
        tracker.spawn(async move {
            // The step that needs it says what is wrong.
            let _ = run.ensure_network(&name).await;
        });
    }
}

impl Driver {
    async fn on(&mut self, input: Input) -> Option<Outcome> {
        for action in self.graph.on(input) {
            match action {
                Action::Start(id) => self.start(&id),
                Action::Stop(id) => {
                    if let Some(running) = self.running.get(&id) {
                        running.context.cancel.cancel();
                    }
                }
                Action::Settle(id, state) => self.settle(id, state).await,
                Action::Finish(outcome) => return Some(outcome),
            }
        }
        None
    }

    fn start(&mut self, id: &StepId) {
        let step = Arc::clone(&self.steps[id]);
        let run = Arc::clone(&self.run);
        let output = StepOutput::new(
            id.clone(),
            run.events.clone(),
            run.patterns.clone(),
            &step.retry_on_errors,
        );
        let context = StepContext {
            run,
            step,
            output,
            cancel: CancellationToken::new(),
            up: Arc::new(Notify::new()),
        };
        let running = Running {
            context: context.clone(),
            began: Instant::now(),
        };
        self.running.insert(id.clone(), running);
        let told = self.told.clone();
        let span = tracing::info_span!("step", run = %context.run.id, step = %id);
        let work = async move {
            let id = context.step.id.clone();
            let mut work = std::pin::pin!(steps::run(&context));
            // The driver listens for as long as a step runs.
            if context.step.container.detach {
                tokio::select! {
                    (end, trace) = &mut work => {
                        let _ = told.send(Told::Ended(id, end, trace));
                        return;
                    }
                    () = context.up.notified() => {
                        let _ = told.send(Told::Up(id.clone()));
                    }
                }
            }
            let (end, trace) = work.await;
            let _ = told.send(Told::Ended(id, end, trace));
        };
        self.tasks.spawn(work.instrument(span));
    }

    /// Removes containers, networks and volumes beside the last pushes, which need none of them.
    fn clean_up_early(&mut self) {
        let is_push = |step: &Arc<Step>| matches!(step.kind, StepKind::Push(_));
        let only_pushes = self
            .steps
            .iter()
            .all(|(id, step)| is_push(step) || self.settled.contains_key(id));
        if only_pushes && !std::mem::replace(&mut self.cleaning, true) {
            let run = Arc::clone(&self.run);
            tokio::spawn(async move { run.clean_up().await });
        }
    }

    async fn settle(&mut self, id: StepId, state: StepState) {
        let trace = self.traces.remove(&id).unwrap_or_default();
        let (elapsed, tail) = match self.running.remove(&id) {
            Some(running) => {
                let failed = matches!(state, StepState::Failed { .. } | StepState::TimedOut { .. });
                let tail = if failed {
                    running.context.output.tail()
                } else {
                    Vec::new()
                };
                (running.began.elapsed(), tail)
            }
            None => (Duration::ZERO, Vec::new()),
        };
        self.run
            .events
            .send(EventKind::StepFinished {
                step: id.clone(),
                state: state.clone(),
                elapsed_ms: millis(elapsed),
                log_tail: tail,
                excerpt: trace.excerpt,
            })
            .await;
        self.settled.insert(id, (state, elapsed));
        self.clean_up_early();
    }
}
