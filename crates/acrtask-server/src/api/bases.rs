//! Base images: watched tags, and the images that depend on them. A `/` in a name is `%2F` in a
//! path.
//!
//! A token with a task limit sees the bases of images of its tasks.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use acrtask_api::{
    admin::Problem,
    image::{Base, BaseProposal, BlastRadius, CheckBases},
    run::Page,
};
use acrtask_model::{ImageRef, TaskScope};
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
    auth::{self, Authenticated, Caller},
    bases::{
        self,
        staleness::{ImageGraph, Staleness},
        tags,
    },
};

/// Watched tags that one query reads.
const CHUNK: u32 = 500;
/// Most digest changes of a tag in a response.
const HISTORY: u32 = 50;
/// Longest wait for polls, in seconds.
const MAX_WAIT_SECS: u64 = 60;
/// Interval between checks for completed polls.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);

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

/// Filter and page of a list of base tags.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListBases {
    /// Length of the page: 1 to 200, 50 by default.
    #[param(minimum = 1, maximum = 200)]
    pub(crate) limit: Option<u32>,
    /// `next` of the previous page.
    pub(crate) cursor: Option<String>,
}

/// Visibility of base tags for a caller: bases of images of its tasks, with logins of its tasks or
/// of the server.
struct VisibleBases {
    /// Names of the visible tasks by id.
    tasks: HashMap<String, String>,
    /// Visible images. `None` if the caller sees all tags.
    graph: Option<ImageGraph>,
}

impl VisibleBases {
    async fn load(api: &Api, caller: &Caller) -> Result<Self, ApiError> {
        let graph = match caller.tasks {
            None => None,
            Some(_) => Some(ImageGraph::read(&api.app, |task| caller.may_see(task)).await?),
        };
        Ok(Self {
            tasks: task_names(api, caller).await?,
            graph,
        })
    }

    fn includes(&self, name: &str) -> bool {
        let graph = self.graph.as_ref();
        graph.is_none_or(|graph| graph.is_base(name))
    }

    /// Returns the row with only visible images counted. `None` if the caller does not see the row.
    fn filter(&self, mut row: WatchRow) -> Option<WatchRow> {
        let Some(graph) = &self.graph else {
            return Some(row);
        };
        let is_own = match TaskScope::parse(&row.scope) {
            TaskScope::All => true,
            TaskScope::Prefix(pattern) => self.tasks.values().any(|name| pattern.matches(name)),
            TaskScope::Task(id) => self.tasks.contains_key(&id),
        };
        if !is_own || !graph.is_base(&row.name) {
            return None;
        }
        row.used_by = graph.dependent_count(&row.name);
        // A connection error would reveal reachable hosts and ports of the server's network.
        if row.detail.is_some() {
            row.detail = Some("a token without a limit to tasks shows the reason".to_owned());
        }
        Some(row)
    }
}

fn to_api(row: WatchRow, tasks: &HashMap<String, String>) -> Base {
    Base {
        name: row.name,
        login_of: match TaskScope::parse(&row.scope) {
            TaskScope::All => None,
            TaskScope::Prefix(pattern) => Some(pattern.to_string()),
            // Hide the name of a task that the caller does not see.
            TaskScope::Task(id) => Some(
                tasks
                    .get(&id)
                    .cloned()
                    .unwrap_or_else(|| "(another task)".to_owned()),
            ),
        },
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

/// Returns the watched tags with this name, one per login, with all details.
pub(crate) async fn find(api: &Api, caller: &Caller, name: &str) -> Result<Vec<Base>, ApiError> {
    let missing = || {
        ApiError::not_found(format!("the tag `{name}` is not watched"))
            .help("the server watches the bases of the newest images of tasks: `acrtask base list`")
    };
    let visible = VisibleBases::load(api, caller).await?;
    if !visible.includes(name) {
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
        .filter_map(|row| visible.filter(row))
        .collect();
    if rows.is_empty() {
        return Err(missing());
    }
    let proposals = tags::list_proposals(&api.app, |task| caller.may_see(task)).await?;
    let mut found = Vec::new();
    for row in rows {
        let platforms = store.base_platforms(&row).await?;
        let changes = store.base_changes(row.id, HISTORY).await?;
        found.push(Base {
            platforms,
            changes,
            newer: tags::newer_tags(&proposals, name),
            ..to_api(row, &visible.tasks)
        });
    }
    Ok(found)
}

/// Lists watched base tags by name. A tag that is polled with several logins has one entry per
/// login.
#[utoipa::path(get, path = "/bases", tag = "bases", params(ListBases), security(("token" = ["read"])), responses(
    (status = OK, body = Page<Base>),
    (status = BAD_REQUEST, body = Problem),
))]
async fn list(
    by: Authenticated<auth::Read>,
    State(api): State<Api>,
    Query(input): Query<ListBases>,
) -> Result<Json<Page<Base>>, ApiError> {
    load_page(&api, &by.caller, input).await.map(Json)
}

/// Returns a page of the watched base tags that the caller may see.
pub(crate) async fn load_page(
    api: &Api,
    caller: &Caller,
    input: ListBases,
) -> Result<Page<Base>, ApiError> {
    let limit = runs::page_limit(input.limit)? as usize;
    let visible = VisibleBases::load(api, caller).await?;
    let mut items: Vec<Base> = Vec::new();
    let mut after = input.cursor;
    let next = loop {
        let rows = read_after(api, after.take()).await?;
        after = rows.last().map(|row| row.name.clone());
        let seen = rows.into_iter().filter_map(|row| visible.filter(row));
        items.extend(seen.map(|row| to_api(row, &visible.tasks)));
        // A page ends at the end of a name.
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
    Ok(Page { items, next })
}

/// Reads the next watched tags after a name. All entries of a name are read together. Empty at the
/// end.
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

/// Returns a base tag with its digest, its digest changes and its state. One entry per login that
/// polls it.
#[utoipa::path(get, path = "/bases/{base}", tag = "bases",
    params(("base" = String, Path, description = "Registry, repository and tag.")),
    security(("token" = ["read"])), responses((status = OK, body = Vec<Base>), (status = NOT_FOUND, body = Problem)))]
async fn show(
    by: Authenticated<auth::Read>,
    State(api): State<Api>,
    Path(base): Path<String>,
) -> Result<Json<Vec<Base>>, ApiError> {
    let name = full_name(&base)?;
    Ok(Json(find(&api, &by.caller, &name).await?))
}

/// Polls tags now, one or all. Paused tags are not polled.
#[utoipa::path(post, path = "/bases/check", tag = "bases", request_body = Option<CheckBases>,
    security(("token" = ["run"])), responses(
    (status = OK, body = Vec<Base>, description = "The tags after their polls, or after the wait."),
    (status = NOT_FOUND, body = Problem),
))]
async fn check(
    by: Authenticated<auth::Run>,
    State(api): State<Api>,
    OptionalJson(input): OptionalJson<CheckBases>,
) -> Result<Json<Vec<Base>>, ApiError> {
    let app = &api.app;
    let name = input.name.as_deref().map(full_name).transpose()?;
    if input.wait_secs > MAX_WAIT_SECS {
        return Err(ApiError::invalid(format!(
            "`waitSecs` is {}: write {MAX_WAIT_SECS} or less",
            input.wait_secs
        )));
    }
    // Include the bases of images that were pushed a moment ago.
    bases::update_watches(app).await?;
    tags::reconcile_rules(app).await?;
    let visible = VisibleBases::load(&api, &by.caller).await?;
    let wanted = async || -> Result<Vec<WatchRow>, ApiError> {
        let mut found = Vec::new();
        if let Some(name) = &name {
            if visible.includes(name) {
                let filter = WatchFilter {
                    name: Some(name.clone()),
                    limit: CHUNK,
                    ..WatchFilter::default()
                };
                let rows = app.store.watches(filter).await?;
                found.extend(rows.into_iter().filter_map(|row| visible.filter(row)));
            }
            return Ok(found);
        }
        let mut after = None;
        loop {
            let rows = read_after(&api, after.take()).await?;
            after = rows.last().map(|row| row.name.clone());
            found.extend(rows.into_iter().filter_map(|row| visible.filter(row)));
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
    app.store.mark_watches_due(Some(names), now).await?;
    app.bases.notify_one();
    tags::mark_lists_due(app, Some(repositories.iter().cloned().collect())).await?;
    let until = Instant::now() + Duration::from_secs(input.wait_secs);
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
        tokio::time::sleep(CHECK_INTERVAL).await;
    };
    // Compare the listed tags before the response, even if the background task has not done so yet.
    tags::reconcile_rules(app).await?;
    Ok(Json(
        rows.into_iter()
            .map(|row| to_api(row, &visible.tasks))
            .collect(),
    ))
}

/// Lists the rules of tasks for newer tags of base images, and the tags that each rule found, by
/// task.
#[utoipa::path(get, path = "/bases/proposals", tag = "bases", security(("token" = ["read"])), responses(
    (status = OK, body = Page<BaseProposal>),
))]
async fn proposals(
    by: Authenticated<auth::Read>,
    State(api): State<Api>,
) -> Result<Json<Page<BaseProposal>>, ApiError> {
    Ok(Json(Page {
        items: tags::list_proposals(&api.app, |task| by.caller.may_see(task)).await?,
        next: None,
    }))
}

/// Returns all images that depend on a base, directly or through other images of this server.
#[utoipa::path(get, path = "/bases/{base}/blast-radius", tag = "bases",
    params(("base" = String, Path, description = "Registry, repository and tag.")),
    security(("token" = ["read"])), responses(
    (status = OK, body = BlastRadius),
    (status = NOT_FOUND, body = Problem, description = "No known image depends on it."),
))]
async fn blast_radius(
    by: Authenticated<auth::Read>,
    State(api): State<Api>,
    Path(base): Path<String>,
) -> Result<Json<BlastRadius>, ApiError> {
    load_blast_radius(&api, &by.caller, &base).await.map(Json)
}

/// Returns the images of the caller's tasks that depend on a base.
pub(crate) async fn load_blast_radius(
    api: &Api,
    caller: &Caller,
    base: &str,
) -> Result<BlastRadius, ApiError> {
    let base = full_name(base)?;
    let graph = ImageGraph::read(&api.app, |task| caller.may_see(task)).await?;
    if !graph.contains(&base) {
        return Err(ApiError::not_found(format!(
            "no known image depends on `{base}`"
        )));
    }
    let stale = Staleness::read(&api.app).await?;
    Ok(BlastRadius {
        images: graph.blast_radius(&base, &stale),
        base,
    })
}

/// Pauses the polls of a tag. Its known digest and history are kept.
#[utoipa::path(post, path = "/bases/{base}/pause", tag = "bases",
    params(("base" = String, Path, description = "Registry, repository and tag.")),
    security(("token" = ["write"])), responses((status = OK, body = Vec<Base>), (status = NOT_FOUND, body = Problem)))]
async fn pause(
    by: Authenticated<auth::Write>,
    State(api): State<Api>,
    Path(base): Path<String>,
) -> Result<Json<Vec<Base>>, ApiError> {
    set_paused(&api, &by.caller, &base, true).await
}

/// Resumes the polls of a paused tag, with a poll now.
#[utoipa::path(post, path = "/bases/{base}/resume", tag = "bases",
    params(("base" = String, Path, description = "Registry, repository and tag.")),
    security(("token" = ["write"])), responses((status = OK, body = Vec<Base>), (status = NOT_FOUND, body = Problem)))]
async fn resume(
    by: Authenticated<auth::Write>,
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
    // A pause affects every task that depends on the tag.
    caller.require_task(None)?;
    let app = &api.app;
    let name = full_name(base)?;
    app.store
        .set_watch_paused(&name, paused, app.clock.now_ms())
        .await?;
    let found = find(api, caller, &name).await?;
    app.bases.notify_one();
    tracing::info!(
        base = name,
        paused,
        by = caller.name,
        "paused or resumed a base tag"
    );
    Ok(Json(found))
}

#[cfg(test)]
#[path = "bases_tests.rs"]
mod tests;
