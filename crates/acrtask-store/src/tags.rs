//! Newer tags of base images: which tags repositories have, which of them the rules of tasks allow in place of those in
//! use, and the runs that try them.
//!
//! Invariants: a list of tags has one row for each login, and is written only by the server that holds its lease; a tag is
//! tried by one run of a task, whatever number of servers find it; a task's runs get a tag only after a run that tried it
//! has succeeded. Which tag a rule chooses is for the caller to say.

use std::collections::{BTreeMap, BTreeSet};

use acrtask_api::{image::BaseStatus, spec::RunSpec};
use acrtask_model::{ImageRef, RunId, RunState};
use sqlx::FromRow;

use crate::{
    Ms, NewRun, Result, Store, StoreError,
    db::{Sql, Tx, args, locked, one_of},
    enqueue, from_json, lives, runs, to_json,
};

/// A list that nobody needs stays for so long, so that a look at what is wanted that is a moment old removes no new one.
const YOUNG_MS: i64 = 60_000;

/// A repository whose tags are listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagListRow {
    /// Its id.
    pub id: i64,
    /// Registry and repository.
    pub repository: String,
    /// The registry.
    pub registry: String,
    /// The task whose own login is used; empty: that of all tasks, or none.
    pub scope: String,
    /// How it stands.
    pub status: BaseStatus,
    /// Why, where it is not well.
    pub detail: Option<String>,
    /// Looks without an answer, one after the other.
    pub failures: u32,
    /// When it was last listed.
    pub checked_at: Option<Ms>,
    /// When it is listed again.
    pub next_check_at: Ms,
    /// Until then a server lists it.
    pub lease_until: Option<Ms>,
}

/// What listing tags came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listed {
    /// All of them.
    Tags(Vec<String>),
    /// That could not be found out. What is known stays known.
    Failed {
        /// How it stands.
        status: BaseStatus,
        /// Why.
        detail: String,
    },
}

/// What a rule of a task found: the place that it is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProposalKey {
    /// The task's id.
    pub task_id: String,
    /// Registry and repository of the base.
    pub repository: String,
    /// The tag in use.
    pub used: String,
}

/// A newer tag that a rule of a task allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProposalRow {
    /// What it is about.
    pub key: ProposalKey,
    /// The newest tag.
    pub newest: String,
    /// When it was found.
    pub found_at: Ms,
    /// The run that tries it, and where that stands; no state: it is gone.
    pub run: Option<(RunId, Option<RunState>)>,
    /// Why there could be no run.
    pub blocked: Option<String>,
}

/// What becomes of a newer tag.
#[derive(Debug, Clone)]
pub enum Try {
    /// A person takes it.
    Propose,
    /// This run tries it. Its idempotency key names task, repository and tag.
    Run(Box<NewRun>),
    /// There can be no run.
    Blocked {
        /// Why, in one sentence without a full stop.
        reason: String,
    },
}

/// The columns of [`RawList`].
macro_rules! list_columns {
    () => {
        "id, repository, registry, scope, status, detail, failures, checked_at, next_check_at, lease_until"
    };
}

#[derive(Debug, FromRow)]
struct RawList {
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

impl TryFrom<RawList> for TagListRow {
    type Error = StoreError;

    fn try_from(raw: RawList) -> Result<Self> {
        Ok(Self {
            id: raw.id,
            repository: raw.repository,
            registry: raw.registry,
            scope: raw.scope,
            status: BaseStatus::parse(&raw.status).ok_or_else(|| {
                StoreError::corrupt(format_args!("a list of tags cannot be `{}`", raw.status))
            })?,
            detail: raw.detail,
            failures: lives::small(raw.failures)?,
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
        let state = raw.state.as_deref().map(lives::state).transpose()?;
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
                .map(|id| runs::id(id).map(|id| (id, state)))
                .transpose()?,
            blocked: raw.blocked,
        })
    }
}

impl Store {
    /// Lists the tags of these repositories, each with a login, and of no others. Says how many are new.
    pub async fn set_tag_lists(&self, wanted: &BTreeSet<(String, String)>, now: Ms) -> Result<u64> {
        let there: Vec<(i64, String, String, i64)> = self
            .db
            .rows(
                "SELECT id, repository, scope, created_at FROM tag_lists",
                args![],
            )
            .await?;
        let mut missing = wanted.clone();
        let mut left = Vec::new();
        for (id, repository, scope, created) in there {
            if !missing.remove(&(repository, scope)) && created < now - YOUNG_MS {
                left.push(id);
            }
        }
        if missing.is_empty() && left.is_empty() {
            return Ok(0);
        }
        let mut tx = self.db.write().await?;
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
        if !left.is_empty() {
            let sql = one_of!("DELETE FROM tag_lists WHERE id", "$1", "");
            tx.exec(sql, args![left]).await?;
        }
        tx.commit().await?;
        Ok(made)
    }

    /// Takes lists that are due, at most `limit`: nobody else makes them for `lease_ms`.
    pub async fn claim_tag_lists(
        &self,
        now: Ms,
        lease_ms: i64,
        limit: u32,
    ) -> Result<Vec<TagListRow>> {
        const CLAIM: Sql = Sql::of(
            concat!(
                "UPDATE tag_lists SET lease_until = $2 WHERE id IN (SELECT id FROM tag_lists WHERE next_check_at <= $1 \
                 AND (lease_until IS NULL OR lease_until < $1) ORDER BY next_check_at, id LIMIT $3) RETURNING ",
                list_columns!()
            ),
            concat!(
                "UPDATE tag_lists SET lease_until = $2 WHERE id IN (SELECT id FROM tag_lists WHERE next_check_at <= $1 \
                 AND (lease_until IS NULL OR lease_until < $1) ORDER BY next_check_at, id LIMIT $3 \
                 FOR UPDATE SKIP LOCKED) RETURNING ",
                list_columns!()
            ),
        );
        let due: Option<(i64,)> = self
            .db
            .row(
                "SELECT CAST(1 AS BIGINT) FROM tag_lists WHERE next_check_at <= $1 \
                 AND (lease_until IS NULL OR lease_until < $1) LIMIT 1",
                args![now],
            )
            .await?;
        if due.is_none() {
            return Ok(Vec::new());
        }
        let mut tx = self.db.write().await?;
        let rows: Vec<RawList> = tx.rows(CLAIM, args![now, now + lease_ms, limit]).await?;
        tx.commit().await?;
        rows.into_iter().map(TagListRow::try_from).collect()
    }

    /// Writes down what listing came to, and when it is done again. Nothing happens where the lease of `list` is not the
    /// one that holds.
    pub async fn listed(
        &self,
        list: &TagListRow,
        listed: &Listed,
        now: Ms,
        next: Ms,
    ) -> Result<()> {
        let (id, lease) = (list.id, list.lease_until);
        match listed {
            Listed::Tags(tags) => {
                self.db
                    .exec(
                        "UPDATE tag_lists SET tags = $5, status = 'ok', detail = NULL, failures = 0, checked_at = $3, \
                         next_check_at = $4, lease_until = NULL WHERE id = $1 AND lease_until = $2",
                        args![id, lease, now, next, to_json(tags)?],
                    )
                    .await
            }
            Listed::Failed { status, detail } => {
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

    /// Gives a list back without having made it.
    pub async fn unlisted(&self, list: &TagListRow, next: Ms) -> Result<()> {
        self.db
            .exec(
                "UPDATE tag_lists SET lease_until = NULL, next_check_at = $3 WHERE id = $1 AND lease_until = $2",
                args![list.id, list.lease_until, next],
            )
            .await
            .map(drop)
    }

    /// Makes lists due: all, or those of these repositories. One that is being read counts no more. Says how many.
    pub async fn hurry_tag_lists(&self, repositories: Option<Vec<String>>, now: Ms) -> Result<u64> {
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

    /// All repositories whose tags are listed, by name and login.
    pub async fn tag_lists(&self) -> Result<Vec<TagListRow>> {
        let rows: Vec<RawList> = self
            .db
            .rows(
                concat!(
                    "SELECT ",
                    list_columns!(),
                    " FROM tag_lists ORDER BY repository, scope"
                ),
                args![],
            )
            .await?;
        rows.into_iter().map(TagListRow::try_from).collect()
    }

    /// The tags of a list; none: they were never listed.
    pub async fn tags(&self, list: &TagListRow) -> Result<Option<Vec<String>>> {
        let row: Option<(Option<String>,)> = self
            .db
            .row("SELECT tags FROM tag_lists WHERE id = $1", args![list.id])
            .await?;
        let json = row.and_then(|(json,)| json);
        json.as_deref().map(from_json).transpose()
    }

    /// Newer tags that are known, by task, repository and tag in use.
    pub async fn proposals(&self) -> Result<Vec<ProposalRow>> {
        let rows: Vec<RawProposal> = self
            .db
            .rows(
                "SELECT p.task_id, p.repository, p.used, p.newest, p.found_at, p.run_id, r.state, p.blocked \
                 FROM base_proposals p LEFT JOIN runs r ON r.id = p.run_id ORDER BY p.task_id, p.repository, p.used",
                args![],
            )
            .await?;
        rows.into_iter().map(ProposalRow::try_from).collect()
    }

    /// Writes down a newer tag, and starts the run that tries it, once. Gives that run where it is a new one.
    pub async fn propose(
        &self,
        key: &ProposalKey,
        newest: &str,
        attempt: Try,
        now: Ms,
    ) -> Result<Option<RunId>> {
        let (run, blocked) = match attempt {
            Try::Propose => (None, None),
            Try::Run(run) => (Some(run), None),
            Try::Blocked { reason } => (None, Some(reason)),
        };
        let mut tx = self.db.write().await?;
        // Of two servers the second one waits here, and sees the first one's run.
        let there: Option<(Option<String>,)> = tx
            .row(
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
        let tried = there.is_some_and(|(run,)| run.is_some());
        let mut started = None;
        if let Some(run) = run.filter(|_| !tried) {
            let lives = locked!("SELECT id FROM tasks WHERE id = $1");
            let task: Option<(String,)> = tx.row(lives, args![key.task_id.as_str()]).await?;
            if task.is_none() {
                return Ok(None);
            }
            let (id, new) = enqueue::start(&mut tx, *run, now).await?;
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

    /// Forgets newer tags that there are no more, or that are in use now.
    pub async fn forget_proposals(&self, keys: &[ProposalKey]) -> Result<()> {
        if keys.is_empty() {
            return Ok(());
        }
        let mut tx = self.db.write().await?;
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

/// The tags that these runs, which have succeeded, had tried are what later runs of their tasks get.
pub(crate) async fn took(tx: &mut Tx, succeeded: Vec<String>) -> Result<()> {
    let sql = one_of!(
        "SELECT task_id, spec FROM runs WHERE task_id IS NOT NULL AND spec LIKE '%\"baseTags\":%' AND id",
        "$1",
        " ORDER BY finished_at, id"
    );
    let tried: Vec<(String, String)> = tx.rows(sql, args![succeeded]).await?;
    for (task, spec) in tried {
        let spec: RunSpec = from_json(&spec)?;
        let there: Option<(String,)> = tx
            .row(
                locked!("SELECT base_tags FROM tasks WHERE id = $1"),
                args![task.as_str()],
            )
            .await?;
        let Some((json,)) = there else { continue };
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
