//! Base images: the tags that are watched, and what stands on one. A `/` in a name is `%2F` in a path.
//!
//! A token that is limited to tasks sees the tags that images of these tasks stand on.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use acrtask_api::{
    admin::Problem,
    image::{Base, BaseProposal, BlastRadius, CheckBases},
    run::Page,
};
use acrtask_model::ImageRef;
use acrtask_store::{StoreError, WatchFilter, WatchRow, timestamp};
use axum::extract::State;
use serde::Deserialize;
use tokio::time::Instant;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api, ApiError,
    extract::{Json, OptionalJson, Path, Query},
    images::full_name,
    runs,
    secrets::task_names,
};
use crate::{
    auth::{self, By, Caller},
    bases::{
        self,
        known::{Stale, Standing},
        tags,
    },
};

/// Tags that are read at once.
const CHUNK: u32 = 500;
/// Moves of a tag that are shown.
const HISTORY: u32 = 50;
/// The longest that a request waits for looks.
const LONGEST_WAIT: u64 = 60;
/// How often it is seen whether they have been.
const POLL: Duration = Duration::from_millis(100);

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(check))
        .routes(routes!(proposals))
        .routes(routes!(show))
        .routes(routes!(blast_radius))
        .routes(routes!(pause))
        .routes(routes!(resume))
}

/// Which tags a list shows.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListBases {
    /// Length of the page: 1 to 200, 50 by default.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u32>,
    /// What the page before gave as `next`.
    cursor: Option<String>,
}

/// Tags that a caller sees: bases of images of its tasks, as a login of its tasks or of the server sees them.
struct Sight {
    /// Names of its tasks, by id.
    tasks: HashMap<String, String>,
    /// `None` if it sees all tags.
    standing: Option<Standing>,
}

impl Sight {
    async fn of(api: &Api, caller: &Caller) -> Result<Self, ApiError> {
        let standing = match caller.tasks {
            None => None,
            Some(_) => Some(Standing::read(&api.app, |task| caller.sees(task)).await?),
        };
        Ok(Self {
            tasks: task_names(api, caller).await?,
            standing,
        })
    }

    fn sees_name(&self, name: &str) -> bool {
        let standing = self.standing.as_ref();
        standing.is_none_or(|standing| standing.is_base(name))
    }

    /// Returns the row as the caller may see it, with its own images counted. `None`: it does not see the row.
    fn filter(&self, mut row: WatchRow) -> Option<WatchRow> {
        let Some(standing) = &self.standing else {
            return Some(row);
        };
        let is_own = row.scope.is_empty() || self.tasks.contains_key(&row.scope);
        if !is_own || !standing.is_base(&row.name) {
            return None;
        }
        row.used_by = standing.users(&row.name);
        // A connection error would show which hosts and ports of the server's network respond.
        if row.detail.is_some() {
            row.detail = Some("a token without a limit to tasks shows the reason".to_owned());
        }
        Some(row)
    }
}

fn to_api(row: WatchRow, tasks: &HashMap<String, String>) -> Base {
    Base {
        name: row.name,
        login_of: (!row.scope.is_empty()).then(|| {
            // A task that the caller does not see stays without a name.
            tasks
                .get(&row.scope)
                .cloned()
                .unwrap_or_else(|| "(another task)".to_owned())
        }),
        status: row.status,
        detail: row.detail,
        paused: row.paused,
        digest: row.digest,
        platforms: std::collections::BTreeMap::new(),
        checked_at: row.checked_at.map(timestamp),
        changed_at: row.changed_at.map(timestamp),
        next_check_at: timestamp(row.next_check_at),
        used_by: row.used_by,
        newer: Vec::new(),
        changes: Vec::new(),
    }
}

/// Those with this name, with all that is known of them.
async fn find(api: &Api, caller: &Caller, name: &str) -> Result<Vec<Base>, ApiError> {
    let missing = || {
        ApiError::not_found(format!("the tag `{name}` is not watched"))
            .help("tags are watched that the newest images of tasks stand on: `acrtask base list`")
    };
    let sight = Sight::of(api, caller).await?;
    if !sight.sees_name(name) {
        return Err(missing());
    }
    let store = &api.app.store;
    let rows = store
        .watches(WatchFilter {
            name: Some(name.to_owned()),
            limit: CHUNK,
            ..WatchFilter::default()
        })
        .await?;
    let rows: Vec<WatchRow> = rows
        .into_iter()
        .filter_map(|row| sight.filter(row))
        .collect();
    if rows.is_empty() {
        return Err(missing());
    }
    let proposals = tags::proposals(&api.app, |task| caller.sees(task)).await?;
    let mut found = Vec::new();
    for row in rows {
        let platforms = store.base_platforms(&row).await?;
        let changes = store.base_changes(row.id, HISTORY).await?;
        found.push(Base {
            platforms,
            changes,
            newer: tags::newer_than(&proposals, name),
            ..to_api(row, &sight.tasks)
        });
    }
    Ok(found)
}

/// Base tags that are watched, by name. One that is looked at with several logins is there once for each.
#[utoipa::path(get, path = "/bases", tag = "bases", params(ListBases), security(("token" = ["read"])), responses(
    (status = OK, body = Page<Base>),
    (status = BAD_REQUEST, body = Problem),
))]
async fn list(
    by: By<auth::Read>,
    State(api): State<Api>,
    Query(asked): Query<ListBases>,
) -> Result<Json<Page<Base>>, ApiError> {
    let limit = runs::page_limit(asked.limit)? as usize;
    let sight = Sight::of(&api, &by.caller).await?;
    let mut items: Vec<Base> = Vec::new();
    let mut after = asked.cursor;
    let next = loop {
        let rows = read_after(&api, after.take()).await?;
        after = rows.last().map(|row| row.name.clone());
        let seen = rows.into_iter().filter_map(|row| sight.filter(row));
        items.extend(seen.map(|row| to_api(row, &sight.tasks)));
        // A page ends where a name does.
        if let Some(beyond) = items.get(limit).map(|base| base.name.clone()) {
            let end = items[..limit].iter().rposition(|base| base.name != beyond);
            let end = end.map_or_else(
                || items.iter().take_while(|base| base.name == beyond).count(),
                |last| last + 1,
            );
            items.truncate(end);
            break items.last().map(|base| base.name.clone());
        }
        if after.is_none() {
            break None;
        }
    };
    Ok(Json(Page { items, next }))
}

/// Watched tags behind a name, those of one name together; none: there are no more.
async fn read_after(api: &Api, after: Option<String>) -> Result<Vec<WatchRow>, StoreError> {
    let store = &api.app.store;
    let mut rows = store
        .watches(WatchFilter {
            after,
            limit: CHUNK,
            ..WatchFilter::default()
        })
        .await?;
    if rows.len() >= CHUNK as usize
        && let Some(name) = rows.last().map(|row| row.name.clone())
    {
        rows.retain(|row| row.name != name);
        let last = WatchFilter {
            name: Some(name),
            limit: u32::MAX,
            ..WatchFilter::default()
        };
        rows.extend(store.watches(last).await?);
    }
    Ok(rows)
}

/// A base tag: what it holds, how it moved, and how it stands. One entry for each login that it is looked at with.
#[utoipa::path(get, path = "/bases/{base}", tag = "bases",
    params(("base" = String, Path, description = "Registry, repository and tag.")),
    security(("token" = ["read"])), responses((status = OK, body = Vec<Base>), (status = NOT_FOUND, body = Problem)))]
async fn show(
    by: By<auth::Read>,
    State(api): State<Api>,
    Path(base): Path<String>,
) -> Result<Json<Vec<Base>>, ApiError> {
    let name = full_name(&base)?;
    Ok(Json(find(&api, &by.caller, &name).await?))
}

/// Looks at tags now, one or all. A paused one is not looked at.
#[utoipa::path(post, path = "/bases/check", tag = "bases", request_body = Option<CheckBases>,
    security(("token" = ["run"])), responses(
    (status = OK, body = Vec<Base>, description = "How they stand after that, or after the wait."),
    (status = NOT_FOUND, body = Problem),
))]
async fn check(
    by: By<auth::Run>,
    State(api): State<Api>,
    OptionalJson(asked): OptionalJson<CheckBases>,
) -> Result<Json<Vec<Base>>, ApiError> {
    let app = &api.app;
    let name = asked.name.as_deref().map(full_name).transpose()?;
    if asked.wait_secs > LONGEST_WAIT {
        return Err(ApiError::invalid(format!(
            "`waitSecs` is {}, and may be {LONGEST_WAIT} at most",
            asked.wait_secs
        )));
    }
    // What came a moment ago is looked at too.
    bases::compare(app).await?;
    tags::pass(app).await?;
    let sight = Sight::of(&api, &by.caller).await?;
    let wanted = async || -> Result<Vec<WatchRow>, ApiError> {
        let mut found = Vec::new();
        if let Some(name) = &name {
            if sight.sees_name(name) {
                let filter = WatchFilter {
                    name: Some(name.clone()),
                    limit: CHUNK,
                    ..WatchFilter::default()
                };
                let rows = app.store.watches(filter).await?;
                found.extend(rows.into_iter().filter_map(|row| sight.filter(row)));
            }
            return Ok(found);
        }
        let mut after = None;
        loop {
            let rows = read_after(&api, after.take()).await?;
            after = rows.last().map(|row| row.name.clone());
            found.extend(rows.into_iter().filter_map(|row| sight.filter(row)));
            if after.is_none() {
                return Ok(found);
            }
        }
    };
    let rows = wanted().await?;
    if let Some(name) = name.as_deref().filter(|_| rows.is_empty()) {
        return Err(ApiError::not_found(format!(
            "the tag `{name}` is not watched"
        )));
    }
    let now = app.clock.now_ms();
    let names: Vec<String> = rows.into_iter().map(|row| row.name).collect();
    let repositories: BTreeSet<String> = names
        .iter()
        .filter_map(|name| Some(name.parse::<ImageRef>().ok()?.name()))
        .collect();
    app.store.hurry_watches(Some(names), now).await?;
    app.bases.notify_one();
    tags::hurry(app, Some(repositories.iter().cloned().collect())).await?;
    let until = Instant::now() + Duration::from_secs(asked.wait_secs);
    let rows = loop {
        let rows = wanted().await?;
        let waits =
            |row: &WatchRow| !row.paused && (row.lease_until.is_some() || row.next_check_at <= now);
        let lists = app.store.tag_lists().await?;
        let lists = lists.iter().any(|list| {
            repositories.contains(&list.repository)
                && (list.lease_until.is_some() || list.next_check_at <= now)
        });
        if Instant::now() >= until || !(lists || rows.iter().any(waits)) {
            break rows;
        }
        tokio::time::sleep(POLL).await;
    };
    // What was listed is compared before the answer, whoever does it next.
    tags::pass(app).await?;
    Ok(Json(
        rows.into_iter()
            .map(|row| to_api(row, &sight.tasks))
            .collect(),
    ))
}

/// Rules of tasks for newer tags of base images, and what each has found, by task.
#[utoipa::path(get, path = "/bases/proposals", tag = "bases", security(("token" = ["read"])), responses(
    (status = OK, body = Page<BaseProposal>),
))]
async fn proposals(
    by: By<auth::Read>,
    State(api): State<Api>,
) -> Result<Json<Page<BaseProposal>>, ApiError> {
    Ok(Json(Page {
        items: tags::proposals(&api.app, |task| by.caller.sees(task)).await?,
        next: None,
    }))
}

/// Everything that stands on a base, through any number of our own images.
#[utoipa::path(get, path = "/bases/{base}/blast-radius", tag = "bases",
    params(("base" = String, Path, description = "Registry, repository and tag.")),
    security(("token" = ["read"])), responses(
    (status = OK, body = BlastRadius),
    (status = NOT_FOUND, body = Problem, description = "Nothing that is known stands on it."),
))]
async fn blast_radius(
    by: By<auth::Read>,
    State(api): State<Api>,
    Path(base): Path<String>,
) -> Result<Json<BlastRadius>, ApiError> {
    let base = full_name(&base)?;
    let standing = Standing::read(&api.app, |task| by.caller.sees(task)).await?;
    if !standing.knows(&base) {
        return Err(ApiError::not_found(format!(
            "no image that is known stands on `{base}`"
        )));
    }
    let stale = Stale::read(&api.app).await?;
    Ok(Json(BlastRadius {
        images: standing.blast_radius(&base, &stale),
        base,
    }))
}

/// Stops looking at a tag. What is known of it stays as it is.
#[utoipa::path(post, path = "/bases/{base}/pause", tag = "bases",
    params(("base" = String, Path, description = "Registry, repository and tag.")),
    security(("token" = ["write"])), responses((status = OK, body = Vec<Base>), (status = NOT_FOUND, body = Problem)))]
async fn pause(
    by: By<auth::Write>,
    State(api): State<Api>,
    Path(base): Path<String>,
) -> Result<Json<Vec<Base>>, ApiError> {
    set_paused(&api, &by.caller, &base, true).await
}

/// Looks at a paused tag again, beginning now.
#[utoipa::path(post, path = "/bases/{base}/resume", tag = "bases",
    params(("base" = String, Path, description = "Registry, repository and tag.")),
    security(("token" = ["write"])), responses((status = OK, body = Vec<Base>), (status = NOT_FOUND, body = Problem)))]
async fn resume(
    by: By<auth::Write>,
    State(api): State<Api>,
    Path(base): Path<String>,
) -> Result<Json<Vec<Base>>, ApiError> {
    set_paused(&api, &by.caller, &base, false).await
}

async fn set_paused(
    api: &Api,
    caller: &Caller,
    base: &str,
    paused: bool,
) -> Result<Json<Vec<Base>>, ApiError> {
    // It concerns every task that stands on it.
    caller.need_task(None)?;
    let app = &api.app;
    let name = full_name(base)?;
    app.store
        .pause_watch(&name, paused, app.clock.now_ms())
        .await?;
    let found = find(api, caller, &name).await?;
    app.bases.notify_one();
    tracing::info!(
        base = name,
        paused,
        by = caller.name,
        "a base tag was paused or resumed"
    );
    Ok(Json(found))
}

#[cfg(test)]
#[path = "bases_tests.rs"]
mod tests;
