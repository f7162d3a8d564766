//! Conversion and validation of the settings of cascades.

use acrtask_api::cascade::{CascadeMode, CascadeSettings};
use acrtask_cascade::cascade::{Mode, QuietHours, Rule, Settings};
use acrtask_store::StoreError;
use jiff::{Timestamp, tz::TimeZone};

use crate::{App, validate::Problems};

/// Maximum of every delay, in seconds: one day.
const MAX_DELAY_SECS: u32 = 24 * 3600;
/// Maximum number of retries.
const MAX_RETRIES: u32 = 20;
/// Maximum absolute value of a priority in the queue.
const MAX_PRIORITY: u32 = 10;

/// Returns the stored settings, or the defaults if none are stored.
///
/// # Errors
/// The database failed, or the stored settings are invalid.
pub async fn read_settings(app: &App) -> Result<CascadeSettings, StoreError> {
    parse(app.store.cascade_settings().await?.as_deref())
}

/// Parses stored settings.
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

/// Converts settings for the time `now`. The UTC offset of quiet hours depends on it.
pub(super) fn settings_at(settings: &CascadeSettings, now: Timestamp) -> Settings {
    let offset_minutes = match TimeZone::get(&settings.timezone) {
        Ok(zone) => zone.to_offset(now).seconds() / 60,
        Err(error) => {
            // The time zone was valid when the settings were stored.
            tracing::warn!(zone = settings.timezone, %error, "unknown time zone of quiet hours; using UTC");
            0
        }
    };
    Settings {
        settle_secs: settings.settle_secs,
        parallel: settings.parallel,
        parallel_total: settings.parallel_total,
        retries: settings.retries,
        retry_delay_secs: settings.retry_delay_secs,
        retry_failed_after_secs: settings.retry_failed_after_secs,
        priority: settings.priority,
        max_deferrals: settings.max_deferrals,
        quiet_hours: settings
            .quiet_hours
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

/// Validates settings. Each problem names its key.
pub(super) fn validate(settings: &CascadeSettings) -> Problems {
    let mut problems = Problems::default();
    if settings.parallel == 0 || settings.parallel_total == Some(0) {
        problems.add("`parallel` and `parallelTotal` must be at least 1; `acrtask cascade pause` stops a cascade from starting runs".to_owned());
    }
    for (key, seconds) in [
        ("settleSecs", settings.settle_secs),
        ("retryDelaySecs", settings.retry_delay_secs),
        ("retryFailedAfterSecs", settings.retry_failed_after_secs),
    ] {
        if seconds > MAX_DELAY_SECS {
            problems.add(format!(
                "`{key}` must be at most {MAX_DELAY_SECS} (one day)"
            ));
        }
    }
    if settings.retries > MAX_RETRIES {
        problems.add(format!("`retries` must be at most {MAX_RETRIES}"));
    }
    if settings.priority.unsigned_abs() > MAX_PRIORITY {
        problems.add(format!(
            "`priority` must be between -{MAX_PRIORITY} and {MAX_PRIORITY}"
        ));
    }
    if TimeZone::get(&settings.timezone).is_err() {
        problems.add_rule(format!(
            "`timezone`: `{}` is not a known time zone; give one like `Europe/Berlin`, or `UTC`",
            settings.timezone
        ));
    }
    for quiet in &settings.quiet_hours {
        if quiet.from == quiet.to {
            problems.add_rule(format!(
                "`quietHours`: hours from {} to {} are empty; `acrtask cascade pause` stops all starts",
                quiet.from, quiet.to
            ));
        }
    }
    for rule in &settings.rules {
        if matches!(&rule.mode, CascadeMode::Canary { first } if first.is_empty()) {
            problems.add(format!(
                "`rules`: the canary of `{}` names no tasks",
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
    fn quiet_hours_follow_the_time_zone() {
        let settings: CascadeSettings = serde_json::from_value(serde_json::json!({
            "timezone": "Europe/Berlin", "quietHours": [{"from": "22:00", "to": "06:00"}]
        }))
        .unwrap();
        let offset =
            |at: &str| settings_at(&settings, at.parse().unwrap()).quiet_hours[0].offset_minutes;
        assert_eq!(offset("2026-01-10T00:00:00Z"), 60);
        assert_eq!(offset("2026-07-10T00:00:00Z"), 120);
        assert!(validate(&settings).is_empty());
    }

    #[test]
    fn invalid_settings_are_reported_with_their_keys() {
        let settings: CascadeSettings = serde_json::from_value(serde_json::json!({
            "parallel": 0, "settleSecs": 100_000, "priority": 11, "timezone": "Mars",
            "quietHours": [{"from": "22:00", "to": "22:00"}],
            "rules": [{"tasks": "a", "mode": {"canary": {"first": []}}}]
        }))
        .unwrap();
        let problems = validate(&settings);
        assert!(problems.has_wrong_form());
        let problems = problems.to_string();
        let keys = [
            "parallel",
            "settleSecs",
            "priority",
            "timezone",
            "quietHours",
            "rules",
        ];
        for key in keys {
            assert!(problems.contains(&format!("`{key}")), "{key}: {problems}");
        }
    }
}
