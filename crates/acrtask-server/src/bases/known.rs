//! What is known of images and their bases, read anew each time: who stands on what, and what is stale.
//!
//! Invariant: an image is stale when a base of it holds another digest than it was built from, in a role that counts for
//! its task, and with another image for a platform of its own.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use acrtask_api::{
    image::{BaseEffect, BasePolicy, BlastImage, ImageBase, ImageTree, StaleBase},
    task::{BaseImageTriggerType, TaskDefinition},
};
use acrtask_model::events::BaseRole;
use acrtask_store::{ImageBaseRow, ImageRow, Moved, StoreError, TaskFilter};

use crate::App;

/// Tasks that are read at once.
const TASKS: u32 = 500;

/// Which bases make images of a task stale. A task that is off builds nothing.
pub(crate) fn policy(definition: &TaskDefinition) -> BasePolicy {
    if !definition.enabled {
        return BasePolicy::None;
    }
    match &definition.triggers.base_image {
        None => BasePolicy::Runtime,
        Some(trigger) if !trigger.enabled => BasePolicy::None,
        Some(trigger) => match trigger.r#type {
            BaseImageTriggerType::Runtime => BasePolicy::Runtime,
            BaseImageTriggerType::All => BasePolicy::All,
            BaseImageTriggerType::None => BasePolicy::None,
        },
    }
}

/// The policies of all tasks, by id.
pub(crate) async fn policies(app: &App) -> Result<HashMap<String, BasePolicy>, StoreError> {
    let mut found = HashMap::new();
    let mut after = None;
    loop {
        let page = app
            .store
            .tasks(TaskFilter {
                after: after.take(),
                limit: TASKS,
                ..TaskFilter::default()
            })
            .await?;
        let full = page.len() >= TASKS as usize;
        for task in page {
            found.insert(task.id, policy(&task.definition));
            after = Some(task.definition.name);
        }
        if !full {
            return Ok(found);
        }
    }
}

/// Which images are stale, and why.
#[derive(Debug)]
pub(crate) struct Stale {
    policies: HashMap<String, BasePolicy>,
    moved: Vec<Moved>,
    of: BTreeMap<String, Vec<StaleBase>>,
}

impl Stale {
    /// As it is now.
    pub(crate) async fn read(app: &App) -> Result<Self, StoreError> {
        let policies = policies(app).await?;
        let moved = app.store.moved_bases().await?;
        let mut of: BTreeMap<String, Vec<StaleBase>> = BTreeMap::new();
        for one in &moved {
            let policy = policies.get(&one.task_id);
            if one.touched && policy.is_some_and(|policy| policy.counts(one.role)) {
                of.entry(one.image.clone()).or_default().push(StaleBase {
                    name: one.base.clone(),
                    role: one.role,
                    used: one.used.clone(),
                    now: one.now.clone(),
                });
            }
        }
        Ok(Self {
            policies,
            moved,
            of,
        })
    }

    /// What makes an image stale.
    pub(crate) fn of(&self, image: &str) -> Vec<StaleBase> {
        self.of.get(image).cloned().unwrap_or_default()
    }

    /// Whether an image is stale.
    pub(crate) fn is(&self, image: &str) -> bool {
        self.of.contains_key(image)
    }

    /// Which bases count for an image.
    pub(crate) fn policy(&self, image: &ImageRow) -> BasePolicy {
        let task = image.task_id.as_ref().filter(|_| image.newest);
        task.and_then(|id| self.policies.get(id))
            .copied()
            .unwrap_or(BasePolicy::None)
    }

    /// A base of an image as people see it. `built_by`: the task that builds the base.
    pub(crate) fn base(
        &self,
        image: &ImageRow,
        base: ImageBaseRow,
        built_by: Option<String>,
    ) -> ImageBase {
        let moved = self.moved.iter().find(|one| {
            one.image == image.name && one.base == base.name && one.used == base.digest
        });
        let policy = self.policy(image);
        let effect = if base.pinned {
            BaseEffect::Pinned
        } else if !image.task_lives || !image.newest {
            BaseEffect::NoTask
        } else if !policy.counts(base.role) {
            BaseEffect::DoesNotCount
        } else {
            match moved {
                None => BaseEffect::WouldRebuild,
                Some(one) if one.touched => BaseEffect::Stale,
                Some(_) => BaseEffect::OtherPlatform,
            }
        };
        ImageBase {
            now: moved.map(|one| one.now.clone()),
            effect,
            name: base.name,
            role: base.role,
            digest: base.digest,
            evidence: base.evidence,
            platforms: base.platforms,
            built_by,
            newer: None,
        }
    }
}

/// Who stands on what.
#[derive(Debug)]
pub(crate) struct Standing {
    images: BTreeMap<String, ImageRow>,
    /// From a base to what stands on it, with what the base is to it.
    on: BTreeMap<String, BTreeMap<String, Vec<BaseRole>>>,
}

impl Standing {
    /// As it is now, of the images whose task `sees` lets through.
    pub(crate) async fn read(
        app: &App,
        sees: impl Fn(Option<&str>) -> bool,
    ) -> Result<Self, StoreError> {
        Ok(Self::of(
            app.store
                .image_graph()
                .await?
                .into_iter()
                .filter(|(image, _)| sees(image.task_name.as_deref())),
        ))
    }

    fn of(graph: impl Iterator<Item = (ImageRow, Vec<ImageBaseRow>)>) -> Self {
        let mut standing = Self {
            images: BTreeMap::new(),
            on: BTreeMap::new(),
        };
        for (image, bases) in graph {
            for base in bases {
                let users = standing.on.entry(base.name).or_default();
                let roles = users.entry(image.name.clone()).or_default();
                if !roles.contains(&base.role) {
                    roles.push(base.role);
                }
            }
            standing.images.insert(image.name.clone(), image);
        }
        standing
    }

    /// Whether anything is known of an image.
    pub(crate) fn knows(&self, name: &str) -> bool {
        self.images.contains_key(name) || self.on.contains_key(name)
    }

    /// Whether an image stands on it.
    pub(crate) fn is_base(&self, name: &str) -> bool {
        self.on.contains_key(name)
    }

    /// Returns the number of images that stand on a base.
    pub(crate) fn users(&self, name: &str) -> u64 {
        self.on.get(name).map_or(0, |users| users.len() as u64)
    }

    /// The task that builds an image.
    pub(crate) fn task(&self, name: &str) -> Option<&str> {
        self.images.get(name)?.task_name.as_deref()
    }

    fn above(&self, name: &str, all: bool) -> impl Iterator<Item = &str> {
        self.on
            .get(name)
            .into_iter()
            .flatten()
            .filter(move |(_, roles)| all || roles.contains(&BaseRole::Runtime))
            .map(|(image, _)| image.as_str())
    }

    /// The tree that stands on `root`; without one, a tree for each image that nobody here builds, and for each that
    /// stands on nothing. `all`: not runtime bases alone.
    pub(crate) fn trees(&self, root: Option<&str>, all: bool, stale: &Stale) -> Vec<ImageTree> {
        let roots: BTreeSet<&str> = match root {
            Some(root) => BTreeSet::from([root]),
            None => {
                let standing: BTreeSet<&str> = self
                    .on
                    .keys()
                    .flat_map(|base| self.above(base, all))
                    .collect();
                let named = self.on.keys().map(String::as_str);
                let own = self.images.keys().map(String::as_str);
                named
                    .chain(own)
                    .filter(|name| !standing.contains(name))
                    .filter(|name| {
                        self.images.contains_key(*name) || self.above(name, all).next().is_some()
                    })
                    .collect()
            }
        };
        let mut shown = BTreeSet::new();
        roots
            .into_iter()
            .map(|root| self.tree(root, all, stale, &mut shown))
            .collect()
    }

    fn tree<'s>(
        &'s self,
        name: &'s str,
        all: bool,
        stale: &Stale,
        shown: &mut BTreeSet<&'s str>,
    ) -> ImageTree {
        let fresh = shown.insert(name);
        let above: Vec<&str> = self.above(name, all).collect();
        ImageTree {
            name: name.to_owned(),
            task: self.task(name).map(str::to_owned),
            stale: stale.is(name),
            repeated: !fresh && !above.is_empty(),
            images: if fresh {
                above
                    .into_iter()
                    .map(|image| self.tree(image, all, stale, shown))
                    .collect()
            } else {
                Vec::new()
            },
        }
    }

    /// Everything that stands on `base`, by distance and name.
    pub(crate) fn blast_radius(&self, base: &str, stale: &Stale) -> Vec<BlastImage> {
        let mut distance: BTreeMap<&str, u32> = BTreeMap::from([(base, 0)]);
        let mut waiting = VecDeque::from([base]);
        while let Some(name) = waiting.pop_front() {
            let far = distance[name] + 1;
            for image in self.above(name, true) {
                distance.entry(image).or_insert_with(|| {
                    waiting.push_back(image);
                    far
                });
            }
        }
        // What is built again makes what stands on it be built again, where it counts there.
        let counts = |image: &str, roles: &[BaseRole]| {
            let policy = self.images.get(image).map(|row| stale.policy(row));
            policy.is_some_and(|policy| roles.iter().any(|role| policy.counts(*role)))
        };
        let mut rebuilt: BTreeSet<&str> = BTreeSet::from([base]);
        let mut waiting = VecDeque::from([base]);
        while let Some(name) = waiting.pop_front() {
            for (image, roles) in self.on.get(name).into_iter().flatten() {
                if counts(image, roles) && rebuilt.insert(image) {
                    waiting.push_back(image);
                }
            }
        }
        // From an image to what it stands on of all this, edge by edge: there may be very many images.
        let mut through: BTreeMap<&str, BTreeMap<String, Vec<BaseRole>>> = BTreeMap::new();
        for from in distance.keys() {
            for (image, roles) in self.on.get(*from).into_iter().flatten() {
                let of = through.entry(image).or_default();
                of.insert((*from).to_owned(), roles.clone());
            }
        }
        let mut found: Vec<BlastImage> = distance
            .iter()
            .filter(|(name, _)| **name != base)
            .map(|(name, far)| BlastImage {
                name: (*name).to_owned(),
                task: self.task(name).map(str::to_owned),
                distance: *far,
                through: through.remove(name).unwrap_or_default(),
                rebuilt: rebuilt.contains(name),
            })
            .collect();
        found.sort_by(|a, b| (a.distance, &a.name).cmp(&(b.distance, &b.name)));
        found
    }
}

#[cfg(test)]
mod tests {
    use acrtask_model::events::Evidence;

    use super::*;

    /// An image, and the one that it stands on.
    fn image(name: &str, base: &str) -> (ImageRow, Vec<ImageBaseRow>) {
        let digest = crate::api::testing::sha('a');
        let row = ImageRow {
            name: name.to_owned(),
            digest: digest.clone(),
            task_id: None,
            task_name: None,
            task_lives: false,
            run: acrtask_model::RunId::new("r1").unwrap(),
            built_at: 0,
            run_ms: None,
            platforms: Vec::new(),
            newest: true,
        };
        let base = ImageBaseRow {
            name: base.to_owned(),
            digest,
            role: BaseRole::Runtime,
            evidence: Evidence::Provenance,
            pinned: false,
            platforms: Vec::new(),
        };
        (row, vec![base])
    }

    #[test]
    fn a_radius_is_found_among_very_many_images() {
        let graph = (0..30_000).map(|number| image(&format!("app{number}:1"), "base:1"));
        let graph = graph.chain([image("last:1", "app7:1")]);
        let standing = Standing::of(graph);
        let stale = Stale {
            policies: HashMap::new(),
            moved: Vec::new(),
            of: BTreeMap::new(),
        };
        let began = std::time::Instant::now();
        let found = standing.blast_radius("base:1", &stale);
        assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
        assert_eq!(found.len(), 30_001);
        let last = &found[30_000];
        assert_eq!((last.name.as_str(), last.distance), ("last:1", 2));
        let through: Vec<&str> = last.through.keys().map(String::as_str).collect();
        assert_eq!(through, ["app7:1"]);
    }
}
