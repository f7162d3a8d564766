//! A container of a line, from its image to its exit code.
//!
//! The executor attaches to the container before it starts, so that no output is lost. It removes
//! the container while later steps run. If the future is dropped, the container remains with the
//! run's label, and the end of the run removes it.

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
    body::{Definition, DefinitionInput, Pull, define_container},
    docker::images::parse_reference,
    io::{Exit, Input, Io, SharedSink},
};
use crate::{
    context::{NamedContainer, STOP_GRACE, StepContext},
    engine::Engine,
    error::{EngineError, error_chain},
    images::{self, Found, Origin, OwnImage},
    output::now,
    workspace::WorkspaceError,
};

/// Serial number of the next container of this process, so that names are unique.
static SERIAL: AtomicU32 = AtomicU32::new(0);

/// The first API version of engines that can mount a folder of a volume.
const SUBPATH_API: (usize, usize) = (1, 45);

/// Time to wait for the remaining output of a stopped container.
const REMAINING_OUTPUT_WAIT: Duration = Duration::from_secs(5);

/// Runs a container and returns its exit. The caller finishes the sinks.
pub(crate) async fn run(ctx: &StepContext, line: &ContainerLine, io: &mut Io) -> Exit {
    let definition = match build_definition(ctx, line, io.stdin.is_some()) {
        Ok(definition) => definition,
        Err(why) => return Exit::refused(125, why),
    };
    for warning in &definition.warnings {
        let step = Some(&ctx.step.id);
        ctx.run.events.warn(step, warning.clone(), None).await;
    }
    match run_container(ctx, definition, io).await {
        Ok(exit) => exit,
        Err(Failure::Start(error)) => start_failure(&error),
        Err(Failure::Other(why)) => Exit::refused(125, why),
    }
}

enum Failure {
    /// The program in the container could not be started.
    Start(EngineError),
    Other(String),
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        Self::Other(error_chain(&error))
    }
}

impl From<WorkspaceError> for Failure {
    fn from(error: WorkspaceError) -> Self {
        Self::Other(error_chain(&error))
    }
}

fn build_definition(
    ctx: &StepContext,
    line: &ContainerLine,
    stdin: bool,
) -> Result<Definition, String> {
    let run = &ctx.run;
    define_container(
        line,
        DefinitionInput {
            step: &ctx.step,
            labels: &run.labels,
            allow: &run.options.allow,
            env: &run.options.env,
            workspace_mounts: run.workspace.mounts(),
            workspace_volume: &run.workspace.volume_name(),
            workspace_name: &format!("acrtask_{}_workspace", run.id),
            volumes: run.plan.volumes.iter().map(|v| v.name.as_str()).collect(),
            volume_name: &|name| run.volume_name(name),
            network_name: &|name| match run.plan.networks.iter().find(|n| n.name == name) {
                Some(network) => run.network_name(network),
                None => run.labels.scope.object_name(name),
            },
            network: ctx.step.network.as_deref(),
            networks: run.plan.networks.iter().map(|n| n.name.as_str()).collect(),
            machine_networks: run
                .plan
                .networks
                .iter()
                .filter(|network| network.skip_creation)
                .map(|network| network.name.as_str())
                .collect(),
            supports_subpaths: run.engine.facts.api >= SUBPATH_API,
            stdin,
            now: now(),
        },
    )
}

async fn run_container(
    ctx: &StepContext,
    definition: Definition,
    io: &mut Io,
) -> Result<Exit, Failure> {
    let run = &ctx.run;
    // A container that a line started with `-d` continues after its step.
    let detached_by_line = definition.detach && !ctx.step.container.detach;
    let id = tokio::select! {
        id = create_with_dependencies(ctx, &definition) => id?,
        // The cleanup finds objects that exist by now through the run's label.
        () = ctx.cancel.cancelled() => return Ok(Exit::code(137)),
    };
    let writing = run.workspace.start_writing();
    if detached_by_line {
        let started = run.engine.start_container(&id).await;
        started.map_err(Failure::Start)?;
        let _ = io
            .stdout
            .lock()
            .await
            .write(format!("{id}\n").as_bytes())
            .await;
        // The container may write until the run ends, so the workspace never counts as idle again.
        std::mem::forget(writing);
        return Ok(Exit::OK);
    }
    let ended = start_and_follow(ctx, &id, io).await;
    drop(writing);
    if ctx.step.container.keep {
        tracing::debug!(container = %id, "kept a container");
    } else {
        run.remove_in_background(id);
    }
    ended
}

/// Creates the container and everything that it needs: image, network, files.
async fn create_with_dependencies(
    ctx: &StepContext,
    definition: &Definition,
) -> Result<String, Failure> {
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
        ensured.map_err(|error| Failure::Other(error_chain(&error)))
    };
    let ((), (), image) = tokio::try_join!(network, volumes, prepare_image(ctx, definition))?;
    let id = create_container(ctx, definition, image).await?;
    run.register_container(NamedContainer {
        id: id.clone(),
        names: std::iter::once(ctx.step.id.to_string())
            .chain(definition.name.clone())
            .collect(),
    });
    let host = definition.body.host_config.as_ref();
    let read_only = host.is_some_and(|host| host.readonly_rootfs == Some(true));
    run.workspace.upload_context_through(&id, read_only).await?;
    for (name, path) in mounted_volumes(definition, ctx) {
        run.fill_volume(&id, &name, &path).await?;
    }
    Ok(id)
}

/// Starts the container and waits until it has ended. Stops it if its step must end.
async fn start_and_follow(ctx: &StepContext, id: &str, io: &mut Io) -> Result<Exit, Failure> {
    let run = &ctx.run;
    let attached = run.engine.attach(id, io.stdin.is_some()).await?;
    run.engine
        .start_container(id)
        .await
        .map_err(Failure::Start)?;
    ctx.up.notify_one();
    let feeding = io
        .stdin
        .take()
        .map(|stdin| feed_stdin(stdin, attached.input));
    let mut following = std::pin::pin!(copy_output(attached.output, io, feeding));
    let followed = tokio::select! {
        followed = &mut following => Some(followed),
        () = ctx.cancel.cancelled() => None,
    };
    match followed {
        Some(Ok(())) => {
            tokio::select! {
                code = run.engine.wait_container(id) => Ok(Exit::code(code?)),
                () = ctx.cancel.cancelled() => Ok(stop_container(ctx, id).await),
            }
        }
        Some(Err(CopyError::Reader)) => {
            // The reader has closed the pipe, as `head` does after its last line. The program
            // cannot continue.
            run.engine.kill_container(id).await?;
            Ok(Exit::code(141))
        }
        Some(Err(CopyError::Engine(why))) => Ok(Exit::refused(125, why)),
        None => {
            // The output up to the stop is still processed.
            let remaining_output = tokio::time::timeout(REMAINING_OUTPUT_WAIT, following);
            let (exit, _) = tokio::join!(stop_container(ctx, id), remaining_output);
            Ok(exit)
        }
    }
}

/// Returns the names and mount points of the task's volumes in this container.
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

/// Stops the container of a step that must end.
async fn stop_container(ctx: &StepContext, id: &str) -> Exit {
    match ctx.run.engine.stop_container(id, STOP_GRACE).await {
        Ok(()) => Exit::code(137),
        Err(error) => Exit::error(&error),
    }
}

/// The image of a container.
#[expect(clippy::large_enum_variant, reason = "there is one for each container")]
enum Image {
    /// An image that a step of this run built.
    Built(Arc<OwnImage>),
    /// An image that the run did not build, and its complete name.
    Found(ImageRef, Found),
}

impl Image {
    /// Returns the name of the image for requests to the engine.
    fn in_engine(&self, engine: &Engine) -> String {
        match self {
            Self::Built(image) => image.in_engine(engine),
            Self::Found(_, found) => found.in_engine(engine),
        }
    }
}

/// Resolves the image of the line, and loads it into the engine if a separate BuildKit has it.
async fn prepare_image(ctx: &StepContext, definition: &Definition) -> Result<Image, Failure> {
    let run = &ctx.run;
    let name = parse_reference(&definition.image).map_err(Failure::Other)?;
    let fresh = definition.pull == Pull::Always;
    if let Some(own) = run.images.find_image(&name) {
        match &own.origin {
            // Under another name, it is the run's own image.
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
        let pulled = images::pull_image(ctx, pinned, definition.platform.as_deref()).await;
        pulled.map_err(Failure::Other)?;
    }
    Ok(Image::Found(name, found))
}

/// Creates the container, and pulls its image if the engine does not have it.
async fn create_container(
    ctx: &StepContext,
    definition: &Definition,
    image: Image,
) -> Result<String, Failure> {
    let run = &ctx.run;
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let name = container_name(&run.labels.scope.object_name(ctx.step.id.as_str()), serial);
    let mut platform = definition.platform.as_deref();
    if let Image::Found(_, Found::Registry(pinned)) = &image {
        if !run.options.own_machine {
            // Without a platform, the engine uses any image of the index that it has, even if
            // another one is proven.
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
        error.status() == Some(404)
            && error
                .engine_message()
                .to_lowercase()
                .contains("no such image")
    };
    match (made, image) {
        (Ok(id), image) => {
            if let Image::Found(name, found) = image {
                remember_image(ctx, definition.image.clone(), name, &found);
            }
            Ok(id)
        }
        (Err(error), Image::Built(_)) if is_missing(&error) => Err(Failure::Other(format!(
            "the image {} that this run built is missing in the engine: another program removed it",
            definition.image
        ))),
        (Err(error), Image::Found(reference, found))
            if is_missing(&error) && definition.pull != Pull::Never =>
        {
            let Found::Registry(pinned) = &found else {
                return Err(error.into());
            };
            let pulled = images::pull_image(ctx, pinned, platform).await;
            pulled.map_err(Failure::Other)?;
            let id = run.engine.create_container(&name, platform, body).await?;
            remember_image(ctx, definition.image.clone(), reference, &found);
            Ok(id)
        }
        (Err(error), _) => Err(error.into()),
    }
}

/// Adds an image that the run did not build to its images. Also reports the image by digest, in the
/// background to avoid a delay of the container. The bases of an image that the run built are
/// already reported by its build.
fn remember_image(ctx: &StepContext, requested_name: String, name: ImageRef, found: &Found) {
    images::register_found(ctx, name, found);
    let ctx = ctx.clone();
    let run = Arc::clone(&ctx.run);
    let (image, digest) = (found.in_engine(&run.engine), found.digest().cloned());
    run.background.spawn(async move {
        let Ok(Some(stored)) = ctx.run.engine.find_image(&image).await else {
            return;
        };
        if let Some(digest) = digest {
            ctx.run
                .events
                .send(EventKind::BaseUsed {
                    step: ctx.step.id.clone(),
                    role: BaseRole::Cmd,
                    name: requested_name,
                    digest,
                    evidence: Evidence::Engine,
                    platforms: stored.platform().into_iter().collect(),
                })
                .await;
        }
    });
}

/// Returns a name that consists of characters that the engine allows. The serial number makes it
/// unique for each attempt.
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

/// Writes the piped input to a container and closes its standard input.
async fn feed_stdin(
    mut stdin: Input,
    mut input: std::pin::Pin<Box<dyn tokio::io::AsyncWrite + Send>>,
) {
    // A program may end before it has read all of its input.
    let _ = tokio::io::copy(&mut stdin, &mut input).await;
    let _ = input.shutdown().await;
}

enum CopyError {
    /// The reader of the output has closed its end of the pipe.
    Reader,
    Engine(String),
}

/// Copies the output of a container to its sinks until it ends.
async fn copy_output(
    mut output: std::pin::Pin<
        Box<dyn futures::Stream<Item = Result<LogOutput, bollard::errors::Error>> + Send>,
    >,
    io: &Io,
    feeding: Option<impl Future<Output = ()> + Send + 'static>,
) -> Result<(), CopyError> {
    // Ends with this function, so that a reader that waits for input does not outlive its
    // container.
    let mut feeder = tokio::task::JoinSet::new();
    if let Some(feeding) = feeding {
        feeder.spawn(feeding);
    }
    while let Some(frame) = output.next().await {
        let frame = frame.map_err(|e| {
            CopyError::Engine(format!("lost the container's output: {}", error_chain(&e)))
        })?;
        let (sink, bytes): (&SharedSink, _) = match frame {
            LogOutput::StdErr { message } => (&io.stderr, message),
            LogOutput::StdOut { message } | LogOutput::Console { message } => (&io.stdout, message),
            LogOutput::StdIn { .. } => continue,
        };
        if sink.lock().await.write(&bytes).await.is_err() {
            return Err(CopyError::Reader);
        }
    }
    Ok(())
}

/// Returns the exit code of a shell for a program that cannot be started, with the reason.
fn start_failure(error: &EngineError) -> Exit {
    let message = error.engine_message();
    let code = if message.contains("executable file not found") || message.contains("no such file")
    {
        127
    } else if message.contains("permission denied") {
        126
    } else {
        125
    };
    // The error layers of the engine before this text do not help the author of a task.
    let why = message
        .rsplit_once("exec: ")
        .map_or(message.as_str(), |(_, why)| why)
        .trim_end_matches(": unknown");
    Exit::refused(code, format!("the container could not be started: {why}"))
}

/// Prints the reason why a command failed to the step's standard error.
pub(crate) async fn print_reason(ctx: &StepContext, exit: &Exit) {
    if let Some(why) = &exit.why {
        ctx.output
            .print_line(Stream::Stderr, &format!("acrtask: {why}"))
            .await;
    }
}
