//! Deliveries as rows: what a forge or a registry sent, and what it led to. How they come in is in `deliver.rs`.

use std::collections::HashMap;

use acrtask_api::webhook::OutcomeKind;
use acrtask_model::RunId;
use sqlx::FromRow;

use crate::{
    Ms, Result, Store, StoreError,
    db::{Sql, Tx, args, one_of},
    from_json, lives, runs,
};

/// Where the body of a delivery is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredBody {
    /// With its row.
    Inline(Vec<u8>),
    /// In the blob with this key, which was written before.
    Blob(String),
}

/// What came of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivered {
    /// It is stored now.
    New {
        /// What it led to, for each task that was looked at.
        outcomes: Vec<OutcomeRow>,
        /// Runs whose end was asked for.
        canceled: Vec<RunId>,
    },
    /// It was stored before, with this id.
    Seen(String),
}

/// What a trigger led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutcomeRow {
    /// The trigger's id.
    pub trigger: String,
    /// The task's name.
    pub task: String,
    /// What kind of trigger it was.
    pub kind: String,
    /// When it came.
    pub received_at: Ms,
    /// The delivery that it came with.
    pub delivery: Option<String>,
    /// What it led to.
    pub what: OutcomeKind,
    /// The run.
    pub run: Option<RunId>,
    /// Why.
    pub reason: String,
}

/// A delivery that is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryRow {
    /// Its id.
    pub id: String,
    /// The webhook that it came to.
    pub webhook: String,
    /// The sender's id of it.
    pub sender_id: String,
    /// What kind of thing happened.
    pub kind: String,
    /// The repository that it happened to.
    pub repository: Option<String>,
    /// What happened.
    pub summary: String,
    /// Why no task was looked at.
    pub note: Option<String>,
    /// The delivery whose body this is.
    pub redelivery_of: Option<String>,
    /// The headers that matter, as JSON.
    pub headers: String,
    /// Bytes of the body.
    pub size: u64,
    /// SHA-256 of the body.
    pub sha256: String,
    /// When it came.
    pub received_at: Ms,
    /// The watched base images that a registry reported as pushed.
    pub watches: Vec<String>,
    /// What it led to.
    pub outcomes: Vec<OutcomeRow>,
}

/// Which deliveries a list shows.
#[derive(Debug, Clone, Default)]
pub struct DeliveryFilter {
    /// Only those of this webhook.
    pub webhook: Option<String>,
    /// Only deliveries that were received at this time or later.
    pub since: Option<Ms>,
    /// Only deliveries that were received before this time.
    pub until: Option<Ms>,
    /// What an earlier page gave as its cursor.
    pub before: Option<String>,
    /// At most so many.
    pub limit: u32,
}

/// The columns of [`RawDelivery`].
macro_rules! delivery_columns {
    () => {
        "id, webhook, sender_id, kind, repository, summary, note, redelivery_of, headers, size, sha256, received_at, \
         watches"
    };
}

/// The columns of [`RawOutcome`].
macro_rules! outcome_columns {
    () => {
        "id, kind, task, received_at, run_id, joined, suppressed_reason, delivery_id, detail"
    };
}

#[derive(Debug, FromRow)]
struct RawDelivery {
    id: String,
    webhook: String,
    sender_id: String,
    kind: String,
    repository: Option<String>,
    summary: String,
    note: Option<String>,
    redelivery_of: Option<String>,
    headers: String,
    size: i64,
    sha256: String,
    received_at: i64,
    watches: String,
}

#[derive(Debug, FromRow)]
struct RawOutcome {
    id: String,
    kind: String,
    task: Option<String>,
    received_at: i64,
    run_id: Option<String>,
    joined: i64,
    suppressed_reason: Option<String>,
    delivery_id: Option<String>,
    detail: Option<String>,
}

impl TryFrom<RawOutcome> for OutcomeRow {
    type Error = StoreError;

    fn try_from(raw: RawOutcome) -> Result<Self> {
        let run = raw.run_id.map(runs::id).transpose()?;
        Ok(Self {
            trigger: raw.id,
            task: raw.task.unwrap_or_default(),
            kind: raw.kind,
            received_at: raw.received_at,
            delivery: raw.delivery_id,
            what: match (&run, raw.joined) {
                (Some(_), 0) => OutcomeKind::Run,
                (Some(_), _) => OutcomeKind::Joined,
                (None, _) => OutcomeKind::Suppressed,
            },
            run,
            reason: raw.suppressed_reason.or(raw.detail).unwrap_or_default(),
        })
    }
}

impl Store {
    /// A delivery.
    pub async fn delivery(&self, id: &str) -> Result<DeliveryRow> {
        let raw: Option<RawDelivery> = self
            .db
            .row(
                concat!(
                    "SELECT ",
                    delivery_columns!(),
                    " FROM deliveries WHERE id = $1"
                ),
                args![id],
            )
            .await?;
        let raw = raw.ok_or_else(|| StoreError::not_found(format!("delivery {id}")))?;
        let mut rows = self.with_outcomes(vec![raw]).await?;
        rows.pop()
            .ok_or_else(|| StoreError::not_found(format!("delivery {id}")))
    }

    /// The body of a delivery.
    pub async fn delivery_body(&self, id: &str) -> Result<StoredBody> {
        let raw: Option<(Option<Vec<u8>>, Option<String>)> = self
            .db
            .row("SELECT body, blob FROM deliveries WHERE id = $1", args![id])
            .await?;
        match raw {
            Some((Some(bytes), _)) => Ok(StoredBody::Inline(bytes)),
            Some((None, Some(key))) => Ok(StoredBody::Blob(key)),
            _ => Err(StoreError::not_found(format!("delivery {id}"))),
        }
    }

    /// A page of deliveries, newest first, and the cursor of the next one.
    pub async fn deliveries(
        &self,
        filter: DeliveryFilter,
    ) -> Result<(Vec<DeliveryRow>, Option<String>)> {
        let mut text = concat!(
            "SELECT ",
            delivery_columns!(),
            " FROM deliveries WHERE 1 = 1"
        )
        .to_owned();
        let mut args = args![i64::from(filter.limit) + 1];
        if let Some(webhook) = filter.webhook {
            args.push(webhook.into());
            text += &format!(" AND webhook = ${}", args.len());
        }
        for (time, operator) in [(filter.since, ">="), (filter.until, "<")] {
            if let Some(time) = time {
                args.push(time.into());
                text += &format!(" AND received_at {operator} ${}", args.len());
            }
        }
        if let Some(before) = &filter.before {
            let (at, id) = before
                .split_once(':')
                .and_then(|(at, id)| Some((at.parse::<i64>().ok()?, id)))
                .ok_or_else(|| StoreError::Invalid {
                    what: format!(
                        "`{before}` is no cursor; give back what the page before gave as `next`"
                    ),
                })?;
            args.push(at.into());
            args.push(id.into());
            text += &format!(
                " AND (received_at, id) < (${}, ${})",
                args.len() - 1,
                args.len()
            );
        }
        text += " ORDER BY received_at DESC, id DESC LIMIT $1";
        let mut raw: Vec<RawDelivery> = self.db.rows(Sql::built(text), args).await?;
        let more = raw.len() > filter.limit as usize;
        raw.truncate(filter.limit as usize);
        let next = raw
            .last()
            .filter(|_| more)
            .map(|last| format!("{}:{}", last.received_at, last.id));
        Ok((self.with_outcomes(raw).await?, next))
    }

    async fn with_outcomes(&self, raw: Vec<RawDelivery>) -> Result<Vec<DeliveryRow>> {
        if raw.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<String> = raw.iter().map(|row| row.id.clone()).collect();
        let sql = one_of!(
            concat!(
                "SELECT ",
                outcome_columns!(),
                " FROM triggers WHERE delivery_id IS NOT NULL AND delivery_id"
            ),
            "$1",
            " ORDER BY delivery_id, place"
        );
        let found: Vec<RawOutcome> = self.db.rows(sql, args![ids]).await?;
        let mut outcomes: HashMap<String, Vec<OutcomeRow>> = HashMap::new();
        for raw in found {
            let row = OutcomeRow::try_from(raw)?;
            let delivery = row.delivery.clone().unwrap_or_default();
            outcomes.entry(delivery).or_default().push(row);
        }
        raw.into_iter()
            .map(|raw| {
                Ok(DeliveryRow {
                    outcomes: outcomes.remove(&raw.id).unwrap_or_default(),
                    id: raw.id,
                    webhook: raw.webhook,
                    sender_id: raw.sender_id,
                    kind: raw.kind,
                    repository: raw.repository,
                    summary: raw.summary,
                    note: raw.note,
                    redelivery_of: raw.redelivery_of,
                    headers: raw.headers,
                    size: lives::size(raw.size)?,
                    sha256: raw.sha256,
                    received_at: raw.received_at,
                    watches: from_json(&raw.watches)?,
                })
            })
            .collect()
    }

    /// Grows with each change of a task.
    pub async fn task_version(&self) -> Result<i64> {
        let row: Option<(i64,)> = self
            .db
            .row("SELECT version FROM task_version", args![])
            .await?;
        Ok(row.map_or(0, |(version,)| version))
    }
}

/// Removes deliveries that came before `before`, at most `limit`, with the triggers that led to no run. Says
/// how many, and gives their blobs.
pub(crate) async fn expire(tx: &mut Tx, before: Ms, limit: u32) -> Result<(u64, Vec<String>)> {
    let old: Vec<(String, Option<String>)> = tx
        .rows(
            "SELECT id, blob FROM deliveries WHERE received_at < $1 ORDER BY received_at, id LIMIT $2",
            args![before, limit],
        )
        .await?;
    if old.is_empty() {
        return Ok((0, Vec::new()));
    }
    let ids: Vec<String> = old.iter().map(|(id, _)| id.clone()).collect();
    tx.exec(
        one_of!(
            "DELETE FROM triggers WHERE run_id IS NULL AND delivery_id IS NOT NULL AND delivery_id",
            "$1",
            ""
        ),
        args![ids.clone()],
    )
    .await?;
    tx.exec(
        one_of!("DELETE FROM deliveries WHERE id", "$1", ""),
        args![ids],
    )
    .await?;
    let count = old.len() as u64;
    Ok((
        count,
        old.into_iter().filter_map(|(_, blob)| blob).collect(),
    ))
}
