//! Webhooks, their deliveries with the decisions, and approvals of commits from forks.

use acrtask_api::forms::{TimeOrDate, WebhookName};
use acrtask_api::{
    admin::{Problem, Scope},
    cascade::CascadeSummary,
    run::{Approval, Page, Run},
    webhook::{
        Decision, Delivery, DeliveryWatch, PutWebhook, Receipt, Refusal, Webhook, WebhookDefinition,
    },
};
use acrtask_model::TaskPattern;
use acrtask_store::{
    DeliveryFilter, DeliveryRow, Hint, Ms, OutcomeRow, RefusalRow, RunRow, StoreError, StoredBody,
    WebhookRow,
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
    secrets::parse_prefix,
};
use crate::{
    App,
    auth::{self, Authenticated, Caller},
    cascades::{self, ListFilter},
    run_factory::trigger,
    validate::{self, Problems},
    webhooks::{self, Sender},
};

/// Most secrets of a webhook.
const MAX_SECRETS: usize = 8;
/// Newest cascades that are searched for those of reported base images.
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

fn convert_webhook(app: &App, row: WebhookRow) -> Result<Webhook, ApiError> {
    let secrets = webhooks::decrypt_secrets(app, &row)?.len();
    Ok(to_api(app, row, secrets))
}

/// Returns `true` if the caller may manage the webhook: an administrator all of them, others those
/// whose tasks are all within their task limit.
fn may_manage(caller: &Caller, tasks: Option<&str>) -> bool {
    let pattern = tasks.and_then(|tasks| tasks.parse::<TaskPattern>().ok());
    caller.has_scope(Scope::Admin) || pattern.is_some_and(|pattern| caller.limit.includes(&pattern))
}

/// Returns the webhook `name`, if the caller may manage it.
async fn find(app: &App, caller: &Caller, name: &str) -> Result<WebhookRow, ApiError> {
    let row = app.store.webhook(name).await?;
    if may_manage(caller, row.definition.tasks.as_deref()) {
        Ok(row)
    } else {
        Err(StoreError::NotFound {
            what: format!("webhook {name}"),
        }
        .into())
    }
}

/// Lists webhooks by name. A token without the scope `admin` sees those of prefixes within its task
/// limit.
#[utoipa::path(get, path = "/webhooks", tag = "webhooks", security(("token" = ["write"])), responses(
    (status = OK, body = Vec<Webhook>),
))]
async fn list(
    by: Authenticated<auth::Write>,
    State(api): State<Api>,
) -> Result<Json<Vec<Webhook>>, ApiError> {
    let rows = api.app.store.webhooks().await?;
    let all: Result<Vec<Webhook>, ApiError> = rows
        .into_iter()
        .filter(|row| may_manage(&by.caller, row.definition.tasks.as_deref()))
        .map(|row| convert_webhook(&api.app, row))
        .collect();
    Ok(Json(all?))
}

/// Returns a webhook.
#[utoipa::path(get, path = "/webhooks/{name}", tag = "webhooks",
    params(("name" = String, Path, description = "Name of the webhook.")),
    security(("token" = ["write"])), responses((status = OK, body = Webhook), (status = NOT_FOUND, body = Problem)))]
async fn show(
    by: Authenticated<auth::Write>,
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Json<Webhook>, ApiError> {
    let row = find(&api.app, &by.caller, &name).await?;
    Ok(Json(convert_webhook(&api.app, row)?))
}

/// Sets a webhook. No operation returns its secrets. Without new secrets, a webhook keeps its
/// previous ones. A token without the scope `admin` sets webhooks of prefixes within its task limit.
#[utoipa::path(put, path = "/webhooks/{name}", tag = "webhooks", request_body = PutWebhook,
    params(("name" = WebhookName, Path, description = "Name of the webhook.")),
    security(("token" = ["write"])), responses(
    (status = OK, body = Webhook),
    (status = BAD_REQUEST, body = Problem, description = "The message has all problems of the webhook."),
    (status = CONFLICT, body = Problem, description = "The name belongs to a webhook of others."),
))]
async fn put(
    by: Authenticated<auth::Write>,
    State(api): State<Api>,
    Path(name): Path<String>,
    Json(input): Json<PutWebhook>,
) -> Result<Json<Webhook>, ApiError> {
    let app = &api.app;
    let earlier = match app.store.webhook(&name).await {
        Ok(row) => Some(row),
        Err(StoreError::NotFound { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let pattern = input.tasks.as_deref().map(parse_prefix).transpose()?;
    match &pattern {
        Some(pattern) => by.caller.require_pattern(pattern)?,
        None => by.caller.require_scope(Scope::Admin).map_err(|refusal| {
            refusal.help(
                "name the tasks that the webhook may start: `tasks`, on the command line `--prefix team/`",
            )
        })?,
    }
    let is_own = |row: &WebhookRow| may_manage(&by.caller, row.definition.tasks.as_deref());
    if !earlier.as_ref().is_none_or(is_own) {
        return Err(ApiError::conflict(format!(
            "the name `{name}` belongs to a webhook that the token may not change"
        ))
        .help("choose another name"));
    }
    check_webhook(&name, &input, earlier.is_some()).into_result()?;
    let secrets: Vec<String> = if input.secrets.is_empty() {
        match &earlier {
            Some(row) => webhooks::decrypt_secrets(app, row)?
                .iter()
                .map(|secret| secret.expose().to_owned())
                .collect(),
            None => Vec::new(),
        }
    } else {
        input.secrets.into_iter().map(|secret| secret.0).collect()
    };
    let text = serde_json::to_vec(&secrets).map_err(|error| ApiError::internal(&error))?;
    let sealed = app.vault.seal(&webhooks::secrets_aad(&name), &text);
    let definition = WebhookDefinition {
        provider: input.provider,
        repositories: input.repositories,
        tasks: input.tasks,
        statuses: input.statuses,
    };
    let row = app
        .store
        .put_webhook(&name, &definition, &sealed, app.clock.now_ms())
        .await?;
    tracing::info!(
        webhook = name,
        provider = definition.provider,
        by = by.caller.name,
        "set a webhook"
    );
    Ok(Json(to_api(app, row, secrets.len())))
}

fn check_webhook(name: &str, input: &PutWebhook, exists: bool) -> Problems {
    let mut problems = Problems::default();
    if let Err(reason) = validate::check_word(name) {
        problems.add(format!("the name: {reason}"));
    } else if name.contains('/') {
        problems.add("the name is a part of a URL: write it without `/`");
    }
    match input.provider.parse::<Sender>() {
        Err(reason) => problems.add(format!("`provider`: {reason}")),
        Ok(Sender::Registry(_)) if input.statuses.is_some() => {
            problems.add_rule("`statuses` is for forges: a registry has no statuses of commits");
        }
        Ok(_) => {}
    }
    if input.secrets.is_empty() && !exists {
        problems.add_rule("`secrets` is empty, so that no delivery could be verified: write a secret, and set it at the sender");
    }
    if input.secrets.len() > MAX_SECRETS {
        problems.add(format!("`secrets` has more than {MAX_SECRETS}"));
    }
    for secret in &input.secrets {
        let length = secret.0.chars().count();
        if !(MIN_SECRET..=1024).contains(&length) {
            problems.add(format!(
                "a secret must have {MIN_SECRET} to 1024 characters: create one with `openssl rand -hex 32`"
            ));
        } else if secret.0.len() > 1024 {
            problems.add_rule("a secret must have at most 1024 bytes");
        }
    }
    for url in &input.repositories {
        if RepositoryUrl::parse(url).is_none() {
            problems.add_rule(format!(
                "`repositories`: `{url}` is not the URL of a git repository: write it like https://git.example.com/team/app.git"
            ));
        }
    }
    if let Some(statuses) = &input.statuses {
        if let Some(token) = &statuses.token
            && let Err(reason) = validate::check_secret_name(token)
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
                    "`statuses.api` is `{api}`: write https://HOST/PATH without a login; the token must not be sent unencrypted"
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

/// Deletes a webhook. Its deliveries are kept.
#[utoipa::path(delete, path = "/webhooks/{name}", tag = "webhooks",
    params(("name" = String, Path, description = "Name of the webhook.")),
    security(("token" = ["write"])), responses((status = NO_CONTENT), (status = NOT_FOUND, body = Problem)))]
async fn delete(
    by: Authenticated<auth::Write>,
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    find(&api.app, &by.caller, &name).await?;
    api.app.store.delete_webhook(&name).await?;
    tracing::info!(webhook = name, by = by.caller.name, "deleted a webhook");
    Ok(StatusCode::NO_CONTENT)
}

/// Filter and page of a list of deliveries.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListDeliveries {
    /// Lists only deliveries to this webhook.
    pub(crate) webhook: Option<String>,
    /// Lists only deliveries received at this time or later: RFC 3339 or a date.
    #[param(value_type = Option<TimeOrDate>)]
    pub(crate) since: Option<String>,
    /// Lists only deliveries received before this time: RFC 3339 or a date.
    #[param(value_type = Option<TimeOrDate>)]
    pub(crate) until: Option<String>,
    /// Length of the page: 1 to 200, 50 by default.
    #[param(minimum = 1, maximum = 200)]
    pub(crate) limit: Option<u32>,
    /// `next` of the previous page.
    pub(crate) cursor: Option<String>,
}

fn decision(row: OutcomeRow) -> Decision {
    Decision {
        task: row.task,
        action: row.what,
        run: row.run,
        reason: row.reason,
    }
}

/// Returns the webhooks whose deliveries a caller with a task limit sees, with the time of their
/// creation. `None` if the caller sees all deliveries.
async fn visible_webhooks(
    app: &App,
    caller: &Caller,
) -> Result<Option<Vec<(String, Ms)>>, ApiError> {
    if caller.may_see(None) {
        return Ok(None);
    }
    let rows = app.store.webhooks().await?.into_iter();
    let own = rows.filter(|row| may_manage(caller, row.definition.tasks.as_deref()));
    Ok(Some(own.map(|row| (row.name, row.created_at)).collect()))
}

/// Returns the delivery `id`, if the caller sees the deliveries of its webhook.
async fn find_delivery(app: &App, caller: &Caller, id: &str) -> Result<DeliveryRow, ApiError> {
    let row = app.store.delivery(id).await?;
    let visible = visible_webhooks(app, caller).await?;
    // A webhook may have the name of an earlier one of others.
    let is_own = |(name, since): &(String, Ms)| *name == row.webhook && *since <= row.received_at;
    if visible.is_none_or(|own| own.iter().any(is_own)) {
        Ok(row)
    } else {
        Err(StoreError::NotFound {
            what: format!("delivery {id}"),
        }
        .into())
    }
}

/// Converts deliveries. Adds the cascades of the base images that they report. A caller with a task
/// limit sees only decisions for its tasks, and no base images.
async fn deliveries_to_api(
    app: &App,
    caller: &Caller,
    mut rows: Vec<DeliveryRow>,
) -> Result<Vec<Delivery>, ApiError> {
    if !caller.may_see(None) {
        for row in &mut rows {
            row.watches.clear();
            row.outcomes
                .retain(|outcome| caller.may_see(Some(&outcome.task)));
        }
    }
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

/// Returns the cascade of a push of `image` at `pushed`: the first one created later, else the
/// newest one that was active then.
fn cascade_of(cascades: &[CascadeSummary], image: &str, pushed: Timestamp) -> Option<u64> {
    let of_image = |cascade: &&CascadeSummary| cascade.changes.contains_key(image);
    let mut of_image = cascades.iter().filter(of_image);
    let later = of_image.clone().filter(|one| one.created_at >= pushed);
    later.map(|one| one.id).min().or_else(|| {
        of_image
            .find(|one| one.finished_at.is_none_or(|end| end >= pushed))
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
        decisions: row.outcomes.into_iter().map(decision).collect(),
    }
}

/// Lists deliveries with their decisions and reasons, the newest first. A token with a task limit
/// sees those to webhooks of prefixes within the limit.
#[utoipa::path(get, path = "/deliveries", tag = "webhooks", params(ListDeliveries), security(("token" = ["read"])), responses(
    (status = OK, body = Page<Delivery>),
    (status = BAD_REQUEST, body = Problem, description = "A filter is invalid."),
))]
async fn deliveries(
    by: Authenticated<auth::Read>,
    State(api): State<Api>,
    Query(input): Query<ListDeliveries>,
) -> Result<Json<Page<Delivery>>, ApiError> {
    load_deliveries(&api, &by.caller, input).await.map(Json)
}

/// Returns a page of the deliveries that the caller may see.
pub(crate) async fn load_deliveries(
    api: &Api,
    caller: &Caller,
    input: ListDeliveries,
) -> Result<Page<Delivery>, ApiError> {
    let filter = DeliveryFilter {
        webhook: input.webhook,
        webhooks: visible_webhooks(&api.app, caller).await?,
        since: query::parse_time("since", input.since.as_deref())?,
        until: query::parse_time("until", input.until.as_deref())?,
        before: input.cursor,
        limit: runs::page_limit(input.limit)?,
    };
    let (rows, next) = api.app.store.deliveries(filter).await?;
    Ok(Page {
        items: deliveries_to_api(&api.app, caller, rows).await?,
        next,
    })
}

/// Filter of a list of refused deliveries.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListRefusals {
    /// Lists only refusals of this webhook.
    webhook: Option<String>,
}

/// Lists refused deliveries, counted by webhook and reason, the newest first. Their content is not
/// stored.
#[utoipa::path(get, path = "/deliveries/refused", tag = "webhooks", params(ListRefusals),
    security(("token" = ["read"])), responses((status = OK, body = Vec<Refusal>)))]
async fn refused(
    by: Authenticated<auth::Read>,
    State(api): State<Api>,
    Query(input): Query<ListRefusals>,
) -> Result<Json<Vec<Refusal>>, ApiError> {
    load_refusals(&api, &by.caller, input.webhook.as_deref())
        .await
        .map(Json)
}

/// Returns refused deliveries that the caller may see, counted by webhook and reason.
pub(crate) async fn load_refusals(
    api: &Api,
    caller: &Caller,
    webhook: Option<&str>,
) -> Result<Vec<Refusal>, ApiError> {
    let app = &api.app;
    app.refusals.flush(app).await?;
    let visible = visible_webhooks(app, caller).await?;
    let is_own = |row: &RefusalRow| {
        let mut own = visible.iter().flatten();
        visible.is_none() || own.any(|(name, _)| *name == row.webhook)
    };
    let rows = app.store.refusals(webhook).await?;
    let refusals = rows.into_iter().filter(is_own).map(|row| Refusal {
        webhook: row.webhook,
        code: row.code,
        message: row.message,
        address: row.address,
        count: row.refusals,
        first_at: acrtask_store::timestamp(row.first_at),
        last_at: acrtask_store::timestamp(row.last_at),
    });
    Ok(refusals.collect())
}

/// Returns a delivery with its decision for each evaluated task.
#[utoipa::path(get, path = "/deliveries/{id}", tag = "webhooks",
    params(("id" = String, Path, description = "Id of the delivery.")), security(("token" = ["read"])), responses(
    (status = OK, body = Delivery),
    (status = NOT_FOUND, body = Problem),
))]
async fn delivery(
    by: Authenticated<auth::Read>,
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Json<Delivery>, ApiError> {
    load_delivery(&api, &by.caller, &id).await.map(Json)
}

/// Returns a delivery that the caller may see.
pub(crate) async fn load_delivery(
    api: &Api,
    caller: &Caller,
    id: &str,
) -> Result<Delivery, ApiError> {
    let row = find_delivery(&api.app, caller, id).await?;
    let found = deliveries_to_api(&api.app, caller, vec![row]).await?.pop();
    found.ok_or_else(|| ApiError::not_found(format!("the delivery {id} does not exist")))
}

/// Evaluates the body of a delivery again, as a new delivery for the current tasks.
#[utoipa::path(post, path = "/deliveries/{id}/redeliver", tag = "webhooks",
    params(("id" = String, Path, description = "Id of the delivery.")), security(("token" = ["write"])), responses(
    (status = OK, body = Receipt),
    (status = NOT_FOUND, body = Problem, description = "The delivery does not exist, or its webhook was deleted."),
))]
async fn redeliver(
    by: Authenticated<auth::Write>,
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Json<Receipt>, ApiError> {
    let app = &api.app;
    let row = find_delivery(app, &by.caller, &id).await?;
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
    let headers = webhooks::parse_stored_headers(&row.headers);
    let source = webhooks::parse_stored_body(sender, &headers, &body).map_err(|rejection| {
        ApiError::conflict(format!(
            "the delivery is not valid for `{sender}`: {rejection}"
        ))
        .help("the webhook was changed after the delivery: send it again from the forge")
    })?;
    let first = row.redelivery_of.as_deref().unwrap_or(&row.id);
    let accepted =
        webhooks::accept(app, &webhook, sender, source, &headers, body, Some(first)).await?;
    tracing::info!(
        delivery = id,
        by = by.caller.name,
        "evaluated a delivery again"
    );
    Ok(Json(accepted.to_receipt()))
}

/// Approves a run of a commit from another repository: it may start, with secrets, pushes and the
/// shared cache. The approval applies only to this commit.
#[utoipa::path(post, path = "/runs/{id}/approve", tag = "runs",
    params(("id" = String, Path, description = "Id of the run.")), security(("token" = ["write"])), responses(
    (status = OK, body = Run),
    (status = NOT_FOUND, body = Problem),
    (status = CONFLICT, body = Problem, description = "The run does not wait for an approval."),
))]
async fn approve(
    by: Authenticated<auth::Write>,
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Json<Run>, ApiError> {
    let row = approve_run(&api, &by.caller, &id).await?;
    Ok(Json(row.to_api()))
}

/// Approves a run that the caller may see. Returns it afterwards.
pub(crate) async fn approve_run(api: &Api, caller: &Caller, id: &str) -> Result<RunRow, ApiError> {
    let row = runs::find(api, caller, id).await?;
    if row.approval != Some(Approval::Pending) {
        return Err(ApiError::conflict(format!(
            "the run {id} does not wait for an approval"
        )));
    }
    let app = &api.app;
    let task = app.store.tasks_by_id(row.task_id.iter().cloned().collect());
    let no_push = task.await?.iter().any(|task| task.definition.no_push);
    let spec = trigger::approve_spec(&row.spec, no_push);
    let row = app
        .store
        .approve(&row.id, &spec, &caller.name, app.clock.now_ms())
        .await?;
    tracing::info!(run = %row.id, commit = row.commit, by = caller.name, "approved a run");
    app.wake.notify_one();
    runs::send_hint(api, Hint::Enqueued).await;
    Ok(row)
}
