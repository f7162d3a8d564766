//! The layer cache that the runs of one task share in the registry, beside each image:
//! `IMAGE:cache_<name>`.
//!
//! A second build with an image in the same repository uses `cache_<name>_<step>`, so that neither
//! replaces the other's layers.

use std::collections::BTreeSet;

use acrtask_api::spec::SharedCache;
use acrtask_model::{ImageRef, TrustDomain};
use acrtask_spec::plan::{Plan, StepCache, StepKind};

/// Maximum length of a tag, in characters.
const MAX_TAG: usize = 128;
const PREFIX: &str = "cache_";

/// Adds the shared cache to each build that has a tag and no cache of its own. `registry` is the
/// run's and may be empty.
pub(crate) fn add_shared_cache(
    plan: &mut Plan,
    shared: &SharedCache,
    domain: &TrustDomain,
    registry: &str,
) {
    let (name, export) = match shared {
        SharedCache::Off => return,
        SharedCache::ReadWrite { name } => (name, domain.writes_shared_cache()),
        SharedCache::ReadOnly { name } => (name, false),
    };
    let mut taken = BTreeSet::new();
    for step in &mut plan.steps {
        let StepKind::Build(build) = &mut step.kind else {
            continue;
        };
        let Ok(line) = &build.line else { continue };
        if build.cache.is_some() || !line.cache_from.is_empty() || !line.cache_to.is_empty() {
            continue;
        }
        // An invalid tag is refused in its step.
        let Some(image) = cache_image(&line.tags, registry) else {
            continue;
        };
        let suffix = if taken.insert(image.name()) {
            String::new()
        } else {
            format!("_{}", step.id)
        };
        build.cache = image
            .with_tag(&cache_tag(name, &suffix))
            .ok()
            .map(|reference| StepCache { reference, export });
    }
}

/// Returns the image whose repository contains the cache: the first name with a registry, else the
/// first name in the run's registry.
fn cache_image(tags: &[String], registry: &str) -> Option<ImageRef> {
    let has_registry = |tag: &&String| {
        tag.split_once('/')
            .is_some_and(|(host, _)| host.contains(['.', ':']) || host == "localhost")
    };
    let full = match tags.iter().find(has_registry) {
        Some(tag) => tag.clone(),
        None if !registry.is_empty() => format!("{registry}/{}", tags.first()?),
        // `team/app` is on Docker Hub. A bare `app` exists only on this machine.
        None => tags.iter().find(|tag| tag.contains('/'))?.clone(),
    };
    full.parse().ok()
}

/// Returns the tag for `name`, with invalid characters replaced.
fn cache_tag(name: &str, suffix: &str) -> String {
    let clean = |c: char| match c {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '_' | '.' | '-' => c,
        _ => '-',
    };
    let suffix: String = suffix.chars().map(clean).take(MAX_TAG / 2).collect();
    let longest = MAX_TAG - PREFIX.len() - suffix.len();
    let name: String = name.chars().map(clean).take(longest).collect();
    format!("{PREFIX}{name}{suffix}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn cache_tag_of_any_name_is_valid(name in ".{0,300}", suffix in ".{0,300}") {
            let image: ImageRef = "reg.io/app:1".parse().unwrap();
            let cache = image.with_tag(&cache_tag(&name, &suffix)).unwrap();
            prop_assert_eq!(cache.name(), image.name());
            prop_assert!(cache.to_string().parse::<ImageRef>().is_ok());
        }
    }

    #[test]
    fn cache_tag_keeps_a_valid_name() {
        assert_eq!(
            cache_tag("nightly_build.2", "_s"),
            "cache_nightly_build.2_s"
        );
    }

    #[test]
    fn cache_image_is_in_a_repository_with_a_registry() {
        let repository = |tags: &[&str], registry: &str| {
            let tags: Vec<String> = tags.iter().map(|tag| (*tag).to_owned()).collect();
            cache_image(&tags, registry).map(|image| image.name())
        };
        for (tags, registry, expected) in [
            (&["app:1", "reg.io/app:1"][..], "run.io", Some("reg.io/app")),
            (&["app:1"], "run.io", Some("run.io/app")),
            (&["team/app"], "", Some("docker.io/team/app")),
            (&["app:1"], "", None),
            (&[], "run.io", None),
            (&["reg.io/App"], "", None),
        ] {
            assert_eq!(repository(tags, registry).as_deref(), expected, "{tags:?}");
        }
    }
}
