//! In-memory index of tasks by repository and of tasks that pushed images trigger.
//!
//! Invariant: the index is as new as the database was when the evaluation of the delivery began.
//! The database counts changes of tasks. While the count is unchanged, the server reads nothing
//! again. The server parses only the tasks that changed.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, PoisonError, RwLock},
};

use acrtask_api::task::Task;
use acrtask_store::{Store, StoreError};
use acrtask_trigger::{ImageRules, Repository, RepositoryUrl, TriggerRules};
use tokio::sync::Mutex;

/// Number of tasks that one statement reads.
const PAGE: usize = 1000;

/// A task with its parsed triggers.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) task: Task,
    /// `None` if commits do not trigger the task.
    pub(crate) commits: Option<Result<TriggerRules, String>>,
    /// `None` if pushed images do not trigger the task.
    pub(crate) images: Option<Result<ImageRules, String>>,
    /// The repository of the task's context.
    pub(crate) repository: Option<RepositoryUrl>,
}

impl Entry {
    fn new(task: Task) -> Self {
        let definition = &task.definition;
        let context = definition.context.as_deref();
        let join_errors = |errors: Vec<acrtask_trigger::rules::RuleError>| {
            let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
            errors.join("; ")
        };
        let commits = definition
            .triggers
            .commit
            .as_ref()
            .map(|trigger| TriggerRules::new(trigger, context).map_err(join_errors));
        let images = definition
            .triggers
            .registry_push
            .as_ref()
            .map(|trigger| ImageRules::new(trigger).map_err(join_errors));
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

/// All tasks at one moment.
#[derive(Debug, Default)]
pub(crate) struct TaskSnapshot {
    version: i64,
    by_id: HashMap<String, Arc<Entry>>,
    by_repository: HashMap<RepositoryUrl, Vec<Arc<Entry>>>,
    with_image_triggers: Vec<Arc<Entry>>,
}

impl TaskSnapshot {
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
                tasks.with_image_triggers.push(entry.clone());
            }
            tasks.by_id.insert(entry.task.id.clone(), entry);
        }
        tasks
    }

    /// Returns the tasks of a repository, by name.
    pub(crate) fn in_repository(&self, repository: &Repository) -> Vec<&Arc<Entry>> {
        let mut urls = repository
            .urls
            .iter()
            .filter_map(|url| RepositoryUrl::parse(url))
            .peekable();
        let mut found: BTreeMap<&str, &Arc<Entry>> = BTreeMap::new();
        if urls.peek().is_some() {
            for url in urls {
                for entry in self.by_repository.get(&url).into_iter().flatten() {
                    found.insert(&entry.task.definition.name, entry);
                }
            }
        } else {
            // The sender sent only a name. That is rare, and there are fewer repositories than
            // tasks.
            for (url, entries) in &self.by_repository {
                if repository.matches_url(url) {
                    for entry in entries {
                        found.insert(&entry.task.definition.name, entry);
                    }
                }
            }
        }
        found.into_values().collect()
    }

    /// Returns all tasks.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.by_id.values()
    }

    /// Returns the task named `name`.
    pub(crate) fn find_by_name(&self, name: &str) -> Option<&Arc<Entry>> {
        self.iter().find(|entry| entry.task.definition.name == name)
    }

    /// Returns the tasks that pushed images trigger.
    pub(crate) fn with_image_triggers(&self) -> &[Arc<Entry>] {
        &self.with_image_triggers
    }
}

/// Cache of all tasks, shared by all deliveries.
#[derive(Debug, Default)]
pub struct TaskIndex {
    cached: RwLock<Arc<TaskSnapshot>>,
    reading: Mutex<()>,
}

impl TaskIndex {
    /// Returns all tasks in their present state.
    pub(crate) async fn current(&self, store: &Store) -> Result<Arc<TaskSnapshot>, StoreError> {
        // Before any other read: whatever is read later is at least as new.
        let version = store.task_version().await?;
        if let Some(cached) = self.cached(version) {
            return Ok(cached);
        }
        let _one = self.reading.lock().await;
        let version = store.task_version().await?;
        if let Some(cached) = self.cached(version) {
            return Ok(cached);
        }
        let tasks = Arc::new(self.load(store, version).await?);
        *self.cached.write().unwrap_or_else(PoisonError::into_inner) = tasks.clone();
        Ok(tasks)
    }

    fn latest(&self) -> Arc<TaskSnapshot> {
        self.cached
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn cached(&self, version: i64) -> Option<Arc<TaskSnapshot>> {
        Some(self.latest()).filter(|cached| cached.version == version)
    }

    async fn load(&self, store: &Store, version: i64) -> Result<TaskSnapshot, StoreError> {
        let before = self.latest();
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
        Ok(TaskSnapshot::new(version, entries))
    }
}
