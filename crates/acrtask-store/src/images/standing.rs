//! What the result of a run says of its images: their full names, and what each was built from. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use acrtask_api::run::{ImageResult, RunResult};
use acrtask_model::{
    Digest, ImageRef, StepId,
    events::{BaseRole, Evidence},
};

use super::ImageBaseRow;

/// What an image was built from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Used {
    pub(super) image: ImageRef,
    pub(super) digest: Digest,
    pub(super) role: BaseRole,
    pub(super) evidence: Evidence,
    /// Empty where they are not known.
    pub(super) platforms: Vec<String>,
}

impl Used {
    /// It was used once more. What is not known of one use is not known of all.
    fn also_for(&mut self, platforms: &[String]) {
        if platforms.is_empty() {
            self.platforms.clear();
        } else if !self.platforms.is_empty() {
            self.platforms.extend_from_slice(platforms);
            self.platforms.sort();
            self.platforms.dedup();
        }
    }
}

/// The bases of an image that a run pushed: those of the step that built it, and the images that the run's containers
/// were made of. Of a step that is not known, those of all steps.
pub(super) fn bases_of(result: &RunResult, image: &ImageResult) -> Vec<Used> {
    let own: HashMap<&str, &StepId> = result
        .built
        .iter()
        .flat_map(|built| built.names.iter().map(|name| (name.as_str(), &built.step)))
        .collect();
    let pushed: BTreeSet<&str> = result.images.iter().map(|one| one.name.as_str()).collect();
    let step = own.get(image.name.as_str()).copied().or_else(|| {
        let same = result
            .built
            .iter()
            .find(|built| built.digest == image.digest);
        same.map(|built| &built.step)
    });
    let mut steps: Vec<(&StepId, bool)> = match step {
        Some(step) => vec![(step, true)],
        None => {
            let all: BTreeSet<&StepId> = result.bases.iter().map(|base| &base.step).collect();
            all.into_iter().map(|step| (step, true)).collect()
        }
    };
    let mut seen: BTreeSet<(&StepId, bool)> = steps.iter().copied().collect();
    let mut found: Vec<Used> = Vec::new();
    let ran = |role: BaseRole| role == BaseRole::Ran;
    let mut take = |base: &acrtask_api::run::BaseResult, role: BaseRole| {
        let Ok(name) = base.name.parse::<ImageRef>() else {
            tracing::debug!(
                name = base.name,
                "a base whose name is no reference is passed over"
            );
            return;
        };
        let used = Used {
            image: name.or_latest(),
            digest: base.digest.clone(),
            role,
            evidence: base.evidence,
            platforms: base.platforms.clone(),
        };
        let same = |known: &&mut Used| {
            (&known.image, &known.digest, known.role) == (&used.image, &used.digest, used.role)
        };
        match found.iter_mut().find(same) {
            Some(known) => known.also_for(&used.platforms),
            None => found.push(used),
        }
    };
    while let Some((step, stands_on)) = steps.pop() {
        for base in &result.bases {
            if base.step != *step || ran(base.role) {
                continue;
            }
            let below = stands_on && base.role == BaseRole::Runtime;
            let role = if base.role == BaseRole::Runtime && !stands_on {
                BaseRole::BuildTime
            } else {
                base.role
            };
            match own.get(base.name.as_str()) {
                Some(other) if *other != step => {
                    if seen.insert((other, below)) {
                        steps.push((other, below));
                    }
                }
                Some(_) => {}
                None => take(base, role),
            }
        }
    }
    for base in &result.bases {
        let name = base.name.as_str();
        if ran(base.role) && !own.contains_key(name) && !pushed.contains(name) {
            take(base, base.role);
        }
    }
    found
}

/// What a run pushed by its full names.
pub(super) fn by_name(result: &RunResult) -> BTreeMap<String, &ImageResult> {
    let mut images = BTreeMap::new();
    for image in &result.images {
        if let Ok(name) = image.name.parse::<ImageRef>() {
            images.insert(name.or_latest().to_string(), image);
        }
    }
    images
}

/// What the image that a run pushed under this full name was built from.
pub(crate) fn bases_under(result: &RunResult, name: &str) -> Vec<ImageBaseRow> {
    let images = by_name(result);
    let Some(image) = images.get(name) else {
        return Vec::new();
    };
    bases_of(result, image)
        .into_iter()
        .map(|used| ImageBaseRow {
            name: used.image.to_string(),
            digest: used.digest,
            role: used.role,
            evidence: used.evidence,
            pinned: used.image.digest().is_some(),
            platforms: used.platforms,
        })
        .collect()
}
