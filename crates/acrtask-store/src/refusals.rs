//! Rejected deliveries: their number and the last one. A webhook has one row per kind of rejection,
//! so that unauthenticated senders cannot fill the database.

use sqlx::FromRow;

use crate::{Ms, Result, Store, StoreError, db::args, run_state};

/// Deliveries to a webhook that were rejected for the same reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusalRow {
    /// Name of the webhook.
    pub webhook: String,
    /// Kind of the rejection, as in a problem of the API.
    pub code: String,
    /// Message of the last rejection.
    pub message: String,
    /// Sender address of the last rejection.
    pub address: String,
    /// Number of rejections.
    pub refusals: u64,
    /// Time of the first rejection.
    pub first_at: Ms,
    /// Time of the last rejection.
    pub last_at: Ms,
}

#[derive(Debug, FromRow)]
struct RawRefusal {
    webhook: String,
    code: String,
    message: String,
    address: String,
    refusals: i64,
    first_at: i64,
    last_at: i64,
}

impl TryFrom<RawRefusal> for RefusalRow {
    type Error = StoreError;

    fn try_from(raw: RawRefusal) -> Result<Self> {
        Ok(Self {
            webhook: raw.webhook,
            code: raw.code,
            message: raw.message,
            address: raw.address,
            refusals: run_state::to_u64(raw.refusals)?,
            first_at: raw.first_at,
            last_at: raw.last_at,
        })
    }
}

impl Store {
    /// Adds rejections to those of the same webhook and kind. `row.first_at` is used only for the
    /// first ones.
    pub async fn add_refusals(&self, row: &RefusalRow) -> Result<()> {
        self.db
            .exec(
                "INSERT INTO refused_deliveries (webhook, code, message, address, refusals, first_at, last_at) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (webhook, code) DO UPDATE SET \
                 message = excluded.message, address = excluded.address, last_at = excluded.last_at, \
                 refusals = refused_deliveries.refusals + excluded.refusals",
                args![
                    row.webhook.as_str(),
                    row.code.as_str(),
                    row.message.as_str(),
                    row.address.as_str(),
                    row.refusals,
                    row.first_at,
                    row.last_at,
                ],
            )
            .await
            .map(drop)
    }

    /// Returns rejections of all webhooks, or of one, most recent first.
    pub async fn refusals(&self, webhook: Option<&str>) -> Result<Vec<RefusalRow>> {
        let rows: Vec<RawRefusal> = self
            .db
            .fetch_all(
                "SELECT webhook, code, message, address, refusals, first_at, last_at FROM refused_deliveries \
                 WHERE webhook = COALESCE($1, webhook) ORDER BY last_at DESC, webhook, code LIMIT 1000",
                args![webhook],
            )
            .await?;
        rows.into_iter().map(RefusalRow::try_from).collect()
    }
}
