//! The variables of a run. The values of its spec take precedence over those of git and of this
//! machine.

use acrtask_api::spec::Variables;
use acrtask_source::GitVariables;
use acrtask_spec::{RunVariables, UntrustedVariables};

use crate::{Git, Job};

/// Returns all inputs of the templates in `text`, and the variables of `.Run` for the API.
pub(crate) fn collect(job: &Job<'_>, text: &str) -> (RunVariables, Variables) {
    let spec = job.spec;
    let git = match &job.git {
        Git::Fetched(facts) => facts.clone(),
        Git::Folder(folder) if needs_git(text, &spec.variables) => {
            acrtask_source::git_variables::read_folder(folder)
        }
        Git::Folder(_) => GitVariables::default(),
    };
    let found = fill_variables(job, git);
    let facts = RunVariables {
        id: job.id.to_string(),
        registry: found.registry.clone(),
        commit: found.commit.clone(),
        branch: found.branch.clone(),
        git_tag: found.git_tag.clone(),
        repository: found.repository.clone(),
        date: found.date.unwrap_or(job.now),
        shared_volume: found.shared_volume.clone(),
        os: found.os.clone(),
        os_version: found.os_version.clone(),
        architecture: found.architecture.clone(),
        triggered_by: found.triggered_by.clone(),
        task_name: found.task_name.clone(),
        values: spec.values.clone(),
        set: spec.set.clone().into_iter().collect(),
        secrets: job
            .secrets
            .iter()
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect(),
        env: spec.env.iter().map(|(k, v)| format!("{k}={v}")).collect(),
        images: spec.alias_images.clone(),
        untrusted: UntrustedVariables {
            values: spec.untrusted_values.clone(),
            // The author of a commit chooses its id, branch and tag, even in the operator's own
            // folder.
            git: true,
        },
    };
    (facts, found)
}

/// Returns the variables of the spec. Missing ones come from git, the first platform, and this
/// machine.
fn fill_variables(job: &Job<'_>, git: GitVariables) -> Variables {
    let given = job.spec.variables.clone();
    let value_or = |given: String, otherwise: Option<String>| {
        if given.is_empty() {
            otherwise.unwrap_or_default()
        } else {
            given
        }
    };
    let mut platform = job.spec.platforms.first().into_iter();
    let mut platform = platform.next().map_or("", String::as_str).split('/');
    let (os, architecture) = (
        platform
            .next()
            .filter(|os| !os.is_empty())
            .unwrap_or("linux"),
        platform.next().unwrap_or_else(|| this_architecture()),
    );
    Variables {
        registry: registry_host(&given.registry).to_owned(),
        commit: value_or(given.commit, git.commit),
        branch: value_or(given.branch, git.branch),
        git_tag: value_or(given.git_tag, git.tag),
        repository: value_or(given.repository, git.repository),
        date: Some(given.date.unwrap_or(job.now)),
        triggered_by: value_or(given.triggered_by, Some("Manual".into())),
        task_name: given.task_name,
        os: value_or(given.os, Some(os.into())),
        os_version: given.os_version,
        architecture: value_or(given.architecture, Some(architecture.into())),
        shared_volume: value_or(
            given.shared_volume,
            Some(format!("acrtask_{}_workspace", job.id)),
        ),
    }
}

/// Returns the host of a registry: `reg.example.com` for `https://reg.example.com/`.
fn registry_host(text: &str) -> &str {
    let host = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"))
        .unwrap_or(text);
    host.trim_end_matches('/')
}

/// Returns the processor of this machine under Go's name, which images use.
pub fn this_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// Returns `true` if the text may use a variable that only git provides. May return `true` without
/// need.
fn needs_git(text: &str, given: &Variables) -> bool {
    let facts = [
        ("Commit", &given.commit),
        ("Branch", &given.branch),
        ("GitTag", &given.git_tag),
        ("Repository", &given.repository),
    ];
    facts
        .iter()
        .any(|(name, given)| given.is_empty() && text.contains(name))
        || (text.contains("RunJSON") || text.contains(".Run }}"))
            && facts.iter().any(|(_, given)| given.is_empty())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use acrtask_api::spec::RunSpec;
    use acrtask_executor::Allow;
    use acrtask_model::{RunId, TrustDomain};

    use super::*;
    use crate::Files;

    #[test]
    fn git_is_called_only_for_named_variables_without_a_value() {
        let with_commit = Variables {
            commit: "c".into(),
            ..Variables::default()
        };
        for (text, given, expected) in [
            ("cmd: $Registry/app", &Variables::default(), false),
            ("cmd: $Commit", &Variables::default(), true),
            ("cmd: {{.Run.Commit}}", &with_commit, false),
            ("cmd: {{.Run.Branch}}", &with_commit, true),
            ("cmd: {{.RunJSON}}", &with_commit, true),
        ] {
            assert_eq!(needs_git(text, given), expected, "{text}");
        }
    }

    #[test]
    fn missing_variables_have_defaults() {
        let id = RunId::new("r1").unwrap();
        let find = |spec: &RunSpec| {
            let job = Job {
                id: &id,
                trust: &TrustDomain::Local,
                spec,
                secrets: &BTreeMap::new(),
                files: Files::None,
                context: "/dev/null".into(),
                git: Git::Fetched(GitVariables {
                    branch: Some("from-git".into()),
                    ..GitVariables::default()
                }),
                allow: Allow::default(),
                vaults: crate::VaultSecrets::Placeholders,
                now: jiff::Timestamp::UNIX_EPOCH,
            };
            collect(&job, "").1
        };
        let variables = find(&RunSpec {
            variables: Variables {
                registry: "https://reg.example.com/".into(),
                ..Variables::default()
            },
            platforms: vec!["linux/arm64".into()],
            ..RunSpec::default()
        });
        assert_eq!(variables.registry, "reg.example.com");
        assert_eq!(variables.branch, "from-git");
        assert_eq!(
            (variables.os.as_str(), variables.architecture.as_str()),
            ("linux", "arm64")
        );
        assert_eq!(variables.triggered_by, "Manual");
        assert_eq!(variables.shared_volume, "acrtask_r1_workspace");
        assert_eq!(variables.date, Some(jiff::Timestamp::UNIX_EPOCH));
        let variables = find(&RunSpec::default());
        assert!(
            !variables.architecture.is_empty() && !variables.architecture.contains('_'),
            "{}",
            variables.architecture
        );
    }
}
