//! The images that a Dockerfile names, found before its build, so that each is resolved with the
//! run's own login. Pure.
//!
//! Left out: names that only the frontend knows, such as those in ONBUILD instructions of a base,
//! and Dockerfiles that are not on this machine. BuildKit resolves them itself, with the same
//! login.

use std::collections::{BTreeMap, BTreeSet};

use parse_dockerfile::{Flag, Instruction};

use crate::dockerfile::{ExpansionTooLarge, Variables};

/// The build argument that names the frontend's image.
pub(super) const SYNTAX_ARG: &str = "BUILDKIT_SYNTAX";

/// The names in a Dockerfile.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct DockerfileNames {
    /// Images as they are written, with the values of arguments.
    pub(super) images: BTreeSet<String>,
    /// Images of frontends, as they are written.
    pub(super) frontends: BTreeSet<String>,
    /// Platforms of stages.
    pub(super) platforms: BTreeSet<String>,
    /// Names of stages, in lower case.
    pub(super) stages: BTreeSet<String>,
}

impl DockerfileNames {
    /// Parses a Dockerfile for each of `platforms` (`linux/arm64/v8`). `None` if it cannot be
    /// parsed.
    ///
    /// # Errors
    /// [`ExpansionTooLarge`] if its variables expand to too much text.
    pub(super) fn parse(
        text: &str,
        given: &BTreeMap<String, String>,
        platforms: &[String],
        builder: &str,
    ) -> Result<Option<Self>, ExpansionTooLarge> {
        let Ok(dockerfile) = parse_dockerfile::parse(text) else {
            return Ok(None);
        };
        let mut names = Self::default();
        let mut variables = Variables::new(BTreeMap::new());
        let frontend = dockerfile.parser_directives.syntax.as_ref();
        let frontend = frontend.and_then(|syntax| syntax.value.value.split_whitespace().next());
        let given_frontend = given
            .get(SYNTAX_ARG)
            .and_then(|syntax| syntax.split_whitespace().next());
        let frontends = frontend.into_iter().chain(given_frontend);
        names.frontends.extend(frontends.map(str::to_owned));
        names.images.extend(names.frontends.iter().cloned());
        for platform in platforms {
            let mut args = platform_args(platform, builder);
            for (name, value) in given {
                args.insert(name.clone(), value.clone());
            }
            variables.reset(args)?;
            names.add_names(&dockerfile.instructions, &mut variables, given)?;
        }
        Ok(Some(names))
    }

    fn add_names(
        &mut self,
        instructions: &[Instruction<'_>],
        variables: &mut Variables,
        given: &BTreeMap<String, String>,
    ) -> Result<(), ExpansionTooLarge> {
        // A `FROM` can only use the arguments before the first stage.
        let mut global = true;
        let mut stages = 0_usize;
        for instruction in instructions {
            variables.charge_instruction(0)?;
            match instruction {
                Instruction::Arg(arg) if global => {
                    variables.declare(&arg.arguments.value, given)?;
                }
                Instruction::From(from) => {
                    global = false;
                    let image = variables.expand(&from.image.value)?;
                    self.add_image(&image, stages);
                    let options = from.options.iter();
                    let mut named = options.filter(|flag| flag.name.value == "platform");
                    let named = named.find_map(|flag| flag.value.as_ref());
                    if let Some(value) = named {
                        let platform = variables.expand(&value.value)?;
                        self.platforms
                            .extend((!platform.is_empty()).then_some(platform));
                    }
                    stages += 1;
                    if let Some((_, name)) = &from.as_ {
                        self.stages.insert(name.value.to_lowercase());
                    }
                }
                Instruction::Copy(copy) => {
                    self.add_from_option(&copy.options, variables, stages)?;
                }
                Instruction::Add(add) => {
                    self.add_from_option(&add.options, variables, stages)?;
                }
                Instruction::Run(run) => {
                    for mount in run.options.iter().filter(|flag| flag.name.value == "mount") {
                        let value = mount.value.as_ref().map_or("", |value| &*value.value);
                        let from = value.split(',').find_map(|pair| {
                            let (key, value) = pair.split_once('=')?;
                            (key.trim().eq_ignore_ascii_case("from")).then_some(value)
                        });
                        if let Some(from) = from {
                            self.add_image(&variables.expand(from.trim_matches('"'))?, stages);
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Adds the image of `--from`.
    fn add_from_option(
        &mut self,
        options: &[Flag<'_>],
        variables: &mut Variables,
        stages: usize,
    ) -> Result<(), ExpansionTooLarge> {
        let from = options.iter().find(|flag| flag.name.value == "from");
        if let Some(from) = from.and_then(|flag| flag.value.as_ref()) {
            self.add_image(&variables.expand(&from.value)?, stages);
        }
        Ok(())
    }

    /// Adds an image, unless the name is that of an earlier stage or its number.
    fn add_image(&mut self, name: &str, stages: usize) {
        let is_stage = self.stages.contains(&name.to_lowercase())
            || name.parse::<usize>().is_ok_and(|number| number < stages);
        if !name.is_empty() && name != "scratch" && !is_stage {
            self.images.insert(name.to_owned());
        }
    }
}

/// Returns the predefined platform arguments of every Dockerfile.
fn platform_args(target: &str, builder: &str) -> BTreeMap<String, String> {
    let mut args = BTreeMap::new();
    for (prefix, platform) in [("TARGET", target), ("BUILD", builder)] {
        let mut parts = platform.split('/');
        args.insert(format!("{prefix}PLATFORM"), platform.to_owned());
        for part in ["OS", "ARCH", "VARIANT"] {
            let value = parts.next().unwrap_or_default();
            args.insert(format!("{prefix}{part}"), value.to_owned());
        }
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images_of(text: &str, given: &[(&str, &str)], platforms: &[&str]) -> Vec<String> {
        let given = given
            .iter()
            .map(|(k, v)| ((*k).into(), (*v).into()))
            .collect();
        let platforms: Vec<String> = platforms.iter().map(|p| (*p).into()).collect();
        let names = DockerfileNames::parse(text, &given, &platforms, "linux/amd64")
            .unwrap()
            .unwrap();
        names.images.into_iter().collect()
    }

    #[test]
    fn images_of_all_instructions_are_found() {
        let text = "# syntax=docker/dockerfile:1 x\nARG V=1 R=r.io\nARG B=${R}/base\nFROM $B:$V AS One\n\
                    FROM --platform=$BUILDPLATFORM ${R:-x}/tools AS two\nRUN --mount=type=bind,from=mnt:1,target=/m \
                    --mount=type=cache,target=/c ls\nCOPY --from=copied:2 --chown=1 /a /a\nCOPY --from=one /b /b\n\
                    COPY --from=0 /c /c\nADD --link x /x\nFROM one\nFROM scratch\n";
        let expected = [
            "copied:2",
            "docker/dockerfile:1",
            "mnt:1",
            "r.io/base:1",
            "r.io/tools",
        ];
        assert_eq!(images_of(text, &[], &["linux/amd64"]), expected);
        let given = [("V", "9"), ("BUILDKIT_SYNTAX", "front:1")];
        let found = images_of(text, &given, &["linux/amd64"]);
        assert!(found.contains(&"r.io/base:9".to_owned()), "{found:?}");
        assert!(found.contains(&"front:1".to_owned()), "{found:?}");
    }

    #[test]
    fn expansions_have_a_total_limit() {
        let lines = format!(
            "ARG A={}\n{}FROM $A\n",
            "x".repeat(16_000),
            "ARG B=$A\n".repeat(5000)
        );
        let platforms = ["linux/amd64".to_owned()];
        let names = DockerfileNames::parse(&lines, &BTreeMap::new(), &platforms, "linux/amd64");
        assert_eq!(names, Err(ExpansionTooLarge));
    }

    #[test]
    fn lines_of_all_platforms_have_a_total_limit() {
        let platforms: Vec<String> = (1..200).map(|n| format!("linux/amd64/v{n}")).collect();
        let long = BTreeMap::from([("A".to_owned(), "x".repeat(100_000))]);
        for (text, given) in [
            (
                format!("{}FROM $A\n", "ARG A\n".repeat(30_000)),
                long.clone(),
            ),
            (
                format!("FROM a\n{}", "RUN a\n".repeat(30_000)),
                BTreeMap::new(),
            ),
        ] {
            let names = DockerfileNames::parse(&text, &given, &platforms, "linux/amd64");
            assert_eq!(names, Err(ExpansionTooLarge));
        }
        // Lines that repeat a value of the task do not count its size.
        let few = &platforms[..2];
        let text = format!("{}FROM $A\n", "ARG A\n".repeat(30_000));
        let names = DockerfileNames::parse(&text, &long, few, "linux/amd64");
        assert_eq!(names.unwrap().unwrap().images.len(), 1);
    }

    #[test]
    fn stage_name_applies_only_after_its_line() {
        assert_eq!(
            images_of("FROM base AS base\nFROM base\n", &[], &["linux/amd64"]),
            ["base"]
        );
        assert_eq!(
            images_of("FROM 0\nFROM 0\nFROM 2\n", &[], &["linux/amd64"]),
            ["0", "2"]
        );
    }

    #[test]
    fn platform_arguments_are_expanded() {
        let text = "FROM x-$TARGETARCH$TARGETVARIANT\nCOPY --from=y:$BUILDOS /a /a\n";
        let found = images_of(text, &[], &["linux/amd64", "linux/arm/v7"]);
        assert_eq!(found, ["x-amd64", "x-armv7", "y:linux"]);
    }
}
