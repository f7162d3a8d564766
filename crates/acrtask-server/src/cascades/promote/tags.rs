//! Tags moved at registries, forward and back.
//!
//! All that has to be read is read first, so that the tags of a cascade move within a moment of each other. What a tag
//! holds is written down before it is moved: a server that ends in between finds the tag moved, and what it held known.
//! Left out: logins that only runners have; the tags are moved with those that are stored here.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use acrtask_model::{Digest, ImageRef};
use acrtask_registry::{Manifest, Registry};
use acrtask_store::{CascadeImageRow, Ms, StoreError};
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, future::BoxFuture};

use acrtask_model::chain;

use crate::App;

/// Tags that are moved side by side.
const PARALLEL: usize = 8;
/// Longest time of one call, with its token server.
const LIMIT: Duration = Duration::from_secs(25);
/// With each thing done, whoever works on a cascade has so much longer for the next, in milliseconds.
const LEASE: Ms = 60_000;
/// What is said of a held image that is not wanted any more.
pub(super) const SUPERSEDED: &str = "something newer was pushed meanwhile";

/// Until when somebody may work who has done something now.
pub(super) fn lease(now: Ms) -> Ms {
    now.saturating_add(LEASE)
}

/// A tag that is about to move.
struct Ready {
    name: String,
    tag: ImageRef,
    digest: Digest,
    registry: Arc<Registry>,
    /// What is to be stored under it; nothing: it is there already.
    manifest: Option<Manifest>,
}

/// What became of one image in the first half.
enum Read {
    Ready(Box<Ready>),
    /// Something else is wanted by now.
    Unwanted,
    /// It is left as it is, and why.
    Left(String),
}

/// Moves the tags of what is held back. Gives what could not be moved, a sentence each.
pub(super) async fn promote(app: &App, id: u64) -> Result<Vec<String>, StoreError> {
    for name in app.store.superseded_images(id).await? {
        app.store.drop_held(id, &name, SUPERSEDED).await?;
    }
    let images = images(app, id, "held").await?;
    let clients = clients(app, &images).await?;
    let reading = images.iter().map(|image| {
        let clients = &clients;
        async move {
            let read = read_forward(app, clients, image).await?;
            note(app, image, read).await
        }
        .boxed()
    });
    let (ready, mut failures) = collect(reading.collect()).await?;
    let moving = ready.into_iter().map(|ready| {
        async move {
            if let Err(why) = put(&ready).await {
                return failed(app, id, &ready.name, why).await.map(Some);
            }
            let now = app.clock.now_ms();
            app.store
                .tag_moved(id, &ready.name, &ready.digest, now)
                .await?;
            Ok(None)
        }
        .boxed()
    });
    failures.extend(finish(moving.collect()).await?);
    Ok(failures)
}

/// Puts back what tags held before. Gives what could not be put back, a sentence each.
pub(super) async fn roll_back(app: &App, id: u64) -> Result<Vec<String>, StoreError> {
    let images = images(app, id, "moved").await?;
    let clients = clients(app, &images).await?;
    let reading = images.iter().map(|image| {
        let clients = &clients;
        async move {
            let read = read_back(app, clients, image).await?;
            note(app, image, read).await
        }
        .boxed()
    });
    let (ready, mut failures) = collect(reading.collect()).await?;
    let moving = ready.into_iter().map(|ready| {
        async move {
            let until = lease(app.clock.now_ms());
            let name = Some(&*ready.name);
            if !app.store.will_go_back(id, name, until).await? {
                return Ok(None);
            }
            if let Err(why) = put(&ready).await {
                return failed(app, id, &ready.name, why).await.map(Some);
            }
            let now = app.clock.now_ms();
            app.store
                .tag_went_back(id, &ready.name, &ready.digest, now)
                .await?;
            Ok(None)
        }
        .boxed()
    });
    failures.extend(finish(moving.collect()).await?);
    Ok(failures)
}

/// What came of reading: something to move, or why it cannot be moved now.
type Noted = Result<Option<Box<Ready>>, String>;

async fn collect(
    reading: Vec<BoxFuture<'_, Result<Noted, StoreError>>>,
) -> Result<(Vec<Ready>, Vec<String>), StoreError> {
    let noted: Vec<Noted> = futures::stream::iter(reading)
        .buffered(PARALLEL)
        .try_collect()
        .await?;
    let mut ready = Vec::new();
    let mut failures = Vec::new();
    for one in noted {
        match one {
            Ok(Some(one)) => ready.push(*one),
            Ok(None) => {}
            Err(why) => failures.push(why),
        }
    }
    Ok((ready, failures))
}

async fn finish(
    moving: Vec<BoxFuture<'_, Result<Option<String>, StoreError>>>,
) -> Result<Vec<String>, StoreError> {
    let failures: Vec<Option<String>> = futures::stream::iter(moving)
        .buffer_unordered(PARALLEL)
        .try_collect()
        .await?;
    Ok(failures.into_iter().flatten().collect())
}

async fn images(app: &App, id: u64, state: &str) -> Result<Vec<CascadeImageRow>, StoreError> {
    let images = app.store.cascade_images(id).await?;
    Ok(images
        .into_iter()
        .filter(|image| image.state == state)
        .collect())
}

/// For each task the client with its logins.
async fn clients(
    app: &App,
    images: &[CascadeImageRow],
) -> Result<HashMap<String, Arc<Registry>>, StoreError> {
    let tasks = app.tasks.current(&app.store).await?;
    let mut clients = HashMap::new();
    for image in images {
        if let Entry::Vacant(vacant) = clients.entry(image.task.clone()) {
            let task = tasks.named(&image.task);
            let id = task.map(|entry| entry.task.id.to_string());
            vacant.insert(app.watcher.client_of_task(app, id.as_deref()).await?);
        }
    }
    Ok(clients)
}

/// Writes down what kept an image from being moved.
async fn note(
    app: &App,
    image: &CascadeImageRow,
    read: Result<Read, String>,
) -> Result<Noted, StoreError> {
    match read {
        Ok(Read::Ready(ready)) => Ok(Ok(Some(ready))),
        Ok(Read::Unwanted) => Ok(Ok(None)),
        Ok(Read::Left(why)) => {
            app.store
                .image_error(image.cascade, &image.name, Some(&why))
                .await?;
            Ok(Ok(None))
        }
        Err(why) => failed(app, image.cascade, &image.name, why).await.map(Err),
    }
}

async fn failed(app: &App, id: u64, name: &str, why: String) -> Result<String, StoreError> {
    app.store.image_error(id, name, Some(&why)).await?;
    Ok(format!("{name}: {why}"))
}

/// A call that ends.
async fn within<T>(
    call: impl Future<Output = Result<T, acrtask_registry::RegistryError>>,
) -> Result<T, Asked> {
    match tokio::time::timeout(LIMIT, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) if error.is_not_found() => Err(Asked::NotThere(chain(&error))),
        Ok(Err(error)) => Err(Asked::Failed(chain(&error))),
        Err(_) => Err(Asked::Failed(format!(
            "the registry gave no answer within {} s",
            LIMIT.as_secs()
        ))),
    }
}

enum Asked {
    NotThere(String),
    Failed(String),
}

impl From<Asked> for String {
    fn from(asked: Asked) -> Self {
        match asked {
            Asked::NotThere(why) | Asked::Failed(why) => why,
        }
    }
}

/// What a tag holds; nothing: there is no such tag.
async fn holds(registry: &Registry, tag: &ImageRef) -> Result<Option<Digest>, String> {
    match within(registry.resolve(tag)).await {
        Ok(found) => Ok(Some(found.digest)),
        Err(Asked::NotThere(_)) => Ok(None),
        Err(Asked::Failed(why)) => Err(why),
    }
}

fn place<'c>(
    clients: &'c HashMap<String, Arc<Registry>>,
    image: &CascadeImageRow,
) -> Result<(ImageRef, &'c Arc<Registry>), String> {
    let tag = image
        .name
        .parse::<ImageRef>()
        .map_err(|error| error.to_string())?;
    let client = clients
        .get(&image.task)
        .ok_or_else(|| format!("there is no login for {}", image.name))?;
    Ok((tag, client))
}

async fn read_forward(
    app: &App,
    clients: &HashMap<String, Arc<Registry>>,
    image: &CascadeImageRow,
) -> Result<Result<Read, String>, StoreError> {
    let (tag, registry) = match place(clients, image) {
        Ok(found) => found,
        Err(why) => return Ok(Err(why)),
    };
    let before = match holds(registry, &tag).await {
        Ok(before) => before,
        Err(why) => return Ok(Err(why)),
    };
    // What it held before is known already, if it was moved by somebody who has ended.
    let moved = before.as_ref() == Some(&image.after);
    let manifest = if moved {
        None
    } else {
        match within(registry.manifest(&tag.at(image.after.clone()))).await {
            Ok(manifest) => Some(manifest),
            Err(asked) => return Ok(Err(asked.into())),
        }
    };
    let until = lease(app.clock.now_ms());
    let before = (!moved).then_some(before.as_ref());
    let wanted = app
        .store
        .will_move(image.cascade, &image.name, &image.after, before, until)
        .await?;
    if !wanted {
        return Ok(Ok(Read::Unwanted));
    }
    Ok(Ok(Read::Ready(Box::new(Ready {
        name: image.name.clone(),
        tag,
        digest: image.after.clone(),
        registry: Arc::clone(registry),
        manifest,
    }))))
}

async fn read_back(
    app: &App,
    clients: &HashMap<String, Arc<Registry>>,
    image: &CascadeImageRow,
) -> Result<Result<Read, String>, StoreError> {
    let Some(before) = &image.before else {
        let why = "there was no such tag before; it is left as it is".to_owned();
        return Ok(Ok(Read::Left(why)));
    };
    let read = async {
        let (tag, registry) = place(clients, image)?;
        let now = holds(registry, &tag).await?;
        let back = now.as_ref() == Some(before);
        if let Some(now) = now.filter(|now| !back && *now != image.after) {
            return Ok(Read::Left(format!(
                "the tag holds {now} by now, which somebody else has pushed; it is left as it is"
            )));
        }
        let manifest = if back {
            None
        } else {
            Some(within(registry.manifest(&tag.at(before.clone()))).await?)
        };
        Ok(Read::Ready(Box::new(Ready {
            name: image.name.clone(),
            tag,
            digest: before.clone(),
            registry: Arc::clone(registry),
            manifest,
        })))
    };
    let read = read.await;
    let until = lease(app.clock.now_ms());
    if !app.store.will_go_back(image.cascade, None, until).await? {
        return Ok(Ok(Read::Unwanted));
    }
    Ok(read)
}

/// Moves a tag.
async fn put(ready: &Ready) -> Result<(), String> {
    let Some(manifest) = &ready.manifest else {
        return Ok(());
    };
    let put = ready
        .registry
        .put_manifest(&ready.tag, &manifest.media_type, manifest.raw.clone());
    let digest = within(put).await?;
    if digest != ready.digest {
        return Err(format!(
            "{} was to hold {} and holds {digest}",
            ready.tag, ready.digest
        ));
    }
    tracing::info!(tag = %ready.tag, %digest, "a tag was moved");
    Ok(())
}
