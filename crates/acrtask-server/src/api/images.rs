//! Images that runs pushed: list, details with their bases, and dependency trees. A `/` in a name
//! is `%2F` in a path.

use acrtask_api::{
    admin::Problem,
    image::{Image, ImageBuild, ImageDetail, ImageTree},
    registry_record::RegistryRecord,
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
    auth::{self, Authenticated, Caller},
    bases::{
        staleness::{ImageGraph, Staleness},
        tags,
    },
    registry_record::read_record,
};

/// Images that one query reads if not all of them are shown.
const CHUNK: u32 = 500;
/// Most previous builds of an image in a response.
const HISTORY: u32 = 20;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(tree))
        .routes(routes!(show))
        .routes(routes!(show_record))
}

/// Filter and page of a list of images.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListImages {
    /// Lists only names with this prefix.
    pub(crate) prefix: Option<String>,
    /// Lists only images of this task.
    pub(crate) task: Option<String>,
    /// Lists only images of the last run of their task.
    pub(crate) newest: bool,
    /// Lists only stale images.
    pub(crate) stale: bool,
    /// Length of the page: 1 to 200, 50 by default.
    #[param(minimum = 1, maximum = 200)]
    pub(crate) limit: Option<u32>,
    /// `next` of the previous page.
    pub(crate) cursor: Option<String>,
}

/// Root and edges of a dependency tree.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct TreeOf {
    /// Base at the root. By default all bases that no task builds.
    root: Option<String>,
    /// Includes all roles of bases: build stages, frontends and images of commands. By default only
    /// runtime bases.
    all: bool,
}

/// Returns the full name of an image: with registry and tag, without digest.
pub(crate) fn full_name(text: &str) -> Result<String, ApiError> {
    let reference: ImageRef =
        text.parse()
            .map_err(|error: acrtask_model::reference::ReferenceError| {
                ApiError::unprocessable(error.to_string())
            })?;
    if reference.digest().is_none() {
        return Ok(reference.or_latest().to_string());
    }
    let tag = reference.tag().ok_or_else(|| {
        ApiError::unprocessable(format!(
            "`{text}` has a digest, which never changes: write a tag"
        ))
        .help("write REPOSITORY:TAG")
    })?;
    Ok(format!("{}:{tag}", reference.name()))
}

pub(super) fn to_api(row: ImageRow, stale: &Staleness) -> Image {
    Image {
        stale: if row.newest {
            stale.changed_bases(&row.name)
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

/// Lists images by name.
#[utoipa::path(get, path = "/images", tag = "images", params(ListImages), security(("token" = ["read"])), responses(
    (status = OK, body = Page<Image>),
    (status = BAD_REQUEST, body = Problem),
))]
async fn list(
    by: Authenticated<auth::Read>,
    State(api): State<Api>,
    Query(input): Query<ListImages>,
) -> Result<Json<Page<Image>>, ApiError> {
    let stale = Staleness::read(&api.app).await?;
    load_page(&api, &by.caller, input, &stale).await.map(Json)
}

/// Returns a page of the images that the caller may see.
pub(crate) async fn load_page(
    api: &Api,
    caller: &Caller,
    input: ListImages,
    stale: &Staleness,
) -> Result<Page<Image>, ApiError> {
    let limit = runs::page_limit(input.limit)? as usize;
    let store = &api.app.store;
    let mut items = Vec::new();
    let mut after = input.cursor;
    loop {
        // One entry more than the page shows that there is a next page.
        let chunk = if input.stale {
            CHUNK
        } else {
            u32::try_from(limit + 1).unwrap_or(CHUNK)
        };
        let rows = store
            .images(ImageFilter {
                prefix: input.prefix.clone(),
                task: input.task.clone(),
                pattern: caller.tasks.clone(),
                newest: input.newest || input.stale,
                after: after.take(),
                limit: chunk,
            })
            .await?;
        let full = rows.len() >= chunk as usize;
        after = rows.last().map(|row| row.name.clone());
        let shown = rows
            .into_iter()
            .filter(|row| !input.stale || stale.is_stale(&row.name));
        items.extend(shown.map(|row| to_api(row, stale)));
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
    Ok(Page { items, next })
}

/// Returns an image with its bases, their current digests, and the reasons for its next rebuild.
#[utoipa::path(get, path = "/images/{image}", tag = "images",
    params(("image" = String, Path, description = "Registry, repository and tag.")),
    security(("token" = ["read"])), responses((status = OK, body = ImageDetail), (status = NOT_FOUND, body = Problem)))]
async fn show(
    by: Authenticated<auth::Read>,
    State(api): State<Api>,
    Path(image): Path<String>,
) -> Result<Json<ImageDetail>, ApiError> {
    load_detail(&api, &by.caller, &image).await.map(Json)
}

/// Returns an image that the caller may see. Hidden images are reported as missing.
pub(crate) async fn load_detail(
    api: &Api,
    caller: &Caller,
    image: &str,
) -> Result<ImageDetail, ApiError> {
    let name = full_name(image)?;
    let missing = || {
        ApiError::not_found(format!("no run has pushed the image `{name}`"))
            .help("list all known images with `acrtask image list`")
    };
    let store = &api.app.store;
    let (row, bases) = match store.image(&name).await {
        Err(StoreError::NotFound { .. }) => return Err(missing()),
        found => found?,
    };
    if !caller.may_see(row.task_name.as_deref()) {
        return Err(missing());
    }
    let stale = Staleness::read(&api.app).await?;
    let mut shown = Vec::new();
    for base in bases {
        let built_by = match store.image(&base.name).await {
            Ok((own, _)) => own
                .task_name
                .filter(|task| caller.may_see(Some(task.as_str()))),
            Err(StoreError::NotFound { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        shown.push(stale.to_image_base(&row, base, built_by));
    }
    if let Some(task) = row.task_name.as_deref().filter(|_| row.newest) {
        let proposals = tags::list_proposals(&api.app, |name| name == Some(task)).await?;
        for base in &mut shown {
            base.newer = tags::newer_tags(&proposals, &base.name).pop();
        }
    }
    let rebuild = match row.task_name.as_deref() {
        Some(task) if row.newest && stale.is_stale(&name) => {
            cascades::find_rebuild(api, caller, task).await?
        }
        _ => None,
    };
    let builds = store.image_builds(&name, HISTORY).await?;
    Ok(ImageDetail {
        policy: stale.policy_of(&row),
        bases: shown,
        rebuild,
        history: builds
            .into_iter()
            .filter(|build| caller.may_see(build.task_name.as_deref()))
            .map(|build| ImageBuild {
                digest: build.digest,
                run: build.run,
                task: build.task_name,
                built_at: timestamp(build.built_at),
            })
            .collect(),
        image: to_api(row, &stale),
    })
}

/// Returns the record of a repository: when its tags were set, and which of its manifests images
/// need. Purges keep these manifests.
#[utoipa::path(get, path = "/images/{image}/record", tag = "images",
    params(("image" = String, Path, description = "Registry and repository. A tag is ignored.")),
    security(("token" = ["read"])), responses(
        (status = OK, body = RegistryRecord),
        (status = FORBIDDEN, body = Problem, description = "The token is limited to tasks."),
    ))]
async fn show_record(
    by: Authenticated<auth::Read>,
    State(api): State<Api>,
    Path(image): Path<String>,
) -> Result<Json<RegistryRecord>, ApiError> {
    if by.caller.tasks.is_some() {
        return Err(ApiError::forbidden(
            "this token is limited to tasks, but a record covers the images of all tasks",
        ));
    }
    let name = full_name(&image)?;
    let repository = name.parse::<ImageRef>().map(|image| image.name());
    let repository = repository.map_err(|error| ApiError::invalid(error.to_string()))?;
    Ok(Json(read_record(&api.app, &repository).await?))
}

/// Returns trees of the dependencies between images.
#[utoipa::path(get, path = "/images/tree", tag = "images", params(TreeOf), security(("token" = ["read"])), responses(
    (status = OK, body = Page<ImageTree>),
    (status = NOT_FOUND, body = Problem, description = "No known image depends on the root."),
))]
async fn tree(
    by: Authenticated<auth::Read>,
    State(api): State<Api>,
    Query(input): Query<TreeOf>,
) -> Result<Json<Page<ImageTree>>, ApiError> {
    let root = input.root.as_deref().map(full_name).transpose()?;
    let graph = ImageGraph::read(&api.app, |task| by.caller.may_see(task)).await?;
    if let Some(root) = root.as_deref().filter(|root| !graph.contains(root)) {
        return Err(ApiError::not_found(format!(
            "no known image depends on `{root}`"
        )));
    }
    let stale = Staleness::read(&api.app).await?;
    Ok(Json(Page {
        items: graph.build_trees(root.as_deref(), input.all, &stale),
        next: None,
    }))
}

#[cfg(test)]
#[path = "images_tests.rs"]
mod tests;
