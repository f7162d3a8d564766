//! Answers runners over gRPC: registration, the one stream of each runner, and contexts of the runs they hold.
//!
//! Invariants: who calls is known before anything is looked at; a call about a run that is not the caller's is refused; a
//! runner that is slow holds up nobody but itself.

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
        ContextChunk, FetchContextRequest, FromRunner, RegisterRequest, RegisterResponse, ToRunner,
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
pub(crate) use self::keys::key_hash;
use crate::{
    App,
    api::ApiError,
    auth::{self, CredentialKind},
    recorder::{Recorder, millis},
    serve::request_guard::{ANONYMOUS_BODY, Guarded as _},
};

/// Longest name of a runner.
const MAX_NAME: usize = 63;

use facts::Allowed;
pub(crate) use facts::MOST_SLOTS;

/// What a registration token fixes for its runner.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunnerGrant {
    /// The pool. `None`: the default one.
    pub pool: Option<String>,
    /// The labels.
    pub labels: BTreeMap<String, String>,
    /// Most slots. `None`: as many as any runner may have.
    pub max_slots: Option<u32>,
    /// The only tasks whose runs it gets: a name, or a prefix with `*`. `None`: all runs of its pool.
    pub tasks: Option<String>,
}

/// Makes a token that registers one runner within `ttl`, which then is what `grant` says.
///
/// # Errors
/// When the database cannot be used.
pub async fn new_runner_token(
    app: &App,
    grant: RunnerGrant,
    ttl: Duration,
) -> Result<Secret, StoreError> {
    let id = keys::new_id('t');
    let (token, hash) = keys::new(Kind::Registration, &id);
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
            expires_at: now.saturating_add(millis(ttl)),
        })
        .await?;
    Ok(token)
}

/// The gRPC service.
#[derive(Debug)]
pub(crate) struct Service {
    app: Arc<App>,
    recorder: Recorder,
    tasks: TaskTracker,
}

/// The routes of the service. Sessions of runners are `tasks`.
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
    // Messages of the others are decoded before anybody has checked a credential.
    let decoded_first = usize::try_from(ANONYMOUS_BODY).unwrap_or(usize::MAX);
    axum::Router::new()
        .route_service(&format!("{base}/Connect"), server(MAX_MESSAGE))
        .route_service(&format!("{base}/{{*call}}"), server(decoded_first))
}

impl Service {
    /// The runner whose key a call carries.
    async fn caller(
        &self,
        metadata: &MetadataMap,
        extensions: &Extensions,
    ) -> Result<RunnerRow, Status> {
        let refused = || {
            self.wrong(
                extensions,
                Status::unauthenticated(
                    "this is no key of a runner; register with a token of `acrtask runner token`",
                ),
            )
        };
        let key = metadata
            .get("authorization")
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "))
            .ok_or_else(refused)?;
        let id = keys::id(Kind::Key, key).ok_or_else(refused)?;
        let (limits, hash) = (&self.app.limits, keys::hash(key));
        let turn = limits.lookup(&hash).await;
        let runner = self.app.store.runner_by_id(id).await.map_err(failed)?;
        drop(turn);
        // A removed runner's key is worth nothing.
        let valid = runner
            .filter(|runner| keys::fits(key, &runner.key_hash) && runner.removed_at.is_none());
        let Some(runner) = valid else {
            limits.forget(&hash);
            return Err(refused());
        };
        limits.remember(&hash);
        extensions.authenticated();
        Ok(runner)
    }

    /// Counts a wrong credential. Returns `refusal`, or that too many came from the address.
    fn wrong(&self, extensions: &Extensions, refusal: Status) -> Status {
        let problem = ApiError::unauthorized(refusal.message());
        let (address, now) = (auth::address(extensions), self.app.clock.now_ms());
        let kind = CredentialKind::RunnerKey;
        let answer = self.app.limits.fail(kind, address, now, problem);
        match answer.retry_after() {
            None => refusal,
            Some(seconds) => Status::resource_exhausted(format!(
                "{}; try again in {seconds} s",
                answer.problem().message
            )),
        }
    }
}

/// What a caller is told of a database that cannot be used.
fn failed(error: StoreError) -> Status {
    tracing::error!(
        error = acrtask_model::chain(&error),
        "a runner's call failed"
    );
    if error.is_unavailable() {
        Status::unavailable("the database cannot be reached; try again")
    } else {
        Status::internal("the database failed; the server's log says why")
    }
}

fn is_name(name: &str) -> bool {
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
            self.wrong(
                &extensions,
                Status::permission_denied(
                    "the registration token is unknown, was used, or has ended; \
                     `acrtask runner token` makes a new one",
                ),
            )
        };
        let token_id = keys::id(Kind::Registration, &request.token).ok_or_else(refused)?;
        let turn = self.app.limits.lookup(&[]).await;
        let token = self.app.store.runner_token(token_id).await;
        drop(turn);
        let token = token
            .map_err(failed)?
            .filter(|token| keys::fits(&request.token, &token.hash))
            .ok_or_else(refused)?;
        extensions.proved();
        if !is_name(&request.name) {
            return Err(Status::invalid_argument(format!(
                "a runner's name has 1 to {MAX_NAME} letters, digits, `-`, `_` and `.`"
            )));
        }
        // Before the token is used: a wrong option must not cost it.
        let allowed = Allowed {
            pool: token.pool.as_deref(),
            labels: &token.labels,
            max_slots: token.max_slots,
        };
        allowed
            .check(&request.pool, &request.labels, request.slots)
            .map_err(Status::invalid_argument)?;
        let id = keys::new_id('n');
        let (key, key_hash) = keys::new(Kind::Key, &id);
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
            error => failed(error),
        })?;
        self.app.limits.remember(&row.key_hash);
        tracing::info!(runner = row.id, name = row.name, "a runner has registered");
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
            .caller(request.metadata(), request.extensions())
            .await?;
        request.extensions().begins_session();
        if self.app.closing.is_cancelled() {
            return Err(Status::unavailable("the control plane is shutting down"));
        }
        let (out, messages) = mpsc::channel(hub::QUEUE);
        let end = hub::End::default();
        self.tasks.spawn(session::run(
            self.app.clone(),
            self.recorder.clone(),
            runner,
            request.into_inner(),
            out,
            end.clone(),
        ));
        // The reason comes last; a stream that the runner itself has ended has none.
        let ended = end.clone();
        let last = stream::once(async move { end.status() }).filter_map(async |status| status);
        let messages = ReceiverStream::new(messages)
            .map(Ok)
            .take_until(async move { ended.reached().await })
            .chain(last.map(Err));
        Ok(Response::new(messages.boxed()))
    }

    type FetchContextStream = BoxStream<'static, Result<ContextChunk, Status>>;

    async fn fetch_context(
        &self,
        request: Request<FetchContextRequest>,
    ) -> Result<Response<Self::FetchContextStream>, Status> {
        let runner = self
            .caller(request.metadata(), request.extensions())
            .await?;
        let chunks = fetch::context(&self.app, &runner, request.into_inner()).await?;
        Ok(Response::new(chunks))
    }
}
