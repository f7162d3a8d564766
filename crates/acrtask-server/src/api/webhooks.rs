//! Webhooks, the deliveries that came to them with what each led to, and approvals of strangers' commits.

use acrtask_api::forms::{TimeOrDate, WebhookName};
use acrtask_api::{
    admin::Problem,
    cascade::CascadeSummary,
    run::{Approval, Page, Run},
    webhook::{
        Delivery, DeliveryWatch, Outcome, PutWebhook, Receipt, Refusal, Webhook, WebhookDefinition,
    },
};
use acrtask_store::{
    DeliveryFilter, DeliveryRow, Hint, OutcomeRow, StoreError, StoredBody, WebhookRow,
};
use acrtask_trigger::RepositoryUrl;
use axum::{extract::State, http::StatusCode};
use bytes::Bytes;
use jiff::Timestamp;
use serde::Deserialize;
use url::Url;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api, ApiError,
    extract::{Json, Path, Query},
    query, runs,
};
use crate::{
    App,
    auth::{self, By},
    cascades::{self, ListFilter},
    submit::{self, Problems, event},
    webhooks::{self, Sender},
};

/// Most secrets of a webhook at once.
const MAX_SECRETS: usize = 8;
/// Newest cascades among which those of reported base images are looked for.
const CASCADES: u32 = 200;
/// Shortest secret, in characters.
const MIN_SECRET: usize = 8;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(show, put, delete))
        .routes(routes!(deliveries))
        .routes(routes!(refused))
        .routes(routes!(delivery))
        .routes(routes!(redeliver))
        .routes(routes!(approve))
}

fn to_api(app: &App, row: WebhookRow, secrets: usize) -> Webhook {
    let path = format!("/hooks/{}", row.name);
    Webhook {
        url: match &app.config.public_url {
            Some(base) => format!("{}{path}", base.as_str().trim_end_matches('/')),
            None => path,
        },
        name: row.name,
        definition: row.definition,
        secrets: u32::try_from(secrets).unwrap_or(u32::MAX),
        created_at: acrtask_store::timestamp(row.created_at),
        updated_at: acrtask_store::timestamp(row.updated_at),
    }
}

fn counted(app: &App, row: WebhookRow) -> Result<Webhook, ApiError> {
    let secrets = webhooks::secrets(app, &row)?.len();
    Ok(to_api(app, row, secrets))
}

/// Webhooks, by name.
#[utoipa::path(get, path = "/webhooks", tag = "webhooks", security(("token" = ["admin"])), responses(
    (status = OK, body = Vec<Webhook>),
))]
async fn list(
    _by: By<auth::Admin>,
    State(api): State<Api>,
) -> Result<Json<Vec<Webhook>>, ApiError> {
    let rows = api.app.store.webhooks().await?;
    let all: Result<Vec<Webhook>, ApiError> =
        rows.into_iter().map(|row| counted(&api.app, row)).collect();
    Ok(Json(all?))
}

/// A webhook.
#[utoipa::path(get, path = "/webhooks/{name}", tag = "webhooks",
    params(("name" = String, Path, description = "The webhook's name.")),
    security(("token" = ["admin"])), responses((status = OK, body = Webhook), (status = NOT_FOUND, body = Problem)))]
async fn show(
    _by: By<auth::Admin>,
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Json<Webhook>, ApiError> {
    let row = api.app.store.webhook(&name).await?;
    Ok(Json(counted(&api.app, row)?))
}

/// Sets a webhook. Its secrets are never shown again; without new ones it keeps those that it has.
#[utoipa::path(put, path = "/webhooks/{name}", tag = "webhooks", request_body = PutWebhook,
    params(("name" = WebhookName, Path, description = "The webhook's name.")),
    security(("token" = ["admin"])), responses(
    (status = OK, body = Webhook),
    (status = BAD_REQUEST, body = Problem, description = "All that is wrong with it."),
))]
async fn put(
    by: By<auth::Admin>,
    State(api): State<Api>,
    Path(name): Path<String>,
    Json(asked): Json<PutWebhook>,
) -> Result<Json<Webhook>, ApiError> {
    let app = &api.app;
    let earlier = match app.store.webhook(&name).await {
        Ok(row) => Some(row),
        Err(StoreError::NotFound { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    check(&name, &asked, earlier.is_some()).into_result()?;
    let secrets: Vec<String> = if asked.secrets.is_empty() {
        match &earlier {
            Some(row) => webhooks::secrets(app, row)?
                .iter()
                .map(|secret| secret.expose().to_owned())
                .collect(),
            None => Vec::new(),
        }
    } else {
        asked.secrets.into_iter().map(|secret| secret.0).collect()
    };
    let text = serde_json::to_vec(&secrets).map_err(|error| ApiError::internal(&error))?;
    let sealed = app.vault.seal(&webhooks::secrets_aad(&name), &text);
    let definition = WebhookDefinition {
        provider: asked.provider,
        repositories: asked.repositories,
        statuses: asked.statuses,
    };
    let row = app
        .store
        .put_webhook(&name, &definition, &sealed, app.clock.now_ms())
        .await?;
    tracing::info!(
        webhook = name,
        provider = definition.provider,
        by = by.caller.name,
        "a webhook was set"
    );
    Ok(Json(to_api(app, row, secrets.len())))
}

fn check(name: &str, asked: &PutWebhook, there: bool) -> Problems {
    let mut problems = Problems::default();
    if let Err(reason) = submit::word(name) {
        problems.add(format!("the name: {reason}"));
    } else if name.contains('/') {
        problems.add("the name stands in a URL, and cannot have a `/` in it");
    }
    match asked.provider.parse::<Sender>() {
        Err(reason) => problems.add(format!("`provider`: {reason}")),
        Ok(Sender::Registry(_)) if asked.statuses.is_some() => {
            problems.add_rule("`statuses` is for forges: a registry has no statuses of commits");
        }
        Ok(_) => {}
    }
    if asked.secrets.is_empty() && !there {
        problems.add_rule("`secrets` is empty, so that nobody could be believed: give one, and set it at the sender");
    }
    if asked.secrets.len() > MAX_SECRETS {
        problems.add(format!("`secrets` has more than {MAX_SECRETS}"));
    }
    for secret in &asked.secrets {
        let length = secret.0.chars().count();
        if !(MIN_SECRET..=1024).contains(&length) {
            problems.add(format!(
                "a secret has {MIN_SECRET} to 1024 characters: `openssl rand -hex 32` makes a good one"
            ));
        } else if secret.0.len() > 1024 {
            problems.add_rule("a secret has at most 1024 bytes");
        }
    }
    for url in &asked.repositories {
        if RepositoryUrl::parse(url).is_none() {
            problems.add_rule(format!(
                "`repositories`: `{url}` is no URL of a git repository, like https://git.example.com/team/app.git"
            ));
        }
    }
    if let Some(statuses) = &asked.statuses {
        if let Some(token) = &statuses.token
            && let Err(reason) = submit::secret_name(token)
        {
            problems.add(format!("`statuses.token`: {reason}"));
        }
        if let Some(api) = &statuses.api {
            let good = Url::parse(api).is_ok_and(|url| {
                url.username().is_empty()
                    && url.password().is_none()
                    && match url.scheme() {
                        "https" => true,
                        "http" => {
                            acrtask_registry::net::is_loopback(url.host_str().unwrap_or_default())
                        }
                        _ => false,
                    }
            });
            if !good {
                let problem = format!(
                    "`statuses.api` is `{api}`: write https://HOST/PATH without a login; a token is not sent in clear"
                );
                if api.starts_with("http://") || api.starts_with("https://") {
                    problems.add_rule(problem);
                } else {
                    problems.add(problem);
                }
            }
        }
    }
    problems
}

/// Removes a webhook. The deliveries that came to it stay.
#[utoipa::path(delete, path = "/webhooks/{name}", tag = "webhooks",
    params(("name" = String, Path, description = "The webhook's name.")),
    security(("token" = ["admin"])), responses((status = NO_CONTENT), (status = NOT_FOUND, body = Problem)))]
async fn delete(
    by: By<auth::Admin>,
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    api.app.store.delete_webhook(&name).await?;
    tracing::info!(webhook = name, by = by.caller.name, "a webhook was removed");
    Ok(StatusCode::NO_CONTENT)
}

/// Which deliveries a list shows.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListDeliveries {
    /// Only those of the webhook with this name.
    webhook: Option<String>,
    /// Only deliveries that were received at this time or later: RFC 3339 or a date.
    #[param(value_type = Option<TimeOrDate>)]
    since: Option<String>,
    /// Only deliveries that were received before this time: RFC 3339 or a date.
    #[param(value_type = Option<TimeOrDate>)]
    until: Option<String>,
    /// Length of the page: 1 to 200, 50 by default.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u32>,
    /// What the page before gave as `next`.
    cursor: Option<String>,
}

fn outcome(row: OutcomeRow) -> Outcome {
    Outcome {
        task: row.task,
        what: row.what,
        run: row.run,
        reason: row.reason,
    }
}

/// Converts deliveries, and names the cascades of the base images that they report.
async fn deliveries_to_api(app: &App, rows: Vec<DeliveryRow>) -> Result<Vec<Delivery>, ApiError> {
    let cascades = if rows.iter().any(|row| !row.watches.is_empty()) {
        let filter = ListFilter {
            limit: CASCADES,
            ..ListFilter::default()
        };
        cascades::list(app, filter).await?
    } else {
        Vec::new()
    };
    let convert = |row| delivery_to_api(row, &cascades);
    Ok(rows.into_iter().map(convert).collect())
}

/// Returns the cascade that a push of `image` at `pushed` led to: the first one that began later, else the
/// newest one that went on then.
fn cascade_of(cascades: &[CascadeSummary], image: &str, pushed: Timestamp) -> Option<u64> {
    let of_image = |cascade: &&CascadeSummary| cascade.changes.contains_key(image);
    let mut of_image = cascades.iter().filter(of_image);
    let later = of_image.clone().filter(|one| one.created >= pushed);
    later.map(|one| one.id).min().or_else(|| {
        of_image
            .find(|one| one.over_at.is_none_or(|over| over >= pushed))
            .map(|one| one.id)
    })
}

fn delivery_to_api(row: DeliveryRow, cascades: &[CascadeSummary]) -> Delivery {
    let received_at = acrtask_store::timestamp(row.received_at);
    let watches = row.watches.into_iter().map(|image| DeliveryWatch {
        cascade: cascade_of(cascades, &image, received_at),
        image,
    });
    Delivery {
        watches: watches.collect(),
        id: row.id,
        webhook: row.webhook,
        sender_id: row.sender_id,
        kind: row.kind,
        repository: row.repository,
        summary: row.summary,
        note: row.note,
        redelivery_of: row.redelivery_of,
        size: row.size,
        received_at,
        outcomes: row.outcomes.into_iter().map(outcome).collect(),
    }
}

/// Deliveries, the newest first, each with what it led to and why. They tell of all tasks: a token for some of them sees
/// none.
#[utoipa::path(get, path = "/deliveries", tag = "webhooks", params(ListDeliveries), security(("token" = ["read"])), responses(
    (status = OK, body = Page<Delivery>),
    (status = BAD_REQUEST, body = Problem, description = "A filter is wrong."),
))]
async fn deliveries(
    by: By<auth::Read>,
    State(api): State<Api>,
    Query(asked): Query<ListDeliveries>,
) -> Result<Json<Page<Delivery>>, ApiError> {
    by.caller.need_task(None)?;
    let filter = DeliveryFilter {
        webhook: asked.webhook,
        since: query::time("since", asked.since.as_deref())?,
        until: query::time("until", asked.until.as_deref())?,
        before: asked.cursor,
        limit: runs::page_limit(asked.limit)?,
    };
    let (rows, next) = api.app.store.deliveries(filter).await?;
    Ok(Json(Page {
        items: deliveries_to_api(&api.app, rows).await?,
        next,
    }))
}

/// Filter of the list of refusals.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListRefusals {
    /// Only those of the webhook with this name.
    webhook: Option<String>,
}

/// Refused deliveries, counted by webhook and reason, the last ones first. Nothing else is kept of them.
#[utoipa::path(get, path = "/deliveries/refused", tag = "webhooks", params(ListRefusals),
    security(("token" = ["read"])), responses((status = OK, body = Vec<Refusal>)))]
async fn refused(
    by: By<auth::Read>,
    State(api): State<Api>,
    Query(asked): Query<ListRefusals>,
) -> Result<Json<Vec<Refusal>>, ApiError> {
    by.caller.need_task(None)?;
    let app = &api.app;
    app.refusals.flush(app).await?;
    let rows = app.store.refusals(asked.webhook.as_deref()).await?;
    let refusals = rows.into_iter().map(|row| Refusal {
        webhook: row.webhook,
        code: row.code,
        message: row.message,
        address: row.address,
        count: row.refusals,
        first_at: acrtask_store::timestamp(row.first_at),
        last_at: acrtask_store::timestamp(row.last_at),
    });
    Ok(Json(refusals.collect()))
}

/// A delivery, and what it led to for each task that was looked at.
#[utoipa::path(get, path = "/deliveries/{id}", tag = "webhooks",
    params(("id" = String, Path, description = "The delivery's id.")), security(("token" = ["read"])), responses(
    (status = OK, body = Delivery),
    (status = NOT_FOUND, body = Problem),
))]
async fn delivery(
    by: By<auth::Read>,
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Json<Delivery>, ApiError> {
    by.caller.need_task(None)?;
    let row = api.app.store.delivery(&id).await?;
    let found = deliveries_to_api(&api.app, vec![row]).await?.pop();
    found
        .map(Json)
        .ok_or_else(|| ApiError::not_found(format!("there is no delivery {id}")))
}

/// Looks at the body of a delivery once more, as a new delivery that is held against the tasks as they are now.
#[utoipa::path(post, path = "/deliveries/{id}/redeliver", tag = "webhooks",
    params(("id" = String, Path, description = "The delivery's id.")), security(("token" = ["write"])), responses(
    (status = OK, body = Receipt),
    (status = NOT_FOUND, body = Problem, description = "There is no such delivery, or its webhook is gone."),
))]
async fn redeliver(
    by: By<auth::Write>,
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Json<Receipt>, ApiError> {
    by.caller.need_task(None)?;
    let app = &api.app;
    let row = app.store.delivery(&id).await?;
    let webhook = app.store.webhook(&row.webhook).await?;
    let sender: Sender = webhook
        .definition
        .provider
        .parse()
        .map_err(ApiError::conflict)?;
    let body = match app.store.delivery_body(&id).await? {
        StoredBody::Inline(bytes) => Bytes::from(bytes),
        StoredBody::Blob(key) => {
            app.blobs
                .get(&key, acrtask_trigger::MAX_BODY as u64)
                .await?
        }
    };
    let headers = webhooks::headers_of(&row.headers);
    let source = webhooks::read_kept(sender, &headers, &body).map_err(|rejection| {
        ApiError::conflict(format!(
            "the delivery is not one of `{sender}` any more: {rejection}"
        ))
        .help("its webhook was changed since it came; send it again from the forge")
    })?;
    let first = row.redelivery_of.as_deref().unwrap_or(&row.id);
    let accepted =
        webhooks::accept(app, &webhook, sender, source, &headers, body, Some(first)).await?;
    tracing::info!(
        delivery = id,
        by = by.caller.name,
        "a delivery was looked at once more"
    );
    Ok(Json(accepted.receipt()))
}

/// Approves a run of a commit that comes from another repository: it may begin, with secrets, pushes and the shared cache.
/// That holds for this commit alone.
#[utoipa::path(post, path = "/runs/{id}/approve", tag = "runs",
    params(("id" = String, Path, description = "The run's id.")), security(("token" = ["write"])), responses(
    (status = OK, body = Run),
    (status = NOT_FOUND, body = Problem),
    (status = CONFLICT, body = Problem, description = "It waits for no approval."),
))]
async fn approve(
    by: By<auth::Write>,
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Json<Run>, ApiError> {
    let row = runs::find(&api, &by.caller, &id).await?;
    if row.approval != Some(Approval::Pending) {
        return Err(ApiError::conflict(format!(
            "the run {id} waits for no approval"
        )));
    }
    let app = &api.app;
    let task = app.store.tasks_by_id(row.task_id.iter().cloned().collect());
    let no_push = task.await?.iter().any(|task| task.definition.no_push);
    let spec = event::approved(&row.spec, no_push);
    let row = app
        .store
        .approve(&row.id, &spec, &by.caller.name, app.clock.now_ms())
        .await?;
    tracing::info!(run = %row.id, commit = row.commit, by = by.caller.name, "a run was approved");
    app.wake.notify_one();
    runs::hint(&api, Hint::Enqueued).await;
    Ok(Json(row.to_api()))
}

#[cfg(test)]
#[path = "webhooks_tests.rs"]
mod tests;
