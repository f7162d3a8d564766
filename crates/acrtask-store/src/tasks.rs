//! Stored tasks. A task keeps its id when it is renamed; its generation grows with each change.

use acrtask_api::task::{Task, TaskDefinition};

use crate::{Ms, Result, Store, StoreError};

/// Which tasks a list shows.
#[derive(Debug, Clone, Default)]
pub struct TaskFilter {
    /// Only names that begin so.
    pub prefix: Option<String>,
    /// Only this name, or, where it ends in `*`, names that begin so: the limit of a token.
    pub pattern: Option<String>,
    /// Only names behind this one.
    pub after: Option<String>,
    /// At most so many.
    pub limit: u32,
}

impl Store {
    /// A new task; `Conflict` where its name is taken.
    pub async fn create_task(
        &self,
        id: &str,
        definition: &TaskDefinition,
        source: Option<&str>,
        now: Ms,
    ) -> Result<Task> {
        let _ = (id, definition, source, now);
        Err(StoreError::not_found("task"))
    }

    /// A task by its name.
    pub async fn task(&self, name: &str) -> Result<Task> {
        Err(StoreError::not_found(format!("task {name}")))
    }

    /// Tasks by name.
    pub async fn tasks(&self, filter: TaskFilter) -> Result<Vec<Task>> {
        let _ = filter;
        Err(StoreError::not_found("list"))
    }

    /// Changes a task. `source`: nothing leaves it as it is. `Conflict` where its generation is not the expected one, or
    /// its new name is taken.
    pub async fn update_task(
        &self,
        name: &str,
        definition: &TaskDefinition,
        source: Option<Option<&str>>,
        expected_generation: Option<i64>,
        now: Ms,
    ) -> Result<Task> {
        let _ = (definition, source, expected_generation, now);
        Err(StoreError::not_found(format!("task {name}")))
    }

    /// Removes a task, with its own secrets and credentials. Its runs stay.
    pub async fn delete_task(&self, name: &str) -> Result<()> {
        Err(StoreError::not_found(format!("task {name}")))
    }
}
