//! Which tasks belong to a repository, and which run for pushed images: read once, and again only when a task changed.
//!
//! Invariant: what is used is as new as the database was when the delivery was looked at. The database counts changes of
//! tasks; where the count is what it was, nothing is read again. Tasks that did not change are not parsed again.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, PoisonError, RwLock},
};

use acrtask_api::task::Task;
use acrtask_store::{Store, StoreError};
use acrtask_trigger::{ImageRules, Repository, RepositoryUrl, TriggerRules};
use tokio::sync::Mutex;

/// Tasks that are read in one statement.
const PAGE: usize = 1000;

/// A task, and what starts runs of it.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) task: Task,
    /// Nothing: it does not run for commits.
    pub(crate) commits: Option<Result<TriggerRules, String>>,
    /// Nothing: it does not run for images.
    pub(crate) images: Option<Result<ImageRules, String>>,
    /// The repository of its context.
    pub(crate) repository: Option<RepositoryUrl>,
}

impl Entry {
    fn new(task: Task) -> Self {
        let definition = &task.definition;
        let context = definition.context.as_deref();
        let told = |errors: Vec<acrtask_trigger::rules::RuleError>| {
            let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
            errors.join("; ")
        };
        let commits = definition
            .triggers
            .commit
            .as_ref()
            .map(|trigger| TriggerRules::new(trigger, context).map_err(told));
        let images = definition
            .triggers
            .registry_push
            .as_ref()
            .map(|trigger| ImageRules::new(trigger).map_err(told));
        let repository = context.and_then(|context| {
            let address = context.split('#').next().unwrap_or_default();
            if address.starts_with("github.com/") {
                RepositoryUrl::parse(&format!("https://{address}"))
            } else {
                RepositoryUrl::parse(address)
            }
        });
        Self {
            task,
            commits,
            images,
            repository,
        }
    }
}

/// All tasks, as they were at one moment.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    version: i64,
    by_id: HashMap<String, Arc<Entry>>,
    by_repository: HashMap<RepositoryUrl, Vec<Arc<Entry>>>,
    of_images: Vec<Arc<Entry>>,
}

impl Tasks {
    fn new(version: i64, entries: Vec<Arc<Entry>>) -> Self {
        let mut tasks = Self {
            version,
            ..Self::default()
        };
        for entry in entries {
            if let Some(repository) = &entry.repository {
                let of_repository = tasks.by_repository.entry(repository.clone()).or_default();
                of_repository.push(entry.clone());
            }
            if entry.images.is_some() {
                tasks.of_images.push(entry.clone());
            }
            tasks.by_id.insert(entry.task.id.clone(), entry);
        }
        tasks
    }

    /// The tasks of a repository, by name.
    pub(crate) fn of(&self, repository: &Repository) -> Vec<&Arc<Entry>> {
        let mut known = repository
            .urls
            .iter()
            .filter_map(|url| RepositoryUrl::parse(url))
            .peekable();
        let mut found: BTreeMap<&str, &Arc<Entry>> = BTreeMap::new();
        if known.peek().is_some() {
            for url in known {
                for entry in self.by_repository.get(&url).into_iter().flatten() {
                    found.insert(&entry.task.definition.name, entry);
                }
            }
        } else {
            // The sender tells a name only. That is rare, and there are fewer repositories than tasks.
            for (url, entries) in &self.by_repository {
                if repository.is(url) {
                    for entry in entries {
                        found.insert(&entry.task.definition.name, entry);
                    }
                }
            }
        }
        found.into_values().collect()
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.by_id.values()
    }

    /// The task with this name.
    pub(crate) fn named(&self, name: &str) -> Option<&Arc<Entry>> {
        self.iter().find(|entry| entry.task.definition.name == name)
    }

    /// The tasks that run for pushed images.
    pub(crate) fn of_images(&self) -> &[Arc<Entry>] {
        &self.of_images
    }
}

/// The tasks, kept between deliveries.
#[derive(Debug, Default)]
pub struct Index {
    kept: RwLock<Arc<Tasks>>,
    reading: Mutex<()>,
}

impl Index {
    /// All tasks as they are now.
    pub(crate) async fn current(&self, store: &Store) -> Result<Arc<Tasks>, StoreError> {
        // Before anything else is read: what is read after it is at least as new.
        let version = store.task_version().await?;
        if let Some(kept) = self.kept(version) {
            return Ok(kept);
        }
        let _one = self.reading.lock().await;
        let version = store.task_version().await?;
        if let Some(kept) = self.kept(version) {
            return Ok(kept);
        }
        let tasks = Arc::new(self.read(store, version).await?);
        *self.kept.write().unwrap_or_else(PoisonError::into_inner) = tasks.clone();
        Ok(tasks)
    }

    fn last(&self) -> Arc<Tasks> {
        self.kept
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn kept(&self, version: i64) -> Option<Arc<Tasks>> {
        Some(self.last()).filter(|kept| kept.version == version)
    }

    async fn read(&self, store: &Store, version: i64) -> Result<Tasks, StoreError> {
        let before = self.last();
        let mut entries = Vec::new();
        let mut changed = Vec::new();
        for (id, generation, base_tags) in store.task_generations().await? {
            match before.by_id.get(&id) {
                Some(entry)
                    if entry.task.generation == generation && entry.task.base_tags == base_tags =>
                {
                    entries.push(entry.clone());
                }
                _ => changed.push(id),
            }
        }
        for ids in changed.chunks(PAGE) {
            let tasks = store.tasks_by_id(ids.to_vec()).await?;
            entries.extend(tasks.into_iter().map(Entry::new).map(Arc::new));
        }
        entries.sort_by(|a, b| a.task.definition.name.cmp(&b.task.definition.name));
        Ok(Tasks::new(version, entries))
    }
}
