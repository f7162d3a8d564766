//! The facts of a run: what its spec says, then what git and this machine know.

use acrtask_api::spec::Facts;
use acrtask_source::GitFacts;
use acrtask_spec::{RunFacts, UntrustedFacts};

use crate::{Git, Job};

/// The facts of a run of `text`; and those of `.Run` as the API has them.
pub(crate) fn of(job: &Job<'_>, text: &str) -> (RunFacts, Facts) {
    let spec = job.spec;
    let git = match &job.git {
        Git::Known(facts) => facts.clone(),
        Git::OfFolder(folder) if needs_git(text, &spec.facts) => {
            acrtask_source::facts::of_folder(folder)
        }
        Git::OfFolder(_) => GitFacts::default(),
    };
    let found = filled(job, git);
    let facts = RunFacts {
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
        untrusted: UntrustedFacts {
            values: spec.untrusted_values.clone(),
            // A commit, its branch and its tag are named by whoever made them, also in a folder of one's own.
            git: true,
        },
    };
    (facts, found)
}

/// What the spec leaves open, from git, the first platform, and this machine.
fn filled(job: &Job<'_>, git: GitFacts) -> Facts {
    let given = job.spec.facts.clone();
    let or = |given: String, otherwise: Option<String>| {
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
    Facts {
        registry: registry(&given.registry).to_owned(),
        commit: or(given.commit, git.commit),
        branch: or(given.branch, git.branch),
        git_tag: or(given.git_tag, git.tag),
        repository: or(given.repository, git.repository),
        date: Some(given.date.unwrap_or(job.now)),
        triggered_by: or(given.triggered_by, Some("Manual".into())),
        task_name: given.task_name,
        os: or(given.os, Some(os.into())),
        os_version: given.os_version,
        architecture: or(given.architecture, Some(architecture.into())),
        shared_volume: or(
            given.shared_volume,
            Some(format!("acrtask_{}_workspace", job.id)),
        ),
    }
}

/// A registry as references have it: `https://reg.example.com/` is `reg.example.com`.
fn registry(text: &str) -> &str {
    let host = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"))
        .unwrap_or(text);
    host.trim_end_matches('/')
}

/// The processor of this machine in Go's words, which images use.
pub fn this_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// Whether the text may use a fact that only git knows and that nobody gave. May say yes too often.
fn needs_git(text: &str, given: &Facts) -> bool {
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
    fn git_is_asked_only_for_facts_that_the_file_names_and_nobody_gave() {
        let with_commit = Facts {
            commit: "c".into(),
            ..Facts::default()
        };
        for (text, given, asked) in [
            ("cmd: $Registry/app", &Facts::default(), false),
            ("cmd: $Commit", &Facts::default(), true),
            ("cmd: {{.Run.Commit}}", &with_commit, false),
            ("cmd: {{.Run.Branch}}", &with_commit, true),
            ("cmd: {{.RunJSON}}", &with_commit, true),
        ] {
            assert_eq!(needs_git(text, given), asked, "{text}");
        }
    }

    #[test]
    fn facts_that_nobody_gave() {
        let id = RunId::new("r1").unwrap();
        let find = |spec: &RunSpec| {
            let job = Job {
                id: &id,
                trust: &TrustDomain::Local,
                spec,
                secrets: &BTreeMap::new(),
                files: Files::None,
                context: "/dev/null".into(),
                git: Git::Known(GitFacts {
                    branch: Some("from-git".into()),
                    ..GitFacts::default()
                }),
                allow: Allow::default(),
                vaults: crate::VaultSecrets::Placeholders,
                now: jiff::Timestamp::UNIX_EPOCH,
            };
            of(&job, "").1
        };
        let facts = find(&RunSpec {
            facts: Facts {
                registry: "https://reg.example.com/".into(),
                ..Facts::default()
            },
            platforms: vec!["linux/arm64".into()],
            ..RunSpec::default()
        });
        assert_eq!(facts.registry, "reg.example.com");
        assert_eq!(facts.branch, "from-git");
        assert_eq!(
            (facts.os.as_str(), facts.architecture.as_str()),
            ("linux", "arm64")
        );
        assert_eq!(facts.triggered_by, "Manual");
        assert_eq!(facts.shared_volume, "acrtask_r1_workspace");
        assert_eq!(facts.date, Some(jiff::Timestamp::UNIX_EPOCH));
        let facts = find(&RunSpec::default());
        assert!(
            !facts.architecture.is_empty() && !facts.architecture.contains('_'),
            "{}",
            facts.architecture
        );
    }
}
