//! Conversion of BuildKit's progress to events of the step.

use std::{
    collections::{HashMap, HashSet},
    time::SystemTime,
};

use acrtask_buildkit::{BuildEvent, Log};
use acrtask_model::{
    EventKind,
    events::{Stream, Vertex},
};
use jiff::Timestamp;
use tokio::sync::mpsc;

use crate::{context::StepContext, login_help::login_help, output::LineSink};

/// Part of the name of a vertex that reads a cache. Its failure does not fail the build.
const CACHE_IMPORT: &str = "importing cache manifest";

/// Forwards all events until the build ends.
pub(crate) async fn forward_events(ctx: &StepContext, mut events: mpsc::Receiver<BuildEvent>) {
    let mut sinks: HashMap<(String, i64), LineSink> = HashMap::new();
    let mut warned = HashSet::new();
    while let Some(event) = events.recv().await {
        match event {
            BuildEvent::Log(Log {
                vertex,
                stream,
                bytes,
                ..
            }) => {
                let sink = sinks.entry((vertex.clone(), stream)).or_insert_with(|| {
                    let stream = if stream == 1 {
                        Stream::Stdout
                    } else {
                        Stream::Stderr
                    };
                    ctx.output.vertex_sink(stream, vertex)
                });
                sink.push(&bytes).await;
            }
            BuildEvent::Vertex(vertex) => {
                if vertex.completed.is_some() {
                    // The last line may lack a line end.
                    for ((of, _), sink) in &mut sinks {
                        if *of == vertex.digest {
                            sink.finish().await;
                        }
                    }
                }
                let error = ctx.output.mask(&vertex.error.unwrap_or_default());
                ctx.output.search_retry_texts(error.as_bytes());
                if vertex.name.contains(CACHE_IMPORT) && !error.is_empty() {
                    warn_about_cache(ctx, &vertex.name, &error, &mut warned).await;
                }
                let vertex = Vertex {
                    vertex: vertex.digest,
                    name: ctx
                        .output
                        .mask(&ctx.run.image_names.hide_names(&vertex.name)),
                    inputs: vertex.inputs,
                    started: vertex.started.and_then(timestamp),
                    completed: vertex.completed.and_then(timestamp),
                    cached: vertex.cached,
                    error,
                };
                let step = ctx.step.id.clone();
                ctx.run
                    .events
                    .send(EventKind::Vertex { step, vertex })
                    .await;
            }
            BuildEvent::Progress(progress) => {
                ctx.run
                    .events
                    .send(EventKind::Transfer {
                        step: ctx.step.id.clone(),
                        vertex: progress.vertex,
                        id: progress.id,
                        current: progress.current,
                        total: progress.total,
                        done: progress.completed.is_some(),
                    })
                    .await;
            }
            BuildEvent::Warning(warning) => {
                let help = warning.url.map(|url| format!("see {url}"));
                let location = warning.filename.map(|file| match warning.lines.first() {
                    Some(lines) => format!("{file}:{}: ", lines.start()),
                    None => format!("{file}: "),
                });
                let message = format!("{}{}", location.unwrap_or_default(), warning.short);
                let message = ctx.output.mask(&message);
                ctx.run.events.warn(Some(&ctx.step.id), message, help).await;
            }
        }
    }
    for sink in sinks.values_mut() {
        sink.finish().await;
    }
}

/// Warns once about a cache that its registry refused, with help for a login.
async fn warn_about_cache(
    ctx: &StepContext,
    name: &str,
    error: &str,
    warned: &mut HashSet<String>,
) {
    let Some(help) = login_help(&format!("{name}: {error}")) else {
        return;
    };
    if warned.insert(name.to_owned()) {
        let name = ctx.output.mask(&ctx.run.image_names.hide_names(name));
        let message = format!("{name} failed: {error}");
        let step = Some(&ctx.step.id);
        ctx.run.events.warn(step, message, Some(help)).await;
    }
}

fn timestamp(time: SystemTime) -> Option<Timestamp> {
    Timestamp::try_from(time).ok()
}
