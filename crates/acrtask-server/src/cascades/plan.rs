//! Plans of cascades for preview.

use std::collections::BTreeMap;

use acrtask_cascade::{plan as planner, show::PlanView};
use acrtask_model::{Digest, ImageRef};
use acrtask_store::StoreError;

use super::{facts, settings};
use crate::App;

/// Reason why a plan cannot be computed.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The request is invalid, explained in one sentence.
    #[error("{0}")]
    Invalid(String),
    /// The registry does not return the digest of the tag.
    #[error("{0}")]
    Unreachable(String),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Plans what a base would cause to be rebuilt with `digest`. `None`: with the current digest of
/// its tag.
///
/// Without a base, or with `all`, plans everything that is stale.
///
/// # Errors
/// The reference has no tag, the registry does not respond, or the database failed.
pub async fn plan(
    app: &App,
    reference: Option<ImageRef>,
    digest: Option<Digest>,
    all: bool,
) -> Result<PlanView, PlanError> {
    if reference.is_none() && digest.is_some() {
        return Err(PlanError::Invalid(
            "a digest needs its base: add the base as REPOSITORY:TAG".into(),
        ));
    }
    let graph = facts::read_graph(app).await?;
    let parallel = settings::read_settings(app).await?.parallel as usize;
    let mut changes = BTreeMap::new();
    if let Some(reference) = reference {
        let (tag, named) = split_reference(reference)?;
        let digest = match digest.or(named) {
            Some(digest) => digest,
            // The digest of the last poll may be minutes old, but is better than an error.
            None => match app.poller.resolve_tag(app, &tag).await? {
                Ok(digest) => digest,
                Err(error) => graph
                    .image(&tag)
                    .and_then(|image| graph.digest_now(image))
                    .ok_or_else(|| {
                        PlanError::Unreachable(format!(
                            "cannot resolve {tag} ({error}); give a digest: {tag}@sha256:..."
                        ))
                    })?,
            },
        };
        changes.insert(tag, digest);
    }
    let options = planner::PlanOptions {
        everything: all || changes.is_empty(),
        ..planner::PlanOptions::default()
    };
    Ok(planner::plan(&graph, &changes, &options).view(parallel))
}

/// Splits a reference into its tag and its digest, if it has one.
fn split_reference(reference: ImageRef) -> Result<(ImageRef, Option<Digest>), PlanError> {
    let Some(digest) = reference.digest().cloned() else {
        return Ok((reference.or_latest(), None));
    };
    let tag = reference.tag().ok_or_else(|| {
        PlanError::Invalid(format!(
            "`{reference}` has a digest but no tag; write the tag to give the digest to: REPOSITORY:TAG@DIGEST"
        ))
    })?;
    let tag = format!("{}:{tag}", reference.name()).parse().map_err(
        |error: acrtask_model::reference::ReferenceError| PlanError::Invalid(error.to_string()),
    )?;
    Ok((tag, Some(digest)))
}
