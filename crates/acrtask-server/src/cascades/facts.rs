//! Facts about images and bases as the planner's graph.
//!
//! The facts are read from the database each time, with a constant number of statements.
//!
//! Three rules go beyond copying rows:
//!
//! - A tag move that does not change an image's platforms is not a change for that image.
//! - The tag of a task's image has the digest of the last push until a later poll.
//! - A staged image counts as pushed.

use std::collections::{BTreeMap, HashMap};

use acrtask_api::image::BasePolicy;
use acrtask_cascade::{
    Graph, GraphBuilder,
    graph::{BaseFacts, Policy, TagFacts, TaskFacts},
};
use acrtask_model::{Digest, ImageRef};
use acrtask_store::{BaseTag, ImageBaseRow, ImageRow, Ms, StagedImage, StoreError, timestamp};

use crate::{App, bases::staleness};

/// Maximum duration of a poll. A poll that began before a push may end this much later with the old
/// digest.
const MAX_POLL_MS: Ms = 30_000;

/// Reads the current facts.
pub(super) async fn read_graph(app: &App) -> Result<Graph, StoreError> {
    let tasks = app.tasks.current(&app.store).await?;
    let policies: HashMap<&str, (&str, Policy)> = tasks
        .iter()
        .map(|entry| {
            let definition = &entry.task.definition;
            let policy = match staleness::base_policy(definition) {
                BasePolicy::Runtime => Policy::Runtime,
                BasePolicy::All => Policy::All,
                BasePolicy::None => Policy::None,
            };
            (entry.task.id.as_str(), (definition.name.as_str(), policy))
        })
        .collect();
    let tags = read_tags(app).await?;
    // A polled digest may be newer than the image rows read here, but never older.
    let moved = app.store.stale_bases().await?;
    let mut unaffecting: HashMap<(&str, &str, &Digest), &Digest> = HashMap::new();
    for one in moved.iter().filter(|one| !one.affects_platforms) {
        unaffecting.insert((&one.image, &one.base, &one.used), &one.now);
    }
    let staged = app.store.staged_images().await?;
    let last_staged = LastStaged::from_images(&staged);
    let images = app.store.image_graph().await?;

    let mut builder = GraphBuilder::default();
    let mut found: BTreeMap<&str, TaskFacts> = policies
        .values()
        .map(|(name, policy)| (*name, empty_task(name, *policy)))
        .collect();
    let used = |image: &str, base: &ImageBaseRow| {
        let now = tags.get(&base.name).map(|tag| &tag.digest);
        let unaffecting_digest = unaffecting.get(&(image, base.name.as_str(), &base.digest));
        match (unaffecting_digest, now) {
            (Some(moved), Some(now)) if *moved == now => now.clone(),
            _ => base.digest.clone(),
        }
    };
    let mut own: HashMap<&str, Ms> = HashMap::new();
    // Time of the last push that was not staged, by task.
    let mut newest: HashMap<&str, Ms> = HashMap::new();
    for (image, bases) in &images {
        let owner = image.task_id.as_deref().and_then(|id| policies.get(id));
        let Some(task) = owner.and_then(|(name, _)| found.get_mut(name)) else {
            continue;
        };
        task.run_ms = task.run_ms.max(run_ms(image));
        if let Some((name, _)) = owner {
            let last = newest.entry(*name).or_insert(image.built_at);
            *last = image.built_at.max(*last);
        }
        if last_staged.replaces(&task.name, image.built_at) {
            continue;
        }
        own.insert(&image.name, image.built_at);
        add_image(task, &image.name, &image.digest, bases, &used);
    }
    for image in &staged {
        let Some(task) = found.get_mut(image.task.as_str()) else {
            continue;
        };
        if last_staged.is_last(image) && newest.get(image.task.as_str()) <= Some(&image.pushed_at) {
            own.insert(&image.name, Ms::MAX);
            add_image(task, &image.name, &image.digest, &image.bases, &used);
        }
    }
    for task in found.values().filter(|task| !task.images.is_empty()) {
        builder.add_task(task);
    }
    for (name, tag) in &tags {
        let outdated = own
            .get(name.as_str())
            .is_some_and(|since| tag.checked_at < since.saturating_add(MAX_POLL_MS));
        if !outdated && let Ok(image) = name.parse::<ImageRef>() {
            builder.set_digest(&image, &tag.digest);
            if let Some(at) = tag.changed_at {
                builder.record_move(&image, timestamp(at));
            }
        }
    }
    Ok(builder.finish())
}

/// Last staging cascade of each task, with the time of its run.
struct LastStaged<'h>(HashMap<&'h str, (u64, Ms)>);

impl<'h> LastStaged<'h> {
    fn from_images(staged: &'h [StagedImage]) -> Self {
        let mut last = HashMap::new();
        // Rows are sorted by cascade, so the newest cascade wins.
        for image in staged {
            last.insert(image.task.as_str(), (image.cascade, image.pushed_at));
        }
        Self(last)
    }

    /// Returns `true` if the staged images of the task are newer than those pushed at `built_at`.
    fn replaces(&self, task: &str, built_at: Ms) -> bool {
        self.0.get(task).is_some_and(|(_, at)| *at >= built_at)
    }

    fn is_last(&self, image: &StagedImage) -> bool {
        self.0
            .get(image.task.as_str())
            .is_some_and(|(cascade, _)| *cascade == image.cascade)
    }
}

fn run_ms(image: &ImageRow) -> Option<u64> {
    image.run_ms.and_then(|ms| u64::try_from(ms).ok())
}

fn empty_task(name: &str, policy: Policy) -> TaskFacts {
    TaskFacts {
        name: name.to_owned(),
        policy,
        images: Vec::new(),
        bases: Vec::new(),
        run_ms: None,
    }
}

/// Adds an image to its task.
fn add_image(
    task: &mut TaskFacts,
    name: &str,
    digest: &Digest,
    bases: &[ImageBaseRow],
    used: &impl Fn(&str, &ImageBaseRow) -> Digest,
) {
    let Ok(image) = name.parse::<ImageRef>() else {
        return;
    };
    task.images.push(TagFacts {
        image,
        digest: digest.clone(),
    });
    for base in bases.iter().filter(|base| !base.pinned) {
        if let Ok(reference) = base.name.parse::<ImageRef>() {
            task.bases.push(BaseFacts {
                image: reference,
                role: base.role,
                digest: used(name, base),
            });
        }
    }
}

/// Returns the digest of each watched tag, by name. If several logins poll a tag, the latest poll
/// counts.
async fn read_tags(app: &App) -> Result<HashMap<String, BaseTag>, StoreError> {
    let mut tags: HashMap<String, BaseTag> = HashMap::new();
    for tag in app.store.base_tags().await? {
        let checked_at = tags.get(&tag.name).map(|tag| tag.checked_at);
        if checked_at.is_none_or(|checked_at| checked_at < tag.checked_at) {
            tags.insert(tag.name.clone(), tag);
        }
    }
    Ok(tags)
}
