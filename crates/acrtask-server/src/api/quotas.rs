//! Quotas: limits of tasks and tokens and their use. An admin changes the limits.

use acrtask_api::{
    admin::{Problem, Scope},
    quota::{Quota, QuotaSubject, SetQuota},
};
use axum::extract::State;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api, ApiError,
    extract::{Json, Query},
    tasks,
};
use crate::auth::{self, Authenticated, Caller};

/// Highest limit: the largest integer of the databases.
const MAX_LIMIT: u64 = i64::MAX.unsigned_abs();

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(list, set))
}

/// Filter of a list of quotas.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListQuotas {
    /// Name of a task: lists only its quotas, and those of patterns that match it.
    task: Option<String>,
}

/// Returns `true` if the caller may see the quotas of a subject.
fn may_see(caller: &Caller, subject: &QuotaSubject) -> bool {
    match subject {
        QuotaSubject::EachTask | QuotaSubject::EachToken => true,
        QuotaSubject::Task(name) => caller.may_see(Some(name)),
        QuotaSubject::Tasks(pattern) => {
            caller.tasks.is_none() || caller.may_see(Some(pattern.trim_end_matches('*')))
        }
        QuotaSubject::Token(id) => caller.has_scope(Scope::Admin) || *id == caller.token_id,
    }
}

/// Lists quotas with their use: those of each task and token, of the caller's token, of one task,
/// and all with a set limit.
#[utoipa::path(get, path = "/quotas", tag = "quotas", params(ListQuotas), security(("token" = ["read"])), responses(
    (status = OK, body = Vec<Quota>),
    (status = NOT_FOUND, body = Problem, description = "The task does not exist."),
))]
async fn list(
    by: Authenticated<auth::Read>,
    State(api): State<Api>,
    Query(input): Query<ListQuotas>,
) -> Result<Json<Vec<Quota>>, ApiError> {
    let caller = &by.caller;
    let app = &api.app;
    let mut subjects = Vec::new();
    match &input.task {
        Some(name) => {
            let task = tasks::find(&api, caller, name).await?;
            subjects.push(QuotaSubject::Task(task.definition.name));
        }
        None => {
            subjects.extend([QuotaSubject::EachTask, QuotaSubject::EachToken]);
            subjects.push(QuotaSubject::Tasks("*".into()));
            let own = caller.tasks.clone().filter(|tasks| tasks.ends_with('*'));
            subjects.extend(own.map(QuotaSubject::Tasks));
            subjects.extend(caller.charged_to().map(QuotaSubject::Token));
        }
    }
    let mut quotas = app.store.quotas(&subjects, app.clock.now_ms()).await?;
    quotas.retain(|quota| {
        let is_own = caller.charged_to().map(QuotaSubject::Token).as_ref() == Some(&quota.subject);
        let is_wanted = match (&input.task, &quota.subject) {
            (None, _) => true,
            (Some(task), QuotaSubject::Task(name)) => name == task,
            (Some(task), QuotaSubject::Tasks(pattern)) => {
                task.starts_with(pattern.trim_end_matches('*'))
            }
            (Some(_), _) => false,
        };
        is_wanted && (is_own || may_see(caller, &quota.subject))
    });
    Ok(Json(quotas))
}

/// Refuses a task or token that does not exist, because its quota would never apply.
async fn require_subject(
    api: &Api,
    caller: &Caller,
    subject: &QuotaSubject,
) -> Result<(), ApiError> {
    match subject {
        QuotaSubject::Task(name) => tasks::find(api, caller, name).await.map(drop),
        QuotaSubject::Token(id) => match api.app.store.token_by_id(id).await? {
            Some(_) => Ok(()),
            None => Err(
                ApiError::not_found(format!("the token {id} does not exist"))
                    .help("list the ids of tokens with `acrtask token list`"),
            ),
        },
        QuotaSubject::EachTask | QuotaSubject::EachToken | QuotaSubject::Tasks(_) => Ok(()),
    }
}

/// Sets a quota, or restores its default limit.
#[utoipa::path(put, path = "/quotas", tag = "quotas", request_body = SetQuota, security(("token" = ["admin"])), responses(
    (status = OK, body = Vec<Quota>, description = "The quota after the change. Empty if it has no limit."),
    (status = BAD_REQUEST, body = Problem),
    (status = NOT_FOUND, body = Problem, description = "The task or token does not exist."),
))]
async fn set(
    by: Authenticated<auth::Admin>,
    State(api): State<Api>,
    Json(input): Json<SetQuota>,
) -> Result<Json<Vec<Quota>>, ApiError> {
    let SetQuota {
        subject,
        kind,
        limit,
    } = input;
    if !kind.applies_to(&subject) {
        return Err(
            ApiError::unprocessable(format!("`{subject}` has no quota `{kind}`"))
                .help("list all quotas and their subjects with `acrtask quota list`"),
        );
    }
    if limit.is_some_and(|limit| limit > MAX_LIMIT) {
        return Err(ApiError::invalid(format!(
            "`limit` must be at most {MAX_LIMIT}"
        )));
    }
    if limit.is_some() {
        require_subject(&api, &by.caller, &subject).await?;
    }
    let app = &api.app;
    app.store.set_quota(&subject, kind, limit).await?;
    tracing::info!(%subject, %kind, limit, by = by.caller.name, "set a quota");
    let subjects = [subject];
    let mut quotas = app.store.quotas(&subjects, app.clock.now_ms()).await?;
    quotas.retain(|quota| quota.subject == subjects[0] && quota.kind == kind);
    Ok(Json(quotas))
}

#[cfg(test)]
#[path = "quotas_tests.rs"]
mod tests;
