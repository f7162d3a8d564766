//! What is known of images and bases, as the planner's graph. Read anew each time, in a few statements whatever the number
//! of tasks.
//!
//! Three rules go beyond copying rows. A move of a tag that is none for an image's platforms is no move for it. The tag of
//! an image of our own has what was pushed last until somebody has looked at it later than that. An image that is held
//! back counts as pushed.

use std::collections::{BTreeMap, HashMap};

use acrtask_api::image::BasePolicy;
use acrtask_cascade::{
    Graph, GraphBuilder,
    graph::{BaseFacts, Policy, TagFacts, TaskFacts},
};
use acrtask_model::{Digest, ImageRef};
use acrtask_store::{BaseTag, HeldImage, ImageBaseRow, ImageRow, Ms, StoreError, timestamp};

use crate::{App, bases::known};

/// A look that began before a push may end so long after it, and see what was there before.
const LOOK_MS: Ms = 30_000;

/// Everything that is known now.
pub(super) async fn read(app: &App) -> Result<Graph, StoreError> {
    let tasks = app.tasks.current(&app.store).await?;
    let policies: HashMap<&str, (&str, Policy)> = tasks
        .iter()
        .map(|entry| {
            let definition = &entry.task.definition;
            let policy = match known::policy(definition) {
                BasePolicy::Runtime => Policy::Runtime,
                BasePolicy::All => Policy::All,
                BasePolicy::None => Policy::None,
            };
            (entry.task.id.as_str(), (definition.name.as_str(), policy))
        })
        .collect();
    let tags = tags(app).await?;
    // What a tag was found to hold may be newer than what stands on it here, and is never older.
    let moved = app.store.moved_bases().await?;
    let mut not_for_it: HashMap<(&str, &str, &Digest), &Digest> = HashMap::new();
    for one in moved.iter().filter(|one| !one.touched) {
        not_for_it.insert((&one.image, &one.base, &one.used), &one.now);
    }
    let held = app.store.held_images().await?;
    let standing = Standing::of(&held);
    let images = app.store.image_graph().await?;

    let mut builder = GraphBuilder::default();
    let mut found: BTreeMap<&str, TaskFacts> = policies
        .values()
        .map(|(name, policy)| (*name, task(name, *policy)))
        .collect();
    let used = |image: &str, base: &ImageBaseRow| {
        let now = tags.get(&base.name).map(|tag| &tag.digest);
        let passed_by = not_for_it.get(&(image, base.name.as_str(), &base.digest));
        match (passed_by, now) {
            (Some(moved), Some(now)) if *moved == now => now.clone(),
            _ => base.digest.clone(),
        }
    };
    let mut own: HashMap<&str, Ms> = HashMap::new();
    // By task: when it pushed last without holding anything back.
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
        if standing.replaces(&task.name, image.built_at) {
            continue;
        }
        own.insert(&image.name, image.built_at);
        take(task, &image.name, &image.digest, bases, &used);
    }
    for image in &held {
        let Some(task) = found.get_mut(image.task.as_str()) else {
            continue;
        };
        if standing.is_last(image) && newest.get(image.task.as_str()) <= Some(&image.at) {
            own.insert(&image.name, Ms::MAX);
            take(task, &image.name, &image.digest, &image.bases, &used);
        }
    }
    for task in found.values().filter(|task| !task.images.is_empty()) {
        builder.task(task);
    }
    for (name, tag) in &tags {
        let outdated = own
            .get(name.as_str())
            .is_some_and(|since| tag.checked_at < since.saturating_add(LOOK_MS));
        if !outdated && let Ok(image) = name.parse::<ImageRef>() {
            builder.tag(&image, &tag.digest);
            if let Some(at) = tag.moved_at {
                builder.moved(&image, timestamp(at));
            }
        }
    }
    Ok(builder.finish())
}

/// The last held run of each task.
struct Standing<'h>(HashMap<&'h str, (u64, Ms)>);

impl<'h> Standing<'h> {
    fn of(held: &'h [HeldImage]) -> Self {
        let mut last = HashMap::new();
        // The newest cascade comes last.
        for image in held {
            last.insert(image.task.as_str(), (image.cascade, image.at));
        }
        Self(last)
    }

    /// Whether it came after what the task pushed then.
    fn replaces(&self, task: &str, built_at: Ms) -> bool {
        self.0.get(task).is_some_and(|(_, at)| *at >= built_at)
    }

    fn is_last(&self, image: &HeldImage) -> bool {
        self.0
            .get(image.task.as_str())
            .is_some_and(|(cascade, _)| *cascade == image.cascade)
    }
}

fn run_ms(image: &ImageRow) -> Option<u64> {
    image.run_ms.and_then(|ms| u64::try_from(ms).ok())
}

fn task(name: &str, policy: Policy) -> TaskFacts {
    TaskFacts {
        name: name.to_owned(),
        policy,
        images: Vec::new(),
        bases: Vec::new(),
        run_ms: None,
    }
}

/// Adds an image to its task.
fn take(
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

/// What each watched tag holds, by name. Of several logins, what was seen last.
async fn tags(app: &App) -> Result<HashMap<String, BaseTag>, StoreError> {
    let mut tags: HashMap<String, BaseTag> = HashMap::new();
    for tag in app.store.base_tags().await? {
        let known = tags.get(&tag.name).map(|tag| tag.checked_at);
        if known.is_none_or(|known| known < tag.checked_at) {
            tags.insert(tag.name.clone(), tag);
        }
    }
    Ok(tags)
}
