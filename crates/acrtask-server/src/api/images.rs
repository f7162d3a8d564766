//! Images that runs pushed: listed, shown with what they were built from, and as trees. A `/` in a name is `%2F` in a path.

use acrtask_api::{
    admin::Problem,
    image::{Image, ImageBuild, ImageDetail, ImageTree},
    run::Page,
};
use acrtask_model::ImageRef;
use acrtask_store::{ImageFilter, ImageRow, StoreError, timestamp};
use axum::extract::State;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api, ApiError, cascades,
    extract::{Json, Path, Query},
    runs,
};
use crate::{
    auth::{self, By},
    bases::{
        known::{Stale, Standing},
        tags,
    },
};

/// Images that are read at once where only some of them are shown.
const CHUNK: u32 = 500;
/// What was pushed under a name before: so many are shown.
const HISTORY: u32 = 20;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(tree))
        .routes(routes!(show))
}

/// Which images a list shows.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListImages {
    /// Only names that begin so.
    prefix: Option<String>,
    /// Only those of this task.
    task: Option<String>,
    /// Only those that the last run of their task pushed.
    newest: bool,
    /// Only those whose base has moved.
    stale: bool,
    /// Length of the page: 1 to 200, 50 by default.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u32>,
    /// What the page before gave as `next`.
    cursor: Option<String>,
}

/// What a tree is of.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct TreeOf {
    /// The base that it stands on; nothing: all that nobody here builds.
    root: Option<String>,
    /// Not runtime bases alone: other stages, frontends, and what containers were made of.
    all: bool,
}

/// The full name of an image that somebody named: with its registry and tag, and without a digest.
pub(super) fn full_name(text: &str) -> Result<String, ApiError> {
    let reference: ImageRef =
        text.parse()
            .map_err(|error: acrtask_model::reference::ReferenceError| {
                ApiError::unprocessable(error.to_string())
            })?;
    if reference.digest().is_none() {
        return Ok(reference.or_latest().to_string());
    }
    let tag = reference.tag().ok_or_else(|| {
        ApiError::unprocessable(format!("`{text}` names a digest, which never moves"))
            .help("name a tag: REPOSITORY:TAG")
    })?;
    Ok(format!("{}:{tag}", reference.name()))
}

pub(super) fn to_api(row: ImageRow, stale: &Stale) -> Image {
    Image {
        stale: if row.newest {
            stale.of(&row.name)
        } else {
            Vec::new()
        },
        name: row.name,
        digest: row.digest,
        task: row.task_name,
        run: row.run,
        built_at: timestamp(row.built_at),
        platforms: row.platforms,
        newest: row.newest,
    }
}

/// Images, by name.
#[utoipa::path(get, path = "/images", tag = "images", params(ListImages), security(("token" = ["read"])), responses(
    (status = OK, body = Page<Image>),
    (status = BAD_REQUEST, body = Problem),
))]
async fn list(
    by: By<auth::Read>,
    State(api): State<Api>,
    Query(asked): Query<ListImages>,
) -> Result<Json<Page<Image>>, ApiError> {
    let limit = runs::page_limit(asked.limit)? as usize;
    let store = &api.app.store;
    let stale = Stale::read(&api.app).await?;
    let mut items = Vec::new();
    let mut after = asked.cursor;
    loop {
        // One more tells whether there is another page.
        let chunk = if asked.stale {
            CHUNK
        } else {
            u32::try_from(limit + 1).unwrap_or(CHUNK)
        };
        let rows = store
            .images(ImageFilter {
                prefix: asked.prefix.clone(),
                task: asked.task.clone(),
                pattern: by.caller.tasks.clone(),
                newest: asked.newest || asked.stale,
                after: after.take(),
                limit: chunk,
            })
            .await?;
        let full = rows.len() >= chunk as usize;
        after = rows.last().map(|row| row.name.clone());
        let shown = rows
            .into_iter()
            .filter(|row| !asked.stale || stale.is(&row.name));
        items.extend(shown.map(|row| to_api(row, &stale)));
        if !full || items.len() > limit {
            break;
        }
    }
    let more = items.len() > limit;
    items.truncate(limit);
    let next = items
        .last()
        .filter(|_| more)
        .map(|image| image.name.clone());
    Ok(Json(Page { items, next }))
}

/// An image: what it was built from, what that holds now, and what would make it be built again.
#[utoipa::path(get, path = "/images/{image}", tag = "images",
    params(("image" = String, Path, description = "Registry, repository and tag.")),
    security(("token" = ["read"])), responses((status = OK, body = ImageDetail), (status = NOT_FOUND, body = Problem)))]
async fn show(
    by: By<auth::Read>,
    State(api): State<Api>,
    Path(image): Path<String>,
) -> Result<Json<ImageDetail>, ApiError> {
    let name = full_name(&image)?;
    let missing = || {
        ApiError::not_found(format!("no run has pushed the image `{name}`"))
            .help("`acrtask images list` shows those that are known")
    };
    let store = &api.app.store;
    let (row, bases) = match store.image(&name).await {
        Err(StoreError::NotFound { .. }) => return Err(missing()),
        found => found?,
    };
    if !by.caller.sees(row.task_name.as_deref()) {
        return Err(missing());
    }
    let stale = Stale::read(&api.app).await?;
    let mut shown = Vec::new();
    for base in bases {
        let built_by = match store.image(&base.name).await {
            Ok((own, _)) => own
                .task_name
                .filter(|task| by.caller.sees(Some(task.as_str()))),
            Err(StoreError::NotFound { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        shown.push(stale.base(&row, base, built_by));
    }
    if let Some(task) = row.task_name.as_deref().filter(|_| row.newest) {
        let proposals = tags::proposals(&api.app, |name| name == Some(task)).await?;
        for base in &mut shown {
            base.newer = tags::newer_than(&proposals, &base.name).pop();
        }
    }
    let rebuild = match row.task_name.as_deref() {
        Some(task) if row.newest && stale.is(&name) => {
            cascades::rebuild(&api, &by.caller, task).await?
        }
        _ => None,
    };
    let builds = store.image_builds(&name, HISTORY).await?;
    Ok(Json(ImageDetail {
        policy: stale.policy(&row),
        bases: shown,
        rebuild,
        history: builds
            .into_iter()
            .filter(|build| by.caller.sees(build.task_name.as_deref()))
            .map(|build| ImageBuild {
                digest: build.digest,
                run: build.run,
                task: build.task_name,
                built_at: timestamp(build.built_at),
            })
            .collect(),
        image: to_api(row, &stale),
    }))
}

/// What stands on what.
#[utoipa::path(get, path = "/images/tree", tag = "images", params(TreeOf), security(("token" = ["read"])), responses(
    (status = OK, body = Page<ImageTree>),
    (status = NOT_FOUND, body = Problem, description = "Nothing is known of the root."),
))]
async fn tree(
    by: By<auth::Read>,
    State(api): State<Api>,
    Query(asked): Query<TreeOf>,
) -> Result<Json<Page<ImageTree>>, ApiError> {
    let root = asked.root.as_deref().map(full_name).transpose()?;
    let standing = Standing::read(&api.app, |task| by.caller.sees(task)).await?;
    if let Some(root) = root.as_deref().filter(|root| !standing.knows(root)) {
        return Err(ApiError::not_found(format!(
            "no image that is known stands on `{root}`"
        )));
    }
    let stale = Stale::read(&api.app).await?;
    Ok(Json(Page {
        items: standing.trees(root.as_deref(), asked.all, &stale),
        next: None,
    }))
}

#[cfg(test)]
#[path = "images_tests.rs"]
mod tests;
