//! What can be seen to be wrong with rules for newer tags before anything is listed.

use std::collections::BTreeSet;

use acrtask_api::task::TaskDefinition;
use acrtask_cascade::tags::{allows, choose};
use acrtask_model::ImageRef;

use super::policy;

/// Most rules of a task.
const MAX_RULES: usize = 50;

/// What is wrong with the rules of a task, each with its key.
pub(crate) fn problems(task: &TaskDefinition) -> Vec<String> {
    let mut problems = Vec::new();
    let Some(trigger) = &task.triggers.base_image else {
        return problems;
    };
    if trigger.tags.len() > MAX_RULES {
        problems.push(format!(
            "`triggers.baseImage.tags` has {} rules, and a task may have {MAX_RULES}",
            trigger.tags.len()
        ));
    }
    let mut images = BTreeSet::new();
    let mut places = BTreeSet::new();
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
                            "`{}` names one tag: write `{}`, and say with `semver` or `pattern` which tags",
                            rule.image,
                            image.name()
                        ),
                    );
                }
                if !images.insert(image.name()) {
                    problem(
                        "image",
                        format!("there are two rules for `{}`: join them", image.name()),
                    );
                }
            }
        }
        match policy(rule) {
            None => problem(
                "",
                "give one of `semver` (a range, like `^3.20`) and `pattern` (a regular expression)"
                    .into(),
            ),
            Some(policy) => {
                if let Err(error) = choose(&policy, "", []).and(allows(&policy, "")) {
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
                    "the task has no `build`, whose argument it could be: give `value`, and hand \
                     `{{.Values.NAME}}` on in the task file"
                        .into(),
                ),
                Some(build) if build.secret_args.contains(arg) => {
                    problem("buildArg", format!("`{arg}` is one of `build.secretArgs`"));
                }
                Some(_) => {}
            }
            if !is_name(arg) {
                problem(
                    "buildArg",
                    format!("`{arg}` is not the name of a build argument: letters, digits and `_`"),
                );
            }
        }
        if let Some(value) = &rule.value
            && !is_name(value)
        {
            problem(
                "value",
                format!("`{value}` cannot stand behind `.Values.`: write letters, digits and `_`"),
            );
        }
        let place = (&rule.build_arg, &rule.value);
        if rule.starts_runs() && !places.insert(place) {
            problem("", "another rule gives its tag to the same place".into());
        }
    }
    problems
}

/// A name that Dockerfiles and templates can say.
fn is_name(text: &str) -> bool {
    let first = text.chars().next();
    first.is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && text.len() <= 100
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}
