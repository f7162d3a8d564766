//! One container of a line, from its image to its exit code.
//!
//! It is attached to before it is started, so that nothing that it prints is lost; it is removed while
//! later steps run. Dropping the future leaves a container with the run's label, which the end of the run
//! removes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use acrtask_model::{
    EventKind, ImageRef,
    events::{BaseRole, Evidence, Stream},
};
use acrtask_spec::cmd_line::ContainerLine;
use bollard::container::LogOutput;
use futures::StreamExt;
use tokio::io::AsyncWriteExt;

use super::{
    body::{Definition, Pull, Setting, define},
    docker::images::reference,
    io::{Exit, Input, Io, SharedSink},
};
use crate::{
    context::{NamedContainer, STOP_GRACE, StepContext},
    engine::Engine,
    error::{EngineError, chain},
    images::{self, Found, Origin, OwnImage},
    output::now,
    workspace::WorkspaceError,
};

/// Numbers the containers of a process, so that no two have one name.
static SERIAL: AtomicU32 = AtomicU32::new(0);

/// The first API of engines that can mount a folder of a volume.
const SUBPATHS: (usize, usize) = (1, 45);

/// How long the output of a container that was stopped is waited for.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Runs a container; returns how it ended. Sinks are left to the caller to finish.
pub(crate) async fn run(ctx: &StepContext, line: &ContainerLine, io: &mut Io) -> Exit {
    let definition = match definition(ctx, line, io.stdin.is_some()) {
        Ok(definition) => definition,
        Err(why) => return Exit::refused(125, why),
    };
    for warning in &definition.warnings {
        let step = Some(&ctx.step.id);
        ctx.run.events.warn(step, warning.clone(), None).await;
    }
    match carry_out(ctx, definition, io).await {
        Ok(exit) => exit,
        Err(Failure::Start(error)) => could_not_start(&error),
        Err(Failure::Other(why)) => Exit::refused(125, why),
    }
}

enum Failure {
    /// The program in it could not be started.
    Start(EngineError),
    Other(String),
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        Self::Other(chain(&error))
    }
}

impl From<WorkspaceError> for Failure {
    fn from(error: WorkspaceError) -> Self {
        Self::Other(chain(&error))
    }
}

fn definition(ctx: &StepContext, line: &ContainerLine, stdin: bool) -> Result<Definition, String> {
    let run = &ctx.run;
    define(
        line,
        Setting {
            step: &ctx.step,
            labels: &run.labels,
            allow: &run.options.allow,
            env: &run.options.env,
            workspace_mounts: run.workspace.mounts(),
            workspace_volume: &run.workspace.volume(),
            workspace_name: &format!("acrtask_{}_workspace", run.id),
            volumes: run.plan.volumes.iter().map(|v| v.name.as_str()).collect(),
            volume_name: &|name| run.volume_name(name),
            network_name: &|name| match run.plan.networks.iter().find(|n| n.name == name) {
                Some(network) => run.network_name(network),
                None => run.labels.scope.object(name),
            },
            network: ctx.step.network.as_deref(),
            networks: run.plan.networks.iter().map(|n| n.name.as_str()).collect(),
            of_the_machine: run
                .plan
                .networks
                .iter()
                .filter(|network| network.skip_creation)
                .map(|network| network.name.as_str())
                .collect(),
            mounts_parts: run.engine.facts.api >= SUBPATHS,
            stdin,
            now: now(),
        },
    )
}

async fn carry_out(
    ctx: &StepContext,
    definition: Definition,
    io: &mut Io,
) -> Result<Exit, Failure> {
    let run = &ctx.run;
    // A container that a line put aside with `-d` lives on after its step.
    let aside = definition.detach && !ctx.step.container.detach;
    let id = tokio::select! {
        id = make(ctx, &definition) => id?,
        // What was made by then has the run's label.
        () = ctx.cancel.cancelled() => return Ok(Exit::code(137)),
    };
    let writing = run.workspace.writing();
    if aside {
        let started = run.engine.start_container(&id).await;
        started.map_err(Failure::Start)?;
        let _ = io
            .stdout
            .lock()
            .await
            .write(format!("{id}\n").as_bytes())
            .await;
        // It may write until the run ends: the workspace is never quiet again.
        std::mem::forget(writing);
        return Ok(Exit::OK);
    }
    let ended = attend(ctx, &id, io).await;
    drop(writing);
    if ctx.step.container.keep {
        tracing::debug!(container = %id, "kept");
    } else {
        run.remove_in_background(id);
    }
    ended
}

/// Makes the container with everything that it needs: image, network, files.
async fn make(ctx: &StepContext, definition: &Definition) -> Result<String, Failure> {
    let run = &ctx.run;
    let network = async {
        match &definition.needs_network {
            Some(name) => run.ensure_network(name).await.map_err(Failure::from),
            None => Ok(()),
        }
    };
    let volumes = async {
        let Some(host) = &definition.body.host_config else {
            return Ok(());
        };
        let own = run.workspace.own_volumes();
        let ensured = own.ensure_mounted(host).await;
        ensured.map_err(|error| Failure::Other(chain(&error)))
    };
    let ((), (), image) = tokio::try_join!(network, volumes, prepare_image(ctx, definition))?;
    let id = create(ctx, definition, image).await?;
    run.remember(NamedContainer {
        id: id.clone(),
        names: std::iter::once(ctx.step.id.to_string())
            .chain(definition.name.clone())
            .collect(),
    });
    let host = definition.body.host_config.as_ref();
    let read_only = host.is_some_and(|host| host.readonly_rootfs == Some(true));
    run.workspace.fill_through(&id, read_only).await?;
    for (name, path) in mounted_volumes(definition, ctx) {
        run.fill_volume(&id, &name, &path).await?;
    }
    Ok(id)
}

/// Starts the container and stays with it until it has ended, or has been stopped because its step is to end.
async fn attend(ctx: &StepContext, id: &str, io: &mut Io) -> Result<Exit, Failure> {
    let run = &ctx.run;
    let attached = run.engine.attach(id, io.stdin.is_some()).await?;
    run.engine
        .start_container(id)
        .await
        .map_err(Failure::Start)?;
    ctx.up.notify_one();
    let feeding = io.stdin.take().map(|stdin| feed(stdin, attached.input));
    let mut following = std::pin::pin!(follow(attached.output, io, feeding));
    let followed = tokio::select! {
        followed = &mut following => Some(followed),
        () = ctx.cancel.cancelled() => None,
    };
    match followed {
        Some(Ok(())) => {
            tokio::select! {
                code = run.engine.wait_container(id) => Ok(Exit::code(code?)),
                () = ctx.cancel.cancelled() => Ok(stop(ctx, id).await),
            }
        }
        Some(Err(Lost::Reader)) => {
            // Nobody reads any more, as when `head` has seen enough: the program gets no further.
            run.engine.kill_container(id).await?;
            Ok(Exit::code(141))
        }
        Some(Err(Lost::Engine(why))) => Ok(Exit::refused(125, why)),
        None => {
            // Its last words are heard, too.
            let last_words = tokio::time::timeout(LAST_WORDS, following);
            let (exit, _) = tokio::join!(stop(ctx, id), last_words);
            Ok(exit)
        }
    }
}

/// Where the task's volumes are mounted in this container.
fn mounted_volumes(definition: &Definition, ctx: &StepContext) -> Vec<(String, String)> {
    let mounts = definition
        .body
        .host_config
        .as_ref()
        .and_then(|h| h.mounts.as_ref());
    let mounts = mounts.map_or(&[][..], Vec::as_slice);
    definition
        .needs_volumes
        .iter()
        .filter_map(|name| {
            let scoped = ctx.run.volume_name(name);
            let mount = mounts.iter().find(|m| m.source.as_ref() == Some(&scoped))?;
            Some((name.clone(), mount.target.clone()?))
        })
        .collect()
}

/// Stops the container of a step that is to end.
async fn stop(ctx: &StepContext, id: &str) -> Exit {
    match ctx.run.engine.stop_container(id, STOP_GRACE).await {
        Ok(()) => Exit::code(137),
        Err(error) => Exit::error(&error),
    }
}

/// What a container is made of.
#[expect(clippy::large_enum_variant, reason = "there is one for each container")]
enum Image {
    /// An image that a step of this run built.
    Built(Arc<OwnImage>),
    /// An image that the run did not build, and its complete name.
    Found(ImageRef, Found),
}

impl Image {
    /// Returns how the engine finds it.
    fn in_engine(&self, engine: &Engine) -> String {
        match self {
            Self::Built(image) => image.in_engine(engine),
            Self::Found(_, found) => found.in_engine(engine),
        }
    }
}

/// Finds out which image the line means, and loads it where a separate BuildKit has it.
async fn prepare_image(ctx: &StepContext, definition: &Definition) -> Result<Image, Failure> {
    let run = &ctx.run;
    let name = reference(&definition.image).map_err(Failure::Other)?;
    let fresh = definition.pull == Pull::Always;
    if let Some(own) = run.images.find_ref(&name) {
        match &own.origin {
            // By another name, it is the run's own.
            Origin::Pulled(pinned) if !fresh || pinned.name() != name.name() => {
                return Ok(Image::Found(name, Found::Registry(pinned.clone())));
            }
            Origin::Pulled(_) => {}
            Origin::Engine(_) | Origin::Builder { .. } => {
                let loaded = run.images.load_into_engine(ctx, &own).await;
                loaded.map_err(Failure::Other)?;
                return Ok(Image::Built(own));
            }
        }
    }
    let found = images::resolve_with_retries(ctx, &name, fresh).await;
    let found = found.map_err(Failure::Other)?;
    if let (Found::Registry(pinned), true) = (&found, fresh) {
        let pulled = images::pull(ctx, pinned, definition.platform.as_deref()).await;
        pulled.map_err(Failure::Other)?;
    }
    Ok(Image::Found(name, found))
}

/// Makes the container; pulls its image where the engine does not have it.
async fn create(
    ctx: &StepContext,
    definition: &Definition,
    image: Image,
) -> Result<String, Failure> {
    let run = &ctx.run;
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let name = container_name(&run.labels.scope.object(ctx.step.id.as_str()), serial);
    let mut platform = definition.platform.as_deref();
    if let Image::Found(_, Found::Registry(pinned)) = &image {
        if !run.options.own_machine {
            // Without one, the engine takes any image that it has of an index, and not the one that is proven.
            platform = platform.or(Some(&run.engine.facts.platform));
        }
        let pulls = definition.pull != Pull::Never;
        let proven = images::prove_or_pull(ctx, pinned, platform, pulls).await;
        proven.map_err(Failure::Other)?;
    }
    let mut body = definition.body.clone();
    body.image = Some(image.in_engine(&run.engine));
    let made = run
        .engine
        .create_container(&name, platform, body.clone())
        .await;
    let is_missing = |error: &EngineError| {
        error.status() == Some(404) && error.engine_says().to_lowercase().contains("no such image")
    };
    match (made, image) {
        (Ok(id), image) => {
            if let Image::Found(name, found) = image {
                remember_image(ctx, definition.image.clone(), name, &found);
            }
            Ok(id)
        }
        (Err(error), Image::Built(_)) if is_missing(&error) => Err(Failure::Other(format!(
            "the image {} that this run built is gone from the engine: another program removed it",
            definition.image
        ))),
        (Err(error), Image::Found(reference, found))
            if is_missing(&error) && definition.pull != Pull::Never =>
        {
            let Found::Registry(pinned) = &found else {
                return Err(error.into());
            };
            let pulled = images::pull(ctx, pinned, platform).await;
            pulled.map_err(Failure::Other)?;
            let id = run.engine.create_container(&name, platform, body).await?;
            remember_image(ctx, definition.image.clone(), reference, &found);
            Ok(id)
        }
        (Err(error), _) => Err(error.into()),
    }
}

/// Adds an image that the run did not build to its images, and tells which one is run, by digest, without holding the
/// container up. One that the run built has bases, which its build has told.
fn remember_image(ctx: &StepContext, asked_for: String, name: ImageRef, found: &Found) {
    images::remember(ctx, name, found);
    let ctx = ctx.clone();
    let run = Arc::clone(&ctx.run);
    let (image, digest) = (found.in_engine(&run.engine), found.digest().cloned());
    run.background.spawn(async move {
        let Ok(Some(stored)) = ctx.run.engine.image(&image).await else {
            return;
        };
        if let Some(digest) = digest {
            ctx.run
                .events
                .send(EventKind::BaseUsed {
                    step: ctx.step.id.clone(),
                    role: BaseRole::Ran,
                    name: asked_for,
                    digest,
                    evidence: Evidence::Engine,
                    platforms: stored.platform().into_iter().collect(),
                })
                .await;
        }
    });
}

/// A name of the characters that the engine allows; the serial number keeps attempts apart.
fn container_name(scoped: &str, serial: u32) -> String {
    let clean: String = scoped
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "_.-".contains(c) {
                c
            } else {
                '-'
            }
        })
        .collect();
    if serial == 0 {
        clean
    } else {
        format!("{clean}_{serial}")
    }
}

/// Feeds what is piped into a container to it, and tells it the end.
async fn feed(mut stdin: Input, mut input: std::pin::Pin<Box<dyn tokio::io::AsyncWrite + Send>>) {
    // A program that does not read to the end is no error.
    let _ = tokio::io::copy(&mut stdin, &mut input).await;
    let _ = input.shutdown().await;
}

enum Lost {
    /// The end of the pipe that the output goes to.
    Reader,
    Engine(String),
}

/// Carries the output of a container to its sinks until it ends.
async fn follow(
    mut output: std::pin::Pin<
        Box<dyn futures::Stream<Item = Result<LogOutput, bollard::errors::Error>> + Send>,
    >,
    io: &Io,
    feeding: Option<impl Future<Output = ()> + Send + 'static>,
) -> Result<(), Lost> {
    // Ends with this function, so that a reader that waits for more does not outlive its container.
    let mut feeder = tokio::task::JoinSet::new();
    if let Some(feeding) = feeding {
        feeder.spawn(feeding);
    }
    while let Some(frame) = output.next().await {
        let frame = frame
            .map_err(|e| Lost::Engine(format!("lost the container's output: {}", chain(&e))))?;
        let (sink, bytes): (&SharedSink, _) = match frame {
            LogOutput::StdErr { message } => (&io.stderr, message),
            LogOutput::StdOut { message } | LogOutput::Console { message } => (&io.stdout, message),
            LogOutput::StdIn { .. } => continue,
        };
        if sink.lock().await.write(&bytes).await.is_err() {
            return Err(Lost::Reader);
        }
    }
    Ok(())
}

/// The code that a shell would give for a program that cannot be run, and why.
fn could_not_start(error: &EngineError) -> Exit {
    let says = error.engine_says();
    let code = if says.contains("executable file not found") || says.contains("no such file") {
        127
    } else if says.contains("permission denied") {
        126
    } else {
        125
    };
    // The engine's own layers before the point are of no use to the author of a task.
    let why = says
        .rsplit_once("exec: ")
        .map_or(says.as_str(), |(_, why)| why)
        .trim_end_matches(": unknown");
    Exit::refused(code, format!("the container could not be started: {why}"))
}

/// Says on the step's standard error why a command ended before it ran.
pub(crate) async fn say_why(ctx: &StepContext, exit: &Exit) {
    if let Some(why) = &exit.why {
        ctx.output
            .say(Stream::Stderr, &format!("acrtask: {why}"))
            .await;
    }
}
