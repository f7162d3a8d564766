//! Push steps: every image to its registry, and the digest there is the one that was built and tested. Where the run
//! holds its images back, they go there by that digest alone, and their tags stay as they are.

use std::{collections::BTreeMap, time::Duration};

use acrtask_model::{Digest, EventKind, ImageRef, events::Stream};
use acrtask_registry::{ManifestBody, manifest};
use acrtask_spec::plan::PushStep;

use super::wait;
use crate::{
    context::StepContext,
    images::{Origin, OwnImage},
    login_help::chain_with_help,
    policy::Attempt,
    upload,
};

/// Attempts at one image.
const ATTEMPTS: u32 = 3;
/// The wait after the first failed attempt; doubled after each.
const FIRST_DELAY: Duration = Duration::from_secs(1);

/// Pushes the images of a step, side by side.
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
            ctx.output.say(Stream::Stderr, &text).await;
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

/// Pushes one image and checks what its registry has then.
pub(crate) async fn push(ctx: &StepContext, image: &ImageRef) -> Result<Digest, String> {
    let image = image.clone().or_latest();
    let Some(own) = ctx.run.images.find_ref(&image) else {
        return Err(format!(
            "there is no image {image} to push: no step of this run built or pulled it"
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
        if attempt == ATTEMPTS || !failure.again {
            return Err(failure.why);
        }
        let text = format!(
            "attempt {attempt} of {ATTEMPTS} failed: {}; another one in {} s",
            failure.why,
            delay.as_secs()
        );
        ctx.output.say(Stream::Stderr, &text).await;
        if !wait(delay, &ctx.cancel).await {
            return Err(failure.why);
        }
        delay *= 2;
    }
    unreachable!("the last attempt returns")
}

struct Failure {
    why: String,
    /// Another attempt may help.
    again: bool,
}

impl Failure {
    fn retryable(why: impl Into<String>) -> Self {
        let why = why.into();
        // A registry that refuses the credentials will go on refusing them.
        let refused = ["unauthorized", "denied", "no basic auth credentials"]
            .iter()
            .any(|sign| why.to_lowercase().contains(sign));
        // As words of their own: digests hold these digits too.
        let status = why
            .split(|c: char| !c.is_ascii_alphanumeric())
            .any(|word| matches!(word, "401" | "403"));
        let again = !refused && !status;
        Self { why, again }
    }

    fn fatal(why: impl Into<String>) -> Self {
        Self {
            why: why.into(),
            again: false,
        }
    }
}

async fn push_once(ctx: &StepContext, image: &ImageRef, own: &OwnImage) -> Result<Digest, Failure> {
    let run = &ctx.run;
    if !own.pushed {
        ctx.may_push().await.map_err(Failure::fatal)?;
    }
    let text = if run.hold {
        format!("pushing {image} without its tag")
    } else {
        format!("pushing {image}")
    };
    ctx.output.say(Stream::Stderr, &text).await;
    let pushed = if own.pushed {
        own.digest.clone()
    } else if matches!(own.origin, Origin::Builder { .. }) {
        let pushed = run.builder.push_from_cache(ctx, own, image).await;
        pushed.map_err(Failure::retryable)?
    } else {
        let pushed = upload::push(ctx, image, own, !run.hold).await;
        pushed.map_err(Failure::retryable)?
    };
    // The registry has the last word.
    let there = if run.hold {
        image.at(pushed.clone())
    } else {
        image.clone()
    };
    let manifest = run
        .registry()
        .manifest(&there)
        .await
        .map_err(|error| Failure::retryable(chain_with_help(&error)))?;
    let digest = manifest.digest.clone();
    if pushed != digest {
        return Err(Failure::fatal(format!(
            "{image} was pushed as {pushed}, but the registry has {digest}: somebody else pushed the same tag"
        )));
    }
    if !is_built(own, &manifest.digest, &manifest.body) {
        return Err(Failure::fatal(format!(
            "the registry has {digest} as {image}, but step {} built {}: what was tested is not what was pushed",
            own.step, own.digest
        )));
    }
    let platforms = match &manifest.body {
        ManifestBody::Index(index) => manifest::platforms(index)
            .into_iter()
            .map(|(platform, digest)| (platform.to_string(), digest))
            .collect(),
        ManifestBody::Image(body) => platform_of(ctx, &there, body, &digest).await,
    };
    tell(ctx, image, &digest, platforms).await;
    Ok(digest)
}

/// The platform of a single image, as its configuration names it. Nothing depends on it, so that it may stay unknown.
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
            tracing::debug!(%image, %error, "the platform of an image is not known");
            BTreeMap::new()
        }
    }
}

/// Tells that an image is in its registry now, under its tag or by its digest alone.
pub(crate) async fn tell(
    ctx: &StepContext,
    image: &ImageRef,
    digest: &Digest,
    platforms: BTreeMap<String, Digest>,
) {
    let held = ctx.run.hold;
    if held {
        ctx.run.hold_image(image, digest);
    }
    let text = if held {
        format!("held {image} {digest} (no tag yet)")
    } else {
        format!("pushed {image} {digest}")
    };
    ctx.output.say(Stream::Stderr, &text).await;
    ctx.run
        .events
        .send(EventKind::ImagePushed {
            step: ctx.step.id.clone(),
            name: image.to_string(),
            digest: digest.clone(),
            platforms,
            held,
        })
        .await;
}

/// Whether what a registry has is the image that was built. Its digest says so; where the image was attested
/// only when it was pushed, the digest of the manifest inside; where the builder knows no manifest (the classic
/// store), that of the configuration.
fn is_built(built: &OwnImage, digest: &Digest, body: &ManifestBody) -> bool {
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
    fn what_a_registry_refuses_is_not_tried_again() {
        for (why, again) in [
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
            assert_eq!(Failure::retryable(why).again, again, "{why}");
        }
    }
}
