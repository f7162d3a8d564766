//! What a runner says, as it may be written down.

use std::collections::{BTreeMap, HashMap};

use acrtask_proto::runner::Hello;
use acrtask_store::{HelloFacts, RunnerRow};

/// The longest reason that is kept, in bytes.
const REASON_LIMIT: usize = 4096;
/// Most platforms, labels and features of a runner.
const MOST_FACTS: usize = 256;
/// Most slots of a runner.
const MOST_SLOTS: u32 = 4096;

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

/// What a runner is: what its registration said wins over what it says.
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
    let pool = match (&runner.token_pool, hello.pool.as_str()) {
        (Some(pool), _) => pool.clone(),
        (None, "") => "default".to_owned(),
        (None, pool) => printable(pool.to_owned()),
    };
    let texts = |map: &HashMap<String, String>| -> BTreeMap<String, String> {
        map.iter()
            .map(|(name, value)| (printable(name.clone()), printable(value.clone())))
            .collect()
    };
    let mut labels = texts(&hello.labels);
    labels.extend(runner.token_labels.clone());
    Ok(HelloFacts {
        pool,
        labels,
        platforms: hello.platforms.iter().cloned().map(printable).collect(),
        slots: hello.slots,
        features: texts(&hello.features),
        version: printable(hello.version.clone()),
        free_disk: bytes(hello.free_disk),
    })
}
