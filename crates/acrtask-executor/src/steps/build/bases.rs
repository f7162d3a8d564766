//! The role of each image that a build used: base of the result, base of another stage, or
//! frontend.
//!
//! Names, digests and roles come from the build's provenance. It names the image that the result's
//! file system begins with. If the endpoint records no steps, the text of the Dockerfile decides.
//! If its final base is not among the used images, every image counts as the base. An unnecessary
//! rebuild is better than a missing one.

use std::collections::{BTreeMap, BTreeSet};

use acrtask_buildkit::UsedSource;
use acrtask_model::{
    EventKind, ImageRef,
    events::{BaseRole, Evidence},
};
use parse_dockerfile::Instruction;

use super::Recipe;
use crate::{context::StepContext, dockerfile::Variables};

/// Sends an event for every image that a build used.
pub(crate) async fn send_used(ctx: &StepContext, recipe: &Recipe, used: &[UsedSource]) {
    let args = recipe
        .build_args()
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect::<BTreeMap<_, _>>();
    let (text, target) = (recipe.dockerfile_text(), recipe.target().map(str::to_owned));
    let reading = tokio::task::spawn_blocking(move || {
        text.and_then(|text| Roots::parse(&text, target.as_deref(), args))
    });
    let roots = reading.await.ok().flatten();
    let images = group_by_image(used);
    // The engine has an image of this run under another name.
    let name_of = |reference: &str| {
        let own = recipe.own_name(reference).map(ToString::to_string);
        own.unwrap_or_else(|| reference.to_owned())
    };
    let names: Vec<String> = images
        .keys()
        .map(|(reference, _)| name_of(reference))
        .collect();
    let read = ReadRoles::new(roots, &names);
    for (((reference, digest), use_of), read_name) in images.into_iter().zip(names) {
        let Ok(digest) = digest.parse() else {
            continue;
        };
        let Some(name) = recipe.used_name(reference) else {
            continue;
        };
        ctx.run
            .events
            .send(EventKind::BaseUsed {
                step: ctx.step.id.clone(),
                role: read.role(&read_name, use_of.is_base),
                name,
                digest: recipe.registry_digest(digest),
                evidence: Evidence::Provenance,
                platforms: use_of.platforms,
            })
            .await;
    }
}

/// The use of an image, as the provenance records it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Use {
    /// Platforms of the use. Empty if one of them is unknown.
    platforms: Vec<String>,
    /// `None` if the provenance does not contain it.
    is_base: Option<bool>,
}

/// Returns the images among the sources of a build, by name and digest.
fn group_by_image(used: &[UsedSource]) -> BTreeMap<(&str, &str), Use> {
    let mut sources: BTreeMap<(&str, &str), Vec<&UsedSource>> = BTreeMap::new();
    for source in used.iter().filter(|source| source.is_image()) {
        let image = (source.reference.as_str(), source.digest.as_str());
        sources.entry(image).or_default().push(source);
    }
    let merge = |sources: Vec<&UsedSource>| {
        let platforms: Option<BTreeSet<String>> = sources
            .iter()
            .map(|source| source.platform.clone())
            .collect();
        let bases: Vec<Option<bool>> = sources.iter().map(|source| source.is_base).collect();
        Use {
            platforms: platforms.into_iter().flatten().collect(),
            is_base: match bases.contains(&Some(true)) {
                true => Some(true),
                false => (!bases.contains(&None)).then_some(false),
            },
        }
    };
    let images = sources.into_iter();
    images
        .map(|(image, sources)| (image, merge(sources)))
        .collect()
}

/// Roles from the text of a Dockerfile, for images without a role in the provenance.
struct ReadRoles {
    /// `None` without a text, or if its final base is not one of the images.
    roots: Option<Roots>,
    frontend: Option<String>,
}

impl ReadRoles {
    fn new(roots: Option<Roots>, names: &[String]) -> Self {
        let frontend = roots.as_ref().and_then(|roots| roots.frontend.clone());
        let is_used = |roots: &Roots| match &roots.runtime {
            Some(runtime) => names.iter().any(|name| is_same(runtime, name)),
            None => true,
        };
        Self {
            roots: roots.filter(is_used),
            frontend,
        }
    }

    fn role(&self, name: &str, is_base: Option<bool>) -> BaseRole {
        let is = |other: Option<&String>| other.is_some_and(|other| is_same(other, name));
        let is_base = is_base.unwrap_or_else(|| match &self.roots {
            Some(roots) => is(roots.runtime.as_ref()),
            None => !is(self.frontend.as_ref()),
        });
        if is_base {
            BaseRole::Runtime
        } else if is(self.frontend.as_ref()) {
            BaseRole::Frontend
        } else {
            BaseRole::BuildTime
        }
    }
}

/// Returns `true` if two texts name one image after Docker's completion, without their digests.
fn is_same(a: &str, b: &str) -> bool {
    let complete = |text: &str| {
        let text = text.split('@').next().unwrap_or(text);
        Some(text.parse::<ImageRef>().ok()?.or_latest())
    };
    match (complete(a), complete(b)) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

/// Roles in the text of a Dockerfile.
#[derive(Debug, PartialEq, Eq)]
struct Roots {
    /// The base of the final stage. `None` for `scratch`.
    runtime: Option<String>,
    /// The image of `# syntax=`.
    frontend: Option<String>,
}

/// Returns the base image of the final stage of a Dockerfile, as far as its text alone determines
/// it.
pub fn runtime_base(dockerfile: &str) -> Option<String> {
    Roots::parse(dockerfile, None, BTreeMap::new())?.runtime
}

impl Roots {
    fn parse(text: &str, target: Option<&str>, given: BTreeMap<String, String>) -> Option<Self> {
        let dockerfile = parse_dockerfile::parse(text).ok()?;
        let mut variables = Variables::new(BTreeMap::new());
        for instruction in &dockerfile.instructions {
            match instruction {
                Instruction::Arg(arg) => {
                    variables.declare(&arg.arguments.value, &given).ok()?;
                }
                // A `FROM` can only use the arguments before the first stage.
                Instruction::From(_) => break,
                _ => {}
            }
        }
        let stages: Option<Vec<(String, Option<String>)>> = dockerfile
            .stages()
            .map(|stage| {
                let name = stage
                    .from
                    .as_
                    .as_ref()
                    .map(|(_, name)| name.value.to_lowercase());
                Some((variables.expand(&stage.from.image.value).ok()?, name))
            })
            .collect();
        let stages = stages?;
        let mut at = match target {
            None => stages.len().checked_sub(1)?,
            Some(target) => stages
                .iter()
                .position(|(_, name)| name.as_deref() == Some(&target.to_lowercase()))
                .or_else(|| target.parse().ok().filter(|n| *n < stages.len()))?,
        };
        // Each stage can only be based on an earlier one, so the loop ends.
        let image = loop {
            let (image, _) = &stages[at];
            let earlier = stages[..at]
                .iter()
                .rposition(|(_, name)| name.as_deref() == Some(&image.to_lowercase()));
            match earlier {
                Some(earlier) => at = earlier,
                None => break image.clone(),
            }
        };
        Some(Self {
            runtime: (image != "scratch").then_some(image),
            frontend: dockerfile
                .parser_directives
                .syntax
                .as_ref()
                .map(|syntax| syntax.value.value.to_string()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roots(text: &str, target: Option<&str>, args: &[(&str, &str)]) -> Roots {
        let args = args
            .iter()
            .map(|(k, v)| ((*k).into(), (*v).into()))
            .collect();
        Roots::parse(text, target, args).unwrap()
    }

    #[test]
    fn roots_follow_the_final_stage() {
        let text = "# syntax=docker/dockerfile:1\nARG V=1 REG=r.io\nFROM golang:$V AS build\nRUN go\n\
                    FROM ${REG:-x}/base:${V} AS base\nFROM base AS Final\nCOPY --from=build /a /a\n";
        let all = roots(text, None, &[]);
        assert_eq!(all.runtime.as_deref(), Some("r.io/base:1"));
        assert_eq!(all.frontend.as_deref(), Some("docker/dockerfile:1"));
        let given = roots(text, Some("build"), &[("V", "2")]);
        assert_eq!(given.runtime.as_deref(), Some("golang:2"));
        assert_eq!(roots("FROM scratch\nCOPY a /\n", None, &[]).runtime, None);
        assert_eq!(
            Roots::parse("FROM a\n", Some("missing"), BTreeMap::new()),
            None
        );
    }

    fn source(reference: &str, digest: &str, platform: Option<&str>) -> UsedSource {
        UsedSource {
            reference: reference.into(),
            digest: digest.into(),
            platform: platform.map(str::to_owned),
            purl: format!("pkg:docker/{reference}"),
            is_base: Some(false),
        }
    }

    #[test]
    fn image_is_sent_once_with_its_platforms() {
        let (amd, arm) = (Some("linux/amd64"), Some("linux/arm64"));
        let base = |source: UsedSource, is_base| UsedSource { is_base, ..source };
        let used = [
            source("os:1", "a", arm),
            base(source("os:1", "a", amd), Some(true)),
            source("os:1", "b", amd),
            source("tools:1", "c", amd),
            base(source("tools:1", "c", None), None),
            UsedSource {
                purl: "https://example.com/a.git".into(),
                ..source("https://example.com/a.git", "d", None)
            },
        ];
        let use_of = |platforms: &[&str], is_base| Use {
            platforms: platforms.iter().map(|&name| name.into()).collect(),
            is_base,
        };
        let expected = [
            (
                ("os:1", "a"),
                use_of(&["linux/amd64", "linux/arm64"], Some(true)),
            ),
            (("os:1", "b"), use_of(&["linux/amd64"], Some(false))),
            (("tools:1", "c"), use_of(&[], None)),
        ];
        assert_eq!(group_by_image(&used), expected.into());
    }

    fn roles(roots: Option<Roots>, images: &[(&str, Option<bool>)]) -> Vec<BaseRole> {
        let names: Vec<String> = images.iter().map(|(name, _)| (*name).to_owned()).collect();
        let read = ReadRoles::new(roots, &names);
        let role = |(name, is_base): &(&str, Option<bool>)| read.role(name, *is_base);
        images.iter().map(role).collect()
    }

    fn alpine() -> Roots {
        Roots {
            runtime: Some("alpine".into()),
            frontend: Some("docker/dockerfile:1".into()),
        }
    }

    const FRONTEND: &str = "docker/dockerfile:1";

    #[test]
    fn provenance_decides_before_the_text() {
        let images = [
            ("alpine:latest", Some(false)),
            ("golang:1", Some(true)),
            (FRONTEND, Some(false)),
        ];
        let expected = [BaseRole::BuildTime, BaseRole::Runtime, BaseRole::Frontend];
        assert_eq!(roles(Some(alpine()), &images), expected);
    }

    #[test]
    fn the_text_decides_without_provenance() {
        let images = [
            ("docker.io/library/alpine:latest", None),
            ("golang:1", None),
            (FRONTEND, None),
        ];
        let expected = [BaseRole::Runtime, BaseRole::BuildTime, BaseRole::Frontend];
        assert_eq!(roles(Some(alpine()), &images), expected);
        let scratch = Roots {
            runtime: None,
            ..alpine()
        };
        let expected = [BaseRole::BuildTime, BaseRole::BuildTime, BaseRole::Frontend];
        assert_eq!(roles(Some(scratch), &images), expected);
    }

    #[test]
    fn all_images_are_bases_if_the_base_is_unknown() {
        let images = [("golang:1", None), ("busybox:1", None), (FRONTEND, None)];
        let expected = [BaseRole::Runtime, BaseRole::Runtime, BaseRole::Frontend];
        assert_eq!(roles(Some(alpine()), &images), expected);
        assert_eq!(roles(None, &images), [BaseRole::Runtime; 3]);
    }
}
