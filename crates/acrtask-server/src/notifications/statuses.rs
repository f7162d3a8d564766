//! Delivery of commit statuses to forges.

use acrtask_registry::{
    credentials::canonical_host,
    net::{self, AddressPolicy},
};
use acrtask_store::{DeliveryResult, OutboxEntry, StoreError};
use futures::StreamExt as _;
use http::header;

use super::{
    LEASE, MAX_BATCH, REQUEST_TIMEOUT, StatusPhase, Target, check_secure, is_transient,
    request::{self, Login},
    retry_later, run_page,
};
use crate::{App, recorder::as_millis, run_factory};

/// Maximum number of concurrent requests.
const MAX_CONCURRENT: usize = 8;
/// Maximum length of a response in an error, in characters.
const MAX_EXCERPT: usize = 200;

/// HTTP clients for URLs that the operator configured and for all others. None follows a redirect.
#[derive(Debug)]
pub(super) struct Clients {
    named: Option<reqwest::Client>,
    public: Option<reqwest::Client>,
}

impl Clients {
    pub(super) fn new() -> Self {
        let make = |policy| match net::client(policy, false) {
            Ok(client) => Some(client),
            Err(error) => {
                tracing::error!(%error, "cannot create an HTTP client");
                None
            }
        };
        Self {
            named: make(AddressPolicy::Any),
            public: make(AddressPolicy::PublicOnly),
        }
    }

    /// Returns the client for a policy.
    pub(super) fn for_policy(&self, policy: AddressPolicy) -> Result<&reqwest::Client, String> {
        let client = match policy {
            AddressPolicy::Any => &self.named,
            AddressPolicy::PublicOnly
            | AddressPolicy::PublicByProxy
            | AddressPolicy::NoMetadata => &self.public,
        };
        client.as_ref().ok_or_else(|| {
            "cannot send requests: the platform's certificates are not readable".into()
        })
    }
}

/// Sends the due commit statuses and returns their number.
pub(super) async fn send_due(app: &App, clients: &Clients) -> Result<usize, StoreError> {
    let now = app.clock.now_ms();
    let due = app
        .store
        .lease_statuses(now, now + as_millis(LEASE), MAX_BATCH)
        .await?;
    if due.is_empty() {
        return Ok(0);
    }
    let results: Vec<(OutboxEntry, DeliveryResult)> = futures::stream::iter(due)
        .map(|due| async {
            let result = send_message(app, clients, &due).await;
            if let DeliveryResult::GiveUp { error } = &result {
                tracing::warn!(run = %due.run, error, "giving up on a commit status");
            }
            (due, result)
        })
        .buffer_unordered(MAX_CONCURRENT)
        .collect()
        .await;
    let count = results.len();
    app.store
        .record_status_results(results, app.clock.now_ms())
        .await?;
    Ok(count)
}

async fn send_message(app: &App, clients: &Clients, due: &OutboxEntry) -> DeliveryResult {
    let never = |error: String| DeliveryResult::GiveUp { error };
    let Ok(target) = serde_json::from_str::<Target>(&due.target) else {
        return never("the stored destination is not readable".into());
    };
    if let Err(error) = check_secure(&target.api) {
        return never(error);
    }
    // The operator configured the API, or it is derived from the repository of a task.
    let policy = if target.derived && !net::is_loopback(target.api.host_str().unwrap_or_default()) {
        AddressPolicy::PublicOnly
    } else {
        AddressPolicy::Any
    };
    if let Err(error) = net::check_literal(policy, &target.api) {
        return never(format!("{error}; name the API in the webhook"));
    }
    let login = match find_login(app, &target).await {
        Ok(Some(login)) => login,
        Ok(None) => {
            return retry_later(app, due.attempts, missing_login(&target));
        }
        Err(error) => return retry_later(app, due.attempts, error),
    };
    let reason = match app.store.run(&due.run).await {
        Ok(row) if due.pending => row.spec.variables.revision(),
        Ok(row) => row.reason,
        Err(error) => return retry_later(app, due.attempts, error.to_string()),
    };
    let phase = StatusPhase::from_run(due.state, due.pending);
    let run_page = run_page(app, &due.run);
    let request = request::status_request(
        &target,
        phase,
        reason.as_deref(),
        run_page.as_deref(),
        &login,
    );
    let request = match request {
        Ok(request) => request,
        Err(error) => return never(error),
    };
    let client = match clients.for_policy(policy) {
        Ok(client) => client,
        Err(error) => return retry_later(app, due.attempts, error),
    };
    let sent = client
        .post(request.url)
        .header(header::AUTHORIZATION, request.authorization)
        .header(header::ACCEPT, "application/json")
        .timeout(REQUEST_TIMEOUT)
        .json(&request.body)
        .send()
        .await;
    match sent {
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
            let excerpt = response_excerpt(answer).await;
            // GitLab refuses to set a state twice.
            if excerpt.contains("Cannot transition status") {
                return DeliveryResult::Delivered;
            }
            let error = format!("the forge responded with {status}: {excerpt}");
            if is_transient(status) {
                retry_later(app, due.attempts, error)
            } else {
                never(error)
            }
        }
    }
}

fn missing_login(target: &Target) -> String {
    match &target.token {
        Some(name) => format!(
            "the secret `{name}` does not exist; create it with `acrtask secret set {name}`"
        ),
        None => {
            let host = target.api.host_str().unwrap_or_default();
            format!("no login for {host} is stored; add one with `acrtask credential set {host}`")
        }
    }
}

/// Returns the beginning of a response, without control characters.
pub(super) async fn response_excerpt(answer: reqwest::Response) -> String {
    let mut text = Vec::new();
    let mut stream = answer.bytes_stream();
    while let Some(Ok(chunk)) = stream.next().await {
        text.extend_from_slice(&chunk[..chunk.len().min(MAX_EXCERPT * 4)]);
        if text.len() >= MAX_EXCERPT * 4 {
            break;
        }
    }
    let text = String::from_utf8_lossy(&text);
    let text: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_EXCERPT)
        .collect();
    text.trim().to_owned()
}

/// Finds the token for a forge's API.
///
/// The secret of the webhook goes first, then the login for the API's host, then, for a default
/// API, the login for the repository's host. The narrowest scope wins.
async fn find_login(app: &App, target: &Target) -> Result<Option<Login>, String> {
    let scopes = run_factory::scopes_of(app, &target.task)
        .await
        .map_err(|error| acrtask_model::error_chain(&error))?;
    if let Some(name) = &target.token {
        let found = app.store.secret(&scopes, name).await;
        let found = found.map_err(|error| acrtask_model::error_chain(&error))?;
        let Some((scope, sealed)) = found else {
            return Ok(None);
        };
        let token = app
            .vault
            .open(&run_factory::secret_aad(&scope, name), &sealed)
            .map_err(|error| acrtask_model::error_chain(&error))?;
        return Ok(Some(Login {
            username: String::new(),
            token,
        }));
    }
    let mut hosts = vec![canonical_host(&authority(&target.api))];
    if target.derived {
        hosts.push(canonical_host(&target.host));
    }
    let rows = app.store.credentials_for(&scopes).await;
    let rows = rows.map_err(|error| acrtask_model::error_chain(&error))?;
    for host in &hosts {
        if let Some(row) = rows.iter().find(|row| row.host == *host) {
            let token = app
                .vault
                .open(
                    &run_factory::credential_aad(&row.scope, &row.host),
                    &row.password,
                )
                .map_err(|error| acrtask_model::error_chain(&error))?;
            return Ok(Some(Login {
                username: row.username.clone(),
                token,
            }));
        }
    }
    Ok(None)
}

fn authority(url: &url::Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port()
        .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}
