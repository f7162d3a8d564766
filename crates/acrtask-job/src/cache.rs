//! The layer cache that the runs of one task share in the registry, beside each image: `IMAGE:cache_<name>`.

use acrtask_api::spec::SharedCache;
use acrtask_model::ImageRef;
use acrtask_spec::plan::{Plan, StepCache, StepKind};

/// Longest tag, in characters.
const LONGEST_TAG: usize = 128;
const PREFIX: &str = "cache_";

/// Gives the shared cache to each build that has a tag and no cache of its own.
pub(crate) fn share(plan: &mut Plan, shared: &SharedCache) {
    let (name, export) = match shared {
        SharedCache::Off => return,
        SharedCache::ReadWrite { name } => (name, true),
        SharedCache::ReadOnly { name } => (name, false),
    };
    for step in &mut plan.steps {
        let StepKind::Build(build) = &mut step.kind else {
            continue;
        };
        let Ok(line) = &build.line else { continue };
        if build.cache.is_some() || !line.cache_from.is_empty() || !line.cache_to.is_empty() {
            continue;
        }
        let first = line
            .tags
            .first()
            .and_then(|tag| tag.parse::<ImageRef>().ok());
        // A tag that is no reference is refused where the step is.
        build.cache = first
            .and_then(|image| image.with_tag(&tag(name)).ok())
            .map(|reference| StepCache { reference, export });
    }
}

/// `name` as a tag may have it.
fn tag(name: &str) -> String {
    let clean = name.chars().map(|c| match c {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '_' | '.' | '-' => c,
        _ => '-',
    });
    PREFIX.chars().chain(clean).take(LONGEST_TAG).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_name_is_a_tag(name in ".{0,300}") {
            let image: ImageRef = "reg.io/app:1".parse().unwrap();
            let cache = image.with_tag(&tag(&name)).unwrap();
            prop_assert_eq!(cache.name(), image.name());
            prop_assert!(cache.to_string().parse::<ImageRef>().is_ok());
        }
    }

    #[test]
    fn a_plain_name_stays() {
        assert_eq!(tag("nightly_build.2"), "cache_nightly_build.2");
    }
}
