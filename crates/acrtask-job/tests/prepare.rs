//! Preparation of plans from specifications, without an engine.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

use std::{collections::BTreeMap, path::Path};

use acrtask_api::spec::{BuildSpec, RunSource, RunSpec, SharedCache, Variables};
use acrtask_executor::Allow;
use acrtask_job::{
    Files, Git, Job, JobError, Prepared, VaultSecrets, diagnostics_from, file_problems, prepare,
};
use acrtask_model::{Digest, RunId, Secret, TrustDomain};
use acrtask_source::GitVariables;
use acrtask_spec::{
    Diagnostic,
    build_line::BuildLine,
    plan::{BuildStep, Plan, StepKind},
    render_diagnostics,
};
use acrtask_vaults::{Access, Settings, VaultSettings, Vaults};
use jiff::Timestamp;

/// A folder with files, and the settings of its run.
struct Case {
    folder: tempfile::TempDir,
    own: bool,
    secrets: BTreeMap<String, Secret>,
    allow: Allow,
    vaults: Option<(Vaults, Access)>,
}

impl Case {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            std::fs::write(folder.path().join(path), text).unwrap();
        }
        Self {
            folder,
            own: false,
            secrets: BTreeMap::new(),
            allow: Allow::default(),
            vaults: None,
        }
    }

    fn vaults(&self) -> VaultSecrets<'_> {
        match &self.vaults {
            Some((vaults, access)) => VaultSecrets::Read {
                vaults,
                access: access.clone(),
            },
            None => VaultSecrets::Placeholders,
        }
    }

    fn secret(mut self, name: &str, value: &str) -> Self {
        self.secrets.insert(name.into(), Secret::new(value));
        self
    }

    fn prepare(&self, spec: &RunSpec) -> Result<Prepared, JobError> {
        let root = self.folder.path().canonicalize().unwrap();
        prepare(&Job {
            id: &RunId::new("r1").unwrap(),
            trust: &TrustDomain::Local,
            spec,
            secrets: &self.secrets,
            files: if self.own {
                Files::OperatorFolder(root)
            } else {
                Files::Fetched(root)
            },
            context: "the context".into(),
            git: Git::Fetched(GitVariables {
                commit: Some("c0ffee".into()),
                ..GitVariables::default()
            }),
            allow: self.allow,
            vaults: self.vaults(),
            now: Timestamp::UNIX_EPOCH,
        })
    }

    fn plan(&self, spec: &RunSpec) -> Plan {
        let prepared = self.prepare(spec).unwrap();
        let shown = render_diagnostics(&prepared.source, &prepared.diagnostics, false, 100);
        prepared.plan.unwrap_or_else(|| panic!("{shown}"))
    }
}

fn spec(source: RunSource) -> RunSpec {
    RunSpec {
        source,
        variables: Variables {
            registry: "reg.io".into(),
            ..Variables::default()
        },
        ..RunSpec::default()
    }
}

fn text(text: &str) -> RunSpec {
    spec(RunSource::Inline {
        name: "task.yaml".into(),
        text: text.into(),
    })
}

fn builds(plan: &Plan) -> Vec<(&BuildStep, &BuildLine)> {
    plan.steps
        .iter()
        .filter_map(|step| match &step.kind {
            StepKind::Build(build) => Some((&**build, build.line.as_ref().unwrap())),
            _ => None,
        })
        .collect()
}

fn line(plan: &Plan) -> String {
    match &plan.steps[0].kind {
        StepKind::Cmd(cmd) => cmd.raw.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_kind_of_source_is_resolved() {
    let case = Case::new(&[
        ("acb.yaml", "steps:\n  - cmd: second\n"),
        ("other.yaml", "steps:\n  - cmd: other\n"),
    ]);
    assert_eq!(line(&case.plan(&spec(RunSource::DefaultFile))), "second");
    let file = RunSource::File {
        path: "other.yaml".into(),
    };
    assert_eq!(line(&case.plan(&spec(file))), "other");
    assert_eq!(line(&case.plan(&text("steps:\n  - cmd: text\n"))), "text");
    let cmd = RunSource::Cmd {
        line: "$Registry/app:$ID say {{.Run.Commit}}".into(),
    };
    assert_eq!(line(&case.plan(&spec(cmd))), "reg.io/app:r1 say c0ffee");
}

#[test]
fn prepare_returns_variables_that_it_found() {
    let variables = Case::new(&[])
        .prepare(&text("steps:\n  - cmd: x\n"))
        .unwrap()
        .variables;
    assert_eq!(
        (variables.registry.as_str(), variables.commit.as_str()),
        ("reg.io", "c0ffee")
    );
    assert_eq!(variables.date, Some(Timestamp::UNIX_EPOCH));
}

#[test]
fn missing_task_file_is_an_error_with_help() {
    let case = Case::new(&[]);
    let error = case.prepare(&spec(RunSource::DefaultFile)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the context the context has no task file"
    );
    assert!(error.help.unwrap().contains("acr-task.yaml"));
    let file = RunSource::File {
        path: "ci/x.yaml".into(),
    };
    let error = case.prepare(&spec(file)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the task file `ci/x.yaml` does not exist"
    );
}

#[test]
fn fetched_context_reads_nothing_of_the_machine() {
    let outside = tempfile::tempdir().unwrap();
    let secret = outside.path().join("secret.yaml");
    std::fs::write(&secret, "steps:\n  - cmd: stolen\n").unwrap();
    let mut case = Case::new(&[]);
    std::os::unix::fs::symlink(&secret, case.folder.path().join("acr-task.yaml")).unwrap();
    let named = |path: &Path| {
        spec(RunSource::File {
            path: path.to_str().unwrap().into(),
        })
    };
    let up = Path::new("..").join(outside.path().file_name().unwrap());
    for spec in [
        spec(RunSource::DefaultFile),
        named(Path::new("acr-task.yaml")),
        named(&secret),
        named(&up.join("secret.yaml")),
    ] {
        let error = case.prepare(&spec).unwrap_err();
        let message = error.to_string();
        assert!(
            message.ends_with("has no task file") || message.ends_with("does not exist"),
            "{message}"
        );
    }
    let environment = text("secrets:\n  - id: s\n    env: PATH\nsteps:\n  - cmd: x\n");
    let refused = case.prepare(&environment).unwrap();
    assert!(refused.plan.is_none(), "{:?}", refused.diagnostics);
    // The operator may use links in the own folder.
    case.own = true;
    assert_eq!(line(&case.plan(&spec(RunSource::DefaultFile))), "stolen");
    assert!(case.prepare(&environment).unwrap().plan.is_some());
}

#[test]
fn forbidden_steps_are_refused_with_their_location() {
    let task = text("steps:\n  - cmd: x\n    privileged: true\n");
    let mut case = Case::new(&[]);
    let refused = case.prepare(&task).unwrap();
    assert!(refused.plan.is_none());
    let codes: Vec<&str> = refused.diagnostics.iter().map(|d| &*d.code).collect();
    assert_eq!(codes, ["not-allowed"]);
    case.allow.privileged = true;
    assert!(case.prepare(&task).unwrap().plan.is_some());
    let machines =
        "networks:\n  - name: theirs\n    skipCreation: true\n  - name: own\n    isDefault: true\n";
    for (step, refused) in [
        ("cmd: x\n    network: host", true),
        ("cmd: x\n    network: theirs", true),
        ("cmd: --network theirs x", true),
        ("cmd: --network bridge x\n    network: theirs", true),
        // Declaring the network is sufficient.
        ("cmd: --network own x\n    network: theirs", true),
        ("cmd: x\n    network: none", true),
        ("cmd: x", true),
    ] {
        let task = text(&format!("{machines}steps:\n  - {step}\n"));
        case.allow.host_network = false;
        let prepared = case.prepare(&task).unwrap();
        assert_eq!(prepared.plan.is_none(), refused, "{step}");
        case.allow.host_network = true;
        assert!(case.prepare(&task).unwrap().plan.is_some(), "{step}");
    }
}

#[test]
fn problems_convert_back_to_equal_diagnostics() {
    let task =
        text("steps:\n  - cmd: x `date`\n    wen: [a]\n  - push: nothing\n  - build: --frob .\n");
    let found = Case::new(&[]).prepare(&task).unwrap();
    assert!(found.diagnostics.iter().any(Diagnostic::is_error));
    let json = serde_json::to_string(&file_problems(&found.diagnostics)).unwrap();
    let received: Vec<_> = serde_json::from_str(&json).unwrap();
    let shown =
        |diagnostics: &[Diagnostic]| render_diagnostics(&found.source, diagnostics, true, 80);
    assert_eq!(
        shown(&diagnostics_from(&received)),
        shown(&found.diagnostics)
    );
    assert_eq!(diagnostics_from(&received), found.diagnostics);
}

#[test]
fn build_source_becomes_a_build_and_a_push_step() {
    let build = |images: &[&str]| {
        spec(RunSource::Build(BuildSpec {
            images: images.iter().map(|image| (*image).to_owned()).collect(),
            dockerfile: "docker/Dockerfile".into(),
            target: Some("test".into()),
            args: [("A".to_owned(), "1".to_owned())].into(),
            secret_args: vec!["TOKEN".into()],
            labels: [("team".to_owned(), "web".to_owned())].into(),
            no_cache: true,
        }))
    };
    let case = Case::new(&[])
        .secret("TOKEN", "hunter2")
        .secret("npm", "s3cret");
    let mut wanted = build(&[
        "sample/hello-world:{{.Run.ID}}",
        "$Registry/app:$ID-{{.Values.v | default \"x\"}}",
        "other.io/app",
    ]);
    wanted.build_secrets = vec!["npm".into()];
    wanted.platforms = vec!["linux/arm64".into()];
    wanted.timeout_secs = Some(60);
    let plan = case.plan(&wanted);
    let built = builds(&plan);
    let [(step, line)] = built.as_slice() else {
        panic!("{plan:?}")
    };
    assert_eq!(
        line.tags,
        [
            "reg.io/sample/hello-world:r1",
            "reg.io/app:r1-x",
            "other.io/app:latest"
        ]
    );
    assert_eq!(line.file.as_deref(), Some("docker/Dockerfile"));
    assert_eq!(line.target.as_deref(), Some("test"));
    assert_eq!(line.platforms, ["linux/arm64"]);
    assert!(line.no_cache);
    assert_eq!(line.labels, [("team".to_owned(), "web".to_owned())]);
    assert_eq!(
        line.build_args,
        [
            ("A".to_owned(), Some("1".to_owned())),
            ("TOKEN".to_owned(), Some("hunter2".to_owned()))
        ]
    );
    assert!(
        step.raw.contains("TOKEN=***") && !step.raw.contains("hunter2"),
        "{}",
        step.raw
    );
    assert_eq!(line.secrets[0].env.as_deref(), Some("ACRTASK_SECRET_npm"));
    assert!(
        plan.steps[0]
            .env
            .contains(&"ACRTASK_SECRET_npm=s3cret".to_owned())
    );
    let masked: Vec<&str> = plan.secrets.iter().map(Secret::expose).collect();
    assert!(masked.contains(&"hunter2") && masked.contains(&"s3cret"));
    assert_eq!(plan.timeout, Some(std::time::Duration::from_secs(60)));
    let StepKind::Push(push) = &plan.steps[1].kind else {
        panic!("{plan:?}")
    };
    assert_eq!(push.images.len(), 3);

    wanted.no_push = true;
    assert_eq!(case.plan(&wanted).steps.len(), 1);
}

#[test]
fn build_of_an_empty_context_is_refused() {
    let refused = |steps: &str| {
        let spec = text(&format!("version: v1.1.0\nsteps:\n{steps}"));
        let prepared = prepare(&Job {
            id: &RunId::new("r1").unwrap(),
            trust: &TrustDomain::Local,
            spec: &spec,
            secrets: &BTreeMap::new(),
            files: Files::None,
            context: "/dev/null".into(),
            git: Git::Fetched(GitVariables::default()),
            allow: Allow::default(),
            vaults: VaultSecrets::Placeholders,
            now: Timestamp::UNIX_EPOCH,
        })
        .unwrap();
        let codes = prepared.diagnostics.iter().filter(|found| found.is_error());
        codes
            .map(|found| found.code.to_string())
            .collect::<Vec<_>>()
    };
    let none = Vec::<String>::new();
    assert_eq!(refused("  - build: -t app:1 .\n"), ["empty-context"]);
    assert_eq!(
        refused("  - build: -t app:1 .\n  - cmd: alpine true\n"),
        ["empty-context"]
    );
    assert_eq!(
        refused("  - cmd: alpine true\n  - build: -t app:1 sub\n    when: ['-']\n"),
        ["empty-context"]
    );
    for allowed in [
        "  - cmd: alpine true\n  - push: [app:1]\n  - build: -t app:1 .\n",
        "  - build: -t app:1 https://example.com/app.git\n",
        "  - build: -t app:1 -f - .\n",
        "  - cmd: alpine true\n",
    ] {
        assert_eq!(refused(allowed), none, "{allowed}");
    }
}

#[test]
fn invalid_builds_are_refused() {
    let build = |image: &str, secret_args: &[&str]| {
        let mut spec = spec(RunSource::Build(BuildSpec {
            images: vec![image.into()],
            dockerfile: "Dockerfile".into(),
            secret_args: secret_args.iter().map(|name| (*name).to_owned()).collect(),
            ..BuildSpec::default()
        }));
        spec.variables.registry.clear();
        spec
    };
    let case = Case::new(&[]);
    let message = |spec: &RunSpec| case.prepare(spec).unwrap_err().to_string();
    insta::assert_snapshot!(
        [
            build("app:1", &[]),
            build("reg.io/App", &[]),
            build("reg.io/app:{{.Run.", &[]),
            build("reg.io/app:1", &["TOKEN"]),
        ]
        .iter()
        .map(message)
        .collect::<Vec<_>>()
        .join("\n")
    );
    let none = Job {
        id: &RunId::new("r1").unwrap(),
        trust: &TrustDomain::Local,
        spec: &build("reg.io/app:1", &[]),
        secrets: &BTreeMap::new(),
        files: Files::None,
        context: "/dev/null".into(),
        git: Git::Fetched(GitVariables::default()),
        allow: Allow::default(),
        vaults: VaultSecrets::Placeholders,
        now: Timestamp::UNIX_EPOCH,
    };
    let error = prepare(&none).unwrap_err();
    assert_eq!(
        error.to_string(),
        "a build needs files, and /dev/null has none"
    );
}

#[test]
fn shared_cache_is_added_to_images_without_a_cache() {
    let mut task = text(
        "steps:\n  - build: -t $Registry/a:1 .\n  - build: .\n  - build: -t $Registry/c:1 --cache-from reg.io/c:x .\n  \
         - build: -t $Registry/d:1 .\n    cache: enabled\n  - id: again\n    build: -t $Registry/a:2 .\n",
    );
    if let RunSource::Inline { text, .. } = &mut task.source {
        text.insert_str(0, "version: v1.1.0\n");
    }
    let case = Case::new(&[]);
    let caches = |task: &RunSpec| -> Vec<Option<(String, bool)>> {
        let plan = case.plan(task);
        let caches = builds(&plan).into_iter().map(|(step, _)| {
            let cache = step.cache.as_ref()?;
            Some((cache.reference.to_string(), cache.export))
        });
        caches.collect()
    };
    let own = ("reg.io/d:cache_quickrun_acb_step_3".to_owned(), true);
    assert_eq!(caches(&task), [None, None, None, Some(own.clone()), None]);
    for (shared, export) in [
        (
            SharedCache::ReadWrite {
                name: "team/app".into(),
            },
            true,
        ),
        (
            SharedCache::ReadOnly {
                name: "team/app".into(),
            },
            false,
        ),
    ] {
        task.cache = shared;
        let first = ("reg.io/a:cache_team-app".to_owned(), export);
        let again = ("reg.io/a:cache_team-app_again".to_owned(), export);
        assert_eq!(
            caches(&task),
            [Some(first), None, None, Some(own.clone()), Some(again)]
        );
    }
}

#[test]
fn pins_reach_the_plan() {
    let digest: Digest = format!("sha256:{}", "a".repeat(64)).parse().unwrap();
    let mut task = text("steps:\n  - cmd: x\n");
    for name in ["alpine", "reg.io/base:1", "no reference"] {
        task.pins.insert(name.into(), digest.clone());
    }
    let prepared = Case::new(&[]).prepare(&task).unwrap();
    let pins: Vec<String> = prepared
        .plan
        .unwrap()
        .pins
        .keys()
        .map(ToString::to_string)
        .collect();
    assert_eq!(pins, ["docker.io/library/alpine:latest", "reg.io/base:1"]);
    let codes: Vec<&str> = prepared.diagnostics.iter().map(|d| &*d.code).collect();
    assert_eq!(codes, ["not-pinned"]);
}

#[test]
fn shorter_timeout_applies() {
    let mut task = text("steps:\n  - cmd: x\n");
    let case = Case::new(&[]);
    assert_eq!(case.plan(&task).timeout, None);
    task.timeout_secs = Some(5);
    assert_eq!(
        case.plan(&task).timeout,
        Some(std::time::Duration::from_secs(5))
    );
}

const WITH_VAULTS: &str = "version: v1.1.0\nsecrets:\n  - id: azure\n    keyvault: \
    https://team.vault.azure.net/secrets/pass\n  - id: vault\n    vault: secret/app#key\nvolumes:\n  - name: v\n    \
    secret:\n      a: {{.Secrets.azure}}\nsteps:\n  - cmd: alpine echo {{.Secrets.vault}}\n    volumeMounts: [{name: v, \
    mountPath: /v}]\n";

fn messages(prepared: &Prepared) -> Vec<String> {
    let found = prepared.diagnostics.iter();
    found.map(|found| found.message.clone()).collect()
}

#[test]
fn plan_reads_no_vault() {
    let case = Case::new(&[]);
    let plan = case.plan(&text(WITH_VAULTS));
    let placeholder = line(&plan).replace("alpine echo ", "");
    assert!(
        plan.secrets
            .iter()
            .any(|secret| secret.expose() == placeholder)
    );
    // The operator of a runner may list another host.
    let elsewhere = WITH_VAULTS.replace("team.vault.azure.net", "kv.example.com");
    case.plan(&text(&elsewhere));
    let wrong = WITH_VAULTS.replace("https://team.vault.azure.net/secrets/pass", "pass");
    let prepared = case.prepare(&text(&wrong)).unwrap();
    assert!(prepared.plan.is_none());
    assert!(
        messages(&prepared)[0].contains("`pass` cannot be read"),
        "{:?}",
        messages(&prepared)
    );
}

#[test]
fn secrets_of_vaults_need_settings_or_a_value() {
    let mut case = Case::new(&[]);
    case.vaults = Some((
        Vaults::new(Settings::default(), Vec::new()),
        Access::Everything,
    ));
    let found = messages(&case.prepare(&text(WITH_VAULTS)).unwrap());
    assert!(
        found[0].contains("AZURE_TENANT_ID") && found[1].contains("VAULT_ADDR"),
        "{found:?}"
    );
    // A given value takes precedence, and no vault is read.
    let mut given = text(WITH_VAULTS);
    given.secrets = vec!["azure".into(), "vault".into()];
    let case = case
        .secret("azure", "aHVzaA==")
        .secret("vault", "own value");
    assert_eq!(line(&case.plan(&given)), "alpine echo own value");
}

#[test]
fn unreachable_vault_is_not_a_problem_of_the_file() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let mut case = Case::new(&[]);
    let settings = Settings {
        vault: VaultSettings {
            address: Some(address),
            token: Some(Secret::new("t1")),
            ..VaultSettings::default()
        },
        ..Settings::default()
    };
    case.vaults = Some((Vaults::new(settings, Vec::new()), Access::Everything));
    let task = "version: v1.1.0\nsecrets:\n  - id: a\n    vault: kv/app#{{.Values.x}}\nsteps:\n  - cmd: alpine true\n";
    let mut given = text(task);
    given.secrets = vec!["x".into()];
    let case = case.secret("x", "hush-key");
    let error = case.prepare(&given).unwrap_err();
    assert!(error.unreachable, "{error}");
    assert!(
        error.message.contains("the secret `a` has no value"),
        "{error}"
    );
    assert!(!error.message.contains("hush-key"), "{error}");
}
