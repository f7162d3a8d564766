//! Checks and cleaning of the values that runners report.

use std::collections::{BTreeMap, HashMap};

use acrtask_proto::runner::Hello;
use acrtask_store::{DEFAULT_POOL, RunnerHello, RunnerRow};

/// Maximum length of a stored reason, in bytes.
const REASON_LIMIT: usize = 4096;
/// Maximum number of platforms, labels and features of a runner, each.
const MAX_FACTS: usize = 256;
/// Maximum number of slots of a runner.
pub(crate) const MAX_SLOTS: u32 = 4096;

/// Replaces NUL, the only character that PostgreSQL does not store.
pub(super) fn replace_nul(text: String) -> String {
    if text.contains('\0') {
        text.replace('\0', "\u{fffd}")
    } else {
        text
    }
}

/// Truncates a reason to the length that is stored.
pub(super) fn truncate_reason(mut reason: String) -> String {
    if reason.len() > REASON_LIMIT {
        reason.truncate(reason.floor_char_boundary(REASON_LIMIT));
        reason.push('\u{2026}');
    }
    reason
}

/// Clamps a number of bytes to the range of the database.
pub(super) fn clamp_to_i64(count: u64) -> u64 {
    count.min(i64::MAX.unsigned_abs())
}

/// Pool, labels and slots that a registration token allows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowed<'a> {
    /// `None` for the default pool.
    pub(super) pool: Option<&'a str>,
    pub(super) labels: &'a BTreeMap<String, String>,
    /// `None` if the token names no limit.
    pub(super) max_slots: Option<u32>,
}

impl<'a> Allowed<'a> {
    /// Checks the pool, the labels and the slots of a runner, and returns its pool.
    ///
    /// # Errors
    /// The first value that the token does not allow, with the correction.
    pub(super) fn check(
        &self,
        pool: &str,
        labels: &HashMap<String, String>,
        slots: u32,
    ) -> Result<&'a str, String> {
        if slots > MAX_SLOTS {
            return Err(format!("a runner has at most {MAX_SLOTS} slots"));
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

/// Returns the properties of a runner, within the limits of its registration.
pub(super) fn check_hello(runner: &RunnerRow, hello: &Hello) -> Result<RunnerHello, String> {
    if hello.platforms.len() > MAX_FACTS
        || hello.labels.len() > MAX_FACTS
        || hello.features.len() > MAX_FACTS
    {
        return Err(format!(
            "a runner has at most {MAX_FACTS} platforms, labels and features"
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
            .map(|(name, value)| (replace_nul(name.clone()), replace_nul(value.clone())))
            .collect()
    };
    Ok(RunnerHello {
        pool: pool.to_owned(),
        labels: runner.token_labels.clone(),
        platforms: hello.platforms.iter().cloned().map(replace_nul).collect(),
        slots: hello.slots,
        features: texts(&hello.features),
        version: replace_nul(hello.version.clone()),
        free_disk: clamp_to_i64(hello.free_disk),
    })
}
