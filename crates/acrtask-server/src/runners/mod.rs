//! gRPC service for runners: registration, the stream of each runner, and contexts of leased runs.
//!
//! Invariants:
//! - The caller is authenticated before the server processes a request.
//! - A call about a run that the caller does not lease is refused.
//! - A slow runner delays only itself.

mod chunks;
mod digest;
mod facts;
mod fetch;
pub mod hub;
mod keys;
mod session;
pub(crate) mod watch;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use acrtask_model::Secret;
use acrtask_proto::{
    MAX_MESSAGE,
    runner::{
        ContextChunk, FetchContextRequest, FromRunner, RegisterRequest, RegisterResponse,
        RegistryRecordChunk, RegistryRecordRequest, ToRunner,
        runners_server::{self, Runners, RunnersServer},
    },
};
use acrtask_store::{NewRunner, RunnerRow, RunnerTokenRow, StoreError};
use futures::{StreamExt as _, stream, stream::BoxStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tonic::{Extensions, Request, Response, Status, Streaming, metadata::MetadataMap};

use self::keys::Kind;
pub(crate) use self::keys::hash_key;
use crate::{
    App,
    api::ApiError,
    auth::{self, CredentialKind},
    recorder::{Recorder, as_millis},
    serve::request_guard::{ANONYMOUS_BODY, Guarded as _},
};

/// Maximum length of a runner's name, in bytes.
const MAX_NAME: usize = 63;

use facts::Allowed;
pub(crate) use facts::MAX_SLOTS;

/// Properties that a registration token fixes for its runner.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunnerGrant {
    /// The pool. `None`: the default pool.
    pub pool: Option<String>,
    /// Labels that runs may select.
    pub labels: BTreeMap<String, String>,
    /// Maximum number of slots. `None`: the limit of all runners.
    pub max_slots: Option<u32>,
    /// Tasks whose runs the runner may lease: a name, or a prefix with `*`. `None`: all runs of its
    /// pool.
    pub tasks: Option<String>,
}

/// Creates a token that registers one runner with the properties of `grant` within `ttl`.
///
/// # Errors
/// If the database is unavailable.
pub async fn new_runner_token(
    app: &App,
    grant: RunnerGrant,
    ttl: Duration,
) -> Result<Secret, StoreError> {
    let id = keys::new_id('t');
    let (token, hash) = keys::create(Kind::Registration, &id);
    let now = app.clock.now_ms();
    app.store
        .create_runner_token(&RunnerTokenRow {
            id,
            hash,
            pool: grant.pool,
            labels: grant.labels,
            max_slots: grant.max_slots,
            tasks: grant.tasks,
            created_at: now,
            expires_at: now.saturating_add(as_millis(ttl)),
        })
        .await?;
    Ok(token)
}

/// Implementation of the gRPC service.
#[derive(Debug)]
pub(crate) struct Service {
    app: Arc<App>,
    recorder: Recorder,
    tasks: TaskTracker,
}

/// Returns the routes of the service. Sessions of runners run in `tasks`.
pub(crate) fn router(app: Arc<App>, recorder: Recorder, tasks: TaskTracker) -> axum::Router {
    let service = Arc::new(Service {
        app,
        recorder,
        tasks,
    });
    let server = |most: usize| {
        RunnersServer::from_arc(service.clone())
            .max_decoding_message_size(most)
            .max_encoding_message_size(MAX_MESSAGE + 64 * 1024)
    };
    let base = format!("/{}", runners_server::SERVICE_NAME);
    // The other methods decode their message before the credential is checked.
    let decoded_first = usize::try_from(ANONYMOUS_BODY).unwrap_or(usize::MAX);
    axum::Router::new()
        .route_service(&format!("{base}/Connect"), server(MAX_MESSAGE))
        .route_service(&format!("{base}/{{*call}}"), server(decoded_first))
}

impl Service {
    /// Returns the runner whose key a call contains.
    async fn authenticate_runner(
        &self,
        metadata: &MetadataMap,
        extensions: &Extensions,
    ) -> Result<RunnerRow, Status> {
        let refused = || {
            self.count_failure(
                extensions,
                Status::unauthenticated(
                    "this is not a runner's key; register with a token of `acrtask runner token`",
                ),
            )
        };
        let key = metadata
            .get("authorization")
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "))
            .ok_or_else(refused)?;
        let id = keys::parse_id(Kind::Key, key).ok_or_else(refused)?;
        let (limits, hash) = (&self.app.limits, keys::hash_text(key));
        let turn = limits.acquire_lookup(&hash).await;
        let runner = self
            .app
            .store
            .runner_by_id(id)
            .await
            .map_err(log_store_error)?;
        drop(turn);
        // The key of a removed runner is invalid.
        let valid = runner.filter(|runner| {
            keys::matches_hash(key, &runner.key_hash) && runner.removed_at.is_none()
        });
        let Some(runner) = valid else {
            limits.forget(&hash);
            return Err(refused());
        };
        limits.remember(&hash);
        extensions.mark_authenticated();
        Ok(runner)
    }

    /// Counts a wrong credential. Returns `refusal`, or an error if the address exceeds the limit.
    fn count_failure(&self, extensions: &Extensions, refusal: Status) -> Status {
        let problem = ApiError::unauthorized(refusal.message());
        let (address, now) = (auth::client_address(extensions), self.app.clock.now_ms());
        let kind = CredentialKind::RunnerKey;
        let answer = self.app.limits.count_failure(kind, address, now, problem);
        match answer.retry_after() {
            None => refusal,
            Some(seconds) => Status::resource_exhausted(format!(
                "{}; try again in {seconds} s",
                answer.problem().message
            )),
        }
    }
}

/// Converts a database error into the status for the caller, and logs it.
fn log_store_error(error: StoreError) -> Status {
    tracing::error!(
        error = acrtask_model::error_chain(&error),
        "a call of a runner failed"
    );
    if error.is_unavailable() {
        Status::unavailable("the database cannot be reached; try again")
    } else {
        Status::internal("the database failed; see the server's log")
    }
}

fn is_valid_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

#[tonic::async_trait]
impl Runners for Service {
    async fn register(
        &self,
        request: Request<RegisterRequest>,
    ) -> Result<Response<RegisterResponse>, Status> {
        let (_, extensions, request) = request.into_parts();
        let refused = || {
            self.count_failure(
                &extensions,
                Status::permission_denied(
                    "the registration token is unknown, used or expired; \
                     `acrtask runner token` makes a new one",
                ),
            )
        };
        let token_id = keys::parse_id(Kind::Registration, &request.token).ok_or_else(refused)?;
        let turn = self.app.limits.acquire_lookup(&[]).await;
        let token = self.app.store.runner_token(token_id).await;
        drop(turn);
        let token = token
            .map_err(log_store_error)?
            .filter(|token| keys::matches_hash(&request.token, &token.hash))
            .ok_or_else(refused)?;
        extensions.mark_proven();
        if !is_valid_name(&request.name) {
            return Err(Status::invalid_argument(format!(
                "a runner's name has 1 to {MAX_NAME} letters, digits, `-`, `_` and `.`"
            )));
        }
        // The check precedes the use of the token, so that a wrong option does not consume it.
        let allowed = Allowed {
            pool: token.pool.as_deref(),
            labels: &token.labels,
            max_slots: token.max_slots,
        };
        allowed
            .check(&request.pool, &request.labels, request.slots)
            .map_err(Status::invalid_argument)?;
        let id = keys::new_id('n');
        let (key, key_hash) = keys::create(Kind::Key, &id);
        let runner = NewRunner {
            id,
            name: request.name,
            key_hash,
        };
        let now = self.app.clock.now_ms();
        let registered = self.app.store.register_runner(token_id, &runner, now).await;
        let row = registered.map_err(|error| match error {
            StoreError::NotFound { .. } => refused(),
            StoreError::Conflict { what } => Status::already_exists(format!(
                "{what}; give another name, or remove that runner first"
            )),
            StoreError::Invalid { what } => Status::invalid_argument(what),
            error => log_store_error(error),
        })?;
        self.app.limits.remember(&row.key_hash);
        tracing::info!(runner = row.id, name = row.name, "registered a runner");
        Ok(Response::new(RegisterResponse {
            runner_id: row.id,
            key: key.expose().to_owned(),
        }))
    }

    type ConnectStream = BoxStream<'static, Result<ToRunner, Status>>;

    async fn connect(
        &self,
        request: Request<Streaming<FromRunner>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let runner = self
            .authenticate_runner(request.metadata(), request.extensions())
            .await?;
        request.extensions().mark_session();
        if self.app.closing.is_cancelled() {
            return Err(Status::unavailable("the control plane is shutting down"));
        }
        let (out, messages) = mpsc::channel(hub::QUEUE);
        let end = hub::EndSignal::default();
        self.tasks.spawn(session::run(
            self.app.clone(),
            self.recorder.clone(),
            runner,
            request.into_inner(),
            out,
            end.clone(),
        ));
        // The reason is the last message. A stream that the runner itself has ended has none.
        let ended = end.clone();
        let last = stream::once(async move { end.status() }).filter_map(async |status| status);
        let messages = ReceiverStream::new(messages)
            .map(Ok)
            .take_until(async move { ended.wait().await })
            .chain(last.map(Err));
        Ok(Response::new(messages.boxed()))
    }

    type FetchContextStream = BoxStream<'static, Result<ContextChunk, Status>>;

    async fn fetch_context(
        &self,
        request: Request<FetchContextRequest>,
    ) -> Result<Response<Self::FetchContextStream>, Status> {
        let runner = self
            .authenticate_runner(request.metadata(), request.extensions())
            .await?;
        let chunks = fetch::open_context(&self.app, &runner, request.into_inner()).await?;
        Ok(Response::new(chunks))
    }

    type FetchRegistryRecordStream = BoxStream<'static, Result<RegistryRecordChunk, Status>>;

    async fn fetch_registry_record(
        &self,
        request: Request<RegistryRecordRequest>,
    ) -> Result<Response<Self::FetchRegistryRecordStream>, Status> {
        let runner = self
            .authenticate_runner(request.metadata(), request.extensions())
            .await?;
        let chunks = fetch::open_record(&self.app, &runner, request.into_inner()).await?;
        Ok(Response::new(chunks))
    }
}
