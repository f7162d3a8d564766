//! Tells people of results, by a request to the URL that a stored secret holds.
//!
//! Invariants: whom a task tells is looked up when its run is over, and written down in the transaction that says so; an
//! address that is not public is refused unless the operator allows it, since whoever writes tasks names it.

use acrtask_api::{
    run::Run,
    task::{Notify, NotifyResult, NotifyTemplate},
};
use acrtask_model::RunState;
use acrtask_registry::net::{self, AddressPolicy};
use acrtask_store::{Due, StoreError, Told};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures::StreamExt as _;
use hmac::{Hmac, Mac as _};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::Sha256;
use url::Url;

use super::{
    BATCH, REQUEST, TAKEN, again, may_pass, page,
    statuses::{Clients, shown},
};
use crate::{App, recorder::millis, submit};

/// Requests at once.
const AT_ONCE: usize = 8;

/// Whom to tell, as the task said when its run was over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Target {
    task: String,
    notify: Notify,
}

/// Writes down whom to tell, and tells who is due. Says how much was told.
pub(super) async fn pass(app: &App, clients: &Clients) -> Result<usize, StoreError> {
    for (run, task, state) in app.store.unnoticed(BATCH).await? {
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
                .filter(|notify| wants(notify, state))
                .filter_map(move |notify| {
                    let task = id.clone();
                    serde_json::to_string(&Target { task, notify }).ok()
                })
        });
        let targets = targets.collect();
        app.store
            .add_notices(&run, targets, app.clock.now_ms())
            .await?;
    }
    let now = app.clock.now_ms();
    let due = app
        .store
        .take_notices(now, now + millis(TAKEN), BATCH)
        .await?;
    if due.is_empty() {
        return Ok(0);
    }
    let told: Vec<(Due, Told)> = futures::stream::iter(due)
        .map(|due| async {
            let told = tell(app, clients, &due).await;
            if let Told::Never { error } = &told {
                tracing::warn!(run = %due.run, error, "somebody is not told of a result");
            }
            (due, told)
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let count = told.len();
    app.store.settle_notices(told).await?;
    Ok(count)
}

fn wants(notify: &Notify, state: RunState) -> bool {
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

async fn secret(app: &App, task: &str, name: &str) -> Result<acrtask_model::Secret, String> {
    let found = submit::stored_secret(app, Some(task), name)
        .await
        .map_err(|error| acrtask_model::chain(&error))?;
    let (scope, sealed) =
        found.ok_or_else(|| format!("there is no secret `{name}`; `acrtask secret set {name}`"))?;
    app.vault
        .open(&submit::secret_aad(scope, name), &sealed)
        .map_err(|error| acrtask_model::chain(&error))
}

async fn tell(app: &App, clients: &Clients, due: &Due) -> Told {
    let never = |error: String| Told::Never { error };
    let Ok(Target { task, notify }) = serde_json::from_str::<Target>(&due.target) else {
        return never("what is to be told cannot be read".into());
    };
    let url = match secret(app, &task, &notify.url).await {
        Ok(url) => url,
        Err(error) => return again(app, due.attempts, error),
    };
    // Not the address itself: it is a secret.
    let Ok(url) = Url::parse(url.expose().trim()) else {
        return never(format!("the secret `{}` holds no URL", notify.url));
    };
    let policy = if app.config.notify_private {
        AddressPolicy::Any
    } else {
        AddressPolicy::PublicOnly
    };
    if url.scheme() != "https" && !(url.scheme() == "http" && app.config.notify_private) {
        return never(format!(
            "the URL in the secret `{}` is not https",
            notify.url
        ));
    }
    if net::check_literal(policy, &url).is_err() {
        return never(format!(
            "the URL in the secret `{}` is at an address that is not public",
            notify.url
        ));
    }
    let run = match app.store.run(&due.run).await {
        Ok(row) => row.to_api(),
        Err(error) => return again(app, due.attempts, error.to_string()),
    };
    let page = page(app, &due.run);
    let body = match notify.template {
        NotifyTemplate::Generic => generic(&run, page.as_deref()),
        NotifyTemplate::Slack => slack(&run, page.as_deref()),
    }
    .to_string();
    let client = match clients.of(policy) {
        Ok(client) => client,
        Err(error) => return again(app, due.attempts, error),
    };
    let id = format!("{}-{}", due.run, due.place);
    let time = app.clock.now().as_second();
    let mut request = client
        .post(url)
        .header("content-type", "application/json")
        .header("webhook-id", &id)
        .header("webhook-timestamp", time)
        .timeout(REQUEST);
    if let Some(name) = &notify.sign_with {
        let key = match secret(app, &task, name).await {
            Ok(key) => key,
            Err(error) => return again(app, due.attempts, error),
        };
        let Some(signature) = sign(key.expose(), &id, time, &body) else {
            return never(format!("the secret `{name}` cannot sign anything"));
        };
        request = request.header("webhook-signature", signature);
    }
    match request.body(body).send().await {
        Err(error) => again(
            app,
            due.attempts,
            acrtask_model::chain(&error.without_url()),
        ),
        Ok(answer) => {
            let status = answer.status();
            if status.is_success() {
                return Told::Yes;
            }
            let error = format!("it answered {status}: {}", shown(answer).await);
            if may_pass(status) {
                again(app, due.attempts, error)
            } else {
                never(error)
            }
        }
    }
}

/// A signature after the Standard Webhooks specification.
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

/// What is told, as a program wants it. No log, no values: those may hold what a stranger must not see.
fn generic(run: &Run, page: Option<&str>) -> Value {
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
        "commit": run.spec.facts.commit,
        "branch": run.spec.facts.branch,
        "gitTag": run.spec.facts.git_tag,
        "repository": run.spec.facts.repository,
        "createdAt": run.created_at,
        "startedAt": run.started_at,
        "finishedAt": run.finished_at,
        "images": images,
        "url": page,
    })
}

fn slack(run: &Run, page: Option<&str>) -> Value {
    // The three marks that Slack's own text gives a meaning.
    let plain = |text: &str| {
        text.replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('>', "&gt;")
    };
    let task = plain(run.task.as_deref().unwrap_or("a run"));
    let id = match page {
        Some(page) => format!("<{page}|{}>", run.id),
        None => run.id.to_string(),
    };
    let facts = &run.spec.facts;
    let mut text = format!("*{task}* {}: {id}", run.state);
    if !facts.commit.is_empty() {
        let commit: String = facts.commit.chars().take(12).collect();
        let place = [&facts.branch, &facts.git_tag]
            .into_iter()
            .find(|name| !name.is_empty());
        text += &match place {
            Some(place) => format!(" ({} at {commit})", plain(place)),
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
