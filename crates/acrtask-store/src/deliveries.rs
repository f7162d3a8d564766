//! Deliveries as rows: requests of forges and registries, and the decisions about them.
//! `deliver.rs` stores them.

use std::collections::HashMap;

use acrtask_api::webhook::DecisionAction;
use acrtask_model::RunId;
use sqlx::FromRow;

use crate::{
    Ms, Result, Store, StoreError,
    db::{Sql, Tx, args, one_of},
    from_json, run_state, runs,
};

/// Location of the body of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredBody {
    /// In the row of the delivery.
    Inline(Vec<u8>),
    /// In the blob with this key, which already exists.
    Blob(String),
}

/// Result of storing a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivered {
    /// The delivery is new.
    New {
        /// Decisions about the tasks that the delivery was evaluated for.
        outcomes: Vec<OutcomeRow>,
        /// Runs whose cancellation the delivery requested.
        canceled: Vec<RunId>,
    },
    /// The delivery is stored already, with this id.
    Duplicate(String),
}

/// Decision about one task, with its trigger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutcomeRow {
    /// Id of the trigger.
    pub trigger: String,
    /// Name of the task.
    pub task: String,
    /// Kind of the trigger.
    pub kind: String,
    /// Time of the trigger.
    pub received_at: Ms,
    /// Id of the delivery, if any.
    pub delivery: Option<String>,
    /// Kind of the decision.
    pub what: DecisionAction,
    /// Run that was started or joined.
    pub run: Option<RunId>,
    /// Reason of the decision.
    pub reason: String,
}

/// A stored delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryRow {
    /// Id of the delivery.
    pub id: String,
    /// Webhook that received it.
    pub webhook: String,
    /// Id that the sender assigned.
    pub sender_id: String,
    /// Kind of the event.
    pub kind: String,
    /// Repository of the event.
    pub repository: Option<String>,
    /// Summary of the event, in one sentence.
    pub summary: String,
    /// Reason why the delivery was not evaluated for any task.
    pub note: Option<String>,
    /// Delivery that this one repeats.
    pub redelivery_of: Option<String>,
    /// JSON of the stored headers.
    pub headers: String,
    /// Size of the body in bytes.
    pub size: u64,
    /// SHA-256 of the body.
    pub sha256: String,
    /// Time of receipt.
    pub received_at: Ms,
    /// Watched base images that a registry reported as pushed.
    pub watches: Vec<String>,
    /// Decisions about tasks.
    pub outcomes: Vec<OutcomeRow>,
}

/// Filter of a list of deliveries.
#[derive(Debug, Clone, Default)]
pub struct DeliveryFilter {
    /// Only deliveries to this webhook.
    pub webhook: Option<String>,
    /// Only deliveries to these webhooks that were received after the creation of the webhook.
    pub webhooks: Option<Vec<(String, Ms)>>,
    /// Only deliveries that were received at this time or later.
    pub since: Option<Ms>,
    /// Only deliveries that were received before this time.
    pub until: Option<Ms>,
    /// Cursor from the previous page.
    pub before: Option<String>,
    /// At most this number of deliveries.
    pub limit: u32,
}

/// Returns the columns of [`RawDelivery`].
macro_rules! delivery_columns {
    () => {
        "id, webhook, sender_id, kind, repository, summary, note, redelivery_of, headers, size, sha256, received_at, \
         watches"
    };
}

/// Returns the columns of [`RawOutcome`].
macro_rules! outcome_columns {
    () => {
        "id, kind, task, received_at, run_id, joined, ignored_reason, delivery_id, detail"
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
    ignored_reason: Option<String>,
    delivery_id: Option<String>,
    detail: Option<String>,
}

impl TryFrom<RawOutcome> for OutcomeRow {
    type Error = StoreError;

    fn try_from(raw: RawOutcome) -> Result<Self> {
        let run = raw.run_id.map(runs::parse_run_id).transpose()?;
        Ok(Self {
            trigger: raw.id,
            task: raw.task.unwrap_or_default(),
            kind: raw.kind,
            received_at: raw.received_at,
            delivery: raw.delivery_id,
            what: match (&run, raw.joined) {
                (Some(_), 0) => DecisionAction::RunStarted,
                (Some(_), _) => DecisionAction::ExistingRun,
                (None, _) => DecisionAction::Ignored,
            },
            run,
            reason: raw.ignored_reason.or(raw.detail).unwrap_or_default(),
        })
    }
}

impl Store {
    /// Returns one delivery.
    pub async fn delivery(&self, id: &str) -> Result<DeliveryRow> {
        let raw: Option<RawDelivery> = self
            .db
            .fetch_optional(
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

    /// Returns the body of a delivery.
    pub async fn delivery_body(&self, id: &str) -> Result<StoredBody> {
        let raw: Option<(Option<Vec<u8>>, Option<String>)> = self
            .db
            .fetch_optional("SELECT body, blob FROM deliveries WHERE id = $1", args![id])
            .await?;
        match raw {
            Some((Some(bytes), _)) => Ok(StoredBody::Inline(bytes)),
            Some((None, Some(key))) => Ok(StoredBody::Blob(key)),
            _ => Err(StoreError::not_found(format!("delivery {id}"))),
        }
    }

    /// Returns a page of deliveries, newest first, and the cursor of the next page.
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
        if let Some(webhooks) = filter.webhooks {
            let mut conditions = vec!["1 = 0".to_owned()];
            for (name, created) in webhooks {
                args.extend(args![name, created]);
                let at = args.len();
                conditions.push(format!("(webhook = ${} AND received_at >= ${at})", at - 1));
            }
            text += &format!(" AND ({})", conditions.join(" OR "));
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
                        "`{before}` is not a cursor; pass the `next` value of the previous page"
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
        let mut raw: Vec<RawDelivery> = self.db.fetch_all(Sql::dynamic(text), args).await?;
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
        let found: Vec<RawOutcome> = self.db.fetch_all(sql, args![ids]).await?;
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
                    size: run_state::to_u64(raw.size)?,
                    sha256: raw.sha256,
                    received_at: raw.received_at,
                    watches: from_json(&raw.watches)?,
                })
            })
            .collect()
    }

    /// Returns a number that grows with each change of a task.
    pub async fn task_version(&self) -> Result<i64> {
        let row: Option<(i64,)> = self
            .db
            .fetch_optional("SELECT version FROM task_version", args![])
            .await?;
        Ok(row.map_or(0, |(version,)| version))
    }
}

/// Removes at most `limit` deliveries that were received before `before`, with their triggers that
/// led to no run. Returns their number and their blobs.
pub(crate) async fn expire(tx: &mut Tx, before: Ms, limit: u32) -> Result<(u64, Vec<String>)> {
    let old: Vec<(String, Option<String>)> = tx
        .fetch_all(
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
