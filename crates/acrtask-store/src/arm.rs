//! Documents of the ARM API: everything that its clients store and that acrtask has no other table
//! for. A document disappears with its task or run.

use serde_json::Value;
use sqlx::FromRow;

use crate::{
    Ms, Result, Store,
    db::{args, one_of},
    from_json, to_json,
};

/// Kind of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArmKind {
    /// Task, in the form of its last request.
    Task,
    /// Run request with a name.
    TaskRun,
    /// Flags of a run.
    Run,
}

impl ArmKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Task => "task",
            Self::TaskRun => "taskRun",
            Self::Run => "run",
        }
    }
}

/// A document of the ARM API.
#[derive(Debug, Clone, PartialEq)]
pub struct ArmDocument {
    /// Name, as the client wrote it.
    pub name: String,
    /// Id of the task that the document belongs to.
    pub task_id: Option<String>,
    /// Id of the run that the document belongs to.
    pub run_id: Option<String>,
    /// Generation of the task that the document describes.
    pub generation: i64,
    /// Content, without secrets.
    pub body: Value,
    /// Time of the creation.
    pub created_at: Ms,
}

#[derive(Debug, FromRow)]
struct RawDocument {
    name: String,
    task_id: Option<String>,
    run_id: Option<String>,
    generation: i64,
    body: String,
    created_at: i64,
}

impl TryFrom<RawDocument> for ArmDocument {
    type Error = crate::StoreError;

    fn try_from(raw: RawDocument) -> Result<Self> {
        Ok(Self {
            body: from_json(&raw.body)?,
            name: raw.name,
            task_id: raw.task_id,
            run_id: raw.run_id,
            generation: raw.generation,
            created_at: raw.created_at,
        })
    }
}

impl Store {
    /// Creates or replaces a document. Names compare without regard to case. The time of the
    /// creation stays.
    pub async fn put_arm_document(
        &self,
        kind: ArmKind,
        registry: &str,
        document: &ArmDocument,
    ) -> Result<()> {
        self.db
            .exec(
                "INSERT INTO arm_documents (kind, registry, key_name, name, task_id, run_id, generation, body, created_at) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) \
                 ON CONFLICT (kind, registry, key_name) DO UPDATE SET name = excluded.name, task_id = excluded.task_id, \
                 run_id = excluded.run_id, generation = excluded.generation, body = excluded.body",
                args![
                    kind.as_str(),
                    registry,
                    document.name.to_ascii_lowercase(),
                    document.name.as_str(),
                    document.task_id.clone(),
                    document.run_id.clone(),
                    document.generation,
                    to_json(&document.body)?,
                    document.created_at
                ],
            )
            .await?;
        Ok(())
    }

    /// Returns the documents of a kind with these names, or at most `limit` of all names, by name.
    pub async fn arm_documents(
        &self,
        kind: ArmKind,
        registry: &str,
        names: Option<Vec<String>>,
        limit: u32,
    ) -> Result<Vec<ArmDocument>> {
        let rows: Vec<RawDocument> = match names {
            Some(names) => {
                let names: Vec<String> =
                    names.iter().map(|name| name.to_ascii_lowercase()).collect();
                let sql = one_of!(
                    "SELECT name, task_id, run_id, generation, body, created_at FROM arm_documents \
                     WHERE kind = $1 AND registry = $2 AND key_name",
                    "$3",
                    " ORDER BY key_name"
                );
                self.db
                    .fetch_all(sql, args![kind.as_str(), registry, names])
                    .await?
            }
            None => self
                .db
                .fetch_all(
                    "SELECT name, task_id, run_id, generation, body, created_at FROM arm_documents \
                         WHERE kind = $1 AND registry = $2 ORDER BY key_name LIMIT $3",
                    args![kind.as_str(), registry, limit],
                )
                .await?,
        };
        rows.into_iter().map(ArmDocument::try_from).collect()
    }

    /// Returns one document.
    pub async fn arm_document(
        &self,
        kind: ArmKind,
        registry: &str,
        name: &str,
    ) -> Result<Option<ArmDocument>> {
        let found = self
            .arm_documents(kind, registry, Some(vec![name.to_owned()]), 1)
            .await?;
        Ok(found.into_iter().next())
    }

    /// Removes a document. Returns `false` if it does not exist.
    pub async fn delete_arm_document(
        &self,
        kind: ArmKind,
        registry: &str,
        name: &str,
    ) -> Result<bool> {
        let removed = self
            .db
            .exec(
                "DELETE FROM arm_documents WHERE kind = $1 AND registry = $2 AND key_name = $3",
                args![kind.as_str(), registry, name.to_ascii_lowercase()],
            )
            .await?;
        Ok(removed > 0)
    }
}
