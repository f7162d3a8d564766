//! Newer tags of base images: tag lists of repositories, tags that rules of tasks allow, and runs
//! that try them.
//!
//! Invariants:
//! - A tag list has one row per login. Only the server that has its lease writes it.
//! - One run of a task tries a tag, regardless of the number of servers that find it.
//! - The runs of a task use a tag only after a run that tried it has succeeded.
//!
//! The caller chooses the tag that a rule allows.

use std::collections::{BTreeMap, BTreeSet};

use acrtask_api::{image::BaseStatus, spec::RunSpec};
use acrtask_model::{ImageRef, RunId, RunState};
use sqlx::FromRow;

use crate::{
    Ms, NewRun, Result, Store, StoreError,
    db::{Sql, Tx, args, locked, one_of},
    enqueue, from_json, run_state, runs, to_json,
};

/// Time for which an unused tag list stays, in milliseconds. A list of used repositories that is
/// slightly outdated must not remove a new one.
const UNUSED_GRACE_MS: i64 = 60_000;

/// A repository whose tags are listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagListRow {
    /// Id of the tag list.
    pub id: i64,
    /// Registry and repository.
    pub repository: String,
    /// Name of the registry.
    pub registry: String,
    /// Task whose own login is used. Empty: the login for all tasks, or none.
    pub scope: String,
    /// Status of the last listing.
    pub status: BaseStatus,
    /// Reason of a status other than `ok`.
    pub detail: Option<String>,
    /// Number of failures since the last success.
    pub failures: u32,
    /// Time of the last listing.
    pub checked_at: Option<Ms>,
    /// Time of the next listing.
    pub next_check_at: Ms,
    /// End of a server's lease.
    pub lease_until: Option<Ms>,
}

/// Result of listing tags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TagListResult {
    /// All tags of the repository.
    Tags(Vec<String>),
    /// The listing failed. Earlier tags stay stored.
    Failed {
        /// Status to store.
        status: BaseStatus,
        /// Reason for the user.
        detail: String,
    },
}

/// Subject of a proposal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProposalKey {
    /// Id of the task.
    pub task_id: String,
    /// Registry and repository of the base.
    pub repository: String,
    /// Tag in use.
    pub used: String,
}

/// Proposal of a newer tag that a rule of a task allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProposalRow {
    /// Subject of the proposal.
    pub key: ProposalKey,
    /// Newest allowed tag.
    pub newest: String,
    /// Time of the discovery.
    pub found_at: Ms,
    /// Run that tries the tag, and the state of that run if it still exists.
    pub run: Option<(RunId, Option<RunState>)>,
    /// Reason why no run could try the tag.
    pub blocked: Option<String>,
}

/// Action for a newer tag.
#[derive(Debug, Clone)]
pub enum ProposalAction {
    /// Leaves the change to a user.
    Propose,
    /// Starts this run to try the tag. Its idempotency key names task, repository and tag.
    Run(Box<NewRun>),
    /// No run can try the tag.
    Blocked {
        /// Reason: one sentence without a full stop.
        reason: String,
    },
}

/// Returns the columns of [`RawTagList`].
macro_rules! tag_list_columns {
    () => {
        "id, repository, registry, scope, status, detail, failures, checked_at, next_check_at, lease_until"
    };
}

#[derive(Debug, FromRow)]
struct RawTagList {
    id: i64,
    repository: String,
    registry: String,
    scope: String,
    status: String,
    detail: Option<String>,
    failures: i64,
    checked_at: Option<i64>,
    next_check_at: i64,
    lease_until: Option<i64>,
}

impl TryFrom<RawTagList> for TagListRow {
    type Error = StoreError;

    fn try_from(raw: RawTagList) -> Result<Self> {
        Ok(Self {
            id: raw.id,
            repository: raw.repository,
            registry: raw.registry,
            scope: raw.scope,
            status: BaseStatus::parse(&raw.status).ok_or_else(|| {
                StoreError::corrupt(format_args!("a list of tags cannot be `{}`", raw.status))
            })?,
            detail: raw.detail,
            failures: run_state::to_u32(raw.failures)?,
            checked_at: raw.checked_at,
            next_check_at: raw.next_check_at,
            lease_until: raw.lease_until,
        })
    }
}

#[derive(Debug, FromRow)]
struct RawProposal {
    task_id: String,
    repository: String,
    used: String,
    newest: String,
    found_at: i64,
    run_id: Option<String>,
    state: Option<String>,
    blocked: Option<String>,
}

impl TryFrom<RawProposal> for ProposalRow {
    type Error = StoreError;

    fn try_from(raw: RawProposal) -> Result<Self> {
        let state = raw
            .state
            .as_deref()
            .map(run_state::parse_state)
            .transpose()?;
        Ok(Self {
            key: ProposalKey {
                task_id: raw.task_id,
                repository: raw.repository,
                used: raw.used,
            },
            newest: raw.newest,
            found_at: raw.found_at,
            run: raw
                .run_id
                .map(|id| runs::parse_run_id(id).map(|id| (id, state)))
                .transpose()?,
            blocked: raw.blocked,
        })
    }
}

impl Store {
    /// Lists the tags of exactly these repositories, each with a login. Returns the number of new
    /// tag lists.
    pub async fn set_tag_lists(&self, wanted: &BTreeSet<(String, String)>, now: Ms) -> Result<u64> {
        let stored: Vec<(i64, String, String, i64)> = self
            .db
            .fetch_all(
                "SELECT id, repository, scope, created_at FROM tag_lists",
                args![],
            )
            .await?;
        let mut missing = wanted.clone();
        let mut unused = Vec::new();
        for (id, repository, scope, created) in stored {
            if !missing.remove(&(repository, scope)) && created < now - UNUSED_GRACE_MS {
                unused.push(id);
            }
        }
        if missing.is_empty() && unused.is_empty() {
            return Ok(0);
        }
        let mut tx = self.db.begin().await?;
        let mut made = 0;
        for (repository, scope) in missing {
            let registry = repository
                .parse::<ImageRef>()
                .map_err(StoreError::corrupt)?
                .registry()
                .to_owned();
            made += tx
                .exec(
                    "INSERT INTO tag_lists (repository, registry, scope, created_at, next_check_at) \
                     VALUES ($1, $2, $3, $4, $4) ON CONFLICT (repository, scope) DO NOTHING",
                    args![repository, registry, scope, now],
                )
                .await?;
        }
        if !unused.is_empty() {
            let sql = one_of!("DELETE FROM tag_lists WHERE id", "$1", "");
            tx.exec(sql, args![unused]).await?;
        }
        tx.commit().await?;
        Ok(made)
    }

    /// Leases at most `limit` due tag lists. Other servers do not request them for `lease_ms`.
    pub async fn claim_tag_lists(
        &self,
        now: Ms,
        lease_ms: i64,
        limit: u32,
    ) -> Result<Vec<TagListRow>> {
        const CLAIM: Sql = Sql::new(
            concat!(
                "UPDATE tag_lists SET lease_until = $2 WHERE id IN (SELECT id FROM tag_lists WHERE next_check_at <= $1 \
                 AND (lease_until IS NULL OR lease_until < $1) ORDER BY next_check_at, id LIMIT $3) RETURNING ",
                tag_list_columns!()
            ),
            concat!(
                "UPDATE tag_lists SET lease_until = $2 WHERE id IN (SELECT id FROM tag_lists WHERE next_check_at <= $1 \
                 AND (lease_until IS NULL OR lease_until < $1) ORDER BY next_check_at, id LIMIT $3 \
                 FOR UPDATE SKIP LOCKED) RETURNING ",
                tag_list_columns!()
            ),
        );
        let due: Option<(i64,)> = self
            .db
            .fetch_optional(
                "SELECT CAST(1 AS BIGINT) FROM tag_lists WHERE next_check_at <= $1 \
                 AND (lease_until IS NULL OR lease_until < $1) LIMIT 1",
                args![now],
            )
            .await?;
        if due.is_none() {
            return Ok(Vec::new());
        }
        let mut tx = self.db.begin().await?;
        let rows: Vec<RawTagList> = tx
            .fetch_all(CLAIM, args![now, now + lease_ms, limit])
            .await?;
        tx.commit().await?;
        rows.into_iter().map(TagListRow::try_from).collect()
    }

    /// Stores the result of a listing and the time of the next one. Does nothing if the lease of
    /// `list` is outdated.
    pub async fn record_tag_list(
        &self,
        list: &TagListRow,
        result: &TagListResult,
        now: Ms,
        next: Ms,
    ) -> Result<()> {
        let (id, lease) = (list.id, list.lease_until);
        match result {
            TagListResult::Tags(tags) => {
                self.db
                    .exec(
                        "UPDATE tag_lists SET tags = $5, status = 'ok', detail = NULL, failures = 0, checked_at = $3, \
                         next_check_at = $4, lease_until = NULL WHERE id = $1 AND lease_until = $2",
                        args![id, lease, now, next, to_json(tags)?],
                    )
                    .await
            }
            TagListResult::Failed { status, detail } => {
                self.db
                    .exec(
                        "UPDATE tag_lists SET status = $5, detail = $6, failures = failures + 1, checked_at = $3, \
                         next_check_at = $4, lease_until = NULL WHERE id = $1 AND lease_until = $2",
                        args![id, lease, now, next, status.as_str(), detail],
                    )
                    .await
            }
        }
        .map(drop)
    }

    /// Returns the lease of a tag list that was not requested.
    pub async fn release_tag_list(&self, list: &TagListRow, next: Ms) -> Result<()> {
        self.db
            .exec(
                "UPDATE tag_lists SET lease_until = NULL, next_check_at = $3 WHERE id = $1 AND lease_until = $2",
                args![list.id, list.lease_until, next],
            )
            .await
            .map(drop)
    }

    /// Marks tag lists as due: all, or those of these repositories. Revokes the leases of requests
    /// in progress. Returns the number of tag lists.
    pub async fn mark_tag_lists_due(
        &self,
        repositories: Option<Vec<String>>,
        now: Ms,
    ) -> Result<u64> {
        match repositories {
            None => {
                self.db
                    .exec(
                        "UPDATE tag_lists SET next_check_at = $1, lease_until = NULL WHERE next_check_at > $1 \
                         OR lease_until IS NOT NULL",
                        args![now],
                    )
                    .await
            }
            Some(repositories) => {
                let sql = one_of!(
                    "UPDATE tag_lists SET next_check_at = $2, lease_until = NULL WHERE (next_check_at > $2 \
                     OR lease_until IS NOT NULL) AND repository",
                    "$1",
                    ""
                );
                self.db.exec(sql, args![repositories, now]).await
            }
        }
    }

    /// Returns all tag lists by repository and login.
    pub async fn tag_lists(&self) -> Result<Vec<TagListRow>> {
        let rows: Vec<RawTagList> = self
            .db
            .fetch_all(
                concat!(
                    "SELECT ",
                    tag_list_columns!(),
                    " FROM tag_lists ORDER BY repository, scope"
                ),
                args![],
            )
            .await?;
        rows.into_iter().map(TagListRow::try_from).collect()
    }

    /// Returns the tags of a list. `None`: they were never listed.
    pub async fn tags(&self, list: &TagListRow) -> Result<Option<Vec<String>>> {
        let row: Option<(Option<String>,)> = self
            .db
            .fetch_optional("SELECT tags FROM tag_lists WHERE id = $1", args![list.id])
            .await?;
        let json = row.and_then(|(json,)| json);
        json.as_deref().map(from_json).transpose()
    }

    /// Returns all proposals by task, repository and tag in use.
    pub async fn proposals(&self) -> Result<Vec<ProposalRow>> {
        let rows: Vec<RawProposal> = self
            .db
            .fetch_all(
                "SELECT p.task_id, p.repository, p.used, p.newest, p.found_at, p.run_id, r.state, p.blocked \
                 FROM base_proposals p LEFT JOIN runs r ON r.id = p.run_id ORDER BY p.task_id, p.repository, p.used",
                args![],
            )
            .await?;
        rows.into_iter().map(ProposalRow::try_from).collect()
    }

    /// Stores a proposal, and starts the run that tries it, once. Returns the run if it is new.
    pub async fn propose(
        &self,
        key: &ProposalKey,
        newest: &str,
        attempt: ProposalAction,
        now: Ms,
    ) -> Result<Option<RunId>> {
        let (run, blocked) = match attempt {
            ProposalAction::Propose => (None, None),
            ProposalAction::Run(run) => (Some(run), None),
            ProposalAction::Blocked { reason } => (None, Some(reason)),
        };
        let mut tx = self.db.begin().await?;
        // Of two servers, the second waits here and then finds the run of the first.
        let proposal: Option<(Option<String>,)> = tx
            .fetch_optional(
                "INSERT INTO base_proposals (task_id, repository, used, newest, found_at, blocked) \
                 VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (task_id, repository, used) DO UPDATE SET \
                 found_at = CASE WHEN base_proposals.newest = excluded.newest THEN base_proposals.found_at \
                 ELSE excluded.found_at END, \
                 run_id = CASE WHEN base_proposals.newest = excluded.newest THEN base_proposals.run_id ELSE NULL END, \
                 newest = excluded.newest, blocked = excluded.blocked RETURNING run_id",
                args![
                    key.task_id.as_str(),
                    key.repository.as_str(),
                    key.used.as_str(),
                    newest,
                    now,
                    blocked
                ],
            )
            .await?;
        let tried = proposal.is_some_and(|(run,)| run.is_some());
        let mut started = None;
        if let Some(run) = run.filter(|_| !tried) {
            let sql = locked!("SELECT id FROM tasks WHERE id = $1");
            let task: Option<(String,)> =
                tx.fetch_optional(sql, args![key.task_id.as_str()]).await?;
            if task.is_none() {
                return Ok(None);
            }
            let (id, new) = enqueue::insert_locked_run(&mut tx, *run, now).await?;
            tx.exec(
                "UPDATE base_proposals SET run_id = $4 WHERE task_id = $1 AND repository = $2 AND used = $3",
                args![
                    key.task_id.as_str(),
                    key.repository.as_str(),
                    key.used.as_str(),
                    &id
                ],
            )
            .await?;
            started = new.then_some(id);
        }
        tx.commit().await?;
        Ok(started)
    }

    /// Removes outdated proposals.
    pub async fn forget_proposals(&self, keys: &[ProposalKey]) -> Result<()> {
        if keys.is_empty() {
            return Ok(());
        }
        let mut tx = self.db.begin().await?;
        for key in keys {
            tx.exec(
                "DELETE FROM base_proposals WHERE task_id = $1 AND repository = $2 AND used = $3",
                args![
                    key.task_id.as_str(),
                    key.repository.as_str(),
                    key.used.as_str()
                ],
            )
            .await?;
        }
        tx.commit().await
    }
}

/// Stores the tags that these successful runs tried, for later runs of their tasks.
pub(crate) async fn adopt_base_tags(tx: &mut Tx, succeeded: Vec<String>) -> Result<()> {
    let sql = one_of!(
        "SELECT task_id, spec FROM runs WHERE task_id IS NOT NULL AND spec LIKE '%\"baseTags\":%' AND id",
        "$1",
        " ORDER BY finished_at, id"
    );
    let tried: Vec<(String, String)> = tx.fetch_all(sql, args![succeeded]).await?;
    for (task, spec) in tried {
        let spec: RunSpec = from_json(&spec)?;
        let found: Option<(String,)> = tx
            .fetch_optional(
                locked!("SELECT base_tags FROM tasks WHERE id = $1"),
                args![task.as_str()],
            )
            .await?;
        let Some((json,)) = found else { continue };
        let mut tags: BTreeMap<String, String> = from_json(&json)?;
        tags.extend(spec.base_tags);
        tx.exec(
            "UPDATE tasks SET base_tags = $2 WHERE id = $1",
            args![task, to_json(&tags)?],
        )
        .await?;
    }
    Ok(())
}
