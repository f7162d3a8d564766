//! Stale images and the graph of images and bases. Both are read from the database for each
//! request.
//!
//! Invariant: an image is stale if the digest of one of its bases has changed since the build. The
//! base's role must count for the image's task, and the change must affect a platform of the image.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use acrtask_api::{
    image::{BaseEffect, BasePolicy, BlastImage, ImageBase, ImageTree, StaleBase},
    task::{BaseImageTriggerType, TaskDefinition},
};
use acrtask_model::events::BaseRole;
use acrtask_store::{ImageBaseRow, ImageRow, StaleBaseRow, StoreError, TaskFilter};

use crate::App;

/// Number of tasks to read per query.
const TASKS: u32 = 500;

/// Returns the policy for bases of a task. Disabled tasks build nothing, so no base counts for
/// them.
pub(crate) fn base_policy(definition: &TaskDefinition) -> BasePolicy {
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

/// Returns the policies of all tasks, by task id.
pub(crate) async fn read_policies(app: &App) -> Result<HashMap<String, BasePolicy>, StoreError> {
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
            found.insert(task.id, base_policy(&task.definition));
            after = Some(task.definition.name);
        }
        if !full {
            return Ok(found);
        }
    }
}

/// Stale images with the bases that changed.
#[derive(Debug)]
pub(crate) struct Staleness {
    policies: HashMap<String, BasePolicy>,
    moved: Vec<StaleBaseRow>,
    changed_bases: BTreeMap<String, Vec<StaleBase>>,
}

impl Staleness {
    /// Reads the current state from the database.
    pub(crate) async fn read(app: &App) -> Result<Self, StoreError> {
        let policies = read_policies(app).await?;
        let moved = app.store.stale_bases().await?;
        let mut changed_bases: BTreeMap<String, Vec<StaleBase>> = BTreeMap::new();
        for one in &moved {
            let policy = policies.get(&one.task_id);
            if one.affects_platforms && policy.is_some_and(|policy| policy.counts(one.role)) {
                changed_bases
                    .entry(one.image.clone())
                    .or_default()
                    .push(StaleBase {
                        reference: one.base.clone(),
                        role: one.role,
                        from: one.used.clone(),
                        to: one.now.clone(),
                    });
            }
        }
        Ok(Self {
            policies,
            moved,
            changed_bases,
        })
    }

    /// Returns the bases that make an image stale.
    pub(crate) fn changed_bases(&self, image: &str) -> Vec<StaleBase> {
        self.changed_bases.get(image).cloned().unwrap_or_default()
    }

    /// Returns `true` if an image is stale.
    pub(crate) fn is_stale(&self, image: &str) -> bool {
        self.changed_bases.contains_key(image)
    }

    /// Returns the names of all stale images.
    pub(crate) fn stale_images(&self) -> impl Iterator<Item = &str> {
        self.changed_bases.keys().map(String::as_str)
    }

    /// Returns the policy for the bases of an image. No base counts unless the image is the newest
    /// of an existing task.
    pub(crate) fn policy_of(&self, image: &ImageRow) -> BasePolicy {
        let task = image.task_id.as_ref().filter(|_| image.newest);
        task.and_then(|id| self.policies.get(id))
            .copied()
            .unwrap_or(BasePolicy::None)
    }

    /// Returns a base of an image for the API. `built_by` is the task that builds the base.
    pub(crate) fn to_image_base(
        &self,
        image: &ImageRow,
        base: ImageBaseRow,
        built_by: Option<String>,
    ) -> ImageBase {
        let moved = self.moved.iter().find(|one| {
            one.image == image.name && one.base == base.name && one.used == base.digest
        });
        let policy = self.policy_of(image);
        let effect = if base.pinned {
            BaseEffect::Pinned
        } else if !image.task_exists || !image.newest {
            BaseEffect::NoTask
        } else if !policy.counts(base.role) {
            BaseEffect::Ignored
        } else {
            match moved {
                None => BaseEffect::WouldRebuild,
                Some(one) if one.affects_platforms => BaseEffect::Stale,
                Some(_) => BaseEffect::OtherPlatform,
            }
        };
        ImageBase {
            current_digest: moved.map(|one| one.now.clone()),
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

/// Images, and the images that depend on each base.
#[derive(Debug)]
pub(crate) struct ImageGraph {
    images: BTreeMap<String, ImageRow>,
    /// Per base: the images that depend on it, with the base's roles.
    dependents: BTreeMap<String, BTreeMap<String, Vec<BaseRole>>>,
}

impl ImageGraph {
    /// Reads the current graph. Includes only images whose task passes the filter `is_visible`.
    pub(crate) async fn read(
        app: &App,
        is_visible: impl Fn(Option<&str>) -> bool,
    ) -> Result<Self, StoreError> {
        Ok(Self::from_rows(
            app.store
                .image_graph()
                .await?
                .into_iter()
                .filter(|(image, _)| is_visible(image.task_name.as_deref())),
        ))
    }

    fn from_rows(rows: impl Iterator<Item = (ImageRow, Vec<ImageBaseRow>)>) -> Self {
        let mut graph = Self {
            images: BTreeMap::new(),
            dependents: BTreeMap::new(),
        };
        for (image, bases) in rows {
            for base in bases {
                let users = graph.dependents.entry(base.name).or_default();
                let roles = users.entry(image.name.clone()).or_default();
                if !roles.contains(&base.role) {
                    roles.push(base.role);
                }
            }
            graph.images.insert(image.name.clone(), image);
        }
        graph
    }

    /// Returns `true` if the graph contains `name` as an image or a base.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.images.contains_key(name) || self.dependents.contains_key(name)
    }

    /// Returns `true` if an image depends on `name` directly.
    pub(crate) fn is_base(&self, name: &str) -> bool {
        self.dependents.contains_key(name)
    }

    /// Returns the number of images that depend on a base directly.
    pub(crate) fn dependent_count(&self, name: &str) -> u64 {
        self.dependents
            .get(name)
            .map_or(0, |users| users.len() as u64)
    }

    /// Returns the name of the task that builds an image.
    pub(crate) fn builder_of(&self, name: &str) -> Option<&str> {
        self.images.get(name)?.task_name.as_deref()
    }

    fn direct_dependents(&self, name: &str, all: bool) -> impl Iterator<Item = &str> {
        self.dependents
            .get(name)
            .into_iter()
            .flatten()
            .filter(move |(_, roles)| all || roles.contains(&BaseRole::Runtime))
            .map(|(image, _)| image.as_str())
    }

    /// Returns the tree of dependents of `root`.
    ///
    /// Without a root, returns one tree per image that depends on nothing. With `all`, includes all
    /// roles, otherwise only runtime bases.
    pub(crate) fn build_trees(
        &self,
        root: Option<&str>,
        all: bool,
        stale: &Staleness,
    ) -> Vec<ImageTree> {
        let roots: BTreeSet<&str> = match root {
            Some(root) => BTreeSet::from([root]),
            None => {
                let dependents: BTreeSet<&str> = self
                    .dependents
                    .keys()
                    .flat_map(|base| self.direct_dependents(base, all))
                    .collect();
                let named = self.dependents.keys().map(String::as_str);
                let own = self.images.keys().map(String::as_str);
                named
                    .chain(own)
                    .filter(|name| !dependents.contains(name))
                    .filter(|name| {
                        self.images.contains_key(*name)
                            || self.direct_dependents(name, all).next().is_some()
                    })
                    .collect()
            }
        };
        let mut shown = BTreeSet::new();
        roots
            .into_iter()
            .map(|root| self.build_tree(root, all, stale, &mut shown))
            .collect()
    }

    fn build_tree<'s>(
        &'s self,
        name: &'s str,
        all: bool,
        stale: &Staleness,
        shown: &mut BTreeSet<&'s str>,
    ) -> ImageTree {
        let fresh = shown.insert(name);
        let images: Vec<&str> = self.direct_dependents(name, all).collect();
        ImageTree {
            name: name.to_owned(),
            task: self.builder_of(name).map(str::to_owned),
            stale: stale.is_stale(name),
            repeated: !fresh && !images.is_empty(),
            images: if fresh {
                images
                    .into_iter()
                    .map(|image| self.build_tree(image, all, stale, shown))
                    .collect()
            } else {
                Vec::new()
            },
        }
    }

    /// Returns all dependents of `base`, direct or not, ordered by distance and name.
    pub(crate) fn blast_radius(&self, base: &str, stale: &Staleness) -> Vec<BlastImage> {
        let mut distance: BTreeMap<&str, u32> = BTreeMap::from([(base, 0)]);
        let mut waiting = VecDeque::from([base]);
        while let Some(name) = waiting.pop_front() {
            let far = distance[name] + 1;
            for image in self.direct_dependents(name, true) {
                distance.entry(image).or_insert_with(|| {
                    waiting.push_back(image);
                    far
                });
            }
        }
        // A rebuilt image causes its dependents to be rebuilt if its role counts for them.
        let counts = |image: &str, roles: &[BaseRole]| {
            let policy = self.images.get(image).map(|row| stale.policy_of(row));
            policy.is_some_and(|policy| roles.iter().any(|role| policy.counts(*role)))
        };
        let mut rebuilt: BTreeSet<&str> = BTreeSet::from([base]);
        let mut waiting = VecDeque::from([base]);
        while let Some(name) = waiting.pop_front() {
            for (image, roles) in self.dependents.get(name).into_iter().flatten() {
                if counts(image, roles) && rebuilt.insert(image) {
                    waiting.push_back(image);
                }
            }
        }
        // For each image, the bases of this set that it depends on. One pass over the edges keeps
        // this fast for very many images.
        let mut through: BTreeMap<&str, BTreeMap<String, Vec<BaseRole>>> = BTreeMap::new();
        for from in distance.keys() {
            for (image, roles) in self.dependents.get(*from).into_iter().flatten() {
                let of = through.entry(image).or_default();
                of.insert((*from).to_owned(), roles.clone());
            }
        }
        let mut found: Vec<BlastImage> = distance
            .iter()
            .filter(|(name, _)| **name != base)
            .map(|(name, far)| BlastImage {
                name: (*name).to_owned(),
                task: self.builder_of(name).map(str::to_owned),
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

    /// Returns an image and its base.
    fn image_with_base(name: &str, base: &str) -> (ImageRow, Vec<ImageBaseRow>) {
        let digest = crate::api::testing::letter_digest('a');
        let row = ImageRow {
            name: name.to_owned(),
            digest: digest.clone(),
            task_id: None,
            task_name: None,
            task_exists: false,
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
    fn blast_radius_is_fast_for_many_images() {
        let rows = (0..30_000).map(|number| image_with_base(&format!("app{number}:1"), "base:1"));
        let rows = rows.chain([image_with_base("last:1", "app7:1")]);
        let graph = ImageGraph::from_rows(rows);
        let stale = Staleness {
            policies: HashMap::new(),
            moved: Vec::new(),
            changed_bases: BTreeMap::new(),
        };
        let began = std::time::Instant::now();
        let found = graph.blast_radius("base:1", &stale);
        assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
        assert_eq!(found.len(), 30_001);
        let last = &found[30_000];
        assert_eq!((last.name.as_str(), last.distance), ("last:1", 2));
        let through: Vec<&str> = last.through.keys().map(String::as_str).collect();
        assert_eq!(through, ["app7:1"]);
    }
}
