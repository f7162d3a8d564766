//! Decision whether a pushed image starts a run of a task.

use acrtask_api::task::RegistryPushTrigger;

use super::{
    RuleError,
    globs::{NamePatterns, check_total},
};
use crate::RegistryPush;

/// Parsed registry push trigger of a task.
#[derive(Debug, Clone)]
pub struct ImageRules {
    enabled: bool,
    repositories: NamePatterns,
    tags: NamePatterns,
}

impl ImageRules {
    /// Parses the trigger of a task.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn new(trigger: &RegistryPushTrigger) -> Result<Self, Vec<RuleError>> {
        let lists = [&*trigger.repositories, &*trigger.tags];
        check_total(&lists).map_err(|error| vec![error])?;
        let mut errors = Vec::new();
        let mut names = |field, patterns: &[String]| {
            NamePatterns::new(patterns).unwrap_or_else(|(reason, help)| {
                errors.push(RuleError {
                    field,
                    reason,
                    help,
                });
                NamePatterns::default()
            })
        };
        let repositories = names("repositories", &trigger.repositories);
        let tags = names("tags", &trigger.tags);
        if trigger.repositories.is_empty() {
            errors.push(RuleError {
                field: "repositories",
                reason: "the list is empty, so no image would match".into(),
                help: "write registry.example.com/base/*, or remove the trigger".into(),
            });
        }
        if errors.is_empty() {
            Ok(Self {
                enabled: trigger.enabled,
                repositories,
                tags,
            })
        } else {
            Err(errors)
        }
    }

    /// Returns `true` if the image is in one of the repositories. Other images leave no decision.
    pub fn concerns(&self, push: &RegistryPush) -> bool {
        self.repositories
            .matches(&format!("{}/{}", push.registry, push.repository))
    }

    /// Returns the reason why a run starts.
    ///
    /// # Errors
    /// The reason why no run starts, as a sentence.
    pub fn decide(&self, push: &RegistryPush) -> Result<String, String> {
        if !self.enabled {
            return Err("the trigger for pushed images is off".into());
        }
        if !self.concerns(push) {
            return Err(format!(
                "the repository does not match the task's repositories ({})",
                self.repositories
            ));
        }
        match &push.tag {
            _ if self.tags.is_empty() => {}
            None => return Err("the image was pushed without a tag".into()),
            Some(tag) if !self.tags.matches(tag) => {
                return Err(format!(
                    "the tag `{tag}` does not match the task's tags ({})",
                    self.tags
                ));
            }
            Some(_) => {}
        }
        Ok(format!("{push} was pushed"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(repositories: &[&str], tags: &[&str]) -> ImageRules {
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        ImageRules::new(&RegistryPushTrigger {
            enabled: true,
            repositories: owned(repositories),
            tags: owned(tags),
        })
        .unwrap()
    }

    fn push(repository: &str, tag: Option<&str>) -> RegistryPush {
        RegistryPush {
            registry: "reg.example.com".into(),
            repository: repository.into(),
            tag: tag.map(str::to_owned),
            digest: None,
        }
    }

    #[test]
    fn repositories_and_tags_select_images() {
        let rules = rules(&["reg.example.com/base/*"], &["v*", "!*-rc"]);
        assert!(rules.concerns(&push("base/os", None)));
        assert!(!rules.concerns(&push("base/os/deep", None)));
        assert!(!rules.concerns(&push("app", None)));
        assert_eq!(
            rules.decide(&push("base/os", Some("v1"))).unwrap(),
            "reg.example.com/base/os:v1 was pushed"
        );
        assert!(rules.decide(&push("base/os", Some("v1-rc"))).is_err());
        assert!(rules.decide(&push("base/os", None)).is_err());
    }

    #[test]
    fn trigger_without_repositories_is_a_mistake() {
        let errors = ImageRules::new(&RegistryPushTrigger {
            enabled: true,
            repositories: Vec::new(),
            tags: vec!["[".into()],
        })
        .unwrap_err();
        let fields: Vec<_> = errors.iter().map(|error| error.field).collect();
        assert_eq!(fields, ["tags", "repositories"]);
    }
}
