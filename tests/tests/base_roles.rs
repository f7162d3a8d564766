//! Role of each image of a build: the bases recorded as runtime are those in the history of the
//! image.
//!
//! Bases leave a mark in the history of every image built from them. So the history of the pushed
//! image shows its base, however its Dockerfile spells the name. The first test has a table of
//! spellings that were once parsed wrongly. The second test builds random Dockerfiles.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    time::{SystemTime, UNIX_EPOCH},
};

use acrtask_tests::{
    Outcome, TestEnvironment,
    dice::Dice,
    git_server::{HttpGit, Repositories},
    new_run_id,
    project::{RegistryClient, create_folder},
};

/// Names of the bases.
const BASES: [&str; 3] = ["a", "b", "c"];

/// Build with its Dockerfile and its arguments.
struct Build {
    /// Folder of the build context.
    folder: String,
    /// Name and text of the Dockerfile in that folder.
    file: (&'static str, String),
    /// Options of the build line, and its context.
    line: String,
}

/// Repository of the bases and images of one test.
struct Images {
    registry: String,
    repository: String,
}

impl Images {
    fn new(environment: &TestEnvironment) -> Self {
        Self {
            registry: environment.registry.clone(),
            repository: format!("roles/{}", new_run_id()),
        }
    }

    /// Returns the name of a base without its registry: `roles/ID/a:v1`.
    fn base_path(&self, base: &str) -> String {
        format!("{}/{base}:v1", self.repository)
    }

    /// Returns the name of a base.
    fn base_name(&self, base: &str) -> String {
        format!("{}/{}", self.registry, self.base_path(base))
    }

    /// Builds and pushes the bases.
    fn push_bases(&self, environment: &TestEnvironment) {
        let mut task = "version: v1.1.0\nsteps:\n".to_owned();
        let mut files = Vec::new();
        for base in BASES {
            let text = format!(
                "FROM {}\nRUN echo this is base {base} > /mark-{base}\n",
                environment.busybox()
            );
            files.push((format!("{base}.Dockerfile"), text));
            let name = self.base_name(base);
            writeln!(
                task,
                "  - build: -t {name} -f {base}.Dockerfile .\n  - push: [{name}]"
            )
            .unwrap();
        }
        let outcome = run_task(environment, &task, &files);
        assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    }

    /// Builds everything in one run. Compares the recorded bases of each image with its history.
    async fn assert_recorded(
        &self,
        environment: &TestEnvironment,
        builds: &BTreeMap<String, Build>,
    ) {
        let mut task = "version: v1.1.0\nsteps:\n".to_owned();
        let mut files = Vec::new();
        for (id, build) in builds {
            let name = format!("{}/{}/result:{id}", self.registry, self.repository);
            writeln!(
                task,
                "  - id: {id}\n    build: -t {name} {}\n  - push: [{name}]",
                build.line
            )
            .unwrap();
            let path = format!("{}/{}", build.folder, build.file.0);
            files.push((path, build.file.1.clone()));
        }
        let outcome = run_task(environment, &task, &files);
        assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
        let client = RegistryClient::new(&self.registry, None);
        let mut wrong = Vec::new();
        for (id, build) in builds {
            let repository = format!("{}/result", self.repository);
            let (_, manifest) = client
                .fetch_manifest(&format!("{repository}:{id}"))
                .await
                .unwrap();
            let config = manifest["config"]["digest"].as_str().unwrap();
            let config = client.fetch_json(&repository, config).await;
            let history = config["history"].to_string();
            let expected: BTreeSet<&str> = BASES
                .into_iter()
                .filter(|base| history.contains(&format!("this is base {base} ")))
                .collect();
            let recorded = self.recorded_bases(&outcome, id);
            if recorded != expected {
                wrong.push(format!(
                    "{id}: recorded {recorded:?}, the history has {expected:?}\n{}\n{}",
                    build.line, build.file.1
                ));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n---\n"));
    }

    /// Returns the bases that a step recorded as runtime.
    fn recorded_bases(&self, outcome: &Outcome, step: &str) -> BTreeSet<&'static str> {
        let used = outcome.events_named("base_used");
        let runtime = used
            .iter()
            .filter(|event| event["step"] == step && event["role"] == "runtime");
        let names: Vec<&str> = runtime
            .map(|event| event["name"].as_str().unwrap())
            .collect();
        let is_named = |base: &&str| {
            let repository = format!("{}/{base}", self.repository);
            names.iter().any(|name| name.contains(&repository))
        };
        let found: BTreeSet<&'static str> =
            BASES.into_iter().filter(|base| is_named(base)).collect();
        assert_eq!(found.len(), names.len(), "other images: {names:?}");
        found
    }
}

fn run_task(environment: &TestEnvironment, task: &str, files: &[(String, String)]) -> Outcome {
    let mut all = vec![("acr-task.yaml", task)];
    all.extend(
        files
            .iter()
            .map(|(path, text)| (path.as_str(), text.as_str())),
    );
    let files = create_folder(&all);
    environment
        .start(files.path(), &["run", "--local", "-o", "json", "."])
        .wait()
}

#[tokio::test]
async fn runtime_bases_are_recorded_for_every_spelling() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let images = Images::new(&environment);
    images.push_bases(&environment);
    let (a, b, c) = (
        images.base_name("a"),
        images.base_name("b"),
        images.base_name("c"),
    );
    let (registry, path) = (&images.registry, images.base_path("a"));
    let untagged = a.trim_end_matches(":v1");
    let copy = "COPY --from=0 /bin/true /t\n";
    let rows = [
        (
            "platform",
            "",
            format!("FROM {a} AS app-amd64\nFROM {b} AS app-arm64\nFROM app-${{TARGETARCH}}\n"),
        ),
        ("quoted", "", format!("FROM {b}\nFROM \"{a}\"\n{copy}")),
        ("single-quoted", "", format!("FROM {b}\nFROM '{a}'\n{copy}")),
        (
            "quoted-part",
            "",
            format!("ARG REG={registry}\nFROM {b}\nFROM ${{REG:+\"$REG/\"}}{path}\n{copy}"),
        ),
        (
            "prefix",
            "",
            format!("ARG V=vv1\nFROM {b}\nFROM {untagged}:${{V#v}}\n{copy}"),
        ),
        (
            "suffix",
            "",
            format!("ARG V=v1-rc\nFROM {b}\nFROM {untagged}:${{V%-*}}\n{copy}"),
        ),
        (
            "replaced",
            "",
            format!("ARG P=roles//ID\nARG V=x1\nFROM {b}\nFROM {untagged}:${{V//x/v}}\n{copy}"),
        ),
        (
            "set",
            "",
            format!("ARG V=set\nFROM {b}\nFROM {untagged}:${{V+v1}}\n{copy}"),
        ),
        (
            "unset",
            "",
            format!("FROM {b}\nFROM {untagged}:${{V:-v1}}\n{copy}"),
        ),
        (
            "argument",
            "--build-arg V=v1 ",
            format!("ARG V\nFROM {b}\nFROM {untagged}:$V\n{copy}"),
        ),
        (
            "named",
            "--build-context alpine=docker-image://A ",
            format!("FROM {b}\nFROM alpine\n{copy}"),
        ),
        (
            "named-stage",
            "--build-context base=docker-image://A ",
            format!("FROM {b} AS base\nFROM {c}\nFROM base\n"),
        ),
        ("scratch", "", format!("FROM {a}\nFROM scratch\n{copy}")),
        (
            "link",
            "",
            format!("FROM {b}\nFROM {a}\nCOPY --link --from=0 /bin/true /t\n"),
        ),
        (
            "mount",
            "",
            format!("FROM {b} AS tools\nFROM {a}\nRUN --mount=from=tools,target=/m true\n"),
        ),
        (
            "target",
            "--target first ",
            format!("FROM {a} AS first\nRUN true\nFROM {b}\n"),
        ),
        (
            "same-twice",
            "",
            format!("FROM {a} AS build\nFROM {a}\nCOPY --from=build /bin/true /t\n"),
        ),
        (
            "case",
            "",
            format!("FROM {a} AS Base\nFROM {b}\nFROM base\n"),
        ),
        (
            "heredoc",
            "",
            format!("FROM {b}\nFROM {a}\nCOPY <<EOF /t\nFROM {c}\nEOF\n"),
        ),
        (
            "continued",
            "",
            format!("FROM {b}\nFROM \\\n  # a comment\n  {a}\n{copy}"),
        ),
        (
            "escape",
            "",
            format!("# escape=`\nFROM {b}\nFROM `\n  {a}\n{copy}"),
        ),
    ];
    let mut builds = BTreeMap::new();
    for (id, options, text) in rows {
        let options = options.replace("docker-image://A", &format!("docker-image://{a}"));
        builds.insert(
            id.to_owned(),
            Build {
                folder: id.into(),
                file: ("Dockerfile", text),
                line: format!("{options}{id}"),
            },
        );
    }
    // A file that docker finds without an option.
    builds.insert(
        "lower-case".into(),
        Build {
            folder: "lower-case".into(),
            file: ("dockerfile", format!("FROM {b}\nFROM {a}\n{copy}")),
            line: "lower-case".into(),
        },
    );
    // A Dockerfile that exists only in a remote repository.
    let repositories = Repositories::default();
    repositories.create("app");
    let text = format!("FROM {b}\nFROM {a}\n{copy}");
    repositories.commit("app", &[("Dockerfile", &text)]);
    let git = HttpGit::start(&repositories.root(), None);
    builds.insert(
        "remote".into(),
        Build {
            folder: "unused".into(),
            file: ("file", String::new()),
            line: format!("{}#main", git.url("app")),
        },
    );
    images.assert_recorded(&environment, &builds).await;
}

/// Picks one of the texts.
fn pick<'a>(dice: &mut Dice, of: &[&'a str]) -> &'a str {
    of[dice.below(of.len() as u32) as usize]
}

/// Generates a Dockerfile of up to four stages and the options of its build.
fn random_build(dice: &mut Dice, images: &Images) -> (String, String) {
    let mut head = "# syntax-free\n".to_owned();
    let mut options = String::new();
    let mut text = String::new();
    let stages = 1 + dice.below(4);
    for stage in 0..stages {
        let base = pick(dice, &BASES);
        let (name, path) = (images.base_name(base), images.base_path(base));
        let spelled = match dice.below(9) {
            0 => format!("\"{name}\""),
            1 => {
                writeln!(head, "ARG BASE{stage}={name}").unwrap();
                format!("$BASE{stage}")
            }
            2 => {
                writeln!(head, "ARG REG{stage}={}", images.registry).unwrap();
                format!("${{REG{stage}:+\"$REG{stage}/\"}}{path}")
            }
            3 => {
                writeln!(head, "ARG TAG{stage}=xv1-y").unwrap();
                let tag = format!("${{TAG{stage}#x}}");
                writeln!(head, "ARG SHORT{stage}={tag}").unwrap();
                format!("{}:${{SHORT{stage}%-*}}", name.trim_end_matches(":v1"))
            }
            4 => {
                write!(options, "--build-arg GIVEN{stage}={name} ").unwrap();
                writeln!(head, "ARG GIVEN{stage}=nothing").unwrap();
                format!("${{GIVEN{stage}}}")
            }
            5 => {
                write!(
                    options,
                    "--build-context named{stage}=docker-image://{name} "
                )
                .unwrap();
                format!("named{stage}")
            }
            6 | 7 if stage > 0 => format!("stage{}", dice.below(stage)),
            _ => name,
        };
        let platform = pick(
            dice,
            &[
                "",
                "",
                "--platform=$BUILDPLATFORM ",
                "--platform=linux/amd64 ",
            ],
        );
        let r#as = pick(dice, &["AS", "as"]);
        writeln!(text, "FROM {platform}{spelled} {as} stage{stage}").unwrap();
        for line in 0..dice.below(3) {
            let other = dice.below(stage.max(1));
            match dice.below(4) {
                0 if stage > 0 => writeln!(text, "COPY --from=stage{other} /bin/true /t{line}"),
                1 if stage > 0 => {
                    writeln!(text, "COPY --link --from=stage{other} /bin/true /l{line}")
                }
                2 if stage > 0 => writeln!(text, "RUN --mount=from=stage{other},target=/m true"),
                _ => writeln!(text, "RUN true {line}"),
            }
            .unwrap();
        }
    }
    if dice.below(5) == 0 {
        write!(options, "--target stage{} ", dice.below(stages)).unwrap();
    }
    (format!("{head}{text}"), options)
}

#[tokio::test]
async fn runtime_bases_of_random_dockerfiles_match_the_image_history() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let images = Images::new(&environment);
    images.push_bases(&environment);
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = u64::try_from(since.as_micros()).unwrap() | 1;
    println!("seed {seed}");
    let mut dice = Dice::new(seed);
    let mut builds = BTreeMap::new();
    for number in 0..20 {
        let id = format!("random{number}");
        let (text, options) = random_build(&mut dice, &images);
        builds.insert(
            id.clone(),
            Build {
                folder: id.clone(),
                file: ("Dockerfile", text),
                line: format!("{options}{id}"),
            },
        );
    }
    images.assert_recorded(&environment, &builds).await;
}
