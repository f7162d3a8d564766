//! Sends what forges are told.

use acrtask_registry::{
    credentials::canonical_host,
    net::{self, AddressPolicy},
};
use acrtask_store::{Due, StoreError, Told};
use futures::StreamExt as _;
use http::header;

use super::{
    BATCH, REQUEST, TAKEN, Target, Word, again, check_secure, may_pass, page,
    request::{self, Login},
};
use crate::{App, recorder::millis, submit};

/// Requests at once.
const AT_ONCE: usize = 8;
/// As much of a refusal as is kept.
const SHOWN: usize = 200;

/// The clients: where somebody named the address, and where nobody whom the operator trusts did. None follows a redirect.
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
                tracing::error!(%error, "no requests can be sent");
                None
            }
        };
        Self {
            named: make(AddressPolicy::Any),
            public: make(AddressPolicy::PublicOnly),
        }
    }

    /// The client under a policy.
    pub(super) fn of(&self, policy: AddressPolicy) -> Result<&reqwest::Client, String> {
        let client = match policy {
            AddressPolicy::Any => &self.named,
            AddressPolicy::PublicOnly
            | AddressPolicy::PublicByProxy
            | AddressPolicy::NoMetadata => &self.public,
        };
        client.as_ref().ok_or_else(|| {
            "no requests can be sent: the platform's certificates cannot be read".into()
        })
    }
}

/// Sends what is due. Says how much that was.
pub(super) async fn pass(app: &App, clients: &Clients) -> Result<usize, StoreError> {
    let now = app.clock.now_ms();
    let due = app
        .store
        .take_statuses(now, now + millis(TAKEN), BATCH)
        .await?;
    if due.is_empty() {
        return Ok(0);
    }
    let told: Vec<(Due, Told)> = futures::stream::iter(due)
        .map(|due| async {
            let told = tell(app, clients, &due).await;
            if let Told::Never { error } = &told {
                tracing::warn!(run = %due.run, error, "a forge is not told of a run");
            }
            (due, told)
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let count = told.len();
    app.store.settle_statuses(told, app.clock.now_ms()).await?;
    Ok(count)
}

async fn tell(app: &App, clients: &Clients, due: &Due) -> Told {
    let never = |error: String| Told::Never { error };
    let Ok(target) = serde_json::from_str::<Target>(&due.target) else {
        return never("what is to be told cannot be read".into());
    };
    if let Err(error) = check_secure(&target.api) {
        return never(error);
    }
    // The operator named the API, or it follows from what a task names.
    let policy = if target.derived && !net::is_loopback(target.api.host_str().unwrap_or_default()) {
        AddressPolicy::PublicOnly
    } else {
        AddressPolicy::Any
    };
    if let Err(error) = net::check_literal(policy, &target.api) {
        return never(format!("{error}; name the API in the webhook"));
    }
    let login = match login(app, &target).await {
        Ok(Some(login)) => login,
        Ok(None) => {
            return again(app, due.attempts, missing(&target));
        }
        Err(error) => return again(app, due.attempts, error),
    };
    let reason = match app.store.run(&due.run).await {
        Ok(row) if due.pending => row.spec.facts.revision(),
        Ok(row) => row.reason,
        Err(error) => return again(app, due.attempts, error.to_string()),
    };
    let word = Word::of(due.state, due.pending);
    let page = page(app, &due.run);
    let request = request::status(&target, word, reason.as_deref(), page.as_deref(), &login);
    let request = match request {
        Ok(request) => request,
        Err(error) => return never(error),
    };
    let client = match clients.of(policy) {
        Ok(client) => client,
        Err(error) => return again(app, due.attempts, error),
    };
    let sent = client
        .post(request.url)
        .header(header::AUTHORIZATION, request.authorization)
        .header(header::ACCEPT, "application/json")
        .timeout(REQUEST)
        .json(&request.body)
        .send()
        .await;
    match sent {
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
            let words = shown(answer).await;
            // GitLab refuses to set a state that is set already.
            if words.contains("Cannot transition status") {
                return Told::Yes;
            }
            let error = format!("the forge answered {status}: {words}");
            if may_pass(status) {
                again(app, due.attempts, error)
            } else {
                never(error)
            }
        }
    }
}

fn missing(target: &Target) -> String {
    match &target.token {
        Some(name) => format!("there is no secret `{name}`; `acrtask secret set {name}`"),
        None => {
            let host = target.api.host_str().unwrap_or_default();
            format!("there is no login for {host}; `acrtask credential set {host}`")
        }
    }
}

/// The beginning of what was answered.
pub(super) async fn shown(answer: reqwest::Response) -> String {
    let mut text = Vec::new();
    let mut stream = answer.bytes_stream();
    while let Some(Ok(chunk)) = stream.next().await {
        text.extend_from_slice(&chunk[..chunk.len().min(SHOWN * 4)]);
        if text.len() >= SHOWN * 4 {
            break;
        }
    }
    let text = String::from_utf8_lossy(&text);
    let text: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(SHOWN)
        .collect();
    text.trim().to_owned()
}

/// The token for a forge's API: the secret that the webhook names, else the login for the API's host or, where nobody named
/// the API, for the repository's. The task's own goes before that of all tasks.
async fn login(app: &App, target: &Target) -> Result<Option<Login>, String> {
    if let Some(name) = &target.token {
        let found = submit::stored_secret(app, Some(&target.task), name)
            .await
            .map_err(|error| acrtask_model::chain(&error))?;
        let Some((scope, sealed)) = found else {
            return Ok(None);
        };
        let token = app
            .vault
            .open(&submit::secret_aad(scope, name), &sealed)
            .map_err(|error| acrtask_model::chain(&error))?;
        return Ok(Some(Login {
            username: String::new(),
            token,
        }));
    }
    let mut hosts = vec![canonical_host(&authority(&target.api))];
    if target.derived {
        hosts.push(canonical_host(&target.host));
    }
    let mut rows = app
        .store
        .credentials_for(&[target.task.as_str(), ""])
        .await
        .map_err(|error| acrtask_model::chain(&error))?;
    rows.sort_by_key(|row| row.scope.is_empty());
    for host in &hosts {
        if let Some(row) = rows.iter().find(|row| row.host == *host) {
            let token = app
                .vault
                .open(
                    &submit::credential_aad(&row.scope, &row.host),
                    &row.password,
                )
                .map_err(|error| acrtask_model::chain(&error))?;
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
