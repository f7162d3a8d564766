//! Retention: rules in a file that say which tags stay. Everything else that a rule selects goes.
//!
//! The rules become a [`Purge`], so a preview is the plan of the run.

use serde::Deserialize;

use crate::{
    Ago, FilterParser, Purge,
    purge::{Limits, PurgeRule},
    rules::{NewestOf, Untagged},
};

/// Age of manifests without a tag that go, if the file states none.
const UNTAGGED_AGE: &str = "7d";

/// File with rules.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    rules: Vec<FileRule>,
    /// `keep`, or the age from which on manifests without a tag go.
    untagged: Option<String>,
    max_deletions: Option<usize>,
    max_share: Option<Share>,
}

/// Share in percent: `20%` or `20`.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Share {
    Number(u64),
    Text(String),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FileRule {
    repositories: String,
    tags: Option<String>,
    #[serde(default)]
    keep: FileKeep,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FileKeep {
    #[serde(default)]
    tags: Vec<String>,
    newest: Option<usize>,
    younger_than: Option<String>,
    #[serde(default)]
    used: bool,
}

/// Parsed rules.
#[derive(Debug, Clone)]
pub struct Retention {
    /// Purge that carries the rules out.
    pub purge: Purge,
    /// `true` if a rule keeps what a server uses, so that the rules need its records.
    pub needs_records: bool,
}

/// Parses a file of rules, which is YAML.
///
/// # Errors
/// A sentence that names the rule and the value to write.
pub fn parse(text: &str) -> Result<Retention, String> {
    let file: File = serde_yaml::from_str(text).map_err(|error| error.to_string())?;
    if file.rules.is_empty() {
        return Err(
            "`rules` is empty; write at least one rule with `repositories` and `keep`".into(),
        );
    }
    let mut rules = Vec::new();
    let mut parser = FilterParser::default();
    for (at, rule) in file.rules.iter().enumerate() {
        let parsed = parse_rule(rule, &mut parser);
        rules.push(parsed.map_err(|error| format!("rule {}: {error}", at + 1))?);
    }
    let (untagged, text) = match file.untagged.as_deref() {
        Some("keep") => (Untagged::Keep, UNTAGGED_AGE),
        Some(text) => (Untagged::Delete, text),
        None => (Untagged::Delete, UNTAGGED_AGE),
    };
    let untagged_ago = Ago::parse(text).map_err(|error| {
        format!("`untagged: {text}`: {error}; write `keep` or an age such as 7d")
    })?;
    let limits = Limits {
        deletions: file.max_deletions,
        share: file.max_share.as_ref().map(parse_share).transpose()?,
    };
    Ok(Retention {
        needs_records: file.rules.iter().any(|rule| rule.keep.used),
        purge: Purge {
            rules,
            untagged_ago,
            untagged_newest: 0,
            limits,
            untagged,
            dry_run: false,
            include_locked: false,
            concurrency: 8,
            verbose: true,
            notes: Vec::new(),
        },
    })
}

fn parse_rule(rule: &FileRule, parser: &mut FilterParser) -> Result<PurgeRule, String> {
    let keep = &rule.keep;
    let mut filter = |tag: &str| {
        let parsed = parser.parse(&format!("{}:{tag}", rule.repositories));
        parsed.map_err(|error| format!("`{}` with `{tag}`: {error}", rule.repositories))
    };
    let selects_some = rule.tags.as_deref().is_some_and(|tags| tags != ".*");
    if keep.tags.is_empty()
        && keep.newest.is_none_or(|newest| newest == 0)
        && keep.younger_than.is_none()
        && !selects_some
    {
        return Err(format!(
            "it would delete all tags of `{}`; write `keep` with `tags`, `newest` or `youngerThan`, or select fewer `tags`",
            rule.repositories
        ));
    }
    let ago = keep.younger_than.as_deref().map(|text| {
        Ago::parse(text).map_err(|error| {
            format!("`youngerThan: {text}`: {error}; write for example 30d or 12h")
        })
    });
    Ok(PurgeRule {
        filters: vec![filter(rule.tags.as_deref().unwrap_or(".*"))?],
        keep: keep
            .tags
            .iter()
            .map(|tag| filter(tag))
            .collect::<Result<_, _>>()?,
        ago: ago.transpose()?,
        newest: keep.newest.unwrap_or(0),
        newest_of: NewestOf::Selected,
    })
}

/// Parses a share of 1 to 100 percent.
fn parse_share(share: &Share) -> Result<u8, String> {
    let (shown, number) = match share {
        Share::Number(number) => (number.to_string(), u8::try_from(*number).ok()),
        Share::Text(text) => {
            let number = text.strip_suffix('%').unwrap_or(text);
            (text.clone(), number.trim().parse().ok())
        }
    };
    number
        .filter(|percent| (1..=100).contains(percent))
        .ok_or_else(|| {
            format!("`maxShare: {shown}` is not a share; write for example `maxShare: 20%`")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_parsed() {
        let parsed = parse(
            "untagged: 3d\nmaxDeletions: 100\nmaxShare: 20%\nrules:\n  - repositories: team/.*\n    keep:\n      \
             tags: ['^v\\d', latest]\n      newest: 10\n      youngerThan: 30d\n      used: true\n  \
             - repositories: other\n    tags: ^pr-\n",
        )
        .unwrap();
        assert!(parsed.needs_records);
        let purge = &parsed.purge;
        assert_eq!(
            purge.limits,
            Limits {
                deletions: Some(100),
                share: Some(20)
            }
        );
        assert_eq!(purge.untagged_ago.seconds, 3 * 24 * 3600);
        assert_eq!((purge.rules[0].newest, purge.rules[0].keep.len()), (10, 2));
        assert_eq!(purge.rules[0].newest_of, NewestOf::Selected);
        assert_eq!(purge.rules[1].ago, None);
        let kept = parse("untagged: keep\nrules: [{repositories: a, keep: {newest: 1}}]").unwrap();
        assert_eq!(kept.purge.untagged, Untagged::Keep);
        assert!(!kept.needs_records);
    }

    #[test]
    fn wrong_rules_are_refused() {
        for (text, expected) in [
            ("rules: []", "`rules` is empty"),
            (
                "rules: [{repositories: a}]",
                "rule 1: it would delete all tags of `a`",
            ),
            (
                "rules: [{repositories: a, keep: {newest: 0}}]",
                "would delete all tags",
            ),
            (
                "rules: [{repositories: a, keep: {used: true}}]",
                "would delete all tags",
            ),
            (
                "rules: [{repositories: '*', keep: {newest: 1}}]",
                "is a glob",
            ),
            (
                "rules: [{repositories: a, keep: {youngerThan: 30}}]",
                "missing unit",
            ),
            (
                "rules: [{repositories: a, keep: {tags: ['[']}}]",
                "failed to build",
            ),
            ("rules: [{repositories: a, kept: {newest: 1}}]", "kept"),
            (
                "maxShare: 0\nrules: [{repositories: a, keep: {newest: 1}}]",
                "`maxShare: 0`",
            ),
            (
                "maxShare: x\nrules: [{repositories: a, keep: {newest: 1}}]",
                "`maxShare: x`",
            ),
            (
                "untagged: x\nrules: [{repositories: a, keep: {newest: 1}}]",
                "write `keep` or an age",
            ),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
