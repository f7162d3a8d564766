//! Webhooks: endpoints for deliveries of forges and registries. Their secrets arrive and leave
//! encrypted.

use acrtask_api::webhook::WebhookDefinition;
use sqlx::FromRow;

use crate::{Ms, Result, Store, StoreError, db::args, from_json, to_json};

/// A stored webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookRow {
    /// Name of the webhook.
    pub name: String,
    /// Definition of the webhook.
    pub definition: WebhookDefinition,
    /// Encrypted secrets.
    pub secrets: Vec<u8>,
    /// Time of its creation.
    pub created_at: Ms,
    /// Time of the last change.
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

/// Selects the columns of [`RawWebhook`].
macro_rules! select_webhooks {
    () => {
        "SELECT name, definition, secrets, created_at, updated_at FROM webhooks "
    };
}

fn missing(name: &str) -> StoreError {
    StoreError::not_found(format!("webhook {name}"))
}

impl Store {
    /// Creates or replaces a webhook.
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

    /// Returns one webhook.
    pub async fn webhook(&self, name: &str) -> Result<WebhookRow> {
        let raw: Option<RawWebhook> = self
            .db
            .fetch_optional(concat!(select_webhooks!(), "WHERE name = $1"), args![name])
            .await?;
        raw.ok_or_else(|| missing(name))?.try_into()
    }

    /// Returns all webhooks by name.
    pub async fn webhooks(&self) -> Result<Vec<WebhookRow>> {
        let rows: Vec<RawWebhook> = self
            .db
            .fetch_all(concat!(select_webhooks!(), "ORDER BY name"), args![])
            .await?;
        rows.into_iter().map(WebhookRow::try_from).collect()
    }

    /// Removes a webhook and its refusals, but not its deliveries.
    pub async fn delete_webhook(&self, name: &str) -> Result<()> {
        let mut tx = self.db.begin().await?;
        let sql = "DELETE FROM webhooks WHERE name = $1";
        if tx.exec(sql, args![name]).await? == 0 {
            return Err(missing(name));
        }
        let sql = "DELETE FROM refused_deliveries WHERE webhook = $1";
        tx.exec(sql, args![name]).await?;
        tx.commit().await
    }
}
