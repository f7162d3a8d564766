//! Validation of the rules for newer tags when a task is stored.

use std::collections::BTreeSet;

use acrtask_api::task::TaskDefinition;
use acrtask_cascade::tags::TagSelector;
use acrtask_model::ImageRef;

use super::tag_policy;

/// Maximum number of rules per task.
const MAX_RULES: usize = 50;

/// Returns the problems of a task's rules, each with its key.
pub(crate) fn find_rule_problems(task: &TaskDefinition) -> Vec<String> {
    let mut problems = Vec::new();
    let Some(trigger) = &task.triggers.base_image else {
        return problems;
    };
    if trigger.tags.len() > MAX_RULES {
        problems.push(format!(
            "`triggers.baseImage.tags` has {} rules; a task may have at most {MAX_RULES}",
            trigger.tags.len()
        ));
        return problems;
    }
    let mut images = BTreeSet::new();
    let mut targets = BTreeSet::new();
    for (at, rule) in trigger.tags.iter().enumerate() {
        let mut problem = |key: &str, text: String| {
            let dot = if key.is_empty() { "" } else { "." };
            problems.push(format!("`triggers.baseImage.tags[{at}]{dot}{key}`: {text}"));
        };
        match rule.image.parse::<ImageRef>() {
            Err(error) => problem("image", error.to_string()),
            Ok(image) => {
                if image.tag().is_some() || image.digest().is_some() {
                    problem(
                        "image",
                        format!(
                            "`{}` names one tag: write `{}` and select the tags with `semver` or `pattern`",
                            rule.image,
                            image.name()
                        ),
                    );
                }
                if !images.insert(image.name()) {
                    problem(
                        "image",
                        format!("two rules match `{}`: merge them into one", image.name()),
                    );
                }
            }
        }
        match tag_policy(rule) {
            None => problem(
                "",
                "give one of `semver` (a range, like `^3.20`) and `pattern` (a regular expression)"
                    .into(),
            ),
            Some(policy) => {
                if let Err(error) = TagSelector::new(&policy) {
                    let key = if rule.semver.is_some() {
                        "semver"
                    } else {
                        "pattern"
                    };
                    problem(key, error.to_string());
                }
            }
        }
        if rule.build_arg.is_some() && rule.value.is_some() {
            problem(
                "",
                "give one of `buildArg` and `value`, or neither for a proposal".into(),
            );
        }
        if let Some(arg) = &rule.build_arg {
            match &task.build {
                None => problem(
                    "buildArg",
                    "the task has no `build` with arguments: use `value` and pass \
                     `{{.Values.NAME}}` on in the task file"
                        .into(),
                ),
                Some(build) if build.secret_args.contains(arg) => {
                    problem("buildArg", format!("`{arg}` is one of `build.secretArgs`"));
                }
                Some(_) => {}
            }
            if !is_identifier(arg) {
                problem(
                    "buildArg",
                    format!("`{arg}` is not the name of a build argument: letters, digits and `_`"),
                );
            }
        }
        if let Some(value) = &rule.value
            && !is_identifier(value)
        {
            problem(
                "value",
                format!("`{value}` cannot follow `.Values.`: write letters, digits and `_`"),
            );
        }
        let target = (&rule.build_arg, &rule.value);
        if rule.starts_runs() && !targets.insert(target) {
            problem("", "another rule sets the same argument or value".into());
        }
    }
    problems
}

/// Returns `true` if Dockerfiles and templates accept `text` as a name.
fn is_identifier(text: &str) -> bool {
    let first = text.chars().next();
    first.is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && text.len() <= 100
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}
