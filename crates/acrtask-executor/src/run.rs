//! The driver: passes inputs to the graph, performs its actions, and cleans up.

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
    context::{KEPT, Parts, RunContext, StepContext, remove_all, secret_patterns},
    engine::Labels,
    error::error_chain,
    graph::{Action, End, Graph, Input, Node},
    output::{Events, StepOutput},
    policy::reach::only_unreachable,
    scope::RunScope,
    steps::{self, Trace},
    workspace::Workspace,
};

/// Capacity of the channel between the run and the receiver of its events.
const EVENT_CAPACITY: usize = 32;

/// Executes a run; see [`Executor::run`].
pub(crate) async fn run(
    executor: &Executor,
    request: RunRequest,
    receiver: mpsc::Sender<Event>,
    cancel: CancellationToken,
) -> Report {
    let (sender, recorded) = mpsc::channel(EVENT_CAPACITY);
    let recording = tokio::spawn(forward_events(recorded, receiver));
    let events = Events::new(
        request.id.clone(),
        sender,
        secret_patterns(&request.plan, &request.domain),
    );
    let (outcome, steps, left) = drive_run(executor, request, &events, cancel).await;
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

/// Forwards events to `receiver` and collects those that the report contains.
async fn forward_events(
    mut recorded: mpsc::Receiver<Event>,
    receiver: mpsc::Sender<Event>,
) -> Report {
    let mut report = Report::default();
    while let Some(event) = recorded.recv().await {
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
                tag_deferred,
                ..
            } => report.pushed.push(PushedImage {
                step: step.clone(),
                name: name.clone(),
                digest: digest.clone(),
                staged: *tag_deferred,
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
        // The receiver may be closed. The report is complete anyway.
        let _ = receiver.send(event).await;
    }
    report
}

/// Removes the objects of a run if its future is dropped early.
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
                // Includes volumes and networks whose creation is still in progress.
                run.background.wait().await;
                remove_all(&engine, &labels, image).await;
                run.image_names.remove(&run.engine).await;
            });
        }
    }
}

type Steps = Vec<(StepId, StepState, Duration)>;

async fn drive_run(
    executor: &Executor,
    request: RunRequest,
    events: &Events,
    cancel: CancellationToken,
) -> (Outcome, Steps, Vec<String>) {
    let began = Instant::now();
    let patterns = secret_patterns(&request.plan, &request.domain);
    events
        .send(EventKind::RunStarted {
            steps: request
                .plan
                .steps
                .iter()
                .map(|step| step_summary(step, &patterns))
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
    let (outcome, steps, left) = match new_run_context(executor, request, events.clone()) {
        Ok(run) => {
            if let Some(reason) = refusal_reason(&run).await {
                let outcome = Outcome {
                    state: RunState::Failed,
                    reason: Some(reason),
                };
                return finish_run(events, began, outcome, Vec::new(), Vec::new()).await;
            }
            let mut guard = Guard {
                run: Some(Arc::clone(&run)),
            };
            let (mut outcome, steps) = execute_steps(&run, limit, cancel).await;
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
    let finished = finish_run(events, began, outcome, steps, left).await;
    if let Some(run) = ended {
        // The result has already been reported.
        let of_networks = Arc::clone(&run);
        executor.networks.spawn(async move {
            let left = of_networks.remove_networks().await;
            retry_removal(&of_networks, &left);
        });
        executor
            .removals
            .spawn(async move { run.image_names.remove(&run.engine).await });
    }
    finished
}

/// Delays before each attempt to remove objects that remained after a run, in seconds.
const REMOVAL_DELAYS: [u64; 8] = [2, 5, 15, 60, 300, 900, 1800, 3600];

/// Retries the removal of objects that remained after a run, until this process ends. The next
/// start removes the rest. A container that the task keeps also keeps its volumes.
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
            tracing::warn!(run = %labels.scope, ?left, "could not remove objects of a run");
        }
    });
}

async fn finish_run(
    events: &Events,
    began: Instant,
    outcome: Outcome,
    steps: Steps,
    left: Vec<String>,
) -> (Outcome, Steps, Vec<String>) {
    events
        .send(EventKind::RunFinished {
            outcome: outcome.clone(),
            elapsed_ms: as_millis(began.elapsed()),
            remaining: left.clone(),
        })
        .await;
    (outcome, steps, left)
}

/// Returns the reason to refuse the run before anything starts. This is the first thing that the
/// operator does not allow or that the builder cannot do.
async fn refusal_reason(run: &RunContext) -> Option<String> {
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
        for lacking in build
            .line
            .iter()
            .flat_map(|line| run.builder.missing_features(line))
        {
            run.events.warn(Some(&step.id), lacking.clone(), None).await;
            first.get_or_insert(format!("step {} cannot be built: {lacking}", step.id));
        }
    }
    first
}

fn new_run_context(
    executor: &Executor,
    request: RunRequest,
    events: Events,
) -> Result<Arc<RunContext>, String> {
    let own = request.credentials.as_ref();
    let credentials =
        add_declared_credentials(own.unwrap_or(&executor.options.credentials), &request.plan);
    let registry = executor
        .options
        .registry(&credentials)
        .map_err(|error| error_chain(&error))?;
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
        patterns: secret_patterns(&request.plan, &request.domain),
        domain: request.domain,
        labels,
        events,
        workspace,
        stdin: request.stdin,
        no_push: request.no_push || executor.options.no_push,
        push_by_digest: request.push_by_digest,
        git: request.git,
        reach: request.reach,
        fence: request.fence,
        records: request.records,
    };
    Ok(Arc::new(RunContext::new(parts, request.plan)))
}

/// Returns the operator's credentials and those that the task file declares.
fn add_declared_credentials(credentials: &Credentials, plan: &Plan) -> Credentials {
    plan.credentials
        .iter()
        .fold(credentials.clone(), |all, one| {
            all.with(&one.registry, one.username.expose(), one.password.clone())
        })
}

fn step_summary(step: &Step, patterns: &Patterns) -> StepSummary {
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

fn as_millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A step that has started.
struct Running {
    context: StepContext,
    began: Instant,
}

/// Messages from the tasks of steps to the driver.
enum StepMessage {
    Up(StepId),
    Ended(StepId, End, Trace),
}

struct Driver {
    run: Arc<RunContext>,
    graph: Graph,
    steps: HashMap<StepId, Arc<Step>>,
    running: HashMap<StepId, Running>,
    tasks: JoinSet<()>,
    messages: mpsc::UnboundedSender<StepMessage>,
    final_states: HashMap<StepId, (StepState, Duration)>,
    traces: HashMap<StepId, Trace>,
    /// Set as soon as the removal of the run's objects has begun.
    cleaning: bool,
}

async fn execute_steps(
    run: &Arc<RunContext>,
    limit: Option<Duration>,
    cancel: CancellationToken,
) -> (Outcome, Steps) {
    let (messages, mut inbox) = mpsc::unbounded_channel();
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
        messages,
        final_states: HashMap::new(),
        traces: HashMap::new(),
        cleaning: false,
    };
    prepare_resources(run);
    let mut deadline = std::pin::pin!(async {
        match limit {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    });
    let mut input = Input::Begin;
    let outcome = loop {
        if let Some(outcome) = driver.apply_input(input).await {
            break outcome;
        }
        let halted = driver.graph.halted().is_some();
        input = tokio::select! {
            message = inbox.recv() => match message {
                Some(StepMessage::Up(id)) => Input::Up(id),
                Some(StepMessage::Ended(id, end, trace)) => {
                    driver.traces.insert(id.clone(), trace);
                    Input::Ended(id, end)
                }
                // The driver itself has a sender.
                None => unreachable!("the channel is open"),
            },
            () = cancel.cancelled(), if !halted => Input::Stop(SkipReason::Interrupted),
            () = &mut deadline, if !halted => Input::Stop(SkipReason::RunTimedOut),
            Some(Err(panic)) = driver.tasks.join_next(), if !driver.tasks.is_empty() => {
                std::panic::resume_unwind(panic.into_panic())
            }
        };
    };
    let steps = run.plan.steps.iter().map(|step| {
        let final_states = driver.final_states.remove(&step.id);
        let (state, time) = final_states.unwrap_or((StepState::Pending, Duration::ZERO));
        (step.id.clone(), state, time)
    });
    (outcome, steps.collect())
}

/// Starts to create volumes and a network in parallel to the first step. Creating a network takes
/// as long as a cached build.
fn prepare_resources(run: &Arc<RunContext>) {
    let is_cmd = |step: &Step| matches!(step.kind, StepKind::Cmd(_));
    if run.plan.steps.iter().any(is_cmd) {
        let run = Arc::clone(run);
        let tracker = run.background.clone();
        tracker.spawn(async move {
            // The step that needs the volumes reports the error.
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
            // The step that needs the network reports the error.
            let _ = run.ensure_network(&name).await;
        });
    }
}

impl Driver {
    async fn apply_input(&mut self, input: Input) -> Option<Outcome> {
        for action in self.graph.apply(input) {
            match action {
                Action::Start(id) => self.start(&id),
                Action::Stop(id) => {
                    if let Some(running) = self.running.get(&id) {
                        running.context.cancel.cancel();
                    }
                }
                Action::SetFinalState(id, state) => self.finish_step(id, state).await,
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
        let messages = self.messages.clone();
        let span = tracing::info_span!("step", run = %context.run.id, step = %id);
        let work = async move {
            let id = context.step.id.clone();
            let mut work = std::pin::pin!(steps::run(&context));
            // The driver receives messages as long as a step runs.
            if context.step.container.detach {
                tokio::select! {
                    (end, trace) = &mut work => {
                        let _ = messages.send(StepMessage::Ended(id, end, trace));
                        return;
                    }
                    () = context.up.notified() => {
                        let _ = messages.send(StepMessage::Up(id.clone()));
                    }
                }
            }
            let (end, trace) = work.await;
            let _ = messages.send(StepMessage::Ended(id, end, trace));
        };
        self.tasks.spawn(work.instrument(span));
    }

    /// Removes containers, networks and volumes during the last pushes, which need none of them.
    fn clean_up_early(&mut self) {
        let is_push = |step: &Arc<Step>| matches!(step.kind, StepKind::Push(_));
        let only_pushes = self
            .steps
            .iter()
            .all(|(id, step)| is_push(step) || self.final_states.contains_key(id));
        if only_pushes && !std::mem::replace(&mut self.cleaning, true) {
            let run = Arc::clone(&self.run);
            tokio::spawn(async move { run.clean_up().await });
        }
    }

    async fn finish_step(&mut self, id: StepId, state: StepState) {
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
                elapsed_ms: as_millis(elapsed),
                log_tail: tail,
                excerpt: trace.excerpt,
            })
            .await;
        self.final_states.insert(id, (state, elapsed));
        self.clean_up_early();
    }
}
