//! The digests to use for images in a run that repeats another one.

use std::collections::BTreeMap;

use acrtask_model::{Digest, ImageRef};
use acrtask_spec::{Code, Diagnostic, plan::Plan};

/// Adds pins to the plan. Returns a warning for each invalid name, whose tag then decides.
pub(crate) fn apply_pins(plan: &mut Plan, pins: &BTreeMap<String, Digest>) -> Vec<Diagnostic> {
    let mut warnings = Vec::new();
    for (name, digest) in pins {
        match name.parse::<ImageRef>() {
            // A name with its own digest needs no pin.
            Ok(image) if image.digest().is_some() => {}
            Ok(image) => {
                plan.pins.insert(image.or_latest(), digest.clone());
            }
            Err(error) => warnings.push(
                Diagnostic::warning(
                    Code::NotPinned,
                    format!("`{name}` is not pinned to its earlier digest: {error}"),
                )
                .help("its tag decides, as in any other run"),
            ),
        }
    }
    warnings
}
