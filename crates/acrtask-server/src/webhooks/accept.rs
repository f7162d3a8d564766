//! A delivery that has proved itself: held against the tasks, and stored with what that leads to.
//!
//! Invariant: the body of a long one is in its blob before its row is written, and a row that was not written leaves no
//! blob behind, unless the server itself ends in between.

use std::sync::Arc;

use acrtask_model::RunId;
use acrtask_store::{Delivered, LeadsTo, Looked, NewDelivery, StoreError, StoredBody, WebhookRow};
use acrtask_trigger::{Delivery, RegistryDelivery, RegistryEvent};
use axum::http::HeaderMap;
use bytes::Bytes;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::{
    Came, Sender, image_loops,
    look::{Evaluated, Look, at_events, at_registry},
};
use crate::{App, api::ApiError, auth, bases, submit};

/// Longest body that is kept in the row.
const INLINE: usize = 64 << 10;
/// The headers that say what a delivery is. None of them proves anything.
const KEPT: [&str; 21] = [
    "content-type",
    "user-agent",
    "x-github-event",
    "x-github-delivery",
    "x-github-enterprise-host",
    "x-gitlab-event",
    "x-gitlab-event-uuid",
    "x-gitlab-webhook-uuid",
    "idempotency-key",
    "x-gitlab-instance",
    "x-gitea-event",
    "x-gitea-event-type",
    "x-gitea-delivery",
    "x-forgejo-event",
    "x-forgejo-event-type",
    "x-forgejo-delivery",
    "x-event-key",
    "x-request-uuid",
    "x-request-id",
    "x-hook-uuid",
    "webhook-id",
];

/// A delivery, read.
#[derive(Debug)]
pub(crate) enum Source {
    /// Of a forge.
    Forge(Delivery),
    /// Of a registry.
    Registry(RegistryDelivery),
}

impl Source {
    fn id(&self) -> &str {
        match self {
            Self::Forge(delivery) => &delivery.id,
            Self::Registry(delivery) => &delivery.id,
        }
    }
}

/// What became of a delivery.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) id: String,
    pub(crate) seen_before: bool,
    pub(crate) runs: Vec<RunId>,
    pub(crate) note: Option<String>,
}

/// Stores a delivery with all that it leads to. `again`: it is the body of that delivery, looked at once more.
pub(crate) async fn accept(
    app: &Arc<App>,
    webhook: &WebhookRow,
    sender: Sender,
    source: Source,
    headers: &HeaderMap,
    body: Bytes,
    again: Option<&str>,
) -> Result<Accepted, ApiError> {
    let tasks = app.tasks.current(&app.store).await?;
    let came = Came {
        app,
        tasks: &tasks,
        webhook: &webhook.name,
        definition: &webhook.definition,
        again: again.is_some(),
    };
    let look = match (&source, sender) {
        (Source::Forge(delivery), Sender::Forge(provider)) => {
            at_events(came, provider, &delivery.events)
        }
        (Source::Registry(delivery), _) => at_registry(came, &delivery.event),
        (Source::Forge(delivery), Sender::Registry(_)) => {
            at_events(came, delivery.provider, &delivery.events)
        }
    };
    let id = format!("d{}", auth::random_id());
    let Look {
        kind,
        repository,
        summary,
        note,
        evaluated,
    } = look;
    let mut looked = Vec::with_capacity(evaluated.len());
    for one in evaluated {
        looked.push(check(app, one).await?);
    }
    let blob = format!("deliveries/{id}");
    let size = body.len();
    let sha256 = hex(&Sha256::digest(&body));
    let stored = if size <= INLINE {
        StoredBody::Inline(body.to_vec())
    } else {
        app.blobs.put(&blob, body).await?;
        StoredBody::Blob(blob.clone())
    };
    let watches = match &source {
        Source::Registry(delivery) => watches_of(app, &delivery.event).await?,
        Source::Forge(_) => Vec::new(),
    };
    let note = if looked.is_empty() && !watches.is_empty() {
        let names = watches.join("`, `");
        Some(format!(
            "no task runs at this push; the base image `{names}` is watched and is checked now"
        ))
    } else {
        note
    };
    let delivery = NewDelivery {
        sender_id: match again {
            Some(_) => format!("again/{id}"),
            None => source.id().to_owned(),
        },
        id: id.clone(),
        webhook: webhook.name.clone(),
        kind: kind.into(),
        repository,
        summary,
        note: note.clone(),
        redelivery_of: again.map(str::to_owned),
        headers: kept(headers),
        watches,
        size: size as u64,
        sha256,
        body: stored,
        replay_age: sender.replay_age_ms().filter(|_| again.is_none()),
    };
    let in_blob = matches!(delivery.body, StoredBody::Blob(_));
    let delivered = app.deliveries.store(app, delivery, looked).await;
    if in_blob && !matches!(delivered, Ok(Delivered::New { .. })) {
        // Where it is not known whether the row was written, the blob stays.
        let unknown = matches!(&delivered, Err(error) if error.is_unavailable());
        if !unknown && let Err(error) = app.blobs.delete(&[blob]).await {
            tracing::warn!(%error, "the body of a delivery that was not stored stays behind");
        }
    }
    let accepted = match delivered? {
        Delivered::Seen(earlier) => {
            tracing::info!(
                webhook = webhook.name,
                delivery = earlier,
                "a delivery came once more"
            );
            return Ok(Accepted {
                note: Some(format!("it came before, as delivery {earlier}")),
                id: earlier,
                seen_before: true,
                runs: Vec::new(),
            });
        }
        Delivered::New { outcomes, canceled } => {
            let runs: Vec<RunId> = outcomes.iter().filter_map(|one| one.run.clone()).collect();
            tracing::info!(
                webhook = webhook.name,
                delivery = id,
                kind,
                runs = runs.len(),
                tasks = outcomes.len(),
                canceled = canceled.len(),
                "a delivery was taken"
            );
            if let Source::Registry(delivery) = &source {
                look_at_bases(app, &delivery.event).await;
            }
            Accepted {
                id,
                seen_before: false,
                runs,
                note,
            }
        }
    };
    Ok(accepted)
}

/// Withdraws a run whose secrets are missing, or that would close a loop of pushes. Its reason says so.
async fn check(app: &App, evaluated: Evaluated) -> Result<Looked, StoreError> {
    let Evaluated {
        task_id,
        mut looked,
        needs,
        image,
    } = evaluated;
    if !matches!(looked.leads_to, LeadsTo::Run { .. }) {
        return Ok(looked);
    }
    let missing =
        submit::missing_among(app, Some(&task_id), needs.iter().map(String::as_str)).await?;
    let withdrawn = if !missing.is_empty() {
        Some(submit::no_secret(&missing, Some(&looked.task)))
    } else if let Some(image) = image {
        image_loops::find(app, (&task_id, &looked.task), &image).await?
    } else {
        None
    };
    if let Some(reason) = withdrawn {
        looked.reason = format!("{}, but {reason}", looked.reason);
        looked.leads_to = LeadsTo::Nothing;
    }
    Ok(looked)
}

/// Looks at base tags that were pushed. Where that fails, they are looked at when they are due.
async fn look_at_bases(app: &App, event: &RegistryEvent) {
    let RegistryEvent::Pushed { images } = event else {
        return;
    };
    for image in images {
        let (registry, repository) = (&image.registry, &image.repository);
        if let Err(error) = bases::pushed(app, registry, repository, image.tag.as_deref()).await {
            tracing::warn!(%image, %error, "a base tag that was pushed is looked at later");
        }
    }
}

fn kept(headers: &HeaderMap) -> String {
    let kept: Map<String, Value> = KEPT
        .iter()
        .filter_map(|name| {
            let value = headers.get(*name)?.to_str().ok()?;
            Some(((*name).to_owned(), Value::from(value)))
        })
        .collect();
    Value::Object(kept).to_string()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Headers as they were kept.
pub(crate) fn headers_of(kept: &str) -> HeaderMap {
    let map: Map<String, Value> = serde_json::from_str(kept).unwrap_or_default();
    map.iter()
        .filter_map(|(name, value)| {
            let name: axum::http::HeaderName = name.parse().ok()?;
            Some((name, value.as_str()?.parse().ok()?))
        })
        .collect()
}

/// Returns the watched base images among those that were pushed.
async fn watches_of(app: &App, event: &RegistryEvent) -> Result<Vec<String>, StoreError> {
    let RegistryEvent::Pushed { images } = event else {
        return Ok(Vec::new());
    };
    let mut watches = Vec::new();
    for image in images {
        let found = bases::watched(
            app,
            &image.registry,
            &image.repository,
            image.tag.as_deref(),
        );
        if let Some(name) = found.await?
            && !watches.contains(&name)
        {
            watches.push(name);
        }
    }
    Ok(watches)
}
