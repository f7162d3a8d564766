//! Checks for image names that no run can use. They fail before the run starts.

use acrtask_model::ImageRef;

use super::{Context, span_of_word};
use crate::{build_line::BuildLine, diagnostic::Diagnostic, plan::LineRefusal};

/// Message for a name that begins with the registry of a run without one.
const NO_REGISTRY: &str = "`$Registry` is empty, so that the name of an image begins with `/`";
/// Maximum length of a tag, in characters.
const MAX_TAG: usize = 128;

/// Returns the refusal of a name that begins with an empty registry. `span` is its range in the
/// line. `written` is the line as the author wrote it.
pub(super) fn refuse_empty_registry(
    name: &str,
    span: std::ops::Range<usize>,
    context: &Context<'_>,
    written: &str,
) -> Option<LineRefusal> {
    let is_empty = context.variables.registry.is_empty()
        && name.starts_with('/')
        && written.contains("Registry");
    is_empty.then(|| LineRefusal {
        message: NO_REGISTRY.into(),
        span,
        help: Some(
            "add `-r HOST`, or set ACRTASK_REGISTRY; a stored task has `registry: HOST`".into(),
        ),
    })
}

/// Merges the refusals of all names that begin with an empty registry into one diagnostic.
pub(super) fn merge_empty_registry_refusals(refusals: &mut Vec<Diagnostic>) {
    let mut places = Vec::new();
    let mut first = true;
    for refused in refusals
        .iter()
        .filter(|refused| refused.message == NO_REGISTRY)
    {
        places.extend(refused.labels.clone());
    }
    refusals
        .retain(|refused| refused.message != NO_REGISTRY || std::mem::replace(&mut first, false));
    if let Some(only) = refusals
        .iter_mut()
        .find(|refused| refused.message == NO_REGISTRY)
    {
        only.labels = places;
    }
}

/// Refuses values of `-t` that are not image names. `text` is the line.
pub(super) fn check_tags(
    line: BuildLine,
    text: &str,
    context: &Context<'_>,
    written: &str,
) -> Result<BuildLine, LineRefusal> {
    for tag in &line.tags {
        let Err(error) = tag.parse::<ImageRef>() else {
            continue;
        };
        let span = span_of_word(text, tag);
        if let Some(refused) = refuse_empty_registry(tag, span.clone(), context, written) {
            return Err(refused);
        }
        let (reason, help) = match explain_name(tag) {
            Some((reason, help)) => (reason.to_owned(), help),
            None => (
                error.reason,
                "write for example `-t {{.Run.Registry}}/app:{{.Run.ID}}`".to_owned(),
            ),
        };
        return Err(LineRefusal {
            message: format!("`{tag}` is not the name of an image: {reason}"),
            span,
            help: Some(help),
        });
    }
    Ok(line)
}

/// Returns the reason and the help for common mistakes in a name.
fn explain_name(name: &str) -> Option<(&'static str, String)> {
    const FROM_BRANCH: &str =
        "write `{{.Run.Branch | replace \"/\" \"-\" | trunc 128}}` where the tag is a branch";
    let (before, tag) = split_tag(name);
    let tag = tag?;
    if tag.is_empty() {
        return Some((
            "the tag after `:` is empty",
            "write a tag, such as `{{.Run.ID}}`; a variable or value without text leaves it empty"
                .into(),
        ));
    }
    let lower = format!("{}:{tag}", before.to_lowercase());
    if tag.contains('/') {
        Some(("a tag has no `/`", FROM_BRANCH.into()))
    } else if tag.len() > MAX_TAG {
        Some(("a tag has at most 128 characters", FROM_BRANCH.into()))
    } else if before != before.to_lowercase() && lower.parse::<ImageRef>().is_ok() {
        Some((
            "the name of a repository has no upper-case letters",
            format!("write `{lower}`, or `{{{{.Values.name | lower}}}}`"),
        ))
    } else {
        None
    }
}

/// Splits a name at the `:` before its tag. A `:` before a port is skipped: digits and `/` follow
/// it.
fn split_tag(name: &str) -> (&str, Option<&str>) {
    for (at, _) in name.match_indices(':') {
        let (before, after) = (&name[..at], &name[at + 1..]);
        let port = after.split('/').next().unwrap_or_default();
        let is_port = !before.contains('/')
            && after.contains('/')
            && !port.is_empty()
            && port.bytes().all(|b| b.is_ascii_digit());
        if !is_port {
            return (before, Some(after));
        }
    }
    (name, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_mistakes_in_names_get_help() {
        for (name, advised) in [
            ("app:feature/login", Some("replace")),
            ("reg.io:5000/app:feature/login", Some("replace")),
            ("app:", Some("{{.Run.ID}}")),
            ("reg.io/App:Rc1", Some("`reg.io/app:Rc1`")),
            ("App", None),
            ("app:-x", None),
        ] {
            assert!(name.parse::<ImageRef>().is_err(), "{name}");
            let help = explain_name(name).map(|(_, help)| help);
            match advised {
                Some(part) => assert!(help.unwrap().contains(part), "{name}"),
                None => assert_eq!(help, None, "{name}"),
            }
        }
        let long = format!("app:{}", "x".repeat(129));
        assert!(explain_name(&long).unwrap().1.contains("trunc 128"));
        assert_eq!(split_tag("reg.io:5000/app"), ("reg.io:5000/app", None));
    }
}
