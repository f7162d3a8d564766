//! What would be built again, without building it.

use std::collections::BTreeMap;

use acrtask_cascade::{plan as planner, show::PlanView};
use acrtask_model::{Digest, ImageRef};
use acrtask_store::StoreError;

use super::{facts, settings};
use crate::App;

/// Why nothing can be planned.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// What was asked for cannot be, in a sentence.
    #[error("{0}")]
    Invalid(String),
    /// The registry does not say what the tag holds.
    #[error("{0}")]
    Unreachable(String),
    /// The database cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a base makes be built again when it has `digest`; nothing: what its tag holds now. Without a base, and where `all` is
/// asked for, all that is stale now.
///
/// # Errors
/// Where the base names no tag, or its registry does not answer, or the database cannot be used.
pub async fn plan(
    app: &App,
    reference: Option<ImageRef>,
    digest: Option<Digest>,
    all: bool,
) -> Result<PlanView, PlanError> {
    if reference.is_none() && digest.is_some() {
        return Err(PlanError::Invalid(
            "a digest is one of a base: name it too, as REPOSITORY:TAG".into(),
        ));
    }
    let graph = facts::read(app).await?;
    let parallel = settings::settings(app).await?.parallel as usize;
    let mut changes = BTreeMap::new();
    if let Some(reference) = reference {
        let (tag, named) = tag_of(reference)?;
        let digest = match digest.or(named) {
            Some(digest) => digest,
            // What was last seen is of minutes ago, but better than nothing.
            None => match app.watcher.resolve(app, &tag).await? {
                Ok(digest) => digest,
                Err(error) => graph
                    .image(&tag)
                    .and_then(|image| graph.digest_now(image))
                    .ok_or_else(|| {
                        PlanError::Unreachable(format!(
                            "what {tag} holds now cannot be found out ({error}); name a digest: {tag}@sha256:..."
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

/// The tag that a reference names, and its digest if it has one.
fn tag_of(reference: ImageRef) -> Result<(ImageRef, Option<Digest>), PlanError> {
    let Some(digest) = reference.digest().cloned() else {
        return Ok((reference.or_latest(), None));
    };
    let tag = reference.tag().ok_or_else(|| {
        PlanError::Invalid(format!(
            "`{reference}` names a digest, which never moves; name the tag that is to have it: REPOSITORY:TAG@DIGEST"
        ))
    })?;
    let tag = format!("{}:{tag}", reference.name()).parse().map_err(
        |error: acrtask_model::reference::ReferenceError| PlanError::Invalid(error.to_string()),
    )?;
    Ok((tag, Some(digest)))
}
