//! The words after `acr`: commands, flags and messages of the original program.
//!
//! Supported: `purge`, `retention`, `tag list`, `tag delete`, `manifest list`, `manifest delete`, `version`.

use acrtask_model::Secret;
use acrtask_purge::advise_on_filter;

use crate::{
    Ago, Filter, FilterParser, Purge,
    plan::RepositoryPlan,
    purge::{Limits, PurgeRule},
    rules::{NewestOf, Untagged},
};

/// Default number of concurrent requests, as in the original's message.
const DEFAULT_CONCURRENCY: i64 = 2;
/// Maximum number of concurrent requests.
const MAX_CONCURRENCY: i64 = 32;

/// Command of `acr`.
#[derive(Debug, Clone)]
pub enum AcrCommand {
    /// `acr purge`.
    Purge(Box<Purge>),
    /// `acr retention`, which the original does not have: the rules in a file.
    Retention {
        /// Path of the file.
        file: String,
        /// `true` if nothing is deleted.
        dry_run: bool,
    },
    /// `acr tag list`.
    ListTags {
        /// Name of the repository.
        repository: String,
    },
    /// `acr tag delete`.
    DeleteTags {
        /// Name of the repository.
        repository: String,
        /// Tags to delete.
        tags: Vec<String>,
    },
    /// `acr manifest list`.
    ListManifests {
        /// Name of the repository.
        repository: String,
    },
    /// `acr manifest delete`.
    DeleteManifests {
        /// Name of the repository.
        repository: String,
        /// Digests to delete.
        digests: Vec<String>,
    },
    /// `acr version`.
    Version,
}

impl AcrCommand {
    /// Returns `true` if the command changes a registry.
    pub fn deletes(&self) -> bool {
        match self {
            Self::Purge(purge) => !purge.dry_run,
            Self::Retention { dry_run, .. } => !dry_run,
            Self::DeleteTags { .. } | Self::DeleteManifests { .. } => true,
            Self::ListTags { .. } | Self::ListManifests { .. } | Self::Version => false,
        }
    }
}

/// Parsed line of `acr`.
#[derive(Debug, Clone)]
pub struct AcrLine {
    /// Host of the registry. `None` if the line names none.
    pub registry: Option<String>,
    /// User name and password of the line.
    pub login: Option<(String, Secret)>,
    /// Command to run.
    pub command: AcrCommand,
}

/// Flag of `acr`.
struct Flag {
    long: &'static str,
    short: char,
    takes_value: bool,
}

const fn flag(long: &'static str, short: char, takes_value: bool) -> Flag {
    Flag {
        long,
        short,
        takes_value,
    }
}

/// Flags of all commands.
const COMMON: [Flag; 5] = [
    flag("registry", 'r', true),
    flag("username", 'u', true),
    flag("password", 'p', true),
    flag("config", 'c', true),
    flag("help", 'h', false),
];

/// Flags of `acr purge`.
const PURGE: [Flag; 11] = [
    flag("filter", 'f', true),
    flag("ago", ' ', true),
    flag("keep", ' ', true),
    flag("untagged", ' ', false),
    flag("untagged-only", ' ', false),
    flag("dry-run", 'd', false),
    flag("include-locked", ' ', false),
    flag("concurrency", ' ', true),
    flag("repository-page-size", ' ', true),
    flag("filter-timeout-seconds", ' ', true),
    flag("verbose", ' ', false),
];

/// Flags of `acr retention`.
const RETENTION: [Flag; 2] = [flag("file", 'f', true), flag("dry-run", 'd', false)];

/// Flags of `acr tag` and `acr manifest`.
const OBJECT: [Flag; 1] = [flag("repository", ' ', true)];

impl AcrLine {
    /// Parses the words after `acr`.
    ///
    /// # Errors
    /// The message of the original program, without `Error: `.
    pub fn parse(words: &[String]) -> Result<Self, String> {
        let texts: Vec<&str> = words.iter().map(String::as_str).collect();
        let (flags, command) = match texts.as_slice() {
            ["purge", ..] => {
                let flags = Flags::parse(&words[1..], &PURGE)?;
                let purge = parse_purge(&flags)?;
                (flags, AcrCommand::Purge(Box::new(purge)))
            }
            ["tag" | "manifest", action @ ("list" | "delete"), ..] => {
                let flags = Flags::parse(&words[2..], &OBJECT)?;
                let repository = flags
                    .value("repository")
                    .ok_or("required flag(s) \"repository\" not set")?
                    .to_owned();
                let names = flags.rest.clone();
                if *action == "delete" && names.is_empty() {
                    return Err("requires at least 1 arg(s), only received 0".into());
                }
                let command = match (texts[0], *action) {
                    ("tag", "list") => AcrCommand::ListTags { repository },
                    ("tag", _) => AcrCommand::DeleteTags {
                        repository,
                        tags: names,
                    },
                    (_, "list") => AcrCommand::ListManifests { repository },
                    _ => AcrCommand::DeleteManifests {
                        repository,
                        digests: names,
                    },
                };
                (flags, command)
            }
            ["retention", ..] => {
                let flags = Flags::parse(&words[1..], &RETENTION)?;
                let file = flags.value("file");
                let file = file.ok_or("write the file with the rules: --file retention.yaml")?;
                let command = AcrCommand::Retention {
                    file: file.to_owned(),
                    dry_run: flags.has("dry-run"),
                };
                (flags, command)
            }
            ["version", ..] => (Flags::parse(&words[1..], &[])?, AcrCommand::Version),
            [other @ ("tag" | "manifest"), action, ..] => {
                return Err(format!(
                    "unknown command \"{action}\" for \"acr {other}\"; acrtask runs `list` and `delete`"
                ));
            }
            [first, ..] => {
                return Err(format!(
                    "unknown command \"{first}\" for \"acr\"; acrtask runs `purge`, `retention`, `tag`, `manifest` and `version`"
                ));
            }
            [] => {
                return Err(
                    "name a command: `purge`, `retention`, `tag`, `manifest` or `version`".into(),
                );
            }
        };
        let login = match (flags.value("username"), flags.value("password")) {
            (Some(user), Some(password)) => Some((user.to_owned(), Secret::new(password))),
            (None, None) => None,
            _ => return Err("--username and --password belong in one line".into()),
        };
        if flags.value("config").is_some() {
            return Err("--config is not supported: acrtask uses the logins of the run".into());
        }
        Ok(Self {
            registry: flags.value("registry").map(complete_host),
            login,
            command,
        })
    }
}

/// Returns the host of a registry. A bare name is one of Azure, as in the original.
fn complete_host(name: &str) -> String {
    match name.contains(['.', ':']) || name == "localhost" {
        true => name.to_owned(),
        false => format!("{name}.azurecr.io"),
    }
}

fn parse_purge(flags: &Flags) -> Result<Purge, String> {
    if let Some(name) = flags.rest.first() {
        return Err(format!("unknown command \"{name}\" for \"acr purge\""));
    }
    let (untagged, only) = (flags.has("untagged"), flags.has("untagged-only"));
    let filters: Vec<&str> = flags.values("filter").collect();
    if filters.is_empty() && !only {
        return Err(
            "at least one of the flags in the group [filter untagged-only] is required".into(),
        );
    }
    if untagged && only {
        return Err("if any flags in the group [untagged untagged-only] are set none of the others can be; [untagged untagged-only] were all set".into());
    }
    let untagged = match (untagged, only) {
        (_, true) => Untagged::Only,
        (true, _) => Untagged::Delete,
        _ => Untagged::Keep,
    };
    let ago = match (flags.value("ago"), only) {
        (Some(text), _) => Ago::parse(text)?,
        (None, true) => Ago::parse("0d")?,
        (None, false) => return Err("--ago is required when not using --untagged-only".into()),
    };
    let mut parser = FilterParser::default();
    let filters: Vec<Filter> = filters
        .into_iter()
        .map(|text| parser.parse(text))
        .collect::<Result<_, _>>()?;
    let mut notes = Vec::new();
    let concurrency = flags.number("concurrency")?.unwrap_or(DEFAULT_CONCURRENCY);
    let concurrency = match concurrency {
        ..=0 => {
            notes.push(format!(
                "Specified concurrency value invalid. Set to default value: {DEFAULT_CONCURRENCY} "
            ));
            DEFAULT_CONCURRENCY
        }
        1..=MAX_CONCURRENCY => concurrency,
        _ => {
            notes.push(format!(
                "Specified concurrency value too large. Set to maximum value: {MAX_CONCURRENCY} "
            ));
            MAX_CONCURRENCY
        }
    };
    let differences = filters
        .iter()
        .filter_map(|filter| advise_on_filter(&filter.text()))
        .filter(|advice| advice.kind.differs_from_original());
    notes.extend(differences.map(|advice| advice.to_string()));
    let keep = usize::try_from(flags.number("keep")?.unwrap_or(0)).unwrap_or(0);
    let rule = PurgeRule {
        filters,
        keep: Vec::new(),
        ago: Some(ago),
        newest: keep,
        newest_of: NewestOf::Deleted,
    };
    Ok(Purge {
        rules: vec![rule],
        untagged_ago: ago,
        untagged_newest: keep,
        limits: Limits::default(),
        untagged,
        dry_run: flags.has("dry-run"),
        include_locked: flags.has("include-locked"),
        concurrency: usize::try_from(concurrency).unwrap_or(1),
        verbose: flags.has("verbose"),
        notes,
    })
}

/// Returns notes about filters that may select something else than their author means.
pub fn notes_of(filters: &[Filter]) -> Vec<String> {
    let advice = filters
        .iter()
        .filter_map(|filter| advise_on_filter(&filter.text()));
    advice.map(|advice| advice.to_string()).collect()
}

/// Given flags, and the other words.
#[derive(Debug, Default)]
struct Flags {
    given: Vec<(&'static str, String)>,
    rest: Vec<String>,
}

impl Flags {
    fn parse(words: &[String], own: &'static [Flag]) -> Result<Self, String> {
        let mut out = Self::default();
        let mut words = words.iter();
        let find = |wanted: &dyn Fn(&Flag) -> bool| own.iter().chain(&COMMON).find(|f| wanted(f));
        while let Some(word) = words.next() {
            let (flag, inline) = if word == "--" {
                out.rest.extend(words.cloned());
                break;
            } else if let Some(long) = word.strip_prefix("--") {
                let (name, inline) = match long.split_once('=') {
                    Some((name, value)) => (name, Some(value)),
                    None => (long, None),
                };
                let flag = find(&|flag| flag.long == name);
                (
                    flag.ok_or_else(|| format!("unknown flag: --{name}"))?,
                    inline,
                )
            } else if let Some(letter) = word.strip_prefix('-').and_then(|w| w.chars().next()) {
                let flag = find(&|flag| flag.short == letter);
                let flag =
                    flag.ok_or_else(|| format!("unknown shorthand flag: '{letter}' in {word}"))?;
                let behind = &word[1 + letter.len_utf8()..];
                if !flag.takes_value && !behind.is_empty() {
                    return Err(format!("write each flag of {word} as a word of its own"));
                }
                let behind = behind.strip_prefix('=').unwrap_or(behind);
                (flag, Some(behind).filter(|value| !value.is_empty()))
            } else {
                out.rest.push(word.clone());
                continue;
            };
            if flag.long == "help" {
                return Err("--help is not supported: see docs/purge.md".into());
            }
            let value = match (flag.takes_value, inline) {
                (true, Some(value)) => value.to_owned(),
                (false, Some(value)) => parse_bool(flag.long, value)?.to_string(),
                (true, None) => words
                    .next()
                    .cloned()
                    .ok_or_else(|| format!("flag needs an argument: {word}"))?,
                (false, None) => "true".to_owned(),
            };
            out.given.push((flag.long, value));
        }
        Ok(out)
    }

    fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let given = self.given.iter().filter(move |(long, _)| *long == name);
        given.map(|(_, value)| value.as_str())
    }

    fn value(&self, name: &str) -> Option<&str> {
        let given = self.given.iter().rfind(|(long, _)| *long == name);
        given.map(|(_, value)| value.as_str())
    }

    fn has(&self, name: &str) -> bool {
        self.value(name) == Some("true")
    }

    fn number(&self, name: &str) -> Result<Option<i64>, String> {
        let Some(text) = self.value(name) else {
            return Ok(None);
        };
        text.parse().map(Some).map_err(|_| {
            format!("invalid argument {text:?} for \"--{name}\" flag: strconv.ParseInt: parsing {text:?}: invalid syntax")
        })
    }
}

/// Parses the value of a flag as Go's `strconv.ParseBool` does.
fn parse_bool(flag: &str, value: &str) -> Result<bool, String> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!(
            "invalid argument {value:?} for \"--{flag}\" flag: strconv.ParseBool: parsing {value:?}: invalid syntax"
        )),
    }
}

/// Returns a plan without lines, for deletions that a user names.
pub(crate) fn empty_plan(repository: &str) -> RepositoryPlan {
    RepositoryPlan {
        repository: repository.to_owned(),
        tags: Vec::new(),
        manifests: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<AcrLine, String> {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        AcrLine::parse(&words)
    }

    fn purge(line: &str) -> Purge {
        match parse(line).unwrap().command {
            AcrCommand::Purge(purge) => *purge,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn errors_have_the_messages_of_the_original() {
        for (line, message) in [
            (
                "purge --filter a:.*",
                "--ago is required when not using --untagged-only",
            ),
            (
                "purge --ago 1d",
                "at least one of the flags in the group [filter untagged-only] is required",
            ),
            (
                "purge --filter x:.* --ago 1d --untagged --untagged-only",
                "if any flags in the group [untagged untagged-only] are set none of the others can be; [untagged untagged-only] were all set",
            ),
            (
                "purge --filter a --ago 1d",
                "unable to correctly parse filter flag",
            ),
            ("purge --filter a: --ago 1d", "missing tag name/expression"),
            ("purge --filter a:b --ago", "flag needs an argument: --ago"),
            (
                "purge --untagged-only --include-locked=no",
                "invalid argument \"no\" for \"--include-locked\" flag: strconv.ParseBool: parsing \"no\": invalid syntax",
            ),
            ("purge --nope", "unknown flag: --nope"),
            ("purge -x", "unknown shorthand flag: 'x' in -x"),
            ("tag list", "required flag(s) \"repository\" not set"),
        ] {
            assert_eq!(parse(line).unwrap_err(), message, "{line}");
        }
    }

    #[test]
    fn purge_flags_are_parsed() {
        let found = purge("purge -f a:.* --filter=b:x --ago -1d --untagged --keep 3 -d");
        assert_eq!(found.filters().count(), 2);
        assert_eq!((found.rules[0].newest, found.dry_run), (3, true));
        assert_eq!(found.untagged, Untagged::Delete);
        assert_eq!(found.concurrency, 2);
        assert_eq!(found.notes.len(), 1, "{:?}", found.notes);
        let found = purge("purge -f a:.* --ago 1d --concurrency 99 --untagged=false");
        assert_eq!((found.concurrency, found.untagged), (32, Untagged::Keep));
        let found = purge("purge --untagged-only --include-locked=False --dry-run=T");
        assert_eq!((found.include_locked, found.dry_run), (false, true));
        let found = purge("purge --untagged-only");
        assert_eq!(
            (found.untagged, found.untagged_ago.seconds),
            (Untagged::Only, 0)
        );
    }

    #[test]
    fn registry_and_login_are_parsed() {
        let line = parse("tag delete -r contoso --repository a/b -u me -p pw v1 v2").unwrap();
        assert_eq!(line.registry.as_deref(), Some("contoso.azurecr.io"));
        assert!(line.login.is_some());
        let AcrCommand::DeleteTags { repository, tags } = &line.command else {
            panic!("{line:?}")
        };
        assert_eq!((repository.as_str(), tags.len()), ("a/b", 2));
        let line = parse("manifest list -r 127.0.0.1:5000 --repository a").unwrap();
        assert_eq!(line.registry.as_deref(), Some("127.0.0.1:5000"));
        assert!(!line.command.deletes());
    }
}
