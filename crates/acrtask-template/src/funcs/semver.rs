//! Versions and constraints, with the rules of Masterminds' `semver` 3.

use std::{cmp::Ordering, fmt, rc::Rc, sync::LazyLock};

use regex::Regex;

use super::{Function, Outcome, functions, text_at, value_at};
use crate::{error::Fault, format::quote, value::Value};

/// A semantic version. `v1.2` is 1.2.0.
#[derive(Debug, Clone)]
pub(crate) struct Version {
    major: u64,
    minor: u64,
    patch: u64,
    prerelease: String,
    metadata: String,
    original: String,
}

impl PartialEq for Version {
    fn eq(&self, other: &Self) -> bool {
        self.compare(other) == Ordering::Equal
            && self.metadata == other.metadata
            && self.original == other.original
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)?;
        if !self.prerelease.is_empty() {
            write!(f, "-{}", self.prerelease)?;
        }
        if !self.metadata.is_empty() {
            write!(f, "+{}", self.metadata)?;
        }
        Ok(())
    }
}

impl Version {
    #[allow(clippy::disallowed_methods, reason = "the pattern is fixed")]
    fn parse(text: &str) -> Result<Self, String> {
        static PATTERN: LazyLock<Regex> = LazyLock::new(|| {
            Regex::new(
                r"^v?([0-9]+)(?:\.([0-9]+))?(?:\.([0-9]+))?(?:-([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?(?:\+([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?$",
            )
            .expect("the pattern is fixed and valid")
        });
        let captures = PATTERN.captures(text).ok_or("invalid semantic version")?;
        let group = |index: usize| captures.get(index).map_or("", |group| group.as_str());
        let number = |index: usize| {
            match group(index) {
            "" => Ok(0),
            digits => digits.parse::<u64>().map_err(|_| {
                format!("error parsing version segment: strconv.ParseUint: parsing {}: value out of range", quote(digits))
            }),
        }
        };
        let prerelease = group(4);
        let leading_zero = |part: &str| {
            part.len() > 1
                && part.starts_with('0')
                && part.bytes().all(|byte| byte.is_ascii_digit())
        };
        if prerelease.split('.').any(leading_zero) {
            return Err("version segment starts with 0".to_owned());
        }
        Ok(Self {
            major: number(1)?,
            minor: number(2)?,
            patch: number(3)?,
            prerelease: prerelease.to_owned(),
            metadata: group(5).to_owned(),
            original: text.to_owned(),
        })
    }

    /// Returns the length of the original text in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.original.len()
    }

    /// Compares versions without their metadata.
    fn compare(&self, other: &Self) -> Ordering {
        (self.major, self.minor, self.patch)
            .cmp(&(other.major, other.minor, other.patch))
            .then_with(|| compare_prereleases(&self.prerelease, &other.prerelease))
    }

    fn release(major: u64, minor: u64, patch: u64, original: &str) -> Value {
        let v = if original.starts_with('v') { "v" } else { "" };
        let original = format!("{v}{major}.{minor}.{patch}");
        let (prerelease, metadata) = (String::new(), String::new());
        Value::Version(Rc::new(Self {
            major,
            minor,
            patch,
            prerelease,
            metadata,
            original,
        }))
    }
}

fn compare_prereleases(left: &str, right: &str) -> Ordering {
    match (left.is_empty(), right.is_empty()) {
        (true, true) => return Ordering::Equal,
        // A release is greater than its prereleases.
        (true, false) => return Ordering::Greater,
        (false, true) => return Ordering::Less,
        (false, false) => {}
    }
    let mut left = left.split('.');
    let mut right = right.split('.');
    loop {
        let order = match (left.next(), right.next()) {
            (None, None) => return Ordering::Equal,
            (None, Some(_)) => Ordering::Less,
            (Some(_), None) => Ordering::Greater,
            (Some(left), Some(right)) => match (left.parse::<u64>(), right.parse::<u64>()) {
                (Ok(left), Ok(right)) => left.cmp(&right),
                (Ok(_), Err(_)) => Ordering::Less,
                (Err(_), Ok(_)) => Ordering::Greater,
                (Err(_), Err(_)) => left.cmp(right),
            },
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

pub(crate) static TABLE: &[Function] = functions! {
    "semver" (Text) |env, args| {
        env.meter.charge_read(text_at(args, 0).len() * 16)?;
        Ok(Value::Version(Rc::new(Version::parse(text_at(args, 0)).map_err(Fault::call)?)))
    };
    "semverCompare" (Text, Text) |env, args| {
        let (constraint, version) = (text_at(args, 0), text_at(args, 1));
        env.meter.charge_read((constraint.len() + version.len()) * 64)?;
        let constraint = Constraint::parse(constraint).map_err(Fault::call)?;
        let version = Version::parse(version).map_err(Fault::call)?;
        Ok(Value::Bool(constraint.allows(&version)))
    };
};

pub(crate) static METHODS: &[Function] = functions! {
    "Major" (Version) |_, args| with_version(args, |version| Value::Uint64(version.major));
    "Minor" (Version) |_, args| with_version(args, |version| Value::Uint64(version.minor));
    "Patch" (Version) |_, args| with_version(args, |version| Value::Uint64(version.patch));
    "Prerelease" (Version) |env, args| with_version(args, |version| version.prerelease.clone()).and_then(|text| env.new_text(text));
    "Metadata" (Version) |env, args| with_version(args, |version| version.metadata.clone()).and_then(|text| env.new_text(text));
    "Original" (Version) |env, args| with_version(args, |version| version.original.clone()).and_then(|text| env.new_text(text));
    "String" (Version) |env, args| with_version(args, Version::to_string).and_then(|text| env.new_text(text));
    "Compare" (Version, Version) |_, args| compare_versions(args, |order| Value::Int(order as i64));
    "Equal" (Version, Version) |_, args| compare_versions(args, |order| Value::Bool(order == Ordering::Equal));
    "LessThan" (Version, Version) |_, args| compare_versions(args, |order| Value::Bool(order == Ordering::Less));
    "LessThanEqual" (Version, Version) |_, args| compare_versions(args, |order| Value::Bool(order != Ordering::Greater));
    "GreaterThan" (Version, Version) |_, args| compare_versions(args, |order| Value::Bool(order == Ordering::Greater));
    "GreaterThanEqual" (Version, Version) |_, args| compare_versions(args, |order| Value::Bool(order != Ordering::Less));
    "IncMajor" (Version) |_, args| with_version(args, |version| {
        Version::release(version.major.saturating_add(1), 0, 0, &version.original)
    });
    "IncMinor" (Version) |_, args| with_version(args, |version| {
        Version::release(version.major, version.minor.saturating_add(1), 0, &version.original)
    });
    // The next patch of a prerelease is its release.
    "IncPatch" (Version) |_, args| with_version(args, |version| {
        let step = u64::from(version.prerelease.is_empty());
        Version::release(version.major, version.minor, version.patch.saturating_add(step), &version.original)
    });
};

fn with_version<T>(args: &[Value], read: impl FnOnce(&Version) -> T) -> Result<T, Fault> {
    match value_at(args, 0) {
        Value::Version(version) => Ok(read(version)),
        other => Err(Fault::call(format!(
            "{} is not a version",
            other.type_name()
        ))),
    }
}

fn compare_versions(args: &[Value], read: impl FnOnce(Ordering) -> Value) -> Outcome {
    match (value_at(args, 0), value_at(args, 1)) {
        (Value::Version(left), Value::Version(right)) => Ok(read(left.compare(right))),
        _ => Err(Fault::call("only versions are compared")),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Equal,
    NotEqual,
    Greater,
    Less,
    GreaterEqual,
    LessEqual,
    Tilde,
    Caret,
}

/// The precision of a version: `*`, `1` or `1.x`, `1.2` or `1.2.x`, `1.2.3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Precision {
    Any,
    Major,
    Minor,
    Full,
}

#[derive(Debug)]
struct Comparator {
    operator: Operator,
    version: Version,
    precision: Precision,
}

/// Alternatives, each with comparators that must all match.
#[derive(Debug)]
struct Constraint {
    alternatives: Vec<Vec<Comparator>>,
}

const VERSION: &str = r"v?([0-9xX*|]+)(\.[0-9xX*|]+)?(\.[0-9xX*|]+)?(-(?:[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?(\+(?:[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?";
const OPERATORS: &str = r"=>|=<|>=|<=|!=|~>|=|>|<|~|\^|";

struct Patterns {
    range: Regex,
    comparator: Regex,
    valid: Regex,
}

#[allow(clippy::disallowed_methods, reason = "the patterns are fixed")]
static PATTERNS: LazyLock<Patterns> = LazyLock::new(|| {
    let compile = |pattern: &str| Regex::new(pattern).expect("the pattern is fixed and valid");
    Patterns {
        range: compile(&format!(r"\s*({VERSION})\s+-\s+({VERSION})\s*")),
        comparator: compile(&format!(r"({OPERATORS})\s*{VERSION}")),
        valid: compile(&format!(
            r"^(?:\s*(?:{OPERATORS})\s*(?:{VERSION})\s*)(?:(?:\s+|,\s*)(?:{OPERATORS})\s*(?:{VERSION})\s*)*$"
        )),
    }
});

impl Constraint {
    fn parse(text: &str) -> Result<Self, String> {
        let patterns = &*PATTERNS;
        let text = patterns
            .range
            .replace_all(text, |captures: &regex::Captures<'_>| {
                let group = |index: usize| captures.get(index).map_or("", |group| group.as_str());
                format!(">= {}, <= {} ", group(1), group(7))
            });
        let mut alternatives = Vec::new();
        for alternative in text.split("||") {
            if !patterns.valid.is_match(alternative) {
                return Err(format!("improper constraint: {}", quote(alternative)));
            }
            let comparators = patterns
                .comparator
                .captures_iter(alternative)
                .map(|captures| Comparator::from(&captures));
            alternatives.push(comparators.collect::<Result<Vec<_>, _>>()?);
        }
        Ok(Self { alternatives })
    }

    fn allows(&self, version: &Version) -> bool {
        self.alternatives.iter().any(|comparators| {
            // A prerelease is allowed only if the alternative names one.
            let names_prerelease = comparators
                .iter()
                .any(|comparator| !comparator.version.prerelease.is_empty());
            (version.prerelease.is_empty() || names_prerelease)
                && comparators
                    .iter()
                    .all(|comparator| comparator.allows(version))
        })
    }
}

impl Comparator {
    fn from(captures: &regex::Captures<'_>) -> Result<Self, String> {
        let group = |index: usize| captures.get(index).map_or("", |group| group.as_str());
        let operator = match group(1) {
            "!=" => Operator::NotEqual,
            ">" => Operator::Greater,
            "<" => Operator::Less,
            ">=" | "=>" => Operator::GreaterEqual,
            "<=" | "=<" => Operator::LessEqual,
            "~" | "~>" => Operator::Tilde,
            "^" => Operator::Caret,
            _ => Operator::Equal,
        };
        let is_open = |part: &str| matches!(part.trim_start_matches('.'), "" | "x" | "X" | "*");
        let (major, minor, patch, prerelease) = (group(2), group(3), group(4), group(5));
        let (text, precision) = if is_open(major) {
            (format!("0.0.0{prerelease}"), Precision::Any)
        } else if is_open(minor) {
            (format!("{major}.0.0{prerelease}"), Precision::Major)
        } else if is_open(patch) {
            (format!("{major}{minor}.0{prerelease}"), Precision::Minor)
        } else {
            (
                format!("{major}{minor}{patch}{prerelease}{}", group(6)),
                Precision::Full,
            )
        };
        let version = Version::parse(&text).map_err(|_| "constraint parser error".to_owned())?;
        Ok(Self {
            operator,
            version,
            precision,
        })
    }

    fn allows(&self, version: &Version) -> bool {
        let own = &self.version;
        let order = version.compare(own);
        let same_minor = version.minor == own.minor;
        match self.operator {
            Operator::Equal if self.precision == Precision::Full => order == Ordering::Equal,
            Operator::Equal | Operator::Tilde => self.allows_tilde(version),
            Operator::NotEqual => match self.precision {
                Precision::Full => order != Ordering::Equal,
                Precision::Major => version.major != own.major,
                Precision::Minor => {
                    version.major != own.major
                        || !same_minor
                        || compare_prereleases(&version.prerelease, &own.prerelease)
                            != Ordering::Equal
                }
                Precision::Any => order != Ordering::Equal,
            },
            Operator::Greater => match (self.precision, version.major.cmp(&own.major)) {
                (Precision::Full, _) => order == Ordering::Greater,
                (_, Ordering::Greater) => true,
                (_, Ordering::Less) | (Precision::Major, _) => false,
                (Precision::Minor, _) => version.minor > own.minor,
                (Precision::Any, _) => order == Ordering::Greater,
            },
            Operator::Less => order == Ordering::Less,
            Operator::GreaterEqual => order != Ordering::Less,
            Operator::LessEqual if self.precision == Precision::Full => order != Ordering::Greater,
            Operator::LessEqual => {
                version.major < own.major
                    || (version.major == own.major
                        && (version.minor <= own.minor || self.precision == Precision::Major))
            }
            Operator::Caret => self.allows_caret(version, order),
        }
    }

    /// Requires the same minor version, or the same major version if only that is given.
    fn allows_tilde(&self, version: &Version) -> bool {
        let own = &self.version;
        if version.compare(own) == Ordering::Less {
            return false;
        }
        let is_zero = own.major == 0 && own.minor == 0 && own.patch == 0;
        if is_zero && matches!(self.precision, Precision::Any | Precision::Full) {
            return true;
        }
        version.major == own.major
            && (version.minor == own.minor || self.precision == Precision::Major)
    }

    /// Requires the same leftmost part that is not zero.
    fn allows_caret(&self, version: &Version, order: Ordering) -> bool {
        let own = &self.version;
        if order == Ordering::Less {
            return false;
        }
        if own.major > 0 || self.precision == Precision::Major {
            return version.major == own.major;
        }
        if version.major > 0 {
            return false;
        }
        if own.minor > 0 || self.precision == Precision::Minor {
            return version.minor == own.minor;
        }
        version.minor == 0 && version.patch == own.patch
    }
}
