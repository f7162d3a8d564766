//! Notifications of results: a request to the URL in a stored secret.
//!
//! Invariants: the recipients are read when the run finishes, and stored in the same transaction.
//! A private address is refused unless the operator allows it, because authors of tasks choose it.

use acrtask_api::{
    run::Run,
    task::{Notify, NotifyResult, NotifyTemplate},
};
use acrtask_model::RunState;
use acrtask_registry::net::{self, AddressPolicy};
use acrtask_store::{DeliveryResult, OutboxEntry, StoreError};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures::StreamExt as _;
use hmac::{Hmac, Mac as _};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::Sha256;
use url::Url;

use super::{
    LEASE, MAX_BATCH, REQUEST_TIMEOUT, is_transient, retry_later, run_page,
    statuses::{Clients, response_excerpt},
};
use crate::{App, recorder::as_millis, run_factory};

/// Maximum number of concurrent requests.
const MAX_CONCURRENT: usize = 8;

/// Recipient of a notification, as the task defined it when its run finished.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Target {
    task: String,
    notify: Notify,
}

/// Stores the recipients of finished runs, sends due notifications, and returns their number.
pub(super) async fn send_due(app: &App, clients: &Clients) -> Result<usize, StoreError> {
    for (run, task, state) in app.store.runs_to_notify(MAX_BATCH).await? {
        let task = match &task {
            Some(name) => match app.store.task(name).await {
                Ok(task) => Some(task),
                Err(StoreError::NotFound { .. }) => None,
                Err(error) => return Err(error),
            },
            None => None,
        };
        let targets = task.into_iter().flat_map(|task| {
            let id = task.id;
            task.definition
                .notify
                .into_iter()
                .filter(|notify| is_wanted(notify, state))
                .filter_map(move |notify| {
                    let task = id.clone();
                    serde_json::to_string(&Target { task, notify }).ok()
                })
        });
        let targets = targets.collect();
        app.store
            .add_notifications(&run, targets, app.clock.now_ms())
            .await?;
    }
    let now = app.clock.now_ms();
    let due = app
        .store
        .lease_notifications(now, now + as_millis(LEASE), MAX_BATCH)
        .await?;
    if due.is_empty() {
        return Ok(0);
    }
    let results: Vec<(OutboxEntry, DeliveryResult)> = futures::stream::iter(due)
        .map(|due| async {
            let result = send_message(app, clients, &due).await;
            if let DeliveryResult::GiveUp { error } = &result {
                tracing::warn!(run = %due.run, error, "giving up on a result notification");
            }
            (due, result)
        })
        .buffer_unordered(MAX_CONCURRENT)
        .collect()
        .await;
    let count = results.len();
    app.store.record_notification_results(results).await?;
    Ok(count)
}

fn is_wanted(notify: &Notify, state: RunState) -> bool {
    let result = match state {
        RunState::Succeeded => NotifyResult::Succeeded,
        RunState::Failed => NotifyResult::Failed,
        RunState::Canceled => NotifyResult::Canceled,
        RunState::TimedOut => NotifyResult::TimedOut,
        RunState::Error => NotifyResult::Error,
        RunState::Queued | RunState::Leased | RunState::Running => return false,
    };
    if notify.on.is_empty() {
        result != NotifyResult::Canceled
    } else {
        notify.on.contains(&result)
    }
}

async fn open_secret(app: &App, task: &str, name: &str) -> Result<acrtask_model::Secret, String> {
    let scopes = run_factory::scopes_of(app, task)
        .await
        .map_err(|error| acrtask_model::error_chain(&error))?;
    let found = app.store.secret(&scopes, name).await;
    let found = found.map_err(|error| acrtask_model::error_chain(&error))?;
    let (scope, sealed) = found.ok_or_else(|| {
        format!("the secret `{name}` does not exist; create it with `acrtask secret set {name}`")
    })?;
    app.vault
        .open(&run_factory::secret_aad(&scope, name), &sealed)
        .map_err(|error| acrtask_model::error_chain(&error))
}

async fn send_message(app: &App, clients: &Clients, due: &OutboxEntry) -> DeliveryResult {
    let never = |error: String| DeliveryResult::GiveUp { error };
    let Ok(Target { task, notify }) = serde_json::from_str::<Target>(&due.target) else {
        return never("the stored recipient is not readable".into());
    };
    let url = match open_secret(app, &task, &notify.url).await {
        Ok(url) => url,
        Err(error) => return retry_later(app, due.attempts, error),
    };
    // The error does not quote the URL, which is secret.
    let Ok(url) = Url::parse(url.expose().trim()) else {
        return never(format!(
            "the secret `{}` does not contain a URL",
            notify.url
        ));
    };
    let policy = if app.config.notify_private {
        AddressPolicy::Any
    } else {
        AddressPolicy::PublicOnly
    };
    if url.scheme() != "https" && !(url.scheme() == "http" && app.config.notify_private) {
        return never(format!(
            "the URL in the secret `{}` is not https; write an https URL",
            notify.url
        ));
    }
    if net::check_literal(policy, &url).is_err() {
        return never(format!(
            "the URL in the secret `{}` has a private address; write a public one",
            notify.url
        ));
    }
    let run = match app.store.run(&due.run).await {
        Ok(row) => row.to_api(),
        Err(error) => return retry_later(app, due.attempts, error.to_string()),
    };
    let run_page = run_page(app, &due.run);
    let body = match notify.template {
        NotifyTemplate::Generic => generic_body(&run, run_page.as_deref()),
        NotifyTemplate::Slack => slack_body(&run, run_page.as_deref()),
    }
    .to_string();
    let client = match clients.for_policy(policy) {
        Ok(client) => client,
        Err(error) => return retry_later(app, due.attempts, error),
    };
    let id = format!("{}-{}", due.run, due.place);
    let time = app.clock.now().as_second();
    let mut request = client
        .post(url)
        .header("content-type", "application/json")
        .header("webhook-id", &id)
        .header("webhook-timestamp", time)
        .timeout(REQUEST_TIMEOUT);
    if let Some(name) = &notify.sign_with {
        let key = match open_secret(app, &task, name).await {
            Ok(key) => key,
            Err(error) => return retry_later(app, due.attempts, error),
        };
        let Some(signature) = sign(key.expose(), &id, time, &body) else {
            return never(format!(
                "the secret `{name}` is empty and cannot sign; set a value"
            ));
        };
        request = request.header("webhook-signature", signature);
    }
    match request.body(body).send().await {
        Err(error) => retry_later(
            app,
            due.attempts,
            acrtask_model::error_chain(&error.without_url()),
        ),
        Ok(answer) => {
            let status = answer.status();
            if status.is_success() {
                return DeliveryResult::Delivered;
            }
            let error = format!(
                "the recipient responded with {status}: {}",
                response_excerpt(answer).await
            );
            if is_transient(status) {
                retry_later(app, due.attempts, error)
            } else {
                never(error)
            }
        }
    }
}

/// Signs a notification by the Standard Webhooks specification. `None` if the key is empty.
fn sign(key: &str, id: &str, time: i64, body: &str) -> Option<String> {
    let decoded = key
        .strip_prefix("whsec_")
        .and_then(|encoded| STANDARD.decode(encoded).ok());
    let key = decoded.unwrap_or_else(|| key.as_bytes().to_vec());
    if key.is_empty() {
        return None;
    }
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).ok()?;
    mac.update(format!("{id}.{time}.{body}").as_bytes());
    Some(format!(
        "v1,{}",
        STANDARD.encode(mac.finalize().into_bytes())
    ))
}

/// Builds the body for programs. Logs and values are left out, because they may be confidential.
fn generic_body(run: &Run, run_page: Option<&str>) -> Value {
    let images: Vec<Value> = run
        .result
        .iter()
        .flat_map(|result| &result.images)
        .map(|image| json!({"name": image.name, "digest": image.digest}))
        .collect();
    json!({
        "type": "run.finished",
        "run": run.id,
        "task": run.task,
        "state": run.state,
        "reason": run.reason,
        "trigger": run.trigger,
        "commit": run.spec.variables.commit,
        "branch": run.spec.variables.branch,
        "gitTag": run.spec.variables.git_tag,
        "repository": run.spec.variables.repository,
        "createdAt": run.created_at,
        "startedAt": run.started_at,
        "finishedAt": run.finished_at,
        "images": images,
        "url": run_page,
    })
}

fn slack_body(run: &Run, run_page: Option<&str>) -> Value {
    // Slack gives these three characters a meaning.
    let plain = |text: &str| {
        text.replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('>', "&gt;")
    };
    let task = plain(run.task.as_deref().unwrap_or("a run"));
    let id = match run_page {
        Some(run_page) => format!("<{run_page}|{}>", run.id),
        None => run.id.to_string(),
    };
    let facts = &run.spec.variables;
    let mut text = format!("*{task}* {}: {id}", run.state);
    if !facts.commit.is_empty() {
        let commit: String = facts.commit.chars().take(12).collect();
        let ref_name = [&facts.branch, &facts.git_tag]
            .into_iter()
            .find(|name| !name.is_empty());
        text += &match ref_name {
            Some(ref_name) => format!(" ({} at {commit})", plain(ref_name)),
            None => format!(" ({commit})"),
        };
    }
    if let Some(reason) = &run.reason {
        text += &format!("\n{}", plain(reason));
    }
    json!({"text": text})
}

#[cfg(test)]
#[path = "notify_tests.rs"]
mod tests;
