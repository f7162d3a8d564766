//! Quotas: what tasks and tokens may take, what they do take, and how an administrator changes that.

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

/// The highest limit, which a database holds.
const MAX_LIMIT: u64 = i64::MAX.unsigned_abs();

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(list, set))
}

/// Whose quotas a list shows.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListQuotas {
    /// Only those of the task with this name, and those of several tasks that it belongs to.
    task: Option<String>,
}

/// Returns `true` if the quotas of a subject are the caller's business.
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

/// Sets a quota, or goes back to its default limit.
#[utoipa::path(put, path = "/quotas", tag = "quotas", request_body = SetQuota, security(("token" = ["admin"])), responses(
    (status = OK, body = Vec<Quota>, description = "The quotas that are set."),
    (status = BAD_REQUEST, body = Problem),
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
            ApiError::invalid(format!("`{subject}` has no quota `{kind}`"))
                .help("`acrtask quota list` shows which quotas there are, and of what"),
        );
    }
    if limit.is_some_and(|limit| limit > MAX_LIMIT) {
        return Err(ApiError::invalid(format!("`limit` is {MAX_LIMIT} at most")));
    }
    let app = &api.app;
    app.store.set_quota(&subject, kind, limit).await?;
    tracing::info!(%subject, %kind, limit, by = by.caller.name, "a quota was set");
    let mut quotas = app.store.quotas(&[], app.clock.now_ms()).await?;
    quotas.retain(|quota| quota.set);
    Ok(Json(quotas))
}

#[cfg(test)]
#[path = "quotas_tests.rs"]
mod tests;
