//! Quotas: limits of tasks and tokens, their use, and how an administrator changes them.

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
use crate::auth::{self, By, Caller};

/// Highest limit: the largest number of a database.
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
fn sees(caller: &Caller, subject: &QuotaSubject) -> bool {
    match subject {
        QuotaSubject::EachTask | QuotaSubject::EachToken => true,
        QuotaSubject::Task(name) => caller.sees(Some(name)),
        QuotaSubject::Tasks(pattern) => {
            caller.tasks.is_none() || caller.sees(Some(pattern.trim_end_matches('*')))
        }
        QuotaSubject::Token(id) => caller.has(Scope::Admin) || *id == caller.token_id,
    }
}

/// Lists quotas with their use: those of each task and token, those of the caller's own token, those that were set, and
/// those of one task.
#[utoipa::path(get, path = "/quotas", tag = "quotas", params(ListQuotas), security(("token" = ["read"])), responses(
    (status = OK, body = Vec<Quota>),
    (status = NOT_FOUND, body = Problem, description = "There is no such task."),
))]
async fn list(
    by: By<auth::Read>,
    State(api): State<Api>,
    Query(asked): Query<ListQuotas>,
) -> Result<Json<Vec<Quota>>, ApiError> {
    let caller = &by.caller;
    let app = &api.app;
    let mut subjects = Vec::new();
    match &asked.task {
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
        let is_wanted = match (&asked.task, &quota.subject) {
            (None, _) => true,
            (Some(task), QuotaSubject::Task(name)) => name == task,
            (Some(task), QuotaSubject::Tasks(pattern)) => {
                task.starts_with(pattern.trim_end_matches('*'))
            }
            (Some(_), _) => false,
        };
        is_wanted && (is_own || sees(caller, &quota.subject))
    });
    Ok(Json(quotas))
}

/// Refuses a task or token that does not exist: its quota would never apply.
async fn need_subject(api: &Api, caller: &Caller, subject: &QuotaSubject) -> Result<(), ApiError> {
    match subject {
        QuotaSubject::Task(name) => tasks::find(api, caller, name).await.map(drop),
        QuotaSubject::Token(id) => match api.app.store.token_by_id(id).await? {
            Some(_) => Ok(()),
            None => Err(ApiError::not_found(format!("there is no token {id}"))
                .help("`acrtask token list` shows the ids of tokens")),
        },
        QuotaSubject::EachTask | QuotaSubject::EachToken | QuotaSubject::Tasks(_) => Ok(()),
    }
}

/// Sets a quota, or restores its default limit.
#[utoipa::path(put, path = "/quotas", tag = "quotas", request_body = SetQuota, security(("token" = ["admin"])), responses(
    (status = OK, body = Vec<Quota>, description = "The quota as it is now. Empty if it has no limit now."),
    (status = BAD_REQUEST, body = Problem),
    (status = NOT_FOUND, body = Problem, description = "There is no such task or token."),
))]
async fn set(
    by: By<auth::Admin>,
    State(api): State<Api>,
    Json(asked): Json<SetQuota>,
) -> Result<Json<Vec<Quota>>, ApiError> {
    let SetQuota {
        subject,
        kind,
        limit,
    } = asked;
    if !kind.fits(&subject) {
        return Err(
            ApiError::unprocessable(format!("`{subject}` has no quota `{kind}`"))
                .help("`acrtask quota list` shows which quotas there are, and of what"),
        );
    }
    if limit.is_some_and(|limit| limit > MAX_LIMIT) {
        return Err(ApiError::invalid(format!("`limit` is {MAX_LIMIT} at most")));
    }
    if limit.is_some() {
        need_subject(&api, &by.caller, &subject).await?;
    }
    let app = &api.app;
    app.store.set_quota(&subject, kind, limit).await?;
    tracing::info!(%subject, %kind, limit, by = by.caller.name, "a quota was set");
    let subjects = [subject];
    let mut quotas = app.store.quotas(&subjects, app.clock.now_ms()).await?;
    quotas.retain(|quota| quota.subject == subjects[0] && quota.kind == kind);
    Ok(Json(quotas))
}

#[cfg(test)]
#[path = "quotas_tests.rs"]
mod tests;
