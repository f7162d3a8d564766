//! How cascades are carried out: what people set, as the state machine takes it.

use acrtask_api::cascade::{CascadeMode, CascadeSettings};
use acrtask_cascade::cascade::{Mode, QuietHours, Rule, Settings};
use acrtask_store::StoreError;
use jiff::{Timestamp, tz::TimeZone};

use crate::{App, submit::Problems};

/// Highest number of seconds of a wait: a day.
const MAX_WAIT: u32 = 24 * 3600;
/// Most retries.
const MAX_RETRIES: u32 = 20;
/// Priorities of the queue go so far from zero.
const MAX_PRIORITY: u32 = 10;

/// The settings as they are stored; those by default where none are.
///
/// # Errors
/// When the database cannot be used, or holds what this program cannot read.
pub async fn settings(app: &App) -> Result<CascadeSettings, StoreError> {
    parse(app.store.cascade_settings().await?.as_deref())
}

/// Settings from what is stored.
pub(super) fn parse(text: Option<&str>) -> Result<CascadeSettings, StoreError> {
    text.map_or_else(
        || Ok(CascadeSettings::default()),
        |text| {
            serde_json::from_str(text).map_err(|error| StoreError::Invalid {
                what: format!("the settings of cascades cannot be read: {error}"),
            })
        },
    )
}

/// As they are at `now`: quiet hours are those of a time zone, whose offset changes.
pub(super) fn at(settings: &CascadeSettings, now: Timestamp) -> Settings {
    let offset_minutes = match TimeZone::get(&settings.time_zone) {
        Ok(zone) => zone.to_offset(now).seconds() / 60,
        Err(error) => {
            // It was known when the settings were stored.
            tracing::warn!(zone = settings.time_zone, %error, "the time zone of quiet hours is not known; UTC is taken");
            0
        }
    };
    Settings {
        settle_secs: settings.settle_secs,
        parallel: settings.parallel,
        parallel_total: settings.parallel_total,
        retries: settings.retries,
        retry_delay_secs: settings.retry_delay_secs,
        heal_secs: settings.heal_secs,
        priority: settings.priority,
        patience: settings.patience,
        quiet: settings
            .quiet
            .iter()
            .map(|quiet| QuietHours {
                from: quiet.from,
                to: quiet.to,
                offset_minutes,
            })
            .collect(),
        rules: settings
            .rules
            .iter()
            .map(|rule| Rule {
                tasks: rule.tasks.clone(),
                mode: match &rule.mode {
                    CascadeMode::Automatic => Mode::Automatic,
                    CascadeMode::Approval => Mode::Approval,
                    CascadeMode::Canary { first } => Mode::Canary {
                        first: first.clone(),
                    },
                },
            })
            .collect(),
    }
}

/// Checks settings. Each problem names its key.
pub(super) fn check(settings: &CascadeSettings) -> Problems {
    let mut problems = Problems::default();
    if settings.parallel == 0 || settings.parallel_total == Some(0) {
        problems.add("`parallel` and `parallelTotal` are at least 1; `acrtask cascade pause` keeps a cascade from starting runs".to_owned());
    }
    for (key, seconds) in [
        ("settleSecs", settings.settle_secs),
        ("retryDelaySecs", settings.retry_delay_secs),
        ("healSecs", settings.heal_secs),
    ] {
        if seconds > MAX_WAIT {
            problems.add(format!("`{key}` is {MAX_WAIT} (a day) at most"));
        }
    }
    if settings.retries > MAX_RETRIES {
        problems.add(format!("`retries` is {MAX_RETRIES} at most"));
    }
    if settings.priority.unsigned_abs() > MAX_PRIORITY {
        problems.add(format!(
            "`priority` goes from -{MAX_PRIORITY} to {MAX_PRIORITY}"
        ));
    }
    if TimeZone::get(&settings.time_zone).is_err() {
        problems.add_rule(format!(
            "`timeZone`: `{}` is no time zone that is known; give one like `Europe/Berlin`, or `UTC`",
            settings.time_zone
        ));
    }
    for quiet in &settings.quiet {
        if quiet.from == quiet.to {
            problems.add_rule(format!(
                "`quiet`: hours from {} to {} are none; `acrtask cascade pause` stops all starts",
                quiet.from, quiet.to
            ));
        }
    }
    for rule in &settings.rules {
        if matches!(&rule.mode, CascadeMode::Canary { first } if first.is_empty()) {
            problems.add(format!(
                "`rules`: the canary of `{}` names no task that goes first",
                rule.tasks
            ));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quiet_hours_follow_the_zone() {
        let settings: CascadeSettings = serde_json::from_value(serde_json::json!({
            "timeZone": "Europe/Berlin", "quiet": [{"from": "22:00", "to": "06:00"}]
        }))
        .unwrap();
        let offset = |at: &str| super::at(&settings, at.parse().unwrap()).quiet[0].offset_minutes;
        assert_eq!(offset("2026-01-10T00:00:00Z"), 60);
        assert_eq!(offset("2026-07-10T00:00:00Z"), 120);
        assert!(check(&settings).is_empty());
    }

    #[test]
    fn what_is_wrong_is_said() {
        let settings: CascadeSettings = serde_json::from_value(serde_json::json!({
            "parallel": 0, "settleSecs": 100_000, "priority": 11, "timeZone": "Mars",
            "quiet": [{"from": "22:00", "to": "22:00"}],
            "rules": [{"tasks": "a", "mode": {"canary": {"first": []}}}]
        }))
        .unwrap();
        let problems = check(&settings);
        assert!(problems.has_wrong_form());
        let problems = problems.to_string();
        let keys = [
            "parallel",
            "settleSecs",
            "priority",
            "timeZone",
            "quiet",
            "rules",
        ];
        for key in keys {
            assert!(problems.contains(&format!("`{key}")), "{key}: {problems}");
        }
    }
}
