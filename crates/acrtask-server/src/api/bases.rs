//! Base images: what stands on one.

use acrtask_api::{admin::Problem, image::BlastRadius};
use axum::extract::State;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api, ApiError,
    extract::{Json, Path},
    images::full_name,
};
use crate::{
    auth::{self, By},
    bases::known::{Stale, Standing},
};

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(blast_radius))
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
