//! What a runner says, as it may be written down.

use std::collections::{BTreeMap, HashMap};

use acrtask_proto::runner::Hello;
use acrtask_store::{DEFAULT_POOL, HelloFacts, RunnerRow};

/// The longest reason that is kept, in bytes.
const REASON_LIMIT: usize = 4096;
/// Most platforms, labels and features of a runner.
const MOST_FACTS: usize = 256;
/// Most slots of a runner.
pub(crate) const MOST_SLOTS: u32 = 4096;

/// Without the one character that PostgreSQL does not store.
pub(super) fn printable(text: String) -> String {
    if text.contains('\0') {
        text.replace('\0', "\u{fffd}")
    } else {
        text
    }
}

/// At most as much of a reason as is kept.
pub(super) fn cut(mut reason: String) -> String {
    if reason.len() > REASON_LIMIT {
        reason.truncate(reason.floor_char_boundary(REASON_LIMIT));
        reason.push('\u{2026}');
    }
    reason
}

/// What the database holds of a number of bytes.
pub(super) fn bytes(count: u64) -> u64 {
    count.min(i64::MAX.unsigned_abs())
}

/// Returns what a runner is. Its registration fixes the pool, the labels and the slots: a runner that says more is refused.
pub(super) fn facts(runner: &RunnerRow, hello: &Hello) -> Result<HelloFacts, String> {
    if hello.platforms.len() > MOST_FACTS
        || hello.labels.len() > MOST_FACTS
        || hello.features.len() > MOST_FACTS
    {
        return Err(format!(
            "a runner has at most {MOST_FACTS} platforms, labels and features"
        ));
    }
    if hello.slots > MOST_SLOTS {
        return Err(format!("a runner has at most {MOST_SLOTS} slots"));
    }
    let pool = runner.token_pool.as_deref().unwrap_or(DEFAULT_POOL);
    if !hello.pool.is_empty() && hello.pool != pool {
        return Err(format!(
            "this runner is registered for the pool `{pool}`, and not for `{0}`; leave out --pool, or register it \
             with a token of `acrtask runner token --pool {0}`",
            hello.pool.escape_debug()
        ));
    }
    let mut beyond = hello.labels.iter();
    if let Some((name, value)) =
        beyond.find(|(name, value)| runner.token_labels.get(*name) != Some(*value))
    {
        return Err(format!(
            "this runner is not registered for the label {0}={1}; leave out --label, or register it with a token of \
             `acrtask runner token --label {0}={1}`",
            name.escape_debug(),
            value.escape_debug()
        ));
    }
    if let Some(max) = runner.max_slots.filter(|max| hello.slots > *max) {
        return Err(format!(
            "this runner is registered for at most {max} slots, and has {0}; give --slots {max}, or register it with \
             a token of `acrtask runner token --max-slots {0}`",
            hello.slots
        ));
    }
    let texts = |map: &HashMap<String, String>| -> BTreeMap<String, String> {
        map.iter()
            .map(|(name, value)| (printable(name.clone()), printable(value.clone())))
            .collect()
    };
    Ok(HelloFacts {
        pool: pool.to_owned(),
        labels: runner.token_labels.clone(),
        platforms: hello.platforms.iter().cloned().map(printable).collect(),
        slots: hello.slots,
        features: texts(&hello.features),
        version: printable(hello.version.clone()),
        free_disk: bytes(hello.free_disk),
    })
}
