//! Moves of tags at registries, for promotions and rollbacks.
//!
//! All reads happen before the first write, so the tags of a cascade move within a moment. The
//! previous digest of a tag is stored before the tag moves. If a server stops in between, the next
//! one finds the previous digest stored.
//!
//! Left out: logins that only runners have. Tags are moved with the logins stored here.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use acrtask_model::{Digest, ImageRef};
use acrtask_registry::{Manifest, Registry};
use acrtask_store::{CascadeImageRow, Ms, StoreError};
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, future::BoxFuture};

use acrtask_model::error_chain;

use crate::App;

/// Number of tags that move concurrently.
const MAX_CONCURRENT: usize = 8;
/// Time limit of a registry call, including the token server.
const LIMIT: Duration = Duration::from_secs(25);
/// Lease on a cascade after each completed call, in milliseconds.
const LEASE_MS: Ms = 60_000;
/// Reason for discarding a staged image after a newer push.
pub(super) const SUPERSEDED: &str = "a newer image was pushed in the meantime";

/// Returns the end of a lease that starts now.
pub(super) fn lease_end(now: Ms) -> Ms {
    now.saturating_add(LEASE_MS)
}

/// Tag that is ready to move.
struct TagMove {
    name: String,
    tag: ImageRef,
    digest: Digest,
    registry: Arc<Registry>,
    /// Manifest to store under the tag. `None` if the tag already has it.
    manifest: Option<Manifest>,
}

/// Result of reading an image before its move.
enum MoveCheck {
    Ready(Box<TagMove>),
    /// A newer push or decision replaces the image.
    Unwanted,
    /// The tag is left unchanged, for this reason.
    Unchanged(String),
}

/// Moves the tags of the staged images. Returns one sentence per failure.
pub(super) async fn promote(app: &App, id: u64) -> Result<Vec<String>, StoreError> {
    for name in app.store.superseded_images(id).await? {
        app.store
            .discard_staged_image(id, &name, SUPERSEDED)
            .await?;
    }
    let images = images_in_state(app, id, "staged").await?;
    let clients = clients_by_task(app, &images).await?;
    let reading = images.iter().map(|image| {
        let clients = &clients;
        async move {
            let read = prepare_promotion(app, clients, image).await?;
            store_check(app, image, read).await
        }
        .boxed()
    });
    let (ready, mut failures) = collect_moves(reading.collect()).await?;
    let moving = ready.into_iter().map(|ready| {
        async move {
            if let Err(why) = move_tag(&ready).await {
                return store_failure(app, id, &ready.name, why).await.map(Some);
            }
            let now = app.clock.now_ms();
            app.store
                .record_promoted_tag(id, &ready.name, &ready.digest, now)
                .await?;
            Ok(None)
        }
        .boxed()
    });
    failures.extend(run_moves(moving.collect()).await?);
    Ok(failures)
}

/// Restores the previous tags. Returns one sentence per failure.
pub(super) async fn roll_back(app: &App, id: u64) -> Result<Vec<String>, StoreError> {
    let images = images_in_state(app, id, "promoted").await?;
    let clients = clients_by_task(app, &images).await?;
    let reading = images.iter().map(|image| {
        let clients = &clients;
        async move {
            let read = prepare_rollback(app, clients, image).await?;
            store_check(app, image, read).await
        }
        .boxed()
    });
    let (ready, mut failures) = collect_moves(reading.collect()).await?;
    let moving = ready.into_iter().map(|ready| {
        async move {
            let until = lease_end(app.clock.now_ms());
            let name = Some(&*ready.name);
            if !app.store.prepare_rollback(id, name, until).await? {
                return Ok(None);
            }
            if let Err(why) = move_tag(&ready).await {
                return store_failure(app, id, &ready.name, why).await.map(Some);
            }
            let now = app.clock.now_ms();
            app.store
                .record_restored_tag(id, &ready.name, &ready.digest, now)
                .await?;
            Ok(None)
        }
        .boxed()
    });
    failures.extend(run_moves(moving.collect()).await?);
    Ok(failures)
}

/// Tag to move, or the reason why it cannot move now.
type CheckedMove = Result<Option<Box<TagMove>>, String>;

async fn collect_moves(
    reading: Vec<BoxFuture<'_, Result<CheckedMove, StoreError>>>,
) -> Result<(Vec<TagMove>, Vec<String>), StoreError> {
    let checked: Vec<CheckedMove> = futures::stream::iter(reading)
        .buffered(MAX_CONCURRENT)
        .try_collect()
        .await?;
    let mut ready = Vec::new();
    let mut failures = Vec::new();
    for one in checked {
        match one {
            Ok(Some(one)) => ready.push(*one),
            Ok(None) => {}
            Err(why) => failures.push(why),
        }
    }
    Ok((ready, failures))
}

async fn run_moves(
    moving: Vec<BoxFuture<'_, Result<Option<String>, StoreError>>>,
) -> Result<Vec<String>, StoreError> {
    let failures: Vec<Option<String>> = futures::stream::iter(moving)
        .buffer_unordered(MAX_CONCURRENT)
        .try_collect()
        .await?;
    Ok(failures.into_iter().flatten().collect())
}

async fn images_in_state(
    app: &App,
    id: u64,
    state: &str,
) -> Result<Vec<CascadeImageRow>, StoreError> {
    let images = app.store.cascade_images(id).await?;
    Ok(images
        .into_iter()
        .filter(|image| image.state == state)
        .collect())
}

/// Returns a client with the logins of each task, by task name.
async fn clients_by_task(
    app: &App,
    images: &[CascadeImageRow],
) -> Result<HashMap<String, Arc<Registry>>, StoreError> {
    let tasks = app.tasks.current(&app.store).await?;
    let mut clients = HashMap::new();
    for image in images {
        if let Entry::Vacant(vacant) = clients.entry(image.task.clone()) {
            let task = tasks.find_by_name(&image.task);
            let task = task.map(|entry| (&*entry.task.id, &*entry.task.definition.name));
            vacant.insert(app.poller.client_for_task(app, task).await?);
        }
    }
    Ok(clients)
}

/// Stores the reason why an image is not moved.
async fn store_check(
    app: &App,
    image: &CascadeImageRow,
    read: Result<MoveCheck, String>,
) -> Result<CheckedMove, StoreError> {
    match read {
        Ok(MoveCheck::Ready(ready)) => Ok(Ok(Some(ready))),
        Ok(MoveCheck::Unwanted) => Ok(Ok(None)),
        Ok(MoveCheck::Unchanged(why)) => {
            app.store
                .set_image_error(image.cascade, &image.name, Some(&why))
                .await?;
            Ok(Ok(None))
        }
        Err(why) => store_failure(app, image.cascade, &image.name, why)
            .await
            .map(Err),
    }
}

async fn store_failure(app: &App, id: u64, name: &str, why: String) -> Result<String, StoreError> {
    app.store.set_image_error(id, name, Some(&why)).await?;
    Ok(format!("{name}: {why}"))
}

/// Limits a registry call to [`LIMIT`].
async fn with_timeout<T>(
    call: impl Future<Output = Result<T, acrtask_registry::RegistryError>>,
) -> Result<T, CallError> {
    match tokio::time::timeout(LIMIT, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) if error.is_not_found() => Err(CallError::NotFound(error_chain(&error))),
        Ok(Err(error)) => Err(CallError::Failed(error_chain(&error))),
        Err(_) => Err(CallError::Failed(format!(
            "the registry did not respond within {} s",
            LIMIT.as_secs()
        ))),
    }
}

enum CallError {
    NotFound(String),
    Failed(String),
}

impl From<CallError> for String {
    fn from(error: CallError) -> Self {
        match error {
            CallError::NotFound(why) | CallError::Failed(why) => why,
        }
    }
}

/// Returns the digest of a tag; `None` if the tag does not exist.
async fn resolve_digest(registry: &Registry, tag: &ImageRef) -> Result<Option<Digest>, String> {
    match with_timeout(registry.resolve(tag)).await {
        Ok(found) => Ok(Some(found.digest)),
        Err(CallError::NotFound(_)) => Ok(None),
        Err(CallError::Failed(why)) => Err(why),
    }
}

fn tag_and_client<'c>(
    clients: &'c HashMap<String, Arc<Registry>>,
    image: &CascadeImageRow,
) -> Result<(ImageRef, &'c Arc<Registry>), String> {
    let tag = image
        .name
        .parse::<ImageRef>()
        .map_err(|error| error.to_string())?;
    let client = clients
        .get(&image.task)
        .ok_or_else(|| format!("no login is stored for {}", image.name))?;
    Ok((tag, client))
}

async fn prepare_promotion(
    app: &App,
    clients: &HashMap<String, Arc<Registry>>,
    image: &CascadeImageRow,
) -> Result<Result<MoveCheck, String>, StoreError> {
    let (tag, registry) = match tag_and_client(clients, image) {
        Ok(found) => found,
        Err(why) => return Ok(Err(why)),
    };
    let before = match resolve_digest(registry, &tag).await {
        Ok(before) => before,
        Err(why) => return Ok(Err(why)),
    };
    // If a stopped server has moved the tag, its previous digest is stored already.
    let moved = before.as_ref() == Some(&image.after);
    let manifest = if moved {
        None
    } else {
        match with_timeout(registry.manifest(&tag.at(image.after.clone()))).await {
            Ok(manifest) => Some(manifest),
            Err(error) => return Ok(Err(error.into())),
        }
    };
    let until = lease_end(app.clock.now_ms());
    let before = (!moved).then_some(before.as_ref());
    let wanted = app
        .store
        .store_previous_digest(image.cascade, &image.name, &image.after, before, until)
        .await?;
    if !wanted {
        return Ok(Ok(MoveCheck::Unwanted));
    }
    Ok(Ok(MoveCheck::Ready(Box::new(TagMove {
        name: image.name.clone(),
        tag,
        digest: image.after.clone(),
        registry: Arc::clone(registry),
        manifest,
    }))))
}

async fn prepare_rollback(
    app: &App,
    clients: &HashMap<String, Arc<Registry>>,
    image: &CascadeImageRow,
) -> Result<Result<MoveCheck, String>, StoreError> {
    let Some(before) = &image.before else {
        let why = "the tag did not exist before; it is left unchanged".to_owned();
        return Ok(Ok(MoveCheck::Unchanged(why)));
    };
    let read = async {
        let (tag, registry) = tag_and_client(clients, image)?;
        let now = resolve_digest(registry, &tag).await?;
        let back = now.as_ref() == Some(before);
        if let Some(now) = now.filter(|now| !back && *now != image.after) {
            return Ok(MoveCheck::Unchanged(format!(
                "the tag now has {now} from another push; it is left unchanged"
            )));
        }
        let manifest = if back {
            None
        } else {
            Some(with_timeout(registry.manifest(&tag.at(before.clone()))).await?)
        };
        Ok(MoveCheck::Ready(Box::new(TagMove {
            name: image.name.clone(),
            tag,
            digest: before.clone(),
            registry: Arc::clone(registry),
            manifest,
        })))
    };
    let read = read.await;
    let until = lease_end(app.clock.now_ms());
    if !app
        .store
        .prepare_rollback(image.cascade, None, until)
        .await?
    {
        return Ok(Ok(MoveCheck::Unwanted));
    }
    Ok(read)
}

/// Moves a tag.
async fn move_tag(ready: &TagMove) -> Result<(), String> {
    let Some(manifest) = &ready.manifest else {
        return Ok(());
    };
    let put = ready
        .registry
        .put_manifest(&ready.tag, &manifest.media_type, manifest.raw.clone());
    let digest = with_timeout(put).await?;
    if digest != ready.digest {
        return Err(format!(
            "{} should have {} but has {digest}",
            ready.tag, ready.digest
        ));
    }
    tracing::info!(tag = %ready.tag, %digest, "moved a tag");
    Ok(())
}
