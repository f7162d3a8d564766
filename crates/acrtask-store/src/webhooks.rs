//! Webhooks: where forges and registries send deliveries to. Their secrets come in and go out encrypted.

use acrtask_api::webhook::WebhookDefinition;
use sqlx::FromRow;

use crate::{Ms, Result, Store, StoreError, db::args, from_json, to_json};

/// A webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookRow {
    /// Its name.
    pub name: String,
    /// What it is.
    pub definition: WebhookDefinition,
    /// Encrypted.
    pub secrets: Vec<u8>,
    /// When it was made.
    pub created_at: Ms,
    /// When it was last changed.
    pub updated_at: Ms,
}

#[derive(Debug, FromRow)]
struct RawWebhook {
    name: String,
    definition: String,
    secrets: Vec<u8>,
    created_at: i64,
    updated_at: i64,
}

impl TryFrom<RawWebhook> for WebhookRow {
    type Error = StoreError;

    fn try_from(raw: RawWebhook) -> Result<Self> {
        Ok(Self {
            definition: from_json(&raw.definition)?,
            name: raw.name,
            secrets: raw.secrets,
            created_at: raw.created_at,
            updated_at: raw.updated_at,
        })
    }
}

/// The columns of [`RawWebhook`].
macro_rules! select_webhooks {
    () => {
        "SELECT name, definition, secrets, created_at, updated_at FROM webhooks "
    };
}

fn missing(name: &str) -> StoreError {
    StoreError::not_found(format!("webhook {name}"))
}

impl Store {
    /// Makes or changes a webhook.
    pub async fn put_webhook(
        &self,
        name: &str,
        definition: &WebhookDefinition,
        secrets: &[u8],
        now: Ms,
    ) -> Result<WebhookRow> {
        self.db
            .exec(
                "INSERT INTO webhooks (name, definition, secrets, created_at, updated_at) VALUES ($1, $2, $3, $4, $4) \
                 ON CONFLICT (name) DO UPDATE SET definition = excluded.definition, secrets = excluded.secrets, \
                 updated_at = excluded.updated_at",
                args![name, to_json(definition)?, secrets, now],
            )
            .await?;
        self.webhook(name).await
    }

    /// A webhook.
    pub async fn webhook(&self, name: &str) -> Result<WebhookRow> {
        let raw: Option<RawWebhook> = self
            .db
            .row(concat!(select_webhooks!(), "WHERE name = $1"), args![name])
            .await?;
        raw.ok_or_else(|| missing(name))?.try_into()
    }

    /// All webhooks, by name.
    pub async fn webhooks(&self) -> Result<Vec<WebhookRow>> {
        let rows: Vec<RawWebhook> = self
            .db
            .rows(concat!(select_webhooks!(), "ORDER BY name"), args![])
            .await?;
        rows.into_iter().map(WebhookRow::try_from).collect()
    }

    /// Removes a webhook and its refusals. Its deliveries stay.
    pub async fn delete_webhook(&self, name: &str) -> Result<()> {
        let mut tx = self.db.write().await?;
        let sql = "DELETE FROM webhooks WHERE name = $1";
        if tx.exec(sql, args![name]).await? == 0 {
            return Err(missing(name));
        }
        let sql = "DELETE FROM refused_deliveries WHERE webhook = $1";
        tx.exec(sql, args![name]).await?;
        tx.commit().await
    }
}
