//! Filters of lists: the part of OData that Azure's clients send.

use acrtask_model::{Digest, RunState};

/// Conditions of a list of runs. All of them apply.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunQuery {
    /// Name of the task.
    pub task: Option<String>,
    /// Id of the run.
    pub run: Option<String>,
    /// States of the run. Empty: all states.
    pub states: Vec<RunState>,
    /// Digest of an image that the run pushed.
    pub digest: Option<Digest>,
}

/// A filter that this version does not support.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the filter `{0}` is not supported: write conditions such as `TaskName eq 'NAME'`, `Status eq 'Failed'`, \
     `RunId eq 'ID'` or `contains(OutputImageManifests, 'REPOSITORY@sha256:DIGEST')`, joined by `and`"
)]
pub struct FilterError(String);

/// Parses the filter of a list of runs.
///
/// # Errors
/// Returns the condition that is not supported.
pub fn parse_filter(text: &str) -> Result<RunQuery, FilterError> {
    let mut query = RunQuery::default();
    for condition in split_conditions(text) {
        let refused = || FilterError(condition.chars().take(200).collect());
        if let Some(arguments) = condition
            .strip_prefix("contains(")
            .and_then(|rest| rest.strip_suffix(')'))
        {
            let (name, value) = arguments.split_once(',').ok_or_else(refused)?;
            let value = unquote(value.trim()).ok_or_else(refused)?;
            let (_, digest) = value.rsplit_once('@').unwrap_or(("", &value));
            if !name.trim().eq_ignore_ascii_case("OutputImageManifests") {
                return Err(refused());
            }
            query.digest = Some(digest.parse().map_err(|_| refused())?);
            continue;
        }
        let mut words = condition.splitn(3, char::is_whitespace);
        let (Some(name), Some("eq"), Some(value)) = (words.next(), words.next(), words.next())
        else {
            return Err(refused());
        };
        let value = unquote(value.trim()).ok_or_else(refused)?;
        match name.to_ascii_lowercase().as_str() {
            "taskname" => query.task = Some(value),
            "runid" => query.run = Some(value),
            "status" => query.states = parse_status(&value).ok_or_else(refused)?,
            _ => return Err(refused()),
        }
    }
    Ok(query)
}

/// Returns the states with this name in ARM. `None` if ARM does not have the name.
fn parse_status(text: &str) -> Option<Vec<RunState>> {
    let states = match text.to_ascii_lowercase().as_str() {
        "queued" => vec![RunState::Queued],
        "started" => vec![RunState::Leased],
        "running" => vec![RunState::Running],
        "succeeded" => vec![RunState::Succeeded],
        "failed" => vec![RunState::Failed],
        "canceled" => vec![RunState::Canceled],
        "timeout" => vec![RunState::TimedOut],
        "error" => vec![RunState::Error],
        _ => return None,
    };
    Some(states)
}

/// Splits a filter at each `and` outside of a quoted text.
fn split_conditions(text: &str) -> Vec<&str> {
    let mut conditions = Vec::new();
    let (mut begin, mut quoted) = (0, false);
    for (at, c) in text.char_indices() {
        match c {
            '\'' => quoted = !quoted,
            ' ' if !quoted => {
                let rest = &text[at + 1..];
                let word = rest.get(..4).unwrap_or_default();
                if word.eq_ignore_ascii_case("and ") && at >= begin {
                    conditions.push(text[begin..at].trim());
                    begin = at + 5;
                }
            }
            _ => {}
        }
    }
    conditions.push(text.get(begin..).unwrap_or_default().trim());
    conditions.retain(|condition| !condition.is_empty());
    conditions
}

/// Returns the text in single quotes. A doubled quote is a quote.
fn unquote(text: &str) -> Option<String> {
    let inner = text.strip_prefix('\'')?.strip_suffix('\'')?;
    let plain = inner.replace("''", "");
    (!plain.contains('\'')).then(|| inner.replace("''", "'"))
}

/// Returns the type in the filter of a list of resources: `resourceType eq 'TYPE'`. `None` if the
/// filter does not name a type.
pub fn parse_resource_type(text: &str) -> Option<String> {
    split_conditions(text).into_iter().find_map(|condition| {
        let (name, value) = condition.split_once(" eq ")?;
        name.trim()
            .eq_ignore_ascii_case("resourceType")
            .then(|| unquote(value.trim()))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_joined_by_and() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let query = parse_filter(&format!(
            "TaskName eq 'rock and roll''s' and Status eq 'Failed' and contains(OutputImageManifests, 'a/b@{digest}')"
        ));
        assert_eq!(
            query,
            Ok(RunQuery {
                task: Some("rock and roll's".into()),
                run: None,
                states: vec![RunState::Failed],
                digest: Some(digest.parse().unwrap()),
            })
        );
        assert_eq!(parse_filter(""), Ok(RunQuery::default()));
    }

    #[test]
    fn other_conditions_are_refused() {
        for text in [
            "TaskName ne 'a'",
            "TaskName eq a",
            "Status eq 'Nothing'",
            "CreateTime ge '2024'",
            "contains(TaskName, 'a')",
            "contains(OutputImageManifests, 'a@sha256:1')",
            "TaskName eq 'a' or TaskName eq 'b'",
            "TaskName eq 'a'b'",
            "é and é",
        ] {
            assert!(parse_filter(text).is_err(), "{text}");
        }
    }

    #[test]
    fn resource_type_is_found_in_the_filter() {
        let text = "resourceType eq 'Microsoft.ContainerRegistry/registries' and name eq 'x'";
        assert_eq!(
            parse_resource_type(text).as_deref(),
            Some("Microsoft.ContainerRegistry/registries")
        );
        assert_eq!(parse_resource_type("name eq 'x'"), None);
    }
}
