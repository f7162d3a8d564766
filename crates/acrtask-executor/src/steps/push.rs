//! Push steps. Each image is pushed to its registry, whose digest must be the one that was built
//! and tested. A run that stages its images pushes them by digest only and leaves their tags
//! unchanged.

use std::{collections::BTreeMap, time::Duration};

use acrtask_model::{Digest, EventKind, ImageRef, events::Stream};
use acrtask_registry::{ManifestBody, manifest};
use acrtask_spec::plan::PushStep;

use super::wait;
use crate::{
    context::StepContext,
    images::{Origin, OwnImage},
    login_help::error_chain_with_help,
    policy::Attempt,
    upload,
};

/// Number of attempts to push one image.
const ATTEMPTS: u32 = 3;
/// Delay after the first failed attempt. It doubles after each further one.
const FIRST_DELAY: Duration = Duration::from_secs(1);

/// Pushes the images of a step concurrently.
pub(crate) async fn run(ctx: &StepContext, step: &PushStep) -> Attempt {
    let mut images = Vec::new();
    for image in &step.images {
        match image {
            Ok(image) => images.push(image.clone()),
            Err(refusal) => return Attempt::failed(refusal.message.clone()),
        }
    }
    if ctx.run.no_push {
        for image in &images {
            let text = format!("not pushed, as --no-push asks: {image}");
            ctx.output.print_line(Stream::Stderr, &text).await;
        }
        return Attempt::Succeeded;
    }
    let pushes = images.iter().map(|image| push(ctx, image));
    let failures: Vec<String> = futures::future::join_all(pushes)
        .await
        .into_iter()
        .filter_map(Result::err)
        .collect();
    if ctx.cancel.is_cancelled() {
        return Attempt::Stopped;
    }
    if failures.is_empty() {
        Attempt::Succeeded
    } else {
        Attempt::failed(failures.join("; "))
    }
}

/// Pushes one image and then checks the manifest in its registry.
pub(crate) async fn push(ctx: &StepContext, image: &ImageRef) -> Result<Digest, String> {
    let image = image.clone().or_latest();
    let Some(own) = ctx.run.images.find_image(&image) else {
        return Err(format!(
            "the run has no image {image} to push: none of its steps built or pulled it"
        ));
    };
    let mut delay = FIRST_DELAY;
    for attempt in 1..=ATTEMPTS {
        let pushed = tokio::select! {
            pushed = push_once(ctx, &image, &own) => pushed,
            () = ctx.cancel.cancelled() => return Err("the step was stopped".into()),
        };
        let failure = match pushed {
            Ok(digest) => return Ok(digest),
            Err(failure) => failure,
        };
        if attempt == ATTEMPTS || !failure.may_retry {
            return Err(failure.why);
        }
        let text = format!(
            "attempt {attempt} of {ATTEMPTS} failed: {}; another one in {} s",
            failure.why,
            delay.as_secs()
        );
        ctx.output.print_line(Stream::Stderr, &text).await;
        if !wait(delay, &ctx.cancel).await {
            return Err(failure.why);
        }
        delay *= 2;
    }
    unreachable!("the last attempt returns")
}

struct Failure {
    why: String,
    /// Set if another attempt may succeed.
    may_retry: bool,
}

impl Failure {
    fn retryable(why: impl Into<String>) -> Self {
        let why = why.into();
        // A registry that refuses the credentials will refuse them again.
        let refused = ["unauthorized", "denied", "no basic auth credentials"]
            .iter()
            .any(|sign| why.to_lowercase().contains(sign));
        // Only separate words count, because digests may contain these digits.
        let status = why
            .split(|c: char| !c.is_ascii_alphanumeric())
            .any(|word| matches!(word, "401" | "403"));
        let may_retry = !refused && !status;
        Self { why, may_retry }
    }

    fn fatal(why: impl Into<String>) -> Self {
        Self {
            why: why.into(),
            may_retry: false,
        }
    }
}

async fn push_once(ctx: &StepContext, image: &ImageRef, own: &OwnImage) -> Result<Digest, Failure> {
    let run = &ctx.run;
    if !own.pushed {
        ctx.may_push().await.map_err(Failure::fatal)?;
    }
    let text = if run.push_by_digest {
        format!("pushing {image} without its tag")
    } else {
        format!("pushing {image}")
    };
    ctx.output.print_line(Stream::Stderr, &text).await;
    let pushed = if own.pushed {
        own.digest.clone()
    } else if matches!(own.origin, Origin::Builder { .. }) {
        let pushed = run.builder.push_from_cache(ctx, own, image).await;
        pushed.map_err(Failure::retryable)?
    } else {
        let pushed = upload::push_image(ctx, image, own, !run.push_by_digest).await;
        pushed.map_err(Failure::retryable)?
    };
    // The registry's manifest decides.
    let target = if run.push_by_digest {
        image.at(pushed.clone())
    } else {
        image.clone()
    };
    let manifest = run
        .registry()
        .manifest(&target)
        .await
        .map_err(|error| Failure::retryable(error_chain_with_help(&error)))?;
    let digest = manifest.digest.clone();
    if pushed != digest {
        return Err(Failure::fatal(format!(
            "{image} was pushed as {pushed}, but the registry has {digest}: another client pushed the same tag"
        )));
    }
    if !is_built_image(own, &manifest.digest, &manifest.body) {
        return Err(Failure::fatal(format!(
            "the registry has {digest} as {image}, but step {} built {}: the pushed image is not the tested one",
            own.step, own.digest
        )));
    }
    let platforms = match &manifest.body {
        ManifestBody::Index(index) => manifest::platforms(index)
            .into_iter()
            .map(|(platform, digest)| (platform.to_string(), digest))
            .collect(),
        ManifestBody::Image(body) => platform_of(ctx, &target, body, &digest).await,
    };
    report_pushed(ctx, image, &digest, platforms).await;
    Ok(digest)
}

/// Returns the platform of a single image from its configuration. It is only informational and may
/// be unknown.
async fn platform_of(
    ctx: &StepContext,
    image: &ImageRef,
    body: &manifest::Image,
    digest: &Digest,
) -> BTreeMap<String, Digest> {
    let registry = ctx.run.registry();
    match registry.config_platform(image, &body.config.digest).await {
        Ok(platform) => platform
            .map(|platform| (platform.to_string(), digest.clone()))
            .into_iter()
            .collect(),
        Err(error) => {
            tracing::debug!(%image, %error, "could not read the platform of an image");
            BTreeMap::new()
        }
    }
}

/// Reports that an image is in its registry now, under its tag or staged.
pub(crate) async fn report_pushed(
    ctx: &StepContext,
    image: &ImageRef,
    digest: &Digest,
    platforms: BTreeMap<String, Digest>,
) {
    let staged = ctx.run.push_by_digest;
    if staged {
        ctx.run.add_staged(image, digest);
    }
    let text = if staged {
        format!("staged {image} {digest} (no tag yet)")
    } else {
        format!("pushed {image} {digest}")
    };
    ctx.output.print_line(Stream::Stderr, &text).await;
    ctx.run
        .events
        .send(EventKind::ImagePushed {
            step: ctx.step.id.clone(),
            name: image.to_string(),
            digest: digest.clone(),
            platforms,
            tag_deferred: staged,
        })
        .await;
}

/// Returns `true` if the registry's image is the one that was built.
///
/// The digests are usually equal. If the push added the attestation, the digest of the manifest in
/// the index is equal. If the builder knows no manifest, as with the classic store, the digest of
/// the configuration is equal.
fn is_built_image(built: &OwnImage, digest: &Digest, body: &ManifestBody) -> bool {
    if built.digest == *digest {
        return true;
    }
    match body {
        ManifestBody::Index(index) => index
            .manifests
            .iter()
            .any(|entry| entry.is_image() && entry.digest == built.digest),
        ManifestBody::Image(image) => {
            image.config.digest == built.digest
                || built.config.as_ref() == Some(&image.config.digest)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Failure;

    #[test]
    fn push_is_not_retried_after_a_refusal() {
        for (why, may_retry) in [
            ("dial tcp 127.0.0.1:1: connect: connection refused", true),
            (
                "Head \"https://h/v2/a/blobs/sha256:f4c4030ef401\": EOF",
                true,
            ),
            ("unexpected status from PUT request: 403 Forbidden", false),
            ("status 401", false),
            ("denied: requested access to the resource is denied", false),
            ("no basic auth credentials", false),
        ] {
            assert_eq!(Failure::retryable(why).may_retry, may_retry, "{why}");
        }
    }
}
