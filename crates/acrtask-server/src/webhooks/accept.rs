//! Storage of a verified delivery with the decisions it leads to.
//!
//! Invariant: a long body is in its blob before its row is written. If the row is not written, the
//! blob is removed, unless the server stops in between.

use std::sync::Arc;

use acrtask_model::{RunId, ScopeChain};
use acrtask_store::{
    Delivered, NewDelivery, StoreError, StoredBody, TriggerAction, TriggerDecision, WebhookRow,
};
use acrtask_trigger::{Delivery, RegistryDelivery, RegistryEvent};
use axum::http::HeaderMap;
use bytes::Bytes;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::{
    DeliveryContext, Sender,
    evaluate::{Evaluated, Evaluation, evaluate_events, evaluate_registry_event},
    image_loops,
};
use crate::{App, api::ApiError, auth, bases, run_factory};

/// Longest body that is stored in the row, in bytes.
const MAX_INLINE: usize = 64 << 10;
/// Headers that describe a delivery. None of them contains a proof.
const STORED_HEADERS: [&str; 21] = [
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

/// A parsed delivery.
#[derive(Debug)]
pub(crate) enum Source {
    Forge(Delivery),
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

/// Outcome of storing a delivery.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) id: String,
    pub(crate) seen_before: bool,
    pub(crate) runs: Vec<RunId>,
    pub(crate) note: Option<String>,
}

/// Stores a delivery with the decisions it leads to.
///
/// `redelivery_of` is the id of the earlier delivery whose body a user has asked to evaluate again.
pub(crate) async fn accept(
    app: &Arc<App>,
    webhook: &WebhookRow,
    sender: Sender,
    source: Source,
    headers: &HeaderMap,
    body: Bytes,
    redelivery_of: Option<&str>,
) -> Result<Accepted, ApiError> {
    let tasks = app.tasks.current(&app.store).await?;
    let context = DeliveryContext {
        app,
        tasks: &tasks,
        webhook: &webhook.name,
        definition: &webhook.definition,
        is_redelivery: redelivery_of.is_some(),
    };
    let evaluation = match (&source, sender) {
        (Source::Forge(delivery), Sender::Forge(provider)) => {
            evaluate_events(context, provider, &delivery.events).await
        }
        (Source::Registry(delivery), _) => evaluate_registry_event(context, &delivery.event).await,
        (Source::Forge(delivery), Sender::Registry(_)) => {
            evaluate_events(context, delivery.provider, &delivery.events).await
        }
    };
    let id = format!("d{}", auth::random_id());
    let Evaluation {
        kind,
        repository,
        summary,
        note,
        evaluated,
    } = evaluation;
    let mut decisions = Vec::with_capacity(evaluated.len());
    for one in evaluated {
        decisions.push(check_decision(app, one).await?);
    }
    let blob = format!("deliveries/{id}");
    let size = body.len();
    let sha256 = encode_hex(&Sha256::digest(&body));
    let stored = if size <= MAX_INLINE {
        StoredBody::Inline(body.to_vec())
    } else {
        app.blobs.put(&blob, body).await?;
        StoredBody::Blob(blob.clone())
    };
    let watches = match &source {
        Source::Registry(delivery) => find_watches(app, &delivery.event).await?,
        Source::Forge(_) => Vec::new(),
    };
    let note = if decisions.is_empty() && !watches.is_empty() {
        let names = watches.join("`, `");
        Some(format!(
            "no task runs for this push; the base image `{names}` is watched and is checked now"
        ))
    } else {
        note
    };
    let delivery = NewDelivery {
        sender_id: match redelivery_of {
            Some(_) => format!("again/{id}"),
            None => source.id().to_owned(),
        },
        id: id.clone(),
        webhook: webhook.name.clone(),
        kind: kind.into(),
        repository,
        summary,
        note: note.clone(),
        redelivery_of: redelivery_of.map(str::to_owned),
        headers: stored_headers_json(headers),
        watches,
        size: size as u64,
        sha256,
        body: stored,
        replay_age: sender.replay_age_ms().filter(|_| redelivery_of.is_none()),
    };
    let in_blob = matches!(delivery.body, StoredBody::Blob(_));
    let delivered = app.deliveries.store(app, delivery, decisions).await;
    if in_blob && !matches!(delivered, Ok(Delivered::New { .. })) {
        // The row may have been written: the blob stays.
        let unknown = matches!(&delivered, Err(error) if error.is_unavailable());
        if !unknown && let Err(error) = app.blobs.delete(&[blob]).await {
            tracing::warn!(%error, "cannot remove the body of a delivery that was not stored");
        }
    }
    let accepted = match delivered? {
        Delivered::Duplicate(earlier) => {
            tracing::info!(
                webhook = webhook.name,
                delivery = earlier,
                "ignored a repeated delivery"
            );
            return Ok(Accepted {
                note: Some(format!(
                    "the server received it before, as delivery {earlier}"
                )),
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
                "accepted a delivery"
            );
            if let Source::Registry(delivery) = &source {
                check_pushed_bases(app, &delivery.event).await;
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

/// Withdraws a run that lacks secrets or would close a loop of pushes, and adds why to the reason.
async fn check_decision(app: &App, evaluated: Evaluated) -> Result<TriggerDecision, StoreError> {
    let Evaluated {
        task_id,
        mut decision,
        needs,
        image,
    } = evaluated;
    if !matches!(decision.action, TriggerAction::Run { .. }) {
        return Ok(decision);
    }
    let scopes = ScopeChain::of_task(&task_id, &decision.task);
    let missing = run_factory::find_missing(app, &scopes, needs.iter().map(String::as_str)).await?;
    let withdrawn = if !missing.is_empty() {
        Some(run_factory::missing_secrets_message(
            &missing,
            Some(&decision.task),
        ))
    } else if let Some(image) = image {
        image_loops::find_loop(app, (&task_id, &decision.task), &image).await?
    } else {
        None
    };
    if let Some(reason) = withdrawn {
        decision.reason = format!("{}, but {reason}", decision.reason);
        decision.action = TriggerAction::Ignore;
    }
    Ok(decision)
}

/// Starts a check of the base tags that were pushed. After a failure the next poll checks them.
async fn check_pushed_bases(app: &App, event: &RegistryEvent) {
    let RegistryEvent::Pushed { images } = event else {
        return;
    };
    for image in images {
        let (registry, repository) = (&image.registry, &image.repository);
        if let Err(error) =
            bases::mark_push_due(app, registry, repository, image.tag.as_deref()).await
        {
            tracing::warn!(%image, %error, "cannot check a pushed base tag now");
        }
    }
}

fn stored_headers_json(headers: &HeaderMap) -> String {
    let stored_headers_json: Map<String, Value> = STORED_HEADERS
        .iter()
        .filter_map(|name| {
            let value = headers.get(*name)?.to_str().ok()?;
            Some(((*name).to_owned(), Value::from(value)))
        })
        .collect();
    Value::Object(stored_headers_json).to_string()
}

fn encode_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Parses headers from the form in which they are stored.
pub(crate) fn parse_stored_headers(stored_headers_json: &str) -> HeaderMap {
    let map: Map<String, Value> = serde_json::from_str(stored_headers_json).unwrap_or_default();
    map.iter()
        .filter_map(|(name, value)| {
            let name: axum::http::HeaderName = name.parse().ok()?;
            Some((name, value.as_str()?.parse().ok()?))
        })
        .collect()
}

/// Returns the watched base images among those that were pushed.
async fn find_watches(app: &App, event: &RegistryEvent) -> Result<Vec<String>, StoreError> {
    let RegistryEvent::Pushed { images } = event else {
        return Ok(Vec::new());
    };
    let mut watches = Vec::new();
    for image in images {
        let found = bases::find_watch(
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
