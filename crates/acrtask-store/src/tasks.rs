//! Stored tasks. A task keeps its id when it is renamed. Its generation grows with each change.

use std::collections::BTreeMap;

use acrtask_api::quota::{QuotaKind, QuotaSubject};
use acrtask_api::task::{Task, TaskDefinition};
use sqlx::FromRow;

use crate::{
    Ms, Result, Store, StoreError,
    db::{Arg, Sql, Tx, args, locked, one_of},
    error::is_unique_violation,
    from_json, quotas,
    runs::upper_bound,
    timestamp, to_json,
};

/// Filter of a list of tasks.
#[derive(Debug, Clone, Default)]
pub struct TaskFilter {
    /// Only names with this prefix.
    pub prefix: Option<String>,
    /// Only this name, or names that start with the part before a final `*`. The limit of a token.
    pub pattern: Option<String>,
    /// Only names after this one.
    pub after: Option<String>,
    /// At most this number of tasks.
    pub limit: u32,
}

/// Selects the columns of [`RawTask`].
macro_rules! select_tasks {
    () => {
        "SELECT id, definition, generation, source, base_tags, created_at, updated_at FROM tasks "
    };
}

#[derive(Debug, FromRow)]
pub(crate) struct RawTask {
    pub(crate) id: String,
    definition: String,
    generation: i64,
    source: Option<String>,
    base_tags: String,
    created_at: i64,
    updated_at: i64,
}

impl TryFrom<RawTask> for Task {
    type Error = StoreError;

    fn try_from(raw: RawTask) -> Result<Self> {
        Ok(Self {
            id: raw.id,
            definition: from_json(&raw.definition)?,
            generation: raw.generation,
            source: raw.source,
            base_tags: from_json(&raw.base_tags)?,
            created_at: timestamp(raw.created_at),
            updated_at: timestamp(raw.updated_at),
        })
    }
}

fn missing(name: &str) -> StoreError {
    StoreError::not_found(format!("task {name}"))
}

fn map_name_conflict<T>(written: Result<T>, name: &str) -> Result<T> {
    written.map_err(|error| {
        if is_unique_violation(&error) {
            StoreError::conflict(format!("there is a task {name} already"))
        } else {
            error
        }
    })
}

async fn lock_task(tx: &mut Tx, name: &str) -> Result<Task> {
    let raw: Option<RawTask> = tx
        .fetch_optional(
            locked!(concat!(select_tasks!(), "WHERE name = $1")),
            args![name],
        )
        .await?;
    raw.ok_or_else(|| missing(name))?.try_into()
}

impl Store {
    /// Creates a task. Fails with `Conflict` if its name is taken.
    pub async fn create_task(
        &self,
        id: &str,
        definition: &TaskDefinition,
        source: Option<&str>,
        now: Ms,
    ) -> Result<Task> {
        self.create_task_within(id, definition, source, None, now)
            .await
    }

    /// Creates a task as [`Store::create_task`] does, for a token that is limited to the tasks of a
    /// pattern.
    pub async fn create_task_within(
        &self,
        id: &str,
        definition: &TaskDefinition,
        source: Option<&str>,
        pattern: Option<&str>,
        now: Ms,
    ) -> Result<Task> {
        let name = definition.name.as_str();
        let mut tx = self.db.begin().await?;
        let patterns = std::iter::once("*").chain(pattern.filter(|it| it.ends_with('*')));
        let subjects: Vec<QuotaSubject> = patterns
            .map(|pattern| QuotaSubject::Tasks(pattern.to_owned()))
            .collect();
        quotas::check_quota(&mut tx, &subjects, QuotaKind::Tasks, 1, now).await?;
        let written = tx
            .exec(
                "INSERT INTO tasks (id, name, definition, source, created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $5)",
                args![id, name, to_json(definition)?, source, now],
            )
            .await;
        map_name_conflict(written, name)?;
        tx.commit().await?;
        self.task(name).await
    }

    /// Returns a task by name.
    pub async fn task(&self, name: &str) -> Result<Task> {
        let raw: Option<RawTask> = self
            .db
            .fetch_optional(concat!(select_tasks!(), "WHERE name = $1"), args![name])
            .await?;
        raw.ok_or_else(|| missing(name))?.try_into()
    }

    /// Returns tasks by name.
    pub async fn tasks(&self, filter: TaskFilter) -> Result<Vec<Task>> {
        let (mut from, mut to, mut exact) = (Vec::new(), Vec::new(), None);
        if let Some(prefix) = &filter.prefix {
            from.push(prefix.clone());
            to.push(upper_bound(prefix));
        }
        if let Some(pattern) = filter.pattern {
            match pattern.strip_suffix('*') {
                Some(prefix) => {
                    from.push(prefix.to_owned());
                    to.push(upper_bound(prefix));
                }
                None => exact = Some(pattern),
            }
        }
        let mut text = concat!(select_tasks!(), "WHERE name > $1").to_owned();
        let mut args = args![filter.after.as_deref().unwrap_or("")];
        let bounds = [(" AND name >= ", from), (" AND name < ", to)]
            .into_iter()
            .chain([(" AND name = ", exact.into_iter().collect())]);
        for (condition, values) in bounds {
            for value in values {
                args.push(Arg::from(value));
                text += &format!("{condition}${}", args.len());
            }
        }
        args.push(Arg::from(filter.limit));
        text += &format!(" ORDER BY name LIMIT ${}", args.len());
        let rows: Vec<RawTask> = self.db.fetch_all(Sql::dynamic(text), args).await?;
        rows.into_iter().map(Task::try_from).collect()
    }

    /// Returns the values that change with each change of a task: id, generation, and tags of base
    /// images. Only runs of a task change its tags.
    pub async fn task_generations(&self) -> Result<Vec<(String, i64, BTreeMap<String, String>)>> {
        let rows: Vec<(String, i64, String)> = self
            .db
            .fetch_all("SELECT id, generation, base_tags FROM tasks", args![])
            .await?;
        rows.into_iter()
            .map(|(id, generation, tags)| Ok((id, generation, from_json(&tags)?)))
            .collect()
    }

    /// Returns the existing tasks with these ids.
    pub async fn tasks_by_id(&self, ids: Vec<String>) -> Result<Vec<Task>> {
        let sql = one_of!(concat!(select_tasks!(), "WHERE id"), "$1", "");
        let rows: Vec<RawTask> = self.db.fetch_all(sql, args![ids]).await?;
        rows.into_iter().map(Task::try_from).collect()
    }

    /// Changes a task. `source: None` leaves the source unchanged. Fails with `Conflict` if the
    /// generation is not the expected one, or the new name is taken.
    pub async fn update_task(
        &self,
        name: &str,
        definition: &TaskDefinition,
        source: Option<Option<&str>>,
        expected_generation: Option<i64>,
        now: Ms,
    ) -> Result<Task> {
        let mut tx = self.db.begin().await?;
        let current = lock_task(&mut tx, name).await?;
        if let Some(expected) = expected_generation
            && expected != current.generation
        {
            return Err(StoreError::conflict(format!(
                "task {name} was changed meanwhile: its generation is {}, not {expected}",
                current.generation
            )));
        }
        let source = match source {
            Some(source) => source.map(str::to_owned),
            None => current.source,
        };
        let written = tx
            .exec(
                "UPDATE tasks SET name = $2, definition = $3, source = $4, generation = generation + 1, updated_at = $5 \
                 WHERE id = $1",
                args![
                    current.id,
                    definition.name.as_str(),
                    to_json(definition)?,
                    source,
                    now
                ],
            )
            .await;
        map_name_conflict(written, &definition.name)?;
        let row = lock_task(&mut tx, &definition.name).await?;
        tx.commit().await?;
        Ok(row)
    }

    /// Removes a task with its secrets, credentials, timers and trigger URL, but not its runs.
    pub async fn delete_task(&self, name: &str) -> Result<()> {
        let mut tx = self.db.begin().await?;
        let current = lock_task(&mut tx, name).await?;
        for sql in [
            "DELETE FROM secrets WHERE scope = $1",
            "DELETE FROM credentials WHERE scope = $1",
            "DELETE FROM timers WHERE task_id = $1",
            "DELETE FROM trigger_urls WHERE task_id = $1",
            "DELETE FROM base_proposals WHERE task_id = $1",
            "DELETE FROM tasks WHERE id = $1",
        ] {
            tx.exec(sql, args![current.id.as_str()]).await?;
        }
        tx.commit().await
    }
}
