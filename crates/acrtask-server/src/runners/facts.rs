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

/// Pool, labels and slots that a registration token allows a runner to have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowed<'a> {
    /// `None` for the default pool.
    pub(super) pool: Option<&'a str>,
    pub(super) labels: &'a BTreeMap<String, String>,
    /// `None` if the token names no limit.
    pub(super) max_slots: Option<u32>,
}

impl<'a> Allowed<'a> {
    /// Checks the pool, the labels and the slots that a runner asks for, and returns its pool.
    ///
    /// # Errors
    /// Says what the token does not allow, and what to do instead.
    pub(super) fn check(
        &self,
        pool: &str,
        labels: &HashMap<String, String>,
        slots: u32,
    ) -> Result<&'a str, String> {
        if slots > MOST_SLOTS {
            return Err(format!("a runner has at most {MOST_SLOTS} slots"));
        }
        let own = self.pool.unwrap_or(DEFAULT_POOL);
        if !pool.is_empty() && pool != own {
            return Err(format!(
                "the registration of this runner is for the pool `{own}`, and not for `{0}`; leave out --pool, or \
                 register it with a token of `acrtask runner token --pool {0}`",
                pool.escape_debug()
            ));
        }
        let mut beyond = labels.iter();
        if let Some((name, value)) =
            beyond.find(|(name, value)| self.labels.get(*name) != Some(*value))
        {
            return Err(format!(
                "the registration of this runner is not for the label {0}={1}; leave out --label, or register it with a \
                 token of `acrtask runner token --label {0}={1}`",
                name.escape_debug(),
                value.escape_debug()
            ));
        }
        match self.max_slots.filter(|max| slots > *max) {
            None => Ok(own),
            Some(max) => Err(format!(
                "the registration of this runner is for at most {max} slots, and it has {slots}; give --slots {max}, or \
                 register it with a token of `acrtask runner token --max-slots {slots}`"
            )),
        }
    }
}

/// Returns the facts of a runner, as its registration allows them.
pub(super) fn facts(runner: &RunnerRow, hello: &Hello) -> Result<HelloFacts, String> {
    if hello.platforms.len() > MOST_FACTS
        || hello.labels.len() > MOST_FACTS
        || hello.features.len() > MOST_FACTS
    {
        return Err(format!(
            "a runner has at most {MOST_FACTS} platforms, labels and features"
        ));
    }
    let allowed = Allowed {
        pool: runner.token_pool.as_deref(),
        labels: &runner.token_labels,
        max_slots: runner.max_slots,
    };
    let pool = allowed.check(&hello.pool, &hello.labels, hello.slots)?;
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
