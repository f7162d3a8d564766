//! The images that a Dockerfile names, found before its build, so that each is resolved with the run's own login. Pure.
//!
//! Left out: names that only the frontend knows, such as those in ONBUILD instructions of a base, and Dockerfiles that
//! are not on this machine. BuildKit asks their registries itself, with the same login.

use std::collections::{BTreeMap, BTreeSet};

use parse_dockerfile::{Flag, Instruction};

use crate::dockerfile::{declared, expand};

/// The build argument that names the frontend's image.
pub(super) const SYNTAX_ARG: &str = "BUILDKIT_SYNTAX";

/// What a Dockerfile names.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Images as they are written, with the values of arguments.
    pub(super) images: BTreeSet<String>,
    /// Images of frontends, as they are written.
    pub(super) frontends: BTreeSet<String>,
    /// Platforms of stages.
    pub(super) platforms: BTreeSet<String>,
    /// Names of stages, in lower case.
    pub(super) stages: BTreeSet<String>,
}

impl Seen {
    /// Reads a Dockerfile for each of `platforms` (`linux/arm64/v8`). `None` if it cannot be read.
    pub(super) fn of(
        text: &str,
        given: &BTreeMap<String, String>,
        platforms: &[String],
        builder: &str,
    ) -> Option<Self> {
        let dockerfile = parse_dockerfile::parse(text).ok()?;
        let mut seen = Self::default();
        let frontend = dockerfile.parser_directives.syntax.as_ref();
        let frontend = frontend.and_then(|syntax| syntax.value.value.split_whitespace().next());
        let given_frontend = given
            .get(SYNTAX_ARG)
            .and_then(|syntax| syntax.split_whitespace().next());
        let frontends = frontend.into_iter().chain(given_frontend);
        seen.frontends.extend(frontends.map(str::to_owned));
        seen.images.extend(seen.frontends.iter().cloned());
        for platform in platforms {
            let mut args = platform_args(platform, builder);
            for (name, value) in given {
                args.insert(name.clone(), value.clone());
            }
            seen.read(&dockerfile.instructions, args, given);
        }
        Some(seen)
    }

    fn read(
        &mut self,
        instructions: &[Instruction<'_>],
        mut args: BTreeMap<String, String>,
        given: &BTreeMap<String, String>,
    ) {
        // Only what is before the first stage is known in a FROM.
        let mut global = true;
        let mut stages = 0_usize;
        for instruction in instructions {
            match instruction {
                Instruction::Arg(arg) if global => {
                    for (name, default) in declared(&arg.arguments.value) {
                        let value = given.get(&name).cloned();
                        let value = value.or_else(|| default.map(|text| expand(&text, &args)));
                        if let Some(value) = value {
                            args.insert(name, value);
                        }
                    }
                }
                Instruction::From(from) => {
                    global = false;
                    let image = expand(&from.image.value, &args);
                    self.image(&image, stages);
                    let options = from.options.iter();
                    let mut named = options.filter(|flag| flag.name.value == "platform");
                    let named = named.find_map(|flag| flag.value.as_ref());
                    let named = named.map(|value| expand(&value.value, &args));
                    self.platforms
                        .extend(named.filter(|platform| !platform.is_empty()));
                    stages += 1;
                    if let Some((_, name)) = &from.as_ {
                        self.stages.insert(name.value.to_lowercase());
                    }
                }
                Instruction::Copy(copy) => self.option(&copy.options, &args, stages),
                Instruction::Add(add) => self.option(&add.options, &args, stages),
                Instruction::Run(run) => {
                    for mount in run.options.iter().filter(|flag| flag.name.value == "mount") {
                        let value = mount.value.as_ref().map_or("", |value| &*value.value);
                        let from = value.split(',').find_map(|pair| {
                            let (key, value) = pair.split_once('=')?;
                            (key.trim().eq_ignore_ascii_case("from")).then_some(value)
                        });
                        if let Some(from) = from {
                            self.image(&expand(from.trim_matches('"'), &args), stages);
                        }
                    }
                }
                _ => {}
            }
        }
    }

    /// Adds the image of `--from`.
    fn option(&mut self, options: &[Flag<'_>], args: &BTreeMap<String, String>, stages: usize) {
        let from = options.iter().find(|flag| flag.name.value == "from");
        if let Some(from) = from.and_then(|flag| flag.value.as_ref()) {
            self.image(&expand(&from.value, args), stages);
        }
    }

    /// Adds an image, unless the name is that of an earlier stage or its number.
    fn image(&mut self, name: &str, stages: usize) {
        let is_stage = self.stages.contains(&name.to_lowercase())
            || name.parse::<usize>().is_ok_and(|number| number < stages);
        if !name.is_empty() && name != "scratch" && !is_stage {
            self.images.insert(name.to_owned());
        }
    }
}

/// The arguments that every Dockerfile has.
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

    fn seen(text: &str, given: &[(&str, &str)], platforms: &[&str]) -> Vec<String> {
        let given = given
            .iter()
            .map(|(k, v)| ((*k).into(), (*v).into()))
            .collect();
        let platforms: Vec<String> = platforms.iter().map(|p| (*p).into()).collect();
        let seen = Seen::of(text, &given, &platforms, "linux/amd64").unwrap();
        seen.images.into_iter().collect()
    }

    #[test]
    fn finds_the_images_of_all_instructions() {
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
        assert_eq!(seen(text, &[], &["linux/amd64"]), expected);
        let given = [("V", "9"), ("BUILDKIT_SYNTAX", "front:1")];
        let found = seen(text, &given, &["linux/amd64"]);
        assert!(found.contains(&"r.io/base:9".to_owned()), "{found:?}");
        assert!(found.contains(&"front:1".to_owned()), "{found:?}");
    }

    #[test]
    fn a_stage_counts_only_after_its_own_line() {
        assert_eq!(
            seen("FROM base AS base\nFROM base\n", &[], &["linux/amd64"]),
            ["base"]
        );
        assert_eq!(
            seen("FROM 0\nFROM 0\nFROM 2\n", &[], &["linux/amd64"]),
            ["0", "2"]
        );
    }

    #[test]
    fn arguments_of_the_platform_have_values() {
        let text = "FROM x-$TARGETARCH$TARGETVARIANT\nCOPY --from=y:$BUILDOS /a /a\n";
        let found = seen(text, &[], &["linux/amd64", "linux/arm/v7"]);
        assert_eq!(found, ["x-amd64", "x-armv7", "y:linux"]);
    }
}
