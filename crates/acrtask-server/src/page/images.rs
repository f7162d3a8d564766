//! List of images, and one image.

use acrtask_api::image::{BaseEffect, BasePolicy, BlastRadius, Image, ImageBase, ImageDetail};
use acrtask_page::{
    DependentRow, Foreign, ImageBaseRow, ImageBuildRow, ImageListRow, ImagePage, ImagesPage,
    Section, StateBadge,
};
use axum::{
    extract::{Path, Query, State},
    http::StatusCode,
    response::Response,
};
use serde::Deserialize;

use super::{PageError, Site, filled, render, run_parts::role_name, session::Visitor};
use crate::{
    api::{
        ApiError, bases,
        images::{self, ListImages},
    },
    auth::{self, Caller},
    bases::staleness::Staleness,
};

/// Number of images per page.
const PAGE: u32 = 100;
/// Most dependents on a page.
const DEPENDENTS: usize = 60;

/// Filters and position of the list, as in the URL.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ListQuery {
    prefix: Option<String>,
    stale: Option<String>,
    after: Option<String>,
}

/// Lists images.
pub(super) async fn list(
    by: Visitor<auth::Read>,
    State(site): State<Site>,
    Query(query): Query<ListQuery>,
) -> Result<Response, PageError> {
    let prefix = filled(query.prefix);
    let stale = query.stale.as_deref() == Some("1");
    let after = filled(query.after);
    let input = ListImages {
        prefix: prefix.clone(),
        stale,
        cursor: after.clone(),
        limit: Some(PAGE),
        ..ListImages::default()
    };
    let staleness = Staleness::read(site.app()).await?;
    let page = images::load_page(&site.api, &by.caller, input, &staleness).await?;
    render(&ImagesPage {
        frame: by.frame("Images", Section::Images),
        prefix,
        stale,
        images: page
            .items
            .into_iter()
            .map(|image| image_row(&site, image))
            .collect(),
        next: page.next,
        is_continued: after.is_some(),
    })
}

fn freshness(image: &Image) -> StateBadge {
    if !image.newest {
        StateBadge::neutral("replaced")
    } else if image.stale.is_empty() {
        StateBadge::good("fresh")
    } else {
        StateBadge::warning("stale")
    }
}

fn image_row(site: &Site, image: Image) -> ImageListRow {
    ImageListRow {
        state: freshness(&image),
        changed: image
            .stale
            .iter()
            .map(|base| Foreign::line(&base.reference))
            .collect(),
        name: image.name,
        task: image.task,
        run: image.run.to_string(),
        digest: image.digest.to_string(),
        built: site.moment(image.built_at),
    }
}

/// Shows an image.
pub(super) async fn show(
    by: Visitor<auth::Read>,
    State(site): State<Site>,
    Path(name): Path<String>,
) -> Result<Response, PageError> {
    let detail = images::load_detail(&site.api, &by.caller, &name).await?;
    let (dependents, more_dependents) =
        load_dependents(&site, &by.caller, &detail.image.name).await?;
    let image = &detail.image;
    let repository = image.name.rsplit_once(':');
    let repository = repository.map_or(image.name.as_str(), |(repository, _)| repository);
    render(&ImagePage {
        frame: by.frame(&format!("Image {}", image.name), Section::Images),
        name: Foreign::line(&image.name),
        state: freshness(image),
        sentence: Foreign::line(describe(&detail)),
        digest: image.digest.to_string(),
        tag: Foreign::line(&image.name).text(),
        pull: Foreign::line(format!("{repository}@{}", image.digest)).text(),
        task: image.task.clone(),
        run: image.run.to_string(),
        built: site.moment(image.built_at),
        platforms: Foreign::line(image.platforms.join(", ")),
        policy: match detail.policy {
            BasePolicy::Runtime => "runtime bases",
            BasePolicy::All => "all bases",
            BasePolicy::None => "none",
        },
        cascade: detail.rebuild.as_ref().and_then(|rebuild| rebuild.cascade),
        bases: detail.bases.iter().map(base_row).collect(),
        dependents,
        more_dependents,
        history: detail
            .history
            .iter()
            .map(|build| ImageBuildRow {
                run: build.run.to_string(),
                digest: build.digest.to_string(),
                built: site.moment(build.built_at),
            })
            .collect(),
    })
}

/// Describes the freshness of an image in one sentence.
fn describe(detail: &ImageDetail) -> String {
    let image = &detail.image;
    if !image.newest {
        return "A later push of its task did not include this image.".to_owned();
    }
    let names: Vec<&str> = image
        .stale
        .iter()
        .map(|base| base.reference.as_str())
        .collect();
    let changed = match names.as_slice() {
        [] => return "The image is fresh: all bases that count have the same digests.".to_owned(),
        [one] => format!("The image is stale: its base {one} has a new digest."),
        many => format!(
            "The image is stale: its bases {} have new digests.",
            many.join(", ")
        ),
    };
    let rebuild = detail.rebuild.as_ref();
    let reason = rebuild.and_then(|rebuild| rebuild.reason.as_deref());
    match (reason, rebuild.and_then(|rebuild| rebuild.state)) {
        (Some(reason), _) => format!("{changed} Rebuild: {reason}."),
        (None, Some(state)) => format!("{changed} Rebuild: {}.", state.as_str()),
        (None, None) => format!("{changed} No cascade has handled it yet."),
    }
}

fn base_row(base: &ImageBase) -> ImageBaseRow {
    let state = match base.effect {
        BaseEffect::WouldRebuild => StateBadge::good("fresh"),
        BaseEffect::Stale => StateBadge::warning("changed"),
        BaseEffect::OtherPlatform => StateBadge::neutral("changed for other platforms"),
        BaseEffect::Ignored => StateBadge::neutral("ignored"),
        BaseEffect::Pinned => StateBadge::neutral("pinned"),
        BaseEffect::NoTask => StateBadge::neutral("no task"),
    };
    let current = base.current_digest.as_ref();
    ImageBaseRow {
        role: role_name(base.role),
        state,
        digest: base.digest.to_string(),
        current: current
            .filter(|digest| **digest != base.digest)
            .map(ToString::to_string),
        built_by: base.built_by.clone(),
        is_watched: current.is_some() && base.effect != BaseEffect::Pinned,
        name: base.name.clone(),
    }
}

/// Returns the nearest dependents of a base that the caller may see, and the number of the others.
pub(super) async fn load_dependents(
    site: &Site,
    caller: &Caller,
    base: &str,
) -> Result<(Vec<DependentRow>, usize), ApiError> {
    let radius = match bases::load_blast_radius(&site.api, caller, base).await {
        Ok(radius) => radius,
        Err(error) if error.status() == StatusCode::NOT_FOUND => BlastRadius {
            base: base.to_owned(),
            images: Vec::new(),
        },
        Err(error) => return Err(error),
    };
    let more = radius.images.len().saturating_sub(DEPENDENTS);
    let shown = radius.images.into_iter().take(DEPENDENTS);
    let rows = shown.map(|image| DependentRow {
        name: image.name,
        task: image.task,
        distance: image.distance,
        rebuilt: image.rebuilt,
    });
    Ok((rows.collect(), more))
}
