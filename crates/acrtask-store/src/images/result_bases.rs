//! Images in the result of a run: full names and bases. No I/O.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use acrtask_api::run::{ImageResult, RunResult};
use acrtask_model::{
    Digest, ImageRef, StepId,
    events::{BaseRole, Evidence},
};

use super::ImageBaseRow;

/// A base that was used for an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UsedBase {
    pub(super) image: ImageRef,
    pub(super) digest: Digest,
    pub(super) role: BaseRole,
    pub(super) evidence: Evidence,
    /// Empty: unknown.
    pub(super) platforms: Vec<String>,
}

impl UsedBase {
    /// Adds the platforms of another use. If one use is unknown, all are.
    fn add_platforms(&mut self, platforms: &[String]) {
        if platforms.is_empty() {
            self.platforms.clear();
        } else if !self.platforms.is_empty() {
            self.platforms.extend_from_slice(platforms);
            self.platforms.sort();
            self.platforms.dedup();
        }
    }
}

/// Returns the bases of a pushed image: those of the step that built it, and the images of the
/// run's containers. If the step is unknown, returns the bases of all steps.
pub(super) fn bases_of(result: &RunResult, image: &ImageResult) -> Vec<UsedBase> {
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
    let mut found: Vec<UsedBase> = Vec::new();
    let is_run = |role: BaseRole| role == BaseRole::Cmd;
    let mut add = |base: &acrtask_api::run::BaseResult, role: BaseRole| {
        let Ok(name) = base.name.parse::<ImageRef>() else {
            tracing::debug!(
                name = base.name,
                "ignoring a base whose name is not an image reference"
            );
            return;
        };
        let used = UsedBase {
            image: name.or_latest(),
            digest: base.digest.clone(),
            role,
            evidence: base.evidence,
            platforms: base.platforms.clone(),
        };
        let is_same = |other: &&mut UsedBase| {
            (&other.image, &other.digest, other.role) == (&used.image, &used.digest, used.role)
        };
        match found.iter_mut().find(is_same) {
            Some(other) => other.add_platforms(&used.platforms),
            None => found.push(used),
        }
    };
    while let Some((step, is_runtime)) = steps.pop() {
        for base in &result.bases {
            if base.step != *step || is_run(base.role) {
                continue;
            }
            let below = is_runtime && base.role == BaseRole::Runtime;
            let role = if base.role == BaseRole::Runtime && !is_runtime {
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
                None => add(base, role),
            }
        }
    }
    for base in &result.bases {
        let name = base.name.as_str();
        if is_run(base.role) && !own.contains_key(name) && !pushed.contains(name) {
            add(base, base.role);
        }
    }
    found
}

/// Returns the pushed images of a run by full name.
pub(super) fn images_by_name(result: &RunResult) -> BTreeMap<String, &ImageResult> {
    let mut images = BTreeMap::new();
    for image in &result.images {
        if let Ok(name) = image.name.parse::<ImageRef>() {
            images.insert(name.or_latest().to_string(), image);
        }
    }
    images
}

/// Returns the bases of the image that a run pushed with this full name.
pub(crate) fn bases_of_name(result: &RunResult, name: &str) -> Vec<ImageBaseRow> {
    let images = images_by_name(result);
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
