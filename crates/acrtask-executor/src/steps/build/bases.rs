//! What each image that a build used is to it: the base of the final stage, of another one, or the frontend.
//!
//! Names and digests come from the build's provenance. The role comes from the Dockerfile: the final stage is
//! followed through the stages that it is made from until an image is met. Where there is no Dockerfile to read
//! (a remote context), a single image is the base, and of several none is called one.

use std::collections::{BTreeMap, BTreeSet};

use acrtask_buildkit::UsedSource;
use acrtask_model::{
    EventKind, ImageRef,
    events::{BaseRole, Evidence},
};
use parse_dockerfile::Instruction;

use super::Recipe;
use crate::{
    context::StepContext,
    dockerfile::{declared, expand},
};

/// Tells every image that a build used.
pub(crate) async fn tell(ctx: &StepContext, recipe: &Recipe, used: &[UsedSource]) {
    let text = recipe.dockerfile_text();
    let roots = text.as_deref().and_then(|text| {
        let args = recipe
            .build_args()
            .map(|(k, v)| (k.to_owned(), v.to_owned()));
        Roots::of(text, recipe.target(), args.collect())
    });
    let images = by_image(used);
    for ((reference, digest), platforms) in &images {
        let Ok(digest) = digest.parse() else {
            continue;
        };
        // An image of this run has another name in the engine.
        let own = recipe.own_name(reference).map(ToString::to_string);
        let name = own.unwrap_or_else(|| (*reference).to_owned());
        ctx.run
            .events
            .send(EventKind::BaseUsed {
                step: ctx.step.id.clone(),
                role: role(&name, roots.as_ref(), images.len()),
                name,
                digest,
                evidence: Evidence::Provenance,
                platforms: platforms.clone(),
            })
            .await;
    }
}

/// The images among what a build used, by name and digest, each with the platforms that it was used for; none where one of
/// them is not known.
fn by_image(used: &[UsedSource]) -> BTreeMap<(&str, &str), Vec<String>> {
    let mut found: BTreeMap<(&str, &str), Option<BTreeSet<String>>> = BTreeMap::new();
    for source in used.iter().filter(|source| source.is_image()) {
        let platforms = found
            .entry((&source.reference, &source.digest))
            .or_insert_with(|| Some(BTreeSet::new()));
        match (&source.platform, platforms) {
            (Some(platform), Some(platforms)) => {
                platforms.insert(platform.clone());
            }
            (_, platforms) => *platforms = None,
        }
    }
    found
        .into_iter()
        .map(|(image, platforms)| (image, platforms.into_iter().flatten().collect()))
        .collect()
}

fn role(reference: &str, roots: Option<&Roots>, count: usize) -> BaseRole {
    let Some(roots) = roots else {
        return if count == 1 {
            BaseRole::Runtime
        } else {
            BaseRole::BuildTime
        };
    };
    let same = |name: &Option<String>| name.as_deref().is_some_and(|name| is_same(name, reference));
    if same(&roots.runtime) {
        BaseRole::Runtime
    } else if same(&roots.frontend) {
        BaseRole::Frontend
    } else {
        BaseRole::BuildTime
    }
}

/// Whether two texts name one image: completed as Docker does, digests aside.
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

/// What a Dockerfile says of roles.
#[derive(Debug, PartialEq, Eq)]
struct Roots {
    /// The image that the final stage stands on; nothing for `scratch`.
    runtime: Option<String>,
    /// The image of `# syntax=`.
    frontend: Option<String>,
}

/// Returns the image that the final stage of a Dockerfile is based on, as far as its text alone says so.
pub fn runtime_base(dockerfile: &str) -> Option<String> {
    Roots::of(dockerfile, None, BTreeMap::new())?.runtime
}

impl Roots {
    fn of(text: &str, target: Option<&str>, given: BTreeMap<String, String>) -> Option<Self> {
        let dockerfile = parse_dockerfile::parse(text).ok()?;
        let mut args = BTreeMap::new();
        for instruction in &dockerfile.instructions {
            match instruction {
                Instruction::Arg(arg) => {
                    for (name, default) in declared(&arg.arguments.value) {
                        let value = given.get(&name).cloned();
                        let value = value.or_else(|| default.map(|text| expand(&text, &args)));
                        if let Some(value) = value {
                            args.insert(name, value);
                        }
                    }
                }
                // What stands before the first stage is all that a FROM sees.
                Instruction::From(_) => break,
                _ => {}
            }
        }
        let stages: Vec<(String, Option<String>)> = dockerfile
            .stages()
            .map(|stage| {
                let name = stage
                    .from
                    .as_
                    .as_ref()
                    .map(|(_, name)| name.value.to_lowercase());
                (expand(&stage.from.image.value, &args), name)
            })
            .collect();
        let mut at = match target {
            None => stages.len().checked_sub(1)?,
            Some(target) => stages
                .iter()
                .position(|(_, name)| name.as_deref() == Some(&target.to_lowercase()))
                .or_else(|| target.parse().ok().filter(|n| *n < stages.len()))?,
        };
        // Each stage can only be made from an earlier one, so this ends.
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
        Roots::of(text, target, args).unwrap()
    }

    #[test]
    fn follows_the_final_stage() {
        let text = "# syntax=docker/dockerfile:1\nARG V=1 REG=r.io\nFROM golang:$V AS build\nRUN go\n\
                    FROM ${REG:-x}/base:${V} AS base\nFROM base AS Final\nCOPY --from=build /a /a\n";
        let all = roots(text, None, &[]);
        assert_eq!(all.runtime.as_deref(), Some("r.io/base:1"));
        assert_eq!(all.frontend.as_deref(), Some("docker/dockerfile:1"));
        let given = roots(text, Some("build"), &[("V", "2")]);
        assert_eq!(given.runtime.as_deref(), Some("golang:2"));
        assert_eq!(roots("FROM scratch\nCOPY a /\n", None, &[]).runtime, None);
        assert_eq!(
            Roots::of("FROM a\n", Some("missing"), BTreeMap::new()),
            None
        );
    }

    #[test]
    fn an_image_is_told_once_with_its_platforms() {
        let source = |reference: &str, digest: &str, platform: Option<&str>| UsedSource {
            reference: reference.into(),
            digest: digest.into(),
            platform: platform.map(str::to_owned),
            purl: format!("pkg:docker/{reference}"),
        };
        let (amd, arm) = (Some("linux/amd64"), Some("linux/arm64"));
        let mut used = vec![
            source("os:1", "a", arm),
            source("os:1", "a", amd),
            source("os:1", "b", amd),
            source("tools:1", "c", amd),
            source("tools:1", "c", None),
        ];
        used.push(UsedSource {
            purl: "https://example.com/a.git".into(),
            ..source("https://example.com/a.git", "d", None)
        });
        let found = by_image(&used);
        let both = vec!["linux/amd64".to_owned(), "linux/arm64".to_owned()];
        let expected = [
            (("os:1", "a"), both),
            (("os:1", "b"), vec!["linux/amd64".to_owned()]),
            (("tools:1", "c"), Vec::new()),
        ];
        assert_eq!(found, expected.into());
    }

    #[test]
    fn gives_roles() {
        let roots = Roots {
            runtime: Some("alpine".into()),
            frontend: Some("docker/dockerfile:1".into()),
        };
        assert_eq!(
            role("docker.io/library/alpine:latest", Some(&roots), 3),
            BaseRole::Runtime
        );
        assert_eq!(
            role("docker/dockerfile:1", Some(&roots), 3),
            BaseRole::Frontend
        );
        assert_eq!(role("golang:1", Some(&roots), 3), BaseRole::BuildTime);
        assert_eq!(role("golang:1", None, 1), BaseRole::Runtime);
        assert_eq!(role("golang:1", None, 2), BaseRole::BuildTime);
    }
}
