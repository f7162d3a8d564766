//! The digests that stand for images in a run that repeats another one.

use std::collections::BTreeMap;

use acrtask_model::{Digest, ImageRef};
use acrtask_spec::{Diagnostic, plan::Plan};

/// Gives the plan its pins; a warning for each name that is no reference, whose tag decides then.
pub(crate) fn apply(plan: &mut Plan, pins: &BTreeMap<String, Digest>) -> Vec<Diagnostic> {
    let mut warnings = Vec::new();
    for (name, digest) in pins {
        match name.parse::<ImageRef>() {
            // A name with a digest of its own needs no pin.
            Ok(image) if image.digest().is_some() => {}
            Ok(image) => {
                plan.pins.insert(image.or_latest(), digest.clone());
            }
            Err(error) => warnings.push(
                Diagnostic::warning(
                    "not-pinned",
                    format!("`{name}` is not held to the digest that it had: {error}"),
                )
                .help("its tag decides, as in any other run"),
            ),
        }
    }
    warnings
}
