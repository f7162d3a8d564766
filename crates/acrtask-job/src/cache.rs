//! The layer cache that the runs of one task share in the registry, beside each image: `IMAGE:cache_<name>`.
//!
//! A second build with an image in the same repository gets `cache_<name>_<step>`, so that neither takes the other's
//! layers away.

use std::collections::BTreeSet;

use acrtask_api::spec::SharedCache;
use acrtask_model::{ImageRef, TrustDomain};
use acrtask_spec::plan::{Plan, StepCache, StepKind};

/// Longest tag, in characters.
const LONGEST_TAG: usize = 128;
const PREFIX: &str = "cache_";

/// Gives the shared cache to each build that has a tag and no cache of its own. `registry` is the run's; it may be
/// empty.
pub(crate) fn share(plan: &mut Plan, shared: &SharedCache, domain: &TrustDomain, registry: &str) {
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
        // A tag that is no reference is refused where its step is.
        let Some(image) = beside(&line.tags, registry) else {
            continue;
        };
        let suffix = if taken.insert(image.name()) {
            String::new()
        } else {
            format!("_{}", step.id)
        };
        build.cache = image
            .with_tag(&tag(name, &suffix))
            .ok()
            .map(|reference| StepCache { reference, export });
    }
}

/// The image that the cache is kept beside: the first whose name says where it is, else one of the run's registry.
fn beside(tags: &[String], registry: &str) -> Option<ImageRef> {
    let says_where = |tag: &&String| {
        tag.split_once('/')
            .is_some_and(|(host, _)| host.contains(['.', ':']) || host == "localhost")
    };
    let full = match tags.iter().find(says_where) {
        Some(tag) => tag.clone(),
        None if !registry.is_empty() => format!("{registry}/{}", tags.first()?),
        // `team/app` is one of Docker Hub; a bare `app` is nobody's but this machine's.
        None => tags.iter().find(|tag| tag.contains('/'))?.clone(),
    };
    full.parse().ok()
}

/// `name` as a tag may have it.
fn tag(name: &str, suffix: &str) -> String {
    let clean = |c: char| match c {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '_' | '.' | '-' => c,
        _ => '-',
    };
    let suffix: String = suffix.chars().map(clean).take(LONGEST_TAG / 2).collect();
    let longest = LONGEST_TAG - PREFIX.len() - suffix.len();
    let name: String = name.chars().map(clean).take(longest).collect();
    format!("{PREFIX}{name}{suffix}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_name_is_a_tag(name in ".{0,300}", suffix in ".{0,300}") {
            let image: ImageRef = "reg.io/app:1".parse().unwrap();
            let cache = image.with_tag(&tag(&name, &suffix)).unwrap();
            prop_assert_eq!(cache.name(), image.name());
            prop_assert!(cache.to_string().parse::<ImageRef>().is_ok());
        }
    }

    #[test]
    fn a_plain_name_stays() {
        assert_eq!(tag("nightly_build.2", "_s"), "cache_nightly_build.2_s");
    }

    #[test]
    fn the_place_is_one_that_can_be_pushed_to() {
        let place = |tags: &[&str], registry: &str| {
            let tags: Vec<String> = tags.iter().map(|tag| (*tag).to_owned()).collect();
            beside(&tags, registry).map(|image| image.name())
        };
        for (tags, registry, expected) in [
            (&["app:1", "reg.io/app:1"][..], "run.io", Some("reg.io/app")),
            (&["app:1"], "run.io", Some("run.io/app")),
            (&["team/app"], "", Some("docker.io/team/app")),
            (&["app:1"], "", None),
            (&[], "run.io", None),
            (&["reg.io/App"], "", None),
        ] {
            assert_eq!(place(tags, registry).as_deref(), expected, "{tags:?}");
        }
    }
}
